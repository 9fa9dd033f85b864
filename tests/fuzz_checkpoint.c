/* Checkpoints in one file: a valid one whose tensors are renamed, resized, retyped, left out. Byte 0:
 * the model (bit 0), running averages (bit 1), configs that are built in (bit 2); then edits of 8
 * bytes: what, which tensor (u16), where (u8), with what (s32). */
#include "support_fuzz.h"

#include "../convert/conversion.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DIMS = 4 };
#define MAX_FILE ((size_t)4 << 20)

struct tensor {
    char name[256];
    uint64_t dim[MAX_DIMS];
    int rank, type; /* of types[] */
    bool left_out;
};
struct checkpoint {
    struct tensor *tensors;
    size_t n;
};

static const struct {
    const char *name;
    size_t width;
} types[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"I64", 8}, {"I32", 4}, {"U8", 1}};
enum { N_TYPES = sizeof types / sizeof *types };

static struct checkpoint load(const char *path) {
    struct dpk_tensors *t = NULL;
    struct checkpoint c = {0};
    dpk_error err;
    if (dpk_tensors_open_file(&t, path, &err)) fprintf(stderr, "%s\n", err.msg), exit(2);
    c.n = dpk_tensors_count(t);
    c.tensors = calloc(c.n, sizeof *c.tensors);
    fuzz_require(c.tensors != NULL, "memory");
    for (size_t i = 0; i < c.n; i++) {
        const struct dpk_tensor_info *info = dpk_tensors_get(t, i);
        struct tensor *to = &c.tensors[i];
        fuzz_require(info->rank <= MAX_DIMS && strlen(info->name) < sizeof to->name, info->name);
        snprintf(to->name, sizeof to->name, "%s", info->name);
        to->rank = info->rank;
        for (int k = 0; k < info->rank; k++) to->dim[k] = info->dim[k];
        while (to->type < N_TYPES - 1 &&
               strcmp(types[to->type].name, dpk_st_dtype_name(info->dtype)) != 0)
            to->type++;
    }
    dpk_tensors_close(t);
    return c;
}

static void edit(struct checkpoint *c, struct fuzz_bytes *in) {
    while (in->n >= 8) {
        unsigned what = (unsigned)fuzz_take(in, 1);
        struct tensor *t = &c->tensors[fuzz_take(in, 2) % c->n], *other;
        unsigned where = (unsigned)fuzz_take(in, 1);
        const int32_t value = (int32_t)fuzz_take(in, 4);
        size_t length = strlen(t->name);
        switch (what % 7) {
        case 0:
            t->left_out = !t->left_out;
            break;
        case 1:
            if (value > 0x20 && value < 0x7f && value != '"' && value != '\\' && length)
                t->name[where % length] = (char)value;
            break;
        case 2:
            t->name[where % (length + 1)] = 0;
            break;
        case 3:
            if (t->rank) t->dim[where % (unsigned)t->rank] = (uint64_t)(value & 0xfff);
            break;
        case 4:
            t->rank = (int)(where % (MAX_DIMS + 1));
            for (int k = 0; k < t->rank; k++)
                if (!t->dim[k]) t->dim[k] = 1;
            break;
        case 5:
            t->type = (int)(where % N_TYPES);
            break;
        default: /* the name of another */
            other = &c->tensors[(uint32_t)value % c->n];
            if (other != t) memcpy(t->name, other->name, sizeof t->name);
        }
    }
}

/* The file, of zeros, or NULL if it would be too large. */
static uint8_t *write_file(const struct checkpoint *c, size_t *n_bytes) {
    char *text = NULL;
    size_t n_text, at = 0;
    FILE *f = open_memstream(&text, &n_text);
    fuzz_require(f != NULL, "memory");
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", f);
    for (size_t i = 0; i < c->n; i++) {
        const struct tensor *t = &c->tensors[i];
        size_t n = types[t->type].width;
        if (t->left_out) continue;
        for (int k = 0; k < t->rank; k++) n = n > MAX_FILE ? n : n * t->dim[k];
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, types[t->type].name);
        for (int k = 0; k < t->rank; k++)
            fprintf(f, "%s%llu", k ? "," : "", (unsigned long long)t->dim[k]);
        fprintf(f, "],\"data_offsets\":[%zu,%zu]}", at, at + n);
        at += n;
        if (at > MAX_FILE) break;
    }
    fputc('}', f);
    fclose(f);
    uint8_t *file = at > MAX_FILE ? NULL : calloc(1, 8 + n_text + at);
    if (file) {
        for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)n_text >> 8 * i);
        memcpy(file + 8, text, n_text);
    }
    free(text);
    *n_bytes = 8 + n_text + at;
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const files[] = {"tests/data/single/tiny-sd15.safetensors",
                                        "tests/data/single/tiny-sdxl.safetensors"};
    static const char *const configs[] = {"tests/data/tiny-sd15", "tests/data/tiny-sdxl"};
    static struct checkpoint bases[2];
    for (int i = 0; i < 2; i++)
        if (!bases[i].tensors) bases[i] = load(files[i]);
    struct fuzz_bytes in = {data, n_bytes};
    const unsigned mode = (unsigned)fuzz_take(&in, 1);
    const struct checkpoint *base = &bases[mode & 1];
    struct checkpoint c = {.n = base->n, .tensors = malloc(base->n * sizeof *c.tensors)};
    fuzz_require(c.tensors != NULL, "memory");
    memcpy(c.tensors, base->tensors, base->n * sizeof *c.tensors);
    edit(&c, &in);
    size_t n;
    uint8_t *file = write_file(&c, &n);
    free(c.tensors);
    if (!file) return 0;
    struct dpk_conversion *conversion = NULL;
    dpk_error err;
    const struct dpk_convert_options options = {.source = fuzz_file(0, file, n),
                                                .configs = mode & 4 ? NULL : configs[mode & 1],
                                                .ema = (mode & 2) != 0,
                                                .dtype = DPK_BF16};
    free(file);
    int rc = dpk_conversion_open(&conversion, &options, &err);
    fuzz_check_error(rc, &err);
    dpk_conversion_close(conversion);
    return 0;
}
