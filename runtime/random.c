/* torch.randn's two generators.
 *
 * CPU: mt19937 (Matsumoto, Nishimura 1998) as aten/src/ATen/core/MT19937RNGEngine.h, normals as
 * aten/src/ATen/native/cpu/DistributionTemplates.h. CUDA: Philox4x32-10 (Salmon et al. 2011) as
 * cuRAND, one stream per thread, elements dealt to threads as
 * aten/src/ATen/native/cuda/DistributionTemplates.h.
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

/* ---- CUDA
 * ------------------------------------------------------------------------------------- */

static void philox(uint64_t seed, uint64_t counter, uint64_t thread, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)thread, c3 = (uint32_t)(thread >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = UINT64_C(0xd2511f53) * c0, p1 = UINT64_C(0xcd9e8d57) * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

static void box_muller_cuda(uint32_t x, uint32_t y, float out[2]) {
    float u = (float)x * 0x1p-32f + 0x1p-33f;
    float v = (float)y * (float)(0x1p-32 * 2 * M_PI) + (float)(0x1p-33 * 2 * M_PI);
    float s = (float)sqrt(-2.0 * log(u));
    out[0] = s * (float)sin(v);
    out[1] = s * (float)cos(v);
}

/* How many threads share a draw of n values, and how often each makes four. */
static size_t cuda_threads(const struct dpk_random *r, size_t n) {
    const size_t blocks = (n + 255) / 256;
    return blocks * 256 < r->threads ? blocks * 256 : r->threads;
}

static uint64_t cuda_rounds(const struct dpk_random *r, size_t n) {
    const size_t threads = cuda_threads(r, n);
    return (n + 4 * threads - 1) / (4 * threads);
}

static void draw_cuda(struct dpk_random *r, int dtype, size_t n, float *out) {
    const size_t threads = cuda_threads(r, n);
    const uint64_t rounds = cuda_rounds(r, n);
    for (uint64_t round = 0; round < rounds; round++) {
        for (size_t k = 0; k < threads; k++) {
            size_t at = k + round * 4 * threads;
            if (at >= n) break;
            uint32_t word[4];
            float v[4];
            philox(r->seed, r->offset / 4 + round, k, word);
            box_muller_cuda(word[0], word[1], v);
            box_muller_cuda(word[2], word[3], v + 2);
            for (int j = 0; j < 4 && at < n; j++, at += threads) out[at] = round_to(dtype, v[j]);
        }
    }
    r->offset += 4 * rounds;
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
    if (r->kind == DPK_RANDOM_CUDA) draw_cuda(r, dtype, n, out);
    else if (n < BLOCK) draw_few(r, dtype, n, out);
    else draw_cpu(r, dtype, n, out);
}

void dpk_random_skip(struct dpk_random *r, size_t n) {
    if (n) r->offset += 4 * cuda_rounds(r, n);
}
