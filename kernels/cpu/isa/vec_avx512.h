/* vec.h with AVX-512: 16 lanes, masks for tails. */
#ifndef DPK_VEC_AVX512_H
#define DPK_VEC_AVX512_H

#include <immintrin.h>

#define VF_N 16
typedef __m512 vf;

VF_INLINE __mmask16 vf_tail_(int n) { return (__mmask16)((1u << n) - 1); }

VF_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
VF_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
VF_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
VF_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
VF_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
VF_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
VF_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); } /* a b + c */
VF_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }            /* b if either is NaN */
VF_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }            /* b if either is NaN */
VF_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
VF_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
VF_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, 8); }    /* nearest even */
VF_INLINE vf vf_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); } /* a 2^n, n integral */
/* a < b ? x : y, lane by lane; y where a or b is NaN */
VF_INLINE vf vf_if_lt(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
VF_INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
VF_INLINE float vf_hmax(vf a) { return _mm512_reduce_max_ps(a); }

VF_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
VF_INLINE vf vf_loadn(const float *p, int n) { return _mm512_maskz_loadu_ps(vf_tail_(n), p); }
VF_INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
VF_INLINE void vf_storen(float *p, vf v, int n) { _mm512_mask_storeu_ps(p, vf_tail_(n), v); }

VF_INLINE vf vf_from_bf16_(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
VF_INLINE __m256i vf_to_bf16_(vf v) {
#ifdef DPK_LEVEL_avx512bf16
    return (__m256i)_mm512_cvtneps_pbh(v);
#else
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#endif
}
VF_INLINE vf vf_load_bf16(const uint16_t *p) {
    return vf_from_bf16_(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
VF_INLINE vf vf_loadn_bf16(const uint16_t *p, int n) {
    return vf_from_bf16_(_mm256_maskz_loadu_epi16(vf_tail_(n), p));
}
VF_INLINE void vf_store_bf16(uint16_t *p, vf v) {
    _mm256_storeu_si256((__m256i *)(void *)p, vf_to_bf16_(v));
}
VF_INLINE void vf_storen_bf16(uint16_t *p, vf v, int n) {
    _mm256_mask_storeu_epi16(p, vf_tail_(n), vf_to_bf16_(v));
}
VF_INLINE vf vf_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
VF_INLINE vf vf_loadn_f16(const uint16_t *p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_tail_(n), p));
}

#endif
