/* Multi-head attention, softmax(scale q k^T + bias + masks) v, without an Lq x Lk matrix (Dao et
 * al., arXiv:2205.14135): what is common to the two ways (attention.h), and the choice.
 *
 * A task is a block of query rows of one head. Where the result is quantized rows, it is a span of
 * such blocks of all heads, which it makes whole in its scratch: rows to be quantized
 * [span*rows][heads*d] for each worker, after the way's own scratch. */
#include "attention.h"
#include "ops_cpu.h"
#include "rows8.h"

#include <math.h>

enum {
    SPAN = 4,       /* blocks of a task that quantizes, for which keys and values are read again */
    TASKS = 4,      /* of a worker, so that all end at about the same time */
    MOST = 1 << 30, /* tokens, head_dim */
};

const uint32_t dpk_cpu_in_place_attention = 0;

static int64_t length_of(const struct dpk_shape *s) {
    return dpk_shape_count(s) / s->dim[0] / s->dim[s->rank - 1];
}

/* Sizes that are computed with; larger ones (of a hostile file, never of one that fits in memory)
 * are refused when it comes to running. */
static int bounded(int64_t n) { return n < MOST ? (int)n : MOST; }

static struct dpk_attention open_attention(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    const struct dpk_attention_attrs *at = DPK_ATTRS(attention, call->op);
    const struct dpk_tensor *q = &call->in[DPK_IN(attention, q)],
                            *k = &call->in[DPK_IN(attention, k)],
                            *v = &call->in[DPK_IN(attention, v)];
    struct dpk_attention s = {
        .cpu = cpu,
        .k = cpu->k,
        .call = call,
        .attrs = at,
        .workers = dpk_pool_workers(cpu->pool),
        .dtype = q->dtype,
        .images = q->shape.dim[0],
        .heads = at->heads,
        .d = bounded(at->head_dim),
        .lq = bounded(length_of(&q->shape)),
        .lk = bounded(length_of(&k->shape)),
        .size = dpk_elem_bytes(q->dtype),
        .q_stride = (size_t)q->shape.dim[q->shape.rank - 1],
        .k_stride = (size_t)k->shape.dim[k->shape.rank - 1],
        .v_stride = (size_t)v->shape.dim[v->shape.rank - 1],
    };
    double scale = at->scale == 0.0f ? 1.0 / sqrt((double)s.d) : (double)at->scale;
    s.scale = (float)(scale * 1.4426950408889634);
    bool columns = dpk_attention_by_columns(&s);
    s.rows = columns ? dpk_attention_columns_of_block(&s) : dpk_attention_rows_of_block(&s);
    s.row_blocks = (s.lq + s.rows - 1) / s.rows;
    return s;
}

size_t dpk_cpu_scratch_attention(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    struct dpk_attention s = open_attention(cpu, call);
    return dpk_attention_by_columns(&s) ? dpk_attention_columns_scratch(&s)
                                        : dpk_attention_rows_scratch(&s);
}

bool dpk_cpu_rows8_attention(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    struct dpk_attention s = open_attention(cpu, call);
    return (int64_t)s.images * s.row_blocks >= (int64_t)TASKS * s.workers;
}

void dpk_attention_plan_tasks(struct dpk_attention *s, size_t n_bytes) {
    s->span = s->spans = 0;
    s->at_made = n_bytes;
    s->bytes = n_bytes;
    if (!s->call->out.rows8) return;
    int64_t all = (int64_t)s->images * s->row_blocks / TASKS / s->workers;
    s->span = all < 1 ? 1 : all < SPAN ? (int)all : SPAN;
    s->spans = (s->row_blocks + s->span - 1) / s->span;
    s->bytes += (size_t)s->workers * (size_t)s->span * (size_t)s->rows * dpk_attention_row_bytes(s);
}

static void block_task(void *arg, int task, int worker) {
    const struct dpk_attention *s = arg;
    int group = task / s->row_blocks, block = task % s->row_blocks;
    size_t row = (size_t)(group / s->heads) * (size_t)s->lq + (size_t)block * (size_t)s->rows;
    s->block(s, group, block, worker, (char *)s->call->out.data + row * dpk_attention_row_bytes(s));
}

/* A span of blocks of all heads, quantized. */
static void span_task(void *arg, int task, int worker) {
    const struct dpk_attention *s = arg;
    const struct dpk_tensor *out = &s->call->out;
    const struct dpk_rows8 rows8 = dpk_rows8_of(s->cpu, s->dtype, out->rows8);
    int b = task / s->spans, first = task % s->spans * s->span;
    int end = s->row_blocks - first < s->span ? s->row_blocks : first + s->span;
    size_t bytes = dpk_attention_row_bytes(s), n = bytes / s->size;
    size_t stride = dpk_rows8_stride(&rows8, n), block_bytes = (size_t)s->rows * bytes;
    char *made =
        (char *)s->call->scratch + s->at_made + (size_t)worker * (size_t)s->span * block_bytes;
    for (int head = 0; head < s->heads; head++) {
        for (int i = first; i < end; i++) {
            s->block(s, b * s->heads + head, i, worker, made + (size_t)(i - first) * block_bytes);
        }
    }
    int i0 = first * s->rows, rows = end * s->rows < s->lq ? end * s->rows - i0 : s->lq - i0;
    char *to = (char *)out->data + ((size_t)b * (size_t)s->lq + (size_t)i0) * stride;
    for (int r = 0; r < rows; r++, made += bytes, to += stride) {
        dpk_rows8_put(&rows8, to, made, n);
    }
}

int dpk_attention_run_tasks(struct dpk_cpu *cpu, struct dpk_attention *s, dpk_error *err) {
    int64_t blocks = (int64_t)s->images * s->heads * s->row_blocks;
    if (!s->span) return dpk_run_tasks(cpu, blocks, block_task, s, err);
    return dpk_run_tasks(cpu, (int64_t)s->images * s->spans, span_task, s, err);
}

int dpk_cpu_run_attention(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    struct dpk_attention s = open_attention(cpu, call);
    int rc = DPK_OK;
    if (s.lq == MOST || s.lk == MOST || s.d == MOST) {
        DPK_FAIL(err, DPK_EUNSUPPORTED, "attention: %d queries, %d keys, head_dim %d, want less",
                 s.lq, s.lk, s.d);
    }
    rc = dpk_attention_by_columns(&s) ? dpk_attention_columns_run(cpu, &s, err)
                                      : dpk_attention_rows_run(cpu, &s, err);
done:
    return rc;
}
