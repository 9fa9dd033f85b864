/* Product tiles f32 x {f32, bf16, f16} by NEON: 6 rows, 1 panel (contract: struct dpk_tile in
 * cpu.h).
 *
 * A: one float of a raw row, which FMLA takes from a lane. B: a panel's k is four registers (f32);
 * a k-pair of 16-bit elements is split into its even and odd k: bf16 by a shift and an AND, f16 by
 * UZP and FCVTL.
 * Registers: 24 accumulators, 4 of B, 2 of A, 1 mask = 31 of 32. Accumulators are named, and loads
 * of A and the FMA are lines of assembly in this order: left to itself gcc loads all of A ahead,
 * and spills.
 * Tail: an odd last k takes the even half only. Rounding: float32 FMA.
 * 10 loads and 24 FMLA a k: not bound by loads where a core has half as many load pipes as vector
 * pipes. */
#include "tiles.h"

#include <arm_neon.h>

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define DECLARE(r)                                                                                 \
    float32x4_t c##r##0 = vdupq_n_f32(0), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define POINT(r) const float *a##r = rows[r];
#define LOAD_A(r) __asm__ volatile("ldr %s0, %1" : "=w"(x##r) : "m"(a##r[k]));
#define FMA(c, b, x) __asm__ volatile("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(c) : "w"(b), "w"(x));
#define ROW(r)                                                                                     \
    FMA(c##r##0, b0, x##r) FMA(c##r##1, b1, x##r) FMA(c##r##2, b2, x##r) FMA(c##r##3, b3, x##r)
#define STORE(r)                                                                                   \
    {                                                                                              \
        float *c = t->c + r * (ptrdiff_t)t->c_stride;                                              \
        vst1q_f32(c, c##r##0);                                                                     \
        vst1q_f32(c + 4, c##r##1);                                                                 \
        vst1q_f32(c + 8, c##r##2);                                                                 \
        vst1q_f32(c + 12, c##r##3);                                                                \
    }
/* One k of all rows: LOAD(from, i) gives columns 4 i to 4 i + 3 of B. A is loaded two rows
 * ahead. */
#define STEP(LOAD, from)                                                                           \
    {                                                                                              \
        float32x4_t b0 = LOAD(from, 0), b1 = LOAD(from, 1), b2 = LOAD(from, 2),                    \
                    b3 = LOAD(from, 3), x0, x1, x2, x3, x4, x5;                                    \
        LOAD_A(0)                                                                                  \
        LOAD_A(1)                                                                                  \
        ROW(0) LOAD_A(2) ROW(1) LOAD_A(3) ROW(2) LOAD_A(4) ROW(3) LOAD_A(5) ROW(4) ROW(5)          \
    }

static inline uint32x4_t load_pairs(const char *p, int i) {
    return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)p + 16 * i));
}
static inline float32x4_t load_f32(const char *p, int i) {
    return vreinterpretq_f32_u32(load_pairs(p, i));
}
static inline float32x4_t bf16_even(const char *p, int i) {
    return vreinterpretq_f32_u32(vshlq_n_u32(load_pairs(p, i), 16));
}
static inline float32x4_t bf16_odd(const char *p, int i) {
    return vreinterpretq_f32_u32(vandq_u32(load_pairs(p, i), vdupq_n_u32(0xffff0000)));
}
/* Half i % 2 of the eight columns from 8 (i / 2) on. */
static inline float32x4_t widen(uint16x8_t h, int i) {
    float16x8_t f = vreinterpretq_f16_u16(h);
    return i % 2 ? vcvt_high_f32_f16(f) : vcvt_f32_f16(vget_low_f16(f));
}
static inline float32x4_t f16_even(const char *p, int i) {
    uint16x8_t a = vreinterpretq_u16_u32(load_pairs(p, i & ~1));
    return widen(vuzp1q_u16(a, vreinterpretq_u16_u32(load_pairs(p, i | 1))), i);
}
static inline float32x4_t f16_odd(const char *p, int i) {
    uint16x8_t a = vreinterpretq_u16_u32(load_pairs(p, i & ~1));
    return widen(vuzp2q_u16(a, vreinterpretq_u16_u32(load_pairs(p, i | 1))), i);
}
/* The same pointer, of which the compiler does not know that it is: it would keep the pairs for
 * their odd half, in memory. */
static inline const char *reload(const char *p) {
    __asm__("" : "+r"(p));
    return p;
}

#define TILE(name, group, EVEN, ODD)                                                               \
    void dpk_tile_##name##_neon(const struct dpk_tile *t) {                                        \
        ROWS(DECLARE)                                                                              \
        const char *b = t->b;                                                                      \
        for (int32_t s = 0; s < t->n_seg; s++) {                                                   \
            const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_NEON;                           \
            ROWS(POINT)                                                                            \
            const ptrdiff_t n = t->k_len[s], end = n / group * group;                              \
            ptrdiff_t k = 0;                                                                       \
            while (k < end) {                                                                      \
                STEP(EVEN, b)                                                                      \
                k++;                                                                               \
                if (group == 2) {                                                                  \
                    const char *again = reload(b);                                                 \
                    STEP(ODD, again)                                                               \
                    k++;                                                                           \
                }                                                                                  \
                b += 64;                                                                           \
            }                                                                                      \
            if (k < n) {                                                                           \
                STEP(EVEN, b)                                                                      \
                b += 64;                                                                           \
            }                                                                                      \
        }                                                                                          \
        ROWS(STORE)                                                                                \
    }

TILE(f32_f32, 1, load_f32, load_f32)
TILE(f32_bf16, 2, bf16_even, bf16_odd)
TILE(f32_f16, 2, f16_even, f16_odd)
