/* Values of configs: defaults, ranges, lists, and errors that name file, key, found and wanted. */
#include "../formats/config.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char text[] =
    "{\"i\": 8, \"f\": 2.0, \"half\": 0.5, \"neg\": -3, \"big\": 1e10, \"t\": true, \"s\": "
    "\"silu\","
    " \"nil\": null, \"list\": [320, 640, 1280], \"inf\": -Infinity, \"nan\": NaN,"
    " \"nested\": [1, [1, 2], [2, 1]], \"names\": [\"DownBlock2D\", \"X\"], \"mixed\": [1, \"a\"],"
    " \"o\": {\"x\": 3}, \"e\": 1e999}";

static struct dpk_config open_text(void) {
    struct dpk_config c;
    dpk_error err;
    if (dpk_config_parse(&c, "unet/config.json", text, &err) != DPK_OK) fail_msg("%s", err.msg);
    return c;
}

#define WANT_ERROR(call, wanted_code, says)                                                        \
    do {                                                                                           \
        dpk_error err = {0};                                                                       \
        int rc = (call);                                                                           \
        if (rc != (wanted_code) || !strstr(err.msg, says) ||                                       \
            strncmp(err.msg, "unet/config.json", 16) != 0)                                         \
            fail_msg("%s: %d %s", #call, rc, err.msg);                                             \
    } while (0)

static void test_scalars(void **state) {
    struct dpk_config c = open_text();
    const char *s;
    double d;
    int i;
    (void)state;
    assert_int_equal(dpk_config_int(&c, "i", 1, 0, 8, &i, NULL), DPK_OK);
    assert_int_equal(i, 8);
    assert_int_equal(dpk_config_int(&c, "f", 1, 0, 8, &i, NULL), DPK_OK);
    assert_int_equal(i, 2);
    assert_int_equal(dpk_config_int(&c, "nil", 5, 0, 8, &i, NULL), DPK_OK);
    assert_int_equal(i, 5);
    assert_int_equal(dpk_config_int(&c, "I", -1, 0, 8, &i, NULL), DPK_OK); /* keys have case */
    assert_int_equal(i, -1);
    WANT_ERROR(dpk_config_int(&c, "i", 1, 0, 7, &i, &err), DPK_EFORMAT,
               "i is 8, want an integer from 0 to 7");
    WANT_ERROR(dpk_config_int(&c, "neg", 1, 0, 7, &i, &err), DPK_EFORMAT, "neg is -3");
    WANT_ERROR(dpk_config_int(&c, "half", 1, 0, 7, &i, &err), DPK_EFORMAT, "half is 0.5");
    WANT_ERROR(dpk_config_int(&c, "big", 1, 0, 7, &i, &err), DPK_EFORMAT, "big is 10000000000");
    WANT_ERROR(dpk_config_int(&c, "t", 1, 0, 7, &i, &err), DPK_EFORMAT, "t is true");
    WANT_ERROR(dpk_config_int(&c, "s", 1, 0, 7, &i, &err), DPK_EFORMAT, "s is \"silu\"");
    WANT_ERROR(dpk_config_int(&c, "nan", 1, 0, 7, &i, &err), DPK_EFORMAT, "nan is \"NaN\"");
    WANT_ERROR(dpk_config_int(&c, "e", 1, 0, 7, &i, &err), DPK_EFORMAT, "e is Infinity");
    assert_int_equal(dpk_config_double(&c, "half", 1, 0, 1, &d, NULL), DPK_OK);
    assert_true(d == 0.5);
    assert_int_equal(dpk_config_double(&c, "gone", 0.25, 0, 1, &d, NULL), DPK_OK);
    assert_true(d == 0.25);
    assert_int_equal(dpk_config_double(&c, "inf", 0, -INFINITY, 0, &d, NULL), DPK_OK);
    assert_true(d == -INFINITY);
    assert_int_equal(dpk_config_double(&c, "nan", 0, -INFINITY, INFINITY, &d, NULL), DPK_OK);
    assert_true(isnan(d));
    WANT_ERROR(dpk_config_double(&c, "nan", 0, 0, INFINITY, &d, &err), DPK_EFORMAT, "nan");
    WANT_ERROR(dpk_config_double(&c, "inf", 0, -1e30, 0, &d, &err), DPK_EFORMAT, "-Infinity");
    WANT_ERROR(dpk_config_double(&c, "half", 0, 0.6, 1, &d, &err), DPK_EFORMAT, "from 0.6 to 1");
    WANT_ERROR(dpk_config_double(&c, "s", 0, 0, 1, &d, &err), DPK_EFORMAT, "\"silu\"");
    WANT_ERROR(dpk_config_double(&c, "t", 0, 0, 1, &d, &err), DPK_EFORMAT, "true");
    assert_int_equal(dpk_config_bool(&c, "t", 0, &i, NULL), DPK_OK);
    assert_int_equal(i, 1);
    WANT_ERROR(dpk_config_bool(&c, "i", 0, &i, &err), DPK_EFORMAT, "i is 8, want true or false");
    assert_int_equal(dpk_config_string(&c, "s", "x", &s, NULL), DPK_OK);
    assert_string_equal(s, "silu");
    assert_int_equal(dpk_config_string(&c, "nil", "x", &s, NULL), DPK_OK);
    assert_string_equal(s, "x");
    WANT_ERROR(dpk_config_string(&c, "list", "x", &s, &err), DPK_EFORMAT, "[320,640,1280]");
    assert_int_equal(dpk_config_require(&c, "i", NULL), DPK_OK);
    WANT_ERROR(dpk_config_require(&c, "nil", &err), DPK_EFORMAT, "nil is missing or null");
    dpk_config_close(&c);
}

static void test_choices(void **state) {
    static const char *const choices[] = {"gelu", "silu", NULL};
    struct dpk_config c = open_text();
    int i;
    (void)state;
    assert_int_equal(dpk_config_choice(&c, "s", "gelu", choices, &i, NULL), DPK_OK);
    assert_int_equal(i, 1);
    assert_int_equal(dpk_config_choice(&c, "nil", "gelu", choices, &i, NULL), DPK_OK);
    assert_int_equal(i, 0);
    WANT_ERROR(dpk_config_choice(&c, "nil", NULL, choices, &i, &err), DPK_EFORMAT, "missing");
    WANT_ERROR(dpk_config_choice(&c, "nil", "relu", choices, &i, &err), DPK_EUNSUPPORTED,
               "\"relu\", supported: gelu, silu");
    WANT_ERROR(dpk_config_choice(&c, "i", "gelu", choices, &i, &err), DPK_EFORMAT, "i is 8");
    dpk_config_close(&c);
}

static void test_lists(void **state) {
    struct dpk_config c = open_text();
    const char *names[2];
    int v[4], n;
    (void)state;
    assert_int_equal(dpk_config_length(&c, "list", 3, &n, NULL), DPK_OK);
    assert_int_equal(n, 3);
    WANT_ERROR(dpk_config_length(&c, "list", 2, &n, &err), DPK_EFORMAT, "at most 2");
    WANT_ERROR(dpk_config_length(&c, "i", 2, &n, &err), DPK_EFORMAT, "i is 8");
    assert_int_equal(dpk_config_ints(&c, "list", 0, 1, 2000, 3, v, NULL), DPK_OK);
    assert_true(v[0] == 320 && v[1] == 640 && v[2] == 1280);
    assert_int_equal(dpk_config_ints(&c, "i", 0, 1, 2000, 4, v, NULL), DPK_OK);
    assert_true(v[0] == 8 && v[3] == 8);
    assert_int_equal(dpk_config_ints(&c, "gone", 7, 1, 2000, 4, v, NULL), DPK_OK);
    assert_true(v[0] == 7 && v[3] == 7);
    WANT_ERROR(dpk_config_ints(&c, "list", 0, 1, 2000, 4, v, &err), DPK_EFORMAT, "a list of 4");
    WANT_ERROR(dpk_config_ints(&c, "list", 0, 1, 1000, 3, v, &err), DPK_EFORMAT, "is 1280");
    WANT_ERROR(dpk_config_ints(&c, "mixed", 0, 1, 2000, 2, v, &err), DPK_EFORMAT, "\"a\"");
    static const int want[3][2] = {{1, 1}, {1, 2}, {2, 1}};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(dpk_config_nested_ints(&c, "nested", 0, 1, 9, 3, i, 2, v, NULL), DPK_OK);
        assert_memory_equal(v, want[i], sizeof want[i]);
    }
    WANT_ERROR(dpk_config_nested_ints(&c, "nested", 0, 1, 9, 2, 0, 2, v, &err), DPK_EFORMAT,
               "of 2");
    WANT_ERROR(dpk_config_nested_ints(&c, "nested", 0, 1, 9, 3, 1, 3, v, &err), DPK_EFORMAT,
               "of 3");
    assert_int_equal(dpk_config_nested_ints(&c, "i", 0, 1, 9, 3, 1, 3, v, NULL), DPK_OK);
    assert_true(v[0] == 8 && v[2] == 8);
    assert_int_equal(dpk_config_strings(&c, "names", 2, names, &n, NULL), DPK_OK);
    assert_int_equal(n, 2);
    assert_string_equal(names[0], "DownBlock2D");
    assert_int_equal(dpk_config_strings(&c, "nil", 2, names, &n, NULL), DPK_OK);
    assert_int_equal(n, 0);
    WANT_ERROR(dpk_config_strings(&c, "mixed", 2, names, &n, &err), DPK_EFORMAT, "of strings");
    WANT_ERROR(dpk_config_strings(&c, "names", 1, names, &n, &err), DPK_EFORMAT, "at most 1");
    dpk_config_close(&c);
}

static void test_objects(void **state) {
    struct dpk_config c = open_text(), sub;
    int i;
    (void)state;
    assert_int_equal(dpk_config_object(&c, "o", &sub, NULL), DPK_OK);
    assert_int_equal(dpk_config_int(&sub, "x", 0, 0, 9, &i, NULL), DPK_OK);
    assert_int_equal(i, 3);
    WANT_ERROR(dpk_config_int(&sub, "x", 0, 0, 1, &i, &err), DPK_EFORMAT, ": o: x is 3");
    assert_int_equal(dpk_config_object(&c, "gone", &sub, NULL), DPK_OK);
    assert_int_equal(dpk_config_int(&sub, "x", 4, 0, 9, &i, NULL), DPK_OK);
    assert_int_equal(i, 4);
    dpk_config_close(&sub);
    WANT_ERROR(dpk_config_object(&c, "i", &sub, &err), DPK_EFORMAT, "want an object");
    dpk_config_close(&c);
    assert_int_equal(dpk_config_parse(&c, "x", "[1]", NULL), DPK_EFORMAT);
    assert_int_equal(dpk_config_parse(&c, "x", "{", NULL), DPK_EFORMAT);
}

static void test_text(void **state) {
    static const char *const cases[][2] = {
        {"0.00085", "0.00085"},
        {"0.012", "0.012"},
        {"1000", "1000"},
        {"-0.5", "-0.5"},
        {"1e-05", "1e-05"},
        {"0.1", "0.1"},
        {"true", "true"},
        {"null", "null"},
        {"\"x\"", "x"},
        {"[1, 2]", "[1,2]"},
        {"0.18215", "0.18215"},
        {"-Infinity", "-Infinity"},
        {"0.3333333333333333", "0.3333333333333333"},
        {"0.30000000000000004", "0.30000000000000004"},
        {"1e6", "1000000"},
        {"1e999", "Infinity"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *json;
        char *s;
        assert_int_equal(dpk_json_parse(&json, "j", cases[i][0], strlen(cases[i][0]), NULL),
                         DPK_OK);
        s = dpk_config_text(json);
        assert_string_equal(s, cases[i][1]);
        free(s);
        cJSON_Delete(json);
    }
}

/* The real configs, at the keys that have traps. */
static void test_real(void **state) {
    struct dpk_source *s;
    struct dpk_config c;
    int v[4];
    dpk_error err;
    (void)state;
    assert_int_equal(dpk_source_open(&s, "tests/data/configs/ssd-1b", &err), DPK_OK);
    if (dpk_config_open(&c, s, "unet/config.json", &err) != DPK_OK) fail_msg("%s", err.msg);
    assert_int_equal(
        dpk_config_nested_ints(&c, "transformer_layers_per_block", 1, 0, 99, 3, 2, 2, v, &err),
        DPK_OK);
    assert_true(v[0] > 0);
    assert_int_equal(dpk_config_ints(&c, "attention_head_dim", 8, 1, 99, 3, v, &err), DPK_OK);
    assert_true(v[0] == 5 && v[1] == 10 && v[2] == 20);
    dpk_config_close(&c);
    assert_int_equal(dpk_config_open(&c, s, "unet/none.json", &err), DPK_EFORMAT);
    dpk_config_close(&c);
    dpk_source_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scalars), cmocka_unit_test(test_choices),
        cmocka_unit_test(test_lists),   cmocka_unit_test(test_objects),
        cmocka_unit_test(test_text),    cmocka_unit_test(test_real),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
