/* Product tile of integers by SDOT (FEAT_DotProd), the dot tile of level neon: 6 rows, 1 panel
 * (contract: struct dpk_tile in cpu.h).
 *
 * B: 4 columns of four s8 k's are one register as they lie. A: four k's of a raw row, which SDOT
 * takes from a lane: s8 times s8, four products into 32 bits.
 * Registers: 24 accumulators, 4 of B, 2 of A = 30 of 32. Loads of A and products are lines of
 * assembly in this order: left to itself gcc loads all of A ahead, and spills.
 * Tails: none, rows and panels are padded to fours. Rounding: at the end, conversion to float32 and
 * two products. */
#include "tile_neon.h"

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define DECLARE(r)                                                                                 \
    int32x4_t c##r##0 = vdupq_n_s32(0), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define POINT(r) const int8_t *a##r = rows[r];
#define LOAD_A(r)                                                                                  \
    __asm__ volatile("ldr %s0, %1" : "=w"(x##r) : "m"(*(const int8_t(*)[4])(a##r + k)));
#define DOT(c, b, x) __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(c) : "w"(b), "w"(x));
#define ROW(r)                                                                                     \
    DOT(c##r##0, b0, x##r) DOT(c##r##1, b1, x##r) DOT(c##r##2, b2, x##r) DOT(c##r##3, b3, x##r)
#define STORE(r)                                                                                   \
    dpk_neon_store(t, r, 0, c##r##0);                                                              \
    dpk_neon_store(t, r, 4, c##r##1);                                                              \
    dpk_neon_store(t, r, 8, c##r##2);                                                              \
    dpk_neon_store(t, r, 12, c##r##3);

void dpk_tile_s8_dot_neon(const struct dpk_tile *t) {
    ROWS(DECLARE)
    const int8_t *b = t->b;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_NEON;
        ROWS(POINT)
        const ptrdiff_t end = t->k_len[s];
        for (ptrdiff_t k = 0; k < end; k += 4, b += 64) {
            int8x16_t b0 = vld1q_s8(b), b1 = vld1q_s8(b + 16), b2 = vld1q_s8(b + 32),
                      b3 = vld1q_s8(b + 48);
            int8x16_t x0, x1, x2, x3, x4, x5;
            LOAD_A(0)
            LOAD_A(1) ROW(0) LOAD_A(2) ROW(1) LOAD_A(3) ROW(2) LOAD_A(4) ROW(3) LOAD_A(5) ROW(4)
                ROW(5)
        }
    }
    ROWS(STORE)
}
