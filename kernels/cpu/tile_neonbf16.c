/* Product tiles bf16 x bf16 by BFMMLA and s8 x s8 by SMMLA: 6 rows, 1 panel (contract: struct
 * dpk_tile in cpu.h).
 *
 * Both instructions multiply 2 rows of 8 bytes by 2 columns of 8 bytes, and both kinds of panels
 * have 4 bytes of a column together, k-pairs of bf16 or fours of s8: a unit. ZIP of two units that
 * follow each other makes the 8 bytes of two columns. A is 8 bytes of two raw rows.
 * Registers: 24 accumulators (2 rows x 2 columns each), 3 of A, 2 of B and their 2 zips = 31 of 32.
 * Of 35 vector instructions in a step of two units 24 are products.
 * Tail: what is left of a row is loaded by itself, and the rest is zero; so is the second unit of B
 * if there is none.
 * Rounding: BFMMLA rounds sums to odd and takes subnormals as 0. Integers are exact, converted to
 * float32 and multiplied twice at the end. */
#include "tile_neon.h"

#include <string.h>

/* Pairs of rows: F(pair, its rows). */
#define PAIRS(F) F(0, 0, 1) F(1, 2, 3) F(2, 4, 5)

#define DECLARE(p, r, q)                                                                           \
    uint32x4_t c##p##0 = vdupq_n_u32(0), c##p##1 = c##p##0, c##p##2 = c##p##0, c##p##3 = c##p##0,  \
               c##p##4 = c##p##0, c##p##5 = c##p##0, c##p##6 = c##p##0, c##p##7 = c##p##0;
#define POINT(p, r, q) const uint8_t *a##r = rows[r], *a##q = rows[q];
#define LOAD(p, r, q) const uint8x16_t x##p = vcombine_u8(vld1_u8(a##r + i), vld1_u8(a##q + i));
#define LOAD_LAST(p, r, q)                                                                         \
    const uint8x16_t x##p = vcombine_u8(last(a##r + i, n - i), last(a##q + i, n - i));
/* Lines of assembly in this order, the loads of four columns ahead of the products of the four
 * before: left to itself gcc makes all zips first, and spills. */
#define LOAD_B(at)                                                                                 \
    __asm__ volatile("ldr %q0, %2\n\tldr %q1, %3"                                                  \
                     : "=&w"(u), "=w"(v)                                                           \
                     : "m"(*(const uint8_t(*)[16])(b + (at))),                                     \
                       "m"(*(const uint8_t(*)[16])(second + (at))));
#define ZIP                                                                                        \
    __asm__ volatile("zip1 %0.4s, %2.4s, %3.4s\n\tzip2 %1.4s, %2.4s, %3.4s"                        \
                     : "=&w"(y), "=w"(z)                                                           \
                     : "w"(u), "w"(v));
#define BFMMLA(c, x, y) __asm__ volatile("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(c) : "w"(x), "w"(y));
#define SMMLA(c, x, y) __asm__ volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(c) : "w"(x), "w"(y));
#define COLUMNS(MMLA, j, l)                                                                        \
    MMLA(c0##j, x0, y)                                                                             \
    MMLA(c1##j, x1, y) MMLA(c2##j, x2, y) MMLA(c0##l, x0, z) MMLA(c1##l, x1, z) MMLA(c2##l, x2, z)
/* All columns of the units at b and at second. */
/* clang-format off */
#define STEP(MMLA)                                                                                 \
    {                                                                                              \
        uint32x4_t u, v, y, z;                                                                     \
        LOAD_B(0) ZIP                                                                              \
        LOAD_B(16) COLUMNS(MMLA, 0, 1) ZIP                                                         \
        LOAD_B(32) COLUMNS(MMLA, 2, 3) ZIP                                                         \
        LOAD_B(48) COLUMNS(MMLA, 4, 5) ZIP                                                         \
        COLUMNS(MMLA, 6, 7)                                                                        \
    }
/* clang-format on */
/* A pair's accumulators hold two columns of its first row, then of its second. */
#define STORE(p, r, q)                                                                             \
    store(t, r, 0, c##p##0, c##p##1);                                                              \
    store(t, r, 4, c##p##2, c##p##3);                                                              \
    store(t, r, 8, c##p##4, c##p##5);                                                              \
    store(t, r, 12, c##p##6, c##p##7);

static const uint8_t zeros[64];
/* 2, 4 or 6 bytes, and zeros; no call of memcpy, which would clobber the accumulators. */
static inline uint8x8_t last(const uint8_t *p, ptrdiff_t n) {
    uint32_t four = 0;
    uint16_t two = 0;
    if (n & 4) memcpy(&four, p, 4);
    if (n & 2) memcpy(&two, p + (n & 4), 2);
    return vcreate_u8(four | (uint64_t)two << 8 * (n & 4));
}

/* Columns `column` to `column` + 3 of rows r and r + 1. */
static inline void store(const struct dpk_tile *t, int r, int column, uint32x4_t x, uint32x4_t y) {
    const uint64x2_t u = vreinterpretq_u64_u32(x), v = vreinterpretq_u64_u32(y);
    dpk_neon_store(t, r, column, vreinterpretq_s32_u64(vzip1q_u64(u, v)));
    dpk_neon_store(t, r + 1, column, vreinterpretq_s32_u64(vzip2q_u64(u, v)));
}

/* i and n are bytes of a row. */
#define TILE(name, k_bytes, MMLA)                                                                  \
    void dpk_tile_##name##_neonbf16(const struct dpk_tile *t) {                                    \
        PAIRS(DECLARE)                                                                             \
        const uint8_t *b = t->b;                                                                   \
        for (int32_t s = 0; s < t->n_seg; s++) {                                                   \
            const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_NEON;                           \
            PAIRS(POINT)                                                                           \
            const ptrdiff_t n = (ptrdiff_t)t->k_len[s] * k_bytes, end = n & ~(ptrdiff_t)7;         \
            ptrdiff_t i = 0;                                                                       \
            for (; i < end; i += 8, b += 128) {                                                    \
                const uint8_t *second = b + 64;                                                    \
                PAIRS(LOAD)                                                                        \
                STEP(MMLA)                                                                         \
            }                                                                                      \
            if (i < n) {                                                                           \
                const uint8_t *second = n - i > 4 ? b + 64 : zeros;                                \
                PAIRS(LOAD_LAST)                                                                   \
                STEP(MMLA)                                                                         \
                b += n - i > 4 ? 128 : 64;                                                         \
            }                                                                                      \
        }                                                                                          \
        PAIRS(STORE)                                                                               \
    }

TILE(bf16_bf16, 2, BFMMLA)
TILE(s8_dot, 1, SMMLA)
