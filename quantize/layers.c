#include "layers.h"

#include "../formats/fail.h"
#include "rows.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GUIDED_ROWS = 2,
    /* The sum of that many products of -128..127 fits into 32 bits. */
    MAX_INT8_K = 131071,
};

/* ---- Schemes --------------------------------------------------------------------------------- */

int dpk_scheme_parse(struct dpk_scheme *s, const char *text, dpk_error *err) {
    static const char int4[] = "int4-weight";
    int rc = DPK_OK;
    s->group = 0;
    if (strcmp(text, "int8-dynamic") == 0) {
        s->kind = DPK_SCHEME_INT8_DYNAMIC;
    } else if (strcmp(text, "int8-weight") == 0) {
        s->kind = DPK_SCHEME_INT8_WEIGHT;
    } else if (strncmp(text, int4, sizeof int4 - 1) == 0) {
        const char *group = text + sizeof int4 - 1;
        s->kind = DPK_SCHEME_INT4_WEIGHT;
        if (!*group || strcmp(group, ":64") == 0) s->group = 64;
        else if (strcmp(group, ":32") == 0) s->group = 32;
        else if (strcmp(group, ":128") == 0) s->group = 128;
        else DPK_FAIL(err, DPK_EARG, "scheme %.60s: want a group of 32, 64 or 128", text);
    } else {
        DPK_FAIL(err, DPK_EARG,
                 "scheme %.60s: want int8-dynamic, int8-weight or int4-weight[:GROUP]", text);
    }
done:
    return rc;
}

const char *dpk_scheme_text(const struct dpk_scheme *s, char *out) {
    if (s->kind == DPK_SCHEME_INT4_WEIGHT) snprintf(out, 32, "int4-weight:%d", s->group);
    else
        snprintf(out, 32, "%s",
                 s->kind == DPK_SCHEME_INT8_DYNAMIC ? "int8-dynamic" : "int8-weight");
    return out;
}

/* ---- Layers ---------------------------------------------------------------------------------- */

static int check_not_quantized(const struct dpk_file *f, const char *path, dpk_error *err) {
    const char *scheme = dpk_file_meta(f, "quant.scheme");
    int rc = DPK_OK;
    if (scheme)
        DPK_FAIL(err, DPK_EARG, "%s: is quantized already (%.60s): quantize the file it came from",
                 path, scheme);
    for (uint32_t i = 0; i < f->n_tensors; i++)
        if (f->tensors[i].dtype == DPK_S8 || f->tensors[i].dtype == DPK_S4)
            DPK_FAIL(err, DPK_EARG,
                     "%s: is quantized already (tensor %.100s is %s): quantize the file it came "
                     "from",
                     path, dpk_file_string(f, f->tensors[i].name),
                     dpk_dtype_name((int)f->tensors[i].dtype));
done:
    return rc;
}

static char *layer_name(const char *tensor) {
    static const char suffix[] = ".weight";
    size_t n = strlen(tensor);
    if (n > sizeof suffix - 1 && strcmp(tensor + n - (sizeof suffix - 1), suffix) == 0)
        n -= sizeof suffix - 1;
    return strndup(tensor, n);
}

/* The largest group up to the wanted one that divides the channels; 0 if none does. */
static int usable_group(int want, int64_t channels) {
    for (; want >= 32; want /= 2)
        if (channels % want == 0) return want;
    return 0;
}

static uint64_t quantized_bytes(const struct dpk_layer *l, const struct dpk_tensor_record *t,
                                const struct dpk_scheme *scheme) {
    const struct dpk_shape shape = dpk_tensor_shape(t);
    const uint64_t n = (uint64_t)t->dim[0];
    if (scheme->kind == DPK_SCHEME_INT4_WEIGHT)
        return dpk_weight_bytes(DPK_S4, (int)t->layout, &shape) +
               l->weights / (uint64_t)l->group * sizeof(float);
    return dpk_weight_bytes(DPK_S8, (int)t->layout, &shape) + n * (sizeof(float) + sizeof(int32_t));
}

/* What the scheme itself rules out. */
static const char *impossible(struct dpk_layer *l, const struct dpk_tensor_record *t,
                              const struct dpk_scheme *scheme) {
    if (scheme->kind == DPK_SCHEME_INT4_WEIGHT) {
        l->group = usable_group(scheme->group, l->in);
        return l->group ? NULL : "no group of 32 or more divides its inputs";
    }
    return l->weights / (uint64_t)t->dim[0] > MAX_INT8_K ? "too many inputs for 32-bit sums" : NULL;
}

static int decide(struct dpk_layer *l, const struct dpk_file *f, const struct dpk_scheme *scheme,
                  const struct dpk_filter *filter, uint64_t rows, dpk_error *err) {
    const struct dpk_tensor_record *t = &f->tensors[l->tensor];
    const struct dpk_shape shape = dpk_tensor_shape(t);
    int rc = DPK_OK;
    l->name = layer_name(dpk_file_string(f, t->name));
    if (!l->name) DPK_FAIL(err, DPK_ENOMEM, "no memory for the names of the layers");
    l->source = dpk_file_string(f, t->source);
    l->kind = t->flags & DPK_TENSOR_CONV1X1 ? DPK_LAYER_CONV1X1 : DPK_LAYER_LINEAR;
    if (t->rank == 4)
        l->kind = t->dim[1] == 1 && t->dim[2] == 1 ? DPK_LAYER_CONV1X1 : DPK_LAYER_CONV;
    l->in = t->dim[t->rank - 1];
    l->out = t->dim[0];
    l->rows = rows;
    l->weights = (uint64_t)dpk_shape_count(&shape);
    const struct dpk_filter_layer q = {l->name, l->kind, l->in, l->out,
                                       rows < INT64_MAX ? (int64_t)rows : 0};
    l->quantized = dpk_filter_decide(filter, &q, &l->reason);
    if (l->quantized) {
        const char *why_not = impossible(l, t, scheme);
        if (why_not) l->reason = why_not;
        l->quantized = !why_not;
    }
    l->bytes_before = l->bytes_after = t->bytes;
    if (l->quantized) l->bytes_after = quantized_bytes(l, t, scheme);
done:
    return rc;
}

int dpk_layers_make(struct dpk_layers *l, const struct dpk_file *f, const char *path,
                    const struct dpk_scheme *scheme, const struct dpk_filter *filter,
                    dpk_error *err) {
    uint64_t *rows = NULL;
    int rc = DPK_OK;
    *l = (struct dpk_layers){0};
    DPK_TRY(check_not_quantized(f, path, err));
    rows = malloc(((size_t)f->n_tensors + 1) * sizeof *rows);
    l->layer = calloc((size_t)f->n_tensors + 1, sizeof *l->layer);
    if (!rows || !l->layer) DPK_FAIL(err, DPK_ENOMEM, "no memory for %u layers", f->n_tensors);
    DPK_TRY(dpk_rows_infer(f, GUIDED_ROWS, rows, err));
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const struct dpk_tensor_record *t = &f->tensors[i];
        if (t->layout == DPK_LAYOUT_RAW || t->dtype == DPK_I32) continue;
        if (t->rank == 4 && !scheme->convs && (t->dim[1] != 1 || t->dim[2] != 1)) continue;
        struct dpk_layer *layer = &l->layer[l->n++];
        layer->tensor = i;
        DPK_TRY(decide(layer, f, scheme, filter, rows[i], err));
        l->n_quantized += layer->quantized;
    }
done:
    free(rows);
    if (rc != DPK_OK) dpk_layers_free(l);
    return rc;
}

void dpk_layers_free(struct dpk_layers *l) {
    for (size_t i = 0; i < l->n; i++) free(l->layer[i].name);
    free(l->layer);
    *l = (struct dpk_layers){0};
}
