/* Drawn weights: real shapes and plausible values for a model whose weights are not at hand.
 *
 * A value is a function of (tensor name, seed, index), so it does not depend on the order of work,
 * on fusion or on layout. A pair of values comes from one 64-bit word, splitmix64's finaliser
 * (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators) of a counter keyed with
 * XXH3-64 of the name. A 32-bit half becomes a normal number by the inverse distribution function,
 * tabulated at 4096 equal steps of probability and linear between them. Only IEEE additions,
 * multiplications, divisions and square roots are used, nothing of libm whose last bit varies. */
#include "weights.h"

#define XXH_INLINE_ALL
#include "../formats/xxhash.h"

#include <math.h>
#include <string.h>

/* exp(-y) for 0 <= y <= 16: Taylor at y/256, then eight squarings. */
static double exp_negative(double y) {
    const double x = -y / 256.0;
    double term = 1.0, sum = 1.0;
    for (int i = 1; i <= 12; i++) {
        term = term * x / i;
        sum += term;
    }
    for (int i = 0; i < 8; i++) sum *= sum;
    return sum;
}

/* The x >= 0 whose normal distribution function is 0.5 + p, by Newton's method; the function is
 * 0.5 + density(x) * (x + x^3/3 + x^5/(3*5) + ...), a series of positive terms. */
static double half_quantile(double p, double guess) {
    double x = guess;
    for (int step = 0; step < 8; step++) {
        const double density = exp_negative(x * x / 2.0) / sqrt(2.0 * 3.14159265358979323846);
        double term = x, sum = x;
        for (int i = 3; i < 241 && term > 1e-17; i += 2) {
            term = term * x * x / i;
            sum += term;
        }
        x -= (density * sum - p) / density;
    }
    return x;
}

void dpk_random_table(float table[DPK_RANDOM_SEGMENTS + 1]) {
    enum { HALF = DPK_RANDOM_SEGMENTS / 2 };
    double q[HALF + 1], square = 0.0;
    q[0] = 0.0;
    for (int i = 1; i < HALF; i++)
        q[i] = half_quantile((double)i / DPK_RANDOM_SEGMENTS, i == 1 ? 0.0 : q[i - 1]);
    q[HALF] = 4.25; /* instead of infinity: where the last segment keeps the tail's weight */
    for (int i = 0; i < HALF; i++)
        square += (q[i] * q[i] + q[i] * q[i + 1] + q[i + 1] * q[i + 1]) / (3.0 * HALF);
    const double scale = 1.0 / sqrt(square); /* the variance of the segments is exactly 1 */
    for (int i = 0; i <= HALF; i++) {
        table[HALF - i] = (float)(-q[i] * scale);
        table[HALF + i] = (float)(q[i] * scale);
    }
}

static inline uint64_t word(uint64_t key, uint64_t pair) {
    uint64_t z = key + (pair + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* 12 bits choose the segment, 20 the place in it. */
static inline float normal(const float *table, uint32_t bits) {
    const uint32_t i = bits >> 20;
    const float at = (float)(int32_t)(bits & 0xFFFFF) * 0x1p-20f;
    return table[i] + (table[i + 1] - table[i]) * at;
}

void dpk_random_fill(const float table[DPK_RANDOM_SEGMENTS + 1], const char *name, uint64_t seed,
                     uint64_t first, size_t n, float mean, float deviation, float *dst) {
    const uint64_t key = XXH3_64bits_withSeed(name, strlen(name), seed);
    size_t i = 0;
    if (n && first % 2) {
        dst[i++] = mean + deviation * normal(table, (uint32_t)(word(key, first / 2) >> 32));
    }
    for (; i + 2 <= n; i += 2) {
        const uint64_t w = word(key, (first + i) / 2);
        dst[i] = mean + deviation * normal(table, (uint32_t)w);
        dst[i + 1] = mean + deviation * normal(table, (uint32_t)(w >> 32));
    }
    if (i < n) dst[i] = mean + deviation * normal(table, (uint32_t)word(key, (first + i) / 2));
}
