/* torch.randn of the CPU: mt19937 (Matsumoto, Nishimura 1998) as
 * aten/src/ATen/core/MT19937RNGEngine.h, normals as
 * aten/src/ATen/native/cpu/DistributionTemplates.h. That of CUDA: random_philox.c.
 *
 * Logarithm, sine and cosine are taken in double from float32 arguments and rounded, so that the
 * numbers do not depend on the C library. */
#include "random.h"

#include "../formats/ops.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 16, MT_SHIFT = 397 };

/* ---- Rounding
 * --------------------------------------------------------------------------------- */

static float round_bf16(float v) {
    uint32_t b;
    memcpy(&b, &v, sizeof b);
    b += 0x7fff + (b >> 16 & 1);
    b &= 0xffff0000u;
    memcpy(&v, &b, sizeof b);
    return v;
}

/* Normals are far below float16's largest value; small ones may be subnormal there. */
static float round_f16(float v) {
    int e;
    frexpf(v, &e); /* |v| = 0.5..1 * 2^e: 11 bits, the last worth 2^(e - 11) */
    int last = e - 11 < -24 ? -24 : e - 11;
    return ldexpf(rintf(ldexpf(v, -last)), last);
}

static float round_to(int dtype, float v) {
    return dtype == DPK_BF16 ? round_bf16(v) : dtype == DPK_F16 ? round_f16(v) : v;
}

/* ---- CPU
 * -------------------------------------------------------------------------------------- */

static void mt_refill(uint32_t *mt) {
    for (int i = 0; i < DPK_RANDOM_MT; i++) {
        uint32_t y = (mt[i] & 0x80000000u) | (mt[(i + 1) % DPK_RANDOM_MT] & 0x7fffffffu);
        mt[i] = mt[(i + MT_SHIFT) % DPK_RANDOM_MT] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
}

static uint32_t mt_word(struct dpk_random *r) {
    if (r->mt_next == DPK_RANDOM_MT) {
        mt_refill(r->mt);
        r->mt_next = 0;
    }
    uint32_t y = r->mt[r->mt_next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static float uniform24(struct dpk_random *r) { return (float)(mt_word(r) & 0xffffff) * 0x1p-24f; }

static double uniform53(struct dpk_random *r) {
    uint64_t hi = mt_word(r), lo = mt_word(r);
    return (double)((hi << 32 | lo) & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* Box-Muller in float32: uniforms d[j] and d[j + 8] become a pair of normals. */
static void transform_block(float *d) {
    for (int j = 0; j < BLOCK / 2; j++) {
        float u1 = 1.0f - d[j], u2 = d[j + BLOCK / 2];
        float radius = (float)sqrt(-2.0 * log(u1));
        float angle = 2.0f * (float)M_PI * u2;
        d[j] = radius * (float)cos(angle);
        d[j + BLOCK / 2] = radius * (float)sin(angle);
    }
}

static void draw_block(struct dpk_random *r, int dtype, float *out) {
    for (int j = 0; j < BLOCK; j++) out[j] = uniform24(r);
    transform_block(out);
    for (int j = 0; j < BLOCK; j++) out[j] = round_to(dtype, out[j]);
}

static void draw_cpu(struct dpk_random *r, int dtype, size_t n, float *out) {
    const size_t whole = n - n % BLOCK;
    for (size_t i = 0; i < whole; i += BLOCK) draw_block(r, dtype, out + i);
    if (whole == n) return;
    /* float32 fills the tail with uniforms first, then overwrites the last 16 values; the half
     * types do not. */
    for (size_t i = whole; dtype == DPK_F32 && i < n; i++) mt_word(r);
    draw_block(r, dtype, out + n - BLOCK);
}

/* Fewer than 16 values: one by one in double; the second of a pair waits for the next draw. */
static void draw_few(struct dpk_random *r, int dtype, size_t n, float *out) {
    for (size_t i = 0; i < n; i++) {
        double v = r->second;
        if (!r->have_second) {
            double u1 = uniform53(r), u2 = uniform53(r);
            double radius = sqrt(-2.0 * log1p(-u2)), angle = 2.0 * M_PI * u1;
            v = radius * cos(angle);
            r->second = radius * sin(angle);
        }
        r->have_second = !r->have_second;
        out[i] = round_to(dtype, (float)v);
    }
}

/* ---- Interface
 * -------------------------------------------------------------------------------- */

void dpk_random_seed(struct dpk_random *r, enum dpk_random_kind kind, uint64_t seed,
                     uint32_t threads) {
    memset(r, 0, sizeof *r);
    r->kind = kind;
    r->seed = seed;
    r->threads = threads ? threads : 132 * 2048;
    r->mt[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < DPK_RANDOM_MT; i++)
        r->mt[i] = 1812433253u * (r->mt[i - 1] ^ r->mt[i - 1] >> 30) + i;
    r->mt_next = DPK_RANDOM_MT;
}

void dpk_random_normal(struct dpk_random *r, int dtype, size_t n, float *out) {
    if (n == 0) return;
    if (DPK_HAS_philox && r->kind == DPK_RANDOM_CUDA) {
        dpk_random_philox(r, n, out);
        for (size_t i = 0; i < n; i++) out[i] = round_to(dtype, out[i]);
    } else if (n < BLOCK) {
        draw_few(r, dtype, n, out);
    } else {
        draw_cpu(r, dtype, n, out);
    }
}

void dpk_random_skip(struct dpk_random *r, size_t n) {
    if (DPK_HAS_philox && n) dpk_random_philox(r, n, NULL);
}
