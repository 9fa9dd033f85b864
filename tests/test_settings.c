/* The numbers of a model's metadata: defaults, limits, texts that are none. */
#include "../formats/dpk.h"
#include "../runtime/settings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What is read from metadata with these pairs. */
static int read_pairs(const char *const (*pairs)[2], size_t n, struct dpk_settings *s,
                      dpk_error *err) {
    struct dpk_writer *w;
    struct dpk_file f;
    assert_int_equal(dpk_writer_create(&w, NULL, err), DPK_OK);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(dpk_writer_pair(w, pairs[i][0], pairs[i][1], err), DPK_OK);
    if (dpk_writer_view(w, &f, err)) fail_msg("%s", err->msg);
    const int rc = dpk_settings_read(&f, s, err);
    dpk_file_close(&f);
    dpk_writer_free(w);
    return rc;
}

static void test_defaults(void **state) {
    (void)state;
    static const char *const some[][2] = {{"pipeline.vae_scale", "16"},
                                          {"pipeline.width", "640"},
                                          {"pipeline.guidance", "3.5e0"},
                                          {"pipeline.unheard_of", "x"}};
    struct dpk_settings s;
    dpk_error err;
    assert_int_equal(read_pairs(NULL, 0, &s, &err), DPK_OK);
    const struct dpk_settings standard = {1024, 1024, 8, 8, 4, 50, 7.5, 0.18215};
    assert_memory_equal(&s, &standard, sizeof s);
    assert_int_equal(read_pairs(some, 4, &s, &err), DPK_OK);
    const struct dpk_settings want = {640, 1024, 16, 16, 4, 50, 3.5, 0.18215};
    assert_memory_equal(&s, &want, sizeof s);
}

static void test_limits(void **state) {
    (void)state;
    static const struct {
        const char *key, *good, *bad[4];
    } cases[] = {
        {"width", "32768", {"0", "32769", "8.5", ""}},
        {"height", "1", {"-8", "1e9", "8x", "nan"}},
        {"vae_scale", "256", {"0", "257", "7.5", "0x8"}},
        {"size_multiple", "1024", {"0", "1032", "12", " 8"}}, /* 12: vae_scale is 8 */
        {"latent_channels", "1", {"0", "1025", "4.1", "four"}},
        {"steps", "1000000", {"0", "1000001", "2.5", "inf"}},
        {"guidance", "0", {"-0.1", "10001", "1e", "--1"}},
        {"scaling_factor", "0.000001", {"0", "1e7", "1e-7", "."}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char key[64];
        const char *pair[1][2] = {{key, cases[i].good}};
        struct dpk_settings s;
        dpk_error err = {0};
        snprintf(key, sizeof key, "pipeline.%s", cases[i].key);
        if (read_pairs((const char *const(*)[2])pair, 1, &s, &err))
            fail_msg("%s %s: %s", key, pair[0][1], err.msg);
        for (int k = 0; k < 4; k++) {
            pair[0][1] = cases[i].bad[k];
            if (read_pairs((const char *const(*)[2])pair, 1, &s, &err) != DPK_EFORMAT)
                fail_msg("%s \"%s\" is accepted", key, pair[0][1]);
            if (!strstr(err.msg, key)) fail_msg("%s: %s", key, err.msg);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults),
                                       cmocka_unit_test(test_limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
