/* Files of every version of the format (tests/versions/) open, are whole, and paint the picture
 * that lies beside them, on the reference instruction set in float32: but for a rounding here and
 * there, which exp and erf of another C library may turn the other way. */
#include "../formats/png.h"
#include "../formats/dpk.h"
#include "support_golden.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int is_model(const struct dirent *d) { return strstr(d->d_name, ".dpk") != NULL; }

static dpk_images *paint(const char *path, dpk_error *err) {
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    dpk_images *images = NULL;
    dpk_session_options o = dpk_session_options_default();
    dpk_params p = dpk_params_default();
    const char *prompt = "a red circle";
    const uint64_t seed = 3;
    o.isa = "ref", o.threads = 2, o.act_dtype = DPK_ARRAY_F32;
    p.prompts = &prompt, p.seeds = &seed, p.n_seeds = 1;
    p.steps = 2, p.width = 64, p.height = 48, p.no_binning = 1;
    int rc = dpk_model_open(&model, path, err);
    if (!rc) rc = dpk_model_verify(model, NULL, NULL, err);
    if (!rc) rc = dpk_session_create(&session, model, &o, err);
    if (!rc) rc = dpk_generate(session, &p, &images, err);
    dpk_session_free(session), dpk_model_free(model);
    return images;
}

/* VERSION-NAME.dpk is of that version and paints VERSION-NAME.png. */
static void check_file(const char *name) {
    char path[600], picture[600];
    dpk_error err = {0};
    struct dpk_png want;
    FILE *f;
    uint32_t head[3] = {0};
    snprintf(path, sizeof path, "tests/versions/%s", name);
    snprintf(picture, sizeof picture, "%.*s.png", (int)strlen(path) - 4, path);
    assert_non_null(f = fopen(path, "rb"));
    assert_int_equal(fread(head, sizeof head, 1, f), 1);
    fclose(f);
    assert_int_equal(head[2], strtoul(name, NULL, 10));
    dpk_images *got = paint(path, &err);
    if (!got) fail_msg("%s: %s", path, err.msg);
    const char *kept = golden_build_path("tests/version.png");
    assert_int_equal(dpk_png_write(kept, got->width, got->height, got->rgb, NULL, 0, &err), 0);
    if (dpk_png_read(&want, picture, 1 << 20, &err)) fail_msg("%s (now: %s)", err.msg, kept);
    assert_int_equal(got->width, want.width);
    assert_int_equal(got->height, want.height);
    for (size_t i = 0; i < (size_t)3 * want.width * want.height; i++)
        if (abs(got->rgb[i] - want.rgb[i]) > 1)
            fail_msg("%s paints %s, want %s", path, kept, picture);
    remove(kept);
    dpk_png_free(&want), dpk_images_free(got);
}

static void test_files_of_all_versions(void **state) {
    (void)state;
    struct dirent **list;
    bool seen[DPK_VERSION + 1] = {false};
    const int n = scandir("tests/versions", &list, is_model, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        const unsigned long version = strtoul(list[i]->d_name, NULL, 10);
        assert_in_range(version, 1, DPK_VERSION);
        seen[version] = true;
        check_file(list[i]->d_name);
        free(list[i]);
    }
    free(list);
    for (int version = 1; version <= DPK_VERSION; version++)
        if (!seen[version]) fail_msg("tests/versions has no file of version %d", version);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_files_of_all_versions)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
