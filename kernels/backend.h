/* What a backend is: the operator table over a device buffer, and nothing more.
 *
 * The runtime owns plans, programs and memory layout; a backend owns a device (a thread pool, a
 * GPU) and runs operators on tensors that lie in memory which it allocated, or on the mapped
 * weights it was given. */
#ifndef DPK_BACKEND_H
#define DPK_BACKEND_H

#include "../formats/dpk.h"

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
    /* Make the weights usable: for a CPU nothing, for a GPU one upload. weights: the whole section.
     * Called once per model. */
    int (*attach)(struct dpk_backend *be, const struct dpk_file *file, dpk_error *err);
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
};

/* The CPU backend. n_threads 0: one per core the process may use. isa NULL: the best there is, or
 * what DPK_ISA in the environment says; a name the machine cannot run, or does not exist, is
 * DPK_EARG. act_dtype 0: the backend's choice, or DPK_F32/DPK_BF16 to force one. */
int dpk_cpu_create(struct dpk_backend **be, int n_threads, const char *isa, int act_dtype,
                   dpk_error *err);

#endif
