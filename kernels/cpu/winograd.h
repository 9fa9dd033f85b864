/* 3x3 convolution of step 1 and padding 1 by Winograd's F(4x4,3x3) (Lavin and Gray,
 * arXiv:1509.09308), with 4 times fewer products than the direct form:
 *
 *     Y = A^T [ sum over channels (G g G^T) . (B^T d B) ] A
 *
 * for each 4 x 4 pixels of the result, d being 6 x 6 pixels of the input. The 36 positions of the
 * transformed tile are 36 products of matrices, V [tiles][C] U [C][N]. Points 0, +-0.65, +-1.5 and
 * infinity, near those that make the least error.
 *
 * Products in float32, where activations are. Relative error (L2) on noise up to twice that of a
 * direct convolution, 0.7e-6 to 1.7e-6 with 64 to 1280 channels; on smooth maps a half to a quarter
 * of it (sums are shorter). So files of float32 weights take this way too, and F(2x2,3x3), whose
 * error is less, was not needed.
 *
 * Products of 16-bit integers, where activations are bfloat16 (which has not the bits for F(4x4),
 * 16-bit integers do) and an instruction of its rate multiplies them (VPDPWSSD). Every vector of up
 * to 320 channels of a position, of a tile in V and of a filter in U, gets its own scale, such that
 * its length is 32700 (of a filter: that of the longest of its vectors; then one scale a filter and
 * position). Hence no element exceeds 16 bits, and by Cauchy-Schwarz no sum of products 2^30 and
 * its rounding, whatever the input; there is nothing to saturate. Sums of 320 channels are scaled
 * and added in float32. Relative error (L2) 1.0 to 1.25 times that of a direct convolution, whose
 * error is the rounding of the result to bfloat16, with 32 to 2560 channels, on noise, smooth maps
 * and maps with channels and pixels 40 times larger than the others.
 *
 * Speed on one core (Zen 5), direct-convolution work over the peak of the direct products: integers
 * 2.4 to 2.8, floats 2.5 to 3.1, for maps of 32 x 32 and up with 128 to 2560 channels; for two maps
 * of 16 x 16 with 1280 channels 1.7 and 2.1 to 2.4.
 *
 * What is not finite: NaN, an infinity or a number beyond 3e16 (products of floats: about 1e37) in
 * the input makes NaN (floats: NaN or an infinity) of those pixels of the result that it touches in
 * a direct convolution, and of others of the same 4 x 4 tiles, in all channels; in a filter, of its
 * channel.
 *
 * U is made from the panels of the file whenever the operator runs. Where the whole of it is small
 * (large maps with few channels) it is made once; then chunks of tiles are transformed, multiplied
 * and transformed back by one worker, in cache. Else the transformed input of many tiles is kept,
 * and a worker that multiplies a chunk of them with 64 filters makes of U one row of positions and
 * one segment of channels at a time, which never leave its cache. Sums do not depend on any of
 * this, nor on the threads. */
#ifndef DPK_WINOGRAD_H
#define DPK_WINOGRAD_H

#include "gemm.h"

struct dpk_wino {
    const void *x; /* [images][h][w][c] */
    int dtype;     /* of x, temb, residual and out */
    int images, h, w;
    int out_h, out_w;   /* of the result; x enlarged to it by nearest neighbour */
    int c, n;           /* c even */
    bool integers;      /* panels are then bfloat16 */
    double direct_gain; /* how much faster the direct way is than by such products; 0: 1 */
    const struct dpk_gemm *weights; /* after dpk_gemm_weight: [n][3][3][c], floats or widened */
    int act;
    const float *bias;    /* [n], or NULL */
    const void *temb;     /* [images][temb_stride], or NULL */
    size_t temb_stride;   /* 0: one row for all */
    const void *residual; /* as out, or NULL */
    void *out;            /* [images][out_h][out_w][n]; may be the residual */
    /* Bytes of U to be made as a whole, else of V to be held. 0: the usual limits. */
    size_t most_whole_u, most_held_v;
    /* Filled by dpk_wino_pays and dpk_wino_plan; elements where not said otherwise. */
    int tiles_y, tiles_x;  /* of an image */
    int first_tile, tiles; /* to make: of all images, until dpk_wino_rows */
    int segment, n_seg;    /* channels that are summed at once */
    int n_slabs;           /* a slab is 64 filters, or what is left */
    int chunk, n_chunks;   /* tiles that are multiplied together */
    int hold;              /* chunks whose V is kept; 0: each worker has one, and U is whole */
    size_t v_pos, v_seg, v_size;  /* of V, [segment][position][tile][channel]: of a chunk */
    size_t scale_seg, scale_size; /* its scales: [segment][position][tile] */
    size_t u_pos, u_size;         /* of what is made of U at once */
    size_t m_pos;
    size_t shared_bytes, worker_bytes;
};

/* Is this way faster than the direct one? From the sizes and types alone; counts the tiles. */
bool dpk_wino_pays(struct dpk_wino *w);

/* After dpk_wino_pays: make only these rows of the result. Sums stay the same. */
void dpk_wino_rows(struct dpk_wino *w, const struct dpk_rows *rows);

/* After dpk_wino_pays: choose chunks (no pointer but weights is looked at). Returns the scratch
 * bytes of all workers. */
size_t dpk_wino_plan(const struct dpk_cpu *cpu, struct dpk_wino *w);

/* scratch: as much as dpk_wino_plan said, 64-byte aligned. The result may lie where the residual
 * lies. */
void dpk_wino_run(struct dpk_cpu *cpu, const struct dpk_wino *w, void *scratch);

#endif
