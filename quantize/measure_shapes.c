/* Which shapes gain: every distinct call of the model's programs is run with the weights of the
 * file and with quantized ones of the same shape. Time does not depend on the numbers, so the
 * activations and the quantized weights are made up. */
#include "measure_impl.h"

#include "../formats/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARGIN 1.1          /* this much faster, or it is left alone */
#define SECONDS_A_SHAPE 0.4 /* after which no further round begins */
enum { MIN_ROUNDS = 3, MAX_ROUNDS = 40, MAX_CALLS = 32 };

/* What the time of a call depends on. */
struct shape_key {
    uint32_t opcode;
    int32_t attr[DPK_MAX_ATTR];
    struct dpk_shape in[DPK_MAX_IN], weight;
    int32_t dtype, layout, group;
};

struct timing {
    struct dpk_timed_shapes *t;
    struct shape_key *key;        /* [t->n] */
    const struct dpk_call **call; /* [t->n] the first with that key */
    uint32_t *shape_of;           /* [layers->n] DPK_NONE: no program runs it */
    struct dpk_layers *layers;
    const struct dpk_scheme *scheme;
    const struct dpk_measure_options *options;
    struct dpk_backend *backend;
};

static void clear_rest(struct dpk_shape *s) {
    for (int i = s->rank; i < DPK_MAX_RANK; i++) s->dim[i] = 0;
}

static struct shape_key key_of(const struct dpk_call *call, const struct dpk_layer *l) {
    struct shape_key k;
    memset(&k, 0, sizeof k);
    k.opcode = call->op->opcode;
    for (int i = 0; i < DPK_MAX_ATTR; i++) k.attr[i] = call->op->attr[i].i;
    for (int i = 0; i < DPK_MAX_IN; i++) {
        k.in[i] = call->in[i].shape;
        clear_rest(&k.in[i]);
    }
    k.weight = call->wt[0].shape;
    clear_rest(&k.weight);
    k.dtype = call->wt[0].dtype;
    k.layout = call->wt[0].layout;
    k.group = l->group;
    /* Where in its input a gate begins does not matter. */
    if (k.opcode == DPK_OP_linear) k.attr[offsetof(struct dpk_linear_attrs, gate_off) / 4] = 0;
    return k;
}

static void describe(struct dpk_timed_shape *s, const struct dpk_call *call,
                     const struct dpk_layer *l) {
    const struct dpk_shape *w = &call->wt[0].shape;
    const struct dpk_shape *out = &call->out.shape;
    s->kind = l->kind;
    s->out = w->dim[0];
    s->in = dpk_shape_count(w) / w->dim[0];
    s->rows = dpk_shape_count(out) / out->dim[out->rank - 1];
    s->glu = call->op->opcode == DPK_OP_linear && DPK_ATTRS(linear, call->op)->glu;
}

static void find_shapes(struct timing *m, const struct dpk_plan *plan, const uint32_t *layer_of) {
    for (uint32_t s = 0; s < plan->n_stages; s++)
        for (uint32_t i = 0; i < plan->stages[s].program->n_ops; i++) {
            const struct dpk_call *call = &plan->stages[s].calls[i];
            const uint32_t tensor = dpk_side_weight(call->op);
            const uint32_t layer = tensor == DPK_NONE ? DPK_NONE : layer_of[tensor];
            if (layer == DPK_NONE || m->shape_of[layer] != DPK_NONE) continue;
            const struct shape_key key = key_of(call, &m->layers->layer[layer]);
            size_t at = 0;
            while (at < m->t->n && memcmp(&m->key[at], &key, sizeof key) != 0) at++;
            if (at == m->t->n) {
                m->key[at] = key;
                m->call[at] = call;
                describe(&m->t->shape[at], call, &m->layers->layer[layer]);
                m->t->n++;
            }
            m->shape_of[layer] = (uint32_t)at;
            m->t->shape[at].n_layers++;
        }
}

/* ---- One shape ------------------------------------------------------------------------------- */

struct bench {
    struct dpk_call call[2];
    void *in[DPK_MAX_IN], *out, *scratch, *data, *scale, *colsum;
};

static void *take(uint64_t bytes) {
    bytes = (bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    return aligned_alloc(DPK_ALIGN, bytes ? bytes : DPK_ALIGN);
}

static uint64_t tensor_bytes(const struct dpk_tensor *t) {
    return (uint64_t)dpk_shape_count(&t->shape) * (t->dtype == DPK_BF16 ? 2 : 4);
}

/* Numbers between 1/2 and 2 of either sign, of float32 or bfloat16: the exponent has one of two
 * values. */
static void fill(void *p, uint64_t bytes) {
    uint16_t *v = p;
    uint32_t x = 12345;
    for (uint64_t i = 0; i < bytes / 2; i++) {
        x = x * 1664525u + 1013904223u;
        v[i] = (uint16_t)((x >> 16 & 0x80ff) | 0x3f00);
    }
}

static int make_weight(struct timing *m, struct bench *b, dpk_error *err) {
    struct dpk_weight *w = &b->call[1].wt[0];
    const struct dpk_scheme *scheme = m->scheme;
    const bool s4 = scheme->kind == DPK_SCHEME_INT4_WEIGHT;
    const uint64_t n = (uint64_t)w->shape.dim[0], all = (uint64_t)dpk_shape_count(&w->shape);
    int rc = DPK_OK;
    w->dtype = s4 ? DPK_S4 : DPK_S8;
    const uint64_t bytes = dpk_weight_bytes(w->dtype, w->layout, &w->shape);
    const uint64_t scales = s4 ? all / (uint64_t)w->group : n;
    b->data = take(bytes);
    b->scale = take(scales * sizeof(float));
    b->colsum = take(n * sizeof(int32_t));
    if (!b->data || !b->scale || !b->colsum)
        DPK_FAIL(err, DPK_ENOMEM, "no memory for a weight of %llu bytes",
                 (unsigned long long)bytes);
    fill(b->data, bytes);
    for (uint64_t i = 0; i < scales; i++) ((float *)b->scale)[i] = 0.001f;
    memset(b->colsum, 0, n * sizeof(int32_t));
    w->data = b->data;
    w->scale = b->scale;
    w->colsum = s4 ? NULL : b->colsum;
    if (scheme->kind == DPK_SCHEME_INT8_DYNAMIC) {
        w->flags |= DPK_TENSOR_DYNAMIC;
        if (scheme->convention == DPK_CONVENTION_TORCHAO) w->flags |= DPK_TENSOR_TORCHAO;
    }
done:
    return rc;
}

static int bench_make(struct timing *m, struct bench *b, const struct dpk_call *call, int group,
                      dpk_error *err) {
    uint64_t scratch = 0;
    int rc = DPK_OK;
    b->call[0] = b->call[1] = *call;
    b->call[1].wt[0].group = group;
    DPK_TRY(make_weight(m, b, err));
    b->out = take(tensor_bytes(&call->out));
    bool all = b->out != NULL;
    for (int i = 0; i < DPK_MAX_IN; i++) {
        if (!call->in[i].shape.rank) continue;
        b->in[i] = take(tensor_bytes(&call->in[i]));
        all = all && b->in[i];
        if (b->in[i]) fill(b->in[i], tensor_bytes(&call->in[i]));
    }
    for (int k = 0; k < 2; k++) {
        const uint64_t need = m->backend->scratch_bytes(m->backend, &b->call[k]);
        if (need > scratch) scratch = need;
    }
    b->scratch = take(scratch);
    if (!all || !b->scratch) DPK_FAIL(err, DPK_ENOMEM, "no memory to time an operator");
    /* The file's biases are used as they are. */
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < DPK_MAX_IN; i++) b->call[k].in[i].data = b->in[i];
        b->call[k].out.data = b->out;
        b->call[k].scratch = b->scratch;
    }
done:
    return rc;
}

static void bench_free(struct bench *b) {
    for (int i = 0; i < DPK_MAX_IN; i++) free(b->in[i]);
    free(b->out);
    free(b->scratch);
    free(b->data);
    free(b->scale);
    free(b->colsum);
}

static int time_shape(struct timing *m, size_t at, int group, dpk_error *err) {
    struct dpk_timed_shape *s = &m->t->shape[at];
    struct bench b = {0};
    const double begin = dpk_side_seconds();
    int rc = DPK_OK;
    DPK_TRY(bench_make(m, &b, m->call[at], group, err));
    /* In turn, so that both see the machine's slow moments; the first round warms up and finds how
     * many calls in a row take long enough to be timed (and keep the threads awake, as a program
     * does). */
    int calls[2] = {1, 1};
    for (int round = 0; round <= MAX_ROUNDS; round++) {
        if (round > MIN_ROUNDS && dpk_side_seconds() - begin > SECONDS_A_SHAPE) break;
        for (int k = 0; k < 2; k++) {
            const double start = dpk_side_seconds();
            for (int i = 0; i < calls[k]; i++)
                DPK_TRY(m->backend->run(m->backend, &b.call[k], err));
            const double took = (dpk_side_seconds() - start) / calls[k];
            double *best = k ? &s->after : &s->before;
            if (round == 0)
                calls[k] = took > 0.002 / MAX_CALLS ? (int)(0.002 / took) + 1 : MAX_CALLS;
            else if (round == 1 || took < *best) *best = took;
        }
    }
    s->quantize = s->before >= MARGIN * s->after;
    snprintf(s->text, sizeof s->text,
             "%s %lld to %lld%s, %lld rows: %.3f ms, quantized %.3f ms, %.2fx: %s",
             dpk_layer_kind_name(s->kind), (long long)s->in, (long long)s->out,
             s->glu ? " glu" : "", (long long)s->rows, s->before * 1e3, s->after * 1e3,
             s->before / s->after, s->quantize ? "quantize" : "leave");
done:
    bench_free(&b);
    return rc;
}

/* ---- All of them ----------------------------------------------------------------------------- */

static int time_all(struct timing *m, dpk_error *err) {
    int rc = DPK_OK;
    for (size_t i = 0; i < m->t->n; i++) {
        char what[64];
        snprintf(what, sizeof what, "timing shape %zu of %zu", i + 1, m->t->n);
        if (m->options->progress &&
            m->options->progress(m->options->progress_arg, what, (double)i / (double)m->t->n))
            DPK_FAIL(err, DPK_ECANCELLED, "measuring was stopped: %s", what);
        DPK_TRY(time_shape(m, i, m->key[i].group, err));
    }
done:
    return rc;
}

static void decide(struct timing *m) {
    struct dpk_layers *layers = m->layers;
    for (size_t i = 0; i < layers->n; i++) {
        struct dpk_layer *l = &layers->layer[i];
        if (!l->quantized) continue;
        const uint32_t shape = m->shape_of[i];
        l->reason =
            shape == DPK_NONE ? "not timed: painting does not run it" : m->t->shape[shape].text;
        if (shape != DPK_NONE && m->t->shape[shape].quantize) continue;
        l->quantized = false;
        l->group = 0;
        l->bytes_after = l->bytes_before;
        layers->n_quantized--;
    }
}

int dpk_measure_shapes(struct dpk_timed_shapes *t, const char *path, struct dpk_layers *layers,
                       const struct dpk_scheme *scheme, const struct dpk_measure_options *options,
                       dpk_error *err) {
    struct timing m = {.t = t, .layers = layers, .scheme = scheme, .options = options};
    struct dpk_side side = {0};
    struct dpk_job job = {0};
    dpk_params params = dpk_params_default();
    uint32_t *layer_of = NULL;
    const size_t n = layers->n + 1;
    int rc = DPK_OK;
    *t = (struct dpk_timed_shapes){0};
    DPK_TRY(dpk_side_open(&side, path, options->threads, err));
    snprintf(t->machine, sizeof t->machine, "%s", dpk_session_describe(side.session));
    m.backend = side.session->backend;
    params.no_binning = 1;
    DPK_TRY(dpk_job_plan(&job, side.session, &params, err));
    t->shape = calloc(n, sizeof *t->shape);
    m.key = calloc(n, sizeof *m.key);
    m.call = calloc(n, sizeof *m.call);
    m.shape_of = calloc(n, sizeof *m.shape_of);
    layer_of = dpk_side_layer_of(&side.model->file, layers);
    if (!t->shape || !m.key || !m.call || !m.shape_of || !layer_of)
        DPK_FAIL(err, DPK_ENOMEM, "no memory to time %zu layers", layers->n);
    for (size_t i = 0; i < layers->n; i++) m.shape_of[i] = DPK_NONE;
    find_shapes(&m, &job.plan, layer_of);
    DPK_TRY(time_all(&m, err));
    decide(&m);
done:
    free(m.key);
    free(m.call);
    free(m.shape_of);
    free(layer_of);
    dpk_job_free(&job);
    dpk_side_close(&side);
    if (rc != DPK_OK) dpk_timed_shapes_free(t);
    return rc;
}

void dpk_timed_shapes_free(struct dpk_timed_shapes *t) {
    free(t->shape);
    *t = (struct dpk_timed_shapes){0};
}
