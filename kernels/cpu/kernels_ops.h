/* Contracts of the kernels of norms, attention and elementwise operators (rows of kernels.def).
 * Included by kernels.h only.
 *
 * `dtype` is DPK_F32 or DPK_BF16 and types the operands declared `void *`. Arithmetic is in
 * float32; bfloat16 results are rounded to nearest even. Nothing outside the stated elements is
 * read or written. Strides are in elements. */
#ifndef DPK_KERNELS_OPS_H
#define DPK_KERNELS_OPS_H

/* ---- Norms: isa/norm.c ---------------------------------------------------------------------- */

/* Per-channel sums of a block of pixels x [rows][n], rows >= 1: mean[c] is near the mean of channel
 * c, e1[c] = sum (x - mean[c]), e2[c] = sum (x - mean[c])^2. e1 corrects what rounding left in the
 * mean. */
typedef void dpk_norm_stats_fn(const void *x, int dtype, size_t stride, int rows, int n,
                               float *mean, float *e1, float *e2);

/* y[r][c] = act((x[r][c] - mean[c]) * mul[c] + add[c]) for r < rows, c < n. y may be x. */
struct dpk_norm_apply {
    void *y;
    const void *x;
    size_t y_stride, x_stride;
    const float *mean, *mul, *add; /* [n] */
    int32_t dtype, rows, n, act;
};
typedef void dpk_norm_apply_fn(const struct dpk_norm_apply *p);

/* Rows x [rows][n], dense: y = norm(x) * gamma + beta, then y = y * (1 + scale) + shift; absent
 * (NULL) factors are left out. norm(x) = (x - mean) / sqrt(variance + eps), or with rms x /
 * sqrt(mean of squares + eps). y may be x. */
struct dpk_layer_norm {
    void *y;
    const void *x;
    const float *gamma, *beta; /* [n] or NULL */
    const void *scale, *shift; /* [n] or NULL, both or none */
    int32_t dtype, rows, n, rms;
    float eps;
};
typedef void dpk_layer_norm_fn(const struct dpk_layer_norm *p);

/* ---- Elementwise: isa/elementwise.c --------------------------------------------------------- */

/* y[i] = clamp(mul * x[i] + add, lo, hi) for i < n; NaN stays NaN. y may be x if the types are
 * equal. */
struct dpk_affine {
    void *y;
    const void *x;
    size_t n;
    int32_t y_dtype, x_dtype;
    float mul, add, lo, hi;
};
typedef void dpk_affine_fn(const struct dpk_affine *p);

/* y[i] = act(a[i] + c[i]) for i < n; y and a of type dtype, c of type c_dtype. y may be a or c (of
 * its own type). */
typedef void dpk_add_fn(void *y, const void *a, const void *c, int dtype, int c_dtype, size_t n,
                        int act);

/* ---- Attention: isa/attention.c ------------------------------------------------------------- */

/* One panel of keys, the B operand of a product tile: dst [ceil(cols/g)][16][g] (g = 1 float32, 2
 * bfloat16) from src [rows][cols], 1 <= rows <= 16; what src lacks is zero. */
typedef void dpk_attn_pack_k_fn(void *dst, const void *src, int dtype, size_t stride, int rows,
                                int cols);

/* Values: dst, panel p at dst + p * panel elements, [ceil(rows/g)][16][g], from src [rows][cols];
 * zero where src has none. */
typedef void dpk_attn_pack_v_fn(void *dst, size_t panel, const void *src, int dtype, size_t stride,
                                int rows, int cols);

/* One step of online softmax (Milakov and Gimelshein, arXiv:1805.02867) on a block of logits
 * s [rows][n], in powers of two:
 *     t = s * scale + bias * log2(e) + mask   (scale includes log2(e))
 *     m' = max(m, max t),  p = 2^(t - m'),  alpha = 2^(m - m'),  l = l * alpha + sum p,  m = m'
 * Row r sees its first clamp(first + r * more, 0, n) keys, the others are as -inf. p is rounded to
 * dtype before it is summed. Where nothing was seen yet, m = -inf, l = 0, alpha = 0 and p = 0.
 * Finite bias and any s (also infinite or NaN) give finite results. s may be overwritten. */
struct dpk_attn_softmax {
    float *s;
    void *p;           /* [rows][n] */
    const void *bias;  /* [rows][n] or NULL */
    const float *mask; /* [n], 0 or -inf, or NULL */
    size_t s_stride, p_stride, bias_stride;
    float *m, *l, *alpha; /* [rows] */
    float scale;
    int32_t dtype, rows, n, first, more;
};
typedef void dpk_attn_softmax_fn(const struct dpk_attn_softmax *p);

/* o[r][c] = o[r][c] * alpha[r] + t[r][c], float32. */
typedef void dpk_attn_rescale_fn(float *o, size_t o_stride, const float *t, size_t t_stride,
                                 int rows, int n, const float *alpha);

#endif
