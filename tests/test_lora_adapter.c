/* The adapter_config.json beside an adapter of PEFT: its defaults, and what is no LoRA. */
#include "support_files.h"
#include "support_tensors.h"

#include "../convert/lora.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N = 3, RANK = 2 };
#define LAYER "mid_block.attentions.0.proj_in"

/* alpha / rank as merging takes it: up and down are ones, the layer's weights zeros. */
static int merge(const char *folder, float *ratio, dpk_error *err) {
    const char *path = in_dir(folder, "adapter_model.safetensors");
    struct dpk_component c = {.prefix = "unet"};
    struct dpk_lora_file file = {.path = path, .scale = 1};
    struct dpk_weight_part part;
    struct dpk_lora *l = NULL;
    float w[N * N] = {0};
    struct tensor_file *f = tensor_file_new();
    float *down = TENSOR_FILE_ADD(f, "base_model.model." LAYER ".lora_A.weight", RANK, N);
    float *up = TENSOR_FILE_ADD(f, "base_model.model." LAYER ".lora_B.weight", N, RANK);
    for (int i = 0; i < N * RANK; i++) down[i] = up[i] = 1;
    tensor_file_write(f, path);
    assert_int_equal(
        dpk_component_want(&c, LAYER ".weight", 2, (uint64_t[4]){N, N, 0, 0}, &part, err), DPK_OK);
    int rc = dpk_lora_create(&l, err);
    if (!rc) rc = dpk_lora_add_file(l, &file, &c, 1, err);
    if (!rc) rc = dpk_lora_apply(l, &c, LAYER ".weight", 0, N, N, w, err);
    *ratio = w[0] / RANK;
    dpk_lora_free(l);
    dpk_component_close(&c);
    return rc;
}

/* PEFT saves every setting, but files are also written by hand: its own default of lora_alpha is 8,
 * whatever the rank. */
static void test_alpha(void **state) {
    static const struct {
        const char *config;
        double ratio;
    } cases[] = {
        {"{}", 4},
        {"{\"r\": 2, \"lora_alpha\": null}", 4},
        {"{\"peft_type\": \"LORA\", \"r\": 2}", 4},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 2}", 1},
        {"{\"use_rslora\": true}", 5.656854249492381},
        {"{\"alpha_pattern\": {\"proj_out\": 3}}", 4},
        {"{\"alpha_pattern\": {\"proj_in\": 3}}", 1.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dpk_error err;
        float ratio;
        put_text(in_dir(*state, "adapter_config.json"), cases[i].config);
        if (merge(*state, &ratio, &err)) fail_msg("%s: %s", cases[i].config, err.msg);
        if (!(fabs((double)ratio - cases[i].ratio) <= 1e-6 * cases[i].ratio))
            fail_msg("%s: %g, wanted %g", cases[i].config, (double)ratio, cases[i].ratio);
    }
}

/* PEFT's other methods: whatever their tensors are called, they are not to be merged as LoRA's. */
static void test_other_methods(void **state) {
    static const struct {
        const char *config, *says;
    } cases[] = {
        {"{\"peft_type\": \"ADALORA\", \"r\": 2}", "peft_type is \"ADALORA\", supported: LORA"},
        {"{\"peft_type\": \"LOHA\", \"lora_alpha\": 2}", "peft_type is \"LOHA\", supported: LORA"},
        {"{\"peft_type\": 1}", "peft_type"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dpk_error err = {0};
        float ratio;
        put_text(in_dir(*state, "adapter_config.json"), cases[i].config);
        int rc = merge(*state, &ratio, &err);
        if (rc == DPK_OK || !strstr(err.msg, cases[i].says))
            fail_msg("%s: %d %s, wanted %s", cases[i].config, rc, err.msg, cases[i].says);
    }
}

#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {SCRATCH(test_alpha), SCRATCH(test_other_methods)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
