/* Tiles and row quantization of products of integers: exact, at every level, with and without dot
 * products of bytes. */
#include "../quantize/quantizer.h"
#include "support_guard.h"
#include "support_int8.h"
#include "support_pack.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Tiles ----------------------------------------------------------------------------------- */

/* Where k of a row stands, by the format. */
static void store_a(int format, void *row, int k, int v) {
    static const int order[4] = {0, 2, 1, 3};
    if (format == DPK_A_S16) ((int16_t *)row)[k / 4 * 4 + order[k % 4]] = (int16_t)v;
    else if (format == DPK_A_U8) ((uint8_t *)row)[k] = (uint8_t)(v + 128);
    else ((int8_t *)row)[k] = (int8_t)v;
}

/* extreme: 0 random, else all values of A and B are one of the range's ends. */
static int draw(uint32_t *seed, int extreme) {
    if (!extreme) return test_random_int(seed, -128, 127);
    return extreme & 1 ? -128 : 127;
}

struct tile_case {
    int n_seg, k_len[3], n_panels, extreme_a, extreme_b;
};

static void check_tile(int v, const struct tile_case *c, uint32_t seed) {
    const struct dpk_tile_kernel *kernel = dpk_cpu_tile_s8(v / 2, v % 2);
    assert_non_null(kernel);
    enum { MAX_MR = 16 };
    int mr = kernel->mr, n = 16 * c->n_panels, k_all = 0,
        size = kernel->a_format == DPK_A_S16 ? 2 : 1;
    for (int s = 0; s < c->n_seg; s++) k_all += c->k_len[s];
    int8_t *a = int8_need((size_t)(mr * k_all)), *b = int8_need((size_t)(n * k_all));
    for (int i = 0; i < mr * k_all; i++) a[i] = (int8_t)draw(&seed, c->extreme_a);
    for (int i = 0; i < n * k_all; i++) b[i] = (int8_t)draw(&seed, c->extreme_b);
    size_t b_bytes, c_bytes = (size_t)(mr * n) * 4;
    struct dpk_shape shape = {2, {n, k_all}};
    void *panels = test_pack_integers(DPK_S8, DPK_LAYOUT_PANEL, &shape, b, &b_bytes);
    const void *rows[3 * MAX_MR];
    int32_t *offset = test_guard_alloc((size_t)n * 4), *want = int8_need(c_bytes);
    float *scale_a = test_guard_alloc((size_t)mr * 4), *scale_b = test_guard_alloc((size_t)n * 4);
    for (int s = 0, at = 0; s < c->n_seg; at += c->k_len[s++])
        for (int r = 0; r < mr; r++) {
            void *row = test_guard_alloc((size_t)(c->k_len[s] * size));
            for (int k = 0; k < c->k_len[s]; k++)
                store_a(kernel->a_format, row, k, a[r * k_all + at + k]);
            rows[s * mr + r] = row;
        }
    for (int j = 0; j < n; j++) {
        int32_t sum = 0;
        for (int k = 0; k < k_all; k++) sum += b[j * k_all + k];
        offset[j] = (int32_t)(-128 * (int64_t)sum);
        scale_b[j] = 0.01f + 0.001f * (float)j;
        for (int r = 0; r < mr; r++) {
            int32_t dot = 0;
            for (int k = 0; k < k_all; k++) dot += a[r * k_all + k] * b[j * k_all + k];
            want[r * n + j] = dot;
        }
    }
    for (int r = 0; r < mr; r++) scale_a[r] = 0.5f + (float)r;
    struct dpk_tile t = {.a = rows, .k_len = c->k_len, .n_seg = c->n_seg, .n_panels = c->n_panels};
    t.b = panels;
    t.b_stride = b_bytes / (size_t)c->n_panels;
    t.c = test_guard_alloc(c_bytes);
    t.c_stride = n;
    t.offset = offset;
    kernel->fn(&t);
    const int32_t *got = (const int32_t *)(const void *)t.c;
    for (int i = 0; i < mr * n; i++)
        if (got[i] != want[i])
            fail_msg("%s: k %d, panels %d, sum %d is %d, want %d", int8_variant_name(v), k_all,
                     c->n_panels, i, got[i], want[i]);
    t.scale_a = scale_a;
    t.scale_b = scale_b;
    kernel->fn(&t);
    for (int i = 0; i < mr * n; i++) {
        float w = (float)want[i] * scale_a[i / n] * scale_b[i % n];
        if (t.c[i] != w)
            fail_msg("%s: scaled %d is %g, want %g", int8_variant_name(v), i, t.c[i], w);
    }
    for (int s = 0; s < c->n_seg; s++)
        for (int r = 0; r < mr; r++)
            test_guard_free((void *)(uintptr_t)rows[s * mr + r], (size_t)(c->k_len[s] * size));
    test_guard_free(panels, b_bytes);
    test_guard_free(t.c, c_bytes);
    test_guard_free(offset, (size_t)n * 4);
    test_guard_free(scale_a, (size_t)mr * 4);
    test_guard_free(scale_b, (size_t)n * 4);
    free(a), free(b), free(want);
}

static void test_tiles(void **state) {
    (void)state;
    for (int v = 0; v < INT8_VARIANTS; v++) {
        if (!int8_backends[v][1]) continue;
        int np = dpk_cpu_tile_s8(v / 2, v % 2)->np;
        uint32_t seed = 5;
        for (int i = 0; i < 40; i++) {
            struct tile_case c = {.n_seg = test_random_int(&seed, 1, 3)};
            for (int s = 0; s < c.n_seg; s++) c.k_len[s] = 4 * test_random_int(&seed, 1, 30);
            c.n_panels = test_random_int(&seed, 1, np);
            check_tile(v, &c, seed);
        }
        /* The ends of the range, up to the longest sum that 32 bits hold. */
        static const int longest[] = {4, 64, 10240, DPK_MAX_INT8_K / 4 * 4};
        for (int k = 0; k < 4; k++)
            for (int e = 0; e < 4; e++) {
                struct tile_case c = {1, {longest[k]}, 1, 2 + e % 2, 2 + e / 2};
                check_tile(v, &c, seed);
            }
    }
}

/* ---- Rows ------------------------------------------------------------------------------------ */

static void check_row(int isa, int format, int dtype, int convention, const float *plain, size_t n,
                      const char *what) {
    const struct dpk_kernels *k = dpk_kernels_get(isa);
    size_t padded = (n + 3) / 4 * 4, bytes = padded * (format == DPK_A_S16 ? 2 : 1);
    int8_t *want = int8_need(n);
    void *x = test_encode_array(dtype, plain, n), *row = int8_need(bytes);
    float scale, top = 0;
    for (size_t i = 0; i < n; i++) top = fmaxf(top, fabsf(plain[i]));
    if (k->magnitude(x, dtype, n) != top) fail_msg("%s: magnitude of %s", dpk_isa_name(isa), what);
    dpk_quantize_activation_s8(convention, dtype, plain, n, want, &scale);
    struct dpk_quantize t = {
        x, dtype, format, n, scale, convention == DPK_CONVENTION_TORCHAO, test_guard_alloc(bytes)};
    k->quantize(&t);
    memset(row, 0, bytes);
    for (size_t i = 0; i < padded; i++) store_a(format, row, (int)i, i < n ? want[i] : 0);
    if (memcmp(row, t.q, bytes) != 0)
        fail_msg("%s: format %d, %s, rule %d, %zu values, %s", dpk_isa_name(isa), format,
                 dpk_dtype_name(dtype), convention, n, what);
    test_guard_free(t.q, bytes);
    test_guard_free(x, n * test_dtype_bytes(dtype));
    free(want), free(row);
}

static void test_rows(void **state) {
    static const int dtypes[] = {DPK_F32, DPK_BF16};
    float *x = int8_need(10240 * sizeof *x);
    uint32_t seed = 77;
    (void)state;
    for (int i = 0; i < 260; i++) {
        size_t n = i < 12 ? 10240 : (size_t)test_random_int(&seed, 1, 150);
        for (int d = 0; d < 2; d++) {
            char what[32];
            snprintf(what, sizeof what, "row %d, kind %d", i, i % 8);
            int8_draw_row(&seed, x, n, dtypes[d], i % 8);
            for (int isa = 0; isa < DPK_N_ISAS; isa++)
                for (int f = DPK_A_S8; f <= DPK_A_S16 && dpk_isa_available(isa); f++) {
                    check_row(isa, f, dtypes[d], DPK_CONVENTION_DIFFUSION_FAST, x, n, what);
                    check_row(isa, f, dtypes[d], DPK_CONVENTION_TORCHAO, x, n, what);
                }
        }
    }
    /* A value that is not finite is never lost, wherever it stands. */
    for (size_t n = 1; n < 140; n += 7)
        for (int d = 0; d < 2; d++)
            for (int isa = 0; isa < DPK_N_ISAS; isa++) {
                if (!dpk_isa_available(isa)) continue;
                for (size_t i = 0; i < n; i++) x[i] = 1;
                size_t at = test_random(&seed) % n;
                x[at] = NAN;
                void *p = test_encode_array(dtypes[d], x, n);
                assert_false(isfinite(dpk_kernels_get(isa)->magnitude(p, dtypes[d], n)));
                test_guard_free(p, n * test_dtype_bytes(dtypes[d]));
            }
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiles), cmocka_unit_test(test_rows)};
    return cmocka_run_group_tests(tests, int8_set_up, int8_tear_down);
}
