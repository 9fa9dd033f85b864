/* Sizes that a model paints instead of those asked for: the same choice as diffusers'. (Pictures
 * resized and cropped: the binned case of test_pipeline.c.) */
#include "support_golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static dpk_model *model;
static dpk_session *session;

static int open_model(void **state) {
    (void)state;
    dpk_error err;
    model = golden_model("sizes", "tests/data/tiny-pixart", "--dtype f32");
    if (dpk_session_create(&session, model, NULL, &err)) fail_msg("%s", err.msg);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    dpk_session_free(session);
    dpk_model_free(model);
    return 0;
}

/* Height and width asked for, and what diffusers' classify_height_width_bin makes of them. */
static const uint32_t sizes[][4] = {
    {1024, 1024, 1024, 1024}, {1, 32768, 512, 2048},    {32768, 1, 2048, 512},
    {500, 333, 1216, 832},    {100, 103, 1024, 1024},   {101, 100, 1024, 1024},
    {970, 1000, 960, 1024},   {345, 1000, 576, 1664},   {1275, 1000, 1152, 896},
    {1074, 2527, 640, 1536},  {2329, 634, 2048, 512},   {1615, 2573, 768, 1280},
    {2041, 2662, 896, 1152},  {2021, 1162, 1344, 768},  {2356, 1059, 1472, 704},
    {885, 2026, 640, 1536},   {2315, 2351, 1024, 1024}, {2051, 1726, 1088, 896},
    {1049, 2700, 640, 1600},  {721, 2242, 576, 1792},   {1697, 162, 2048, 512},
};

static dpk_info plan(const dpk_params *p) {
    dpk_error err;
    dpk_info info;
    if (dpk_session_plan(session, p, &info, &err)) fail_msg("%s", err.msg);
    return info;
}

static void test_nearest_ratio(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        dpk_params p = dpk_params_default();
        p.height = sizes[i][0], p.width = sizes[i][1];
        dpk_info info = plan(&p);
        assert_int_equal(info.height, sizes[i][0]);
        assert_int_equal(info.width, sizes[i][1]);
        assert_int_equal(info.paint_height, sizes[i][2]);
        assert_int_equal(info.paint_width, sizes[i][3]);
        assert_int_equal(info.latent_height, sizes[i][2] / 8);
        assert_int_equal(info.latent_width, sizes[i][3] / 8);
    }
}

static void test_without_the_table(void **state) {
    (void)state;
    dpk_error err;
    dpk_info info;
    dpk_params p = dpk_params_default();
    info = plan(&p); /* the default is in the table */
    assert_int_equal(info.width, 1024);
    assert_int_equal(info.paint_width, 1024);
    p.height = 48, p.width = 80, p.no_binning = 1;
    info = plan(&p);
    assert_int_equal(info.paint_height, 48);
    assert_int_equal(info.paint_width, 80);
    p.width = 72; /* patches of two latents */
    assert_int_equal(dpk_session_plan(session, &p, &info, &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "width is 72, want a multiple of 16"));
    p.no_binning = 0, p.width = 40000;
    assert_int_equal(dpk_session_plan(session, &p, &info, &err), DPK_EARG);
}

/* What the converter wrote. */
static void test_table_as_text(void **state) {
    (void)state;
    const char *bins = dpk_model_meta(model, "pipeline.bins");
    assert_non_null(bins);
    size_t n = 1;
    for (const char *s = bins; *s; s++) n += *s == ' ';
    assert_int_equal(n, 33);
    assert_int_equal(strncmp(bins, "0.25:512x2048 0.28:512x1856 ", 28), 0);
    assert_non_null(strstr(bins, " 2.09:1472x704 "));
    assert_non_null(strstr(bins, " 4.00:2048x512"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nearest_ratio),
        cmocka_unit_test(test_without_the_table),
        cmocka_unit_test(test_table_as_text),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
