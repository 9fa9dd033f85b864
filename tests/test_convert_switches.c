/* Switches in the configs of a model that would change what it computes and are not built: each is
 * refused by its name. What a pipeline makes of its scheduler's config. */
#include "support_files.h"

#include "../convert/arch.h"
#include "../convert/conversion.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The text of a JSON object, to be freed, with a key set to a value in JSON or (NULL) taken out. */
static char *edited(const char *path, const char *key, const char *value) {
    char *text = (char *)get_file(path, NULL);
    cJSON *json = cJSON_Parse(text);
    free(text);
    if (!json) fail_msg("%s: cJSON cannot read it", path);
    cJSON_DeleteItemFromObjectCaseSensitive(json, key);
    if (value) assert_non_null(cJSON_AddRawToObject(json, key, value));
    text = cJSON_Print(json);
    cJSON_Delete(json);
    return text;
}

/* ---- Architectures --------------------------------------------------------------------------- */

enum arch { CLIP, T5, UNET, PIXART, VAE };
static const char *const files[] = {
    "tiny-sd15/text_encoder/config.json", "tiny-pixart/text_encoder/config.json",
    "tiny-sd15/unet/config.json", "tiny-pixart/transformer/config.json",
    "tiny-sd15/vae/config.json"};

/* Build the programs of a component without weights. */
static int build(enum arch arch, const struct dpk_config *config, dpk_error *err) {
    struct dpk_component part = {.prefix = "part"};
    struct dpk_builder *b = NULL;
    struct dpk_clip_result clip;
    struct dpk_unet_result unet;
    struct dpk_vae_result vae;
    uint32_t context;
    int size, rc = DPK_EARG;
    assert_int_equal(dpk_builder_create(&b, DPK_F32, err), DPK_OK);
    struct dpk_prog *one = dpk_build_program(b, "one"), *two = dpk_build_program(b, "two");
    dpk_build_component(one, &part);
    dpk_build_component(two, &part);
    const uint32_t ids = arch < UNET ? DPK_BUILD_INPUT(one, "ids", DPK_VALUE_I32, 0, 77) : 0;
    switch (arch) {
    case CLIP:
        rc = dpk_arch_clip(one, config, &(struct dpk_clip_opt){0}, ids, &clip, err);
        break;
    case T5:
        rc = dpk_arch_t5(one, config, ids, 0, &context, &size, err);
        break;
    case UNET:
        rc = dpk_arch_unet(one, two, config, &unet, err);
        break;
    case PIXART:
        rc = dpk_arch_pixart(one, two, config, &size, err);
        break;
    case VAE:
        rc = dpk_arch_vae(one, two, config, &vae, err);
        break;
    }
    dpk_builder_free(b);
    dpk_component_close(&part);
    return rc;
}

static int build_with(enum arch arch, const char *key, const char *value, dpk_error *err) {
    char path[128];
    struct dpk_config config;
    snprintf(path, sizeof path, "tests/data/%s", files[arch]);
    char *text = edited(path, key, value);
    int rc = dpk_config_parse(&config, files[arch], text, err);
    if (rc) fail_msg("%s", err->msg);
    rc = build(arch, &config, err);
    dpk_config_close(&config);
    free(text);
    return rc;
}

struct wrong {
    const char *key, *value, *says;
};

static void refuse_each(enum arch arch, const struct wrong *wrong, size_t n) {
    dpk_error err = {0};
    if (build_with(arch, "_class_name", NULL, &err)) fail_msg("%s", err.msg);
    for (size_t i = 0; i < n; i++) {
        const int rc = build_with(arch, wrong[i].key, wrong[i].value, &err);
        if (rc != DPK_EUNSUPPORTED || !strstr(err.msg, files[arch]) ||
            !strstr(err.msg, wrong[i].key) || !strstr(err.msg, wrong[i].says))
            fail_msg("%s %s: %d %s, want \"%s\"", wrong[i].key, wrong[i].value, rc, err.msg,
                     wrong[i].says);
    }
}
#define REFUSE_EACH(arch, cases) refuse_each(arch, cases, sizeof(cases) / sizeof *(cases))

static void test_pixart(void **state) {
    (void)state;
    static const struct wrong transformer[] = {
        {"double_self_attention", "true", "double_self_attention is true, supported: false"},
        {"only_cross_attention", "true", "only_cross_attention is true, supported: false"},
        {"norm_elementwise_affine", "true", "norm_elementwise_affine is true, supported: false"},
        {"attention_type", "\"gated\"", "supported: default"},
        {"norm_type", "\"ada_norm\"", "supported: ada_norm_single"},
        {"activation_fn", "\"geglu\"", "supported: gelu-approximate"},
        {"cross_attention_dim", "24", "cross_attention_dim 24 with width 36"},
    };
    static const struct wrong encoder[] = {{"feed_forward_proj", "\"relu\"", "gated-gelu"},
                                           {"feed_forward_proj", NULL, "gated-gelu"},
                                           {"dense_act_fn", "\"relu\"", "supported: gelu_new"}};
    static const struct wrong vae[] = {
        {"shift_factor", "-0.25", "shift_factor is -0.25, supported: 0"},
        {"latents_mean", "[0, 0, 0, 0]", "latents_mean is given, supported: null"},
        {"act_fn", "\"gelu\"", "supported: silu"},
    };
    REFUSE_EACH(PIXART, transformer);
    REFUSE_EACH(T5, encoder);
    REFUSE_EACH(VAE, vae);
}

static void test_unet(void **state) {
    (void)state;
    static const struct wrong unet[] = {
        {"class_embed_type", "\"timestep\"", "class_embed_type is set, supported: null"},
        {"num_class_embeds", "10", "num_class_embeds is set"},
        {"time_cond_proj_dim", "256", "time_cond_proj_dim is set"},
        {"encoder_hid_dim", "64", "encoder_hid_dim is set"},
        {"encoder_hid_dim_type", "\"text_proj\"", "encoder_hid_dim_type is set"},
        {"timestep_post_act", "\"silu\"", "timestep_post_act is set"},
        {"time_embedding_act_fn", "\"silu\"", "time_embedding_act_fn is set"},
        {"cross_attention_norm", "\"layer_norm\"", "cross_attention_norm is set"},
        {"dual_cross_attention", "true", "dual_cross_attention is true, supported: false"},
        {"center_input_sample", "true", "center_input_sample is true"},
        {"resnet_skip_time_act", "true", "resnet_skip_time_act is true"},
        {"mid_block_only_cross_attention", "true", "mid_block_only_cross_attention is true"},
        {"time_embedding_type", "\"fourier\"", "supported: positional"},
        {"resnet_time_scale_shift", "\"scale_shift\"", "supported: default"},
        {"attention_type", "\"gated\"", "supported: default"},
        {"act_fn", "\"mish\"", "supported: silu"},
        {"resnet_out_scale_factor", "0.5", "resnet_out_scale_factor is 0.5, supported: 1"},
        {"mid_block_scale_factor", "2", "mid_block_scale_factor is 2, supported: 1"},
        {"only_cross_attention", "true", "only_cross_attention is true, supported: false"},
        {"only_cross_attention", "[false, true, false]", "only_cross_attention has true"},
    };
    static const struct wrong encoder[] = {
        {"use_attention_mask", "true", "use_attention_mask is true, supported: false"},
        {"hidden_act", "\"relu\"", "quick_gelu"},
    };
    REFUSE_EACH(UNET, unet);
    REFUSE_EACH(CLIP, encoder);
}

/* Absent, null and off are the same, and no reason to refuse. */
static void test_switched_off(void **state) {
    static const struct {
        enum arch arch;
        const char *key, *off;
    } keys[] = {{UNET, "dual_cross_attention", "false"},
                {UNET, "only_cross_attention", "[false, false, false]"},
                {UNET, "resnet_out_scale_factor", "1.0"},
                {PIXART, "double_self_attention", "false"},
                {PIXART, "norm_elementwise_affine", "false"},
                {CLIP, "use_attention_mask", "false"},
                {VAE, "shift_factor", "0.0"},
                {VAE, "latents_mean", "null"}};
    (void)state;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (int v = 0; v < 3; v++) {
            const char *value = v == 0 ? NULL : v == 1 ? "null" : keys[i].off;
            dpk_error err;
            if (build_with(keys[i].arch, keys[i].key, value, &err)) fail_msg("%s", err.msg);
        }
}

/* ---- Schedulers ------------------------------------------------------------------------------ */

static void set(const char *model, const char *file, const char *key, const char *value) {
    char *text = edited(in_dir(model, file), key, value);
    put_text(in_dir(model, file), text);
    free(text);
}

/* The class is the index's, whatever the config's own is or if it has none. StableDiffusionPipeline
 * sets two numbers that old configs have wrong; the other pipelines take what is there. */
static void test_schedulers(void **state) {
    static const struct {
        const char *model, *own_class, *index_class, *offset, *clip; /* as the files have it */
        const char *want_offset, *want_clip;
    } cases[] = {
        {"tiny-sd15", "\"PNDMScheduler\"", "DDIMScheduler", "0", "true", "1", "false"},
        {"tiny-sd15", NULL, "DDIMScheduler", NULL, NULL, "1", "false"},
        {"tiny-sd15", "\"DDIMScheduler\"", "DDIMScheduler", "1", "false", "1", "false"},
        {"tiny-sdxl", "\"DDIMScheduler\"", "EulerDiscreteScheduler", "0", "true", "0", "true"},
        {"tiny-pixart", "\"DDIMScheduler\"", "DPMSolverMultistepScheduler", "0", "true", "0",
         "true"},
    };
    const char *const config = "scheduler/scheduler_config.json";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *model = in_dir(*state, "model");
        const struct dpk_convert_options o = {.source = model, .dtype = DPK_F32};
        char text[1024];
        struct dpk_conversion *c = NULL;
        dpk_error err;
        snprintf(text, sizeof text, "rm -rf %s && cp -r tests/data/%s %s", model, cases[i].model,
                 model);
        assert_int_equal(system(text), 0);
        snprintf(text, sizeof text, "[\"diffusers\", \"%s\"]", cases[i].index_class);
        set(model, "model_index.json", "scheduler", text);
        if (strcmp(cases[i].model, "tiny-pixart") ==
            0) /* its own has numbers that cJSON reads not */
            put_text(in_dir(model, config), "{\"num_train_timesteps\": 1000}");
        set(model, config, "_class_name", cases[i].own_class);
        set(model, config, "steps_offset", cases[i].offset);
        set(model, config, "clip_sample", cases[i].clip);
        if (dpk_conversion_open(&c, &o, &err)) fail_msg("case %zu: %s", i, err.msg);
        const struct dpk_builder *b = dpk_conversion_builder(c);
        const char *const want[][2] = {{"scheduler._class_name", cases[i].index_class},
                                       {"scheduler.steps_offset", cases[i].want_offset},
                                       {"scheduler.clip_sample", cases[i].want_clip}};
        for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
            const char *got = dpk_builder_meta_get(b, want[k][0]);
            if (!got || strcmp(got, want[k][1]) != 0)
                fail_msg("case %zu: %s is %s, want %s", i, want[k][0], got ? got : "absent",
                         want[k][1]);
        }
        dpk_conversion_close(c);
    }
}

#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pixart), cmocka_unit_test(test_unet),
                                       cmocka_unit_test(test_switched_off),
                                       SCRATCH(test_schedulers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
