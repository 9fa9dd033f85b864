/* Winograd convolution F(4x4,3x3), products in float32: transforms of weights and input (contracts:
 * kernels_winograd.h). */
#include "winograd.h"

/* ---- Weights -------------------------------------------------------------------------------- */

VF_INLINE void transform_row(const struct dpk_wino_weights *w, int dtype, bool inner) {
    vf g[3], even[3], odd[3], d[6];
    for (int j = 0; j < 6; j++) d[j] = vf_set1(1 / divisors[j]);
    for (int n = 0; n < 16; n += VF_N) {
        float *u = (float *)w->u + n;
        load_factors(w, n, 1 / divisors[w->row], g);
        for (int32_t k = w->first; k < w->first + w->n; k += 2, u += 32) {
            sum_taps(w, dtype, inner, k, n, g, even, odd);
            UNROLL
            for (int i = 0; i < 2; i++) {
                const vf *t = i ? odd : even;
                float *to = u + 16 * i;
                vf a = vf_mul(vf_fma(t[2], vf_set1(A2), t[0]), d[1]);
                vf b = vf_mul(vf_fma(t[2], vf_set1(B2), t[0]), d[3]);
                vf c = vf_mul(t[1], vf_set1(A / (2 * A2 * (A2 - B2))));
                vf e = vf_mul(t[1], vf_set1(B / (2 * B2 * (B2 - A2))));
                vf_store(to, vf_mul(t[0], d[0]));
                vf_store(to + w->u_pos, vf_add(a, c));
                vf_store(to + 2 * w->u_pos, vf_sub(a, c));
                vf_store(to + 3 * w->u_pos, vf_add(b, e));
                vf_store(to + 4 * w->u_pos, vf_sub(b, e));
                vf_store(to + 5 * w->u_pos, t[2]);
            }
        }
    }
}

VF_INLINE void transform_weights(const struct dpk_wino_weights *w, int dtype) {
    if (w->row == 0 || w->row == 5) transform_row(w, dtype, false);
    else transform_row(w, dtype, true);
}

void DPK_LEVEL_FN(wino_weights_f32)(const struct dpk_wino_weights *weights) {
    const struct dpk_wino_weights w = *weights; /* u cannot overlap a copy */
    if (w.dtype == DPK_BF16) transform_weights(&w, DPK_BF16);
    else if (w.dtype == DPK_F16) transform_weights(&w, DPK_F16);
    else transform_weights(&w, DPK_F32);
}

/* ---- Input ---------------------------------------------------------------------------------- */

VF_INLINE void transform_input(const struct dpk_wino_input *in, int dtype) {
    const int32_t size = dtype == DPK_BF16 ? 2 : 4;
    float *v = in->v;
    int32_t k = 0;
    for (; k + VF_N <= in->n; k += VF_N) {
        if (k * size % 64 == 0) prefetch_next(in, dtype, k);
        transform_tile(in, dtype, k, VF_N, v + k, in->v_pos);
    }
    if (k < in->n) transform_tile(in, dtype, k, in->n - k, v + k, in->v_pos), k += VF_N;
    for (; k % 16; k += VF_N) {
        for (size_t p = 0; p < DPK_WINO_POS; p++) vf_store(v + p * in->v_pos + k, vf_zero());
    }
}

void DPK_LEVEL_FN(wino_input_f32)(const struct dpk_wino_input *in) {
    if (in->dtype == DPK_BF16) transform_input(in, DPK_BF16);
    else transform_input(in, DPK_F32);
}
