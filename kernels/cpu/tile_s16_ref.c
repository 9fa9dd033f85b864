/* Product tile of 16-bit integers in portable C: 4 rows, 1 panel (contract: struct dpk_tile_s16).
 */
#include "tiles.h"

#include <string.h>

void dpk_tile_s16_ref(const struct dpk_tile_s16 *t) {
    const int16_t *b = t->b;
    float c[DPK_MR_REF][16] = {{0}};
    for (int32_t first = 0; first < t->k; first += t->segment) {
        int32_t end = t->k - first < t->segment ? t->k : first + t->segment;
        const float *scale = t->scale + (size_t)(first / t->segment) * t->scale_seg;
        uint32_t acc[DPK_MR_REF][16] = {{0}}; /* wraps where the contract says so */
        for (int32_t k = first; k < end; k += 2, b += 32) {
            for (int r = 0; r < t->rows; r++) {
                const int16_t *a = t->a + (size_t)r * t->a_stride + k;
                for (int j = 0; j < 16; j++) {
                    acc[r][j] += (uint32_t)(a[0] * b[2 * j]);
                    acc[r][j] += (uint32_t)(a[1] * b[2 * j + 1]);
                }
            }
        }
        for (int r = 0; r < t->rows; r++) {
            for (int j = 0; j < 16; j++) c[r][j] += scale[r] * (float)(int32_t)acc[r][j];
        }
    }
    for (int r = 0; r < t->rows; r++) memcpy(t->c + (size_t)r * t->c_stride, c[r], sizeof c[r]);
}
