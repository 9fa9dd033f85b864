/* Conversion of whole models: every byte of the weights against the source, equal files from equal
 * sources, sources in all spellings, and one clear line for each thing that can be wrong with
 * one. */
#include "support_files.h"
#include "support_guard.h"
#include "support_pack.h"

#include "../convert/conversion.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define TINY "tests/data/tiny-sdxl"

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...) {
    char command[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    if (system(command) != 0) fail_msg("failed: %s", command);
}

static struct dpk_conversion *open_conversion(const struct dpk_convert_options *o) {
    struct dpk_conversion *c = NULL;
    dpk_error err;
    if (dpk_conversion_open(&c, o, &err)) fail_msg("%s: %s", o->source, err.msg);
    return c;
}

static void write_file(const struct dpk_conversion *c, int threads, const char *out) {
    dpk_error err;
    if (dpk_builder_write(dpk_conversion_builder(c), out, threads, NULL, NULL, &err))
        fail_msg("%s: %s", out, err.msg);
}

static void convert(const struct dpk_convert_options *o, int threads, const char *out) {
    struct dpk_conversion *c = open_conversion(o);
    write_file(c, threads, out);
    dpk_conversion_close(c);
}

static void assert_same_files(const char *a, const char *b) {
    size_t n_a, n_b;
    uint8_t *x = get_file(a, &n_a), *y = get_file(b, &n_b);
    if (n_a != n_b || memcmp(x, y, n_a) != 0) fail_msg("%s and %s differ", a, b);
    free(x);
    free(y);
}

/* ---- Every byte ------------------------------------------------------------------------------ */

struct source {
    struct dpk_source *folder;
    char prefix[8][512];
    struct dpk_tensors *tensors[8];
    int n;
};

static struct dpk_tensors *component(struct source *s, const char *prefix) {
    dpk_error err;
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->prefix[i], prefix) == 0) return s->tensors[i];
    snprintf(s->prefix[s->n], sizeof s->prefix[0], "%s", prefix);
    if (dpk_tensors_open(&s->tensors[s->n], s->folder, prefix, NULL, &err)) fail_msg("%s", err.msg);
    return s->tensors[s->n++];
}

/* The tensor as its operator sees it, from the source tensors that the file names. */
static float *logical_values(struct source *s, const char *sources, const struct dpk_shape *shape) {
    const size_t n = (size_t)dpk_shape_count(shape);
    float *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);
    size_t at = 0;
    dpk_error err;
    assert_non_null(x);
    assert_non_null(y);
    while (*sources) {
        char name[512];
        const size_t length = strcspn(sources, " ");
        assert_true(length < sizeof name);
        memcpy(name, sources, length);
        name[length] = 0;
        sources += length + (sources[length] == ' ');
        char *dot = strchr(name, '.');
        assert_non_null(dot);
        *dot = 0;
        struct dpk_tensors *tensors = component(s, name);
        const struct dpk_tensor_info *info = dpk_tensors_find(tensors, dot + 1);
        if (!info) fail_msg("no source tensor %s", dot + 1);
        assert_true(at + info->n_elements <= n);
        if (dpk_tensors_read_f32(tensors, info, 0, (size_t)info->n_elements, x + at, &err))
            fail_msg("%s", err.msg);
        at += (size_t)info->n_elements;
    }
    assert_int_equal(at, n);
    if (shape->rank < 4) {
        free(y);
        return x;
    }
    const int taps = shape->dim[1] * shape->dim[2], c = shape->dim[3];
    for (int r = 0; r < shape->dim[0]; r++)
        for (int i = 0; i < c; i++)
            for (int t = 0; t < taps; t++)
                y[((size_t)r * (size_t)taps + (size_t)t) * (size_t)c + (size_t)i] =
                    x[((size_t)r * (size_t)c + (size_t)i) * (size_t)taps + (size_t)t];
    free(x);
    return y;
}

/* Tensors stand in the order in which the programs use them. */
static void check_order(const struct dpk_file *f) {
    uint32_t next = 0;
    for (uint32_t p = 0; p < f->n_programs; p++)
        for (uint32_t i = 0; i < f->programs[p].n_ops; i++)
            for (int k = 0; k < DPK_MAX_WT; k++) {
                const uint32_t w = f->programs[p].ops[i].wt[k];
                if (w == DPK_NONE) continue;
                assert_true(w <= next);
                if (w == next) next++;
            }
    assert_int_equal(next, f->n_tensors);
}

static void check_file(const char *path, const char *model, int dtype) {
    static const char *const programs[] = {"text", "setup", "step", "decode", "encode"};
    struct dpk_file f;
    struct source s = {0};
    dpk_error err;
    if (dpk_file_open(&f, path, &err) || dpk_file_verify(&f, NULL, NULL, &err))
        fail_msg("%s", err.msg);
    if (dpk_source_open(&s.folder, model, &err)) fail_msg("%s", err.msg);
    assert_int_equal(f.n_programs, 5);
    for (int i = 0; i < 5; i++) assert_string_equal(f.programs[i].name, programs[i]);
    check_order(&f);
    for (uint32_t i = 0; i < f.n_tensors; i++) {
        const struct dpk_tensor_record *t = &f.tensors[i];
        const struct dpk_shape shape = dpk_tensor_shape(t);
        const size_t n = (size_t)dpk_shape_count(&shape);
        const char *name = dpk_file_string(&f, t->name);
        float *x = logical_values(&s, dpk_file_string(&f, t->source), &shape);
        size_t n_bytes = n * test_dtype_bytes((int)t->dtype);
        assert_int_equal(t->dtype, shape.rank == 1 ? DPK_F32 : dtype);
        void *want = t->layout == DPK_LAYOUT_RAW
                         ? test_encode_array((int)t->dtype, x, n)
                         : test_pack_weight((int)t->dtype, (int)t->layout, &shape, x, &n_bytes);
        assert_int_equal(t->bytes, n_bytes);
        if (memcmp(f.weights + t->offset, want, n_bytes) != 0) fail_msg("%s differs", name);
        test_guard_free(want, n_bytes);
        free(x);
    }
    dpk_file_close(&f);
    for (int i = 0; i < s.n; i++) dpk_tensors_close(s.tensors[i]);
    dpk_source_close(s.folder);
}

static void test_every_byte(void **state) {
    static const char *const models[] = {TINY, "models/shapes-xl", "tests/data/tiny-ssd1b",
                                         "tests/data/tiny-sd15"};
    static const int dtypes[] = {DPK_F32, DPK_BF16, DPK_F16};
    const char *a = in_dir(*state, "a.dpk"), *b = in_dir(*state, "b.dpk");
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int t = 0; t < 3; t++) {
            const struct dpk_convert_options o = {.source = models[m], .dtype = dtypes[t]};
            struct dpk_conversion *c = open_conversion(&o);
            write_file(c, 1, a);
            check_file(a, models[m], dtypes[t]);
            write_file(c, 3, b); /* the same whatever the number of threads */
            assert_same_files(a, b);
            dpk_conversion_close(c);
        }
}

/* ---- The same model in other clothes --------------------------------------------------------- */

/* Rewrite a safetensors file with every `from` in its header replaced. */
static void rename_tensors(const char *path, const char *from, const char *to) {
    size_t n_bytes;
    uint8_t *data = get_file(path, &n_bytes);
    uint64_t n_header;
    memcpy(&n_header, data, 8);
    char *header = calloc(1, (size_t)n_header * 2 + 1), *out = header;
    assert_non_null(header);
    const char *in = (const char *)data + 8, *end = in + n_header;
    size_t n_found = 0;
    while (in < end) {
        if ((size_t)(end - in) >= strlen(from) && memcmp(in, from, strlen(from)) == 0) {
            out += sprintf(out, "%s", to);
            in += strlen(from);
            n_found++;
        } else {
            *out++ = *in++;
        }
    }
    assert_true(n_found > 0);
    put_safetensors(path, header, data + 8 + n_header, n_bytes - 8 - (size_t)n_header);
    free(header);
    free(data);
}

static void replace_text(const char *path, const char *from, const char *to) {
    char *data = (char *)get_file(path, &(size_t){0}), *at = strstr(data, from), *text = NULL;
    if (!at) fail_msg("%s has no %s", path, from);
    assert_true(asprintf(&text, "%.*s%s%s", (int)(at - data), data, to, at + strlen(from)) > 0);
    put_text(path, text);
    free(text);
    free(data);
}

/* The weights of two files are the same. */
static void assert_same_weights(const char *a, const char *b) {
    struct dpk_file f, g;
    dpk_error err;
    if (dpk_file_open(&f, a, &err) || dpk_file_open(&g, b, &err)) fail_msg("%s", err.msg);
    assert_int_equal(f.n_tensors, g.n_tensors);
    assert_int_equal(f.weights_bytes, g.weights_bytes);
    assert_memory_equal(f.weights, g.weights, f.weights_bytes);
    dpk_file_close(&f);
    dpk_file_close(&g);
}

static void test_archive(void **state) {
    const char *tar = in_dir(*state, "tiny-sdxl.tar"), *zst = in_dir(*state, "tiny-sdxl.tar.zst");
    const char *a = in_dir(*state, "a.dpk"), *b = in_dir(*state, "b.dpk");
    put_archive(tar, "pax", "none", NULL, TINY, "");
    put_archive(zst, "pax", "zstd", NULL, TINY, "tiny-sdxl/");
    convert(&(struct dpk_convert_options){.source = TINY, .dtype = DPK_BF16}, 0, a);
    convert(&(struct dpk_convert_options){.source = tar, .dtype = DPK_BF16}, 0, b);
    assert_same_files(a, b); /* even the name */
    convert(&(struct dpk_convert_options){.source = zst, .dtype = DPK_BF16}, 0, b);
    assert_same_files(a, b);
}

/* CLIPTextModel as transformers 5 saves it; an autoencoder's attention under its names of 2022, and
 * as 1x1 convolutions. */
static void test_other_spellings(void **state) {
    const char *model = in_dir(*state, "model");
    const char *a = in_dir(*state, "a.dpk"), *b = in_dir(*state, "b.dpk");
    const char *vae = in_dir(model, "vae/diffusion_pytorch_model.safetensors");
    convert(&(struct dpk_convert_options){.source = TINY, .dtype = DPK_F32}, 0, a);
    shell("cp -r %s %s", TINY, model);
    rename_tensors(in_dir(model, "text_encoder/model.safetensors"), "text_model.", "");
    rename_tensors(vae, "attentions.0.to_q.", "attentions.0.query.");
    rename_tensors(vae, "attentions.0.to_k.", "attentions.0.key.");
    rename_tensors(vae, "attentions.0.to_v.", "attentions.0.value.");
    rename_tensors(vae, "attentions.0.to_out.0.", "attentions.0.proj_attn.");
    rename_tensors(vae, "[12,12]", "[12,12,1,1]");
    convert(&(struct dpk_convert_options){.source = model, .dtype = DPK_F32}, 0, b);
    assert_same_weights(a, b);
}

static void test_other_vae(void **state) {
    const char *fix = "tests/data/tiny-vae-fp16-fix";
    const char *a = in_dir(*state, "a.dpk"), *b = in_dir(*state, "b.dpk");
    const char *model = in_dir(*state, "model");
    convert(&(struct dpk_convert_options){.source = TINY, .dtype = DPK_F32, .vae = fix}, 0, a);
    shell("cp -r %s %s && rm -r %s/vae && cp -r %s %s/vae", TINY, model, model, fix, model);
    convert(&(struct dpk_convert_options){.source = model, .dtype = DPK_F32}, 0, b);
    assert_same_weights(a, b);
    /* a whole model in its place */
    convert(&(struct dpk_convert_options){.source = TINY, .dtype = DPK_F32, .vae = model}, 0, b);
    assert_same_files(a, b);
    convert(&(struct dpk_convert_options){.source = TINY, .dtype = DPK_F32}, 0, b);
    size_t n_a, n_b;
    uint8_t *x = get_file(a, &n_a), *y = get_file(b, &n_b);
    assert_true(n_a != n_b || memcmp(x, y, n_a) != 0);
    free(x);
    free(y);
}

/* ---- What is in the file besides weights ----------------------------------------------------- */

static void expect_meta(const struct dpk_conversion *c, const char *key, const char *want) {
    const char *got = dpk_builder_meta_get(dpk_conversion_builder(c), key);
    if (!got || strcmp(got, want) != 0) fail_msg("%s is %s, want %s", key, got ? got : "-", want);
}

static void test_metadata(void **state) {
    (void)state;
    struct dpk_conversion *c =
        open_conversion(&(struct dpk_convert_options){.source = TINY, .dtype = DPK_BF16});
    expect_meta(c, "model.name", "tiny-sdxl");
    expect_meta(c, "model.family", "sdxl");
    expect_meta(c, "convert.dtype", "bf16");
    expect_meta(c, "pipeline.steps", "50");
    expect_meta(c, "pipeline.guidance", "5");
    expect_meta(c, "pipeline.negative", "zeros");
    expect_meta(c, "pipeline.width", "1024");
    expect_meta(c, "pipeline.height", "1024");
    expect_meta(c, "pipeline.vae_scale", "8");
    expect_meta(c, "pipeline.size_multiple", "8");
    expect_meta(c, "pipeline.latent_channels", "4");
    expect_meta(c, "scheduler._class_name", "EulerDiscreteScheduler");
    expect_meta(c, "scheduler.beta_start", "0.00085");
    expect_meta(c, "scheduler.steps_offset", "1");
    expect_meta(c, "scheduler.trained_betas", "null");
    expect_meta(c, "scheduler.use_karras_sigmas", "false");
    expect_meta(c, "source.text_encoder_2.tensors", "69");
    dpk_conversion_close(c);

    c = open_conversion(
        &(struct dpk_convert_options){.source = "models/shapes-xl", .dtype = DPK_F16});
    expect_meta(c, "pipeline.width", "128");
    expect_meta(c, "source.text_encoder.parameters", "379904");
    expect_meta(c, "source.text_encoder_2.parameters", "689664");
    expect_meta(c, "source.unet.parameters", "4244900");
    expect_meta(c, "source.vae.parameters", "978103");
    dpk_conversion_close(c);

    c = open_conversion(
        &(struct dpk_convert_options){.source = "tests/data/tiny-sd15", .dtype = DPK_F32});
    expect_meta(c, "model.family", "sd");
    expect_meta(c, "pipeline.guidance", "7.5");
    expect_meta(c, "pipeline.negative", "encode");
    expect_meta(c, "source.unet.variant", "fp16");
    expect_meta(c, "pipeline.scaling_factor", "0.18215");
    dpk_conversion_close(c);
}

/* Real configs, no weights: counts as on the hub, to the unit. */
static void test_parameter_counts(void **state) {
    (void)state;
    static const struct {
        const char *model, *part;
        uint64_t n_params, n_tensors;
    } want[] = {
        {"sdxl-base-1.0", "text_encoder", 123060480, 196},
        {"sdxl-base-1.0", "text_encoder_2", 694659840, 517},
        {"sdxl-base-1.0", "unet", 2567463684, 1680},
        {"sdxl-base-1.0", "vae", 83653863, 248},
        {"ssd-1b", "unet", 1331334404, 944},
        {"sd-v1-5", "text_encoder", 123060480, 196},
        {"sd-v1-5", "unet", 859520964, 686},
        {"sd-v1-5", "vae", 83653863, 248},
        {"pixart-xl-2-1024-ms", "text_encoder", 4762310656, 219},
        {"pixart-xl-2-1024-ms", "transformer", 611349152, 611},
    };
    struct dpk_conversion *c = NULL;
    const char *model = "";
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        char path[128];
        const struct dpk_component *part = NULL;
        snprintf(path, sizeof path, "tests/data/configs/%s", want[i].model);
        if (strcmp(model, want[i].model) != 0) {
            dpk_conversion_close(c);
            c = open_conversion(&(struct dpk_convert_options){
                .source = path, .dtype = DPK_BF16, .random = true, .seed = 1});
            model = want[i].model;
        }
        for (int k = 0; (part = dpk_conversion_component(c, k)); k++)
            if (strcmp(part->prefix, want[i].part) == 0) break;
        assert_non_null(part);
        assert_int_equal(part->n_params, want[i].n_params);
        assert_int_equal(part->n_tensors, want[i].n_tensors);
        /* all but text encoders are used whole, so the file's tensors have as many elements */
        const struct dpk_builder *b = dpk_conversion_builder(c);
        uint64_t n = 0;
        for (size_t k = 0; k < dpk_builder_n_weights(b); k++)
            if (dpk_builder_weight(b, k)->from == part)
                n += (uint64_t)dpk_shape_count(&dpk_builder_weight(b, k)->shape);
        if (strncmp(want[i].part, "text", 4) != 0) assert_int_equal(n, want[i].n_params);
    }
    dpk_conversion_close(c);
}

/* Drawn weights: only configs and tokenizers, the same twice, another seed another file. */
static void test_random_weights(void **state) {
    const char *model = in_dir(*state, "model");
    const char *a = in_dir(*state, "a.dpk"), *b = in_dir(*state, "b.dpk");
    shell("cp -r %s %s && find %s -name '*.safetensors' -delete", TINY, model, model);
    struct dpk_convert_options o = {.source = model, .dtype = DPK_BF16, .random = true, .seed = 5};
    convert(&o, 1, a);
    convert(&o, 2, b);
    assert_same_files(a, b);
    o.seed = 6;
    convert(&o, 0, b);
    struct dpk_file f, g;
    dpk_error err;
    if (dpk_file_open(&f, a, &err) || dpk_file_verify(&f, NULL, NULL, &err) ||
        dpk_file_open(&g, b, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(f.weights_bytes, g.weights_bytes);
    for (uint32_t i = 0; i < f.n_tensors; i++)
        assert_memory_not_equal(f.weights + f.tensors[i].offset, g.weights + g.tensors[i].offset,
                                f.tensors[i].bytes);
    dpk_file_close(&f);
    dpk_file_close(&g);
}

/* ---- Wrong sources --------------------------------------------------------------------------- */

/* A fresh copy of tiny-sdxl. */
static const char *fresh(void **state) {
    const char *model = in_dir(*state, "wrong");
    shell("rm -rf %s && cp -r %s %s", model, TINY, model);
    return model;
}

/* Opening (or writing) fails with this code, and with these words in one line. */
static void expect_failure(void **state, const char *source, int dtype, int code,
                           const char *words) {
    struct dpk_conversion *c = NULL;
    const char *out = in_dir(*state, "wrong.dpk");
    dpk_error err = {0, ""};
    const struct dpk_convert_options o = {.source = source, .dtype = dtype};
    int rc = dpk_conversion_open(&c, &o, &err);
    if (rc == DPK_OK) rc = dpk_builder_write(dpk_conversion_builder(c), out, 2, NULL, NULL, &err);
    dpk_conversion_close(c);
    if (rc != code || !strstr(err.msg, words) || strchr(err.msg, '\n'))
        fail_msg("code %d, \"%s\", want %d, \"%s\"", rc, err.msg, code, words);
    assert_int_not_equal(access(out, F_OK), 0);
    shell("test -z \"$(ls %s | grep wrong.dpk)\"", (const char *)*state);
}

static void test_wrong_models(void **state) {
    const char *model = in_dir(*state, "empty");
    shell("mkdir %s", model);
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT, "model_index.json is missing");
    expect_failure(state, in_dir(*state, "nowhere"), DPK_BF16, DPK_EIO, "nowhere");

    model = fresh(state);
    replace_text(in_dir(model, "model_index.json"), "StableDiffusionXLPipeline", "FluxPipeline");
    expect_failure(state, model, DPK_BF16, DPK_EUNSUPPORTED,
                   "class FluxPipeline, supported: StableDiffusionXLPipeline, ");

    model = fresh(state);
    replace_text(in_dir(model, "model_index.json"), "UNet2DConditionModel", "UNet3DConditionModel");
    expect_failure(state, model, DPK_BF16, DPK_EUNSUPPORTED,
                   "unet: class UNet3DConditionModel, supported: UNet2DConditionModel");

    model = fresh(state);
    shell("rm -r %s/unet", model);
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT,
                   "component unet is missing: no unet/config.json");

    model = fresh(state);
    replace_text(in_dir(model, "model_index.json"), "\"vae\"", "\"vae_old\"");
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT, "component vae is missing");

    model = fresh(state);
    shell("rm %s/unet/*.safetensors", model);
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT, "unet");
}

static void test_wrong_configs(void **state) {
    static const struct {
        const char *file, *from, *to;
        int code;
        const char *words;
    } cases[] = {
        {"unet/config.json", "\"class_embed_type\": null", "\"class_embed_type\": \"timestep\"",
         DPK_EUNSUPPORTED, "class_embed_type"},
        {"unet/config.json", "\"resnet_time_scale_shift\": \"default\"",
         "\"resnet_time_scale_shift\": \"scale_shift\"", DPK_EUNSUPPORTED, "scale_shift"},
        {"unet/config.json", "\"DownBlock2D\"", "\"AttnDownBlock2D\"", DPK_EUNSUPPORTED,
         "AttnDownBlock2D"},
        {"unet/config.json", "\"dual_cross_attention\": false", "\"dual_cross_attention\": true",
         DPK_EUNSUPPORTED, "dual_cross_attention"},
        {"unet/config.json", "\"norm_num_groups\": 4", "\"norm_num_groups\": 3", DPK_EFORMAT,
         "3 groups do not divide"},
        {"unet/config.json", "\"text_time\"", "\"image\"", DPK_EUNSUPPORTED, "image"},
        {"vae/config.json", "\"latent_channels\": 4", "\"latent_channels\": 16", DPK_EUNSUPPORTED,
         "latent_channels 16, the denoiser takes 4"},
        {"vae/config.json", "\"force_upcast\": true", "\"mid_block_add_attention\": false",
         DPK_EFORMAT, "vae: found 20 tensors that the config has no place for: "},
        {"text_encoder/config.json", "\"intermediate_size\": 64", "\"intermediate_size\": 72",
         DPK_EFORMAT, "found [64, 16] F32, wanted [72, 16]"},
        {"text_encoder/config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4",
         DPK_EFORMAT, "is missing (wanted ["},
        {"text_encoder/config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2",
         DPK_EFORMAT, "text_encoder: found 16 tensors that the config has no place for"},
        {"text_encoder/config.json", "quick_gelu", "mish", DPK_EUNSUPPORTED, "mish"},
        {"text_encoder/config.json", "\"hidden_size\": 16", "\"hidden_size\": \"x\"", DPK_EFORMAT,
         "hidden_size"},
        {"text_encoder/config.json", "\"hidden_size\": 16",
         "\"use_attention_mask\": true, \"hidden_size\": 16", DPK_EUNSUPPORTED,
         "use_attention_mask is true"},
        {"vae/config.json", "\"latent_channels\": 4",
         "\"shift_factor\": 0.5, \"latent_channels\": 4", DPK_EUNSUPPORTED,
         "shift_factor is 0.5, supported: 0"},
        {"tokenizer/tokenizer_config.json", "\"model_max_length\": 77", "\"model_max_length\": 20",
         DPK_EUNSUPPORTED, "model_max_length is 20, the encoder takes 77"},
        {"tokenizer_2/tokenizer_config.json", "\"model_max_length\": 77",
         "\"model_max_length\": 77, \"padding_side\": \"left\"", DPK_EUNSUPPORTED,
         "padding_side is left"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *model = fresh(state);
        replace_text(in_dir(model, cases[i].file), cases[i].from, cases[i].to);
        expect_failure(state, model, DPK_BF16, cases[i].code, cases[i].words);
    }
}

/* The index's class runs, and StableDiffusionPipeline changes two of its numbers. */
static void test_scheduler_of_the_pipeline(void **state) {
    const char *model = in_dir(*state, "wrong"), *out = in_dir(*state, "imposed.dpk");
    dpk_error err;
    struct dpk_file f;
    shell("rm -rf %s && cp -r tests/data/tiny-sd15 %s", model, model);
    replace_text(in_dir(model, "model_index.json"), "PNDMScheduler", "DDIMScheduler");
    replace_text(in_dir(model, "scheduler/scheduler_config.json"), "\"steps_offset\": 1",
                 "\"steps_offset\": 0");
    replace_text(in_dir(model, "scheduler/scheduler_config.json"), "\"clip_sample\": false",
                 "\"clip_sample\": true");
    convert(&(struct dpk_convert_options){.source = model, .dtype = DPK_BF16}, 0, out);
    if (dpk_file_open(&f, out, &err)) fail_msg("%s", err.msg);
    assert_string_equal(dpk_file_meta(&f, "scheduler._class_name"), "DDIMScheduler");
    assert_string_equal(dpk_file_meta(&f, "scheduler.steps_offset"), "1");
    assert_string_equal(dpk_file_meta(&f, "scheduler.clip_sample"), "false");
    dpk_file_close(&f);
}

/* Parts that are right alone and do not fit together. */
static void test_parts_that_do_not_fit(void **state) {
    const char *model = fresh(state);
    shell("rm -r %s/unet && cp -r tests/data/tiny-sd15/unet %s/unet", model, model);
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT,
                   "program setup: input context wants size 24, it is made with 40");
}

/* Overwrite one value of a tensor in place. */
static void poke(const char *path, const char *tensor, uint64_t index, float value) {
    struct dpk_tensors *t;
    dpk_error err;
    if (dpk_tensors_open_file(&t, path, &err)) fail_msg("%s", err.msg);
    const struct dpk_tensor_info *info = dpk_tensors_find(t, tensor);
    assert_non_null(info);
    assert_int_equal(info->dtype, DPK_ST_F32);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)(info->offset + index * 4), SEEK_SET), 0);
    assert_int_equal(fwrite(&value, 4, 1, f), 1);
    assert_int_equal(fclose(f), 0);
    dpk_tensors_close(t);
}

static void test_wrong_values(void **state) {
    const char *model = fresh(state);
    const char *unet = in_dir(model, "unet/diffusion_pytorch_model.safetensors");
    poke(unet, "conv_out.weight", 8 * 9 + 4, NAN);
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT,
                   "unet: tensor conv_out.weight: NaN at [1, 0, 1, 1], wanted finite numbers");
    model = fresh(state);
    poke(unet, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v.weight", 35, 1e5f);
    expect_failure(state, model, DPK_F16, DPK_EUNSUPPORTED,
                   "attn1.to_v.weight: 100000 at [2, 3] is too large for f16");
    convert(&(struct dpk_convert_options){.source = model, .dtype = DPK_BF16}, 0,
            in_dir(*state, "good.dpk"));
    poke(unet, "conv_norm_out.bias", 7, -INFINITY);
    expect_failure(state, model, DPK_F32, DPK_EFORMAT,
                   "conv_norm_out.bias: infinity at [7], wanted finite numbers");
}

static void test_wrong_tensors(void **state) {
    const char *model = fresh(state);
    const char *unet = in_dir(model, "unet/diffusion_pytorch_model.safetensors");
    rename_tensors(unet, "\"conv_in.weight\"", "\"conv_in.weights\"");
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT,
                   "unet: tensor conv_in.weight is missing (wanted [8, 4, 3, 3])");
    model = fresh(state);
    rename_tensors(unet, "[8,4,3,3]", "[4,8,3,3]");
    expect_failure(state, model, DPK_BF16, DPK_EFORMAT,
                   "unet: tensor conv_in.weight: found [4, 8, 3, 3] F32, wanted [8, 4, 3, 3]");
}

/* ---- Stopping -------------------------------------------------------------------------------- */

static int stop_at_once(void *arg, uint64_t done, uint64_t total) {
    assert_true(done <= total);
    ++*(int *)arg;
    return 1;
}

static void test_cancel(void **state) {
    const char *out = in_dir(*state, "wrong.dpk");
    int calls = 0;
    dpk_error err;
    struct dpk_conversion *c =
        open_conversion(&(struct dpk_convert_options){.source = TINY, .dtype = DPK_F32});
    assert_int_equal(
        dpk_builder_write(dpk_conversion_builder(c), out, 2, stop_at_once, &calls, &err),
        DPK_ECANCELLED);
    assert_int_equal(calls, 1);
    dpk_conversion_close(c);
    shell("test -z \"$(ls %s)\"", (const char *)*state);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_every_byte),
        TEST(test_archive),
        TEST(test_other_spellings),
        TEST(test_other_vae),
        TEST(test_metadata),
        TEST(test_parameter_counts),
        TEST(test_random_weights),
        TEST(test_wrong_models),
        TEST(test_wrong_configs),
        TEST(test_parts_that_do_not_fit),
        TEST(test_scheduler_of_the_pipeline),
        TEST(test_wrong_values),
        TEST(test_wrong_tensors),
        TEST(test_cancel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
