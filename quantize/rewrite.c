#include "rewrite.h"

#include "../formats/dpk_check.h"
#include "../formats/fail.h"
#include "panel.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct rewrite {
    const struct dpk_file *f;
    struct dpk_layers *layers;
    const struct dpk_rewrite_options *options;
    struct dpk_writer *w;  /* NULL: nothing is written */
    struct dpk_layer **of; /* [n_tensors] the quantized layer of a tensor, or NULL */
    uint32_t *number;      /* [n_tensors] in the new file */
    uint32_t n_declared;
    uint64_t done; /* bytes of the source's weights */
    dpk_error *err;
    /* Of the layer at hand: blocks that grow as needed, and what they hold. */
    void *rows_, *scales_, *q_, *sums_, *panel;
    size_t n_rows, n_scales, n_q, n_sums, n_panel; /* elements */
    float *rows, *scales;
    int8_t *q;
    int32_t *sums;
};

/* ---- What the new file has ------------------------------------------------------------------- */

static int add_tensor(struct rewrite *r, const struct dpk_tensor_spec *spec, uint32_t *number) {
    r->n_declared++;
    return dpk_writer_tensor(r->w, spec, number, r->err);
}

static int declare_tensor(struct rewrite *r, uint32_t i) {
    const struct dpk_tensor_record *t = &r->f->tensors[i];
    const struct dpk_layer *l = r->of[i];
    const char *name = dpk_file_string(r->f, t->name);
    struct dpk_tensor_spec spec = {.name = name,
                                   .source = dpk_file_string(r->f, t->source),
                                   .dtype = (int)t->dtype,
                                   .layout = (int)t->layout,
                                   .shape = dpk_tensor_shape(t),
                                   .scale = DPK_NONE,
                                   .colsum = DPK_NONE,
                                   .flags = t->flags};
    char companion[DPK_MAX_NAME + 16];
    uint32_t number;
    int rc = DPK_OK;
    if (!l) {
        DPK_TRY(add_tensor(r, &spec, &r->number[i]));
        goto done;
    }
    /* It gets the next number, its companions those after that. */
    const struct dpk_scheme *scheme = r->options->scheme;
    const bool s4 = scheme->kind == DPK_SCHEME_INT4_WEIGHT;
    const uint32_t next = r->n_declared;
    spec.dtype = s4 ? DPK_S4 : DPK_S8;
    spec.scale = next + 1;
    spec.colsum = s4 ? DPK_NONE : next + 2;
    spec.group = (uint32_t)l->group;
    if (scheme->kind == DPK_SCHEME_INT8_DYNAMIC) {
        spec.flags |= DPK_TENSOR_DYNAMIC;
        if (scheme->convention == DPK_CONVENTION_TORCHAO) spec.flags |= DPK_TENSOR_TORCHAO;
    }
    DPK_TRY(add_tensor(r, &spec, &r->number[i]));

    const int32_t n = t->dim[0];
    struct dpk_tensor_spec part = {.name = companion,
                                   .source = "",
                                   .dtype = DPK_F32,
                                   .layout = DPK_LAYOUT_RAW,
                                   .shape = {1, {n}},
                                   .scale = DPK_NONE,
                                   .colsum = DPK_NONE};
    if (s4) {
        const uint64_t groups = l->weights / (uint64_t)n / (uint64_t)l->group;
        part.shape = (struct dpk_shape){2, {n, (int32_t)groups}};
    }
    snprintf(companion, sizeof companion, "%s_scale", name);
    DPK_TRY(add_tensor(r, &part, &number));
    if (s4) goto done;
    snprintf(companion, sizeof companion, "%s_colsum", name);
    part.dtype = DPK_I32;
    DPK_TRY(add_tensor(r, &part, &number));
done:
    return rc;
}

static int copy_string(struct rewrite *r, uint32_t *offset) {
    return dpk_writer_string(r->w, dpk_file_string(r->f, *offset), offset, r->err);
}

static int copy_program(struct rewrite *r, const struct dpk_program *p) {
    const uint32_t n = p->n_inputs + p->n_ops;
    struct dpk_value *values = malloc(n * sizeof *values);
    struct dpk_op *ops = malloc(p->n_ops * sizeof *ops);
    int rc = DPK_OK;
    if (!values || !ops)
        DPK_FAIL(r->err, DPK_ENOMEM, "program %s: no memory for its %u operators", p->name,
                 p->n_ops);
    memcpy(values, p->values, n * sizeof *values);
    memcpy(ops, p->ops, p->n_ops * sizeof *ops);
    for (uint32_t i = 0; i < n; i++) DPK_TRY(copy_string(r, &values[i].name));
    for (uint32_t i = 0; i < p->n_ops; i++) {
        DPK_TRY(copy_string(r, &ops[i].name));
        for (int j = 0; j < DPK_MAX_WT; j++)
            if (ops[i].wt[j] != DPK_NONE) ops[i].wt[j] = r->number[ops[i].wt[j]];
    }
    DPK_TRY(dpk_writer_program(r->w, p->name, values, p->n_inputs, ops, p->n_ops, r->err));
done:
    free(values);
    free(ops);
    return rc;
}

static int add_provenance(struct rewrite *r) {
    const struct dpk_scheme *scheme = r->options->scheme;
    uint64_t weights = 0, bytes = 0;
    char text[64];
    int rc = DPK_OK;
    for (size_t i = 0; i < r->layers->n; i++) {
        weights += r->layers->layer[i].weights;
        bytes += r->layers->layer[i].bytes_after;
    }
    DPK_TRY(dpk_writer_pair(r->w, "quant.scheme", dpk_scheme_text(scheme, text), r->err));
    if (scheme->kind != DPK_SCHEME_INT4_WEIGHT)
        DPK_TRY(dpk_writer_pair(r->w, "quant.convention", dpk_convention_name(scheme->convention),
                                r->err));
    DPK_TRY(dpk_writer_pair(r->w, "quant.filter", r->options->filter_id, r->err));
    snprintf(text, sizeof text, "%016" PRIx64, dpk_file_sum(r->f));
    DPK_TRY(dpk_writer_pair(r->w, "quant.source_sum", text, r->err));
    snprintf(text, sizeof text, "%zu of %zu", r->layers->n_quantized, r->layers->n);
    DPK_TRY(dpk_writer_pair(r->w, "quant.layers", text, r->err));
    snprintf(text, sizeof text, "%.3f", weights ? 8.0 * (double)bytes / (double)weights : 0.0);
    DPK_TRY(dpk_writer_pair(r->w, "quant.bits", text, r->err));
    for (size_t i = 0; i < r->options->n_pairs; i++)
        DPK_TRY(dpk_writer_pair(r->w, r->options->pairs[i].key, r->options->pairs[i].value,
                                r->err));
done:
    return rc;
}

static int declare(struct rewrite *r) {
    const struct dpk_file *f = r->f;
    int rc = DPK_OK;
    for (uint32_t i = 0; i < f->n_pairs; i++)
        DPK_TRY(dpk_writer_pair(r->w, dpk_file_string(f, f->pairs[i].key),
                                dpk_file_string(f, f->pairs[i].value), r->err));
    DPK_TRY(add_provenance(r));
    for (uint32_t i = 0; i < f->n_tokenizers; i++) {
        size_t n_bytes;
        const void *data = dpk_file_blob(f, i, &n_bytes);
        DPK_TRY(dpk_writer_blob(r->w, dpk_file_string(f, f->tokenizers[i].name),
                                f->tokenizers[i].kind, data, n_bytes, r->err));
    }
    for (uint32_t i = 0; i < f->n_tensors; i++) DPK_TRY(declare_tensor(r, i));
    for (uint32_t i = 0; i < f->n_programs; i++) DPK_TRY(copy_program(r, &f->programs[i]));
    DPK_TRY(dpk_writer_begin(r->w, r->err));
done:
    return rc;
}

/* ---- Bytes ----------------------------------------------------------------------------------- */

static int progress(struct rewrite *r, uint64_t n_bytes) {
    r->done += n_bytes;
    if (!r->options->progress ||
        !r->options->progress(r->options->progress_arg, r->done, r->f->weights_bytes))
        return DPK_OK;
    return dpk_error_set(r->err, DPK_ECANCELLED,
                         "quantization was stopped at byte %" PRIu64 " of %" PRIu64, r->done,
                         r->f->weights_bytes);
}

static int check_sum(struct rewrite *r, const struct dpk_tensor_record *t) {
    const uint64_t sum = dpk_bytes_sum(r->f->weights + t->offset, (size_t)t->bytes);
    if (sum == t->hash) return DPK_OK;
    return dpk_error_set(r->err, DPK_EFORMAT,
                         "tensor %.100s: the sum is %016" PRIx64 ", its bytes give %016" PRIx64
                         " (damaged file?)",
                         dpk_file_string(r->f, t->name), t->hash, sum);
}

static int put(struct rewrite *r, uint32_t number, const void *data, size_t n_bytes) {
    return r->w ? dpk_writer_put(r->w, number, data, n_bytes, r->err) : DPK_OK;
}

/* *array of *have elements of `size` bytes gets room for `want`; what was in it is lost. */
static int grow(struct rewrite *r, void **array, size_t *have, uint64_t want, size_t size) {
    if (want <= *have) return DPK_OK;
    free(*array);
    *have = 0;
    *array = want < SIZE_MAX / 2 / size ? malloc((size_t)want * size) : NULL;
    if (!*array)
        return dpk_error_set(r->err, DPK_ENOMEM, "no memory for %" PRIu64 " values of %zu bytes",
                             want, size);
    *have = (size_t)want;
    return DPK_OK;
}

static int prepare(struct rewrite *r, const struct dpk_panels *from, const struct dpk_panels *to,
                   uint64_t scales_a_row) {
    const uint64_t n = DPK_PANEL_ROWS * from->k; /* k is below 2^31 times the taps: 2^40 at most */
    int rc = DPK_OK;
    DPK_TRY(grow(r, &r->rows_, &r->n_rows, n, sizeof *r->rows));
    DPK_TRY(grow(r, &r->q_, &r->n_q, n, sizeof *r->q));
    DPK_TRY(grow(r, &r->panel, &r->n_panel, to->bytes, 1));
    DPK_TRY(grow(r, &r->scales_, &r->n_scales, from->rows * scales_a_row, sizeof *r->scales));
    DPK_TRY(grow(r, &r->sums_, &r->n_sums, from->rows, sizeof *r->sums));
    r->rows = r->rows_;
    r->q = r->q_;
    r->scales = r->scales_;
    r->sums = r->sums_;
done:
    return rc;
}

/* Row `row` of the layer, at place `place` of the panel in r->rows. */
static int quantize_row(struct rewrite *r, struct dpk_layer *l, uint64_t row, int place, size_t k) {
    const struct dpk_scheme *scheme = r->options->scheme;
    const struct dpk_tensor_record *t = &r->f->tensors[l->tensor];
    const float *w = r->rows + (size_t)place * k;
    int8_t *q = r->q + (size_t)place * k;
    const size_t group = l->group ? (size_t)l->group : k;
    float *scales = r->scales + row * (k / group);
    const bool good = l->group
                          ? dpk_quantize_row_s4(w, k, group, q, scales)
                          : dpk_quantize_row_s8(scheme->convention, (int)t->dtype, w, k, q, scales);
    if (!good)
        return dpk_error_set(r->err, DPK_EFORMAT,
                             "tensor %.100s: row %" PRIu64 " has a value that is not finite",
                             dpk_file_string(r->f, t->name), row);
    r->sums[row] = dpk_quantized_sum(q, k);
    dpk_quantize_error(w, q, scales, k, group, &l->signal, &l->noise);
    return DPK_OK;
}

static int quantize_layer(struct rewrite *r, struct dpk_layer *l) {
    const struct dpk_tensor_record *t = &r->f->tensors[l->tensor];
    const struct dpk_shape shape = dpk_tensor_shape(t);
    const bool s4 = r->options->scheme->kind == DPK_SCHEME_INT4_WEIGHT;
    const uint32_t number = r->number[l->tensor];
    struct dpk_panels from, to;
    int rc = DPK_OK;
    if (!dpk_panels_make(&from, (int)t->dtype, (int)t->layout, &shape) ||
        !dpk_panels_make(&to, s4 ? DPK_S4 : DPK_S8, (int)t->layout, &shape))
        DPK_FAIL(r->err, DPK_EFORMAT, "tensor %.100s: %s of %s cannot be quantized",
                 dpk_file_string(r->f, t->name), dpk_layout_name((int)t->layout),
                 dpk_dtype_name((int)t->dtype));
    const size_t k = (size_t)from.k;
    const uint64_t scales_a_row = l->group ? from.k / (uint64_t)l->group : 1;
    DPK_TRY(prepare(r, &from, &to, scales_a_row));
    l->signal = l->noise = 0;
    for (uint64_t p = 0; p < from.count; p++) {
        dpk_panels_unpack(&from, r->f->weights + t->offset + p * from.bytes, r->rows);
        memset(r->q, 0, DPK_PANEL_ROWS * k);
        for (int place = 0; place < DPK_PANEL_ROWS; place++) {
            const int64_t row = dpk_panels_row(&from, p, place);
            if (row >= 0) DPK_TRY(quantize_row(r, l, (uint64_t)row, place, k));
        }
        dpk_panels_pack(&to, r->q, r->panel);
        DPK_TRY(put(r, number, r->panel, (size_t)to.bytes));
        DPK_TRY(progress(r, from.bytes));
    }
    DPK_TRY(put(r, number + 1, r->scales, (size_t)(from.rows * scales_a_row) * sizeof(float)));
    if (!s4) DPK_TRY(put(r, number + 2, r->sums, (size_t)from.rows * sizeof(int32_t)));
done:
    return rc;
}

/* The pages of a tensor that was dealt with need not stay in memory: they are the file's. */
static void drop_pages(const struct rewrite *r, const struct dpk_tensor_record *t) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = (uintptr_t)(r->f->weights + t->offset) / page * page;
    const uintptr_t end = (uintptr_t)(r->f->weights + t->offset + t->bytes) / page * page;
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED);
}

static int write_tensors(struct rewrite *r) {
    enum { PIECE = 1 << 20 };
    int rc = DPK_OK;
    for (uint32_t i = 0; i < r->f->n_tensors; i++) {
        const struct dpk_tensor_record *t = &r->f->tensors[i];
        if (!r->w && !r->of[i]) continue;
        DPK_TRY(check_sum(r, t));
        if (r->of[i]) {
            DPK_TRY(quantize_layer(r, r->of[i]));
            drop_pages(r, t);
            continue;
        }
        for (uint64_t at = 0; at < t->bytes; at += PIECE) {
            const size_t n = t->bytes - at < PIECE ? (size_t)(t->bytes - at) : PIECE;
            DPK_TRY(put(r, r->number[i], r->f->weights + t->offset + at, n));
            DPK_TRY(progress(r, n));
        }
        drop_pages(r, t);
    }
done:
    return rc;
}

int dpk_rewrite(const struct dpk_file *f, const char *out_path, struct dpk_layers *layers,
                const struct dpk_rewrite_options *options, dpk_error *err) {
    struct rewrite r = {.f = f, .layers = layers, .options = options, .err = err};
    const size_t n = (size_t)f->n_tensors + 1;
    int rc = DPK_OK;
    r.of = calloc(n, sizeof *r.of);
    r.number = calloc(n, sizeof *r.number);
    if (!r.of || !r.number) DPK_FAIL(err, DPK_ENOMEM, "no memory for %u tensors", f->n_tensors);
    for (size_t i = 0; i < layers->n; i++)
        if (layers->layer[i].quantized) r.of[layers->layer[i].tensor] = &layers->layer[i];
    if (out_path) {
        DPK_TRY(dpk_writer_create(&r.w, out_path, err));
        DPK_TRY(declare(&r));
    }
    DPK_TRY(write_tensors(&r));
    if (r.w) DPK_TRY(dpk_writer_finish(r.w, err));
done:
    dpk_writer_free(r.w);
    free(r.of);
    free(r.number);
    free(r.rows_);
    free(r.scales_);
    free(r.q_);
    free(r.sums_);
    free(r.panel);
    return rc;
}
