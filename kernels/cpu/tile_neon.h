/* What the NEON tiles of integers share. */
#ifndef DPK_TILE_NEON_H
#define DPK_TILE_NEON_H

#include "tiles.h"

#include <arm_neon.h>
#include <stddef.h>

/* Four sums of row r, columns from `column` on: scaled, or as they are. */
static inline void dpk_neon_store(const struct dpk_tile *t, int r, int column, int32x4_t sum) {
    float *c = t->c + r * (ptrdiff_t)t->c_stride + column;
    if (t->scale_a) {
        float32x4_t v = vmulq_n_f32(vcvtq_f32_s32(sum), t->scale_a[r]);
        vst1q_f32(c, vmulq_f32(v, vld1q_f32(t->scale_b + column)));
    } else {
        vst1q_f32(c, vreinterpretq_f32_s32(sum));
    }
}

#endif
