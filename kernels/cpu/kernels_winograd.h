/* Contracts of the kernels of Winograd convolution F(4x4,3x3) (rows of kernels.def, and tile_s16).
 * Included by kernels.h only. The method, and its two kinds of products: winograd.h.
 *
 * A tile is 6 x 6 input pixels and gives 4 x 4 output pixels. Position p = 6 i + j of 36 is row i,
 * column j of the transformed tile. */
#ifndef DPK_KERNELS_WINOGRAD_H
#define DPK_KERNELS_WINOGRAD_H

enum {
    DPK_WINO_POS = 36,
    DPK_WINO_SEGMENT = 320, /* channels that are summed as integers, at most */
};

/* Weights of one panel, 16 filters: 9 taps `tap` elements apart, each [c/g][16][g] with g of its
 * type (dpk_panel_group), c even; all of filter n times gain[n], which is not negative, unless gain
 * is NULL. Where integers are made the type is bfloat16.
 *
 * wino_scales: scale[p * scale_pos + n] such that the vector of `segment` neighbouring channels
 * from a multiple of that, or what is left, of filter n at position p is no longer than 32700 when
 * it is divided by it. Where a filter, or its length, is not finite its scales are NaN.
 *
 * wino_weights, wino_weights_f32: row `row` of the transformed filters, channels first .. first +
 * n (both even): u[j * u_pos + ...] for position 6 row + j, as integers [n/2][16][2], rounded from
 * the filter over the scale of wino_scales; or as floats [n][16]. */
struct dpk_wino_weights {
    const void *panel;
    int32_t dtype;     /* DPK_BF16, DPK_F16 or DPK_F32 */
    const float *gain; /* [16] */
    size_t tap;
    int32_t c, segment; /* wino_scales */
    int32_t row, first, n;
    void *u;
    size_t u_pos;
    float *scale;
    size_t scale_pos;
};
typedef void dpk_wino_weights_fn(const struct dpk_wino_weights *w);

/* Transformed input of one tile, n channels from `first` on. pixel[6 y + x] points at the channels
 * of a pixel, of type dtype. `next` is as pixel for the tile after this one (its right neighbour):
 * its right four columns are fetched into the cache on the way.
 *
 * wino_input_f32: v[p * v_pos + k] in float32, followed by as many zeros as make n a multiple of
 * 16.
 *
 * wino_input: integers v[p * v_pos + k] and scale[p * scale_pos] so that v * scale is the
 * transformed tile but for rounding, half a unit of v; n <= DPK_WINO_SEGMENT and even. v of a
 * position is no longer, as a vector, than 32700 before rounding. It is followed by as many zeros
 * as make n a multiple of 32. Where a position is not finite, or its length is not, its scale is
 * NaN and v is anything. buffer: DPK_WINO_POS * DPK_WINO_ROW floats. */
enum { DPK_WINO_ROW = DPK_WINO_SEGMENT + 16 };
struct dpk_wino_input {
    const void *const *pixel, *const *next;
    int32_t dtype; /* DPK_F32 or DPK_BF16 */
    int32_t first, n;
    void *v;
    size_t v_pos;
    float *scale;
    size_t scale_pos;
    float *buffer;
};
typedef void dpk_wino_input_fn(const struct dpk_wino_input *in);

/* One tile to the result, channels k < n: with Y = A^T M A, M[p][k] = m[p * m_pos + k] *
 * scale[p * scale_pos + k] (scale NULL: 1),
 *     out[r][s][k] = act(Y[r][s][k] + bias[k] + temb[k]) + residual[r][s][k]
 * for r < rows <= 4, s < columns <= 4, where each of bias, temb and residual is left out if NULL.
 * temb, out and residual are of type dtype, a pixel every `pixel` elements and a row of pixels
 * every `line`; out may be the residual. m and scale are read up to the next multiple of 16.
 * m + m_tile is the next tile's, which is fetched into the cache. */
struct dpk_wino_output {
    const float *m, *scale;
    size_t m_pos, scale_pos, m_tile;
    int32_t n, rows, columns, act, dtype;
    const float *bias;
    const void *temb, *residual;
    void *out;
    size_t pixel, line;
};
typedef void dpk_wino_output_fn(const struct dpk_wino_output *out);

/* Product tile of 16-bit integers:
 *   c[r][j] = (add ? c[r][j] : 0) + scale[r] * (sum over k of a[r][k] b[k][j])
 * for r < rows <= mr, j < 16 n_panels; k even. The sums are exact integers and must fit 32 bits (if
 * they do not, they are taken modulo 2^32); they are scaled and added in float32. Rows of c from
 * `rows` to mr are overwritten with anything. b: panels [k/2][16][2], b_stride elements apart. */
struct dpk_tile_s16 {
    const int16_t *a;
    size_t a_stride;
    int32_t rows, n_panels, k;
    bool add;
    const int16_t *b;
    size_t b_stride;
    float *c;
    size_t c_stride;
    const float *scale;
};
typedef void dpk_tile_s16_fn(const struct dpk_tile_s16 *t);
struct dpk_tile_s16_kernel {
    dpk_tile_s16_fn *fn; /* NULL: this level has none */
    int mr, np;
};

#endif
