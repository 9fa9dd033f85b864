/* The quality card's parts: distances of pictures, budgets, prompts, the page's text, and a
 * measurement of a small model end to end. */
#include "../convert/conversion.h"
#include "../formats/dpk.h"
#include "../quantize/card.h"
#include "../quantize/html_impl.h"
#include "../quantize/measure_impl.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if ((call) != DPK_OK) fail_msg("%s: %s", #call, err.msg);                                  \
    } while (0)

static dpk_error err;

static uint32_t state = 1;
static uint32_t draw(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

/* ---- Distances ------------------------------------------------------------------------------- */

/* SSIM by its definition: every window on its own, two passes. */
static double plain_ssim(const uint8_t *a, const uint8_t *b, int w, int h, int n) {
    double sum = 0;
    int windows = 0;
    for (int y = 0; y + n <= h; y++)
        for (int x = 0; x + n <= w; x++, windows++) {
            double g_sum = 0, mx = 0, my = 0, vx = 0, vy = 0, cov = 0;
            for (int pass = 0; pass < 3; pass++)
                for (int i = 0; i < n; i++)
                    for (int j = 0; j < n; j++) {
                        const double dy = i - n / 2, dx = j - n / 2;
                        const double g = exp(-(dx * dx + dy * dy) / (2 * 1.5 * 1.5));
                        const uint8_t *p = a + 3 * ((y + i) * w + x + j);
                        const uint8_t *q = b + 3 * ((y + i) * w + x + j);
                        const double u = 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2];
                        const double v = 0.299 * q[0] + 0.587 * q[1] + 0.114 * q[2];
                        if (pass == 0) g_sum += g;
                        if (pass == 1) mx += g * u / g_sum, my += g * v / g_sum;
                        if (pass == 2) {
                            vx += g / g_sum * (u - mx) * (u - mx);
                            vy += g / g_sum * (v - my) * (v - my);
                            cov += g / g_sum * (u - mx) * (v - my);
                        }
                    }
            const double c1 = 6.5025, c2 = 58.5225;
            sum +=
                (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2));
        }
    return sum / windows;
}

static void test_ssim(void **unused) {
    static const struct {
        uint32_t w, h;
        int window;
    } cases[] = {{11, 11, 11}, {17, 13, 11}, {12, 40, 11}, {8, 9, 7}, {5, 3, 3}, {1, 1, 1}};
    (void)unused;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const uint32_t w = cases[k].w, h = cases[k].h;
        uint8_t *a = malloc(w * h * 3), *b = malloc(w * h * 3);
        double ssim;
        for (uint32_t i = 0; i < w * h * 3; i++) {
            const int v = (int)(draw() % 200) + (int)(draw() % 55) - 27;
            a[i] = (uint8_t)(draw() % 200);
            b[i] = (uint8_t)((a[i] * 3 + (v < 0 ? 0 : v)) / 4);
        }
        CHECK(dpk_quality_ssim(a, b, w, h, &ssim, &err));
        const double want = plain_ssim(a, b, (int)w, (int)h, cases[k].window);
        if (fabs(ssim - want) > 1e-9) fail_msg("%u x %u: SSIM %.12f, want %.12f", w, h, ssim, want);
        assert_true(want < 0.9999);
        CHECK(dpk_quality_ssim(a, a, w, h, &ssim, &err));
        assert_true(fabs(ssim - 1) < 1e-9);
        free(a);
        free(b);
    }
}

static void test_distances(void **unused) {
    const uint8_t a[4] = {0, 10, 255, 7}, b[4] = {0, 13, 251, 7};
    float x[600], y[600];
    uint16_t p[600], q[600];
    double signal = 0, noise = 0, s2 = 0, n2 = 0;
    (void)unused;
    assert_true(dpk_quality_mse(a, b, 4) == (9 + 16) / 4.0);
    assert_true(dpk_quality_psnr(0, 255) == INFINITY);
    assert_true(fabs(dpk_quality_psnr(65.025, 255) - 30) < 1e-9);
    for (int i = 0; i < 600; i++) { /* values that bfloat16 has */
        const uint32_t bits[2] = {(draw() % 0x100 + 0x3f00) << 16, (draw() % 0x100 + 0x3f00) << 16};
        memcpy(&x[i], &bits[0], 4);
        memcpy(&y[i], &bits[1], 4);
        p[i] = (uint16_t)(bits[0] >> 16);
        q[i] = (uint16_t)(bits[1] >> 16);
    }
    dpk_quality_add_typed(DPK_F32, x, y, 600, &signal, &noise);
    dpk_quality_add_typed(DPK_BF16, p, q, 600, &s2, &n2);
    assert_true(fabs(signal - s2) < 1e-9 * signal && fabs(noise - n2) < 1e-9 * noise);
    assert_true(noise > 0);
    double want = 0;
    for (int i = 0; i < 600; i++) want += ((double)y[i] - x[i]) * ((double)y[i] - x[i]);
    assert_true(fabs(noise - want) < 1e-9 * want);
}

/* ---- Budgets, prompts ------------------------------------------------------------------------ */

static void test_budgets(void **unused) {
    static const struct {
        const char *text;
        double db;
        uint64_t bytes;
    } good[] = {{"30dB", 30, 0},          {"27.5 dB", 27.5, 0}, {"500MB", 0, 500000000},
                {"1.5GB", 0, 1500000000}, {"12345", 0, 12345},  {"2MiB", 0, 2097152},
                {"3 kB", 0, 3000}};
    static const char *const bad[] = {"",      "dB",    "-3dB",   "0",     "0dB", "12 parsecs",
                                      "nandB", "infMB", "1e30GB", "30dBm", "MB"};
    struct dpk_budget b;
    (void)unused;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CHECK(dpk_budget_parse(&b, good[i].text, &err));
        if (b.psnr_db != good[i].db || b.bytes != good[i].bytes) fail_msg("%s", good[i].text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (dpk_budget_parse(&b, bad[i], &err) != DPK_EARG) fail_msg("%s was taken", bad[i]);
}

static void test_prompts(void **unused) {
    static const char path[] = "/tmp/diffpak-test-prompts.txt";
    struct dpk_prompts p;
    (void)unused;
    CHECK(dpk_prompts_open(&p, "8", &err));
    assert_int_equal(p.n, 8);
    for (uint32_t i = 0; i < p.n; i++) assert_true(strlen(p.at[i]) > 10);
    dpk_prompts_free(&p);
    assert_int_equal(dpk_prompts_open(&p, "0", &err), DPK_EARG);
    assert_int_equal(dpk_prompts_open(&p, "9", &err), DPK_EARG);
    assert_int_equal(dpk_prompts_open(&p, "/nowhere/prompts", &err), DPK_EIO);
    FILE *f = fopen(path, "w");
    fputs("\n\na cat\r\n\xc3\xa4 dog\n\nthe last", f);
    fclose(f);
    CHECK(dpk_prompts_open(&p, path, &err));
    assert_int_equal(p.n, 3);
    assert_string_equal(p.at[0], "a cat");
    assert_string_equal(p.at[1], "\xc3\xa4 dog");
    assert_string_equal(p.at[2], "the last");
    dpk_prompts_free(&p);
    f = fopen(path, "w");
    fputs("fine\nnot \xff fine\n", f);
    fclose(f);
    assert_int_equal(dpk_prompts_open(&p, path, &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "prompt 2 is not UTF-8"));
    unlink(path);
}

static void test_text(void **unused) {
    char *text = NULL;
    size_t n = 0;
    (void)unused;
    FILE *out = open_memstream(&text, &n);
    dpk_html_text(out, "<a href=\"x\">&'\xc3\xa4\xff\x01</a>");
    fclose(out);
    assert_string_equal(text, "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\xc3\xa4\xef\xbf\xbd\xef\xbf"
                              "\xbd&lt;/a&gt;");
    free(text);
}

/* ---- A model --------------------------------------------------------------------------------- */

static char folder[] = "/tmp/diffpak-test-card-XXXXXX";
static char model[64];

static int convert(void **unused) {
    const struct dpk_convert_options options = {.source = "tests/data/tiny-sdxl",
                                                .dtype = DPK_BF16};
    struct dpk_conversion *c = NULL;
    int rc = DPK_OK;
    (void)unused;
    if (!mkdtemp(folder)) return -1;
    snprintf(model, sizeof model, "%s/model.dpk", folder);
    rc = dpk_conversion_open(&c, &options, &err);
    if (rc == DPK_OK) rc = dpk_builder_write(dpk_conversion_builder(c), model, 1, NULL, NULL, &err);
    dpk_conversion_close(c);
    return rc;
}

static int clean(void **unused) {
    (void)unused;
    unlink(model);
    return rmdir(folder); /* fails if anything was left */
}

static int count_calls(void *arg, const char *what, double fraction) {
    int *calls = arg;
    assert_true(strlen(what) > 5 && fraction >= 0 && fraction <= 1.001);
    return --*calls == 0;
}

/* Run a card on the model with one scheme and the rules of a filter. */
static int make(struct dpk_card *c, const char *scheme_text, const char *rules,
                struct dpk_card_options *options) {
    static struct dpk_scheme scheme;
    static struct dpk_filter *filter;
    static const char *const prompts[] = {"a red circle", "a blue square"};
    struct dpk_file f;
    int rc;
    scheme = (struct dpk_scheme){0};
    CHECK(dpk_scheme_parse(&scheme, scheme_text, &err));
    CHECK(dpk_filter_parse(&filter, "rules", rules, strlen(rules), &err));
    CHECK(dpk_file_open(&f, model, &err));
    options->input = model;
    options->scheme = &scheme;
    options->filter = filter;
    options->how.prompts = prompts;
    if (!options->how.n_prompts) options->how.n_prompts = 1;
    options->how.threads = 1;
    if (!options->how.size) options->how.size = 96;
    rc = dpk_card_make(c, &f, options, &err);
    c->subject.filter_id = "rules"; /* outlives the filter */
    for (size_t i = 0; i < c->layers.n; i++) c->layers.layer[i].reason = "";
    dpk_filter_free(filter);
    dpk_file_close(&f);
    return rc;
}

static void test_nothing_quantized(void **unused) {
    struct dpk_card c;
    struct dpk_card_options o = {.measure = true, .max_error = 0, .how = {.steps = 2}};
    (void)unused;
    o.how.n_prompts = 2;
    CHECK(make(&c, "int8-dynamic", "skip *", &o));
    assert_int_equal(c.measure.n_pictures, 2);
    assert_true(c.measure.latent_error == 0 && c.measure.psnr == INFINITY);
    assert_true(c.measure.picture[1].seed == 1 && fabs(c.measure.ssim - 1) < 1e-9);
    assert_true(memcmp(c.measure.picture[0].before, c.measure.picture[1].before,
                       (size_t)c.measure.width * c.measure.height * 3) != 0);
    dpk_card_free(&c);
}

/* A layer tried alone in the running model gives the picture that a file gives in which it alone is
 * quantized. */
static void test_alone_is_like_a_file(void **unused) {
    static const char *const rules[] = {"quantize unet.*.ff.net.*\nquantize unet.*.to_kv\nskip *",
                                        "quantize text_encoder_2.*.mlp.*\nskip *",
                                        "quantize unet.mid*\nskip *"};
    (void)unused;
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        struct dpk_card c;
        struct dpk_card_options o = {.measure = true, .max_error = -1, .how = {.steps = 2}};
        char one[512];
        o.sensitivity = true;
        CHECK(make(&c, "int4-weight:32", rules[i], &o));
        assert_true(c.alone.n_units == c.layers.n_quantized && c.alone.n_units >= 2);
        /* The one that matters most. */
        size_t worst = 0;
        for (size_t k = 0; k < c.alone.n_units; k++)
            if (c.alone.unit[k].error > c.alone.unit[worst].error) worst = k;
        const double alone = dpk_alone_psnr(&c.alone.unit[worst]), together = c.measure.psnr;
        snprintf(one, sizeof one, "quantize %s\nskip *", c.alone.unit[worst].name);
        dpk_card_free(&c);
        o.sensitivity = false;
        CHECK(make(&c, "int4-weight:32", one, &o));
        assert_int_equal(c.layers.n_quantized, 1);
        /* One is of floats, the other of bytes. */
        if (!(fabs(alone - c.measure.psnr) < 0.5) || !(alone < 50))
            fail_msg("%s: %.3f dB alone, a file with it %.3f dB", one, alone, c.measure.psnr);
        if (!(together < alone + 3)) fail_msg("%.3f dB alone, %.3f dB all", alone, together);
        size_t used = 0;
        for (size_t k = 0; k < c.measure.n_layers; k++)
            if (c.measure.layer[k].uses) {
                used++;
                assert_true(c.layers.layer[k].quantized);
                assert_true(dpk_measure_layer_share(&c.measure, k) == 1);
                assert_true(dpk_measure_layer_error(&c.measure, k) > 0.005);
            }
        assert_int_equal(used, 1);
        dpk_card_free(&c);
    }
}

static void test_groups(void **unused) {
    struct dpk_card c;
    struct dpk_card_options o = {.max_error = -1, .budget = "1dB", .how = {.steps = 1, .size = 16}};
    size_t n = 0, largest = 0;
    (void)unused;
    CHECK(make(&c, "int8-weight", "quantize *", &o));
    assert_int_equal(c.layers.n_quantized, c.layers.n); /* 1 dB: all of them */
    assert_true(c.layers.n > 160 && c.alone.n_units < c.layers.n && c.alone.n_units > 20);
    for (size_t i = 0; i < c.alone.n_units; i++) {
        n += c.alone.unit[i].n_layers;
        if (c.alone.unit[i].n_layers > largest) largest = c.alone.unit[i].n_layers;
    }
    assert_int_equal(n, c.layers.n);
    assert_true(largest > 2);
    dpk_card_free(&c);
}

static void test_stopped(void **unused) {
    (void)unused;
    for (int after = 1; after < 12; after += 3) {
        struct dpk_card c;
        int calls = after;
        char path[96];
        snprintf(path, sizeof path, "%s/out.dpk", folder);
        struct dpk_card_options o = {.measure = true,
                                     .max_error = -1,
                                     .sensitivity = after > 6,
                                     .output = path,
                                     .how = {.steps = 2}};
        o.how.progress = count_calls;
        o.how.progress_arg = &calls;
        assert_int_equal(make(&c, "int8-weight", "quantize unet.*.to_qkv\nskip *", &o),
                         DPK_ECANCELLED);
        assert_true(access(path, F_OK) != 0);
        dpk_card_free(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ssim),
        cmocka_unit_test(test_distances),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_nothing_quantized),
        cmocka_unit_test(test_alone_is_like_a_file),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_stopped),
    };
    return cmocka_run_group_tests(tests, convert, clean);
}
