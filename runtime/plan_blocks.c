/* Offsets in the arena: greedy by size, best fit.
 *
 * Blocks are taken from the largest to the smallest, and each goes into the smallest gap between
 * the blocks that live at the same time and are placed already, or behind them all ("Greedy by Size
 * for Offset Calculation": Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net
 * Inference, arXiv 2001.03288). Large blocks set the peak; small ones disappear in the gaps.
 *
 * Blocks that lie under others are placed with them, as one body. Blocks that are kept, which all
 * others of a long stage would have to be compared with, stand at the bottom of the arena, in order
 * of their births: what lives with some of them begins above those. Of the others, those that live
 * long (the skips of a network) are few and held in order of their offsets; which of the many short
 * ones live at a time is found in a tree of the latest end of life over the blocks in order of
 * birth. */
#include "plan.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>

struct entry {
    uint64_t bytes;
    uint32_t first, index;
};

enum { LONG = 64 }; /* times */

/* Offsets begin+1 .. end-1 would share bytes with some block. */
struct span {
    int64_t begin, end;
};

struct spans {
    struct span *at; /* in order of begin, when they are used */
    size_t n, cap;
};

struct placer {
    struct dpk_plan_block *blocks;
    uint32_t n, n_leaves;
    struct entry *births; /* [n] in order of first */
    uint32_t *position;   /* [n] in births */
    uint32_t *next;       /* [n] the next block of the same body, or DPK_NONE */
    uint32_t *latest;     /* [2 n_leaves] one more than the last time of placed blocks; 0: none */
    uint32_t *steady;     /* [n_steady] long-lived blocks that are placed, by offset */
    uint32_t n_steady;
    struct spans from_steady, from_short; /* of the body that is placed now */
    uint64_t *floor;                      /* [n + 1] end of the kept blocks among births[0..i) */
    uint32_t kept_until;                  /* time */
};

/* Total orders, so that the result does not depend on the sorting algorithm. */
static int compare_entries(const void *pa, const void *pb) {
    const struct entry *a = pa, *b = pb;
    if (a->bytes != b->bytes) return a->bytes > b->bytes ? -1 : 1;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static int compare_births(const void *pa, const void *pb) {
    const struct entry *a = pa, *b = pb;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static int compare_spans(const void *pa, const void *pb) {
    const struct span *a = pa, *b = pb;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

/* ---- Who lives when ------------------------------------------------------------------------ */

static void enter(struct placer *p, uint32_t block) {
    const struct dpk_plan_block *b = &p->blocks[block];
    if (b->last - b->first >= LONG) {
        uint32_t i = p->n_steady++;
        for (; i > 0 && p->blocks[p->steady[i - 1]].offset > b->offset; i--)
            p->steady[i] = p->steady[i - 1];
        p->steady[i] = block;
        return;
    }
    uint32_t at = p->n_leaves + p->position[block];
    p->latest[at] = b->last + 1;
    for (at /= 2; at; at /= 2) {
        uint32_t left = p->latest[2 * at], right = p->latest[2 * at + 1];
        p->latest[at] = left > right ? left : right;
    }
}

/* Blocks born up to time t. */
static uint32_t count_births(const struct placer *p, uint32_t t) {
    uint32_t lo = 0, hi = p->n;
    while (lo < hi) {
        uint32_t middle = lo + (hi - lo) / 2;
        if (p->births[middle].first <= t) lo = middle + 1;
        else hi = middle;
    }
    return lo;
}

static int add_span(struct spans *s, struct span span, dpk_error *err) {
    int rc = DPK_OK;
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 256;
        void *grown = realloc(s->at, cap * sizeof *s->at);
        if (!grown) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %zu neighbours", cap);
        s->at = grown;
        s->cap = cap;
    }
    s->at[s->n++] = span;
done:
    return rc;
}

/* An array of nothing may be NULL, which qsort does not take. */
static void sort_spans(struct spans *s) {
    if (s->n) qsort(s->at, s->n, sizeof *s->at, compare_spans);
}

/* What block o closes for the body of which b is `delta` behind the begin. */
static struct span span_of(const struct dpk_plan_block *o, const struct dpk_plan_block *b,
                           int64_t delta) {
    int64_t offset = (int64_t)o->offset - delta;
    return (struct span){offset - (int64_t)b->bytes, offset + (int64_t)o->bytes};
}

/* Spans that short-lived blocks close for a body as in span_of: the blocks below node `at` of the
 * tree, which has the leaves begin .. begin + size. */
static int find_spans(struct placer *p, const struct dpk_plan_block *b, int64_t delta,
                      uint32_t born, uint32_t at, uint32_t begin, uint32_t size, dpk_error *err) {
    int rc = DPK_OK;
    if (begin >= born || p->latest[at] <= b->first) goto done;
    if (size > 1) {
        size /= 2;
        DPK_TRY(find_spans(p, b, delta, born, 2 * at, begin, size, err));
        DPK_TRY(find_spans(p, b, delta, born, 2 * at + 1, begin + size, size, err));
    } else {
        const struct dpk_plan_block *o = &p->blocks[p->births[begin].index];
        DPK_TRY(add_span(&p->from_short, span_of(o, b, delta), err));
    }
done:
    return rc;
}

/* ---- Placing ------------------------------------------------------------------------------- */

/* Best offset of a body: the smallest gap that holds it, or behind all. */
static int64_t best_offset(const struct spans *a, const struct spans *b) {
    int64_t end = 0, best = 0, best_gap = INT64_MAX;
    for (size_t i = 0, k = 0; i < a->n || k < b->n;) {
        bool first = k == b->n || (i < a->n && a->at[i].begin <= b->at[k].begin);
        struct span s = first ? a->at[i++] : b->at[k++];
        if (s.begin >= end && s.begin - end < best_gap) {
            best_gap = s.begin - end;
            best = end;
        }
        if (s.end > end) end = s.end;
    }
    return best_gap == INT64_MAX ? end : best;
}

/* How far behind the begin of its body a block is; *root: the body's first block. */
static int64_t find_root(const struct dpk_plan_block *blocks, uint32_t block, uint32_t *root) {
    int64_t delta = 0;
    for (; blocks[block].under != DPK_NONE; block = blocks[block].under)
        delta += (int64_t)blocks[block].delta;
    *root = block;
    return delta;
}

static int place_body(struct placer *p, uint32_t root, uint64_t *total, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t same;
    p->from_steady.n = p->from_short.n = 0;
    for (uint32_t m = root; m != DPK_NONE; m = p->next[m]) {
        const struct dpk_plan_block *b = &p->blocks[m];
        int64_t delta = find_root(p->blocks, m, &same);
        uint32_t born = count_births(p, b->last);
        if (b->first <= p->kept_until && p->floor[born])
            DPK_TRY(add_span(&p->from_short,
                             (struct span){INT64_MIN, (int64_t)p->floor[born] - delta}, err));
        for (uint32_t i = 0; i < p->n_steady; i++) {
            const struct dpk_plan_block *o = &p->blocks[p->steady[i]];
            if (o->first <= b->last && b->first <= o->last)
                DPK_TRY(add_span(&p->from_steady, span_of(o, b, delta), err));
        }
        DPK_TRY(find_spans(p, b, delta, born, 1, 0, p->n_leaves, err));
    }
    sort_spans(&p->from_short);
    if (p->next[root] != DPK_NONE) sort_spans(&p->from_steady); /* else they are in order */
    int64_t offset = best_offset(&p->from_steady, &p->from_short);
    for (uint32_t m = root; m != DPK_NONE; m = p->next[m]) {
        struct dpk_plan_block *b = &p->blocks[m];
        b->offset = (uint64_t)(offset + find_root(p->blocks, m, &same));
        if (b->offset + b->bytes > *total) *total = b->offset + b->bytes;
        enter(p, m);
    }
done:
    return rc;
}

/* The kept blocks, one on the other. */
static void place_kept(struct placer *p, uint64_t *total) {
    p->floor[0] = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        struct dpk_plan_block *b = &p->blocks[p->births[i].index];
        p->floor[i + 1] = p->floor[i];
        if (b->under != DPK_NONE || p->next[p->births[i].index] != DPK_NONE) b->kept = false;
        if (!b->kept) continue;
        b->offset = p->floor[i];
        p->floor[i + 1] += b->bytes;
        if (b->last > p->kept_until) p->kept_until = b->last;
    }
    *total = p->floor[p->n];
}

static int make_placer(struct placer *p, struct dpk_plan_block *blocks, uint32_t n,
                       dpk_error *err) {
    int rc = DPK_OK;
    *p = (struct placer){.blocks = blocks, .n = n, .n_leaves = 1};
    while (p->n_leaves < n) p->n_leaves *= 2;
    p->births = malloc((n + 1) * sizeof *p->births);
    p->position = malloc((n + 1) * sizeof *p->position);
    p->next = malloc((n + 1) * sizeof *p->next);
    p->latest = calloc(2 * (size_t)p->n_leaves, sizeof *p->latest);
    p->floor = malloc((n + 1) * sizeof *p->floor);
    p->steady = malloc((n + 1) * sizeof *p->steady);
    if (!p->steady || !p->births || !p->position || !p->next || !p->latest || !p->floor)
        DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u blocks", n);
    for (uint32_t i = 0; i < n; i++)
        p->births[i] = (struct entry){blocks[i].bytes, blocks[i].first, i};
    qsort(p->births, n, sizeof *p->births, compare_births);
    memset(p->next, 0xff, (n + 1) * sizeof *p->next);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t root, block = p->births[i].index;
        p->position[block] = i;
        find_root(blocks, block, &root);
        if (root == block) continue;
        p->next[block] = p->next[root];
        p->next[root] = block;
    }
done:
    return rc;
}

static void free_placer(struct placer *p) {
    free(p->births);
    free(p->position);
    free(p->next);
    free(p->latest);
    free(p->floor);
    free(p->steady);
    free(p->from_steady.at);
    free(p->from_short.at);
}

int dpk_plan_place_blocks(struct dpk_plan_block *blocks, uint32_t n, uint64_t *total,
                          dpk_error *err) {
    int rc = DPK_OK;
    struct placer p = {0};
    struct entry *entries = malloc((n + 1) * sizeof *entries);
    uint64_t sum = 0;
    uint32_t root;
    if (!entries) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u blocks", n);
    for (uint32_t i = 0; i < n; i++) {
        entries[i] = (struct entry){blocks[i].bytes, blocks[i].first, i};
        uint64_t most = blocks[i].under == DPK_NONE ? 0 : blocks[i].delta;
        if (__builtin_add_overflow(sum, blocks[i].bytes, &sum) ||
            __builtin_add_overflow(sum, most, &sum) || sum > INT64_MAX)
            DPK_FAIL(err, DPK_ENOMEM, "plan: the values' bytes overflow");
    }
    for (uint32_t i = 0; i < n; i++) { /* a body is as large as its largest block */
        find_root(blocks, i, &root);
        if (entries[root].bytes < blocks[i].bytes) entries[root].bytes = blocks[i].bytes;
    }
    DPK_TRY(make_placer(&p, blocks, n, err));
    qsort(entries, n, sizeof *entries, compare_entries);
    place_kept(&p, total);
    for (uint32_t i = 0; i < n; i++) {
        const struct dpk_plan_block *b = &blocks[entries[i].index];
        if (b->kept || b->under != DPK_NONE) continue;
        DPK_TRY(place_body(&p, entries[i].index, total, err));
    }
done:
    free_placer(&p);
    free(entries);
    return rc;
}
