/* Attention with queries as rows: of any type, with bias and causal.
 *
 * First every head's keys and values are packed into the panels that the product tile takes as its
 * B operand, by tasks of PACK_KEYS keys. Then a task is a block of query rows of one head, which
 * for every block of KEYS keys does
 *     S = Q K^T (tiles),   P = one step of online softmax,   O = O * alpha + P V (tiles)
 * and divides by the sums at the end. The shapes of blocks are constants of the level, so the
 * result does not depend on the number of threads.
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
 *
 * Share of the product tile's own rate, one thread of an AMD EPYC with AVX512_BF16, L = 4096:
 * d = 40 0.64, d = 64 0.77, d = 72 0.74, d = 512 0.93; 77 keys, d = 64 0.52 (tests/bench_ops.c). */
#include "attention.h"
#include "scalar.h"

#include <math.h>

enum {
    ROWS = 120,      /* query rows of a task, about: S and P stay in the L2 cache */
    KEYS = 512,      /* keys of a step */
    PACK_KEYS = 256, /* keys of a packing task; a multiple of 16 */
};

struct rows {
    struct dpk_attention s;
    const struct dpk_tile_kernel *tile;
    int g, d16, lkg;         /* roundups: d to 16, Lk to g */
    int keys, packs;         /* of a block; tasks of a head */
    size_t k_bytes, v_bytes; /* of a head's panels */
    size_t s_stride, p_stride;
    size_t at_keys, at_values, at_mask, at_workers; /* parts of the scratch */
    size_t at_s, at_o, at_t, at_p, at_sums, at_pointers, worker_bytes;
};

static dpk_attention_block_fn make_block;

static void plan(struct rows *a, const struct dpk_attention *s, bool mask) {
    size_t heads = (size_t)s->images * (size_t)s->heads, rows = (size_t)s->rows, end = 0;
    size_t size = s->size;
    a->s = *s;
    a->s.block = make_block;
    a->tile = dpk_cpu_tile(s->cpu->isa, s->dtype, s->dtype);
    a->g = s->dtype == DPK_BF16 ? 2 : 1;
    a->d16 = dpk_attention_round(s->d, 16);
    a->lkg = dpk_attention_round(s->lk, a->g);
    a->keys = s->lk < KEYS ? dpk_attention_round(s->lk, 16) : KEYS;
    a->packs = (s->lk + PACK_KEYS - 1) / PACK_KEYS;
    a->k_bytes =
        (size_t)dpk_attention_round(s->lk, 16) * (size_t)dpk_attention_round(s->d, a->g) * size;
    a->v_bytes = (size_t)a->d16 * (size_t)a->lkg * size;
    a->s_stride = (size_t)a->keys + 16; /* no row on the same cache set as the next */
    a->p_stride = (size_t)a->keys + 64 / size;
    a->at_s = dpk_attention_reserve(&end, rows * a->s_stride * 4);
    a->at_o = dpk_attention_reserve(&end, rows * (size_t)a->d16 * 4);
    a->at_t = dpk_attention_reserve(&end, (size_t)(a->tile->mr * a->tile->np) * 16 * 4);
    a->at_p = dpk_attention_reserve(&end, rows * a->p_stride * size);
    a->at_sums = dpk_attention_reserve(&end, rows * 3 * 4);
    a->at_pointers = dpk_attention_reserve(&end, rows * 2 * sizeof(void *));
    a->worker_bytes = end;
    end = 0;
    a->at_keys = dpk_attention_reserve(&end, heads * a->k_bytes);
    a->at_values = dpk_attention_reserve(&end, heads * a->v_bytes);
    a->at_mask =
        dpk_attention_reserve(&end, mask ? (size_t)s->images * (size_t)s->lk * sizeof(float) : 0);
    a->at_workers = end;
    dpk_attention_plan_tasks(&a->s, end + (size_t)s->workers * a->worker_bytes);
}

int dpk_attention_rows_of_block(const struct dpk_attention *s) {
    int mr = dpk_cpu_tile(s->cpu->isa, s->dtype, s->dtype)->mr,
        most = mr < ROWS ? ROWS / mr * mr : mr;
    return s->lq < most ? dpk_attention_round(s->lq, mr) : most;
}

size_t dpk_attention_rows_scratch(const struct dpk_attention *s) {
    struct rows a;
    plan(&a, s, dpk_attention_has(s, DPK_IN(attention, mask)));
    return a.s.bytes;
}

static void pack_task(void *arg, int task, int worker) {
    const struct rows *a = arg;
    const struct dpk_attention_attrs *at = a->s.attrs;
    const struct dpk_tensor *k = &a->s.call->in[DPK_IN(attention, k)];
    const struct dpk_tensor *v = &a->s.call->in[DPK_IN(attention, v)];
    int group = task / a->packs, b = group / a->s.heads, head = group % a->s.heads;
    int j0 = task % a->packs * PACK_KEYS, n = a->s.lk - j0 < PACK_KEYS ? a->s.lk - j0 : PACK_KEYS;
    char *scratch = a->s.call->scratch;
    char *keys = scratch + a->at_keys + (size_t)group * a->k_bytes;
    char *values = scratch + a->at_values + (size_t)group * a->v_bytes;
    size_t key_bytes = (size_t)dpk_attention_round(a->s.d, a->g) * a->s.size;
    (void)worker;
    for (int j = 0; j < n; j += 16) {
        a->s.k->attn_pack_k(
            keys + (size_t)(j0 + j) * key_bytes,
            dpk_attention_token(&a->s, k, a->s.k_stride, a->s.lk, b, j0 + j, at->k_off, head),
            a->s.dtype, a->s.k_stride, n - j < 16 ? n - j : 16, a->s.d);
    }
    a->s.k->attn_pack_v(
        values + (size_t)j0 * 16 * a->s.size, 16 * (size_t)a->lkg,
        dpk_attention_token(&a->s, v, a->s.v_stride, a->s.lk, b, j0, at->v_off, head), a->s.dtype,
        a->s.v_stride, n, a->s.d);
}

/* The mask as something to add to logits. */
static void convert_mask(const struct rows *a) {
    const int32_t *mask = a->s.call->in[DPK_IN(attention, mask)].data;
    float *out = (float *)(void *)((char *)a->s.call->scratch + a->at_mask);
    size_t n = (size_t)a->s.images * (size_t)a->s.lk;
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

static void open_block(const struct rows *a, int group, int row_block, int worker,
                       struct block *w) {
    const struct dpk_attention_attrs *at = a->s.attrs;
    const struct dpk_tensor *q = &a->s.call->in[DPK_IN(attention, q)];
    char *scratch = a->s.call->scratch;
    char *mine = scratch + a->at_workers + (size_t)worker * a->worker_bytes;
    int mr = a->tile->mr;
    w->b = group / a->s.heads;
    w->head = group % a->s.heads;
    w->i0 = row_block * a->s.rows;
    w->n = a->s.lq - w->i0 < a->s.rows ? a->s.lq - w->i0 : a->s.rows;
    w->tiles = (w->n + mr - 1) / mr;
    w->keys = scratch + a->at_keys + (size_t)group * a->k_bytes;
    w->values = scratch + a->at_values + (size_t)group * a->v_bytes;
    w->s = (float *)(void *)(mine + a->at_s);
    w->o = (float *)(void *)(mine + a->at_o);
    w->t = (float *)(void *)(mine + a->at_t);
    w->p = mine + a->at_p;
    w->m = (float *)(void *)(mine + a->at_sums);
    w->l = w->m + a->s.rows;
    w->alpha = w->l + a->s.rows;
    w->q_rows = (const void **)(void *)(mine + a->at_pointers);
    w->p_rows = w->q_rows + a->s.rows;
    for (int r = 0; r < w->tiles * mr; r++) {
        int row = r < w->n ? r : w->n - 1;
        w->q_rows[r] = dpk_attention_token(&a->s, q, a->s.q_stride, a->s.lq, w->b, w->i0 + row,
                                           at->q_off, w->head);
        w->p_rows[r] = w->p + (size_t)row * a->p_stride * a->s.size;
        w->m[r] = -INFINITY;
        w->l[r] = 0.0f;
    }
}

/* Panels of a strip of columns: as many as a tile takes, or less so that strips are of nearly one
 * width (a tile of one panel is slow). */
static int strip_panels(const struct rows *a, int panels) {
    int strips = (panels + a->tile->np - 1) / a->tile->np;
    return (panels + strips - 1) / strips;
}

/* S = Q K^T of keys k0 .. k0 + n - 1: a strip of keys stays in the L1 cache while all rows pass. */
static void run_logits(const struct rows *a, const struct block *w, int k0, int n) {
    int panels = (n + 15) / 16, np = strip_panels(a, panels), mr = a->tile->mr;
    size_t panel_bytes = 16 * (size_t)dpk_attention_round(a->s.d, a->g) * a->s.size;
    int32_t k_len = a->s.d;
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

static void run_softmax(const struct rows *a, const struct block *w, int k0, int n) {
    const struct dpk_attention_attrs *at = a->s.attrs;
    const struct dpk_tensor *bias = &a->s.call->in[DPK_IN(attention, bias)];
    struct dpk_attn_softmax s = {
        .s = w->s,
        .p = w->p,
        .s_stride = a->s_stride,
        .p_stride = a->p_stride,
        .bias_stride = (size_t)a->s.lk,
        .m = w->m,
        .l = w->l,
        .alpha = w->alpha,
        .scale = a->s.scale,
        .dtype = a->s.dtype,
        .rows = w->n,
        .n = n,
        .first = at->causal ? w->i0 - k0 + 1 : n,
        .more = at->causal ? 1 : 0,
    };
    if (bias->shape.rank > 0) {
        size_t row = (size_t)w->head * (size_t)a->s.lq + (size_t)w->i0;
        s.bias = (const char *)bias->data + (row * (size_t)a->s.lk + (size_t)k0) * a->s.size;
    }
    if (a->s.call->in[DPK_IN(attention, mask)].shape.rank > 0) {
        const float *mask = (const float *)(const void *)((char *)a->s.call->scratch + a->at_mask);
        s.mask = mask + (size_t)w->b * (size_t)a->s.lk + k0;
    }
    a->s.k->attn_softmax(&s);
}

/* O = O * alpha + P V; the first step has no O yet and writes it. */
static void run_values(const struct rows *a, const struct block *w, int k0, int n) {
    int panels = a->d16 / 16, np = strip_panels(a, panels), mr = a->tile->mr;
    size_t panel_bytes = 16 * (size_t)a->lkg * a->s.size;
    int32_t k_len = n;
    for (int p = 0; p < panels; p += np) {
        struct dpk_tile t = {
            .k_len = &k_len,
            .n_seg = 1,
            .n_panels = panels - p < np ? panels - p : np,
            .b = w->values + (size_t)p * panel_bytes + (size_t)k0 * 16 * a->s.size,
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
            a->s.k->attn_rescale(o, (size_t)a->d16, w->t, (size_t)t.c_stride, rows, t.c_stride,
                                 w->alpha + i * mr);
        }
    }
}

/* y = O / l, whole rows from y on; a row that saw no key gives zeros. */
static void finish_block(const struct rows *a, const struct block *w, char *y) {
    y += (size_t)w->head * (size_t)a->s.d * a->s.size;
    for (int r = 0; r < w->n; r++) {
        struct dpk_affine f = {
            .y = y + (size_t)r * dpk_attention_row_bytes(&a->s),
            .x = w->o + (size_t)r * (size_t)a->d16,
            .n = (size_t)a->s.d,
            .y_dtype = a->s.dtype,
            .x_dtype = DPK_F32,
            .mul = w->l[r] > 0.0f ? 1.0f / w->l[r] : 0.0f,
            .lo = -INFINITY,
            .hi = INFINITY,
        };
        a->s.k->affine(&f);
    }
}

static void make_block(const struct dpk_attention *s, int group, int row_block, int worker,
                       char *y) {
    const struct rows *a = (const struct rows *)(const void *)s;
    struct block w;
    open_block(a, group, row_block, worker, &w);
    int end = s->lk;
    if (s->attrs->causal && w.i0 + w.n < end) end = w.i0 + w.n;
    for (int k0 = 0; k0 < end; k0 += a->keys) {
        int n = end - k0 < a->keys ? end - k0 : a->keys;
        run_logits(a, &w, k0, n);
        run_softmax(a, &w, k0, n);
        run_values(a, &w, k0, n);
    }
    finish_block(a, &w, y);
}

int dpk_attention_rows_run(struct dpk_cpu *cpu, const struct dpk_attention *s, dpk_error *err) {
    struct rows a;
    bool mask = dpk_attention_has(s, DPK_IN(attention, mask));
    int rc = DPK_OK;
    plan(&a, s, mask);
    if (mask) convert_mask(&a);
    int64_t packs = (int64_t)s->images * s->heads * a.packs;
    DPK_TRY(dpk_run_tasks(cpu, packs, pack_task, &a, err));
    DPK_TRY(dpk_attention_run_tasks(cpu, &a.s, err));
done:
    return rc;
}
