/* LoRA files. Byte 0: the model (bit 0), partial (bit 1), a raw file (bit 2). The rest is a raw
 * file or the header of a safetensors file, whose length is made to fit and whose buffer follows
 * (fuzz_safetensors). The layers that are found are merged. */
#include "support_fuzz.h"

#include "../convert/conversion.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COMPONENTS = 8, MAX_ROWS = 8, MAX_ROW = 4096 };

static struct dpk_conversion *open_model(const char *path) {
    struct dpk_conversion *c = NULL;
    dpk_error err;
    const struct dpk_convert_options options = {
        .source = path, .dtype = DPK_F32, .random = true, .seed = 1};
    if (dpk_conversion_open(&c, &options, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(2);
    }
    return c;
}

/* Merge into some rows of every tensor of the component. */
static void merge(const struct dpk_lora *lora, const struct dpk_component *c) {
    dpk_error err;
    for (uint64_t i = 0; i < c->n_tensors; i++) {
        const struct dpk_asked *t = &c->asked[i];
        size_t row = 1, first = 0, count = t->rank ? (size_t)t->dim[0] : 1;
        for (int k = 1; k < t->rank; k++) row *= (size_t)t->dim[k];
        if (row > MAX_ROW) continue;
        if (count > MAX_ROWS) first = count - MAX_ROWS, count = MAX_ROWS;
        float *w = calloc(count * row, sizeof *w);
        if (!w) abort();
        fuzz_check_error(dpk_lora_apply(lora, c, t->name, first, count, row, w, &err), &err);
        free(w);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static struct dpk_conversion *models[2];
    if (!models[0]) {
        models[0] = open_model("tests/data/tiny-sd15");
        models[1] = open_model("tests/data/tiny-sdxl");
    }
    if (n_bytes == 0) return 0;
    const unsigned mode = data[0];
    size_t n_file = n_bytes - 1;
    uint8_t *built = mode & 4 ? NULL : fuzz_safetensors(data + 1, n_bytes - 1, &n_file);
    const uint8_t *file = built ? built : data + 1;

    struct dpk_component components[MAX_COMPONENTS];
    const struct dpk_component *one;
    int n = 0;
    while (n < MAX_COMPONENTS && (one = dpk_conversion_component(models[mode & 1], n)))
        components[n++] = *one;
    struct dpk_lora *lora = NULL;
    struct dpk_lora_file f = {
        .path = fuzz_file(0, file, n_file), .scale = 0.5, .partial = (mode & 2) != 0};
    dpk_error err;
    int rc = dpk_lora_create(&lora, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        rc = dpk_lora_add_file(lora, &f, components, n, &err);
        fuzz_check_error(rc, &err);
    }
    for (int i = 0; rc == DPK_OK && i < n; i++) merge(lora, &components[i]);
    dpk_lora_free(lora);
    free(built);
    return 0;
}
