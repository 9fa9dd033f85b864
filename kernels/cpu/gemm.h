/* The blocked product behind linears and convolutions: out = epilogue(A B^T), A given row by row as
 * segments.
 *
 * Loop order: blocks of rows and of panels are tasks; inside a task, for np panels (64 columns),
 * for mr rows: one tile over the whole K, then its epilogue while it is in L1. The panels of one
 * column group stay in L2 while the block's rows pass by. Every result is one sum in one order, so
 * neither the blocks nor the threads show in it. */
#ifndef DPK_GEMM_H
#define DPK_GEMM_H

#include "rows8.h"

#include <stddef.h>

enum { DPK_MAX_SEG = 64 }; /* more segments than this: the operator packs them into one */

struct dpk_gemm {
    const struct dpk_kernels *k;
    const struct dpk_tile_kernel *tile;
    /* The weight, filled by dpk_gemm_weight. There are three kinds of products:
     *   plain      panels as they lie in the file, A of a_dtype
     *   integer    a_dtype is DPK_S8: rows of A quantized, by the operator or before it; s8 panels as
     *              they lie in the file
     *   widened    strip_dtype is not 0: s8 or s4 panels become panels of this type, a group of
     *              columns at a time, in the worker's scratch */
    const struct dpk_weight *w;
    int a_dtype, strip_dtype;
    struct dpk_rows8 rows8; /* of integer products */
    size_t k_padded;        /* k's of a panel in the file */
    size_t c_padded;        /* and those of a tap */
    size_t b_stride;        /* bytes of a panel in the file */
    size_t tile_stride;     /* bytes of a panel that tiles read */
    int tile_group; /* k's that adjoin in it: segments but the last are a multiple of them */
    size_t scales_bytes;
    int64_t m;          /* rows */
    int32_t n;          /* result columns */
    int32_t panels;     /* of B; a panel makes 16 columns, or 8 with glu */
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
     * last; pack is pack_bytes times mr for this tile. Integer products: there is one segment, its
     * integers DPK_ROW_HEAD bytes after the head of a row, and that packed is at
     * pack + r * pack_bytes. */
    void (*rows)(const void *op, int64_t m0, int rows, int mr, const void **a, char *pack);
    const void *op;
    /* Results as quantized rows, where made.k is not NULL: a task makes whole rows, in numbers in
     * the worker's scratch, then quantizes them. Needs epilogue.stride before dpk_gemm_plan, which
     * is that of the numbers, and no residual. */
    struct dpk_rows8 made;
    /* Filled by dpk_gemm_plan. */
    int64_t block_rows;
    int32_t block_panels;
    size_t worker_bytes;
    size_t shared_bytes; /* not 0: all rows are packed first, by all workers, then multiplied */
};

/* Begin a product with the weight w of a linear or a convolution: fill the members from k to
 * scales_bytes (no data is looked at). A is x itself where this level multiplies it, else float32
 * (packed), or quantized. False if no kernel takes these types, or sums this long. */
bool dpk_gemm_weight(struct dpk_gemm *g, const struct dpk_cpu *cpu, const struct dpk_weight *w,
                     int x_dtype);

/* Choose blocks from the sizes in g (no pointer is looked at). Returns the scratch bytes of all
 * workers. */
size_t dpk_gemm_plan(const struct dpk_cpu *cpu, struct dpk_gemm *g);

/* scratch: as much as dpk_gemm_plan said, 64-byte aligned. */
void dpk_gemm_run(struct dpk_cpu *cpu, const struct dpk_gemm *g, void *scratch);

/* Copy a row piece to a packed row of A: n elements of x_dtype to a_dtype, each of them DPK_F32 or
 * DPK_BF16; rounds to nearest even. */
void dpk_gemm_pack(const struct dpk_cpu *cpu, void *dst, int a_dtype, const void *src, int x_dtype,
                   size_t n);

/* One group of columns, panels p .. p + n of the weight, as tiles and epilogue take it. scratch:
 * dpk_gemm_columns_bytes. */
struct dpk_gemm_columns {
    const void *b;
    bool scaled; /* the epilogue multiplies by scale */
    _Alignas(64) float scale[64];
    _Alignas(64) int32_t offset[64];
};
void dpk_gemm_columns(const struct dpk_gemm *g, int32_t p, int32_t n, void *scratch,
                      struct dpk_gemm_columns *columns);
static inline size_t dpk_gemm_columns_bytes(const struct dpk_gemm *g) {
    return g->strip_dtype ? g->tile_stride * (size_t)g->tile->np + g->scales_bytes : 0;
}

static inline size_t dpk_dtype_bytes(int dtype) { return dtype == DPK_F32 ? 4 : 2; }
static inline size_t dpk_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

#endif
