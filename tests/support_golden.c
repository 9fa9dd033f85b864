#include "support_golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

const char *golden_build_path(const char *name) {
    static char path[1024];
    const char *build = getenv("BUILD");
    snprintf(path, sizeof path, "%s/%s", build ? build : "build", name);
    return path;
}

int golden_shell(const char *format, ...) {
    char command[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

dpk_model *golden_model(const char *name, const char *source, const char *options) {
    dpk_error err;
    dpk_model *model = NULL;
    char path[1100], file[128];
    mkdir(golden_build_path("tests"), 0777);
    snprintf(file, sizeof file, "tests/%s.dpk", name);
    snprintf(path, sizeof path, "%s", golden_build_path(file));
    int status = golden_shell("%s %s -o %s %s -q", golden_build_path("bin/diffpak-convert"), source,
                              path, options);
    if (status != 0) fail_msg("converting %s: exit status %d", source, status);
    if (dpk_model_open(&model, path, &err) != DPK_OK) fail_msg("%s", err.msg);
    return model;
}

size_t golden_count(const dpk_array *a) {
    size_t n = 1;
    for (int i = 0; i < a->rank; i++) n *= (size_t)a->dim[i];
    return n;
}

int golden_has(struct dpk_tensors *golden, const char *name) {
    return dpk_tensors_find(golden, name) != NULL;
}

/* [N,C,H,W] to [N,H,W,C]; dim is changed too. */
static void to_nhwc(float *data, int32_t *dim, size_t count) {
    float *copy = malloc(count * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, data, count * sizeof *copy);
    size_t n = (size_t)dim[0], c = (size_t)dim[1], hw = (size_t)dim[2] * (size_t)dim[3];
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < c; j++)
            for (size_t p = 0; p < hw; p++) data[(i * hw + p) * c + j] = copy[(i * c + j) * hw + p];
    int32_t h = dim[2], w = dim[3];
    dim[3] = dim[1], dim[1] = h, dim[2] = w;
    free(copy);
}

float *golden_floats(struct dpk_tensors *golden, const char *name, const char *suffix, size_t *n) {
    char full[128];
    dpk_error err;
    snprintf(full, sizeof full, "%s%s", name, suffix);
    struct dpk_tensor_info *t = dpk_tensors_find(golden, full);
    *n = t ? (size_t)t->n_elements : 0;
    if (!t) return NULL;
    float *v = malloc(*n * sizeof *v + 1);
    assert_int_equal(dpk_tensors_read_f32(golden, t, 0, *n, v, &err), DPK_OK);
    return v;
}

dpk_array golden_array(struct dpk_tensors *golden, const char *name, int index, int nhwc) {
    dpk_error err;
    const struct dpk_tensor_info *info = dpk_tensors_find(golden, name);
    if (!info) fail_msg("golden %s is missing", name);
    int drop = index >= 0;
    dpk_array a = {.name = name, .type = DPK_ARRAY_F32, .rank = info->rank - drop};
    size_t count = (size_t)info->n_elements;
    if (drop) count /= (size_t)info->dim[0];
    for (int i = 0; i < a.rank; i++) a.dim[i] = (int32_t)info->dim[i + drop];
    if (a.rank == 0) a.rank = 1, a.dim[0] = 1;
    size_t first = drop ? (size_t)index * count : 0;
    size_t element = (size_t)(info->n_bytes / info->n_elements);
    if (info->dtype == DPK_ST_I64 || info->dtype == DPK_ST_I32) {
        int ids = strstr(name, "ids") && !strstr(name, "time_ids");
        ids = ids || strstr(name, "mask");
        uint8_t *raw = malloc(count * element);
        int32_t *out = malloc(count * sizeof *out);
        assert_true(raw && out);
        if (dpk_tensors_read(golden, info, first * element, raw, count * element, &err))
            fail_msg("%s", err.msg);
        for (size_t i = 0; i < count; i++) {
            int64_t v = 0;
            memcpy(&v, raw + i * element, element); /* little-endian, none negative */
            if (ids) out[i] = (int32_t)v;
            else ((float *)(void *)out)[i] = (float)v;
        }
        free(raw);
        a.type = ids ? DPK_ARRAY_I32 : DPK_ARRAY_F32;
        a.data = out;
        return a;
    }
    float *data = malloc(count * sizeof *data);
    assert_non_null(data);
    if (dpk_tensors_read_f32(golden, info, first, count, data, &err)) fail_msg("%s", err.msg);
    if (nhwc && a.rank == 4) to_nhwc(data, a.dim, count);
    a.data = data;
    return a;
}

void golden_free(dpk_array *a) {
    free(a->data);
    a->data = NULL;
}

double golden_relative(const float *got, const float *want, size_t n) {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        diff += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    double r = sqrt(diff) / sqrt(norm > 0 ? norm : 1e-300);
    return isfinite(r) ? r : HUGE_VAL;
}
