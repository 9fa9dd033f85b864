/* Single 16-bit floats to float32 and back. */
#ifndef DPK_HALF_H
#define DPK_HALF_H

#include <stdint.h>
#include <string.h>

static inline float dpk_bf16_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* To nearest even; NaN stays NaN. */
static inline uint16_t dpk_f32_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float dpk_f16_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, m = h & 0x3ff, u;
    float f;
    if (exponent == 0) { /* zero and subnormals: m 2^-24 is exact */
        f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    u = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | m << 13;
    memcpy(&f, &u, 4);
    return f;
}

#endif
