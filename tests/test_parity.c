/* Every component against Hugging Face's numbers: text, denoise, decode, encode of each model, in
 * float32 (1e-4 relative L2, every case) and bfloat16 (2e-2 over the cases of a component together; where
 * PyTorch's own bfloat16 is further away than that, on the random weights of the tiny models, no
 * further than PyTorch: oracle_bf16.py measured it on the same cases). */
#include "../runtime/session.h"
#include "support_cuda.h"
#include "support_golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct model {
    const char *name, *source, *golden;
    int second_encoder;
    const char *maps[5];    /* denoiser cases */
    const char *decodes[3]; /* decoder cases */
    const char *encodes[3];
    int channels; /* of the denoiser's output that are used; 0: all */
    /* PyTorch's own bfloat16, over all cases of each component (tests/data/torch_bf16.json) */
    double torch_context, torch_pooled, torch_denoise, torch_decode, torch_encode;
};

static const struct model models[] = {
    {"tiny-sdxl",
     "tests/data/tiny-sdxl",
     "tests/data/golden/tiny-sdxl.safetensors",
     1,
     {"a", "b", "c", "odd"},
     {"square", "wide"},
     {"square", "tall"},
     0,
     0.0099,
     0.0157,
     0.0237,
     0.0101,
     0.0214},
    {.name = "tiny-ssd1b",
     .source = "tests/data/tiny-ssd1b",
     .golden = "tests/data/golden/tiny-ssd1b.safetensors",
     .second_encoder = 1,
     .maps = {"a", "b", "c", "odd"},
     .decodes = {"square", "wide"},
     .encodes = {"square", "tall"}},
    {.name = "tiny-sd15",
     .source = "tests/data/tiny-sd15",
     .golden = "tests/data/golden/tiny-sd15.safetensors",
     .maps = {"a", "b", "c", "odd"},
     .decodes = {"square", "wide"},
     .encodes = {"square", "tall"}},
    {.name = "tiny-pixart",
     .source = "tests/data/tiny-pixart",
     .golden = "tests/data/golden/tiny-pixart.safetensors",
     .maps = {"a", "b", "c"},
     .decodes = {"square", "wide"},
     .encodes = {"square", "tall"},
     .channels = 4},
};

enum { N_MODELS = sizeof models / sizeof *models };

/* One file at one precision. */
struct precision {
    const char *dtype;
    double limit; /* of relative L2; torch's own error is allowed where it is larger */
    int torch;
};
static const struct precision precisions[] = {
    {"f32", 1e-4, 0}, {"bf16", 2e-2, 1}, {"f16", 2e-2, 1}};

/* What computes; NULL: the CPU. An emulated device is slow, and gets one timestep, and of float32
 * the first and the last case of a component. */
static const char *backend;

static int skip_case(const struct precision *p, const char *const *cases, int c) {
    return backend && !p->torch && c > 0 && cases[c + 1];
}

/* Operators that a device has run, by opcode. */
static uint32_t ran[DPK_N_OPCODES];
static int (*real_run_list)(struct dpk_backend *be, const struct dpk_call *calls, size_t n,
                            const struct dpk_loop *loop, dpk_error *err);

static int counting_run_list(struct dpk_backend *be, const struct dpk_call *calls, size_t n,
                             const struct dpk_loop *loop, dpk_error *err) {
    for (size_t i = 0; i < n; i++) ran[calls[i].op->opcode]++;
    return real_run_list(be, calls, n, loop, err);
}

static dpk_session *open_session(const dpk_model *model) {
    dpk_error err;
    dpk_session *s = NULL;
    dpk_session_options o = dpk_session_options_default();
    o.backend = backend;
    if (dpk_session_create(&s, model, &o, &err)) fail_msg("%s", err.msg);
    if (s->backend->run_list) {
        real_run_list = s->backend->run_list;
        s->backend->run_list = counting_run_list;
    }
    return s;
}

static double limit_of(const struct precision *p, double torch) {
    return p->torch && torch > p->limit ? torch : p->limit;
}

/* Relative L2 over the cases of a component together. */
struct pool {
    double diff, want;
};

static void pool_check(const char *what, struct pool *p, double limit) {
    double error = sqrt(p->diff / (p->want > 0 ? p->want : 1));
    printf("%s: %.2e over all cases (limit %.2e)\n", what, error, limit);
    if (!(error <= limit)) fail_msg("%s: %g over %g", what, error, limit);
    *p = (struct pool){0, 0};
}

static const dpk_array *output(const dpk_arrays *out, const char *name) {
    for (size_t i = 0; i < out->n; i++)
        if (strcmp(out->at[i].name, name) == 0) return &out->at[i];
    fail_msg("no output %s", name);
    return NULL;
}

/* Compare one output with a golden array, and add it to the pool; keep_c: channels of the golden that count, 0 for all. */
static void compare(const char *what, const dpk_arrays *out, const char *name,
                    const dpk_array *want, int keep_c, const struct precision *p,
                    struct pool *pool) {
    const dpk_array *got = output(out, name);
    size_t n = golden_count(want), c = (size_t)want->dim[want->rank - 1];
    float *kept = want->data;
    if (keep_c > 0 && (size_t)keep_c < c) {
        size_t rows = n / c;
        kept = malloc(rows * (size_t)keep_c * sizeof *kept);
        assert_non_null(kept);
        for (size_t i = 0; i < rows; i++)
            memcpy(kept + i * (size_t)keep_c, (float *)want->data + i * c,
                   (size_t)keep_c * sizeof *kept);
        n = rows * (size_t)keep_c;
    }
    assert_int_equal(golden_count(got), n);
    double error = golden_relative(got->data, kept, n);
    for (size_t i = 0; i < n; i++) {
        double d = (double)((float *)got->data)[i] - (double)kept[i];
        pool->diff += d * d;
        pool->want += (double)kept[i] * (double)kept[i];
    }
    printf("%s %s: %.2e\n", what, name, error);
    if (kept != want->data) free(kept);
    if (!p->torch && !(error <= p->limit)) fail_msg("%s %s: %g", what, name, error);
}

static void run(dpk_session *s, const char *component, const dpk_array *in, size_t n,
                dpk_arrays **out) {
    dpk_error err;
    if (dpk_session_run(s, component, in, n, out, &err) != DPK_OK) fail_msg("%s", err.msg);
}

static void check_text(const struct model *m, const struct precision *p, dpk_session *s,
                       struct dpk_tensors *g) {
    struct pool pool = {0, 0};
    dpk_array in[3];
    size_t n = 0;
    dpk_arrays *out = NULL;
    in[n++] = golden_array(g, "text.ids", -1, 0);
    in[0].name = "ids";
    if (m->second_encoder) in[n] = golden_array(g, "text.ids_2", -1, 0), in[n++].name = "ids_2";
    if (golden_has(g, "text.mask"))
        in[n] = golden_array(g, "text.mask", -1, 0), in[n++].name = "mask";
    run(s, "text", in, n, &out);
    dpk_array want = golden_array(g, "text.embeds", -1, 0);
    compare(m->name, out, "context", &want, 0, p, &pool);
    pool_check(m->name, &pool, limit_of(p, m->torch_context));
    golden_free(&want);
    if (golden_has(g, "text.pooled")) {
        want = golden_array(g, "text.pooled", -1, 0);
        compare(m->name, out, "pooled", &want, 0, p, &pool);
        pool_check(m->name, &pool, limit_of(p, m->torch_pooled));
        golden_free(&want);
    }
    for (size_t i = 0; i < n; i++) golden_free(&in[i]);
    dpk_arrays_free(out);
}

static void check_denoise(const struct model *m, const struct precision *p, dpk_session *s,
                          struct dpk_tensors *g) {
    static const char *const names[] = {"sample",   "timesteps",  "context",      "pooled",
                                        "time_ids", "resolution", "aspect_ratio", "mask"};
    struct pool pool = {0, 0};
    for (int c = 0; c < 5 && m->maps[c]; c++) {
        char name[64], what[64];
        snprintf(name, sizeof name, "net.%s.out", m->maps[c]);
        if (skip_case(p, m->maps, c)) continue;
        for (int t = 0; t < (backend ? 1 : 3); t++) {
            dpk_array in[8], want = golden_array(g, name, t, 1);
            size_t n = 0;
            dpk_arrays *out = NULL;
            for (size_t i = 0; i < 8; i++) {
                char key[64];
                snprintf(key, sizeof key, "net.%s.%s", m->maps[c], names[i]);
                if (!golden_has(g, key)) continue;
                in[n] = golden_array(g, key, strcmp(names[i], "timesteps") == 0 ? t : -1, 1);
                in[n++].name = i == 0 ? "latent" : i == 1 ? "timestep" : names[i];
            }
            run(s, "denoise", in, n, &out);
            snprintf(what, sizeof what, "%s %s denoise %s t%d", m->name, p->dtype, m->maps[c], t);
            compare(what, out, "noise", &want, m->channels, p, &pool);
            for (size_t i = 0; i < n; i++) golden_free(&in[i]);
            golden_free(&want);
            dpk_arrays_free(out);
        }
    }
    if (m->maps[0]) pool_check("denoise", &pool, limit_of(p, m->torch_denoise));
}

static void check_vae(const struct model *m, const struct precision *p, dpk_session *s,
                      struct dpk_tensors *g) {
    struct pool pool = {0, 0}, logvar = {0, 0};
    char key[64], what[64];
    for (int c = 0; c < (backend ? 1 : 3) && m->decodes[c]; c++) {
        snprintf(what, sizeof what, "%s %s decode %s", m->name, p->dtype, m->decodes[c]);
        snprintf(key, sizeof key, "vae.decode.%s.latent", m->decodes[c]);
        dpk_array in = golden_array(g, key, -1, 1);
        in.name = "latent";
        snprintf(key, sizeof key, "vae.decode.%s.image", m->decodes[c]);
        dpk_array want = golden_array(g, key, -1, 1);
        dpk_arrays *out = NULL;
        run(s, "decode", &in, 1, &out);
        compare(what, out, "image", &want, 0, p, &pool);
        golden_free(&in), golden_free(&want), dpk_arrays_free(out);
    }
    if (m->decodes[0]) pool_check("decode", &pool, limit_of(p, m->torch_decode));
    for (int c = 0; c < (backend ? 1 : 3) && m->encodes[c]; c++) {
        snprintf(what, sizeof what, "%s %s encode %s", m->name, p->dtype, m->encodes[c]);
        snprintf(key, sizeof key, "vae.encode.%s.image", m->encodes[c]);
        dpk_array in = golden_array(g, key, -1, 1);
        in.name = "image";
        dpk_arrays *out = NULL;
        run(s, "encode", &in, 1, &out);
        for (int i = 0; i < 2; i++) {
            const char *part = i ? "logvar" : "mean";
            snprintf(key, sizeof key, "vae.encode.%s.%s", m->encodes[c], part);
            dpk_array want = golden_array(g, key, -1, 1);
            compare(what, out, part, &want, 0, p, i ? &logvar : &pool);
            golden_free(&want);
        }
        golden_free(&in), dpk_arrays_free(out);
    }
    if (m->encodes[0]) {
        pool_check("encode mean", &pool, limit_of(p, m->torch_encode));
        pool_check("encode logvar", &logvar, limit_of(p, m->torch_encode));
    }
}

static void check_model(const struct model *m, const struct precision *p) {
    dpk_error err;
    char name[64], options[64];
    struct dpk_tensors *g = NULL;
    snprintf(name, sizeof name, "%s-%s", m->name, p->dtype);
    snprintf(options, sizeof options, "--dtype %s", p->dtype);
    dpk_model *model = golden_model(name, m->source, options);
    if (dpk_tensors_open_file(&g, m->golden, &err)) fail_msg("%s", err.msg);
    dpk_session *s = open_session(model);
    if (golden_has(g, "text.ids")) check_text(m, p, s, g);
    check_denoise(m, p, s, g);
    check_vae(m, p, s, g);
    dpk_session_free(s);
    dpk_model_free(model);
    dpk_tensors_close(g);
}

static void test_components_f32(void **state) {
    (void)state;
    for (int i = 0; i < N_MODELS; i++) check_model(&models[i], &precisions[0]);
}

static void test_components_bf16(void **state) {
    (void)state;
    check_model(&models[0], &precisions[1]);
}

static void test_components_f16(void **state) {
    (void)state;
    check_model(&models[0], &precisions[2]);
}

/* The trained sample model: its goldens have names of their own. */
static void check_shapes(const struct precision *p) {
    dpk_error err;
    char name[64], key[64], what[128];
    struct dpk_tensors *g = NULL;
    dpk_session *s = NULL;
    dpk_arrays *out = NULL;
    struct pool pool = {0, 0};
    snprintf(name, sizeof name, "shapes-xl-%s", p->dtype);
    snprintf(key, sizeof key, "--dtype %s", p->dtype);
    dpk_model *model = golden_model(name, "models/shapes-xl", key);
    if (dpk_tensors_open_file(&g, "tests/data/shapes-xl-golden/main.safetensors", &err))
        fail_msg("%s", err.msg);
    if (dpk_session_create(&s, model, NULL, &err)) fail_msg("%s", err.msg);

    dpk_array ids[2] = {golden_array(g, "input_ids", -1, 0), golden_array(g, "input_ids_2", -1, 0)};
    ids[0].name = "ids", ids[1].name = "ids_2";
    dpk_array context = golden_array(g, "prompt_embeds", -1, 0);
    dpk_array pooled = golden_array(g, "pooled_prompt_embeds", -1, 0);
    run(s, "text", ids, 2, &out);
    compare("shapes-xl", out, "context", &context, 0, p, &pool);
    pool_check("shapes-xl context", &pool, p->limit);
    compare("shapes-xl", out, "pooled", &pooled, 0, p, &pool);
    pool_check("shapes-xl pooled", &pool, p->limit);
    dpk_arrays_free(out);
    golden_free(&ids[0]), golden_free(&ids[1]), golden_free(&context), golden_free(&pooled);

    static const int steps[] = {0, 10, 19};
    for (int i = 0; i < 6; i++) {
        int step = steps[i / 2], cond = i % 2 == 0;
        dpk_array in[5];
        snprintf(key, sizeof key, "unet_in.%d", step);
        in[0] = golden_array(g, key, -1, 1), in[0].name = "latent";
        in[1] = golden_array(g, "timesteps", step, 0), in[1].name = "timestep";
        in[2] = golden_array(g, cond ? "prompt_embeds" : "negative_prompt_embeds", -1, 0);
        in[3] =
            golden_array(g, cond ? "pooled_prompt_embeds" : "negative_pooled_prompt_embeds", -1, 0);
        in[4] = golden_array(g, "time_ids", -1, 0);
        in[2].name = "context", in[3].name = "pooled", in[4].name = "time_ids";
        snprintf(key, sizeof key, "unet_out_%s.%d", cond ? "cond" : "uncond", step);
        snprintf(what, sizeof what, "shapes-xl %s %s", p->dtype, key);
        dpk_array want = golden_array(g, key, -1, 1);
        run(s, "denoise", in, 5, &out);
        compare(what, out, "noise", &want, 0, p, &pool);
        for (int j = 0; j < 5; j++) golden_free(&in[j]);
        golden_free(&want), dpk_arrays_free(out);
    }

    pool_check("shapes-xl denoise", &pool, p->limit);

    dpk_array latent = golden_array(g, "latents_final", -1, 1);
    dpk_array image = golden_array(g, "decoded", -1, 1);
    latent.name = "latent";
    run(s, "decode", &latent, 1, &out);
    compare("shapes-xl", out, "image", &image, 0, p, &pool);
    pool_check("shapes-xl decode", &pool, p->limit);
    golden_free(&latent), golden_free(&image), dpk_arrays_free(out);
    dpk_session_free(s);
    dpk_model_free(model);
    dpk_tensors_close(g);
}

static void test_shapes_f32(void **state) {
    (void)state;
    check_shapes(&precisions[0]);
}

static void test_shapes_bf16(void **state) {
    (void)state;
    check_shapes(&precisions[1]);
}

/* The same goldens on the CUDA backend, which has run every operator of ops.def when it is done. */
static void test_components_cuda(void **state) {
    (void)state;
    if (!support_cuda_available()) skip();
    backend = "cuda";
    for (int i = 0; i < N_MODELS; i++) check_model(&models[i], &precisions[0]);
    for (int i = 1; i < 3; i++) check_model(&models[0], &precisions[i]);
    backend = NULL;
#define DPK_OP(number, name, inputs, weights, attributes)                                          \
    if (!ran[number]) fail_msg(#name " has not run on the device");
#include "../formats/ops.def"
#undef DPK_OP
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_components_f32), cmocka_unit_test(test_components_bf16),
        cmocka_unit_test(test_components_f16), cmocka_unit_test(test_shapes_f32),
        cmocka_unit_test(test_shapes_bf16),    cmocka_unit_test(test_components_cuda),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
