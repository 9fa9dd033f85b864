/* Weights in panels (enum dpk_layout of formats/ops.h), one panel of 16 rows at a time. A row is
 * K = taps * channels values in the logical order of its tensor; in a panel the channels of every
 * tap are padded with zeros to a multiple of the type's group. */
#ifndef DPK_PANEL_H
#define DPK_PANEL_H

#include "../formats/ops.h"

enum { DPK_PANEL_ROWS = 16 };

struct dpk_panels {
    int dtype, layout;
    uint64_t rows, taps, channels;
    uint64_t k;        /* taps * channels */
    uint64_t padded_k; /* values of a row in a panel */
    uint64_t count;    /* panels */
    uint64_t bytes;    /* of one */
};
/* Of a matrix [N,K] or a convolution [N,kh,kw,C] in PANEL or PANEL_GLU. False if there is no such
 * weight. */
bool dpk_panels_make(struct dpk_panels *p, int dtype, int layout, const struct dpk_shape *shape);

/* The logical row that stands at place r (0..15) of a panel; -1: none, zeros stand there. */
int64_t dpk_panels_row(const struct dpk_panels *p, uint64_t panel, int r);

/* One panel of f32, bf16 or f16 to rows [16][k]. */
void dpk_panels_unpack(const struct dpk_panels *p, const void *panel, float *rows);
/* One panel of s8 or s4 from rows q [16][k]. */
void dpk_panels_pack(const struct dpk_panels *p, const int8_t *q, void *panel);
/* And back: the panel's integers to rows q [16][k]. */
void dpk_panels_integers(const struct dpk_panels *p, const void *panel, int8_t *q);

#endif
