#include "support_pack.h"

#include "support_guard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t test_dtype_bytes(int dtype) { return dtype == DPK_F32 ? 4 : 2; }

static uint32_t encode_f16(float x) {
    uint32_t sign = signbit(x) ? 0x8000 : 0;
    double a = fabs((double)x);
    int e;
    if (a < 0x1p-14)
        return sign | (uint32_t)nearbyint(a * 0x1p24);  /* subnormal, or the first normal */
    frexp(a, &e);                                       /* a = f 2^e, f in [0.5, 1) */
    uint32_t m = (uint32_t)nearbyint(ldexp(a, 11 - e)); /* 1024 .. 2048 */
    return sign | (((uint32_t)(e + 14) << 10) + (m - 1024));
}

uint32_t test_encode(int dtype, float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if (dtype == DPK_F32) return u;
    if (dtype == DPK_BF16) return (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return encode_f16(x);
}

float test_decode(int dtype, uint32_t bits) {
    float x;
    if (dtype == DPK_F16) {
        uint32_t e = bits >> 10 & 31, m = bits & 0x3ff;
        double a = e ? ldexp(1024.0 + m, (int)e - 25) : ldexp(m, -24);
        return (float)(bits & 0x8000 ? -a : a);
    }
    if (dtype == DPK_BF16) bits <<= 16;
    memcpy(&x, &bits, 4);
    return x;
}

static void put(int dtype, void *p, size_t i, float x) {
    uint32_t bits = test_encode(dtype, x);
    if (dtype == DPK_F32) ((uint32_t *)p)[i] = bits;
    else ((uint16_t *)p)[i] = (uint16_t)bits;
}

static float get(int dtype, const void *p, size_t i) {
    return test_decode(dtype,
                       dtype == DPK_F32 ? ((const uint32_t *)p)[i] : ((const uint16_t *)p)[i]);
}

void test_round(int dtype, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = test_decode(dtype, test_encode(dtype, x[i]));
}

void *test_encode_array(int dtype, const float *x, size_t n) {
    void *p = test_guard_alloc(n * test_dtype_bytes(dtype));
    for (size_t i = 0; i < n; i++) put(dtype, p, i, x[i]);
    return p;
}

float *test_decode_array(int dtype, const void *p, size_t n) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (!x) abort();
    for (size_t i = 0; i < n; i++) x[i] = get(dtype, p, i);
    return x;
}

/* Source row of row r of the panels; -1: zeros. */
static long source_row(int layout, long r, long n) {
    if (layout != DPK_LAYOUT_PANEL_GLU) return r < n ? r : -1;
    long f = r / 16 * 8 + r % 8;
    if (f >= n / 2) return -1;
    return r % 16 < 8 ? f : n / 2 + f;
}

/* Either w or q is given. */
static void *pack(int dtype, int layout, const struct dpk_shape *shape, const float *w,
                  const int8_t *q, size_t *n_bytes) {
    size_t g = dtype == DPK_F32 ? 1 : dtype == DPK_S8 ? 4 : dtype == DPK_S4 ? 8 : 2, taps = 1, c;
    size_t n = (size_t)shape->dim[0];
    size_t panels = layout == DPK_LAYOUT_PANEL_GLU ? (n / 2 + 7) / 8 : (n + 15) / 16;
    if (shape->rank == 4) taps = (size_t)shape->dim[1] * (size_t)shape->dim[2];
    c = (size_t)shape->dim[shape->rank - 1];
    size_t c_padded = (c + g - 1) / g * g, k_padded = taps * c_padded;
    size_t values = panels * 16 * k_padded;
    *n_bytes = dtype == DPK_S4   ? values / 2
               : dtype == DPK_S8 ? values
                                 : values * test_dtype_bytes(dtype);
    void *out = test_guard_alloc(*n_bytes);
    memset(out, 0, *n_bytes);
    for (size_t r = 0; r < panels * 16; r++) {
        long from = source_row(layout, (long)r, (long)n);
        if (from < 0) continue;
        for (size_t tap = 0; tap < taps; tap++) {
            for (size_t i = 0; i < c; i++) {
                size_t k = tap * c_padded + i;
                size_t at = (r / 16 * (k_padded / g) + k / g) * 16 * g + r % 16 * g + k % g;
                size_t source = ((size_t)from * taps + tap) * c + i;
                uint8_t *bytes = out;
                if (dtype == DPK_S4) bytes[at / 2] |= (uint8_t)((q[source] & 15) << at % 2 * 4);
                else if (dtype == DPK_S8) bytes[at] = (uint8_t)q[source];
                else put(dtype, out, at, w[source]);
            }
        }
    }
    return out;
}

void *test_pack_weight(int dtype, int layout, const struct dpk_shape *shape, const float *w,
                       size_t *n_bytes) {
    return pack(dtype, layout, shape, w, NULL, n_bytes);
}

void *test_pack_integers(int dtype, int layout, const struct dpk_shape *shape, const int8_t *q,
                         size_t *n_bytes) {
    return pack(dtype, layout, shape, NULL, q, n_bytes);
}

uint32_t test_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    uint32_t x = *state ^ *state >> 16;
    return x * 0x45d9f3bu ^ x >> 13;
}

int test_random_int(uint32_t *state, int lo, int hi) {
    return lo + (int)(test_random(state) % (uint32_t)(hi - lo + 1));
}

float test_random_float(uint32_t *state) { return (float)(int32_t)test_random(state) * 0x1p-31f; }
