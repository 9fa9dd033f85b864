/* The blocked product behind linears and convolutions: out = epilogue(A B^T), A given row by row as
 * segments.
 *
 * Loop order: blocks of rows and of panels are tasks; inside a task, for np panels (64 columns),
 * for mr rows: one tile over the whole K, then its epilogue while it is in L1. The panels of one
 * column group stay in L2 while the block's rows pass by. Every result is one sum in one order, so
 * neither the blocks nor the threads show in it. */
#ifndef DPK_GEMM_H
#define DPK_GEMM_H

#include "cpu.h"

#include <stddef.h>

enum { DPK_MAX_SEG = 64 }; /* more segments than this: the operator packs them into one */

struct dpk_gemm {
    const struct dpk_tile_kernel *tile;
    int64_t m;      /* rows */
    int32_t n;      /* result columns */
    int32_t panels; /* of B; a panel makes 16 columns, or 8 with glu */
    const void *b;
    size_t b_stride;    /* bytes of a panel */
    size_t a_row_bytes; /* memory that a row of A brings into the cache */
    int32_t n_seg, k_len[DPK_MAX_SEG];
    size_t pack_bytes;            /* per row of A; 0: rows are read where they are */
    struct dpk_epilogue epilogue; /* act, glu, dtype, bias, bias_glu, residual, out, stride */
    /* Rows added (temb) or multiplied (gate) by image: row m takes that of image m /
     * rows_per_image, or the only one. */
    const void *temb, *gate; /* [images][image_stride] of the epilogue's type, or NULL */
    size_t image_stride;     /* elements; 0: one row for all */
    int64_t rows_per_image;
    /* Point a[s * mr + r] at segment s of row m0 + r for r < mr, rows from `rows` on repeating the
     * last; pack is pack_bytes times mr for this tile. */
    void (*rows)(const void *op, int64_t m0, int rows, int mr, const void **a, char *pack);
    const void *op;
    /* Filled by dpk_gemm_plan. */
    dpk_epilogue_fn *finish;
    int64_t block_rows;
    int32_t block_panels;
    size_t worker_bytes;
};

/* The type that A must have for these operands, and the tile: x itself where this level multiplies
 * it, else float32 (packed). NULL if there is none (quantized weights). */
const struct dpk_tile_kernel *dpk_gemm_tile(const struct dpk_cpu *cpu, int x_dtype, int w_dtype,
                                            int *a_dtype);

/* Choose blocks from the sizes in g (no pointer is looked at). Returns the scratch bytes of all
 * workers. */
size_t dpk_gemm_plan(const struct dpk_cpu *cpu, struct dpk_gemm *g);

/* scratch: as much as dpk_gemm_plan said, 64-byte aligned. */
void dpk_gemm_run(struct dpk_cpu *cpu, const struct dpk_gemm *g, void *scratch);

/* Copy a row piece to a packed row of A: n elements of x_dtype to a_dtype (the same, or bf16 to
 * f32). */
void dpk_gemm_pack(const struct dpk_cpu *cpu, void *dst, int a_dtype, const void *src, int x_dtype,
                   size_t n);

static inline size_t dpk_dtype_bytes(int dtype) { return dtype == DPK_F32 ? 4 : 2; }
static inline size_t dpk_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

#endif
