/* Quantized rows: what the integer tile of a level takes as A, between the operator that makes a row
 * and the linear that reads it, or inside a linear or a convolution that gets numbers. A row is
 * DPK_ROW_HEAD bytes that begin with its scale, a float, then the integers in the tile's format. */
#ifndef DPK_ROWS8_H
#define DPK_ROWS8_H

#include "cpu.h"

#include <stddef.h>

enum { DPK_ROW_HEAD = 64 };

/* How rows are quantized. */
struct dpk_rows8 {
    const struct dpk_kernels *k;
    int32_t format; /* enum dpk_a_format */
    int32_t dtype;  /* of the numbers: DPK_F32 or DPK_BF16 */
    bool torchao;   /* its rule, else diffusion-fast's */
};

/* Rows of numbers of this type for weights with these flags (enum dpk_tensor_flags). */
struct dpk_rows8 dpk_rows8_of(const struct dpk_cpu *cpu, int dtype, uint32_t flags);

/* Bytes of n integers, zeros up to a multiple of 4 included; and from one row of n to the next (no
 * multiple of 4 KiB: the rows of a tile would compete for the same lines of L1). */
size_t dpk_rows8_bytes(const struct dpk_rows8 *r, size_t n);
size_t dpk_rows8_stride(const struct dpk_rows8 *r, size_t n);

/* A row from one array x of n numbers. */
void dpk_rows8_put(const struct dpk_rows8 *r, char *row, const void *x, size_t n);

/* The same in parts: the scale of a row whose largest magnitude is `top`, NaN unless that is
 * finite; and integers at q, dpk_rows8_bytes(n) of them. With the scale NaN they are zeros: results
 * are NaN, bad values are passed on. */
float dpk_rows8_scale(const struct dpk_rows8 *r, float top);
void dpk_rows8_integers(const struct dpk_rows8 *r, void *q, float scale, const void *x, size_t n);

/* The larger of two magnitudes, NaN if either is. */
static inline float dpk_larger(float a, float b) { return a > b || a != a ? a : b; }

#endif
