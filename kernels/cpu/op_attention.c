/* Multi-head attention, softmax(scale q k^T + bias + masks) v, without an Lq x Lk matrix (Dao et
 * al., arXiv:2205.14135).
 *
 * First every head's keys and values are packed into the panels that the product tile takes as its
 * B operand, by tasks of PACK_KEYS keys. Then a task is a block of query rows of one head, which
 * for every block of KEYS keys does
 *     S = Q K^T (tiles),   P = one step of online softmax,   O = O * alpha + P V (tiles)
 * and divides by the sums at the end. The shapes of blocks are constants of the level, so the
 * result does not depend on the number of threads. Where the result is quantized rows, a task is a
 * span of such blocks of all heads, which it makes whole in its scratch.
 *
 * Scratch, every part on a multiple of 64 bytes (g = 1 float32, 2 bfloat16; d16 = head_dim rounded
 * up to 16):
 *     keys    [B*heads][ceil(Lk/16)][ceil(d/g)][16][g]
 *     values  [B*heads][d16/16][ceil(Lk/g)][16][g]
 *     mask    [B][Lk] float32, 0 or -inf (if there is a mask)
 * and for each worker:
 *     S [rows][keys+16], O [rows][d16], T [mr][16*np], m, l, alpha [rows] float32
 *     P [rows][keys + 64 bytes]
 *     row pointers of Q and P [rows]
 *     rows to be quantized [span*rows][heads*d]
 *
 * Share of the product tile's own rate, one thread of an AMD EPYC with AVX512_BF16, L = 4096:
 * d = 40 0.64, d = 64 0.77, d = 72 0.74, d = 512 0.93; 77 keys, d = 64 0.52 (tests/bench_ops.c). */
#include "ops_cpu.h"
#include "rows8.h"
#include "scalar.h"

#include <math.h>

enum {
    ROWS = 120,      /* query rows of a task, about: S and P stay in the L2 cache */
    KEYS = 512,      /* keys of a step */
    SPAN = 4,        /* blocks of a task that quantizes, for which keys and values are read again */
    PACK_KEYS = 256, /* keys of a packing task; a multiple of 16 */
    TASKS = 4,       /* of a worker, so that all end at about the same time */
    MOST = 1 << 30,  /* tokens, head_dim */
};

const uint32_t dpk_cpu_in_place_attention = 0;

struct attention {
    const struct dpk_cpu *cpu;
    const struct dpk_kernels *k;
    const struct dpk_call *call;
    const struct dpk_tile_kernel *tile;
    int dtype, g, images, heads, d, lq, lk;
    int d16, lkg;          /* roundups: d to 16, Lk to g */
    int rows, keys;        /* of a block: rows is a multiple of the tile's */
    int row_blocks, packs; /* of a head */
    int span, spans;       /* row blocks of a task, tasks of an image; 0: each block is one */
    size_t size;           /* bytes of an element */
    size_t q_stride, k_stride, v_stride;
    size_t k_bytes, v_bytes; /* of a head's panels */
    size_t s_stride, p_stride;
    size_t at_keys, at_values, at_mask, at_workers; /* parts of the scratch */
    size_t at_s, at_o, at_t, at_p, at_sums, at_pointers, at_made, worker_bytes;
    size_t bytes;
    float scale; /* with log2(e) */
};

static size_t reserve(size_t *end, size_t n_bytes) {
    size_t at = *end;
    *end += (n_bytes + 63) / 64 * 64;
    return at;
}

static int64_t length_of(const struct dpk_shape *s) {
    return dpk_shape_count(s) / s->dim[0] / s->dim[s->rank - 1];
}

/* Sizes that are computed with; larger ones (of a hostile file, never of one that fits in memory)
 * are refused when it comes to running. */
static int bounded(int64_t n) { return n < MOST ? (int)n : MOST; }

static int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

/* Of the result, as numbers. */
static size_t row_bytes(const struct attention *a) {
    return (size_t)a->heads * (size_t)a->d * a->size;
}

static void plan_scratch(struct attention *a, const struct dpk_cpu *cpu, bool with_mask) {
    size_t heads = (size_t)a->images * (size_t)a->heads, rows = (size_t)a->rows, end = 0;
    size_t tile_width = 16 * (size_t)a->tile->np;
    a->k_bytes = (size_t)round_up(a->lk, 16) * (size_t)round_up(a->d, a->g) * a->size;
    a->v_bytes = (size_t)a->d16 * (size_t)a->lkg * a->size;
    a->s_stride = (size_t)a->keys + 16; /* no row on the same cache set as the next */
    a->p_stride = (size_t)a->keys + 64 / a->size;
    a->at_s = reserve(&end, rows * a->s_stride * 4);
    a->at_o = reserve(&end, rows * (size_t)a->d16 * 4);
    a->at_t = reserve(&end, (size_t)a->tile->mr * tile_width * 4);
    a->at_p = reserve(&end, rows * a->p_stride * a->size);
    a->at_sums = reserve(&end, rows * 3 * 4);
    a->at_pointers = reserve(&end, rows * 2 * sizeof(void *));
    a->at_made = reserve(&end, (size_t)a->span * rows * row_bytes(a));
    a->worker_bytes = end;
    end = 0;
    a->at_keys = reserve(&end, heads * a->k_bytes);
    a->at_values = reserve(&end, heads * a->v_bytes);
    a->at_mask = reserve(&end, with_mask ? (size_t)a->images * (size_t)a->lk * 4 : 0);
    a->at_workers = end;
    a->bytes = end + (size_t)dpk_pool_workers(cpu->pool) * a->worker_bytes;
}

static void plan_attention(struct attention *a, const struct dpk_cpu *cpu,
                           const struct dpk_call *call) {
    const struct dpk_attention_attrs *at = DPK_ATTRS(attention, call->op);
    const struct dpk_tensor *q = &call->in[DPK_IN(attention, q)],
                            *k = &call->in[DPK_IN(attention, k)];
    const struct dpk_tensor *v = &call->in[DPK_IN(attention, v)];
    a->cpu = cpu;
    a->k = cpu->k;
    a->call = call;
    a->dtype = q->dtype;
    a->size = dpk_elem_bytes(a->dtype);
    a->g = a->dtype == DPK_BF16 ? 2 : 1;
    a->tile = dpk_cpu_tile(cpu->isa, a->dtype, a->dtype);
    a->images = q->shape.dim[0];
    a->heads = at->heads;
    a->d = bounded(at->head_dim);
    a->lq = bounded(length_of(&q->shape));
    a->lk = bounded(length_of(&k->shape));
    a->d16 = round_up(a->d, 16);
    a->lkg = round_up(a->lk, a->g);
    int mr = a->tile->mr, most = mr < ROWS ? ROWS / mr * mr : mr;
    a->rows = a->lq < most ? round_up(a->lq, mr) : most;
    a->keys = a->lk < KEYS ? round_up(a->lk, 16) : KEYS;
    a->row_blocks = (a->lq + a->rows - 1) / a->rows;
    a->packs = (a->lk + PACK_KEYS - 1) / PACK_KEYS;
    if (call->out.rows8) {
        int64_t all = (int64_t)a->images * a->row_blocks / TASKS / dpk_pool_workers(cpu->pool);
        a->span = all < 1 ? 1 : all < SPAN ? (int)all : SPAN;
        a->spans = (a->row_blocks + a->span - 1) / a->span;
    }
    a->q_stride = (size_t)q->shape.dim[q->shape.rank - 1];
    a->k_stride = (size_t)k->shape.dim[k->shape.rank - 1];
    a->v_stride = (size_t)v->shape.dim[v->shape.rank - 1];
    double scale = at->scale == 0.0f ? 1.0 / sqrt((double)a->d) : (double)at->scale;
    a->scale = (float)(scale * 1.4426950408889634);
    plan_scratch(a, cpu, call->in[DPK_IN(attention, mask)].shape.rank > 0);
}

size_t dpk_cpu_scratch_attention(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    struct attention a = {0};
    plan_attention(&a, cpu, call);
    return a.bytes;
}

bool dpk_cpu_rows8_attention(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    struct attention a = {0};
    plan_attention(&a, cpu, call);
    return (int64_t)a.images * a.row_blocks >= (int64_t)TASKS * dpk_pool_workers(cpu->pool);
}

/* Channel `off` of head `head`, of token `token` of image b, in a tensor [B, L, stride]. */
static const char *token_at(const struct attention *a, const struct dpk_tensor *t, size_t stride,
                            int length, int b, int token, int off, int head) {
    size_t row = (size_t)b * (size_t)length + (size_t)token;
    return (const char *)t->data +
           (row * stride + (size_t)off + (size_t)head * (size_t)a->d) * a->size;
}

static void pack_task(void *arg, int task, int worker) {
    const struct attention *a = arg;
    const struct dpk_attention_attrs *at = DPK_ATTRS(attention, a->call->op);
    const struct dpk_tensor *k = &a->call->in[DPK_IN(attention, k)];
    const struct dpk_tensor *v = &a->call->in[DPK_IN(attention, v)];
    int group = task / a->packs, b = group / a->heads, head = group % a->heads;
    int j0 = task % a->packs * PACK_KEYS, n = a->lk - j0 < PACK_KEYS ? a->lk - j0 : PACK_KEYS;
    char *scratch = a->call->scratch;
    char *keys = scratch + a->at_keys + (size_t)group * a->k_bytes;
    char *values = scratch + a->at_values + (size_t)group * a->v_bytes;
    size_t key_bytes = (size_t)round_up(a->d, a->g) * a->size;
    (void)worker;
    for (int j = 0; j < n; j += 16) {
        a->k->attn_pack_k(keys + (size_t)(j0 + j) * key_bytes,
                          token_at(a, k, a->k_stride, a->lk, b, j0 + j, at->k_off, head), a->dtype,
                          a->k_stride, n - j < 16 ? n - j : 16, a->d);
    }
    a->k->attn_pack_v(values + (size_t)j0 * 16 * a->size, 16 * (size_t)a->lkg,
                      token_at(a, v, a->v_stride, a->lk, b, j0, at->v_off, head), a->dtype,
                      a->v_stride, n, a->d);
}

/* The mask as something to add to logits. */
static void convert_mask(const struct attention *a) {
    const int32_t *mask = a->call->in[DPK_IN(attention, mask)].data;
    float *out = (float *)(void *)((char *)a->call->scratch + a->at_mask);
    size_t n = (size_t)a->images * (size_t)a->lk;
    for (size_t i = 0; i < n; i++) out[i] = mask[i] ? 0.0f : -INFINITY;
}

/* What is worked on at a time: head `head` of image b, query rows i0 .. i0 + n - 1. */
struct block {
    int b, head, i0, n;
    int tiles; /* of mr rows */
    const char *keys, *values;
    float *s, *o, *t, *m, *l, *alpha;
    char *p;
    const void **q_rows, **p_rows; /* [tiles * mr], rows past the last repeat it */
};

static void open_block(const struct attention *a, int group, int row_block, int worker,
                       struct block *w) {
    const struct dpk_attention_attrs *at = DPK_ATTRS(attention, a->call->op);
    const struct dpk_tensor *q = &a->call->in[DPK_IN(attention, q)];
    char *scratch = a->call->scratch;
    char *mine = scratch + a->at_workers + (size_t)worker * a->worker_bytes;
    int mr = a->tile->mr;
    w->b = group / a->heads;
    w->head = group % a->heads;
    w->i0 = row_block * a->rows;
    w->n = a->lq - w->i0 < a->rows ? a->lq - w->i0 : a->rows;
    w->tiles = (w->n + mr - 1) / mr;
    w->keys = scratch + a->at_keys + (size_t)group * a->k_bytes;
    w->values = scratch + a->at_values + (size_t)group * a->v_bytes;
    w->s = (float *)(void *)(mine + a->at_s);
    w->o = (float *)(void *)(mine + a->at_o);
    w->t = (float *)(void *)(mine + a->at_t);
    w->p = mine + a->at_p;
    w->m = (float *)(void *)(mine + a->at_sums);
    w->l = w->m + a->rows;
    w->alpha = w->l + a->rows;
    w->q_rows = (const void **)(void *)(mine + a->at_pointers);
    w->p_rows = w->q_rows + a->rows;
    for (int r = 0; r < w->tiles * mr; r++) {
        int row = r < w->n ? r : w->n - 1;
        w->q_rows[r] = token_at(a, q, a->q_stride, a->lq, w->b, w->i0 + row, at->q_off, w->head);
        w->p_rows[r] = w->p + (size_t)row * a->p_stride * a->size;
        w->m[r] = -INFINITY;
        w->l[r] = 0.0f;
    }
}

/* Panels of a strip of columns: as many as a tile takes, or less so that strips are of nearly one
 * width (a tile of one panel is slow). */
static int strip_panels(const struct attention *a, int panels) {
    int strips = (panels + a->tile->np - 1) / a->tile->np;
    return (panels + strips - 1) / strips;
}

/* S = Q K^T of keys k0 .. k0 + n - 1: a strip of keys stays in the L1 cache while all rows pass. */
static void run_logits(const struct attention *a, const struct block *w, int k0, int n) {
    int panels = (n + 15) / 16, np = strip_panels(a, panels), mr = a->tile->mr;
    size_t panel_bytes = 16 * (size_t)round_up(a->d, a->g) * a->size;
    int32_t k_len = a->d;
    for (int p = 0; p < panels; p += np) {
        struct dpk_tile t = {
            .k_len = &k_len,
            .n_seg = 1,
            .n_panels = panels - p < np ? panels - p : np,
            .b = w->keys + (size_t)(k0 / 16 + p) * panel_bytes,
            .b_stride = panel_bytes,
            .c_stride = (int32_t)a->s_stride,
        };
        for (int i = 0; i < w->tiles; i++) {
            t.a = w->q_rows + i * mr;
            t.c = w->s + (size_t)(i * mr) * a->s_stride + (size_t)p * 16;
            a->tile->fn(&t);
        }
    }
}

static void run_softmax(const struct attention *a, const struct block *w, int k0, int n) {
    const struct dpk_attention_attrs *at = DPK_ATTRS(attention, a->call->op);
    const struct dpk_tensor *bias = &a->call->in[DPK_IN(attention, bias)];
    struct dpk_attn_softmax s = {
        .s = w->s,
        .p = w->p,
        .s_stride = a->s_stride,
        .p_stride = a->p_stride,
        .bias_stride = (size_t)a->lk,
        .m = w->m,
        .l = w->l,
        .alpha = w->alpha,
        .scale = a->scale,
        .dtype = a->dtype,
        .rows = w->n,
        .n = n,
        .first = at->causal ? w->i0 - k0 + 1 : n,
        .more = at->causal ? 1 : 0,
    };
    if (bias->shape.rank > 0) {
        size_t row = (size_t)w->head * (size_t)a->lq + (size_t)w->i0;
        s.bias = (const char *)bias->data + (row * (size_t)a->lk + (size_t)k0) * a->size;
    }
    if (a->call->in[DPK_IN(attention, mask)].shape.rank > 0) {
        const float *mask = (const float *)(const void *)((char *)a->call->scratch + a->at_mask);
        s.mask = mask + (size_t)w->b * (size_t)a->lk + k0;
    }
    a->k->attn_softmax(&s);
}

/* O = O * alpha + P V; the first step has no O yet and writes it. */
static void run_values(const struct attention *a, const struct block *w, int k0, int n) {
    int panels = a->d16 / 16, np = strip_panels(a, panels), mr = a->tile->mr;
    size_t panel_bytes = 16 * (size_t)a->lkg * a->size;
    int32_t k_len = n;
    for (int p = 0; p < panels; p += np) {
        struct dpk_tile t = {
            .k_len = &k_len,
            .n_seg = 1,
            .n_panels = panels - p < np ? panels - p : np,
            .b = w->values + (size_t)p * panel_bytes + (size_t)k0 * 16 * a->size,
            .b_stride = panel_bytes,
        };
        for (int i = 0; i < w->tiles; i++) {
            float *o = w->o + (size_t)(i * mr) * (size_t)a->d16 + (size_t)p * 16;
            int rows = w->n - i * mr < mr ? w->n - i * mr : mr;
            t.a = w->p_rows + i * mr;
            t.c = k0 == 0 ? o : w->t;
            t.c_stride = k0 == 0 ? a->d16 : 16 * t.n_panels;
            a->tile->fn(&t);
            if (k0 == 0) continue;
            a->k->attn_rescale(o, (size_t)a->d16, w->t, (size_t)t.c_stride, rows, t.c_stride,
                               w->alpha + i * mr);
        }
    }
}

/* y = O / l, whole rows from y on; a row that saw no key gives zeros. */
static void finish_block(const struct attention *a, const struct block *w, char *y) {
    y += (size_t)w->head * (size_t)a->d * a->size;
    for (int r = 0; r < w->n; r++) {
        struct dpk_affine f = {
            .y = y + (size_t)r * row_bytes(a),
            .x = w->o + (size_t)r * (size_t)a->d16,
            .n = (size_t)a->d,
            .y_dtype = a->dtype,
            .x_dtype = DPK_F32,
            .mul = w->l[r] > 0.0f ? 1.0f / w->l[r] : 0.0f,
            .lo = -INFINITY,
            .hi = INFINITY,
        };
        a->k->affine(&f);
    }
}

/* A block of rows of one head of one image (group), whose first row is to begin at y. */
static void make_block(const struct attention *a, int group, int row_block, int worker, char *y) {
    struct block w;
    open_block(a, group, row_block, worker, &w);
    int end = a->lk;
    if (DPK_ATTRS(attention, a->call->op)->causal && w.i0 + w.n < end) end = w.i0 + w.n;
    for (int k0 = 0; k0 < end; k0 += a->keys) {
        int n = end - k0 < a->keys ? end - k0 : a->keys;
        run_logits(a, &w, k0, n);
        run_softmax(a, &w, k0, n);
        run_values(a, &w, k0, n);
    }
    finish_block(a, &w, y);
}

static void block_task(void *arg, int task, int worker) {
    const struct attention *a = arg;
    int group = task / a->row_blocks, row_block = task % a->row_blocks;
    size_t row = (size_t)(group / a->heads) * (size_t)a->lq + (size_t)row_block * (size_t)a->rows;
    make_block(a, group, row_block, worker, (char *)a->call->out.data + row * row_bytes(a));
}

/* A span of blocks of all heads, quantized. */
static void span_task(void *arg, int task, int worker) {
    const struct attention *a = arg;
    const struct dpk_tensor *out = &a->call->out;
    const struct dpk_rows8 rows8 = dpk_rows8_of(a->cpu, a->dtype, out->rows8);
    int b = task / a->spans, first = task % a->spans * a->span;
    int end = a->row_blocks - first < a->span ? a->row_blocks : first + a->span;
    size_t bytes = row_bytes(a), n = bytes / a->size, stride = dpk_rows8_stride(&rows8, n);
    char *scratch = a->call->scratch;
    char *made = scratch + a->at_workers + (size_t)worker * a->worker_bytes + a->at_made;
    for (int head = 0; head < a->heads; head++) {
        for (int i = first; i < end; i++) {
            char *y = made + (size_t)(i - first) * (size_t)a->rows * bytes;
            make_block(a, b * a->heads + head, i, worker, y);
        }
    }
    int i0 = first * a->rows, rows = end * a->rows < a->lq ? end * a->rows - i0 : a->lq - i0;
    char *to = (char *)out->data + ((size_t)b * (size_t)a->lq + (size_t)i0) * stride;
    for (int r = 0; r < rows; r++, made += bytes, to += stride) {
        dpk_rows8_put(&rows8, to, made, n);
    }
}

int dpk_cpu_run_attention(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    struct attention a = {0};
    int rc = DPK_OK;
    plan_attention(&a, cpu, call);
    if (a.lq == MOST || a.lk == MOST || a.d == MOST) {
        DPK_FAIL(err, DPK_EUNSUPPORTED, "attention: %d queries, %d keys, head_dim %d, want less",
                 a.lq, a.lk, a.d);
    }
    if (call->in[DPK_IN(attention, mask)].shape.rank > 0) convert_mask(&a);
    int64_t heads = (int64_t)a.images * a.heads;
    DPK_TRY(dpk_run_tasks(cpu, heads * a.packs, pack_task, &a, err));
    if (a.span) DPK_TRY(dpk_run_tasks(cpu, (int64_t)a.images * a.spans, span_task, &a, err));
    else DPK_TRY(dpk_run_tasks(cpu, heads * a.row_blocks, block_task, &a, err));
done:
    return rc;
}
