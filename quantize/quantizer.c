#include "quantizer.h"

#include "../formats/ops.h"

#include <math.h>
#include <string.h>

const char *dpk_convention_name(int convention) {
    return convention == DPK_CONVENTION_TORCHAO ? "torchao" : "diffusion-fast";
}

/* ---- Rounding -------------------------------------------------------------------------------- */

/* Nearest even integer of |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction. Unlike rintf
 * this vectorises for any x86-64. */
static inline float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

static inline float clampf(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }

static float round_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* x >= 0 and finite. f16 has 11 significant bits, down to steps of 2^-24. */
static float round_f16(float x) {
    if (x >= 65520.0f) return INFINITY;
    int exponent;
    (void)frexpf(x, &exponent);
    const int step = exponent - 11 > -24 ? exponent - 11 : -24;
    return ldexpf(round_even(ldexpf(x, -step)), step);
}

static float round_to(int dtype, float x) {
    return dtype == DPK_BF16 ? round_bf16(x) : dtype == DPK_F16 ? round_f16(x) : x;
}

/* ---- Scales ---------------------------------------------------------------------------------- */

/* Largest magnitude of x [k]; anything that is not finite if there is such a value. The bits of
 * magnitudes order as integers, with infinity and the NaNs on top. */
static float magnitude(const float *x, size_t k) {
    uint32_t top = 0;
    for (size_t i = 0; i < k; i++) {
        uint32_t u;
        memcpy(&u, &x[i], sizeof u);
        u &= 0x7fffffff;
        top = u > top ? u : top;
    }
    float m;
    memcpy(&m, &top, sizeof m);
    return m;
}

static void divide_s8(const float *x, size_t k, float s, float lo, int8_t *q) {
    for (size_t i = 0; i < k; i++) q[i] = (int8_t)clampf(round_even(x[i] / s), lo, 127.0f);
}
static void multiply_s8(const float *x, size_t k, float r, float lo, float hi, int8_t *q) {
    for (size_t i = 0; i < k; i++) q[i] = (int8_t)clampf(round_even(x[i] * r), lo, hi);
}

static void torchao_s8(int dtype, float top, const float *x, size_t k, int8_t *q, float *scale) {
    *scale = fmaxf(round_to(dtype, top / 127.5f), 0x1p-23f);
    multiply_s8(x, k, 1.0f / *scale, -128.0f, 127.0f, q);
}

/* ---- Rows ------------------------------------------------------------------------------------ */

bool dpk_quantize_row_s8(int convention, int dtype, const float *w, size_t k, int8_t *q,
                         float *scale) {
    const float top = magnitude(w, k);
    if (!isfinite(top)) return false;
    if (convention == DPK_CONVENTION_TORCHAO) {
        torchao_s8(dtype, top, w, k, q, scale);
    } else {
        *scale = fmaxf(top / 127.5f, 0x1p-23f);
        divide_s8(w, k, *scale, -128.0f, q);
    }
    return true;
}

void dpk_quantize_activation_s8(int convention, int dtype, const float *x, size_t k, int8_t *q,
                                float *scale) {
    const float top = magnitude(x, k);
    if (!isfinite(top)) {
        *scale = NAN;
        memset(q, 0, k);
    } else if (convention == DPK_CONVENTION_TORCHAO) {
        torchao_s8(dtype, top, x, k, q, scale);
    } else {
        *scale = fmaxf(top, 1e-5f) / 127.0f;
        divide_s8(x, k, *scale, -127.0f, q);
    }
}

bool dpk_quantize_row_s4(const float *w, size_t k, size_t group, int8_t *q, float *scales) {
    for (size_t first = 0; first < k; first += group) {
        const float top = magnitude(w + first, group);
        if (!isfinite(top)) return false;
        const float s = fmaxf(top / 7.5f, 0x1p-126f);
        multiply_s8(w + first, group, 1.0f / s, -8.0f, 7.0f, q + first);
        scales[first / group] = s;
    }
    return true;
}

int32_t dpk_quantized_sum(const int8_t *q, size_t k) {
    int32_t sum = 0;
    for (size_t i = 0; i < k; i++) sum += q[i];
    return sum;
}

/* ---- Error ----------------------------------------------------------------------------------- */

void dpk_quantize_error(const float *w, const int8_t *q, const float *scales, size_t k,
                        size_t group, double *signal, double *noise) {
    for (size_t first = 0; first < k; first += group) {
        const double s = scales[first / group];
        double sum = 0, sum_e = 0;
        for (size_t i = first; i < first + group; i++) {
            const double v = w[i], e = v - q[i] * s;
            sum += v * v;
            sum_e += e * e;
        }
        *signal += sum;
        *noise += sum_e;
    }
}

double dpk_sqnr_db(double signal, double noise) {
    if (noise == 0) return INFINITY;
    return 10.0 * log10(signal / noise);
}
