/* Attention with queries as columns, S^T = K Q^T and O^T = V^T P^T, for bfloat16 (kernels:
 * kernels_attention.h).
 *
 * There is no running maximum and nothing is rescaled: softmax(s) = 2^(s - m) / sum 2^(s - m) for
 * any m that neither overflows nor loses everything, and by Cauchy-Schwarz no logit exceeds
 * m = |q| max |k|. With 2^60 as the largest probability, sums down to 2^-60 are as good as any:
 * m may be 83 (natural logarithm) above the row's largest logit. Where it is not, or where
 * something is not finite, the block of queries is computed again with its true maximum.
 *
 * Masked keys are left out when keys and values are packed.
 *
 * Scratch, every part on a multiple of 64 bytes:
 *     keys    [B*heads][ceil(Lk/8)][ceil(d/2)][8][2]
 *     values  [B*heads][ceil(d/8)][ceil(Lk/8)*4][8][2]
 *     longest [B*heads][packs], largest squared length of a key
 *     tokens  [B][Lk] which keys there are, counts [B] (if there is a mask)
 * and for each worker q, o, m, l of GROUPS groups of queries and p of one.
 *
 * Share of the peak of VDPBF16PS, one thread (Zen 5): L = 4096 with d = 40 0.85, d = 64 0.88, d = 72
 * 0.87, d = 512 0.92; L = 1024 0.80 to 0.86; 77 keys, d = 64 0.64 (tests/bench_ops.c). */
#include "attention.h"

#include <math.h>

enum {
    WIDTH = 48,      /* queries of a group: columns of the tiles */
    GROUPS = 3,      /* groups of a task: they share what comes of keys and values into L2 */
    KEYS = 256,      /* keys of a block: the probabilities of a group stay in L1 */
    PACK_KEYS = 256, /* keys of a packing task; a multiple of 8 */
};

struct columns {
    struct dpk_attention s;
    const struct dpk_attn_columns_kernels *k;
    int pairs, groups; /* of channels: in twos, in eights */
    int packs;         /* tasks of a head */
    size_t v_stride;
    size_t k_bytes, v_bytes; /* of a head */
    size_t at_keys, at_values, at_longest, at_tokens, at_counts, at_workers;
    size_t at_q, at_o, at_m, at_l, at_p, worker_bytes;
    size_t q_bytes, o_bytes; /* of a group */
};

bool dpk_attention_by_columns(const struct dpk_attention *a) {
    return a->k->attn_columns && a->dtype == DPK_BF16 && a->scale > 1e-30f && !a->attrs->causal &&
           !dpk_attention_has(a, DPK_IN(attention, bias));
}

/* Blocks of one size, panels of queries shared evenly. */
int dpk_attention_columns_of_block(const struct dpk_attention *s) {
    int blocks = (s->lq + WIDTH * GROUPS - 1) / (WIDTH * GROUPS);
    return dpk_attention_round((s->lq + blocks - 1) / blocks, 16);
}

static dpk_attention_block_fn make_block;

static void plan(struct columns *c, const struct dpk_attention *s) {
    size_t heads = (size_t)s->images * (size_t)s->heads, end = 0;
    int lk8 = dpk_attention_round(s->lk, 8);
    bool mask = dpk_attention_has(s, DPK_IN(attention, mask));
    c->s = *s;
    c->s.block = make_block;
    c->k = s->k->attn_columns;
    c->pairs = (s->d + 1) / 2;
    c->groups = (s->d + 7) / 8;
    c->packs = (s->lk + PACK_KEYS - 1) / PACK_KEYS;
    c->v_stride = (size_t)lk8 / 2;
    c->k_bytes = (size_t)lk8 * (size_t)c->pairs * 4;
    c->v_bytes = (size_t)c->groups * c->v_stride * 32;
    c->q_bytes = (size_t)c->pairs * WIDTH * 4;
    c->o_bytes = (size_t)c->groups * 8 * WIDTH * 4;
    c->at_q = dpk_attention_reserve(&end, GROUPS * c->q_bytes);
    c->at_o = dpk_attention_reserve(&end, GROUPS * c->o_bytes);
    c->at_m = dpk_attention_reserve(&end, sizeof(float) * GROUPS * WIDTH);
    c->at_l = dpk_attention_reserve(&end, sizeof(float) * GROUPS * WIDTH);
    c->at_p = dpk_attention_reserve(&end, (size_t)(lk8 < KEYS ? lk8 : KEYS) * WIDTH * 2);
    c->worker_bytes = end;
    end = 0;
    c->at_keys = dpk_attention_reserve(&end, heads * c->k_bytes);
    c->at_values = dpk_attention_reserve(&end, heads * c->v_bytes);
    c->at_longest = dpk_attention_reserve(&end, heads * (size_t)c->packs * sizeof(float));
    c->at_tokens =
        dpk_attention_reserve(&end, mask ? (size_t)s->images * (size_t)s->lk * sizeof(int32_t) : 0);
    c->at_counts = dpk_attention_reserve(&end, mask ? (size_t)s->images * sizeof(int32_t) : 0);
    c->at_workers = end;
    dpk_attention_plan_tasks(&c->s, end + (size_t)s->workers * c->worker_bytes);
}

size_t dpk_attention_columns_scratch(const struct dpk_attention *s) {
    struct columns c;
    plan(&c, s);
    return c.s.bytes;
}

static char *part(const struct columns *c, size_t at) { return (char *)c->s.call->scratch + at; }

static int32_t *tokens_of(const struct columns *c, int b) {
    return (int32_t *)(void *)part(c, c->at_tokens) + (size_t)b * (size_t)c->s.lk;
}

/* Keys of image b that are not masked. */
static int keys_of(const struct columns *c, int b) {
    if (!dpk_attention_has(&c->s, DPK_IN(attention, mask))) return c->s.lk;
    return ((const int32_t *)(const void *)part(c, c->at_counts))[b];
}

static void list_tokens(const struct columns *c) {
    const struct dpk_attention *a = &c->s;
    const int32_t *mask = a->call->in[DPK_IN(attention, mask)].data;
    int32_t *counts = (int32_t *)(void *)part(c, c->at_counts);
    for (int b = 0; b < a->images; b++, mask += a->lk) {
        int32_t *tokens = tokens_of(c, b);
        counts[b] = 0;
        for (int j = 0; j < a->lk; j++) {
            if (mask[j]) tokens[counts[b]++] = j;
        }
    }
}

/* ---- Packing -------------------------------------------------------------------------------- */

/* Where keys j .. j + 8 of a head lie in the input k or v; from `end` on NULL. */
static void point_keys(const struct columns *c, int input, size_t stride, int off, int head, int j,
                       int end, const uint16_t **rows) {
    const struct dpk_attention *a = &c->s;
    const struct dpk_tensor *x = &a->call->in[input];
    int b = head / a->heads;
    bool mask = dpk_attention_has(a, DPK_IN(attention, mask));
    for (int i = 0; i < 8; i++) {
        int token = mask && j + i < end ? tokens_of(c, b)[j + i] : j + i;
        rows[i] = j + i >= end ? NULL
                               : (const uint16_t *)(const void *)dpk_attention_token(
                                     a, x, stride, a->lk, b, token, off, head % a->heads);
    }
}

static void pack_task(void *arg, int task, int worker) {
    const struct columns *c = arg;
    const struct dpk_attention *a = &c->s;
    int head = task / c->packs, n = keys_of(c, head / a->heads);
    int begin = task % c->packs * PACK_KEYS, end = n - begin < PACK_KEYS ? n : begin + PACK_KEYS;
    uint16_t *keys = (uint16_t *)(void *)(part(c, c->at_keys) + (size_t)head * c->k_bytes);
    uint16_t *values = (uint16_t *)(void *)(part(c, c->at_values) + (size_t)head * c->v_bytes);
    float longest = 0;
    (void)worker;
    for (int j = begin; j < end; j += 8) {
        const uint16_t *rows[8];
        point_keys(c, DPK_IN(attention, v), a->v_stride, a->attrs->v_off, head, j, end, rows);
        c->k->value(values + (size_t)j * 8, c->v_stride, rows, a->d);
        point_keys(c, DPK_IN(attention, k), a->k_stride, a->attrs->k_off, head, j, end, rows);
        for (int i = 1; i < 8; i++) rows[i] = rows[i] ? rows[i] : rows[i - 1];
        float length = c->k->key(keys + (size_t)j * (size_t)c->pairs * 2, rows, a->d);
        if (length > longest) longest = length;
    }
    ((float *)(void *)part(c, c->at_longest))[task] = longest;
}

/* ---- Blocks of queries ---------------------------------------------------------------------- */

/* A group of queries of one head. */
struct group {
    struct dpk_attn_columns t;
    int n, first;
};

struct block {
    int b, head, first, n_groups, n_keys;
    const uint16_t *keys, *values;
    struct group group[GROUPS];
};

/* The bound of a group's logits, with what the rounding of lengths and their subnormals can take. */
static void bound_logits(const struct columns *c, const struct group *g, int head) {
    const float *longest = (const float *)(const void *)part(c, c->at_longest);
    float top = 0;
    for (int i = 0; i < c->packs; i++) {
        float length = longest[(size_t)head * (size_t)c->packs + (size_t)i];
        if (length > top) top = length;
    }
    float key = 1.001f * sqrtf(top + 1e-30f), below = 60.0f / g->t.scale;
    for (int p = 0; p < g->t.panels; p++) {
        c->k->length(g->t.m + 16 * p, g->t.q + (size_t)p * (size_t)c->pairs * 32, c->pairs);
    }
    for (int i = 0; i < 16 * g->t.panels; i++) {
        g->t.m[i] = sqrtf(g->t.m[i] + 1e-30f) * key - below;
    }
}

static void open_group(const struct columns *c, const struct block *w, char *mine, int i, int first,
                       int n, struct group *g) {
    const struct dpk_attention *a = &c->s;
    const struct dpk_tensor *q = &a->call->in[DPK_IN(attention, q)];
    uint16_t *panels = (uint16_t *)(void *)(mine + c->at_q + (size_t)i * c->q_bytes);
    g->first = first;
    g->n = n;
    g->t = (struct dpk_attn_columns){
        .q = panels,
        .p = (uint16_t *)(void *)(mine + c->at_p),
        .m = (float *)(void *)(mine + c->at_m) + i * WIDTH,
        .l = (float *)(void *)(mine + c->at_l) + i * WIDTH,
        .o = (float *)(void *)(mine + c->at_o + (size_t)i * c->o_bytes),
        .v_stride = c->v_stride,
        .panels = (g->n + 15) / 16,
        .pairs = c->pairs,
        .groups = c->groups,
        .scale = a->scale,
    };
    for (int r = 0; r < g->n; r += 16) {
        a->k->attn_pack_k(panels + (size_t)(r / 16) * (size_t)c->pairs * 32,
                          dpk_attention_token(a, q, a->q_stride, a->lq, w->b, first + r,
                                              a->attrs->q_off, w->head % a->heads),
                          DPK_BF16, a->q_stride, g->n - r < 16 ? g->n - r : 16, a->d);
    }
    bound_logits(c, g, w->head);
}

static void open_block(const struct columns *c, int head, int block, int worker, struct block *w) {
    const struct dpk_attention *a = &c->s;
    char *mine = part(c, c->at_workers) + (size_t)worker * c->worker_bytes;
    int first = block * a->rows, n = a->lq - first < a->rows ? a->lq - first : a->rows;
    int panels = (n + 15) / 16;
    w->head = head;
    w->b = head / a->heads;
    w->first = first;
    w->n_keys = keys_of(c, w->b);
    w->keys = (const uint16_t *)(void *)(part(c, c->at_keys) + (size_t)head * c->k_bytes);
    w->values = (const uint16_t *)(void *)(part(c, c->at_values) + (size_t)head * c->v_bytes);
    w->n_groups = (panels + 2) / 3;
    for (int i = 0; i < w->n_groups; i++) {
        int begin = panels * i / w->n_groups * 16, end = panels * (i + 1) / w->n_groups * 16;
        open_group(c, w, mine, i, first + begin, (end < n ? end : n) - begin, &w->group[i]);
    }
}

/* Give t the next keys from j on. */
static void take_keys(const struct columns *c, const struct block *w, struct dpk_attn_columns *t,
                      int j) {
    t->k = w->keys + (size_t)j * (size_t)c->pairs * 2;
    t->v = w->values + (size_t)j * 8;
    t->n = w->n_keys - j < KEYS ? w->n_keys - j : KEYS;
}

static void clear(const struct columns *c, const struct group *g) {
    memset(g->t.l, 0, sizeof(float) * WIDTH);
    memset(g->t.o, 0, c->o_bytes);
}

/* Store the group's results; false if it must be computed again. */
static bool finish_group(const struct columns *c, const struct block *w, const struct group *g,
                         char *y) {
    const struct dpk_attention *a = &c->s;
    size_t stride = (size_t)a->heads * (size_t)a->d;
    uint16_t *to = (uint16_t *)(void *)y + (size_t)(g->first - w->first) * stride +
                   (size_t)(w->head % a->heads) * (size_t)a->d;
    bool good = true;
    for (int i = 0; i < g->n; i++) good &= g->t.l[i] >= 0x1p-60f;
    return c->k->finish(to, stride, &g->t, g->n, a->d) && good;
}

static void run_again(const struct columns *c, const struct block *w, struct group *g, char *y) {
    for (int i = 0; i < WIDTH; i++) g->t.m[i] = -INFINITY;
    for (int j = 0; j < w->n_keys; j += KEYS) {
        take_keys(c, w, &g->t, j);
        c->k->top(&g->t);
    }
    clear(c, g);
    for (int j = 0; j < w->n_keys; j += KEYS) {
        take_keys(c, w, &g->t, j);
        c->k->block(&g->t);
    }
    finish_group(c, w, g, y);
}

static void make_block(const struct dpk_attention *s, int group, int row_block, int worker,
                       char *y) {
    const struct columns *c = (const struct columns *)(const void *)s;
    struct block w;
    open_block(c, group, row_block, worker, &w);
    for (int i = 0; i < w.n_groups; i++) clear(c, &w.group[i]);
    for (int j = 0; j < w.n_keys; j += KEYS) {
        for (int i = 0; i < w.n_groups; i++) {
            take_keys(c, &w, &w.group[i].t, j);
            c->k->block(&w.group[i].t);
        }
    }
    for (int i = 0; i < w.n_groups; i++) {
        if (!finish_group(c, &w, &w.group[i], y)) run_again(c, &w, &w.group[i], y);
    }
}

int dpk_attention_columns_run(struct dpk_cpu *cpu, const struct dpk_attention *s, dpk_error *err) {
    struct columns c;
    int rc = DPK_OK;
    plan(&c, s);
    if (dpk_attention_has(s, DPK_IN(attention, mask))) list_tokens(&c);
    int64_t packs = (int64_t)s->images * s->heads * c.packs;
    DPK_TRY(dpk_run_tasks(cpu, packs, pack_task, &c, err));
    DPK_TRY(dpk_attention_run_tasks(cpu, &c.s, err));
done:
    return rc;
}
