/* Filter files: text, then decisions on layers, some of which have names from the text. */
#include "support_fuzz.h"

#include "../quantize/filter.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const struct dpk_filter_layer layers[] = {
        {"unet.mid_block.attentions.0.proj_in", DPK_LAYER_CONV1X1, 640, 1280, 4096},
        {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_qkv", DPK_LAYER_LINEAR, 17,
         51, 0},
        {"vae.decoder.conv_in", DPK_LAYER_CONV, 4, 512, 1},
        {"", DPK_LAYER_LINEAR, INT64_MAX, INT64_MAX, INT64_MAX},
    };
    struct dpk_filter *f = NULL;
    dpk_error err;
    int rc = dpk_filter_parse(&f, "filter", (const char *)data, n_bytes, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
            const char *reason = NULL;
            dpk_filter_decide(f, &layers[i], &reason);
            fuzz_require(reason && *reason, "a reason");
        }
        fuzz_require(strlen(dpk_filter_id(f)) > 0, "an id");
    }
    dpk_filter_free(f);
    char glob[256], name[256];
    size_t half = n_bytes / 2 < 255 ? n_bytes / 2 : 255;
    memcpy(glob, data, half), glob[half] = 0;
    memcpy(name, data + half, half), name[half] = 0;
    dpk_glob_match(glob, name);
    fuzz_require(dpk_glob_match("*", name), "* matches everything");
    return 0;
}
