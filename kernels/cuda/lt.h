/* Products by cuBLASLt, their algorithms chosen once a shape (tune.cu).
 *
 *     D[m][n] = alpha A[m][k] B[n][k]^T (+ C[m][n]) (+ bias[n])       row-major, K contiguous
 *
 * A and B of `dtype`, C and D of out_dtype, sums in float32 (no TF32), or int8 products in int32:
 * those are plain ones, neither added nor scaled. cuBLASLt is column-major: it
 * is asked for D^T = B A^T, its "TN" form, without a transposition anywhere. */
#ifndef DPK_LT_H
#define DPK_LT_H

#include "cuda.h"

/* Compared byte by byte: begin with = {}. */
struct dpk_lt_product {
    int64_t m, n, k;
    int64_t lda, ldb, ldd;                /* elements between rows; C has D's */
    int64_t stride_a, stride_b, stride_d; /* elements between the products of a batch */
    int32_t batch;
    int32_t dtype, out_dtype; /* DPK_BF16 or DPK_F32; DPK_S8, then DPK_I32 */
    int32_t b_columns;        /* B is [k][n] instead */
    int32_t add;              /* C is there; it may be D */
    int32_t bias;             /* float32, out_dtype too */
    int32_t align;            /* bytes that addresses are multiples of, at most 16; 0: 16 */
    float alpha;
};

/* Choose an algorithm: from memory, the cache file, by measuring where that is allowed, else the
 * heuristic's first. Outside of captures. */
int dpk_lt_prepare(struct dpk_cuda *cuda, const struct dpk_lt_product *p, dpk_error *err);
/* Queue it; not prepared: the heuristic's first choice. a, b, c, d, bias: device memory. */
int dpk_lt_run(struct dpk_cuda *cuda, const struct dpk_lt_product *p, const void *a, const void *b,
               const void *c, void *d, const float *bias, dpk_error *err);

#endif
