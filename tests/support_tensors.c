#include "support_tensors.h"
#include "support_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct one {
    char *name;
    int rank;
    uint64_t dim[8];
    size_t n;
    float *values;
};
struct tensor_file {
    struct one *at;
    size_t n;
    char meta[4096];
};

struct tensor_file *tensor_file_new(void) {
    struct tensor_file *f = calloc(1, sizeof *f);
    assert_non_null(f);
    return f;
}

float *tensor_file_add(struct tensor_file *f, const char *name, int rank, const uint64_t *dim) {
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(f->at[i].name, name) == 0) return f->at[i].values;
    f->at = reallocarray(f->at, f->n + 1, sizeof *f->at);
    assert_non_null(f->at);
    struct one *t = &f->at[f->n++];
    *t = (struct one){.name = strdup(name), .rank = rank, .n = 1};
    for (int i = 0; i < rank; i++) t->dim[i] = dim[i], t->n *= (size_t)dim[i];
    t->values = calloc(t->n + 1, sizeof *t->values);
    assert_true(t->name && t->values);
    return t->values;
}

float *tensor_file_noise(struct tensor_file *f, const char *name, int rank, const uint64_t *dim,
                         uint64_t *seed) {
    float *values = tensor_file_add(f, name, rank, dim);
    const struct one *t = &f->at[f->n - 1];
    for (size_t i = 0; i < t->n; i++) values[i] = (float)noise(seed) / 2147483648.0f - 1.0f;
    return values;
}

void tensor_file_meta(struct tensor_file *f, const char *key, const char *value) {
    const size_t at = strlen(f->meta);
    const int n =
        snprintf(f->meta + at, sizeof f->meta - at, "%s\"%s\":\"%s\"", at ? "," : "", key, value);
    assert_true(n > 0 && (size_t)n < sizeof f->meta - at);
}

void tensor_file_write(struct tensor_file *f, const char *path) {
    size_t n_data = 0, n_header = 0;
    char *header = NULL;
    FILE *text = open_memstream(&header, &n_header);
    assert_non_null(text);
    fprintf(text, "{");
    if (*f->meta) fprintf(text, "\"__metadata__\":{%s}%s", f->meta, f->n ? "," : "");
    for (size_t i = 0; i < f->n; i++) {
        const struct one *t = &f->at[i];
        fprintf(text, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", i ? "," : "", t->name);
        for (int k = 0; k < t->rank; k++)
            fprintf(text, "%s%llu", k ? "," : "", (unsigned long long)t->dim[k]);
        fprintf(text, "],\"data_offsets\":[%zu,%zu]}", n_data, n_data + 4 * t->n);
        n_data += 4 * t->n;
    }
    fprintf(text, "}");
    assert_int_equal(fclose(text), 0);
    uint8_t *data = malloc(n_data + 1);
    assert_non_null(data);
    for (size_t i = 0, at = 0; i < f->n; at += 4 * f->at[i].n, i++)
        memcpy(data + at, f->at[i].values, 4 * f->at[i].n);
    put_safetensors(path, header, data, n_data);
    for (size_t i = 0; i < f->n; i++) free(f->at[i].name), free(f->at[i].values);
    free(f->at);
    free(f);
    free(header);
    free(data);
}
