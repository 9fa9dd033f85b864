/* Winograd convolution F(4x4,3x3): weights and input in float32, and the way back of both kinds of
 * products (contracts: kernels_winograd.h). */
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

/* ---- Output --------------------------------------------------------------------------------- */

/* m of 6 to Y of 4. */
VF_INLINE void transform_m(const vf *m, vf *y) {
    vf s = vf_add(m[1], m[2]), e = vf_sub(m[1], m[2]);
    vf t = vf_add(m[3], m[4]), f = vf_sub(m[3], m[4]);
    y[0] = vf_add(vf_add(m[0], s), t);
    y[1] = vf_fma(e, vf_set1(A), vf_mul(f, vf_set1(B)));
    y[2] = vf_fma(s, vf_set1(A2), vf_mul(t, vf_set1(B2)));
    y[3] = vf_fma(e, vf_set1(A2 * A), vf_fma(f, vf_set1(B2 * B), m[5]));
}

/* Channels n .. n + count. All of the residual is read before anything is written: lines of pixels
 * are often a multiple of 4 KiB apart, and a load waits for every store before it that has the same
 * low bits in its address. */
VF_INLINE void finish(const struct dpk_wino_output *o, int32_t n, int count, bool whole, int act,
                      int dtype) {
    vf rows[4][6], y[4][4]; /* [s][i], [s][r] */
    vf add = vf_zero();
    UNROLL
    for (int i = 0; i < 6; i++) {
        vf m[6], t[4];
        UNROLL
        for (int j = 0; j < 6; j++) {
            size_t p = (size_t)(6 * i + j);
            const float *from = o->m + p * o->m_pos + n;
            __builtin_prefetch(from + o->m_tile);
            m[j] = vf_load(from);
            if (o->scale) m[j] = vf_mul(m[j], vf_load(o->scale + p * o->scale_pos + n));
        }
        transform_m(m, t);
        UNROLL
        for (int s = 0; s < 4; s++) rows[s][i] = t[s];
    }
    if (o->bias) add = vf_loada(o->bias, DPK_F32, (size_t)n, count);
    if (o->temb) add = vf_add(add, vf_loada(o->temb, dtype, (size_t)n, count));
    UNROLL
    for (int s = 0; s < 4; s++) {
        transform_m(rows[s], y[s]);
        UNROLL
        for (int r = 0; r < 4; r++) y[s][r] = vf_act(vf_add(y[s][r], add), act);
    }
    if (o->residual) {
        UNROLL
        for (int i = 0; i < 16; i++) {
            int r = i / 4, s = i % 4;
            size_t at = (size_t)r * o->line + (size_t)s * o->pixel + (size_t)n;
            if (!whole && (r >= o->rows || s >= o->columns)) continue;
            y[s][r] = vf_add(y[s][r], vf_loada(o->residual, dtype, at, count));
        }
    }
    UNROLL
    for (int i = 0; i < 16; i++) {
        int r = i / 4, s = i % 4;
        size_t at = (size_t)r * o->line + (size_t)s * o->pixel + (size_t)n;
        if (!whole && (r >= o->rows || s >= o->columns)) continue;
        vf_storea(o->out, dtype, at, y[s][r], count);
    }
}

/* The usual case apart: a whole tile, nothing to decide inside. */
VF_INLINE int32_t finish_whole(const struct dpk_wino_output *o, int dtype) {
    int32_t n = 0;
    for (; n + VF_N <= o->n; n += VF_N) finish(o, n, VF_N, true, DPK_ACT_NONE, dtype);
    return n;
}

void DPK_LEVEL_FN(wino_output)(const struct dpk_wino_output *o) {
    int32_t n = 0;
    if (o->act == DPK_ACT_NONE && o->rows == 4 && o->columns == 4) {
        n = o->dtype == DPK_BF16 ? finish_whole(o, DPK_BF16) : finish_whole(o, DPK_F32);
    }
    for (; n < o->n; n += VF_N) {
        finish(o, n, o->n - n < VF_N ? o->n - n : VF_N, false, o->act, o->dtype);
    }
}
