/* Product tile of integers in portable C: 4 rows, 1 panel (contract: struct dpk_tile in cpu.h). */
#include "tiles.h"

#include <string.h>

void dpk_tile_s8_ref(const struct dpk_tile *t) {
    int32_t acc[DPK_MR_REF][16] = {{0}};
    const int8_t *b = t->b;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (size_t)s * DPK_MR_REF;
        for (int32_t k = 0; k < t->k_len[s]; k++) {
            const int8_t *bk = b + (size_t)(k / 4) * 64 + k % 4;
            for (int r = 0; r < DPK_MR_REF; r++) {
                int32_t a = ((const int8_t *)rows[r])[k];
                for (int c = 0; c < 16; c++) acc[r][c] += a * bk[c * 4];
            }
        }
        b += (size_t)t->k_len[s] * 16;
    }
    for (int r = 0; r < DPK_MR_REF; r++) {
        float *to = t->c + (size_t)r * (size_t)t->c_stride;
        if (!t->scale_a) memcpy(to, acc[r], sizeof acc[r]);
        for (int c = 0; t->scale_a && c < 16; c++) {
            to[c] = (float)acc[r][c] * t->scale_a[r] * t->scale_b[c];
        }
    }
}
