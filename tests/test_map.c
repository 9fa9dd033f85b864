/* A model file that is cut short while it is mapped; a model in memory, which does not mind. */
#include "../runtime/session.h"
#include "support_files.h"
#include "support_golden.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static dpk_images *picture; /* of the whole file */

static dpk_model *open_copy(const char *path, int in_memory, int guard) {
    dpk_error err = {0};
    dpk_model *model = NULL;
    dpk_model_options options = dpk_model_options_default();
    size_t n;
    uint8_t *bytes = get_file(golden_build_path("tests/map.dpk"), &n);
    put_file(path, bytes, n);
    free(bytes);
    options.in_memory = in_memory, options.guard = guard;
    if (dpk_model_open_with(&model, path, &options, &err)) fail_msg("%s", err.msg);
    return model;
}

static int paint(const dpk_model *model, int threads, dpk_images **images, dpk_error *err) {
    dpk_session *session = NULL;
    dpk_session_options options = dpk_session_options_default();
    dpk_params params = dpk_params_default();
    const char *prompt = "a red circle";
    options.threads = threads;
    params.prompts = &prompt;
    params.steps = 2, params.width = 64, params.height = 96;
    int rc = dpk_session_create(&session, model, &options, err);
    if (!rc) rc = dpk_generate(session, &params, images, err);
    dpk_session_free(session);
    return rc;
}

static void expect_same(const dpk_images *images) {
    assert_int_equal(images->n, picture->n);
    assert_memory_equal(images->rgb, picture->rgb, (size_t)3 * picture->width * picture->height);
}

static int setup(void **state) {
    dpk_error err = {0};
    dpk_model *model = golden_model("map", "models/shapes-xl", "");
    if (paint(model, 2, &picture, &err)) fail_msg("%s", err.msg);
    dpk_model_free(model);
    return scratch_setup(state);
}

static int teardown(void **state) {
    dpk_images_free(picture);
    return scratch_teardown(state);
}

static void cut(const char *path, const dpk_model *model) {
    const struct dpk_section *s = &model->file.sections[DPK_SECTION_WEIGHTS - 1];
    assert_int_equal(truncate(path, (off_t)(s->offset + s->bytes / 3)), 0);
}

static void test_guarded(void **state) {
    const char *path = in_dir(*state, "guarded.dpk");
    for (int threads = 1; threads <= 2; threads++) {
        dpk_error err = {0};
        dpk_images *images = NULL;
        dpk_model *model = open_copy(path, 0, 1), *other = NULL;
        other = open_copy(in_dir(*state, "other.dpk"), 0, 1);
        if (paint(model, threads, &images, &err)) fail_msg("%s", err.msg);
        expect_same(images);
        dpk_images_free(images), images = NULL;
        cut(path, model);
        assert_int_equal(paint(model, threads, &images, &err), DPK_EIO);
        assert_null(images);
        assert_non_null(strstr(err.msg, "lost bytes"));
        assert_int_equal(paint(model, threads, &images, &err), DPK_EIO); /* for good */
        if (paint(other, threads, &images, &err)) fail_msg("%s", err.msg);
        expect_same(images);
        dpk_images_free(images);
        dpk_model_free(model), dpk_model_free(other);
    }
}

static void test_in_memory(void **state) {
    const char *path = in_dir(*state, "memory.dpk");
    dpk_error err = {0};
    dpk_images *images = NULL;
    dpk_model *model = open_copy(path, 1, 1);
    cut(path, model);
    if (paint(model, 2, &images, &err)) fail_msg("%s", err.msg);
    expect_same(images);
    dpk_images_free(images);
    dpk_model_free(model);
}

/* Paging lets pages of a mapped file go, which come back; those of a model in memory would not. */
static void test_in_memory_with_a_limit(void **state) {
    dpk_error err = {0};
    dpk_images *images = NULL;
    dpk_session *session = NULL;
    dpk_model *model = open_copy(in_dir(*state, "limit.dpk"), 1, 0);
    dpk_session_options options = dpk_session_options_default();
    dpk_params params = dpk_params_default();
    const char *prompt = "a red circle";
    options.threads = 2, options.memory_limit = 64 << 20;
    params.prompts = &prompt;
    params.steps = 2, params.width = 64, params.height = 96;
    if (dpk_session_create(&session, model, &options, &err)) fail_msg("%s", err.msg);
    for (int i = 0; i < 2; i++) {
        if (dpk_generate(session, &params, &images, &err)) fail_msg("%s", err.msg);
        expect_same(images);
        dpk_images_free(images);
    }
    dpk_session_free(session);
    dpk_model_free(model);
}

/* The way of a process that uses a cut file: how it ends, without a guard or with a handler of its
 * own that the guard must pass foreign faults on to. */
static void own_handler(int number) {
    (void)number;
    _exit(42);
}

static int end_of_child(const char *path, int guard, int other_map) {
    dpk_error err = {0};
    dpk_images *images = NULL;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, other_map ? own_handler : SIG_DFL);
        dpk_model *guarded = guard ? open_copy(in_dir(path, "g.dpk"), 0, 1) : NULL;
        dpk_model *model = open_copy(in_dir(path, "u.dpk"), 0, 0);
        cut(in_dir(path, "u.dpk"), model);
        (void)guarded;
        _exit(paint(model, 1, &images, &err) ? 1 : 0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void test_not_guarded(void **state) {
    int status = end_of_child(*state, 0, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    status = end_of_child(*state, 1, 0); /* a guard of another file does not hide it */
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    status = end_of_child(*state, 1, 1); /* who handled SIGBUS before still does */
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

static void test_options(void **state) {
    dpk_error err = {0};
    dpk_model *model = NULL;
    dpk_model_options options = {.struct_size = 1000};
    (void)state;
    assert_int_equal(
        dpk_model_open_with(&model, golden_build_path("tests/map.dpk"), &options, &err), DPK_EARG);
    assert_null(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_not_guarded), /* first: it wants no guard installed */
        cmocka_unit_test(test_guarded),
        cmocka_unit_test(test_in_memory),
        cmocka_unit_test(test_in_memory_with_a_limit),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
