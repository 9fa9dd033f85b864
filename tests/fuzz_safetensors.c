/* safetensors files. First byte 0: the rest is the file. Else the rest is a header, the 8 bytes
 * before it are made to fit, and a buffer follows (fuzz_safetensors). */
#include "support_fuzz.h"

#include "../formats/tensors.h"

#include <stdlib.h>
#include <string.h>

static void walk(const char *path, const uint8_t *data, size_t n_bytes) {
    struct dpk_stream in = {0};
    struct dpk_safetensors st = {0};
    struct dpk_tensors *tensors = NULL;
    dpk_error err;
    int rc = dpk_stream_memory(&in, "fuzz", data, n_bytes, &err);
    fuzz_check_error(rc, &err);
    rc = dpk_st_open(&st, &in, &err);
    fuzz_check_error(rc, &err);
    uint64_t covered = 0;
    for (size_t i = 0; rc == DPK_OK && i < st.n_tensors; i++) {
        const struct dpk_st_tensor *t = &st.tensors[i];
        fuzz_require(dpk_st_find(&st, t->name) == t, "each tensor is found by its name");
        fuzz_require(t->offset == st.header_bytes + covered, "no hole and no overlap");
        covered += t->n_bytes;
    }
    fuzz_require(rc != DPK_OK || st.header_bytes + covered == n_bytes, "the buffer ends the file");
    int again = dpk_tensors_open_file(&tensors, path, &err);
    fuzz_check_error(again, &err);
    fuzz_require((again == DPK_OK) == (rc == DPK_OK) || rc == DPK_OK, "a file that was refused");
    for (size_t i = 0; again == DPK_OK && i < dpk_tensors_count(tensors); i++) {
        struct dpk_tensor_info *t = dpk_tensors_get(tensors, i);
        float f[16];
        size_t n = t->n_elements < 16 ? (size_t)t->n_elements : 16;
        char shape[64];
        dpk_tensor_shape_text(t, shape, sizeof shape);
        rc = dpk_tensors_read_f32(tensors, t, t->n_elements - n, n, f, &err);
        fuzz_check_error(rc, &err);
    }
    dpk_tensors_close(tensors);
    dpk_st_close(&st);
    dpk_stream_close(&in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) return 0;
    if (data[0] == 0) {
        walk(fuzz_file(0, data + 1, n_bytes - 1), data + 1, n_bytes - 1);
        return 0;
    }
    size_t n;
    uint8_t *file = fuzz_safetensors(data + 1, n_bytes - 1, &n);
    walk(fuzz_file(0, file, n), file, n);
    free(file);
    return 0;
}
