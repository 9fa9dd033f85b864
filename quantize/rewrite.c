#include "rewrite.h"

#include "../formats/dpk_check.h"
#include "../formats/fail.h"
#include "../kernels/cpu/cpu.h"
#include "panel.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct block {
    void *data;
    size_t n_bytes;
};

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
    struct dpk_pool *pool;
    /* Blocks for the layer at hand, which grow as needed. */
    struct block rows, q;       /* of each worker: a panel's rows as floats and as integers */
    struct block panels, bands; /* of each panel that is made at the same time */
    struct block scales, sums;  /* of all rows */
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
        DPK_TRY(
            dpk_writer_pair(r->w, r->options->pairs[i].key, r->options->pairs[i].value, r->err));
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

/* Room for n values of `size` bytes; what was there is lost. */
static int grow(struct rewrite *r, struct block *b, uint64_t n, size_t size) {
    if (n <= b->n_bytes / size) return DPK_OK;
    free(b->data);
    *b = (struct block){n < SIZE_MAX / 2 / size ? malloc((size_t)n * size) : NULL, 0};
    if (!b->data)
        return dpk_error_set(r->err, DPK_ENOMEM, "no memory for %" PRIu64 " values of %zu bytes", n,
                             size);
    b->n_bytes = (size_t)n * size;
    return DPK_OK;
}

/* What is known of a panel once it is made: its error, and a row that is not finite, or -1. */
struct band {
    double signal, noise;
    int64_t bad_row;
};

/* Panels first, first + 1, ... of a layer, made by all workers. */
struct batch {
    struct rewrite *r;
    const struct dpk_layer *layer;
    const struct dpk_tensor_record *tensor;
    struct dpk_panels from, to;
    uint64_t first;
};

/* Row `row` of the layer, values w, to integers q. */
static bool quantize_row(const struct batch *b, uint64_t row, const float *w, int8_t *q,
                         struct band *band) {
    const struct dpk_scheme *scheme = b->r->options->scheme;
    const size_t k = (size_t)b->from.k, group = b->layer->group ? (size_t)b->layer->group : k;
    float *scales = (float *)b->r->scales.data + row * (k / group);
    if (b->layer->group
            ? !dpk_quantize_row_s4(w, k, group, q, scales)
            : !dpk_quantize_row_s8(scheme->convention, (int)b->tensor->dtype, w, k, q, scales))
        return false;
    ((int32_t *)b->r->sums.data)[row] = dpk_quantized_sum(q, k);
    dpk_quantize_error(w, q, scales, k, group, &band->signal, &band->noise);
    return true;
}

static void make_panel(void *arg, int task, int worker) {
    const struct batch *b = arg;
    const struct rewrite *r = b->r;
    const uint64_t p = b->first + (uint64_t)task;
    const size_t k = (size_t)b->from.k, n = DPK_PANEL_ROWS * k;
    float *rows = (float *)r->rows.data + (size_t)worker * n;
    int8_t *q = (int8_t *)r->q.data + (size_t)worker * n;
    struct band *band = (struct band *)r->bands.data + task;
    *band = (struct band){.bad_row = -1};
    dpk_panels_unpack(&b->from, r->f->weights + b->tensor->offset + p * b->from.bytes, rows);
    memset(q, 0, n);
    for (int place = 0; place < DPK_PANEL_ROWS && band->bad_row < 0; place++) {
        const int64_t row = dpk_panels_row(&b->from, p, place);
        const size_t at = (size_t)place * k;
        if (row >= 0 && !quantize_row(b, (uint64_t)row, rows + at, q + at, band))
            band->bad_row = row;
    }
    dpk_panels_pack(&b->to, q, (char *)r->panels.data + (size_t)task * (size_t)b->to.bytes);
}

/* `count` panels from b->first on: made in any order, their errors added and their bytes written in
 * theirs, so that neither depends on the number of workers. */
static int run_batch(struct batch *b, struct dpk_layer *l, int count, uint32_t number) {
    struct rewrite *r = b->r;
    const struct band *bands = r->bands.data;
    int rc = DPK_OK;
    dpk_pool_run(r->pool, count, make_panel, b);
    for (int i = 0; i < count; i++) {
        if (bands[i].bad_row >= 0)
            DPK_FAIL(r->err, DPK_EFORMAT,
                     "tensor %.100s: row %" PRId64 " has a value that is not finite",
                     dpk_file_string(r->f, b->tensor->name), bands[i].bad_row);
        l->signal += bands[i].signal;
        l->noise += bands[i].noise;
    }
    const uint64_t n_bytes = (uint64_t)count * b->to.bytes;
    DPK_TRY(put(r, number, r->panels.data, (size_t)n_bytes));
    DPK_TRY(progress(r, (uint64_t)count * b->from.bytes));
done:
    return rc;
}

static int quantize_layer(struct rewrite *r, struct dpk_layer *l) {
    enum { PANELS_EACH = 4, MAX_BYTES = 32 << 20 }; /* of a batch: a worker's, and all */
    const struct dpk_tensor_record *t = &r->f->tensors[l->tensor];
    const struct dpk_shape shape = dpk_tensor_shape(t);
    const bool s4 = r->options->scheme->kind == DPK_SCHEME_INT4_WEIGHT;
    const uint32_t number = r->number[l->tensor];
    const uint64_t workers = (uint64_t)dpk_pool_workers(r->pool);
    struct batch b = {.r = r, .layer = l, .tensor = t};
    int rc = DPK_OK;
    if (!dpk_panels_make(&b.from, (int)t->dtype, (int)t->layout, &shape) ||
        !dpk_panels_make(&b.to, s4 ? DPK_S4 : DPK_S8, (int)t->layout, &shape))
        DPK_FAIL(r->err, DPK_EFORMAT, "tensor %.100s: %s of %s cannot be quantized",
                 dpk_file_string(r->f, t->name), dpk_layout_name((int)t->layout),
                 dpk_dtype_name((int)t->dtype));
    const uint64_t n_rows = b.from.rows, n = DPK_PANEL_ROWS * b.from.k;
    const uint64_t n_scales = n_rows * (l->group ? b.from.k / (uint64_t)l->group : 1);
    uint64_t each = MAX_BYTES / (b.to.bytes + 1) + 1;
    if (each > workers * PANELS_EACH) each = workers * PANELS_EACH;
    /* k is below 2^31 times the taps: 2^40 at most */
    DPK_TRY(grow(r, &r->rows, workers * n, sizeof(float)));
    DPK_TRY(grow(r, &r->q, workers * n, 1));
    DPK_TRY(grow(r, &r->panels, each * b.to.bytes, 1));
    DPK_TRY(grow(r, &r->bands, each, sizeof(struct band)));
    DPK_TRY(grow(r, &r->scales, n_scales, sizeof(float)));
    DPK_TRY(grow(r, &r->sums, n_rows, sizeof(int32_t)));
    l->signal = l->noise = 0;
    for (; b.first < b.from.count; b.first += each) {
        const uint64_t left = b.from.count - b.first;
        DPK_TRY(run_batch(&b, l, (int)(left < each ? left : each), number));
    }
    DPK_TRY(put(r, number + 1, r->scales.data, (size_t)n_scales * sizeof(float)));
    if (!s4) DPK_TRY(put(r, number + 2, r->sums.data, (size_t)n_rows * sizeof(int32_t)));
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
    DPK_TRY(dpk_pool_create(&r.pool, options->threads, err));
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
    struct block *const blocks[] = {&r.rows, &r.q, &r.panels, &r.bands, &r.scales, &r.sums};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]->data);
    dpk_pool_free(r.pool);
    return rc;
}
