/* Product tile of integers by NEON without dot products: 3 rows, 1 panel (contract: struct dpk_tile
 * in cpu.h).
 *
 * B: 4 columns of four s8 k's are one register as they lie. SMULL makes 8 products of 16 bits,
 * SADALP adds neighbours to 32 bits: exact for all of -128 .. 127, where a second product added in
 * 16 bits (SMLAL) could overflow. Two instructions for 8 products: the rate of float32, at a
 * quarter of its memory.
 * Registers: 24 accumulators (two columns of half sums each), 4 of B, 1 of A, 2 products = 31 of
 * 32. Products are lines of assembly: left to itself gcc spills.
 * Tails: none, rows and panels are padded to fours. Rounding: at the end, conversion to float32 and
 * two products. */
#include "tile_neon.h"

#include <string.h>

#define ROWS(F) F(0) F(1) F(2)

#define DECLARE(r)                                                                                 \
    int32x4_t c##r##0 = vdupq_n_s32(0), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0,   \
              c##r##4 = c##r##0, c##r##5 = c##r##0, c##r##6 = c##r##0, c##r##7 = c##r##0;
#define POINT(r) const int8_t *a##r = rows[r];
#define MULTIPLY(low, high, b)                                                                     \
    {                                                                                              \
        int16x8_t u, v;                                                                            \
        __asm__ volatile("smull %2.8h, %4.8b, %5.8b\n\tsmull2 %3.8h, %4.16b, %5.16b\n\t"           \
                         "sadalp %0.4s, %2.8h\n\tsadalp %1.4s, %3.8h"                              \
                         : "+w"(low), "+w"(high), "=&w"(u), "=&w"(v)                               \
                         : "w"(b), "w"(x));                                                        \
    }
#define ROW(r)                                                                                     \
    {                                                                                              \
        int32_t four;                                                                              \
        memcpy(&four, a##r + k, 4);                                                                \
        const int32x4_t x = vdupq_n_s32(four);                                                     \
        MULTIPLY(c##r##0, c##r##1, b0)                                                             \
        MULTIPLY(c##r##2, c##r##3, b1)                                                             \
        MULTIPLY(c##r##4, c##r##5, b2)                                                             \
        MULTIPLY(c##r##6, c##r##7, b3)                                                             \
    }
#define STORE(r)                                                                                   \
    dpk_neon_store(t, r, 0, vpaddq_s32(c##r##0, c##r##1));                                         \
    dpk_neon_store(t, r, 4, vpaddq_s32(c##r##2, c##r##3));                                         \
    dpk_neon_store(t, r, 8, vpaddq_s32(c##r##4, c##r##5));                                         \
    dpk_neon_store(t, r, 12, vpaddq_s32(c##r##6, c##r##7));

void dpk_tile_s8_neon(const struct dpk_tile *t) {
    ROWS(DECLARE)
    const int8_t *b = t->b;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_S8_NEON;
        ROWS(POINT)
        const ptrdiff_t end = t->k_len[s];
        for (ptrdiff_t k = 0; k < end; k += 4, b += 64) {
            int8x16_t b0 = vld1q_s8(b), b1 = vld1q_s8(b + 16), b2 = vld1q_s8(b + 32),
                      b3 = vld1q_s8(b + 48);
            ROWS(ROW)
        }
    }
    ROWS(STORE)
}
