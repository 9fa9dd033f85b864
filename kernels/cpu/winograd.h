/* 3x3 convolution of step 1 and padding 1 by Winograd's F(4x4,3x3) (Lavin and Gray,
 * arXiv:1509.09308) with products of 16-bit integers, for bfloat16 activations and weights: 4 times
 * fewer products than the direct form, by an instruction (VPDPWSSD) of the same rate.
 *
 *     Y = A^T [ sum over channels (G g G^T) . (B^T d B) ] A
 *
 * for each 4 x 4 pixels of the result, d being 6 x 6 pixels of the input. The 36 positions of the
 * transformed tile are 36 products of matrices, V [tiles][C] U [C][N]. Points 0, +-0.65, +-1.5 and
 * infinity: of the points with few bits, near those that make the least error.
 *
 * Scales. bfloat16 has not the bits for F(4x4), 16-bit integers do. Every vector of up to 320
 * channels of a position, of a tile in V and of a filter in U, gets its own scale, such that its
 * length is 32700 (of a filter: that of the longest of its vectors; then one scale a filter and
 * position). Hence no element exceeds 16 bits, and by Cauchy-Schwarz no sum of products 2^30 and
 * its rounding, whatever the input; there is nothing to saturate. Sums of 320 channels are scaled
 * and added in float32. Relative error (L2) 1.0 to 1.25 times that of a direct convolution, whose
 * error is the rounding of the result to bfloat16, with 32 to 2560 channels, on noise, smooth maps
 * and maps with channels and pixels 40 times larger than the others.
 *
 * Speed on one core (Zen 5), direct-convolution work over the peak of VDPBF16PS: 2.5 to 3.0 for
 * maps of 32 x 32 and up with 128 to 1280 channels, 2.3 with 2560 in a single 32 x 32 map; faster
 * than the direct form from 8 tiles on.
 * Making U takes 2 ns per 9 weights: as long as the products of 13 tiles.
 *
 * What is not finite: NaN, an infinity or a number beyond 3e16 in the input makes NaN of those
 * pixels of the result that it touches in a direct convolution, and of others of the same 4 x 4
 * tiles, in all channels; in a filter, of its channel.
 *
 * U is made from the panels of the file whenever the operator runs, and lies in scratch. Either the
 * whole of it fits (large maps with few channels): then chunks of tiles are transformed, multiplied
 * and transformed back by one worker, in cache. Or the transformed input of many tiles is kept, and
 * U is made for a few columns at a time. Sums do not depend on any of this, nor on the threads. */
#ifndef DPK_WINOGRAD_H
#define DPK_WINOGRAD_H

#include "cpu.h"

#include <stddef.h>

struct dpk_wino {
    const uint16_t *x; /* [images][h][w][c] */
    int images, h, w;
    int out_h, out_w;       /* of the result; x enlarged to it by nearest neighbour */
    int c, n;               /* c even */
    const uint16_t *panels; /* [n/16][9][c/2][16][2] */
    int act;
    const float *bias;        /* [n], or NULL */
    const uint16_t *temb;     /* [images][temb_stride], or NULL */
    size_t temb_stride;       /* 0: one row for all */
    const uint16_t *residual; /* as out, or NULL */
    uint16_t *out;            /* [images][out_h][out_w][n]; may be the residual */
    /* Bytes of U to be made as a whole; else of U and V to be held. 0: the usual limits. */
    size_t most_whole_u, most_held_u, most_held_v;
    /* Filled by dpk_wino_pays and dpk_wino_plan; elements where not said otherwise. */
    int tiles_y, tiles_x, tiles;        /* tiles: of all images */
    int n_seg, n_slabs;                 /* a slab is 64 columns, or what is left */
    int chunk, n_chunks;                /* tiles that are multiplied together */
    int hold;                           /* chunks whose V is kept; 0: each worker has one */
    int group;                          /* slabs whose U is kept */
    size_t row, v_pos, v_size;          /* of V: of a tile, of a position, of a chunk */
    size_t v_scale_pos, v_scale_size;   /* its scales: of a position, of a chunk */
    size_t u_pos, u_size, u_scale_size; /* of a slab */
    size_t m_pos;
    size_t shared_bytes, worker_bytes;
};

/* Is this way faster than the direct one? From the sizes alone; counts the tiles. */
bool dpk_wino_pays(struct dpk_wino *w);

/* After dpk_wino_pays: choose chunks (no pointer is looked at). Returns the scratch bytes of all
 * workers. */
size_t dpk_wino_plan(const struct dpk_cpu *cpu, struct dpk_wino *w);

/* scratch: as much as dpk_wino_plan said, 64-byte aligned. The result may lie where the residual
 * lies. */
void dpk_wino_run(struct dpk_cpu *cpu, const struct dpk_wino *w, void *scratch);

#endif
