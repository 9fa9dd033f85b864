/* A vector of floats, the same source for every level: scalar (ref), 4 lanes (neon and up), 8 lanes
 * (avx2), 16 lanes (avx512 and up).
 *
 *   vf, VF_N               the type and its lanes
 *   vf_load, vf_store      VF_N floats; vf_loadn, vf_storen only the first n (0 <= n <= VF_N): no
 *                          other memory is touched, missing lanes read as 0
 *   vf_load_bf16, ...      the same on bfloat16; stores round to nearest even, NaN stays NaN
 *   vf_load_f16, ...       half precision, loads only
 *   vf_loada, vf_storea    n lanes of an array of `dtype` (DPK_F32 or DPK_BF16) at element i
 *   vf_exp, vf_sigmoid     error below 2e-7 relative
 *   vf_phi                 1e-6 relative where it is above 1e-12
 *
 * Include in files of isa/ only. NaN arguments give NaN results in exp, sigmoid and phi. */
#ifndef DPK_VEC_H
#define DPK_VEC_H

#include "../cpu.h"
#include "../half.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define VF_INLINE static inline __attribute__((always_inline, unused))

#if defined(DPK_LEVEL_avx512) || defined(DPK_LEVEL_avx512bf16)
#include "vec_avx512.h"
#elif defined(DPK_LEVEL_avx2)
#include "vec_avx2.h"
#elif defined(DPK_LEVEL_neon) || defined(DPK_LEVEL_neonbf16)
#include "vec_neon.h"
#else
#include "vec_ref.h"
#endif

/* n lanes at element i of an array of type dtype. n == VF_N is the fast case. */
VF_INLINE vf vf_loada(const void *p, int dtype, size_t i, int n) {
    if (dtype == DPK_BF16) {
        const uint16_t *h = (const uint16_t *)p + i;
        return n == VF_N ? vf_load_bf16(h) : vf_loadn_bf16(h, n);
    }
    const float *f = (const float *)p + i;
    return n == VF_N ? vf_load(f) : vf_loadn(f, n);
}
VF_INLINE void vf_storea(void *p, int dtype, size_t i, vf v, int n) {
    if (dtype == DPK_BF16) {
        uint16_t *h = (uint16_t *)p + i;
        if (n == VF_N) vf_store_bf16(h, v);
        else vf_storen_bf16(h, v, n);
    } else {
        float *f = (float *)p + i;
        if (n == VF_N) vf_store(f, v);
        else vf_storen(f, v, n);
    }
}

#if VF_N > 1
/* e^x: 2^n e^r with n = round(x log2 e) and |r| <= ln(2)/2; Cephes' expf polynomial, ln 2 in two
 * parts. */
VF_INLINE vf vf_exp(vf x) {
    x = vf_min(vf_set1(89.0f), vf_max(vf_set1(-104.0f), x)); /* this order keeps NaN */
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(p, vf_mul(r, r), vf_add(r, vf_set1(1.0f)));
    return vf_scale2(p, n);
}
#endif

VF_INLINE vf vf_sigmoid(vf x) {
    vf one = vf_set1(1.0f);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), x))));
}

/* x * sigmoid(s): the form of SiLU, quick GELU and tanh GELU, all without cancellation. */
VF_INLINE vf vf_mul_sigmoid(vf x, vf s) {
    vf one = vf_set1(1.0f);
    return vf_div(x, vf_add(one, vf_exp(vf_sub(vf_zero(), s))));
}

#if VF_N > 1
/* The normal distribution function. For z = |x|/sqrt(2): erfc(z) = e^(-z z) t P(t) with
 * t = 1/(1 + 0.4 z), P fitted by reweighted least squares to a relative error of 2e-8 on z < 14.
 * What is computed is the small tail, so neither side cancels. */
VF_INLINE vf vf_phi(vf x) {
    static const float p[10] = {-0.023101432f, 0.163406025f, -0.419149563f, 0.443749603f,
                                -0.200489639f, 0.228448166f, 0.144223048f,  0.211927998f,
                                0.22529569f,   0.225690122f};
    vf one = vf_set1(1.0f), q = vf_set1(p[0]);
    vf t = vf_div(one, vf_fma(vf_abs(x), vf_set1(0.282842712f), one));
    for (int i = 1; i < 10; i++) q = vf_fma(q, t, vf_set1(p[i]));
    vf e = vf_exp(vf_mul(vf_mul(x, x), vf_set1(-0.5f)));
    vf tail = vf_mul(vf_mul(vf_mul(q, t), vf_set1(0.5f)), e);
    return vf_if_lt(x, vf_zero(), tail, vf_sub(one, tail));
}
#else
VF_INLINE vf vf_phi(vf x) { return 0.5f * erfcf(-0.70710678f * x); }
#endif

VF_INLINE vf vf_silu(vf x) { return vf_mul_sigmoid(x, x); }
VF_INLINE vf vf_gelu(vf x) { return vf_mul(x, vf_phi(x)); }
VF_INLINE vf vf_quick_gelu(vf x) { return vf_mul_sigmoid(x, vf_mul(x, vf_set1(1.702f))); }
/* 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3) */
VF_INLINE vf vf_gelu_tanh(vf x) {
    vf u = vf_fma(vf_mul(x, x), vf_set1(0.0713548162726f), vf_set1(1.59576912160573f));
    return vf_mul_sigmoid(x, vf_mul(u, x));
}

/* By enum dpk_act. */
VF_INLINE vf vf_act(vf x, int act) {
    switch (act) {
    case DPK_ACT_SILU:
        return vf_silu(x);
    case DPK_ACT_GELU:
        return vf_gelu(x);
    case DPK_ACT_GELU_TANH:
        return vf_gelu_tanh(x);
    case DPK_ACT_QUICK_GELU:
        return vf_quick_gelu(x);
    default:
        return x;
    }
}

#endif
