/* Product tiles in portable C: 4 rows, 1 panel (contract: struct dpk_tile in cpu.h).
 *
 * One loop for all element types; the compiler unrolls the 16 columns. It is the reading of the
 * contract that the other levels are tested against, and the level of machines that have no
 * other. */
#include "half.h"
#include "tiles.h"

#include <string.h>

static inline float from_f32(float f) { return f; }

#define TILE(name, type_a, widen_a, type_b, widen_b, group)                                        \
    void dpk_tile_##name##_ref(const struct dpk_tile *t) {                                         \
        float acc[DPK_MR_REF][16] = {{0}};                                                         \
        const type_b *b = t->b;                                                                    \
        for (int32_t s = 0; s < t->n_seg; s++) {                                                   \
            const void *const *rows = t->a + (size_t)s * DPK_MR_REF;                               \
            for (int32_t k = 0; k < t->k_len[s]; k++) {                                            \
                const type_b *bk = b + (size_t)(k / group) * 16 * group + k % group;               \
                for (int r = 0; r < DPK_MR_REF; r++) {                                             \
                    float a = widen_a(((const type_a *)rows[r])[k]);                               \
                    for (int c = 0; c < 16; c++) acc[r][c] += a * widen_b(bk[c * group]);          \
                }                                                                                  \
            }                                                                                      \
            b += (size_t)((t->k_len[s] + group - 1) / group) * 16 * group;                         \
        }                                                                                          \
        for (int r = 0; r < DPK_MR_REF; r++) {                                                     \
            memcpy(t->c + (size_t)r * (size_t)t->c_stride, acc[r], sizeof acc[r]);                 \
        }                                                                                          \
    }

TILE(f32_f32, float, from_f32, float, from_f32, 1)
TILE(f32_bf16, float, from_f32, uint16_t, dpk_bf16_f32, 2)
TILE(f32_f16, float, from_f32, uint16_t, dpk_f16_f32, 2)
TILE(bf16_bf16, uint16_t, dpk_bf16_f32, uint16_t, dpk_bf16_f32, 2)
