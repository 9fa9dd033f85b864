/* Epilogue of a product tile: bias, time embedding, activation, gate, residual, rounding (contract:
 * kernels.h).
 *
 * One body, specialised by the compiler on what costs time when tested per vector: the type and the
 * activation. Tails: the last vector of a row goes through counted loads and stores. */
#include "isa.h"
#include "vec.h"

/* Columns j .. j + VF_N of a row of 8 values, 8 gates, 8 values, ... */
#if VF_N == 16
VF_INLINE void load_glu(const float *c, int j, vf *value, vf *gating) {
    vf a = vf_load(c + 2 * j), b = vf_load(c + 2 * j + 16);
    *value = _mm512_shuffle_f32x4(a, b, 0x44);
    *gating = _mm512_shuffle_f32x4(a, b, 0xee);
}
#else
VF_INLINE void load_glu(const float *c, int j, vf *value, vf *gating) {
    const float *p = c + j / 8 * 16 + j % 8;
    *value = vf_load(p);
    *gating = vf_load(p + 8);
}
#endif

/* Columns j .. j + n of row r. */
VF_INLINE void columns(const struct dpk_epilogue *e, int r, int j, int n, int dtype, int act,
                       bool glu) {
    const float *c = e->c + (size_t)r * (size_t)e->c_stride;
    size_t at = (size_t)r * e->stride + (size_t)j, k = (size_t)j;
    vf v;
    if (glu) {
        vf g;
        load_glu(c, j, &v, &g);
        if (e->scale) {
            vf scale, scale_glu;
            load_glu(e->scale, j, &scale, &scale_glu);
            v = vf_mul(v, scale);
            g = vf_mul(g, scale_glu);
        }
        if (e->bias) v = vf_add(v, vf_loada(e->bias, DPK_F32, k, n));
        if (e->bias_glu) g = vf_add(g, vf_loada(e->bias_glu, DPK_F32, k, n));
        v = vf_mul(v, vf_act(g, act));
    } else {
        v = vf_load(c + j);
        if (e->scale) v = vf_mul(v, vf_load(e->scale + j));
        if (e->bias) v = vf_add(v, vf_loada(e->bias, DPK_F32, k, n));
        if (e->temb[0]) v = vf_add(v, vf_loada(e->temb[r], dtype, k, n));
        v = vf_act(v, act);
    }
    if (e->gate[0]) v = vf_mul(v, vf_loada(e->gate[r], dtype, k, n));
    if (e->residual) v = vf_add(v, vf_loada(e->residual, dtype, at, n));
    vf_storea(e->out, dtype, at, v, n);
}

VF_INLINE void tile(const struct dpk_epilogue *e, int dtype, int act, bool glu) {
    for (int r = 0; r < e->rows; r++) {
        int j = 0;
        for (; j + VF_N <= e->n; j += VF_N) columns(e, r, j, VF_N, dtype, act, glu);
        if (j < e->n) columns(e, r, j, e->n - j, dtype, act, glu);
    }
}

VF_INLINE void by_act(const struct dpk_epilogue *e, int dtype) {
    if (e->glu) tile(e, dtype, e->act, true);
    else if (e->act == DPK_ACT_NONE) tile(e, dtype, DPK_ACT_NONE, false);
    else tile(e, dtype, e->act, false);
}

void DPK_LEVEL_FN(epilogue)(const struct dpk_epilogue *e) {
    if (e->dtype == DPK_BF16) by_act(e, DPK_BF16);
    else by_act(e, DPK_F32);
}
