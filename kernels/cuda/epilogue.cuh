/* What follows a product, for every kernel that makes one:
 *     v = acc * scale_m[m] * scale_n[n] + bias[n] + temb[image][n]
 *     v = act(v), or with glu v = v * act(g), g made like v from the gate's accumulator
 *     out[m][n] = v * gate[image][n] + residual[m][n]
 * in float32, rounded once, where it is stored. The unit of work is eight adjacent columns of a
 * row: 16-byte loads and stores where N and the addresses allow it, single elements otherwise. */
#ifndef DPK_EPILOGUE_CUH
#define DPK_EPILOGUE_CUH

#include "device.cuh"

#include <stdint.h>

struct dpk_epilogue_args {
    void *out;            /* [m][n] of dtype */
    const void *residual; /* [m][n] of dtype, may be out; NULL: none */
    const void *image;    /* [images][image_stride] of dtype: temb (conv) or gate (linear); NULL */
    const float *bias;    /* [n], with glu [2n]: values, gates; NULL: none */
    const float *scale_n; /* as bias; NULL: 1 */
    const float *scale_m; /* [m]; NULL: 1 */
    int n;                /* result columns */
    int dtype;            /* DPK_F32 or DPK_BF16 */
    int act, glu;
    int image_gates;  /* image multiplies after act; else it is added before */
    int image_stride; /* elements; 0: one row for all */
    int rows_per_image;
};

/* v[i] = p[i] for i < n <= 8, other v left alone. */
__device__ __forceinline__ void dpk_load8(float v[8], const float *p, int n) {
    if (n == 8 && ((uintptr_t)p & 15) == 0) {
        dpk_load16(p, v);
        dpk_load16(p + 4, v + 4);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i < n) v[i] = p[i];
    }
}

__device__ __forceinline__ void dpk_load8(float v[8], const dpk_bf16 *p, int n) {
    if (n == 8 && ((uintptr_t)p & 15) == 0) {
        dpk_load16(p, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i < n) v[i] = __bfloat162float(p[i]);
    }
}

__device__ __forceinline__ void dpk_load8(float v[8], const void *p, int dtype, long long at,
                                          int n) {
    if (dtype == DPK_BF16) dpk_load8(v, (const dpk_bf16 *)p + at, n);
    else dpk_load8(v, (const float *)p + at, n);
}

__device__ __forceinline__ unsigned dpk_pack_bf16(float lo, float hi) {
    return (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(hi)) << 16 |
           __bfloat16_as_ushort(__float2bfloat16_rn(lo));
}

__device__ __forceinline__ void dpk_store8(void *p, int dtype, long long at, const float v[8],
                                           int n) {
    if (dtype == DPK_BF16) {
        dpk_bf16 *to = (dpk_bf16 *)p + at;
        if (n == 8 && ((uintptr_t)to & 15) == 0) {
            dpk_store16(to, v);
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < n) to[i] = __float2bfloat16_rn(v[i]);
        }
    } else {
        float *to = (float *)p + at;
        if (n == 8 && ((uintptr_t)to & 15) == 0) {
            dpk_store16(to, v);
            dpk_store16(to + 4, v + 4);
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < n) to[i] = v[i];
        }
    }
}

/* acc * scales + bias for the weight's logical rows j .. j + n. */
template <class Acc>
__device__ __forceinline__ void dpk_scale8(const dpk_epilogue_args &e, float v[8], const Acc acc[8],
                                           int m, long long j, int n) {
    float t[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (float)acc[i];
    if (e.scale_m) {
        float s = e.scale_m[m];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= s;
    }
    if (e.scale_n) {
        dpk_load8(t, e.scale_n + j, n);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= i < n ? t[i] : 0.0f;
    }
    if (e.bias) {
        dpk_load8(t, e.bias + j, n);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += i < n ? t[i] : 0.0f;
    }
}

/* Columns j .. j + 8 of row m, j a multiple of 8 and below e.n. acc: their accumulators, with GLU
 * followed by the eight of their gates. */
template <bool GLU, class Acc>
__device__ __forceinline__ void dpk_epilogue8(const dpk_epilogue_args &e, int m, int j,
                                              const Acc *acc) {
    int n = e.n - j < 8 ? e.n - j : 8;
    float v[8], t[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    long long image = 0, at = (long long)m * e.n + j;
    dpk_scale8(e, v, acc, m, j, n);
    if (e.image) {
        image = (e.image_stride ? (long long)(m / e.rows_per_image) * e.image_stride : 0) + j;
        dpk_load8(t, e.image, e.dtype, image, n);
    }
    if (GLU) {
        float g[8];
        dpk_scale8(e, g, acc + 8, m, (long long)e.n + j, n);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= dpk_act(g[i], e.act);
    } else {
        if (e.image && !e.image_gates) {
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] += t[i];
        }
        if (e.act) {
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = dpk_act(v[i], e.act);
        }
    }
    if (e.image_gates) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= t[i];
    }
    if (e.residual) {
        dpk_load8(t, e.residual, e.dtype, at, n);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += t[i];
    }
    dpk_store8(e.out, e.dtype, at, v, n);
}

#endif
