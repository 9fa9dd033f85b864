/* Layer filters: presets against the recipe's own lists, filter files right and wrong. */
#include "../formats/source.h"
#include "../quantize/filter.h"
#include "../quantize/layers.h"
#include "support_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct dpk_filter *open_filter(const char *spec) {
    struct dpk_filter *f;
    dpk_error err;
    if (dpk_filter_open(&f, spec, &err)) fail_msg("%s", err.msg);
    return f;
}
static struct dpk_filter *parse(const char *text) {
    struct dpk_filter *f;
    dpk_error err;
    if (dpk_filter_parse(&f, "rules", text, strlen(text), &err)) fail_msg("%s", err.msg);
    return f;
}

static bool decide(const struct dpk_filter *f, const char *name, int kind, int64_t in, int64_t out,
                   int64_t rows) {
    const struct dpk_filter_layer layer = {name, kind, in, out, rows};
    const char *reason = NULL;
    const bool yes = dpk_filter_decide(f, &layer, &reason);
    assert_true(reason && *reason);
    assert_true(dpk_filter_decide(f, &layer, NULL) == yes);
    return yes;
}

/* ---- Presets --------------------------------------------------------------------------------- */

/* The recipe's list as a filter file, with the 1x1 convolutions that the preset leaves alone. */
static const char recipe_file[] = "# diffusion-fast\n"
                                  "skip kind=conv1x1 in!=128 out!=128\n"
                                  "min_in_features 17\n"
                                  "skip 256 128\n skip 320 640\n skip 512 256\n skip 512 512\n"
                                  "skip 512 1536\n skip 640 320\n skip 640 640\n skip 640 1280\n"
                                  "skip 640 1920\n skip 640 5120\n skip 960 320\n skip 960 640\n"
                                  "skip 1280 640\n skip 1920 640\n skip 1920 1280\n"
                                  "skip 2048 1280\n skip 2048 2560\n skip 2560 1280\n"
                                  "skip 2816 1280\n";

static void check_model(const struct dpk_filter *f, const cJSON *model, const char *component,
                        int want_quantized, int want_all) {
    int n = 0, quantized = 0;
    const cJSON *l;
    cJSON_ArrayForEach(l, cJSON_GetObjectItem(model, "linears")) {
        char name[256];
        const int in = cJSON_GetArrayItem(l, 1)->valueint, out = cJSON_GetArrayItem(l, 2)->valueint;
        snprintf(name, sizeof name, "%s.%s", component, cJSON_GetArrayItem(l, 0)->valuestring);
        const bool yes = decide(f, name, DPK_LAYER_LINEAR, in, out, 0);
        if (yes != (bool)cJSON_IsTrue(cJSON_GetArrayItem(l, 4)))
            fail_msg("%s %d to %d: decided %d", name, in, out, yes);
        n++;
        quantized += yes;
    }
    assert_int_equal(n, want_all);
    assert_int_equal(quantized, want_quantized);
    cJSON_ArrayForEach(l, cJSON_GetObjectItem(model, "convs_1x1")) {
        char name[256];
        const int in = cJSON_GetArrayItem(l, 1)->valueint, out = cJSON_GetArrayItem(l, 2)->valueint;
        snprintf(name, sizeof name, "%s.%s", component, cJSON_GetArrayItem(l, 0)->valuestring);
        /* A swapped one is a linear like any other; 256 to 128 is on the list of pairs. */
        const bool want = cJSON_IsTrue(cJSON_GetArrayItem(l, 4)) && !(in == 256 && out == 128);
        if (decide(f, name, DPK_LAYER_CONV1X1, in, out, 0) != want) fail_msg("%s", name);
    }
}

static void test_recipe(void **state) {
    size_t n;
    uint8_t *text = get_file("tests/data/golden/quant_layers.json", &n);
    cJSON *json;
    dpk_error err;
    (void)state;
    if (dpk_json_parse(&json, "quant_layers.json", (char *)text, n, &err)) fail_msg("%s", err.msg);
    const cJSON *models = cJSON_GetObjectItem(json, "models");
    struct dpk_filter *filters[] = {open_filter("diffusion-fast"), parse(recipe_file)};
    for (int i = 0; i < 2; i++) {
        const struct dpk_filter *f = filters[i];
        check_model(f, cJSON_GetObjectItem(models, "sdxl unet"), "unet", 397, 533);
        check_model(f, cJSON_GetObjectItem(models, "ssd-1b unet"), "unet", 188, 278);
        check_model(f, cJSON_GetObjectItem(models, "sd15 unet"), "unet", 106, 136);
        check_model(f, cJSON_GetObjectItem(models, "pixart transformer"), "transformer", 206, 206);
        check_model(f, cJSON_GetObjectItem(models, "vae"), "vae", 0, 4);
        dpk_filter_free(filters[i]);
    }
    cJSON_Delete(json);
    free(text);
}

static void test_presets(void **state) {
    (void)state;
    struct dpk_filter *f = open_filter("diffusion-fast");
    assert_string_equal(dpk_filter_id(f), "diffusion-fast");
    assert_true(decide(f, "unet.a", DPK_LAYER_LINEAR, 17, 8, 0));
    assert_false(decide(f, "unet.a", DPK_LAYER_LINEAR, 16, 1280, 0));
    assert_false(decide(f, "text_encoder.a", DPK_LAYER_LINEAR, 768, 768, 0));
    assert_false(decide(f, "unetx.a", DPK_LAYER_LINEAR, 768, 768, 0));
    assert_false(decide(f, "unet.a", DPK_LAYER_CONV, 128, 768, 0));
    assert_true(decide(f, "unet.a", DPK_LAYER_CONV1X1, 128, 768, 0));
    assert_true(decide(f, "unet.a", DPK_LAYER_CONV1X1, 768, 128, 0));
    assert_false(decide(f, "unet.a", DPK_LAYER_CONV1X1, 768, 768, 0));
    dpk_filter_free(f);
    f = open_filter("all");
    assert_true(decide(f, "text_encoder.a", DPK_LAYER_CONV, 1, 1, 0));
    dpk_filter_free(f);
    f = open_filter("none");
    assert_false(decide(f, "unet.a", DPK_LAYER_LINEAR, 1280, 1280, 0));
    dpk_filter_free(f);
    dpk_filter_free(NULL);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static void test_globs(void **state) {
    static const struct {
        const char *glob, *name;
        bool match;
    } cases[] = {
        {"*", "", true},
        {"", "", true},
        {"", "a", false},
        {"a", "", false},
        {"unet.*", "unet.x.y", true},
        {"unet.*", "vae.unet.x", false},
        {"*.to_q", "unet.attn1.to_q", true},
        {"*.to_q", "unet.attn1.to_qkv", false},
        {"a*b*c", "a-b-b-c", true},
        {"a*b*c", "a-c-b", false},
        {"*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
        {"?b?", "abc", true},
        {"?", "", false},
        {"**x**", "x", true},
        {"[a]", "a", false},
        {"a.b", "axb", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (dpk_glob_match(cases[i].glob, cases[i].name) != cases[i].match)
            fail_msg("%s and %s: %d", cases[i].glob, cases[i].name, !cases[i].match);
}

static void test_rules(void **state) {
    (void)state;
    struct dpk_filter *f = parse("\r\n  # nothing here\n"
                                 "quantize unet.keep.*   # wins over all that follows\r\n"
                                 "skip *.to_kv in>=2048 rows<100\n"
                                 "skip\tkind=conv1x1\n"
                                 "skip out%3 kind!=conv\n"
                                 "quantize 20 30\n"
                                 "skip in<=20\nskip out>1000\nskip out=77\nskip in!=21 in<24");
    assert_true(decide(f, "unet.keep.x", DPK_LAYER_CONV1X1, 1, 3, 0));
    assert_false(decide(f, "unet.a.to_kv", DPK_LAYER_LINEAR, 2048, 10, 99));
    assert_true(decide(f, "unet.a.to_kv", DPK_LAYER_LINEAR, 2048, 10, 100));
    assert_true(decide(f, "unet.a.to_kv", DPK_LAYER_LINEAR, 2047, 10, 9));
    assert_true(decide(f, "unet.a.to_kv", DPK_LAYER_LINEAR, 2048, 10, 0)); /* rows unknown */
    assert_false(decide(f, "unet.b", DPK_LAYER_CONV1X1, 64, 64, 0));
    assert_false(decide(f, "unet.b", DPK_LAYER_LINEAR, 64, 63, 0));
    assert_true(decide(f, "unet.b", DPK_LAYER_CONV, 64, 63, 0));
    assert_false(decide(f, "unet.b", DPK_LAYER_LINEAR, 20, 30, 0)); /* 30 % 3 came first */
    assert_false(decide(f, "unet.b", DPK_LAYER_LINEAR, 20, 40, 0));
    assert_true(decide(f, "unet.b", DPK_LAYER_LINEAR, 21, 40, 0));
    assert_false(decide(f, "unet.b", DPK_LAYER_LINEAR, 22, 40, 0));
    assert_true(decide(f, "unet.b", DPK_LAYER_LINEAR, 24, 1000, 0));
    assert_false(decide(f, "unet.b", DPK_LAYER_LINEAR, 24, 1001, 0));
    assert_false(decide(f, "unet.b", DPK_LAYER_LINEAR, 24, 77, 0));
    const struct dpk_filter_layer l = {"unet.a.to_kv", DPK_LAYER_LINEAR, 2048, 10, 99};
    const char *reason;
    dpk_filter_decide(f, &l, &reason);
    assert_string_equal(reason, "line 4: skip *.to_kv in>=2048 rows<100");
    assert_memory_equal(dpk_filter_id(f), "file:", 5);
    dpk_filter_free(f);

    f = parse("");
    assert_true(decide(f, "x", DPK_LAYER_LINEAR, 1, 1, 0));
    dpk_filter_free(f);
    f = parse("quantize unet.*\nskip *\n");
    assert_true(decide(f, "unet.x", DPK_LAYER_LINEAR, 1, 1, 0));
    assert_false(decide(f, "vae.x", DPK_LAYER_LINEAR, 1, 1, 0));
    dpk_filter_free(f);
}

static void test_bad_files(void **state) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"skip *\n\nkeep unet.*\n", "rules:3: \"keep\": want quantize, skip or min_in_features"},
        {"skip\n", "rules:1: nothing after it"},
        {"quantize # unet\n", "rules:1: nothing after it"},
        {"skip 320\n", "rules:1: \"320\": want two numbers"},
        {"skip 320 x\n", "rules:1: \"320\": want two numbers"},
        {"skip in\n skip 1 2 3", "rules:2: \"3\": want two numbers"},
        {"skip in=\n", "rules:1: \"in=\": want a number"},
        {"skip in=-5\n", "rules:1: \"in=-5\": want a number"},
        {"skip in=1e3\n", "rules:1: \"in=1e3\": want a number"},
        {"skip in=99999999999999999999\n", "want a number"},
        {"skip in%0\n", "rules:1: \"in%0\": want a positive number"},
        {"skip width>3\n", "rules:1: \"width>3\": want in, out, rows or kind"},
        {"skip in==3\n", "rules:1: \"in==3\": want a number"},
        {"skip in!3\n", "rules:1: \"in!3\": want one of = != < <= > >= %"},
        {"skip kind=matrix\n", "rules:1: \"kind=matrix\": want = or != and one of linear"},
        {"skip kind<conv\n", "want = or !="},
        {"min_in_features\n", "rules:1: want min_in_features and one number"},
        {"min_in_features 3 4\n", "rules:1: want min_in_features and one number"},
        {"min_in_features x\n", "rules:1: want min_in_features and one number"},
        {"skip a b c d e f g h i\n", "rules:1: more than 8 conditions"},
        {"skip a a a a a a a a a a a a a a a a a\n", "rules:1: more than 16 words"},
        {"skip a\x01z\n", "control character 0x1 at byte 6"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dpk_filter *f = (void *)&f;
        dpk_error err = {0};
        const int rc = dpk_filter_parse(&f, "rules", cases[i].text, strlen(cases[i].text), &err);
        if (rc != DPK_EFORMAT) fail_msg("\"%s\": status %d", cases[i].text, rc);
        assert_null(f);
        if (!strstr(err.msg, cases[i].message))
            fail_msg("\"%s\": \"%s\" is not in \"%s\"", cases[i].text, cases[i].message, err.msg);
        assert_null(strchr(err.msg, '\n'));
    }
    struct dpk_filter *f;
    dpk_error err;
    assert_int_equal(dpk_filter_parse(&f, "rules", "skip *\0", 7, &err), DPK_EFORMAT);
}

static void test_files_on_disk(void **state) {
    const char *path = in_dir(*state, "rules.txt");
    struct dpk_filter *f;
    dpk_error err;
    put_text(path, "\xef\xbb\xbfskip vae.*\r\n"); /* as Windows' editors write it */
    f = open_filter(path);
    assert_false(decide(f, "vae.x", DPK_LAYER_LINEAR, 1, 1, 0));
    assert_true(decide(f, "unet.x", DPK_LAYER_LINEAR, 1, 1, 0));
    dpk_filter_free(f);
    put_text(path, "");
    f = open_filter(path);
    dpk_filter_free(f);
    assert_int_equal(dpk_filter_open(&f, "fastest", &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "fastest"));
    assert_non_null(strstr(err.msg, "diffusion-fast"));
    assert_int_equal(dpk_filter_open(&f, *state, &err), DPK_EARG); /* a folder */
    char *big = malloc((2 << 20) + 1);
    memset(big, '\n', 2 << 20);
    put_file(path, big, 2 << 20);
    free(big);
    assert_int_equal(dpk_filter_open(&f, path, &err), DPK_EFORMAT);
    assert_null(f);
}

/* Whatever the text is: an error, or a filter that decides. */
static void test_random_files(void **state) {
    static const char *const words[] = {"skip",   "quantize", "min_in_features",
                                        "in",     "out",      "=",
                                        "<",      "%",        "kind=conv",
                                        "*",      "?",        "17",
                                        "320 64", " ",        " ",
                                        "\n",     "\n",       "#",
                                        "rows>=", "!=",       "\t",
                                        "\xff",   ".to",      "0"};
    uint64_t seed = 99;
    int good = 0;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        char text[256] = "";
        const int n = (int)(noise(&seed) % 12);
        for (int k = 0; k < n; k++)
            strcat(text, words[noise(&seed) % (sizeof words / sizeof *words)]);
        struct dpk_filter *f;
        dpk_error err = {0};
        if (dpk_filter_parse(&f, "rules", text, strlen(text), &err) == DPK_OK) {
            good++;
            decide(f, "unet.a.to_q", (int)(noise(&seed) % 3), 320, 640, 77);
            dpk_filter_free(f);
        } else {
            assert_true(err.code == DPK_EFORMAT && err.msg[0]);
        }
    }
    assert_in_range(good, 1000, 19000);
}

/* ---- Schemes --------------------------------------------------------------------------------- */

static void test_schemes(void **state) {
    static const struct {
        const char *text, *back;
        int kind, group;
    } good[] = {
        {"int8-dynamic", "int8-dynamic", DPK_SCHEME_INT8_DYNAMIC, 0},
        {"int8-weight", "int8-weight", DPK_SCHEME_INT8_WEIGHT, 0},
        {"int4-weight", "int4-weight:64", DPK_SCHEME_INT4_WEIGHT, 64},
        {"int4-weight:32", "int4-weight:32", DPK_SCHEME_INT4_WEIGHT, 32},
        {"int4-weight:64", "int4-weight:64", DPK_SCHEME_INT4_WEIGHT, 64},
        {"int4-weight:128", "int4-weight:128", DPK_SCHEME_INT4_WEIGHT, 128},
    };
    static const char *const bad[] = {"",
                                      "int8",
                                      "int8-dynamic ",
                                      "int4",
                                      "int4-weight:",
                                      "int4-weight:16",
                                      "int4-weights",
                                      "int4-weight:064",
                                      "INT8-DYNAMIC"};
    struct dpk_scheme s;
    dpk_error err;
    char text[32];
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(dpk_scheme_parse(&s, good[i].text, &err), DPK_OK);
        assert_int_equal(s.kind, good[i].kind);
        assert_int_equal(s.group, good[i].group);
        assert_string_equal(dpk_scheme_text(&s, text), good[i].back);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(dpk_scheme_parse(&s, bad[i], &err), DPK_EARG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recipe),
        cmocka_unit_test(test_presets),
        cmocka_unit_test(test_globs),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test_setup_teardown(test_files_on_disk, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_random_files),
        cmocka_unit_test(test_schemes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
