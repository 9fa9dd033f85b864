/* vec.h in portable C: one lane, functions of libm. */
#ifndef DPK_VEC_REF_H
#define DPK_VEC_REF_H

#define VF_N 1
typedef float vf;

VF_INLINE vf vf_zero(void) { return 0.0f; }
VF_INLINE vf vf_set1(float x) { return x; }
VF_INLINE vf vf_add(vf a, vf b) { return a + b; }
VF_INLINE vf vf_sub(vf a, vf b) { return a - b; }
VF_INLINE vf vf_mul(vf a, vf b) { return a * b; }
VF_INLINE vf vf_div(vf a, vf b) { return a / b; }
VF_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
VF_INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; } /* b if either is NaN */
VF_INLINE vf vf_min(vf a, vf b) { return a < b ? a : b; } /* b if either is NaN */
VF_INLINE vf vf_abs(vf a) { return fabsf(a); }
VF_INLINE vf vf_sqrt(vf a) { return sqrtf(a); }
VF_INLINE vf vf_round(vf a) { return nearbyintf(a); }
VF_INLINE vf vf_scale2(vf a, vf n) { return ldexpf(a, (int)n); }
VF_INLINE vf vf_if_lt(vf a, vf b, vf x, vf y) { return a < b ? x : y; }
VF_INLINE float vf_sum(vf a) { return a; }
VF_INLINE float vf_hmax(vf a) { return a; }
VF_INLINE vf vf_exp(vf x) { return expf(x); }

VF_INLINE vf vf_load(const float *p) { return *p; }
VF_INLINE vf vf_loadn(const float *p, int n) { return n > 0 ? *p : 0.0f; }
VF_INLINE void vf_store(float *p, vf v) { *p = v; }
VF_INLINE void vf_storen(float *p, vf v, int n) {
    if (n > 0) *p = v;
}
VF_INLINE vf vf_load_bf16(const uint16_t *p) { return dpk_bf16_f32(*p); }
VF_INLINE vf vf_loadn_bf16(const uint16_t *p, int n) { return n > 0 ? dpk_bf16_f32(*p) : 0.0f; }
VF_INLINE void vf_store_bf16(uint16_t *p, vf v) { *p = dpk_f32_bf16(v); }
VF_INLINE void vf_storen_bf16(uint16_t *p, vf v, int n) {
    if (n > 0) *p = dpk_f32_bf16(v);
}
VF_INLINE vf vf_load_f16(const uint16_t *p) { return dpk_f16_f32(*p); }
VF_INLINE vf vf_loadn_f16(const uint16_t *p, int n) { return n > 0 ? dpk_f16_f32(*p) : 0.0f; }

#endif
