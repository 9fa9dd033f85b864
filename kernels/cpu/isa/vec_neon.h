/* vec.h with NEON (Advanced SIMD of ARMv8-A): 4 lanes, tails through a buffer. */
#ifndef DPK_VEC_NEON_H
#define DPK_VEC_NEON_H

#include <arm_neon.h>

#define VF_N 4
typedef float32x4_t vf;

VF_INLINE vf vf_zero(void) { return vdupq_n_f32(0.0f); }
VF_INLINE vf vf_set1(float x) { return vdupq_n_f32(x); }
VF_INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
VF_INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
VF_INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
VF_INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
VF_INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); } /* a b + c */
/* b if either is NaN, where FMAX and FMIN give NaN */
VF_INLINE vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
VF_INLINE vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
VF_INLINE vf vf_abs(vf a) { return vabsq_f32(a); }
VF_INLINE vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
VF_INLINE vf vf_round(vf a) { return vrndnq_f32(a); } /* nearest even */
/* a 2^n, n integral in -252 .. 254, in two steps so that results may be subnormal or infinite */
VF_INLINE vf vf_scale2(vf a, vf n) {
    int32x4_t i = vcvtnq_s32_f32(n), half = vshrq_n_s32(i, 1), bias = vdupq_n_s32(127);
    int32x4_t s = vshlq_n_s32(vaddq_s32(half, bias), 23);
    int32x4_t t = vshlq_n_s32(vaddq_s32(vsubq_s32(i, half), bias), 23);
    return vmulq_f32(vmulq_f32(a, vreinterpretq_f32_s32(s)), vreinterpretq_f32_s32(t));
}
/* a < b ? x : y, lane by lane; y where a or b is NaN */
VF_INLINE vf vf_if_lt(vf a, vf b, vf x, vf y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
VF_INLINE float vf_sum(vf a) { return vaddvq_f32(a); }
VF_INLINE float vf_hmax(vf a) { return vmaxvq_f32(a); }

VF_INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
VF_INLINE vf vf_loadn(const float *p, int n) {
    float buffer[4] = {0};
    for (int i = 0; i < n; i++) buffer[i] = p[i];
    return vld1q_f32(buffer);
}
VF_INLINE void vf_store(float *p, vf v) { vst1q_f32(p, v); }
VF_INLINE void vf_storen(float *p, vf v, int n) {
    float buffer[4];
    vst1q_f32(buffer, v);
    for (int i = 0; i < n; i++) p[i] = buffer[i];
}

VF_INLINE vf vf_from_bf16_(uint16x4_t h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
VF_INLINE uint16x4_t vf_to_bf16_(vf v) {
#ifdef DPK_LEVEL_neonbf16
    return vreinterpret_u16_bf16(vcvt_bf16_f32(v));
#else
    uint32x4_t u = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t r = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    r = vbslq_u32(vceqq_f32(v, v), r, vorrq_u32(u, vdupq_n_u32(0x400000)));
    return vshrn_n_u32(r, 16);
#endif
}
/* The first n of 4 16-bit elements; the rest 0. */
VF_INLINE uint16x4_t vf_loadn16_(const uint16_t *p, int n) {
    uint16_t buffer[4] = {0};
    for (int i = 0; i < n; i++) buffer[i] = p[i];
    return vld1_u16(buffer);
}
VF_INLINE vf vf_load_bf16(const uint16_t *p) { return vf_from_bf16_(vld1_u16(p)); }
VF_INLINE vf vf_loadn_bf16(const uint16_t *p, int n) { return vf_from_bf16_(vf_loadn16_(p, n)); }
VF_INLINE void vf_store_bf16(uint16_t *p, vf v) { vst1_u16(p, vf_to_bf16_(v)); }
VF_INLINE void vf_storen_bf16(uint16_t *p, vf v, int n) {
    uint16_t buffer[4];
    vst1_u16(buffer, vf_to_bf16_(v));
    for (int i = 0; i < n; i++) p[i] = buffer[i];
}
VF_INLINE vf vf_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
VF_INLINE vf vf_loadn_f16(const uint16_t *p, int n) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vf_loadn16_(p, n)));
}

#endif
