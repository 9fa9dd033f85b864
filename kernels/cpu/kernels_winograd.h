/* Contracts of the kernels of Winograd convolution F(4x4,3x3) with 16-bit integer products (rows of
 * kernels.def, and tile_s16). Included by kernels.h only. The method: winograd.h.
 *
 * A tile is 6 x 6 input pixels and gives 4 x 4 output pixels. Position p = 6 i + j of 36 is row i,
 * column j of the transformed tile. */
#ifndef DPK_KERNELS_WINOGRAD_H
#define DPK_KERNELS_WINOGRAD_H

enum {
    DPK_WINO_POS = 36,
    DPK_WINO_SEGMENT = 320, /* channels that are summed as integers, at most */
};

/* Transformed weights of one panel, 16 filters [9][c/2][16][2] in bfloat16, c even:
 *     u[p * u_pos + ...], [c/2][16][2], and scale[p * scale_pos + n] so that u * scale is the
 * transformed filter but for rounding, half a unit of u. The vector of at most DPK_WINO_SEGMENT
 * neighbouring channels from a multiple of it, of each position and filter of u, is no longer than
 * 32700 before rounding. Where a filter, or its
 * length, is not finite its scales are NaN. */
struct dpk_wino_weights {
    const uint16_t *panel;
    int32_t c;
    int16_t *u;
    size_t u_pos;
    float *scale;
    size_t scale_pos;
};
typedef void dpk_wino_weights_fn(const struct dpk_wino_weights *w);

/* Transformed input of one tile, n channels from `first` on, n <= DPK_WINO_SEGMENT and even:
 *     v[p * v_pos + k] and scale[p * scale_pos] so that v * scale is the transformed tile but for
 * rounding, half a unit of v. v of a position is no longer, as a vector, than 32700 before
 * rounding. It is followed by as many zeros as make n a multiple of 32. pixel[6 y + x] points at
 * the bfloat16 channels of a pixel. Where a position is not finite, or its length is not, its scale
 * is NaN and v is anything. `next` is as pixel for the tile after this one (its right neighbour):
 * its right four columns are fetched into the cache on the way. buffer: DPK_WINO_POS *
 * DPK_WINO_ROW floats. */
enum { DPK_WINO_ROW = DPK_WINO_SEGMENT + 16 };
struct dpk_wino_input {
    const uint16_t *const *pixel, *const *next;
    int32_t first, n;
    int16_t *v;
    size_t v_pos;
    float *scale;
    size_t scale_pos;
    float *buffer;
};
typedef void dpk_wino_input_fn(const struct dpk_wino_input *in);

/* One tile to the result, channels k < n: with Y = A^T M A, M[p][k] = m[p * m_pos + k] *
 * scale[p * scale_pos + k],
 *     out[r][s][k] = act(Y[r][s][k] + bias[k] + temb[k]) + residual[r][s][k]
 * for r < rows <= 4, s < columns <= 4, where each of bias, temb and residual is left out if NULL.
 * out and residual are bfloat16, a pixel every `pixel` elements and a row of pixels every `line`;
 * out may be the residual. m and scale are read up to the next multiple of 16. m + m_tile is the
 * next tile's, which is fetched into the cache. */
struct dpk_wino_output {
    const float *m, *scale;
    size_t m_pos, scale_pos, m_tile;
    int32_t n, rows, columns, act;
    const float *bias;
    const uint16_t *temb, *residual;
    uint16_t *out;
    size_t pixel, line;
};
typedef void dpk_wino_output_fn(const struct dpk_wino_output *out);

/* Product tile of 16-bit integers:
 *   c[r][j] = sum over segments s of scale[s * scale_seg + r] * (sum over its k of a[r][k] b[k][j])
 * for r < rows <= mr, j < 16 n_panels. Segments are `segment` k's long, the last one what is left
 * (all even). The inner sums are exact integers and must fit 32 bits (if they do not, they are
 * taken modulo 2^32); they are scaled and added in float32. Rows of c from `rows` to mr are
 * overwritten with anything. b: panels [k/2][16][2], b_stride elements apart. */
struct dpk_tile_s16 {
    const int16_t *a;
    size_t a_stride;
    int32_t rows, n_panels;
    int32_t k, segment;
    const int16_t *b;
    size_t b_stride;
    float *c;
    size_t c_stride;
    const float *scale;
    size_t scale_seg;
};
typedef void dpk_tile_s16_fn(const struct dpk_tile_s16 *t);
struct dpk_tile_s16_kernel {
    dpk_tile_s16_fn *fn; /* NULL: this level has none */
    int mr, np;
};

#endif
