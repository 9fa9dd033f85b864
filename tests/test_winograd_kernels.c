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

static void *allocate(size_t n, size_t bytes) {
    void *p = calloc(n ? n : 1, bytes);
    assert_non_null(p);
    return p;
}

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

static void check_input(const struct dpk_kernels *kernels, int n, int first, float size, int kind,
                        uint32_t seed, const char *level) {
    size_t padded = (size_t)(n + 31) / 32 * 32, v_pos = padded + 6, v_count = 35 * v_pos + padded;
    const uint16_t *pixel[36];
    float *plain = allocate(36 * (size_t)(first + n), 4), scale[36 * 3];
    float *buffer = test_guard_alloc(DPK_WINO_POS * DPK_WINO_ROW * 4);
    int16_t *v = test_guard_alloc(v_count * 2);
    double *x = allocate((size_t)n, sizeof *x);
    size_t channels = (size_t)(first + n);
    for (int p = 0; p < 36; p++) {
        float *row = plain + (size_t)p * channels;
        for (size_t k = 0; k < channels; k++) {
            row[k] = kind == 1 ? size : size * test_normal(&seed);
            if (kind == 2 && k % 50 != 7) row[k] *= 1e-4f;
            if (kind == 3 && p != 14) row[k] = 0;
        }
        test_round(DPK_BF16, row, channels);
        pixel[p] = test_encode_array(DPK_BF16, row, channels);
    }
    struct dpk_wino_input in = {pixel, pixel, first, n, v, v_pos, scale, 3, buffer};
    kernels->wino_input(&in);
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
    }
    for (int p = 0; p < 36; p++) test_guard_free((void *)(uintptr_t)pixel[p], channels * 2);
    test_guard_free(v, v_count * 2);
    test_guard_free(buffer, DPK_WINO_POS * DPK_WINO_ROW * 4);
    free(x);
    free(plain);
}

static void check_weights(const struct dpk_kernels *kernels, int c, float size, int kind,
                          uint32_t seed, const char *level) {
    struct dpk_shape shape = {4, {16, 3, 3, c}};
    size_t n_bytes, u_pos = (size_t)c * 16 + 32, u_count = 35 * u_pos + (size_t)c * 16;
    float *w = allocate(16 * 9 * (size_t)c, 4), scale[35 * 20 + 16];
    int16_t *u = test_guard_alloc(u_count * 2);
    double *x = allocate((size_t)c, sizeof *x);
    for (int i = 0; i < 16 * 9 * c; i++) {
        w[i] = size * test_normal(&seed);
        if (kind == 1) w[i] = size;
        if (kind == 2 && i / c % 9 != 4) w[i] = 0;
        if (kind == 3) w[i] = i % c == 3 ? size : 0;
    }
    test_round(DPK_BF16, w, 16 * 9 * (size_t)c);
    uint16_t *panel = test_pack_weight(DPK_BF16, DPK_LAYOUT_PANEL, &shape, w, &n_bytes);
    struct dpk_wino_weights weights = {panel, c, u, u_pos, scale, 20};
    kernels->wino_weights(&weights);
    for (int p = 0; p < 36; p++) {
        for (int n = 0; n < 16; n++) {
            char what[100];
            for (int k = 0; k < c; k++) {
                x[k] = 0;
                for (int y = 0; y < 9; y++) {
                    x[k] += test_wino_g(p / 6, y / 3) * test_wino_g(p % 6, y % 3) *
                            w[(n * 9 + y) * c + k];
                }
            }
            snprintf(what, sizeof what, "%s weights kind %d c %d size %g position %d filter %d",
                     level, kind, c, size, p, n);
            for (int k = 0; k < c; k += DPK_WINO_SEGMENT) { /* pairs of channels: even ones, odd */
                int end = c - k < DPK_WINO_SEGMENT ? c : k + DPK_WINO_SEGMENT;
                double *both = allocate((size_t)(end - k), sizeof *both);
                int16_t *flat = allocate((size_t)(end - k), sizeof *flat);
                for (int i = k; i < end; i++) {
                    both[i - k] = x[i];
                    flat[i - k] = u[(size_t)p * u_pos + (size_t)(i / 2 * 32 + 2 * n + i % 2)];
                }
                check_vector(both, flat, end - k, scale[p * 20 + n], what);
                free(both);
                free(flat);
            }
        }
    }
    test_guard_free(panel, n_bytes);
    test_guard_free(u, u_count * 2);
    free(x);
    free(w);
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
                check_input(kernels, 34 + 22 * kind, 0, sizes[i], kind, i + 1, dpk_isa_name(isa));
                check_weights(kernels, 34 + 22 * kind, sizes[i], kind, i + 1, dpk_isa_name(isa));
            }
        }
        check_input(kernels, 320, 0, 1, 0, 9, dpk_isa_name(isa));
        check_input(kernels, 2, 320, 1, 0, 9, dpk_isa_name(isa));
        check_input(kernels, 32, 64, 1, 0, 9, dpk_isa_name(isa));
        check_weights(kernels, 330, 0.02f, 0, 9, dpk_isa_name(isa));
        check_weights(kernels, 700, 0.02f, 0, 9, dpk_isa_name(isa));
    }
}

/* Tiles against sums in 64 bits: rows, panels, segments, tails. */
static void check_tile(const struct dpk_tile_s16_kernel *tile, int rows, int panels, int k,
                       int segment, uint32_t seed) {
    size_t a_stride = (size_t)k + 2, n_seg = (size_t)((k + segment - 1) / segment);
    size_t a_count = (size_t)(rows - 1) * a_stride + (size_t)k, b_count = (size_t)(panels * 16 * k);
    size_t c_stride = (size_t)panels * 16, c_count = (size_t)tile->mr * c_stride;
    int16_t *a = test_guard_alloc(a_count * 2), *b = test_guard_alloc(b_count * 2);
    float *c = test_guard_alloc(c_count * 4), *scale = test_guard_alloc(n_seg * (size_t)rows * 4);
    for (size_t i = 0; i < a_count; i++) a[i] = (int16_t)(test_random(&seed) >> 18);
    for (size_t i = 0; i < b_count; i++) b[i] = (int16_t)((int)(test_random(&seed) >> 21) - 1024);
    for (size_t i = 0; i < n_seg * (size_t)rows; i++) scale[i] = test_random_float(&seed);
    struct dpk_tile_s16 t = {a, a_stride,       rows, panels,   k,     segment,
                             b, (size_t)k * 16, c,    c_stride, scale, (size_t)rows};
    tile->fn(&t);
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < panels * 16; j++) {
            double want = 0, magnitude = 0;
            for (int first = 0; first < k; first += segment) {
                int64_t sum = 0;
                for (int i = first; i < k && i < first + segment; i++) {
                    const int16_t *panel = b + (size_t)(j / 16) * (size_t)k * 16;
                    sum += a[(size_t)r * a_stride + (size_t)i] *
                           (int64_t)panel[i / 2 * 32 + j % 16 * 2 + i % 2];
                }
                want += (double)sum * scale[first / segment * rows + r];
                magnitude += fabs((double)sum * scale[first / segment * rows + r]);
            }
            double got = c[(size_t)r * c_stride + (size_t)j];
            if (!(fabs(got - want) <= 4e-7 * magnitude)) {
                fail_msg("tile %d x %d k %d of %d: [%d][%d] is %g, want %g", rows, panels, k,
                         segment, r, j, got, want);
            }
        }
    }
    test_guard_free(a, a_count * 2);
    test_guard_free(b, b_count * 2);
    test_guard_free(c, c_count * 4);
    test_guard_free(scale, n_seg * (size_t)rows * 4);
}

static void test_tiles(void **state) {
    (void)state;
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (!dpk_isa_available(isa) || !dpk_kernels_get(isa)->tile_s16.fn) continue;
        const struct dpk_tile_s16_kernel *tile = &dpk_kernels_get(isa)->tile_s16;
        for (int rows = 1; rows <= tile->mr; rows++) {
            for (int panels = 1; panels <= tile->np; panels++) {
                check_tile(tile, rows, panels, 34, 320, (uint32_t)rows);
                check_tile(tile, rows, panels, 66, 32, (uint32_t)panels);
                check_tile(tile, rows, panels, 640, 320, (uint32_t)panels);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_transforms),
                                       cmocka_unit_test(test_tiles)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
