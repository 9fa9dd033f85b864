/* Rows of activations to int8, by the two rules of dpk.h (DPK_TENSOR_DYNAMIC, DPK_TENSOR_TORCHAO).
 * The CPU's rules to the bit: x / s is x * r, r = 1 / s, corrected by its remainder (Markstein: the
 * result is the rounded quotient). Bad values make the row's scale NaN and its integers 0. */
#ifndef DPK_QUANTIZE_CUH
#define DPK_QUANTIZE_CUH

#include "epilogue.cuh"

#include <stdint.h>

enum dpk_quantize_rule { DPK_RULE_PLAIN, DPK_RULE_TORCHAO };
static inline int dpk_rule_of(uint32_t tensor_flags) {
    return tensor_flags & DPK_TENSOR_TORCHAO ? DPK_RULE_TORCHAO : DPK_RULE_PLAIN;
}

/* The scale of a row whose largest magnitude is `top`. */
__device__ __forceinline__ float dpk_row_scale(float top, int dtype, int rule) {
    if (!(top <= 3.402823466e38f)) return __uint_as_float(0x7fc00000u);
    if (rule == DPK_RULE_PLAIN) return __fdiv_rn(fmaxf(top, 1e-5f), 127.0f);
    float s = __fdiv_rn(top, 127.5f);
    if (dtype == DPK_BF16) s = __bfloat162float(__float2bfloat16_rn(s));
    return fmaxf(s, 1.1920928955078125e-07f);
}

/* Magnitudes are compared as their bits: infinity and the NaNs on top. */
__device__ __forceinline__ unsigned dpk_magnitude(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}
__device__ __forceinline__ unsigned dpk_warp_magnitude(unsigned top) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        unsigned other = __shfl_xor_sync(0xffffffffu, top, d);
        top = other > top ? other : top;
    }
    return top;
}

__device__ __forceinline__ int dpk_quantize_one(float x, float scale, float r, int rule) {
    float q = __fmul_rn(x, r);
    if (rule == DPK_RULE_PLAIN) q = __fmaf_rn(__fmaf_rn(-q, scale, x), r, q);
    int i = __float2int_rn(q);
    return i > 127 ? 127 : i < -128 ? -128 : i;
}

/* Sixteen values as integers, in order. A NaN scale makes them zeros. */
__device__ __forceinline__ uint4 dpk_quantize16(const float v[16], float scale, int rule) {
    unsigned q[4] = {0, 0, 0, 0};
    if (scale != scale) return make_uint4(0, 0, 0, 0);
    float r = __fdiv_rn(1.0f, scale);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        q[i / 4] |= (unsigned)(dpk_quantize_one(v[i], scale, r, rule) & 0xff) << 8 * (i % 4);
    }
    return make_uint4(q[0], q[1], q[2], q[3]);
}

/* v[i] = x[at + i] for i < n, 0 for the others of the sixteen. */
__device__ __forceinline__ void dpk_load_up_to_16(float v[16], const void *x, int dtype,
                                                  long long at, int n) {
#pragma unroll
    for (int i = 0; i < 16; i++) v[i] = 0.0f;
    if (n > 0) dpk_load8(v, x, dtype, at, n < 8 ? n : 8);
    if (n > 8) dpk_load8(v + 8, x, dtype, at + 8, n < 16 ? n - 8 : 8);
}

/* ---- Rows that an operator keeps in registers and leaves as integers ------------------------- */

enum { DPK_ROW_KEPT = 64 /* values of a row that a lane keeps */ };

/* Can the lanes of a warp keep a row of c values of this type, in runs of 16 bytes? */
static inline bool dpk_row_is_kept(int c, int dtype) {
    return c % (dtype == DPK_F32 ? 4 : 8) == 0 && c <= 32 * DPK_ROW_KEPT;
}

/* Where a result goes that is quantized rows; q is NULL where it is none. */
static inline struct dpk_cuda_rows8 dpk_cuda_made_rows8(const struct dpk_tensor *out) {
    return out->rows8 ? dpk_cuda_rows8_of(out) : dpk_cuda_rows8();
}

/* W values rounded to T, by the scale of their row (r: its inverse), as W adjacent integers. */
template <typename T, int W>
__device__ __forceinline__ void dpk_put_integers(int8_t *to, const float *v, float scale, float r,
                                                 int rule) {
    dpk_vec<int8_t, W> out;
#pragma unroll
    for (int j = 0; j < W; j++)
        out.v[j] = scale == scale
                       ? (int8_t)dpk_quantize_one(dpk_float(dpk_round<T>(v[j])), scale, r, rule)
                       : (int8_t)0;
    *reinterpret_cast<dpk_vec<int8_t, W> *>(to) = out;
}

/* A row of c values that a warp's lanes keep, value (r * 32 + lane) * W + j at v[r][j], to integers
 * and their scale: from numbers rounded to T. */
template <typename T, int W>
__device__ __forceinline__ void dpk_put_row8(const struct dpk_cuda_rows8 &rows, int rule,
                                             int64_t row, int c, int lane, const float (*v)[W]) {
    constexpr int RUNS = DPK_ROW_KEPT / W, DTYPE = sizeof(T) == 2 ? DPK_BF16 : DPK_F32;
    int8_t *to = rows.q + row * rows.pitch;
    unsigned top = 0;
#pragma unroll
    for (int r = 0; r < RUNS; r++) {
        if ((r * 32 + lane) * W >= c) break;
#pragma unroll
        for (int j = 0; j < W; j++) {
            const unsigned u = dpk_magnitude(dpk_float(dpk_round<T>(v[r][j])));
            top = u > top ? u : top;
        }
    }
    const float scale = dpk_row_scale(__uint_as_float(dpk_warp_magnitude(top)), DTYPE, rule);
    const float inverse = __fdiv_rn(1.0f, scale);
    if (lane == 0) rows.scale[row] = scale;
#pragma unroll
    for (int r = 0; r < RUNS; r++) {
        const int at = (r * 32 + lane) * W;
        if (at >= c) break;
        dpk_put_integers<T, W>(to + at, v[r], scale, inverse, rule);
    }
    for (int at = c + lane; at < rows.pitch; at += 32) to[at] = 0;
}

/* The logical row of row r of a weight in the order of PANEL_GLU with F = glu_rows, -1: none; r
 * itself with glu_rows 0. */
__device__ __forceinline__ int dpk_logical_row(int r, int glu_rows) {
    if (!glu_rows) return r;
    int f = r / 16 * 8 + r % 8;
    if (f >= glu_rows) return -1;
    return r % 16 < 8 ? f : glu_rows + f;
}

#endif
