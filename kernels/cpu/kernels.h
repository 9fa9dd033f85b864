/* The kernel table of one instruction-set level. Included by cpu.h only. */
#ifndef DPK_KERNELS_H
#define DPK_KERNELS_H

/* Function types of kernels.def are declared here, each with its contract. */

/* ---- Products ------------------------------------------------------------------------------- */

/* What follows a product tile: for r < rows, j < n
 *     v = act(c[r][j] + bias[j] + temb[r][j]) * gate[r][j] + residual[r][j],    out[r][j] = v
 * where each of bias, temb, gate and residual is left out if NULL. With glu the tile's columns are
 * 8 values, 8 gates, 8 values, ...:
 *     v = (value + bias[j]) * act(gating + bias_glu[j]), then gate and residual as above.
 * Nothing beyond the n columns of any operand is read or written, except c, which has a whole
 * number of 16-column panels. out may be the residual. Arithmetic in float32; bfloat16 results are
 * rounded to nearest even. */
enum { DPK_MAX_MR = 16 }; /* rows of the tallest tile */
struct dpk_epilogue {
    const float *c;
    int32_t c_stride; /* elements */
    int32_t rows, n;
    int32_t act, glu;
    int32_t dtype; /* of temb, gate, residual and out: DPK_F32 or DPK_BF16 */
    const float *bias, *bias_glu;
    const void *temb[DPK_MAX_MR], *gate[DPK_MAX_MR]; /* a row each; temb[0], gate[0] NULL: none */
    const void *residual;
    void *out;
    size_t stride; /* elements from row to row of residual and out */
};
typedef void dpk_epilogue_fn(const struct dpk_epilogue *e);

/* dst[i] = src[i] for i < n, bfloat16 to float32. */
typedef void dpk_widen_fn(float *dst, const uint16_t *src, size_t n);

/* ---- Other operators ------------------------------------------------------------------------ */

#include "kernels_ops.h"

/* ---- The table ------------------------------------------------------------------------------ */

struct dpk_kernels {
    /* Product tiles by element types of A and B (named A_B). */
    struct dpk_tile_kernel tile_f32_f32, tile_f32_bf16, tile_f32_f16, tile_bf16_bf16;
#define DPK_KERNEL(member, type) type *member;
#include "kernels.def"
#undef DPK_KERNEL
};

/* The table of a level that the machine has. */
const struct dpk_kernels *dpk_kernels_get(int isa);

/* The tile for these element types: this level's, or the nearest lower level's that has one (ref
 * has all). NULL for unknown types. */
const struct dpk_tile_kernel *dpk_cpu_tile(int isa, int a_dtype, int b_dtype);

#endif
