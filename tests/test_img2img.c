/* Image to image and inpainting against diffusers (oracle_img2img.py made the goldens): the resized
 * picture, what the sampler starts from, every step. And what is refused. */
#include "../runtime/resize.h"
#include "support_golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct dpk_tensors *golden;
static dpk_model *models[2]; /* xl, sd */

static int open_all(void **state) {
    (void)state;
    dpk_error err;
    models[0] = golden_model("img2img-xl", "models/shapes-xl", "--dtype f32");
    models[1] = golden_model("img2img-sd", "tests/data/tiny-sd15", "--dtype f32");
    if (dpk_tensors_open_file(&golden, "tests/data/img2img.safetensors", &err))
        fail_msg("%s", err.msg);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    dpk_tensors_close(golden);
    dpk_model_free(models[0]), dpk_model_free(models[1]);
    return 0;
}

/* A golden of bytes, with its sizes. */
struct picture {
    uint32_t width, height, channels;
    uint8_t *data;
};

static uint8_t *read_bytes(const char *name, struct dpk_tensor_info **info) {
    dpk_error err;
    *info = dpk_tensors_find(golden, name);
    if (!*info) fail_msg("golden %s is missing", name);
    uint8_t *data = malloc((*info)->n_bytes);
    assert_non_null(data);
    if (dpk_tensors_read(golden, *info, 0, data, (*info)->n_bytes, &err)) fail_msg("%s", err.msg);
    return data;
}

static struct picture read_picture(const char *name) {
    struct dpk_tensor_info *info;
    struct picture p = {.data = read_bytes(name, &info)};
    p.width = (uint32_t)info->dim[1], p.height = (uint32_t)info->dim[0];
    p.channels = info->rank == 3 ? 3 : 1;
    assert_int_equal(info->n_bytes, p.width * p.height * p.channels);
    return p;
}

/* ---- Resizing ------------------------------------------------------------------------------- */

static void check_resize(int index, const char *in_name, const char *out_name) {
    char name[32];
    dpk_error err;
    snprintf(name, sizeof name, "resize.%d.%s", index, in_name);
    struct picture in = read_picture(name);
    snprintf(name, sizeof name, "resize.%d.%s", index, out_name);
    struct picture want = read_picture(name);
    const size_t n = (size_t)want.width * want.height * want.channels;
    uint8_t *got = malloc(n);
    assert_int_equal(dpk_resize_lanczos(in.data, in.width, in.height, in.channels, got, want.width,
                                        want.height, &err),
                     DPK_OK);
    assert_memory_equal(got, want.data, n);
    free(got), free(in.data), free(want.data);
}

static void test_resizing_gives_the_bytes_of_pillow(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        check_resize(i, "in", "out");
        check_resize(i, "grey", "grey_out");
    }
}

static void test_same_size_is_a_copy(void **state) {
    (void)state;
    uint8_t in[5 * 3 * 3], out[5 * 3 * 3];
    for (size_t i = 0; i < sizeof in; i++) in[i] = (uint8_t)(i * 37);
    assert_int_equal(dpk_resize_lanczos(in, 5, 3, 3, out, 5, 3, NULL), DPK_OK);
    assert_memory_equal(in, out, sizeof in);
}

/* Twice as wide: the values between are quarters apart; the crop takes the middle. */
static void test_covering(void **state) {
    (void)state;
    const float in[2 * 3] = {0, 10, 100, 4, 14, 104}, want[4] = {0, 1, 3, 4};
    float out[4 * 3], cut[2 * 2 * 3];
    dpk_resize_cover(in, 2, 1, out, 4, 1); /* of 4x2, the upper row */
    for (int x = 0; x < 4; x++)
        for (int c = 0; c < 3; c++) assert_float_equal(out[3 * x + c], want[x] + in[c], 1e-5);
    dpk_resize_cover(in, 2, 1, cut, 2, 2); /* of 4x2, columns 1 and 2 */
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < 3; c++)
            assert_float_equal(cut[3 * i + c], want[1 + i % 2] + in[c], 1e-5);
}

/* ---- Cases ---------------------------------------------------------------------------------- */

struct run {
    const char *name, *scheduler;
    int model;
    uint32_t n_prompts, images;
    uint64_t seeds[2];
    uint32_t n_seeds, width, height; /* 0: the picture's */
    double strength;
    uint32_t steps;
    float guidance;
};

static const struct run runs[] = {
    {"xl", NULL, 0, 1, 1, {11}, 1, 0, 0, 0.6, 10, 5},
    {"xl_resized", "dpm++2m-karras", 0, 1, 2, {12}, 1, 96, 128, 0.5, 12, 5},
    {"xl_ancestral", "euler-a", 0, 2, 1, {5, 6}, 2, 0, 0, 0.75, 8, 4},
    {"xl_heun", "heun", 0, 1, 1, {3}, 1, 0, 0, 0.7, 10, 5},
    {"sd", NULL, 1, 1, 1, {21}, 1, 0, 0, 0.55, 10, 7.5f},
    {"sd_full", "ddim", 1, 1, 2, {22}, 1, 0, 0, 1, 5, 7.5f},
    {"sd_unipc", "unipc", 1, 1, 1, {23}, 1, 0, 0, 0.8, 10, 1},
    {"mask_xl", NULL, 0, 1, 1, {31}, 1, 0, 0, 0.7, 10, 5},
    {"mask_xl_full", "euler-a", 0, 1, 2, {32, 33}, 2, 96, 128, 1, 6, 5},
    {"mask_sd", "euler-a", 1, 1, 2, {34}, 1, 0, 0, 0.6, 10, 7.5f},
    {"mask_sd_pndm", NULL, 1, 1, 1, {35}, 1, 0, 0, 0.9, 10, 7.5f},
    {"mask_sd_unipc", "unipc", 1, 1, 1, {36}, 1, 0, 0, 0.7, 10, 7.5f},
    {"mask_sd_heun", "heun", 1, 1, 1, {37}, 1, 0, 0, 0.7, 10, 7.5f},
    {"mask_sd_lcm", "lcm", 1, 1, 1, {38}, 1, 0, 0, 0.8, 5, 7.5f},
};

static const char *const prompts[2] = {"a large red circle on a blue background",
                                       "a small yellow star on a black background"};

/* Compares each latent with the golden's as it comes. */
struct watch {
    const char *name;
    uint32_t seen;
    double worst;
};

static int compare_latent(void *arg, const dpk_array *a) {
    struct watch *w = arg;
    char key[64];
    if (strncmp(a->name, "latent_", 7)) return 0;
    assert_int_equal(atoi(a->name + 7), w->seen);
    snprintf(key, sizeof key, "%s.latents", w->name);
    dpk_array want = golden_array(golden, key, (int)w->seen, 1);
    assert_int_equal(golden_count(a), golden_count(&want));
    double error = golden_relative(a->data, want.data, golden_count(a));
    if (!(error <= 1e-3)) fail_msg("%s: latent %u differs by %g", w->name, w->seen, error);
    if (error > w->worst) w->worst = error;
    golden_free(&want);
    w->seen++;
    return 0;
}

static void compare_image(const char *name, const dpk_images *images) {
    char key[64];
    struct dpk_tensor_info *info;
    snprintf(key, sizeof key, "%s.image", name);
    if (!golden_has(golden, key)) return;
    uint8_t *want = read_bytes(key, &info);
    const size_t n = (size_t)images->n * images->height * images->width * 3;
    double sum = 0;
    assert_int_equal(n, info->n_bytes);
    for (size_t i = 0; i < n; i++) sum += abs((int)images->rgb[i] - (int)want[i]);
    printf("%s: picture %.4f/255\n", name, sum / (double)n);
    assert_true(sum / (double)n <= 0.5);
    free(want);
}

static void check_run(const struct run *r, dpk_session *session) {
    dpk_error err;
    char key[64];
    dpk_images *images = NULL;
    struct watch watch = {.name = r->name};
    dpk_info info;
    snprintf(key, sizeof key, "%s.init", r->name);
    struct picture init = read_picture(key), mask = {0};
    snprintf(key, sizeof key, "%s.mask", r->name);
    if (golden_has(golden, key)) mask = read_picture(key);
    dpk_params p = dpk_params_default();
    p.prompts = prompts, p.n_prompts = r->n_prompts, p.images_per_prompt = r->images;
    p.seeds = r->seeds, p.n_seeds = r->n_seeds;
    p.width = r->width, p.height = r->height;
    p.scheduler = r->scheduler, p.steps = r->steps, p.guidance = r->guidance;
    p.init = init.data, p.init_width = init.width, p.init_height = init.height;
    p.mask = mask.data, p.mask_width = mask.width, p.mask_height = mask.height;
    p.strength = r->strength;
    p.trace = compare_latent, p.trace_arg = &watch;
    if (dpk_session_plan(session, &p, &info, &err) || dpk_generate(session, &p, &images, &err))
        fail_msg("%s: %s", r->name, err.msg);
    assert_int_equal(images->width, r->width ? r->width : init.width);
    assert_int_equal(images->height, r->height ? r->height : init.height);
    snprintf(key, sizeof key, "%s.latents", r->name);
    assert_int_equal(watch.seen, dpk_tensors_find(golden, key)->dim[0]);
    assert_true(info.n_calls + 1 >= watch.seen && info.steps == r->steps);
    printf("%s: %u latents, %.2e\n", r->name, watch.seen, watch.worst);
    compare_image(r->name, images);
    dpk_images_free(images), free(init.data), free(mask.data);
}

static dpk_session *make_session(int model) {
    dpk_error err;
    dpk_session *s = NULL;
    if (dpk_session_create(&s, models[model], NULL, &err)) fail_msg("%s", err.msg);
    return s;
}

static void test_cases(void **state) {
    (void)state;
    dpk_session *sessions[2] = {make_session(0), make_session(1)};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        check_run(&runs[i], sessions[runs[i].model]);
    dpk_session_free(sessions[0]), dpk_session_free(sessions[1]);
}

/* ---- A mask of nothing and of everything ---------------------------------------------------- */

static dpk_params small(const uint8_t *init, const uint8_t *mask) {
    dpk_params p = dpk_params_default();
    p.prompts = prompts, p.steps = 4, p.strength = 0.5;
    p.init = init, p.init_width = p.init_height = 64;
    p.mask = mask, p.mask_width = p.mask_height = 64;
    return p;
}

static int keep_last(void *arg, const dpk_array *a) {
    if (!strncmp(a->name, "latent_", 7)) memcpy(arg, a->data, golden_count(a) * sizeof(float));
    return 0;
}

/* With nothing to repaint the result is the picture's own latent, whatever the prompt; with all of
 * it the mask changes nothing. */
static void test_extreme_masks(void **state) {
    (void)state;
    enum { N = 8 * 8 * 4 };
    dpk_error err;
    static uint8_t init[64 * 64 * 3], none[64 * 64], all[64 * 64];
    float kept[2][N], whole[N], plain[N];
    for (size_t i = 0; i < sizeof init; i++) init[i] = (uint8_t)(i * i >> 7);
    memset(all, 255, sizeof all);
    memset(none, 127, sizeof none);
    dpk_session *s = make_session(0);
    for (int i = 0; i < 4; i++) {
        dpk_images *images = NULL;
        dpk_params p = small(init, i < 2 ? none : i == 2 ? all : NULL);
        p.prompts = &prompts[i == 1];
        p.trace = keep_last, p.trace_arg = i < 2 ? kept[i] : i == 2 ? whole : plain;
        if (dpk_generate(s, &p, &images, &err)) fail_msg("%s", err.msg);
        dpk_images_free(images);
    }
    assert_memory_equal(kept[0], kept[1], sizeof kept[0]);
    assert_memory_equal(whole, plain, sizeof whole);
    assert_true(golden_relative(kept[0], plain, N) > 0.01);
    dpk_session_free(s);
}

/* ---- Refusals ------------------------------------------------------------------------------- */

static void refuse(dpk_session *s, const dpk_params *p, const char *text) {
    dpk_error err = {0};
    dpk_images *images = NULL;
    int rc = dpk_generate(s, p, &images, &err);
    assert_null(images);
    if (rc != DPK_EARG || !strstr(err.msg, text)) fail_msg("%d %s, want %s", rc, err.msg, text);
}

static void test_refusals(void **state) {
    (void)state;
    static uint8_t init[64 * 64 * 3], mask[64 * 64];
    dpk_session *s = make_session(0);
    dpk_params p = small(init, mask);
    p.mask_width = 32, refuse(s, &p, "the mask is 32x64, the picture to start from is 64x64");
    p = small(init, mask), p.init = NULL, refuse(s, &p, "no picture");
    p = small(init, NULL), p.init_height = 0, refuse(s, &p, "64x0");
    p = small(init, NULL), p.strength = 0, refuse(s, &p, "strength is 0");
    p = small(init, NULL), p.strength = 1.5, refuse(s, &p, "strength is 1.5");
    p = small(init, NULL), p.strength = 0.2, refuse(s, &p, "0.2 of 4 steps");
    p = small(init, NULL), p.strength = 0.0 / 0.0, refuse(s, &p, "strength");
    p = small(init, NULL), p.width = 100, refuse(s, &p, "width is 100");
    dpk_session_free(s);
}

/* A picture of any size gets the nearest size below that the model can paint. */
static void test_size_of_the_picture(void **state) {
    (void)state;
    dpk_error err;
    dpk_info info;
    static uint8_t init[64 * 64 * 3];
    dpk_session *s = make_session(0);
    dpk_params p = small(init, NULL);
    p.init_width = 63, p.init_height = 5;
    if (dpk_session_plan(s, &p, &info, &err)) fail_msg("%s", err.msg);
    assert_int_equal(info.width, 56);
    assert_int_equal(info.height, 8);
    dpk_session_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resizing_gives_the_bytes_of_pillow),
        cmocka_unit_test(test_same_size_is_a_copy),
        cmocka_unit_test(test_covering),
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_extreme_masks),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_size_of_the_picture),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
