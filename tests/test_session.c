/* Sessions from the public interface: what is refused and how, cancelling, memory, sizes after each
 * other, threads side by side, and that single components do what the whole does. */
#include "support_golden.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static dpk_model *model;

static int open_model(void **state) {
    (void)state;
    model = golden_model("session-f32", "models/shapes-xl", "--dtype f32");
    return 0;
}

static int close_model(void **state) {
    (void)state;
    dpk_model_free(model);
    return 0;
}

static dpk_session *make_session(uint64_t limit) {
    dpk_error err;
    dpk_session *s = NULL;
    dpk_session_options o = dpk_session_options_default();
    o.threads = 2, o.memory_limit = limit;
    if (dpk_session_create(&s, model, &o, &err)) fail_msg("%s", err.msg);
    return s;
}

static const char *const one_prompt[1] = {"a red circle on a white background"};

static dpk_params small_params(void) {
    dpk_params p = dpk_params_default();
    p.prompts = one_prompt;
    p.steps = 2, p.width = 64, p.height = 32;
    return p;
}

static dpk_images *paint(dpk_session *s, const dpk_params *p) {
    dpk_error err;
    dpk_images *images = NULL;
    if (dpk_generate(s, p, &images, &err)) fail_msg("%s", err.msg);
    assert_int_equal(images->width, p->width);
    assert_int_equal(images->height, p->height);
    return images;
}

static void refuse(dpk_session *s, const dpk_params *p, int code, const char *text) {
    dpk_error err = {0};
    dpk_images *images = NULL;
    int rc = dpk_generate(s, p, &images, &err);
    assert_null(images);
    if (rc != code || err.code != code || !strstr(err.msg, text))
        fail_msg("%d %s, want %d %s", rc, err.msg, code, text);
    assert_null(strchr(err.msg, '\n'));
}

/* ---- Refusals ------------------------------------------------------------------------------- */

static void test_bad_parameters(void **state) {
    (void)state;
    dpk_session *s = make_session(0);
    const uint64_t seeds[3] = {1, 2, 3};
    const char *const missing[1] = {NULL}, *const broken[1] = {"a \xff circle"};
    dpk_params p = small_params();
    p.width = 100, refuse(s, &p, DPK_EARG, "width is 100, want a multiple of 8");
    p = small_params(), p.height = 4, refuse(s, &p, DPK_EARG, "height is 4");
    p = small_params(), p.width = 1u << 20, refuse(s, &p, DPK_EARG, "width is 1048576");
    p = small_params(), p.scheduler = "warp", refuse(s, &p, DPK_EARG, "warp");
    p = small_params(), p.steps = 100000, refuse(s, &p, DPK_EARG, "100000");
    p = small_params(), p.n_prompts = 0, refuse(s, &p, DPK_EARG, "0 prompts");
    p = small_params(), p.images_per_prompt = 1u << 31, refuse(s, &p, DPK_EARG, "images each");
    p = small_params(), p.seeds = seeds, p.n_seeds = 3, refuse(s, &p, DPK_EARG, "3 seeds");
    p = small_params(), p.rng = 5, refuse(s, &p, DPK_EARG, "generator 5");
    p = small_params(), p.guidance_rescale = 2, refuse(s, &p, DPK_EARG, "rescale 2");
    p = small_params(), p.struct_size = 4096, refuse(s, &p, DPK_EARG, "4096 bytes");
    p = small_params(), p.prompts = NULL, refuse(s, &p, DPK_EARG, "no prompts");
    p = small_params(), p.prompts = missing, refuse(s, &p, DPK_EARG, "prompt 0 is missing");
    p = small_params(), p.prompts = broken, refuse(s, &p, DPK_EARG, "UTF-8");
    p = small_params(), p.negative = broken[0], refuse(s, &p, DPK_EARG, "UTF-8");
    p = small_params();
    dpk_images_free(paint(s, &p)); /* the session is as good as before */
    dpk_session_free(s);
}

static void test_bad_sessions(void **state) {
    (void)state;
    dpk_error err;
    dpk_session *s = NULL;
    dpk_session_options o = dpk_session_options_default();
    o.backend = "abacus";
    assert_int_equal(dpk_session_create(&s, model, &o, &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "abacus"));
    assert_null(s);
    o = dpk_session_options_default(), o.isa = "warp";
    assert_int_equal(dpk_session_create(&s, model, &o, &err), DPK_EARG);
    o = dpk_session_options_default(), o.threads = -1;
    assert_int_equal(dpk_session_create(&s, model, &o, &err), DPK_EARG);
    o = dpk_session_options_default(), o.act_dtype = DPK_ARRAY_I32;
    assert_int_equal(dpk_session_create(&s, model, &o, NULL), DPK_EARG);
    dpk_session_free(NULL), dpk_model_free(NULL), dpk_images_free(NULL), dpk_arrays_free(NULL);
}

/* ---- Stopping ------------------------------------------------------------------------------- */

struct stopper {
    int calls, stop_at;
    double fraction;
    uint32_t step;
};

static int stop(void *arg, const dpk_progress *p) {
    struct stopper *s = arg;
    assert_true(p->fraction >= s->fraction && p->fraction <= 1);
    assert_true(p->step >= s->step && p->step <= p->n_steps);
    s->fraction = p->fraction, s->step = p->step;
    return ++s->calls == s->stop_at;
}

static int stop_trace(void *arg, const dpk_array *a) { return !strcmp(a->name, arg); }

static void test_stops_where_asked(void **state) {
    (void)state;
    dpk_session *s = make_session(0);
    dpk_params p = small_params();
    struct stopper all = {0, -1, 0, 0};
    p.progress = stop, p.progress_arg = &all;
    dpk_images_free(paint(s, &p));
    assert_true(all.calls > 100 && all.fraction == 1.0 && all.step == 2);
    for (int at = 1; at < all.calls; at += all.calls / 17) {
        struct stopper one = {0, at, 0, 0};
        p.progress_arg = &one;
        refuse(s, &p, DPK_ECANCELLED, "stopped");
        assert_int_equal(one.calls, at);
    }
    static const char *const names[] = {"context", "pooled", "latent_000", "latent_002", "image"};
    p = small_params(), p.trace = stop_trace;
    for (int i = 0; i < 5; i++) {
        p.trace_arg = (void *)names[i];
        refuse(s, &p, DPK_ECANCELLED, names[i]);
    }
    dpk_session_free(s);
}

/* ---- Memory --------------------------------------------------------------------------------- */

static void test_limit_says_needed_and_limit(void **state) {
    (void)state;
    dpk_session *s = make_session(1000);
    dpk_params p = small_params();
    dpk_info info;
    char text[64];
    assert_int_equal(dpk_session_plan(s, &p, &info, NULL), DPK_OK);
    assert_int_equal(info.n_images, 1);
    assert_int_equal(info.latent_width, 8);
    assert_int_equal(info.latent_height, 4);
    assert_int_equal(info.peak_bytes, info.arena_bytes + info.host_bytes);
    snprintf(text, sizeof text, "needs at least %llu bytes, the limit is 1000",
             (unsigned long long)info.peak_bytes);
    refuse(s, &p, DPK_ENOMEM, text);
    dpk_session_free(s);
}

static void test_sizes_after_each_other(void **state) {
    (void)state;
    static const uint32_t sizes[][2] = {{64, 32}, {96, 64}, {32, 32}, {64, 32}};
    dpk_session *s = make_session(0);
    for (int i = 0; i < 4; i++) {
        dpk_params p = small_params();
        p.width = sizes[i][0], p.height = sizes[i][1];
        dpk_session *fresh = make_session(0);
        dpk_images *a = paint(s, &p), *b = paint(fresh, &p);
        assert_memory_equal(a->rgb, b->rgb, (size_t)p.width * p.height * 3);
        dpk_images_free(a), dpk_images_free(b), dpk_session_free(fresh);
    }
    dpk_session_free(s);
}

/* ---- Batches -------------------------------------------------------------------------------- */

/* With a seed an image, each picture of a batch is the one it would be alone. */
static void test_one_seed_an_image(void **state) {
    (void)state;
    static const char *const prompts[2] = {"a red circle", "a blue star on a gray background"};
    const uint64_t seeds[4] = {11, 12, 13, 1u << 20};
    static const char *const schedulers[2] = {NULL, "euler-a"};
    dpk_session *s = make_session(0);
    for (int k = 0; k < 2; k++) {
        dpk_params p = small_params();
        p.prompts = prompts, p.n_prompts = 2, p.images_per_prompt = 2;
        p.seeds = seeds, p.n_seeds = 4, p.scheduler = schedulers[k];
        dpk_images *all = paint(s, &p);
        assert_int_equal(all->n, 4);
        size_t n = (size_t)p.width * p.height * 3;
        for (uint32_t i = 0; i < 4; i++) {
            p.prompts = &prompts[i / 2], p.n_prompts = 1, p.images_per_prompt = 1;
            p.seeds = &seeds[i], p.n_seeds = 1;
            dpk_images *one = paint(s, &p);
            int most = 0;
            for (size_t b = 0; b < n; b++) {
                int d = abs(one->rgb[b] - all->rgb[i * n + b]);
                if (d > most) most = d;
            }
            if (most > 1) fail_msg("picture %u of the batch differs by %d", i, most);
            dpk_images_free(one);
        }
        dpk_images_free(all);
    }
    dpk_session_free(s);
}

struct kept {
    const char *name;
    float *data;
    size_t n;
};

static int keep(void *arg, const dpk_array *a) {
    struct kept *k = arg;
    if (strcmp(a->name, k->name)) return 0;
    k->n = golden_count(a);
    k->data = malloc(k->n * sizeof(float));
    memcpy(k->data, a->data, k->n * sizeof(float));
    return 0;
}

static void test_given_noise_is_the_drawn_noise(void **state) {
    (void)state;
    const uint64_t seed = 5;
    float drawn[4 * 4 * 8], latents[4 * 4 * 8];
    dpk_session *s = make_session(0);
    dpk_params p = small_params();
    p.seeds = &seed, p.n_seeds = 1;
    dpk_images *a = paint(s, &p);
    assert_int_equal(dpk_noise(seed, DPK_RNG_CPU, DPK_ARRAY_F32, 128, drawn, NULL), DPK_OK);
    for (int i = 0; i < 32; i++)
        for (int c = 0; c < 4; c++) latents[i * 4 + c] = drawn[c * 32 + i];
    p.latents = latents, p.n_seeds = 0;
    dpk_images *b = paint(s, &p);
    assert_memory_equal(a->rgb, b->rgb, 64 * 32 * 3);
    p = small_params(), p.rng = DPK_RNG_CUDA, p.seeds = &seed, p.n_seeds = 1;
    dpk_images *c = paint(s, &p);
    assert_memory_not_equal(a->rgb, c->rgb, 64 * 32 * 3);
    assert_int_equal(dpk_noise(seed, 7, DPK_ARRAY_F32, 1, drawn, NULL), DPK_EARG);
    assert_int_equal(dpk_noise(seed, 0, DPK_ARRAY_I32, 1, drawn, NULL), DPK_EARG);
    dpk_images_free(a), dpk_images_free(b), dpk_images_free(c);
    dpk_session_free(s);
}

/* ---- Components ----------------------------------------------------------------------------- */

static void expect_refused(dpk_session *s, const char *component, const dpk_array *in, size_t n,
                           const char *text) {
    dpk_error err = {0};
    dpk_arrays *out = NULL;
    int rc = dpk_session_run(s, component, in, n, &out, &err);
    assert_null(out);
    if (rc != DPK_EARG || !strstr(err.msg, text)) fail_msg("%d %s, want %s", rc, err.msg, text);
}

static dpk_array random_array(const char *name, int rank, const int32_t *dim, uint64_t seed) {
    dpk_array a = {.name = name, .type = DPK_ARRAY_F32, .rank = rank};
    memcpy(a.dim, dim, (size_t)rank * sizeof *dim);
    a.data = malloc(golden_count(&a) * sizeof(float));
    dpk_noise(seed, DPK_RNG_CPU, DPK_ARRAY_F32, golden_count(&a), a.data, NULL);
    return a;
}

static void test_components_check_their_inputs(void **state) {
    (void)state;
    dpk_session *s = make_session(0);
    int32_t ids[77] = {0};
    dpk_array in[3] = {{"ids", DPK_ARRAY_I32, 2, {1, 77}, ids},
                       {"ids_2", DPK_ARRAY_I32, 2, {1, 77}, ids},
                       {"extra", DPK_ARRAY_I32, 2, {1, 77}, ids}};
    dpk_arrays *out = NULL;
    expect_refused(s, "paint", in, 2, "component paint, want text, denoise, decode or encode");
    expect_refused(s, "text", in, 1, "input ids_2 is missing");
    expect_refused(s, "text", in, 3, "takes no input extra");
    in[2].name = "ids";
    expect_refused(s, "text", in, 3, "ids is given twice");
    in[1].type = DPK_ARRAY_F32;
    expect_refused(s, "text", in, 2, "ids_2 is f32, the model takes i32");
    in[1].type = DPK_ARRAY_I32;
    in[1].rank = 5;
    expect_refused(s, "text", in, 2, "5 dimensions");
    in[1].rank = 2, in[1].dim[0] = 2;
    expect_refused(s, "text", in, 2, "the inputs do not fit the model: concat");
    in[1].dim[0] = 1;
    ids[76] = 1 << 30;
    expect_refused(s, "text", in, 2, "ids[76] is 1073741824");
    ids[76] = -1;
    expect_refused(s, "text", in, 2, "ids[76] is -1");
    ids[76] = 0;
    assert_int_equal(dpk_session_run(s, "text", in, 2, &out, NULL), DPK_OK);
    assert_int_equal(out->n, 2);
    dpk_arrays_free(out);
    dpk_session_free(s);
}

/* Rows of one call with a timestep each equal the calls with one row. */
static void test_a_timestep_a_row(void **state) {
    (void)state;
    dpk_session *s = make_session(0);
    float times[3] = {981, 41, 500.5f};
    dpk_array in[5] = {random_array("latent", 4, (int32_t[]){3, 6, 4, 4}, 1),
                       random_array("context", 3, (int32_t[]){3, 77, 160}, 2),
                       random_array("pooled", 2, (int32_t[]){3, 96}, 3),
                       random_array("time_ids", 2, (int32_t[]){3, 6}, 4),
                       {"timestep", DPK_ARRAY_F32, 1, {3}, times}};
    dpk_arrays *all = NULL, *one = NULL;
    dpk_error err;
    if (dpk_session_run(s, "denoise", in, 5, &all, &err)) fail_msg("%s", err.msg);
    assert_int_equal(all->n, 1);
    assert_string_equal(all->at[0].name, "noise");
    assert_int_equal(all->at[0].dim[0], 3);
    for (int row = 0; row < 3; row++) {
        dpk_array part[5];
        for (int i = 0; i < 5; i++) {
            part[i] = in[i];
            part[i].dim[0] = 1;
            part[i].data = (float *)in[i].data + (size_t)row * golden_count(&part[i]);
        }
        if (dpk_session_run(s, "denoise", part, 5, &one, &err)) fail_msg("%s", err.msg);
        size_t n = golden_count(&one->at[0]);
        assert_memory_equal(one->at[0].data, (float *)all->at[0].data + (size_t)row * n,
                            n * sizeof(float));
        dpk_arrays_free(one);
    }
    dpk_arrays_free(all);
    /* Equal timesteps run as one batch, and as well with [1] in place of [3]. */
    times[1] = times[2] = times[0];
    if (dpk_session_run(s, "denoise", in, 5, &all, &err)) fail_msg("%s", err.msg);
    in[4].dim[0] = 1;
    if (dpk_session_run(s, "denoise", in, 5, &one, &err)) fail_msg("%s", err.msg);
    assert_memory_equal(all->at[0].data, one->at[0].data,
                        golden_count(&all->at[0]) * sizeof(float));
    dpk_arrays_free(all), dpk_arrays_free(one);
    for (int i = 0; i < 4; i++) free(in[i].data);
    dpk_session_free(s);
}

/* The decoder alone makes of the last latent the picture that the pipeline made. */
static void test_components_are_the_pipeline(void **state) {
    (void)state;
    dpk_session *s = make_session(0);
    dpk_params p = small_params();
    struct kept latent = {"latent_002", NULL, 0}, image = {"image", NULL, 0};
    p.trace = keep, p.trace_arg = &latent;
    dpk_images_free(paint(s, &p));
    p.trace_arg = &image;
    dpk_images_free(paint(s, &p));
    assert_int_equal(latent.n, 128);
    assert_int_equal(image.n, 64 * 32 * 3);
    dpk_array in = {"latent", DPK_ARRAY_F32, 4, {1, 4, 8, 4}, latent.data};
    dpk_arrays *out = NULL;
    dpk_error err;
    if (dpk_session_run(s, "decode", &in, 1, &out, &err)) fail_msg("%s", err.msg);
    assert_memory_equal(out->at[0].data, image.data, image.n * sizeof(float));
    dpk_arrays_free(out), free(latent.data), free(image.data), dpk_session_free(s);
}

/* ---- Several at once ------------------------------------------------------------------------ */

static void *paint_in_thread(void *arg) {
    dpk_session *s = NULL;
    dpk_session_options o = dpk_session_options_default();
    dpk_params p = small_params();
    o.threads = 1;
    if (dpk_session_create(&s, model, &o, NULL)) return NULL;
    dpk_generate(s, &p, arg, NULL);
    dpk_session_free(s);
    return NULL;
}

static void test_sessions_side_by_side(void **state) {
    (void)state;
    pthread_t threads[3];
    dpk_images *images[3] = {NULL, NULL, NULL};
    for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, paint_in_thread, &images[i]);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 3; i++) {
        assert_non_null(images[i]);
        assert_memory_equal(images[0]->rgb, images[i]->rgb, 64 * 32 * 3);
    }
    for (int i = 0; i < 3; i++) dpk_images_free(images[i]);
}

/* ---- Models ----------------------------------------------------------------------------------- */

static void test_model_queries(void **state) {
    (void)state;
    dpk_error err;
    const char *key, *value, *last = "";
    int32_t ids[77];
    size_t n;
    for (size_t i = 0; (key = dpk_model_meta_at(model, i, &value)); i++) {
        assert_true(strcmp(last, key) < 0);
        assert_string_equal(dpk_model_meta(model, key), value);
        last = key;
    }
    assert_null(dpk_model_meta(model, "no such key"));
    assert_int_equal(dpk_model_n_tokenizers(model), 2);
    assert_string_equal(dpk_model_tokenizer_name(model, 1), "tokenizer_2");
    assert_null(dpk_model_tokenizer_name(model, 2));
    assert_int_equal(dpk_model_n_ids(model, 1), 77);
    assert_int_equal(dpk_model_n_ids(model, 9), 0);
    assert_int_equal(dpk_model_tokens(model, 0, one_prompt[0], ids, &n, &err), DPK_OK);
    assert_true(n >= 8 && n < 77 && ids[0] != ids[1]);
    assert_int_equal(dpk_model_tokens(model, 2, one_prompt[0], ids, &n, &err), DPK_EARG);
    dpk_timetable *t = NULL;
    assert_int_equal(dpk_model_timetable(model, "euler", 12, &t, &err), DPK_OK);
    assert_int_equal(t->n_timesteps, 12);
    assert_int_equal(t->n_sigmas, 13);
    dpk_timetable_free(t);
    assert_int_equal(dpk_model_timetable(model, "warp", 12, &t, &err), DPK_EARG);
    assert_null(t);
    dpk_model *none = NULL;
    assert_int_equal(dpk_model_open(&none, "tests/no-such.dpk", &err), DPK_EIO);
    assert_non_null(strstr(err.msg, "tests/no-such.dpk"));
    assert_int_equal(dpk_model_open(&none, "tests/test_session.c", &err), DPK_EFORMAT);
    assert_null(none);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_queries),
        cmocka_unit_test(test_bad_parameters),
        cmocka_unit_test(test_bad_sessions),
        cmocka_unit_test(test_stops_where_asked),
        cmocka_unit_test(test_limit_says_needed_and_limit),
        cmocka_unit_test(test_sizes_after_each_other),
        cmocka_unit_test(test_one_seed_an_image),
        cmocka_unit_test(test_given_noise_is_the_drawn_noise),
        cmocka_unit_test(test_components_check_their_inputs),
        cmocka_unit_test(test_a_timestep_a_row),
        cmocka_unit_test(test_components_are_the_pipeline),
        cmocka_unit_test(test_sessions_side_by_side),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
