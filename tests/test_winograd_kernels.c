/* The kernels of Winograd convolution, each level: transforms and tiles against double
 * precision. */
#include "../kernels/cpu/cpu.h"
#include "support_guard.h"
#include "support_pack.h"
#include "support_winograd.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What a transformed vector must be: x = v * scale within half a unit, and no longer than 32700. */
static void check_vector(const double *x, const int16_t *v, int n, float scale, const char *what) {
    double length = 0, largest = 0;
    for (int k = 0; k < n; k++) largest = fmax(largest, fabs(x[k]));
    for (int k = 0; k < n; k++) {
        double got = (double)v[k] * scale;
        length += (double)v[k] * v[k];
        if (!(fabs(got - x[k]) <= 0.5001 * fabsf(scale) + 1e-5 * largest)) {
            fail_msg("%s: element %d of %d is %g, want %g, scale %g", what, k, n, got, x[k], scale);
        }
    }
    if (!(sqrt(length) <= 32702 + 0.5 * sqrt(n))) fail_msg("%s: length %g", what, sqrt(length));
}

/* Floats within rounding, and zeros behind them. */
static void check_floats(const double *x, const float *v, int n, const char *what) {
    double largest = 0;
    for (int k = 0; k < n; k++) largest = fmax(largest, fabs(x[k]));
    for (int k = 0; k < n; k++) {
        if (!(fabs((double)v[k] - x[k]) <= 2e-6 * largest)) {
            fail_msg("%s: element %d of %d is %g, want %g", what, k, n, v[k], x[k]);
        }
    }
    for (int k = n; k % 16; k++) assert_true(v[k] == 0);
}

static void check_input(const struct dpk_kernels *kernels, int dtype, int n, int first, float size,
                        int kind, uint32_t seed, const char *level) {
    size_t padded = (size_t)(n + 31) / 32 * 32, v_pos = padded + 6, v_count = 35 * v_pos + padded;
    size_t padded_f32 = (size_t)(n + 15) / 16 * 16, count_f32 = 35 * v_pos + padded_f32;
    const void *pixel[36];
    float *plain = test_wino_allocate(36 * (size_t)(first + n), 4), scale[36 * 3];
    float *buffer = test_guard_alloc(DPK_WINO_POS * DPK_WINO_ROW * 4);
    int16_t *v = test_guard_alloc(v_count * 2);
    float *floats = test_guard_alloc(count_f32 * 4);
    double *x = test_wino_allocate((size_t)n, sizeof *x);
    size_t channels = (size_t)(first + n);
    for (int p = 0; p < 36; p++) {
        float *row = plain + (size_t)p * channels;
        for (size_t k = 0; k < channels; k++) {
            row[k] = kind == 1 ? size : size * test_normal(&seed);
            if (kind == 2 && k % 50 != 7) row[k] *= 1e-4f;
            if (kind == 3 && p != 14) row[k] = 0;
        }
        test_round(dtype, row, channels);
        pixel[p] = test_encode_array(dtype, row, channels);
    }
    struct dpk_wino_input in = {.pixel = pixel,
                                .next = pixel,
                                .dtype = dtype,
                                .first = first,
                                .n = n,
                                .v = v,
                                .v_pos = v_pos,
                                .scale = scale,
                                .scale_pos = 3,
                                .buffer = buffer};
    kernels->wino_input(&in);
    in.v = floats;
    in.scale = in.buffer = NULL;
    kernels->wino_input_f32(&in);
    for (int p = 0; p < 36; p++) {
        char what[100];
        for (int k = 0; k < n; k++) {
            x[k] = 0;
            for (int y = 0; y < 36; y++) {
                x[k] += test_wino_b(p / 6, y / 6) * test_wino_b(p % 6, y % 6) *
                        plain[(size_t)y * channels + (size_t)(first + k)];
            }
        }
        snprintf(what, sizeof what, "%s input kind %d size %g position %d", level, kind, size, p);
        check_vector(x, v + (size_t)p * v_pos, n, scale[3 * p], what);
        for (size_t k = (size_t)n; k < padded; k++) assert_int_equal(v[(size_t)p * v_pos + k], 0);
        check_floats(x, floats + (size_t)p * v_pos, n, what);
    }
    for (int p = 0; p < 36; p++) {
        test_guard_free((void *)(uintptr_t)pixel[p], channels * test_dtype_bytes(dtype));
    }
    test_guard_free(v, v_count * 2);
    test_guard_free(floats, count_f32 * 4);
    test_guard_free(buffer, DPK_WINO_POS * DPK_WINO_ROW * 4);
    free(x);
    free(plain);
}

/* 16 filters of c channels, plain and packed. */
struct filters {
    int c, dtype;
    float *w, gain[16];
    void *panel;
    size_t n_bytes;
};

static void draw_filters(struct filters *f, int dtype, int c, float size, int kind, uint32_t seed) {
    struct dpk_shape shape = {4, {16, 3, 3, c}};
    *f = (struct filters){.c = c, .dtype = dtype};
    f->w = test_wino_allocate(16 * 9 * (size_t)c, 4);
    for (int i = 0; i < 16 * 9 * c; i++) {
        f->w[i] = size * test_normal(&seed);
        if (kind == 1) f->w[i] = size;
        if (kind == 2 && i / c % 9 != 4) f->w[i] = 0;
        if (kind == 3) f->w[i] = i % c == 3 ? size : 0;
    }
    test_round(dtype, f->w, 16 * 9 * (size_t)c);
    for (int n = 0; n < 16; n++) f->gain[n] = 1.5f + test_random_float(&seed);
    f->panel = test_pack_weight(dtype, DPK_LAYOUT_PANEL, &shape, f->w, &f->n_bytes);
}

static void free_filters(struct filters *f) {
    test_guard_free(f->panel, f->n_bytes);
    free(f->w);
}

/* Channels first .. first + count of filter n at position p, in double. */
static void transform_filter(const struct filters *f, int n, int p, int first, int count,
                             bool gained, double *x) {
    for (int k = 0; k < count; k++) {
        x[k] = 0;
        for (int y = 0; y < 9; y++) {
            x[k] += test_wino_g(p / 6, y / 3) * test_wino_g(p % 6, y % 3) *
                    f->w[(n * 9 + y) * f->c + first + k];
        }
        if (gained) x[k] *= f->gain[n];
    }
}

/* Segment by segment and row by row, as integers. */
static void check_weights(const struct dpk_kernels *kernels, int c, float size, int kind,
                          uint32_t seed, const char *level) {
    enum { SEGMENT = DPK_WINO_SEGMENT };
    struct filters f;
    float scale[35 * 20 + 16];
    draw_filters(&f, DPK_BF16, c, size, kind, seed);
    const float *gain = seed % 2 ? f.gain : NULL;
    size_t most = (size_t)(c < SEGMENT ? c : SEGMENT), u_pos = most * 16 + 32;
    size_t u_count = 5 * u_pos + most * 16;
    int16_t *u = test_guard_alloc(u_count * 2), flat[SEGMENT];
    double x[SEGMENT];
    struct dpk_wino_weights weights = {.panel = f.panel,
                                       .dtype = DPK_BF16,
                                       .gain = gain,
                                       .tap = 16 * (size_t)c,
                                       .c = c,
                                       .segment = SEGMENT,
                                       .u = u,
                                       .u_pos = u_pos,
                                       .scale = scale,
                                       .scale_pos = 20};
    kernels->wino_scales(&weights);
    for (int i = 0; i * SEGMENT < c * 6; i++) {
        weights.row = i % 6;
        weights.first = i / 6 * SEGMENT;
        if (weights.first >= c) break;
        weights.n = c - weights.first < SEGMENT ? c - weights.first : SEGMENT;
        kernels->wino_weights(&weights);
        for (int j = 0; j < 6 * 16; j++) {
            int p = 6 * weights.row + j / 16, n = j % 16;
            char what[100];
            const int16_t *from = u + (size_t)(j / 16) * u_pos + 2 * n;
            for (int k = 0; k < weights.n; k++) flat[k] = from[k / 2 * 32 + k % 2];
            transform_filter(&f, n, p, weights.first, weights.n, gain, x);
            snprintf(what, sizeof what, "%s weights kind %d c %d size %g position %d filter %d",
                     level, kind, c, size, p, n);
            check_vector(x, flat, weights.n, scale[p * 20 + n], what);
        }
    }
    test_guard_free(u, u_count * 2);
    free_filters(&f);
}

/* A part of the channels, as floats. */
static void check_float_weights(const struct dpk_kernels *kernels, int dtype, int c, float size,
                                uint32_t seed, const char *level) {
    struct filters f;
    draw_filters(&f, dtype, c, size, 0, seed);
    int first = c / 4 * 2, n = c - first;
    size_t u_pos = (size_t)n * 16 + 32, u_count = 5 * u_pos + (size_t)n * 16;
    float *u = test_guard_alloc(u_count * 4), *flat = test_wino_allocate((size_t)n + 16, 4);
    double *x = test_wino_allocate((size_t)n, sizeof *x);
    struct dpk_wino_weights weights = {.panel = f.panel,
                                       .dtype = dtype,
                                       .gain = seed % 2 ? f.gain : NULL,
                                       .tap = 16 * (size_t)c,
                                       .first = first,
                                       .n = n,
                                       .u = u,
                                       .u_pos = u_pos};
    for (int p = 0; p < 36; p++) {
        weights.row = p / 6;
        if (p % 6 == 0) kernels->wino_weights_f32(&weights);
        for (int j = 0; j < 16; j++) {
            char what[100];
            for (int k = 0; k < n; k++) flat[k] = u[(size_t)(p % 6) * u_pos + (size_t)(16 * k + j)];
            transform_filter(&f, j, p, first, n, weights.gain, x);
            snprintf(what, sizeof what, "%s %s weights c %d position %d filter %d", level,
                     dpk_dtype_name(dtype), c, p, j);
            check_floats(x, flat, n, what);
        }
    }
    test_guard_free(u, u_count * 4);
    free(flat);
    free(x);
    free_filters(&f);
}

/* Every level has the transforms, though only those with a tile use them. Sizes at which squares
 * would leave float32's range are in. */
static void test_transforms(void **state) {
    static const float sizes[] = {1, 1e-3f, 1e15f, 1e-12f, 1e-25f};
    (void)state;
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (!dpk_isa_available(isa)) continue;
        const struct dpk_kernels *kernels = dpk_kernels_get(isa);
        for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int kind = 0; kind < 4; kind++) {
                check_input(kernels, DPK_BF16, 34 + 22 * kind, 0, sizes[i], kind, i + 1,
                            dpk_isa_name(isa));
                check_weights(kernels, 34 + 22 * kind, sizes[i], kind, i + 1, dpk_isa_name(isa));
            }
        }
        check_input(kernels, DPK_BF16, 320, 0, 1, 0, 9, dpk_isa_name(isa));
        check_input(kernels, DPK_F32, 2, 320, 1, 0, 9, dpk_isa_name(isa));
        check_input(kernels, DPK_F32, 32, 64, 1, 0, 9, dpk_isa_name(isa));
        check_weights(kernels, 330, 0.02f, 0, 9, dpk_isa_name(isa));
        check_weights(kernels, 700, 0.02f, 0, 8, dpk_isa_name(isa));
        check_input(kernels, DPK_F32, 46, 0, 3, 0, 9, dpk_isa_name(isa));
        check_float_weights(kernels, DPK_BF16, 34, 0.1f, 1, dpk_isa_name(isa));
        check_float_weights(kernels, DPK_F16, 34, 0.1f, 2, dpk_isa_name(isa));
        check_float_weights(kernels, DPK_F16, 50, 0.1f, 3, dpk_isa_name(isa));
        check_float_weights(kernels, DPK_F32, 38, 1e3f, 4, dpk_isa_name(isa));
        check_float_weights(kernels, DPK_F32, 80, 1e-3f, 5, dpk_isa_name(isa));
    }
}

/* Tiles against sums in 64 bits: rows, panels, tails; to C or added to it. */
static void check_tile(const struct dpk_tile_s16_kernel *tile, int rows, int panels, int k,
                       bool add, uint32_t seed) {
    size_t a_stride = (size_t)k + 2, a_count = (size_t)(rows - 1) * a_stride + (size_t)k;
    size_t b_count = (size_t)(panels * 16 * k), c_stride = (size_t)panels * 16;
    size_t c_count = (size_t)tile->mr * c_stride;
    int16_t *a = test_guard_alloc(a_count * 2), *b = test_guard_alloc(b_count * 2);
    float *c = test_guard_alloc(c_count * 4), *scale = test_guard_alloc((size_t)rows * 4);
    float *before = test_wino_allocate(c_count, 4);
    for (size_t i = 0; i < a_count; i++) a[i] = (int16_t)(test_random(&seed) >> 18);
    for (size_t i = 0; i < b_count; i++) b[i] = (int16_t)((int)(test_random(&seed) >> 21) - 1024);
    for (int i = 0; i < rows; i++) scale[i] = test_random_float(&seed);
    for (size_t i = 0; add && i < c_count; i++) {
        before[i] = c[i] = 1e6f * test_random_float(&seed);
    }
    struct dpk_tile_s16 t = {.a = a,
                             .a_stride = a_stride,
                             .rows = rows,
                             .n_panels = panels,
                             .k = k,
                             .add = add,
                             .b = b,
                             .b_stride = (size_t)k * 16,
                             .c = c,
                             .c_stride = c_stride,
                             .scale = scale};
    tile->fn(&t);
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < panels * 16; j++) {
            const int16_t *panel = b + (size_t)(j / 16) * (size_t)k * 16;
            size_t at = (size_t)r * c_stride + (size_t)j;
            int64_t sum = 0;
            for (int i = 0; i < k; i++) {
                sum += a[(size_t)r * a_stride + (size_t)i] *
                       (int64_t)panel[i / 2 * 32 + j % 16 * 2 + i % 2];
            }
            double part = (double)sum * scale[r], want = (double)before[at] + part;
            if (!(fabs((double)c[at] - want) <= 4e-7 * (fabs(part) + fabs((double)before[at])))) {
                fail_msg("tile %d x %d k %d add %d: [%d][%d] is %g, want %g", rows, panels, k, add,
                         r, j, c[at], want);
            }
        }
    }
    test_guard_free(a, a_count * 2);
    test_guard_free(b, b_count * 2);
    test_guard_free(c, c_count * 4);
    test_guard_free(scale, (size_t)rows * 4);
    free(before);
}

static void test_tiles(void **state) {
    (void)state;
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (!dpk_isa_available(isa) || !dpk_kernels_get(isa)->tile_s16.fn) continue;
        const struct dpk_tile_s16_kernel *tile = &dpk_kernels_get(isa)->tile_s16;
        for (int rows = 1; rows <= tile->mr; rows++) {
            for (int panels = 1; panels <= tile->np; panels++) {
                check_tile(tile, rows, panels, 34, false, (uint32_t)rows);
                check_tile(tile, rows, panels, 66, true, (uint32_t)panels);
                check_tile(tile, rows, panels, 320, true, (uint32_t)panels);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_transforms),
                                       cmocka_unit_test(test_tiles)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
