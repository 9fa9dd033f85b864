#include "panel.h"

#include <string.h>

bool dpk_panels_make(struct dpk_panels *p, int dtype, int layout, const struct dpk_shape *shape) {
    const uint64_t bytes = dpk_weight_bytes(dtype, layout, shape);
    *p = (struct dpk_panels){0};
    if (bytes == 0 || layout == DPK_LAYOUT_RAW) return false;
    const uint64_t g = (uint64_t)dpk_panel_group(dtype);
    const uint64_t rows = (uint64_t)shape->dim[0], c = (uint64_t)shape->dim[shape->rank - 1];
    const uint64_t k = (uint64_t)dpk_shape_count(shape) / rows;
    p->dtype = dtype;
    p->layout = layout;
    p->rows = rows;
    p->channels = c;
    p->taps = k / c;
    p->k = k;
    p->padded_k = p->taps * ((c + g - 1) / g * g);
    p->count = layout == DPK_LAYOUT_PANEL_GLU ? (rows / 2 + 7) / 8 : (rows + 15) / 16;
    p->bytes = bytes / p->count;
    return true;
}

int64_t dpk_panels_row(const struct dpk_panels *p, uint64_t panel, int r) {
    const uint64_t half = p->rows / 2, at = (uint64_t)r;
    uint64_t row;
    if (p->layout == DPK_LAYOUT_PANEL_GLU) {
        row = panel * 8 + at % 8;
        if (row >= half) return -1;
        if (at >= 8) row += half;
    } else {
        row = panel * DPK_PANEL_ROWS + at;
        if (row >= p->rows) return -1;
    }
    return (int64_t)row;
}

/* ---- Floats ---------------------------------------------------------------------------------- */

static float from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Exact. Subnormals: a half's mantissa counts steps of 2^-24. */
static float from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;
    if (e == 0) {
        const float x = (float)m * 0x1p-24f;
        return sign ? -x : x;
    }
    if (e == 31) return from_bits(sign | 0x7f800000 | m << 13);
    return from_bits(sign | (e + 112) << 23 | m << 13);
}

/* [k'/g][16][g] to [16][channels], without the padding, for one tap. */
static void unpack_tap(const struct dpk_panels *p, const uint8_t *src, float *rows) {
    const size_t c = (size_t)p->channels, g = (size_t)dpk_panel_group(p->dtype);
    for (size_t i = 0; i < c; i++) {
        const size_t base = i / g * DPK_PANEL_ROWS * g + i % g;
        for (size_t r = 0; r < DPK_PANEL_ROWS; r++) {
            const size_t at = base + r * g;
            float x;
            if (p->dtype == DPK_F32) {
                memcpy(&x, src + at * 4, 4);
            } else {
                uint16_t h;
                memcpy(&h, src + at * 2, 2);
                x = p->dtype == DPK_BF16 ? from_bits((uint32_t)h << 16) : from_f16(h);
            }
            rows[r * (size_t)p->k + i] = x;
        }
    }
}

void dpk_panels_unpack(const struct dpk_panels *p, const void *panel, float *rows) {
    const uint64_t tap_bytes = p->bytes / p->taps;
    for (uint64_t t = 0; t < p->taps; t++)
        unpack_tap(p, (const uint8_t *)panel + t * tap_bytes, rows + t * p->channels);
}

/* ---- Integers -------------------------------------------------------------------------------- */

/* Where value i of row r of a tap stands: its byte, and for s4 the half of it. */
static inline size_t byte_of(size_t i, size_t r, size_t g, bool s4) {
    const size_t at = (i / g * DPK_PANEL_ROWS + r) * g + i % g;
    return s4 ? at / 2 : at;
}

void dpk_panels_pack(const struct dpk_panels *p, const int8_t *q, void *panel) {
    const bool s4 = p->dtype == DPK_S4;
    const size_t c = (size_t)p->channels, g = (size_t)dpk_panel_group(p->dtype);
    const size_t tap_bytes = (size_t)(p->bytes / p->taps);
    memset(panel, 0, (size_t)p->bytes);
    for (size_t t = 0; t < p->taps; t++) {
        uint8_t *dst = (uint8_t *)panel + t * tap_bytes;
        for (size_t r = 0; r < DPK_PANEL_ROWS; r++) {
            const int8_t *row = q + r * (size_t)p->k + t * c;
            if (s4)
                for (size_t i = 0; i < c; i++)
                    dst[byte_of(i, r, g, true)] |= (uint8_t)((row[i] & 15) << (i % 2 * 4));
            else
                for (size_t i = 0; i < c; i++) dst[byte_of(i, r, g, false)] = (uint8_t)row[i];
        }
    }
}

void dpk_panels_integers(const struct dpk_panels *p, const void *panel, int8_t *q) {
    const bool s4 = p->dtype == DPK_S4;
    const size_t c = (size_t)p->channels, g = (size_t)dpk_panel_group(p->dtype);
    const size_t tap_bytes = (size_t)(p->bytes / p->taps);
    for (size_t t = 0; t < p->taps; t++) {
        const uint8_t *src = (const uint8_t *)panel + t * tap_bytes;
        for (size_t r = 0; r < DPK_PANEL_ROWS; r++) {
            int8_t *row = q + r * (size_t)p->k + t * c;
            for (size_t i = 0; i < c; i++) {
                const uint8_t b = src[byte_of(i, r, g, s4)];
                const int half = i % 2 ? b >> 4 : b & 15;
                row[i] = (int8_t)(s4 ? half - (half & 8) * 2 : b - (b & 128) * 2);
            }
        }
    }
}
