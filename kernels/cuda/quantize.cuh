/* Rows of activations to int8, by the two rules of dpk.h (DPK_TENSOR_DYNAMIC, DPK_TENSOR_TORCHAO).
 * The CPU's rules to the bit: x / s is x * r, r = 1 / s, corrected by its remainder (Markstein: the
 * result is the rounded quotient). Bad values make the row's scale NaN and its integers 0. */
#ifndef DPK_QUANTIZE_CUH
#define DPK_QUANTIZE_CUH

#include "epilogue.cuh"

#include <stdint.h>

enum dpk_quantize_rule { DPK_RULE_PLAIN, DPK_RULE_TORCHAO };

/* The scale of a row whose largest magnitude is `top`. */
__device__ __forceinline__ float dpk_row_scale(float top, int dtype, int rule) {
    if (!(top <= 3.402823466e38f)) return __int_as_float(0x7fc00000);
    if (rule == DPK_RULE_PLAIN) return __fdiv_rn(fmaxf(top, 1e-5f), 127.0f);
    float s = __fdiv_rn(top, 127.5f);
    if (dtype == DPK_BF16) s = __bfloat162float(__float2bfloat16_rn(s));
    return fmaxf(s, 1.1920928955078125e-07f);
}

/* The larger of two magnitudes, NaN if either is. */
__device__ __forceinline__ float dpk_larger(float a, float b) { return a > b || a != a ? a : b; }

__device__ __forceinline__ int dpk_quantize_one(float x, float scale, float r, int rule) {
    float q = __fmul_rn(x, r);
    if (rule == DPK_RULE_PLAIN) q = __fmaf_rn(__fmaf_rn(-q, scale, x), r, q);
    int i = __float2int_rn(q);
    return i > 127 ? 127 : i < -128 ? -128 : i;
}

/* Elements at .. at + n of x as 16 integers, n <= 16 (or more), zeros after them. */
__device__ __forceinline__ uint4 dpk_quantize16(const void *x, int dtype, long long at, int n,
                                                float scale, int rule) {
    unsigned q[4] = {0, 0, 0, 0};
    if (scale != scale) return make_uint4(0, 0, 0, 0);
    float r = __fdiv_rn(1.0f, scale);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        int left = n - 8 * half;
        if (left > 0) dpk_load8(v, x, dtype, at + 8 * half, left < 8 ? left : 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int byte = dpk_quantize_one(v[i], scale, r, rule) & 0xff;
            q[2 * half + i / 4] |= (unsigned)byte << 8 * (i % 4);
        }
    }
    return make_uint4(q[0], q[1], q[2], q[3]);
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
