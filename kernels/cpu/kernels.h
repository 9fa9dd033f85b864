/* The kernel table of one instruction-set level. Included by cpu.h only. */
#ifndef DPK_KERNELS_H
#define DPK_KERNELS_H

/* Function types of kernels.def are declared here, each with its contract. */

/* ---- Products ------------------------------------------------------------------------------- */

/* What follows a product tile: for r < rows, j < n
 *     v = act(c[r][j] * scale[j] + bias[j] + temb[r][j]) * gate[r][j] + residual[r][j]
 *     out[r][j] = v
 * where each of scale, bias, temb, gate and residual is left out if NULL. scale goes with the
 * columns of c (all of them, with glu values and gates). With glu the tile's columns are
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
    const float *scale, *bias, *bias_glu;
    const void *temb[DPK_MAX_MR], *gate[DPK_MAX_MR]; /* a row each; temb[0], gate[0] NULL: none */
    const void *residual;
    void *out;
    size_t stride; /* elements from row to row of residual and out */
};
typedef void dpk_epilogue_fn(const struct dpk_epilogue *e);

/* dst[i] = src[i] for i < n, bfloat16 to float32. */
typedef void dpk_widen_fn(float *dst, const uint16_t *src, size_t n);

/* Largest magnitude of x[0 .. n), float32 or bfloat16; not finite if any of them is not. */
typedef float dpk_magnitude_fn(const void *x, int dtype, size_t n);

/* q[i] = clamp(round(x[i] / scale), -127, 127), or with `torchao` clamp(round(x[i] * (1 / scale)),
 * -128, 127), rounding to nearest even; exact: each division and product as float32 does it. As
 * many zeros follow as make n a multiple of 4. x is finite, 2^-24 <= scale <= FLT_MAX / 127 and
 * |x| / scale at most 2^20. */
struct dpk_quantize {
    const void *x;
    int32_t dtype;  /* of x: DPK_F32 or DPK_BF16 */
    int32_t format; /* enum dpk_a_format: DPK_A_S8, DPK_A_U8 or DPK_A_S16 */
    size_t n;
    float scale;
    bool torchao;
    void *q;
};
typedef void dpk_quantize_fn(const struct dpk_quantize *q);

/* One s8 panel [quads][16][4] to bfloat16 [2 * quads][16][2]; exact. */
typedef void dpk_widen_s8_fn(uint16_t *dst, const int8_t *src, size_t quads);

/* One s4 panel [octets][16][8] to integer times scale: float32 [8 * octets][16], or bfloat16
 * [4 * octets][16][2] rounded to nearest even. scale[j * 16 + r] is that of row r and the j-th
 * `group` octets. */
typedef void dpk_widen_s4_fn(void *dst, int dtype, const uint8_t *src, size_t octets,
                             const float *scale, size_t group);

/* ---- Other operators ------------------------------------------------------------------------ */

#include "kernels_attention.h"
#include "kernels_ops.h"
#include "kernels_winograd.h"

/* ---- The table ------------------------------------------------------------------------------ */

struct dpk_kernels {
    int isa; /* enum dpk_isa */
    /* Product tiles by element types of A and B (named A_B). */
    struct dpk_tile_kernel tile_f32_f32, tile_f32_bf16, tile_f32_f16, tile_bf16_bf16;
    struct dpk_tile_kernel tile_s8, tile_s8_dot; /* the second where dpk_isa_has_dot */
    struct dpk_tile_s16_kernel tile_s16; /* NULL: convolutions are direct */
    const struct dpk_attn_columns_kernels *attn_columns; /* NULL: none at this level */
#define DPK_KERNEL(member, type) type *member;
#include "kernels.def"
#include "kernels_f32.def"
#include "kernels_int8.def"
#undef DPK_KERNEL
};

/* The table of a level, NULL if the build has it not. */
const struct dpk_kernels *dpk_kernels_get(int isa);

/* The tile for these element types: this level's, or the nearest lower level's that has one (ref
 * has all). NULL for unknown types. */
const struct dpk_tile_kernel *dpk_cpu_tile(int isa, int a_dtype, int b_dtype);
/* The tile of integers, with or without dot products of bytes. */
const struct dpk_tile_kernel *dpk_cpu_tile_s8(int isa, bool dot);

#endif
