/* What a backend is: the operator table over a device buffer, and nothing more.
 *
 * The runtime owns plans, programs and memory layout; a backend owns a device (a thread pool, a
 * GPU) and runs operators on tensors that lie in memory which it allocated, or on the mapped
 * weights it was given. */
#ifndef DPK_BACKEND_H
#define DPK_BACKEND_H

#include "../formats/dpk.h"

#include <pthread.h>

struct dpk_share;
struct dpk_loop;
struct dpk_normal;

/* The most that a backend's device can do, on all threads of the session: what operators are held
 * against. 0: not known. */
struct dpk_peaks {
    double f32, bf16, s8; /* operations a second in products of activations of these types; a
                             multiply-add is two */
    double bytes;         /* of device memory a second, read and written */
};

/* An activation: dense, row-major, channels last. */
struct dpk_tensor {
    void *data;    /* on the backend's device; NULL while planning */
    int32_t dtype; /* DPK_F32, DPK_BF16 or DPK_I32 */
    struct dpk_shape shape;
    /* Not 0: the value lies as quantized rows (rows8_bytes below). What it is then is the flags of
     * the weights that read it: DPK_TENSOR_DYNAMIC, alone or with DPK_TENSOR_TORCHAO. Only results
     * and x of linears are such; dtype and shape are those of the numbers. */
    uint32_t rows8;
};

/* A weight in the file's own layout. */
struct dpk_weight {
    const void *data;
    int32_t dtype, layout;
    struct dpk_shape shape; /* logical, see ops.h */
    const float *scale;     /* s8, s4; else NULL */
    const int32_t *colsum;  /* s8; else NULL */
    int32_t group;
    uint32_t flags; /* enum dpk_tensor_flags: whether and how rows of x are quantized */
};

/* One operator with its operands resolved. in[i].shape.rank == 0 and wt[i].shape.rank == 0 mark
 * absent operands. */
struct dpk_call {
    const struct dpk_op *op;
    struct dpk_tensor in[DPK_MAX_IN];
    struct dpk_weight wt[DPK_MAX_WT];
    struct dpk_tensor out;
    void *scratch; /* scratch_bytes of it, 64-byte aligned, contents undefined */
};

/* Rows of a map [B,H,W,C], counted through all of its images. They are of one image, and begin and
 * end at multiples of DPK_ROWS_STEP in it, or end with it. */
enum { DPK_ROWS_STEP = 4 };
struct dpk_rows {
    int64_t first, end;
    bool measure; /* group_norm: take the statistics of these rows, make nothing */
};

struct dpk_backend {
    const char *name;   /* "cpu", "cuda" */
    const char *detail; /* for people: instruction set or device, e.g. "avx512bf16, 2 threads" */

    void (*free)(struct dpk_backend *be);
    /* Type of ACT values for a file whose matrices have this type: DPK_F32 or DPK_BF16. */
    int (*act_dtype)(const struct dpk_backend *be, int weight_dtype);
    /* Device memory for arenas. Aligned to 64 bytes at least. NULL if there is none. */
    void *(*alloc)(struct dpk_backend *be, size_t n_bytes);
    void (*release)(struct dpk_backend *be, void *p, size_t n_bytes);
    /* Copy between host and device memory, in order with runs; download waits for what was queued
     * before it. */
    int (*upload)(struct dpk_backend *be, void *dst, const void *host_src, size_t n_bytes,
                  dpk_error *err);
    int (*download)(struct dpk_backend *be, void *host_dst, const void *src, size_t n_bytes,
                    dpk_error *err);
    /* Make the weights usable for activations of this type: for a CPU nothing, for a GPU one upload,
     * which backends with the same `share` have in common. Called before any run; instead of an
     * earlier file, if there was one. */
    int (*attach)(struct dpk_backend *be, const struct dpk_file *file, int act_dtype,
                  struct dpk_share *share, dpk_error *err);
    /* Scratch that run() needs for this call (data pointers are NULL). */
    size_t (*scratch_bytes)(const struct dpk_backend *be, const struct dpk_call *call);
    /* Can the result share memory with input i (same size in bytes)? Only asked for inputs that die
     * here, and not where the result is quantized rows. */
    bool (*in_place)(const struct dpk_backend *be, const struct dpk_call *call, int i);
    /* Optional, NULL where results are never quantized. A value that is read as x of linears
     * (without x2) with dynamically quantized weights of one rule, and by nothing else, need not
     * lie in memory as numbers: the operator that makes it can quantize its rows, which spares a
     * pass over it and half or more of its bytes. Returns the bytes of the result as such rows,
     * where this call (with out.rows8 set; data pointers are NULL) can make them so, or 0. A row is
     * quantized from numbers rounded to out.dtype, by the weights' rule: readers' results are the
     * same bits either way. How a row lies (its scale, the order of its integers) only the backend
     * knows. */
    uint64_t (*rows8_bytes)(const struct dpk_backend *be, const struct dpk_call *call);
    /* Run, or queue, one operator. Allocates nothing. Shapes were checked by dpk_op_shape. */
    int (*run)(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err);

    /* Measure the device: some 60 ms on a CPU. Not while anything runs. */
    int (*peaks)(struct dpk_backend *be, struct dpk_peaks *peaks, dpk_error *err);

    /* ---- Rows of an operator. NULL where there is no such thing. ----
     * For devices whose memory the host can address. The call is that of the whole map; data of
     * maps is where their row 0 would be, but only those rows are there that the rows asked for
     * need and are. Results are the same bits as run()'s.
     * group_norm wants all rows of an image measured, in order, before it makes one, and its
     * scratch (scratch_bytes) left alone meanwhile. Scratch of the others is *bytes, for as many
     * rows as these; false: this call can only run as a whole. */
    bool (*rows_scratch)(const struct dpk_backend *be, const struct dpk_call *call,
                         const struct dpk_rows *rows, size_t *bytes);
    int (*run_rows)(struct dpk_backend *be, const struct dpk_call *call,
                    const struct dpk_rows *rows, dpk_error *err);

    /* ---- Devices that work while the host goes on. NULL where run() is done when it returns. ----
     * Queue all of a list of calls, and around them the loop's own arithmetic if `loop` is not
     * NULL. A list that was queued before (the same operators at the same places) costs one call
     * of the driver; the first time may allocate and wait. */
    int (*run_list)(struct dpk_backend *be, const struct dpk_call *calls, size_t n,
                    const struct dpk_loop *loop, dpk_error *err);
    /* Run a list of calls and wait. seconds[i] grows by what call i took by the device's clock. */
    int (*run_timed)(struct dpk_backend *be, const struct dpk_call *calls, size_t n,
                     double *seconds, dpk_error *err);
    /* Queue a copy within the device. */
    int (*copy)(struct dpk_backend *be, void *dst, const void *src, size_t n_bytes, dpk_error *err);
    /* Queue the filling of an array with normal numbers. */
    int (*normal)(struct dpk_backend *be, const struct dpk_normal *normal, dpk_error *err);
    /* Mark what is queued so far; wait for the mark of that number. Numbers are 0..DPK_MARKS-1. */
    int (*mark)(struct dpk_backend *be, int number, dpk_error *err);
    int (*wait)(struct dpk_backend *be, int number, dpk_error *err);
    /* Bytes of device memory for weights and the like, besides arenas; after attach. */
    uint64_t (*held_bytes)(const struct dpk_backend *be);
};

enum { DPK_MARKS = 4 };

/* Belongs to a model, and is the backend's to fill: what the model's sessions have in common.
 * `first` is NULL at first, and again when the last of them is freed. */
struct dpk_share {
    pthread_mutex_t lock;
    void *first;
};

/* A row of a sampler's table (runtime/sampler.h): coefficients of x, kept, m, noise and slots. */
enum { DPK_LOOP_SLOTS = 4 };
struct dpk_loop_terms {
    double x, kept, m, noise, slot[DPK_LOOP_SLOTS];
};
struct dpk_loop_row {
    double input_scale, m_x, m_e;
    struct dpk_loop_terms next, keep;
    double signal, level; /* of what a mask keeps, after this row */
    int32_t store;        /* slot that gets m, or -1 */
    int32_t noise;        /* number of its array in dpk_loop.noise, or -1 */
    int32_t keeps;        /* some coefficient of keep is not 0 */
    int32_t zero;
};

/* The loop around the network, all of it in device memory. Before the calls, with r = *row:
 *     latent[image or image + n_images] = x * rows[r].input_scale, step = r
 * and after them
 *     e = output, or with guidance: output of the first n_images combined with the others'
 *     x, state = the sampler's row r;  where repaint is 0, x = what is kept;  *row = r + 1
 * n is n_images * one. Pointers that are not needed are NULL. */
enum { DPK_LOOP_GIVES = 6 };
struct dpk_loop_give { /* copied before each run */
    void *to;
    const void *from;
    size_t n_bytes;
};
struct dpk_loop {
    const struct dpk_loop_row *rows;
    int32_t *row;       /* [2]: the next row, and the one that runs */
    float *x, *state;   /* [n], [1 + slots][n] */
    const float *noise; /* [draws][n] */
    float *ratio;       /* [n_images], with rescale */
    float *latent;      /* [n or 2 n] */
    int32_t *step;      /* [1], NULL if the network has no such input */
    const float *output;
    const uint8_t *repaint;                /* [one / channels], or NULL */
    const float *init_latent, *init_noise; /* [n], with repaint */
    int64_t one;                           /* values of an image */
    int32_t n_images, channels;
    int32_t guided; /* 2 n rows: negative ones, then positive ones */
    float guidance, rescale;
    int32_t n_gives;
    struct dpk_loop_give give[DPK_LOOP_GIVES];
};

/* torch.randn of a generator on a CUDA device (runtime/random.h) as [n_images,pixels,channels],
 * drawn in the order [n_images,channels,pixels]. */
struct dpk_normal {
    float *out;
    uint64_t seed, offset;
    uint32_t threads;
    int64_t n_images, pixels, channels;
};

/* What a backend in a library of its own exports as `dpk_plugin`. */
enum { DPK_PLUGIN_VERSION = 2 }; /* of this file: any change of a struct above makes a new one */
struct dpk_plugin {
    uint32_t version;
    /* act_dtype as in dpk_cpu_create. Errors: DPK_EBACKEND (no device, no driver: says which),
     * DPK_EARG, DPK_ENOMEM. */
    int (*create)(struct dpk_backend **be, int act_dtype, dpk_error *err);
};

/* The CPU backend. n_threads 0: one per core the process may use. isa NULL: the best there is, or
 * what DPK_ISA in the environment says; a name the machine cannot run, or does not exist, is
 * DPK_EARG. act_dtype 0: the backend's choice, or DPK_F32/DPK_BF16 to force one. */
int dpk_cpu_create(struct dpk_backend **be, int n_threads, const char *isa, int act_dtype,
                   dpk_error *err);

#endif
