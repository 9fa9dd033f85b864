/* Group and layer normalisation kernels.
 *
 * Statistics never subtract two large numbers: sums are of distances from a value of the data
 * itself, then of distances from the mean so found, and the sum of those distances corrects the
 * mean once more ("corrected two-pass": Chan, Golub, LeVeque, Algorithms for computing the sample
 * variance, 1983). A mean of 10^5 standard deviations costs no accuracy. */
#include "isa.h"
#include "vec.h"

/* Vectors of channels at a time: enough chains to hide the latency of an addition. */
enum { W = 4 };

#define EACH(i) _Pragma("GCC unroll 4") for (int i = 0; i < W; i++)

VF_INLINE int lanes(int n, int c) { return n - c < VF_N ? (n - c < 0 ? 0 : n - c) : VF_N; }

VF_INLINE void stats_columns(const void *x, int dtype, size_t stride, int rows, int n, int c,
                             float *mean, float *e1, float *e2) {
    vf m[W], s[W], q[W], inv = vf_set1(1.0f / (float)rows);
    int k[W];
    EACH(i) {
        k[i] = lanes(n, c + i * VF_N);
        m[i] = vf_loada(x, dtype, (size_t)(c + i * VF_N), k[i]);
        s[i] = vf_zero();
    }
    for (int r = 1; r < rows; r++) {
        EACH(i) {
            vf v = vf_loada(x, dtype, (size_t)r * stride + (size_t)(c + i * VF_N), k[i]);
            s[i] = vf_add(s[i], vf_sub(v, m[i]));
        }
    }
    EACH(i) {
        m[i] = vf_fma(s[i], inv, m[i]);
        s[i] = q[i] = vf_zero();
    }
    for (int r = 0; r < rows; r++) {
        EACH(i) {
            vf v = vf_loada(x, dtype, (size_t)r * stride + (size_t)(c + i * VF_N), k[i]);
            v = vf_sub(v, m[i]);
            s[i] = vf_add(s[i], v);
            q[i] = vf_fma(v, v, q[i]);
        }
    }
    EACH(i) {
        vf_storen(mean + c + i * VF_N, m[i], k[i]);
        vf_storen(e1 + c + i * VF_N, s[i], k[i]);
        vf_storen(e2 + c + i * VF_N, q[i], k[i]);
    }
}

VF_INLINE void stats(const void *x, int dtype, size_t stride, int rows, int n, float *mean,
                     float *e1, float *e2) {
    int c = 0;
    for (; c + W * VF_N <= n; c += W * VF_N) { /* the constant n lets the compiler drop the tails */
        stats_columns(x, dtype, stride, rows, c + W * VF_N, c, mean, e1, e2);
    }
    if (c < n) stats_columns(x, dtype, stride, rows, n, c, mean, e1, e2);
}

void DPK_LEVEL_FN(norm_stats)(const void *x, int dtype, size_t stride, int rows, int n, float *mean,
                              float *e1, float *e2) {
    if (dtype == DPK_BF16) stats(x, DPK_BF16, stride, rows, n, mean, e1, e2);
    else stats(x, DPK_F32, stride, rows, n, mean, e1, e2);
}

VF_INLINE void apply(const struct dpk_norm_apply *p, int dtype, int act) {
    for (int r = 0; r < p->rows; r++) {
        size_t xi = (size_t)r * p->x_stride, yi = (size_t)r * p->y_stride;
        int c = 0;
        for (; c + VF_N <= p->n; c += VF_N) {
            vf v = vf_sub(vf_loada(p->x, dtype, xi + (size_t)c, VF_N), vf_load(p->mean + c));
            v = vf_act(vf_fma(v, vf_load(p->mul + c), vf_load(p->add + c)), act);
            vf_storea(p->y, dtype, yi + (size_t)c, v, VF_N);
        }
        if (c < p->n) {
            int k = p->n - c;
            vf v = vf_sub(vf_loada(p->x, dtype, xi + (size_t)c, k), vf_loadn(p->mean + c, k));
            v = vf_act(vf_fma(v, vf_loadn(p->mul + c, k), vf_loadn(p->add + c, k)), act);
            vf_storea(p->y, dtype, yi + (size_t)c, v, k);
        }
    }
}

void DPK_LEVEL_FN(norm_apply)(const struct dpk_norm_apply *p) {
    bool bf16 = p->dtype == DPK_BF16;
    if (bf16 && p->act == DPK_ACT_SILU) apply(p, DPK_BF16, DPK_ACT_SILU);
    else if (bf16 && p->act == DPK_ACT_NONE) apply(p, DPK_BF16, DPK_ACT_NONE);
    else if (bf16) apply(p, DPK_BF16, p->act);
    else if (p->act == DPK_ACT_SILU) apply(p, DPK_F32, DPK_ACT_SILU);
    else if (p->act == DPK_ACT_NONE) apply(p, DPK_F32, DPK_ACT_NONE);
    else apply(p, DPK_F32, p->act);
}

/* sum (x - origin) over a row, or with squares sum (x - origin)^2 also. W chains; the order is
 * fixed by the level alone. */
VF_INLINE void row_sums(const void *x, int dtype, size_t at, int n, float origin, float *sum,
                        float *squares) {
    vf o = vf_set1(origin), s[W], q[W];
    EACH(i) s[i] = q[i] = vf_zero();
    int c = 0;
    for (; c + W * VF_N <= n; c += W * VF_N) {
        EACH(i) {
            vf v = vf_sub(vf_loada(x, dtype, at + (size_t)(c + i * VF_N), VF_N), o);
            s[i] = vf_add(s[i], v);
            q[i] = vf_fma(v, v, q[i]);
        }
    }
    for (; c + VF_N <= n; c += VF_N) {
        vf v = vf_sub(vf_loada(x, dtype, at + (size_t)c, VF_N), o);
        s[0] = vf_add(s[0], v);
        q[0] = vf_fma(v, v, q[0]);
    }
    float tail = 0, tail_squares = 0;
    if (VF_N > 1 && c < n) {
        float buffer[VF_N];
        vf_store(buffer, vf_sub(vf_loada(x, dtype, at + (size_t)c, n - c), o));
        for (int i = 0; i < n - c; i++) {
            tail += buffer[i];
            tail_squares += buffer[i] * buffer[i];
        }
    }
    *sum = vf_sum(vf_add(vf_add(s[0], s[1]), vf_add(s[2], s[3]))) + tail;
    *squares = vf_sum(vf_add(vf_add(q[0], q[1]), vf_add(q[2], q[3]))) + tail_squares;
}

VF_INLINE vf layer_lanes(const struct dpk_layer_norm *p, int dtype, size_t at, int c, int k,
                         vf mean, vf low, vf inv) {
    vf v = vf_loada(p->x, dtype, at + (size_t)c, k);
    v = vf_mul(vf_sub(vf_sub(v, mean), low), inv);
    if (p->gamma) v = vf_mul(v, k == VF_N ? vf_load(p->gamma + c) : vf_loadn(p->gamma + c, k));
    if (p->beta) v = vf_add(v, k == VF_N ? vf_load(p->beta + c) : vf_loadn(p->beta + c, k));
    if (p->scale) {
        v = vf_fma(v, vf_loada(p->scale, dtype, (size_t)c, k), v);
        v = vf_add(v, vf_loada(p->shift, dtype, (size_t)c, k));
    }
    return v;
}

VF_INLINE void layer(const struct dpk_layer_norm *p, int dtype) {
    int n = p->n;
    for (int r = 0; r < p->rows; r++) {
        size_t at = (size_t)r * (size_t)n;
        float first = 0, mean = 0, low = 0, sum, squares;
        if (p->rms) {
            row_sums(p->x, dtype, at, n, 0.0f, &sum, &squares);
        } else {
            first = dtype == DPK_BF16 ? dpk_bf16_f32(((const uint16_t *)p->x)[at])
                                      : ((const float *)p->x)[at];
            row_sums(p->x, dtype, at, n, first, &sum, &squares);
            mean = first + sum / (float)n;
            row_sums(p->x, dtype, at, n, mean, &sum, &squares);
            low = sum / (float)n;
            squares -= sum * low;
        }
        float inv = 1.0f / sqrtf(squares / (float)n + p->eps);
        vf vm = vf_set1(mean), vl = vf_set1(low), vi = vf_set1(inv);
        int c = 0;
        for (; c + VF_N <= n; c += VF_N) {
            vf_storea(p->y, dtype, at + (size_t)c, layer_lanes(p, dtype, at, c, VF_N, vm, vl, vi),
                      VF_N);
        }
        if (c < n) {
            vf_storea(p->y, dtype, at + (size_t)c, layer_lanes(p, dtype, at, c, n - c, vm, vl, vi),
                      n - c);
        }
    }
}

void DPK_LEVEL_FN(layer_norm)(const struct dpk_layer_norm *p) {
    if (p->dtype == DPK_BF16) layer(p, DPK_BF16);
    else layer(p, DPK_F32);
}
