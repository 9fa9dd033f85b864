/* Elementwise kernels: affine maps with a change of type, and sums. Memory-bound; one vector at a
 * time. */
#include "isa.h"
#include "vec.h"

VF_INLINE vf affine_lanes(const struct dpk_affine *p, int x_dtype, size_t i, int k) {
    vf v = vf_loada(p->x, x_dtype, i, k);
    v = vf_add(vf_mul(v, vf_set1(p->mul)), vf_set1(p->add));
    return vf_min(vf_set1(p->hi), vf_max(vf_set1(p->lo), v)); /* this order keeps NaN */
}

VF_INLINE void affine(const struct dpk_affine *p, int y_dtype, int x_dtype) {
    size_t i = 0;
    for (; i + VF_N <= p->n; i += VF_N) {
        vf_storea(p->y, y_dtype, i, affine_lanes(p, x_dtype, i, VF_N), VF_N);
    }
    if (i < p->n) {
        int k = (int)(p->n - i);
        vf_storea(p->y, y_dtype, i, affine_lanes(p, x_dtype, i, k), k);
    }
}

void DPK_LEVEL_FN(affine)(const struct dpk_affine *p) {
    if (p->y_dtype == DPK_BF16) {
        if (p->x_dtype == DPK_BF16) affine(p, DPK_BF16, DPK_BF16);
        else affine(p, DPK_BF16, DPK_F32);
    } else {
        if (p->x_dtype == DPK_BF16) affine(p, DPK_F32, DPK_BF16);
        else affine(p, DPK_F32, DPK_F32);
    }
}

VF_INLINE void add(void *y, const void *a, const void *c, int dtype, int c_dtype, size_t n,
                   int act) {
    size_t i = 0;
    for (; i + VF_N <= n; i += VF_N) {
        vf v = vf_add(vf_loada(a, dtype, i, VF_N), vf_loada(c, c_dtype, i, VF_N));
        vf_storea(y, dtype, i, vf_act(v, act), VF_N);
    }
    if (i < n) {
        int k = (int)(n - i);
        vf v = vf_add(vf_loada(a, dtype, i, k), vf_loada(c, c_dtype, i, k));
        vf_storea(y, dtype, i, vf_act(v, act), k);
    }
}

void DPK_LEVEL_FN(add)(void *y, const void *a, const void *c, int dtype, int c_dtype, size_t n,
                       int act) {
    if (dtype == DPK_F32) add(y, a, c, DPK_F32, DPK_F32, n, act);
    else if (c_dtype == DPK_F32) add(y, a, c, DPK_BF16, DPK_F32, n, act);
    else add(y, a, c, DPK_BF16, DPK_BF16, n, act);
}
