/* One model, several threads: each with sessions of its own, of different sizes, thread counts and
 * limits, one of them stopped, while others ask the model for texts, tokens and timetables. Every
 * picture is the one that its session makes alone. `make tsan` looks for races in this. */
#include "support_golden.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_PAINTERS = 4, N_ASKERS = 2, ROUNDS = 2 };

static dpk_model *model;

static int open_model(void **state) {
    (void)state;
    dpk_model_free(golden_model("threads", "tests/data/tiny-sdxl", "--dtype bf16"));
    dpk_model_options options = dpk_model_options_default();
    options.guard = 1;
    return dpk_model_open_with(&model, golden_build_path("tests/threads.dpk"), &options, NULL);
}

static int close_model(void **state) {
    (void)state;
    dpk_model_free(model);
    return 0;
}

static const struct painter {
    const char *prompt, *scheduler;
    uint32_t width, height, n_threads;
    uint64_t limit;
} painters[N_PAINTERS] = {
    {"a red circle", NULL, 64, 32, 1, 0},
    {"two blue stars", "euler-a", 32, 64, 3, 0},
    {"a green square", "dpm++2m", 64, 64, 2, 1u << 28},
    {"a red circle on white", NULL, 32, 32, 2, 0},
};

/* A picture, or NULL; with `stop` it is stopped on the way. */
static dpk_images *paint(const struct painter *a, int (*stop)(void *, const dpk_progress *)) {
    dpk_session *s = NULL;
    dpk_images *images = NULL;
    dpk_session_options o = dpk_session_options_default();
    dpk_params p = dpk_params_default();
    o.threads = (int)a->n_threads, o.memory_limit = a->limit;
    p.prompts = &a->prompt, p.scheduler = a->scheduler, p.steps = 2;
    p.width = a->width, p.height = a->height, p.progress = stop;
    if (dpk_session_create(&s, model, &o, NULL)) return NULL;
    dpk_generate(s, &p, &images, NULL);
    dpk_session_free(s);
    return images;
}

static int stop_halfway(void *arg, const dpk_progress *p) {
    (void)arg;
    return p->fraction > 0.5;
}

/* What a thread found; it may not use assertions. */
struct result {
    pthread_t thread;
    const struct painter *painter;
    dpk_images *images[ROUNDS];
    bool stopped, asked;
};

static void *run_painter(void *arg) {
    struct result *r = arg;
    for (int i = 0; i < ROUNDS; i++) r->images[i] = paint(r->painter, NULL);
    r->stopped = paint(r->painter, stop_halfway) == NULL;
    return NULL;
}

static void *run_asker(void *arg) {
    struct result *r = arg;
    int32_t ids[77];
    r->asked = true;
    for (int i = 0; i < 20; i++) {
        dpk_timetable *t = NULL;
        size_t n = 0;
        const char *value;
        r->asked &= dpk_model_tokens(model, (uint32_t)i % 2, "a red circle", ids, &n, NULL) == 0;
        r->asked &= n > 2 && dpk_model_meta(model, "model.family") != NULL;
        r->asked &= dpk_model_meta_at(model, 0, &value) != NULL;
        r->asked &= dpk_model_timetable(model, "euler", 10, &t, NULL) == 0;
        dpk_timetable_free(t);
    }
    return NULL;
}

static void test_sessions_of_one_model(void **state) {
    (void)state;
    struct result r[N_PAINTERS + N_ASKERS] = {0};
    for (int i = 0; i < N_PAINTERS + N_ASKERS; i++) {
        r[i].painter = i < N_PAINTERS ? &painters[i] : NULL;
        assert_int_equal(
            pthread_create(&r[i].thread, NULL, r[i].painter ? run_painter : run_asker, &r[i]), 0);
    }
    for (int i = 0; i < N_PAINTERS + N_ASKERS; i++) pthread_join(r[i].thread, NULL);
    for (int i = 0; i < N_PAINTERS; i++) {
        dpk_images *alone = paint(&painters[i], NULL);
        assert_non_null(alone);
        assert_true(r[i].stopped);
        for (int k = 0; k < ROUNDS; k++) {
            assert_non_null(r[i].images[k]);
            assert_memory_equal(r[i].images[k]->rgb, alone->rgb,
                                (size_t)3 * alone->width * alone->height);
            dpk_images_free(r[i].images[k]);
        }
        dpk_images_free(alone);
    }
    for (int i = N_PAINTERS; i < N_PAINTERS + N_ASKERS; i++) assert_true(r[i].asked);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sessions_of_one_model)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
