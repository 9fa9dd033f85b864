/* Models in one file: the same weights as those of the folder that the file was made from, whatever
 * the names and the forms in which the file has them; built-in configs; what is refused. */
#include "support_files.h"
#include "support_tensors.h"

#include "../convert/conversion.h"
#include "../convert/ldm.h"
#include "../formats/config.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct dpk_conversion *convert(const struct dpk_convert_options *o) {
    struct dpk_conversion *c = NULL;
    dpk_error err;
    if (dpk_conversion_open(&c, o, &err)) fail_msg("%s: %s", o->source, err.msg);
    return c;
}

static void refuse(const struct dpk_convert_options *o, int code, const char *text) {
    struct dpk_conversion *c = NULL;
    dpk_error err = {.code = 0};
    const int rc = dpk_conversion_open(&c, o, &err);
    if (rc != code || !strstr(err.msg, text))
        fail_msg("%s: %d %s, wanted %d %s", o->source, rc, err.msg, code, text);
    if (strchr(err.msg, '\n')) fail_msg("more than a line: %s", err.msg);
    assert_null(c);
}

/* ---- Equal weights --------------------------------------------------------------------------- */

/* To the nearest half: 11 bits, the last of at least 2^-24. */
static float to_half(float x) {
    int e;
    frexpf(x, &e);
    const float unit = ldexpf(1.0f, e < -13 ? -24 : e - 11);
    return rintf(x / unit) * unit;
}

/* All weights of a, each through `change`, are those of b. Rows are read in uneven pieces. */
static void compare(const struct dpk_conversion *a, const struct dpk_conversion *b,
                    float (*change)(const char *name, float x)) {
    const struct dpk_builder *x = dpk_conversion_builder(a), *y = dpk_conversion_builder(b);
    dpk_error err;
    assert_int_equal(dpk_builder_n_weights(x), dpk_builder_n_weights(y));
    assert_int_equal(dpk_builder_n_ops(x), dpk_builder_n_ops(y));
    for (size_t i = 0; i < dpk_builder_n_weights(x); i++) {
        const struct dpk_weight_plan *p = dpk_builder_weight(x, i), *q = dpk_builder_weight(y, i);
        assert_string_equal(p->name, q->name);
        const struct dpk_weight_units u = dpk_weight_units(p);
        const uint64_t rows = p->shape.rank == 1 ? 1 : (uint64_t)p->shape.dim[0];
        for (uint64_t r = 0, n = 5; r < rows; r += n, n = n % 7 + 3) {
            if (n > rows - r) n = rows - r;
            const size_t count = (size_t)(n * u.row);
            float *v = malloc(count * sizeof *v), *w = malloc(count * sizeof *w);
            assert_true(v && w);
            if (dpk_weight_read_rows(p, r, n, v, &err) || dpk_weight_read_rows(q, r, n, w, &err))
                fail_msg("%s", err.msg);
            for (size_t k = 0; k < count; k++)
                if (change(p->name, v[k]) != w[k])
                    fail_msg("%s: row %llu value %zu: %g, wanted %g", p->name,
                             (unsigned long long)r, k, (double)w[k], (double)v[k]);
            free(v);
            free(w);
        }
    }
    for (int i = 0; dpk_conversion_component(a, i); i++)
        assert_int_equal(dpk_conversion_component(a, i)->n_params,
                         dpk_conversion_component(b, i)->n_params);
}

static float rounded(const char *name, float x) { return (void)name, to_half(x); }
static float same(const char *name, float x) { return (void)name, x; }

static void test_files_equal_folders(void **state) {
    static const char *const models[] = {"tests/data/tiny-sd15", "tests/data/tiny-sdxl"};
    static const char *const files[] = {"tests/data/single/tiny-sd15.safetensors",
                                        "tests/data/single/tiny-sdxl.safetensors"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct dpk_convert_options o = {.source = models[i], .dtype = DPK_F32};
        struct dpk_conversion *folder = convert(&o);
        o.source = files[i];
        o.configs = models[i];
        struct dpk_conversion *file = convert(&o);
        compare(folder, file, i == 0 ? same : rounded);
        const struct dpk_builder *b = dpk_conversion_builder(file);
        assert_string_equal(dpk_builder_meta_get(b, "source.checkpoint"),
                            i == 0 ? "Stable Diffusion 1.x" : "SDXL");
        assert_string_equal(dpk_builder_meta_get(b, "model.name"),
                            i == 0 ? "tiny-sd15" : "tiny-sdxl");
        dpk_conversion_close(file);
        dpk_conversion_close(folder);
    }
}

/* ---- Files made from folders ----------------------------------------------------------------- */

struct naming {
    const char *component, *prefix;
    dpk_place_of *place;
    int vae_levels;
};
#define UNET "model.diffusion_model."
static const struct naming sd_naming[] = {
    {"unet", UNET, dpk_ldm_unet, 0},
    {"vae", "first_stage_model.", dpk_ldm_vae, 4},
    {"text_encoder", "cond_stage_model.transformer.", dpk_ldm_clip, 0},
    {NULL, NULL, NULL, 0}};
static const struct naming xl_naming[] = {
    {"unet", UNET, dpk_ldm_unet, 0},
    {"vae", "first_stage_model.", dpk_ldm_vae, 4},
    {"text_encoder", "conditioner.embedders.0.transformer.", dpk_ldm_clip, 0},
    {"text_encoder_2", "conditioner.embedders.1.model.", dpk_ldm_open_clip, 0},
    {NULL, NULL, NULL, 0}};
static const struct naming pixart_naming[] = {{"transformer", "", dpk_ldm_pixart, 0},
                                              {NULL, NULL, NULL, 0}};
static const struct naming vae_naming[] = {{"vae", "", dpk_ldm_vae, 4}, {NULL, NULL, NULL, 0}};

/* Put what a component was asked for where a checkpoint has it. alternative: of places; minus one:
 * as running averages too, with the other sign. */
static void put_component(struct tensor_file *f, const struct dpk_component *c,
                          const struct naming *naming, int alternative) {
    struct dpk_names names = {.vae_levels = naming->vae_levels};
    dpk_error err;
    for (uint64_t i = 0; i < c->n_tensors; i++) {
        const struct dpk_asked *a = &c->asked[i];
        struct dpk_weight_part part;
        struct dpk_place place;
        char name[700];
        dpk_component_find(c, a->name, a->dim[0], &part);
        assert_non_null(part.info);
        assert_true(naming->place(&names, a->name, 0, &place));
        if (alternative > 0) naming->place(&names, a->name, alternative, &place);
        uint64_t dim[4] = {a->dim[0] * (uint64_t)place.n_parts, a->dim[1], a->dim[2], a->dim[3]};
        if (place.transposed) dim[0] = a->dim[1], dim[1] = a->dim[0];
        snprintf(name, sizeof name, "%s%s", naming->prefix, place.name);
        float *to = tensor_file_add(f, name, a->rank, dim);
        const size_t n = (size_t)part.info->n_elements;
        float *from = malloc(n * sizeof *from);
        assert_non_null(from);
        if (dpk_tensors_read_f32(c->tensors, part.info, 0, n, from, &err)) fail_msg("%s", err.msg);
        for (size_t k = 0; k < n; k++) {
            if (place.transposed) to[k % dim[0] * dim[1] + k / dim[0]] = from[k];
            else to[(size_t)place.part * n + k] = from[k];
        }
        if (alternative < 0) {
            char flat[700] = "model_ema.";
            size_t at = strlen(flat);
            for (const char *p = strchr(name, '.'); *p; p++)
                if (*p != '.') flat[at++] = *p;
            float *mean = tensor_file_add(f, flat, a->rank, dim);
            for (size_t k = 0; k < n; k++) mean[k] = -to[k];
        }
        free(from);
    }
}

/* A checkpoint of the folder's model, as far as `naming` goes; extra: names of empty tensors. */
static const char *make_checkpoint(const char *dir, const char *file, const char *model,
                                   const struct naming *naming, int alternative,
                                   const char *const *extra) {
    const struct dpk_convert_options o = {.source = model, .dtype = DPK_F32};
    const char *path = in_dir(dir, file);
    struct dpk_conversion *c = convert(&o);
    struct tensor_file *f = tensor_file_new();
    const struct dpk_component *part;
    for (int i = 0; (part = dpk_conversion_component(c, i)); i++)
        for (const struct naming *n = naming; n->component; n++)
            if (strcmp(n->component, part->prefix) == 0) put_component(f, part, n, alternative);
    for (; extra && *extra; extra++) TENSOR_FILE_ADD(f, *extra, 1);
    tensor_file_write(f, path);
    dpk_conversion_close(c);
    return path;
}

static void check_round(const char *model, const char *path, const char *family) {
    struct dpk_convert_options o = {.source = model, .dtype = DPK_F32};
    struct dpk_conversion *folder = convert(&o);
    o.source = path;
    o.configs = model;
    struct dpk_conversion *file = convert(&o);
    compare(folder, file, same);
    assert_string_equal(dpk_builder_meta_get(dpk_conversion_builder(file), "source.checkpoint"),
                        family);
    dpk_conversion_close(file);
    dpk_conversion_close(folder);
}

static void test_ssd1b(void **state) {
    const char *path =
        make_checkpoint(*state, "s.safetensors", "tests/data/tiny-ssd1b", xl_naming, 0, NULL);
    check_round("tests/data/tiny-ssd1b", path, "SSD-1B");
}

/* Its upsamplers stand elsewhere, its text encoder lacks a part of the names. */
static void test_other_places(void **state) {
    static const char *const extra[] = {"cond_stage_model.transformer.text_projection.weight",
                                        "alphas_cumprod", NULL};
    const char *path =
        make_checkpoint(*state, "o.safetensors", "tests/data/tiny-sd15", sd_naming, 1, extra);
    check_round("tests/data/tiny-sd15", path, "Stable Diffusion 1.x");
}

/* PixArt's file has the transformer alone, the rest comes with the configs. */
static void test_pixart(void **state) {
    static const char *const extra[] = {"pos_embed", "y_embedder.y_embedding", NULL};
    const char *path =
        make_checkpoint(*state, "p.safetensors", "tests/data/tiny-pixart", pixart_naming, 0, extra);
    check_round("tests/data/tiny-pixart", path, "PixArt-alpha");
}

static float negated_unet(const char *name, float x) {
    return strncmp(name, "unet.", 5) == 0 ? -x : x;
}

static void test_running_averages(void **state) {
    static const char *const mark[] = {"model_ema.num_updates", NULL};
    const char *model = "tests/data/tiny-sd15";
    struct dpk_convert_options o = {.source = model, .dtype = DPK_F32};
    struct dpk_conversion *folder = convert(&o), *file;
    o.configs = model;
    o.ema = true;
    o.source = make_checkpoint(*state, "e.safetensors", model, sd_naming, 0, mark);
    refuse(&o, DPK_EFORMAT, "is missing among the running averages");
    struct tensor_file *f = tensor_file_new();
    const struct dpk_component *part;
    for (int i = 0; (part = dpk_conversion_component(folder, i)); i++)
        for (const struct naming *n = sd_naming; n->component; n++)
            if (strcmp(n->component, part->prefix) == 0)
                put_component(f, part, n, strcmp(n->component, "unet") == 0 ? -1 : 0);
    TENSOR_FILE_ADD(f, mark[0], 1);
    tensor_file_write(f, o.source);
    file = convert(&o);
    compare(folder, file, negated_unet);
    dpk_conversion_close(file);
    o.ema = false;
    file = convert(&o);
    compare(folder, file, same);
    dpk_conversion_close(file);
    dpk_conversion_close(folder);
    o.ema = true;
    o.source = "tests/data/single/tiny-sdxl.safetensors";
    o.configs = "tests/data/tiny-sdxl";
    refuse(&o, DPK_EARG, "no running averages");
}

/* An autoencoder in a file of its own, in both namings. */
static void test_vae_file(void **state) {
    const char *model = "tests/data/tiny-sdxl", *fix = "tests/data/tiny-vae-fp16-fix";
    struct dpk_convert_options o = {.source = model, .dtype = DPK_F32, .vae = fix};
    struct dpk_conversion *folder = convert(&o), *file;
    o.vae = "tests/data/tiny-vae-fp16-fix/diffusion_pytorch_model.safetensors";
    file = convert(&o);
    compare(folder, file, same);
    dpk_conversion_close(file);
    struct tensor_file *f = tensor_file_new();
    const struct dpk_component *part;
    for (int i = 0; (part = dpk_conversion_component(folder, i)); i++)
        if (strcmp(part->prefix, "vae") == 0) put_component(f, part, vae_naming, 0);
    o.vae = in_dir(*state, "vae.safetensors");
    tensor_file_write(f, o.vae);
    file = convert(&o);
    compare(folder, file, same);
    dpk_conversion_close(file);
    dpk_conversion_close(folder);
}

/* ---- Configs --------------------------------------------------------------------------------- */

static void test_built_in_configs(void **state) {
    static const struct {
        const char *folder;
        const char *const (*files)[2];
        size_t n;
    } all[] = {{"tests/data/configs/sd-v1-5", dpk_ldm_files_sd15, 7},
               {"tests/data/configs/sdxl-base-1.0", dpk_ldm_files_sdxl, 10},
               {"tests/data/configs/ssd-1b", dpk_ldm_files_ssd1b, 10},
               {"tests/data/configs/pixart-xl-2-1024-ms", dpk_ldm_files_pixart, 4}};
    /* left out: they say nothing of the model */
    static const char *const idle[] = {"_name_or_path",
                                       "torch_dtype",
                                       "transformers_version",
                                       "attention_dropout",
                                       "dropout",
                                       "initializer_factor",
                                       "initializer_range",
                                       "name_or_path",
                                       "architectures",
                                       "special_tokens_map_file",
                                       "feature_extractor",
                                       "safety_checker",
                                       "add_watermarker",
                                       "clean_up_tokenization_spaces"};
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        size_t n = 0;
        for (; all[i].files[n][0]; n++) {
            char path[256];
            struct dpk_config ours, theirs;
            struct dpk_source *source;
            dpk_error err;
            snprintf(path, sizeof path, "%s", all[i].files[n][0]);
            if (dpk_source_open(&source, all[i].folder, &err) ||
                dpk_config_open(&theirs, source, path, &err) ||
                dpk_config_parse(&ours, path, all[i].files[n][1], &err))
                fail_msg("%s", err.msg);
            cJSON *json = cJSON_Duplicate(theirs.json, 1);
            for (size_t k = 0; k < sizeof idle / sizeof *idle; k++)
                cJSON_DeleteItemFromObjectCaseSensitive(json, idle[k]);
            if (!cJSON_Compare(json, ours.json, 1)) fail_msg("%s/%s", all[i].folder, path);
            cJSON_Delete(json);
            dpk_config_close(&ours);
            dpk_config_close(&theirs);
            dpk_source_close(source);
        }
        assert_int_equal(n, all[i].n);
    }
}

static void copy_file(const char *from, const char *dir, const char *name) {
    size_t n;
    uint8_t *data = get_file(from, &n);
    put_file(in_dir(dir, name), data, n);
    free(data);
}

/* Without a scheduler of the user's: the built-in one, changed by marks in the checkpoint. One
 * vocabulary does for both tokenizers. */
static void test_partial_configs(void **state) {
    static const char *const extra[] = {"v_pred", "ztsnr", NULL};
    static const char *const files[] = {
        "model_index.json",         "unet/config.json",           "vae/config.json",
        "text_encoder/config.json", "text_encoder_2/config.json", "tokenizer/vocab.json",
        "tokenizer/merges.txt"};
    const char *model = "tests/data/tiny-sdxl", *dir = in_dir(*state, "configs");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char from[256];
        snprintf(from, sizeof from, "%s/%s", model, files[i]);
        copy_file(from, dir, files[i]);
    }
    struct dpk_convert_options o = {.source = model, .dtype = DPK_F32};
    struct dpk_conversion *folder = convert(&o);
    o.configs = dir;
    o.source = make_checkpoint(*state, "c.safetensors", model, xl_naming, 0, NULL);
    struct dpk_conversion *file = convert(&o);
    const struct dpk_builder *b = dpk_conversion_builder(file);
    compare(folder, file, same);
    assert_string_equal(dpk_builder_meta_get(b, "scheduler._class_name"), "EulerDiscreteScheduler");
    assert_string_equal(dpk_builder_meta_get(b, "scheduler.prediction_type"), "epsilon");
    assert_string_equal(dpk_builder_meta_get(b, "scheduler.timestep_spacing"), "leading");
    dpk_conversion_close(file);
    o.source = make_checkpoint(*state, "v.safetensors", model, xl_naming, 0, extra);
    file = convert(&o);
    b = dpk_conversion_builder(file);
    assert_string_equal(dpk_builder_meta_get(b, "scheduler.prediction_type"), "v_prediction");
    assert_string_equal(dpk_builder_meta_get(b, "scheduler.timestep_spacing"), "trailing");
    assert_string_equal(dpk_builder_meta_get(b, "scheduler.rescale_betas_zero_snr"), "true");
    dpk_conversion_close(file);
    dpk_conversion_close(folder);
}

/* ---- Real sizes ------------------------------------------------------------------------------ */

/* The header of a checkpoint of the folder's model, and a hole for its weights. */
static const char *make_hollow(const char *dir, const char *model, const struct naming *naming) {
    const struct dpk_convert_options o = {.source = model, .dtype = DPK_F16, .random = true};
    const char *path = in_dir(dir, "hollow.safetensors");
    struct dpk_conversion *c = convert(&o);
    const struct dpk_component *part;
    struct dpk_names names = {.vae_levels = 4};
    struct dpk_place place;
    uint64_t at = 0;
    size_t n;
    char *header = NULL;
    FILE *f = open_memstream(&header, &n);
    assert_non_null(f);
    fprintf(f, "{\"__metadata__\":{}");
    for (int i = 0; (part = dpk_conversion_component(c, i)); i++) {
        const struct naming *m = naming;
        while (strcmp(m->component, part->prefix) != 0) m++;
        for (uint64_t k = 0; k < part->n_tensors; k++) {
            const struct dpk_asked *a = &part->asked[k];
            uint64_t dim[4], bytes = 2;
            memcpy(dim, a->dim, sizeof dim);
            assert_true(m->place(&names, a->name, 0, &place));
            if (place.part > 0) continue; /* of a fused one that is there */
            dim[0] *= (uint64_t)place.n_parts;
            if (place.transposed) dim[0] = a->dim[1], dim[1] = a->dim[0];
            fprintf(f, ",\"%s%s\":{\"dtype\":\"F16\",\"shape\":[", m->prefix, place.name);
            for (int d = 0; d < a->rank; d++) {
                fprintf(f, "%s%llu", d ? "," : "", (unsigned long long)dim[d]);
                bytes *= dim[d];
            }
            fprintf(f, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                    (unsigned long long)(at + bytes));
            at += bytes;
        }
    }
    fprintf(f, "}");
    assert_int_equal(fclose(f), 0);
    put_safetensors(path, header, NULL, 0);
    assert_int_equal(truncate(path, (off_t)(8 + n + at)), 0);
    free(header);
    dpk_conversion_close(c);
    return path;
}

/* With nothing but a vocabulary the built-in configs do, and every tensor has its place. */
static void test_real_sizes(void **state) {
    static const struct {
        const char *model, *family;
        const struct naming *naming;
        uint64_t n_params[4]; /* text encoders, denoiser, autoencoder */
    } all[] = {
        {"sd-v1-5", "Stable Diffusion 1.x", sd_naming, {123060480, 859520964, 83653863}},
        {"sdxl-base-1.0", "SDXL", xl_naming, {123060480, 694659840, 2567463684, 83653863}},
        {"ssd-1b", "SSD-1B", xl_naming, {123060480, 694659840, 1331334404, 83653863}},
    };
    const char *vocab = "tests/data/configs/sdxl-base-1.0/tokenizer";
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char model[128];
        struct dpk_convert_options o = {.dtype = DPK_BF16, .configs = vocab};
        snprintf(model, sizeof model, "tests/data/configs/%s", all[i].model);
        o.source = make_hollow(*state, model, all[i].naming);
        struct dpk_conversion *c = convert(&o);
        const struct dpk_component *part;
        assert_string_equal(dpk_builder_meta_get(dpk_conversion_builder(c), "source.checkpoint"),
                            all[i].family);
        for (int k = 0; (part = dpk_conversion_component(c, k)); k++)
            assert_int_equal(part->n_params, all[i].n_params[k]);
        dpk_conversion_close(c);
    }
}

/* ---- Refused --------------------------------------------------------------------------------- */

static void test_refused(void **state) {
    static const struct {
        const char *tensors[3], *text;
    } known[] = {
        {{UNET "input_blocks.0.0.weight", "cond_stage_model.model.ln_final.weight"},
         "Stable Diffusion 2.x"},
        {{UNET "input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.weight",
          UNET "label_emb.0.0.weight"},
         "refiner"},
        {{UNET "joint_blocks.0.x"}, "Stable Diffusion 3"},
        {{UNET "input_blocks.0.0.weight", "cond_stage_model.transformer.x", "edm_mean"}, "EDM"},
        {{"down_blocks.0.x", "conv_in.weight"}, "UNet alone"},
        {{"lora_unet_x.lora_up.weight"}, "--lora"},
        {{"something.weight"}, "no model that is known"},
    };
    const char *path = in_dir(*state, "x.safetensors");
    struct dpk_convert_options o = {.source = path, .dtype = DPK_F32};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        struct tensor_file *f = tensor_file_new();
        for (int k = 0; k < 3 && known[i].tensors[k]; k++)
            TENSOR_FILE_ADD(f, known[i].tensors[k], 1);
        tensor_file_write(f, path);
        refuse(&o, DPK_EUNSUPPORTED, known[i].text);
    }
    o.source = "tests/data/single/tiny-sdxl.safetensors";
    refuse(&o, DPK_EARG, "tokenizer/vocab.json is missing: give a folder");
    o.configs = "tests/data/configs/sdxl-base-1.0"; /* of the real size */
    refuse(&o, DPK_EFORMAT, "token_embedding.weight: found [1014, 16] F16, wanted [49408, 768]");
    o.configs = "tests/data/tiny-sd15";
    refuse(&o, DPK_EARG,
           "a checkpoint of SDXL, but tests/data/tiny-sd15 has the configs of a "
           "StableDiffusionPipeline");
    o.configs = "tests/data/tiny-sdxl";
    o.random = true;
    refuse(&o, DPK_EARG, "drawn weights");
    o = (struct dpk_convert_options){
        .source = "tests/data/tiny-sd15", .dtype = DPK_F32, .configs = "tests/data/tiny-sd15"};
    refuse(&o, DPK_EARG, "--config is for checkpoints");
}

/* A tensor too many, a tensor too few, no autoencoder. */
static void test_incomplete(void **state) {
    static const char *const extra[] = {UNET "input_blocks.99.0.in_layers.0.weight", NULL};
    const char *model = "tests/data/tiny-sd15";
    struct dpk_convert_options o = {.dtype = DPK_F32, .configs = model};
    o.source = make_checkpoint(*state, "m.safetensors", model, sd_naming, 0, extra);
    refuse(&o, DPK_EFORMAT, "input_blocks.99.0");
    static const struct naming less[] = {
        {"unet", UNET, dpk_ldm_unet, 0},
        {"text_encoder", "cond_stage_model.transformer.", dpk_ldm_clip, 0},
        {NULL, NULL, NULL, 0}};
    o.source = make_checkpoint(*state, "l.safetensors", model, less, 0, NULL);
    check_round(model, o.source, "Stable Diffusion 1.x"); /* the folder's */
    const char *dir = in_dir(*state, "bare");
    static const char *const files[] = {"model_index.json",     "unet/config.json",
                                        "vae/config.json",      "text_encoder/config.json",
                                        "tokenizer/vocab.json", "tokenizer/merges.txt"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char from[256];
        snprintf(from, sizeof from, "%s/%s", model, files[i]);
        copy_file(from, dir, files[i]);
    }
    o.configs = dir;
    refuse(&o, DPK_EFORMAT, "no weights");
}

/* ---- Names ----------------------------------------------------------------------------------- */

/* As the reference scripts have them, in the other direction. */
static void test_names(void **state) {
    static const struct {
        dpk_place_of *place;
        const char *ours;
        int alternative;
        const char *theirs;
        int part, n_parts, transposed;
    } all[] = {
        {dpk_ldm_unet, "conv_in.bias", 0, "input_blocks.0.0.bias", 0, 1, 0},
        {dpk_ldm_unet, "conv_norm_out.weight", 0, "out.0.weight", 0, 1, 0},
        {dpk_ldm_unet, "conv_out.weight", 0, "out.2.weight", 0, 1, 0},
        {dpk_ldm_unet, "time_embedding.linear_2.bias", 0, "time_embed.2.bias", 0, 1, 0},
        {dpk_ldm_unet, "add_embedding.linear_1.weight", 0, "label_emb.0.0.weight", 0, 1, 0},
        {dpk_ldm_unet, "down_blocks.2.resnets.1.time_emb_proj.weight", 0,
         "input_blocks.8.0.emb_layers.1.weight", 0, 1, 0},
        {dpk_ldm_unet, "down_blocks.1.downsamplers.0.conv.bias", 0, "input_blocks.6.0.op.bias", 0,
         1, 0},
        {dpk_ldm_unet, "mid_block.resnets.1.conv_shortcut.bias", 0,
         "middle_block.2.skip_connection.bias", 0, 1, 0},
        {dpk_ldm_unet, "mid_block.attentions.0.norm.weight", 0, "middle_block.1.norm.weight", 0, 1,
         0},
        {dpk_ldm_unet, "up_blocks.3.attentions.2.proj_out.weight", 0,
         "output_blocks.11.1.proj_out.weight", 0, 1, 0},
        {dpk_ldm_unet, "up_blocks.0.upsamplers.0.conv.weight", 0, "output_blocks.2.2.conv.weight",
         0, 1, 0},
        {dpk_ldm_unet, "up_blocks.0.upsamplers.0.conv.weight", 1, "output_blocks.2.1.conv.weight",
         0, 1, 0},
        {dpk_ldm_vae, "decoder.up_blocks.0.resnets.2.norm1.bias", 0,
         "decoder.up.3.block.2.norm1.bias", 0, 1, 0},
        {dpk_ldm_vae, "decoder.up_blocks.1.resnets.0.conv_shortcut.weight", 0,
         "decoder.up.2.block.0.nin_shortcut.weight", 0, 1, 0},
        {dpk_ldm_vae, "decoder.up_blocks.2.upsamplers.0.conv.weight", 0,
         "decoder.up.1.upsample.conv.weight", 0, 1, 0},
        {dpk_ldm_vae, "encoder.down_blocks.0.downsamplers.0.conv.bias", 0,
         "encoder.down.0.downsample.conv.bias", 0, 1, 0},
        {dpk_ldm_vae, "encoder.mid_block.attentions.0.to_out.0.weight", 0,
         "encoder.mid.attn_1.proj_out.weight", 0, 1, 0},
        {dpk_ldm_vae, "encoder.mid_block.attentions.0.group_norm.weight", 0,
         "encoder.mid.attn_1.norm.weight", 0, 1, 0},
        {dpk_ldm_vae, "decoder.conv_norm_out.bias", 0, "decoder.norm_out.bias", 0, 1, 0},
        {dpk_ldm_vae, "post_quant_conv.bias", 0, "post_quant_conv.bias", 0, 1, 0},
        {dpk_ldm_open_clip, "text_projection.weight", 0, "text_projection", 0, 1, 1},
        {dpk_ldm_open_clip, "text_model.encoder.layers.31.self_attn.v_proj.bias", 0,
         "transformer.resblocks.31.attn.in_proj_bias", 2, 3, 0},
        {dpk_ldm_open_clip, "text_model.encoder.layers.7.mlp.fc2.weight", 0,
         "transformer.resblocks.7.mlp.c_proj.weight", 0, 1, 0},
        {dpk_ldm_open_clip, "text_model.embeddings.position_embedding.weight", 0,
         "positional_embedding", 0, 1, 0},
        {dpk_ldm_pixart, "transformer_blocks.27.attn2.to_v.bias", 0,
         "blocks.27.cross_attn.kv_linear.bias", 1, 2, 0},
        {dpk_ldm_pixart, "transformer_blocks.3.attn1.to_k.weight", 0, "blocks.3.attn.qkv.weight", 1,
         3, 0},
        {dpk_ldm_pixart, "adaln_single.emb.aspect_ratio_embedder.linear_2.weight", 0,
         "ar_embedder.mlp.2.weight", 0, 1, 0},
        {dpk_ldm_pixart, "transformer_blocks.3.scale_shift_table", 0, "blocks.3.scale_shift_table",
         0, 1, 0},
        {dpk_ldm_pixart, "scale_shift_table", 0, "final_layer.scale_shift_table", 0, 1, 0},
    };
    const struct dpk_names names = {.vae_levels = 4};
    struct dpk_place place;
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_true(all[i].place(&names, all[i].ours, all[i].alternative, &place));
        assert_string_equal(place.name, all[i].theirs);
        assert_int_equal(place.part, all[i].part);
        assert_int_equal(place.n_parts, all[i].n_parts);
        assert_int_equal(place.transposed, all[i].transposed);
        assert_false(all[i].place(&names, all[i].ours, 2, &place));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_files_equal_folders),
        cmocka_unit_test_setup_teardown(test_ssd1b, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_other_places, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_pixart, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_running_averages, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_vae_file, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_built_in_configs),
        cmocka_unit_test_setup_teardown(test_partial_configs, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_real_sizes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_refused, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_incomplete, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
