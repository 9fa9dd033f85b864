/* Product tile of 16-bit integers in portable C: 4 rows, 1 panel (contract: struct dpk_tile_s16).
 */
#include "tiles.h"

void dpk_tile_s16_ref(const struct dpk_tile_s16 *t) {
    uint32_t acc[DPK_MR_REF][16] = {{0}}; /* wraps where the contract says so */
    const int16_t *b = t->b;
    for (int32_t k = 0; k < t->k; k += 2, b += 32) {
        for (int r = 0; r < t->rows; r++) {
            const int16_t *a = t->a + (size_t)r * t->a_stride + k;
            const int32_t a0 = a[0], a1 = a[1];
            for (int j = 0; j < 16; j++) {
                acc[r][j] += (uint32_t)(a0 * b[2 * j]);
                acc[r][j] += (uint32_t)(a1 * b[2 * j + 1]);
            }
        }
    }
    for (int r = 0; r < t->rows; r++) {
        float *c = t->c + (size_t)r * t->c_stride;
        for (int j = 0; j < 16; j++) {
            float sum = t->scale[r] * (float)(int32_t)acc[r][j];
            c[j] = t->add ? c[j] + sum : sum;
        }
    }
}
