/* Winograd convolution F(4x4,3x3): the way back, of both kinds of products (contract:
 * kernels_winograd.h). */
#include "winograd.h"

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
