/* Whole pictures against diffusers: same prompt, seed, scheduler and steps give the same latents
 * after every step and the same 8-bit picture; and whatever the number of threads, the same bits. */
#include "support_golden.h"
#include "../formats/png.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What a trace callback keeps: every latent after a step, one after the other. */
struct trace {
    float *latents;
    size_t used, room;
};

static int keep_latents(void *arg, const dpk_array *a) {
    struct trace *t = arg;
    if (strncmp(a->name, "latent_", 7) != 0 || strcmp(a->name, "latent_000") == 0) return 0;
    size_t n = golden_count(a);
    if (t->used + n > t->room) {
        t->room = 2 * (t->used + n);
        t->latents = realloc(t->latents, t->room * sizeof *t->latents);
        assert_non_null(t->latents);
    }
    memcpy(t->latents + t->used, a->data, n * sizeof *t->latents);
    t->used += n;
    return 0;
}

static dpk_images *paint(dpk_session *s, const dpk_params *p) {
    dpk_error err;
    dpk_images *images = NULL;
    if (dpk_generate(s, p, &images, &err) != DPK_OK) fail_msg("%s", err.msg);
    return images;
}

static dpk_session *session(dpk_model *model, int threads) {
    dpk_error err;
    dpk_session *s = NULL;
    dpk_session_options o = dpk_session_options_default();
    o.threads = threads;
    if (dpk_session_create(&s, model, &o, &err) != DPK_OK) fail_msg("%s", err.msg);
    return s;
}

/* [S,B,C,H,W] as [S*B,C,H,W] in NHWC order. */
static dpk_array step_latents(struct dpk_tensors *g, const char *name) {
    struct dpk_tensor_info *info = dpk_tensors_find(g, name);
    if (!info) fail_msg("golden %s is missing", name);
    if (info->rank == 4) return golden_array(g, name, -1, 1);
    dpk_array all = golden_array(g, name, 0, 1);
    size_t steps = (size_t)info->dim[0], n = golden_count(&all);
    all.data = realloc(all.data, steps * n * sizeof(float));
    assert_non_null(all.data);
    for (size_t i = 1; i < steps; i++) {
        dpk_array one = golden_array(g, name, (int)i, 1);
        memcpy((float *)all.data + i * n, one.data, n * sizeof(float));
        golden_free(&one);
    }
    all.dim[0] *= (int32_t)steps;
    return all;
}

static void compare_latents(const char *what, const struct trace *t, const dpk_array *want) {
    size_t n = golden_count(want);
    assert_int_equal(t->used, n);
    double error = golden_relative(t->latents, want->data, n);
    printf("%s: latents %.2e\n", what, error);
    if (!(error <= 1e-3)) fail_msg("%s: latents differ by %g", what, error);
}

/* ---- The trained model: eight pictures ------------------------------------------------------- */

struct picture {
    const char *name;
    const char *prompts[2];
    const char *negative, *scheduler;
    int seed, steps, width, height;
    float guidance;
};

static const struct picture pictures[] = {
    {"main", {"a large red circle on a blue background"}, NULL, NULL, 42, 20, 128, 128, 5},
    {"euler8",
     {"a small yellow star at the top on a black background"},
     NULL,
     NULL,
     7,
     8,
     128,
     128,
     5},
    {"negative",
     {"a green heart on the left on a white background"},
     "a red circle",
     "euler",
     123,
     20,
     128,
     128,
     4},
    {"batch2",
     {"a purple ring on an orange background", "a pink cross on a gray background"},
     NULL,
     NULL,
     5,
     12,
     128,
     128,
     5},
    {"tall", {"a cyan diamond on a brown background"}, NULL, NULL, 11, 16, 128, 192, 5},
    {"wide_dpmpp",
     {"a red circle and a blue square on a white background"},
     NULL,
     "dpm++2m-karras",
     3,
     15,
     160,
     96,
     5},
    {"ancestral",
     {"a large orange triangle on a purple background"},
     NULL,
     "euler-a",
     99,
     20,
     128,
     128,
     5},
    {"ddim", {"a white circle on a red background"}, NULL, "ddim", 2024, 20, 128, 128, 4},
};

static dpk_params params_of(const struct picture *p, uint64_t *seed) {
    dpk_params q = dpk_params_default();
    q.prompts = p->prompts;
    q.n_prompts = p->prompts[1] ? 2 : 1;
    q.negative = p->negative;
    q.scheduler = p->scheduler;
    q.steps = (uint32_t)p->steps;
    q.width = (uint32_t)p->width, q.height = (uint32_t)p->height;
    q.guidance = p->guidance;
    *seed = (uint64_t)p->seed;
    q.seeds = seed, q.n_seeds = 1;
    return q;
}

/* Mean absolute difference of 8-bit pictures; `file` is one of the goldens. */
static double picture_difference(const char *file, const uint8_t *rgb, uint32_t w, uint32_t h) {
    dpk_error err;
    struct dpk_png png = {0};
    double sum = 0;
    if (dpk_png_read(&png, file, 1u << 24, &err) != DPK_OK) fail_msg("%s", err.msg);
    assert_int_equal(png.width, w);
    assert_int_equal(png.height, h);
    size_t n = (size_t)w * h * 3;
    for (size_t i = 0; i < n; i++) sum += abs((int)rgb[i] - (int)png.rgb[i]);
    dpk_png_free(&png);
    return sum / (double)n;
}

static void test_pictures_of_shapes(void **state) {
    (void)state;
    dpk_model *model = golden_model("shapes-xl-f32", "models/shapes-xl", "--dtype f32");
    dpk_session *s = session(model, 0);
    for (size_t i = 0; i < sizeof pictures / sizeof *pictures; i++) {
        const struct picture *p = &pictures[i];
        dpk_error err;
        struct trace t = {0};
        struct dpk_tensors *g = NULL;
        uint64_t seed;
        char path[256];
        dpk_params q = params_of(p, &seed);
        q.trace = keep_latents, q.trace_arg = &t;
        dpk_images *images = paint(s, &q);
        snprintf(path, sizeof path, "tests/data/shapes-xl-golden/%s.safetensors", p->name);
        if (dpk_tensors_open_file(&g, path, &err)) fail_msg("%s", err.msg);
        dpk_array want = step_latents(g, "latents_after_step");
        compare_latents(p->name, &t, &want);
        dpk_array final = golden_array(g, "latents_final", -1, 1);
        size_t n = golden_count(&final);
        double error = golden_relative(t.latents + t.used - n, final.data, n);
        if (!(error <= 1e-3)) fail_msg("%s: final latent differs by %g", p->name, error);
        for (uint32_t k = 0; k < images->n; k++) {
            const uint8_t *rgb = images->rgb + (size_t)k * images->width * images->height * 3;
            snprintf(path, sizeof path, "tests/data/shapes-xl-golden/%s%s.png", p->name,
                     images->n == 1 ? ""
                     : k            ? "_1"
                                    : "_0");
            double d = picture_difference(path, rgb, images->width, images->height);
            printf("%s: picture %.4f/255\n", p->name, d);
            if (!(d <= 0.5)) fail_msg("%s: pictures differ by %g/255", p->name, d);
        }
        dpk_images_free(images), dpk_tensors_close(g);
        golden_free(&want), golden_free(&final), free(t.latents);
    }
    dpk_session_free(s), dpk_model_free(model);
}

/* ---- Random tiny models: cases from their JSON files ----------------------------------------- */

static const char *text_of(const cJSON *o, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItem(o, key));
}

static double number_of(const cJSON *o, const char *key, double absent) {
    const cJSON *v = cJSON_GetObjectItem(o, key);
    return v ? cJSON_GetNumberValue(v) : absent;
}

/* Names of diffusers' classes as the command line has them. */
static const char *scheduler_of(const cJSON *c) {
    static const char *const names[][2] = {
        {"EulerAncestralDiscreteScheduler", "euler-a"},
        {"DPMSolverMultistepScheduler", "dpm++2m"},
    };
    const char *class_name = text_of(c, "scheduler");
    if (!class_name) return NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], class_name) == 0) return names[i][1];
    fail_msg("no name for scheduler %s", class_name);
    return NULL;
}

static void check_case(const char *model_name, dpk_session *s, struct dpk_tensors *g,
                       const cJSON *c) {
    struct trace t = {0};
    const char *prompt = text_of(c, "prompt");
    uint64_t seed = (uint64_t)number_of(c, "seed", 0);
    char what[96], key[96];
    dpk_params q = dpk_params_default();
    q.prompts = &prompt;
    q.images_per_prompt = (uint32_t)number_of(c, "images", 1);
    q.negative = text_of(c, "negative_prompt");
    q.steps = (uint32_t)number_of(c, "steps", 0);
    q.guidance = (float)number_of(c, "guidance", -1);
    q.guidance_rescale = (float)number_of(cJSON_GetObjectItem(c, "call"), "guidance_rescale", 0);
    q.width = (uint32_t)number_of(c, "width", 0), q.height = (uint32_t)number_of(c, "height", 0);
    q.no_binning = !cJSON_IsTrue(cJSON_GetObjectItem(c, "binning"));
    q.scheduler = scheduler_of(c);
    q.seeds = &seed, q.n_seeds = 1;
    q.trace = keep_latents, q.trace_arg = &t;
    dpk_images *images = paint(s, &q);
    snprintf(what, sizeof what, "%s %s", model_name, c->string);
    snprintf(key, sizeof key, "e2e.%s.latents", c->string);
    if (golden_has(g, key)) {
        dpk_array want = step_latents(g, key);
        compare_latents(what, &t, &want);
        golden_free(&want);
    }
    snprintf(key, sizeof key, "e2e.%s.image", c->string);
    dpk_array want = golden_array(g, key, -1, 1);
    size_t n = golden_count(&want);
    assert_int_equal(n, (size_t)images->n * images->width * images->height * 3);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)images->rgb[i] - 255.0 * (double)((float *)want.data)[i]);
    printf("%s: picture %.3f/255\n", what, sum / (double)n);
    if (!(sum / (double)n <= 0.5)) fail_msg("%s: pictures differ by %g/255", what, sum / (double)n);
    golden_free(&want), dpk_images_free(images), free(t.latents);
}

static void check_tiny(const char *name) {
    dpk_error err;
    char path[128], file[64];
    struct dpk_source *source = NULL;
    struct dpk_tensors *g = NULL;
    cJSON *json = NULL;
    const cJSON *c;
    snprintf(path, sizeof path, "tests/data/%s", name);
    snprintf(file, sizeof file, "%s-f32", name);
    dpk_model *model = golden_model(file, path, "--dtype f32");
    dpk_session *s = session(model, 0);
    snprintf(file, sizeof file, "%s.json", name);
    if (dpk_source_open(&source, "tests/data/golden", &err) ||
        dpk_source_json(source, file, &json, &err))
        fail_msg("%s", err.msg);
    snprintf(path, sizeof path, "tests/data/golden/%s.safetensors", name);
    if (dpk_tensors_open_file(&g, path, &err)) fail_msg("%s", err.msg);
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(json, "e2e")) {
        check_case(name, s, g, c);
    }
    cJSON_Delete(json), dpk_tensors_close(g), dpk_source_close(source);
    dpk_session_free(s), dpk_model_free(model);
}

static void test_pictures_of_tiny_models(void **state) {
    (void)state;
    check_tiny("tiny-sdxl");
    check_tiny("tiny-ssd1b");
    check_tiny("tiny-sd15");
    check_tiny("tiny-pixart");
}

/* ---- Threads, files -------------------------------------------------------------------------- */

static void test_threads_change_nothing(void **state) {
    (void)state;
    static const char *const options[] = {"--dtype f32", "--dtype bf16"};
    static const char *const names[] = {"shapes-xl-f32", "shapes-xl-bf16"};
    for (int d = 0; d < 2; d++) {
        dpk_model *model = golden_model(names[d], "models/shapes-xl", options[d]);
        struct trace first = {0};
        for (int threads = 1; threads <= 3; threads++) {
            struct trace t = {0};
            struct picture p = pictures[3];
            uint64_t seed;
            p.steps = 3, p.width = 96, p.height = 160;
            dpk_params q = params_of(&p, &seed);
            q.trace = keep_latents, q.trace_arg = &t;
            dpk_session *s = session(model, threads);
            dpk_images *images = paint(s, &q);
            if (threads == 1) {
                first = t;
            } else {
                assert_int_equal(t.used, first.used);
                assert_memory_equal(t.latents, first.latents, t.used * sizeof(float));
                free(t.latents);
            }
            dpk_images_free(images), dpk_session_free(s);
        }
        free(first.latents);
        dpk_model_free(model);
    }
}

static void test_converting_twice_gives_the_same_bytes(void **state) {
    (void)state;
    char one[1024];
    snprintf(one, sizeof one, "%s", golden_build_path("tests/twice-1.dpk"));
    dpk_model_free(golden_model("twice-1", "models/shapes-xl", ""));
    dpk_model_free(golden_model("twice-2", "models/shapes-xl", ""));
    assert_int_equal(golden_shell("cmp %s %s", one, golden_build_path("tests/twice-2.dpk")), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pictures_of_shapes),
        cmocka_unit_test(test_pictures_of_tiny_models),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_converting_twice_gives_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
