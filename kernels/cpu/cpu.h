/* Inside of the CPU backend: instruction-set levels, the kernel table, the thread pool.
 *
 * An operator is a file op_<name>.c that cuts the work into tasks whose results do not depend on
 * the number of threads, and calls kernels through `struct dpk_kernels`. Kernels are pure
 * (pointers, strides, counts; no allocation, no globals), one table per instruction-set level,
 * filled from kernels.def and tiles.h (isa/table.c). Sources in kernels/cpu/isa/ are compiled once
 * per level. */
#ifndef DPK_CPU_H
#define DPK_CPU_H

#include "../backend.h"

/* Levels: isa.def. */
enum dpk_isa {
#define DPK_ISA(NAME, name, act_bf16) DPK_ISA_##NAME, dpk_isa_##name = DPK_ISA_##NAME,
#include "isa.def"
#undef DPK_ISA
    DPK_N_ISAS
};
const char *dpk_isa_name(int isa);
bool dpk_isa_available(int isa); /* built, and this machine has it */
int dpk_isa_best(void);
bool dpk_isa_act_bf16(int isa); /* activations of bf16 files are bf16 */
/* This machine multiplies bytes in fours with the level's registers (AVX-VNNI for avx2, AVX512-VNNI
 * for the wider ones, FEAT_DotProd for neon): an extra of avx2, avx512 and neon, always there at
 * avx512bf16 and neonbf16. */
bool dpk_isa_has_dot(int isa);

/* ---- Matrix tile: the product kernel of linears, convolutions and attention ------------------
 *
 * C[r][c] = sum over segments s, k < k_len[s] of A_s[r][k] * B[k0_s + k][c]
 * for r < MR rows, c < 16 * n_panels columns.
 *
 * A is n_seg segments; segment s of row r is k_len[s] contiguous elements at a[s * MR + r] (element
 * type of A). Rows past the real ones repeat a real row (clamped pointers), so that a tile always
 * has MR rows. Segments follow each other in B without gaps: segment s takes roundup(k_len[s], g)
 * k's of every panel. A's elements between k_len and that roundup are not read. B points at the
 * first panel, b_stride bytes from one panel to the next. C is float32 [MR][16 * n_panels],
 * c_stride elements a row, overwritten.
 *
 * Tiles of integers (A quantized rows as `a_format` says, B s8 panels): the sum is exact in 32 bits
 * for up to DPK_MAX_INT8_K k's; k_len are multiples of 4, and A is read up to there. Then
 *     C[r][c] = (float)(sum + offset[c]) * scale_a[r] * scale_b[c],
 * or, where scale_a is NULL, C is the integer. DPK_A_U8 needs offset = -128 * (sum of B's column)
 * and undoes with it what its A adds; the others do not look at offset. */
enum { DPK_MAX_INT8_K = 131071 }; /* times 2^14 is below 2^31 */
enum dpk_a_format {
    DPK_A_FLOAT = 0, /* the tile's float type */
    DPK_A_S8,        /* bytes */
    DPK_A_U8,        /* bytes, plus 128 */
    DPK_A_S16,       /* 16-bit, the four k's of a group in the order 0, 2, 1, 3 */
};
struct dpk_tile {
    const void *const *a; /* [n_seg][MR] */
    const int32_t *k_len; /* [n_seg] */
    int32_t n_seg;
    int32_t n_panels; /* 1 .. NP */
    const void *b;
    size_t b_stride; /* bytes */
    float *c;
    int32_t c_stride; /* elements */
    /* Integer tiles: */
    const int32_t *offset; /* [16 * n_panels] */
    const float *scale_a;  /* [MR], or NULL */
    const float *scale_b;  /* [16 * n_panels] */
};
typedef void dpk_tile_fn(const struct dpk_tile *t);
struct dpk_tile_kernel {
    dpk_tile_fn *fn; /* NULL: this level has none for these types (see dpk_cpu_tile) */
    int mr, np;      /* rows of a tile, largest n_panels */
    int a_format;    /* enum dpk_a_format */
};

/* ---- The kernel table of one level (members: kernels.def) ----------------------------------- */
#include "kernels.h"

/* ---- Thread pool ----------------------------------------------------------------------------
 * Runs fn(arg, task, worker) for task 0..n_tasks-1, each once, on any worker 0..n_workers-1 (the
 * caller is worker 0), and returns when all are done. Spins a little, then sleeps. One call at a
 * time. No allocation. n_workers 0: one per core that the process may use. */
struct dpk_pool;
int dpk_pool_create(struct dpk_pool **pool, int n_workers, dpk_error *err);
void dpk_pool_free(struct dpk_pool *pool);
int dpk_pool_workers(const struct dpk_pool *pool);
void dpk_pool_run(struct dpk_pool *pool, int n_tasks, void (*fn)(void *arg, int task, int worker),
                  void *arg);
/* For profiles: called by each worker that took part in a run when its share is done (seconds of
 * CLOCK_MONOTONIC). Set between runs; share NULL: no watching. */
struct dpk_pool_watch {
    void (*share)(void *arg, int worker, double begin, double end);
    void *arg;
};
void dpk_pool_watch(struct dpk_pool *pool, struct dpk_pool_watch watch);

/* What dpk_cpu_create takes, and what tests and benchmarks turn off. */
struct dpk_cpu_options {
    int n_threads;
    const char *isa;
    int act_dtype;
    bool no_dot;      /* no products of bytes in fours */
    bool no_winograd; /* convolutions are direct */
};
int dpk_cpu_create_with(struct dpk_backend **be, const struct dpk_cpu_options *options,
                        dpk_error *err);

struct dpk_cpu {
    struct dpk_backend base; /* first: a dpk_backend * is a dpk_cpu * */
    int isa;
    int act_dtype; /* 0: by level and file */
    bool dot;      /* use products of bytes in fours (dpk_isa_has_dot) */
    bool winograd; /* where it pays */
    const struct dpk_kernels *k;
    struct dpk_pool *pool;
    size_t l2_bytes; /* of a core's second cache */
    char detail[64];
};

#endif
