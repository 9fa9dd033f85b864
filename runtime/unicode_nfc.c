/* Canonical composition (UAX 15): decompose, order the marks, compose. */
#include "unicode.h"

#include "../formats/fail.h"

#include <stdlib.h>

enum {
    S_BASE = 0xac00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11a7,
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    S_COUNT = L_COUNT * V_COUNT * T_COUNT,
    SHORT = 16 /* marks that are sorted by insertion */
};

static struct dpk_tok_decomposition entry(const struct dpk_unicode *u, uint32_t i) {
    struct dpk_tok_decomposition d;
    memcpy(&d, u->decompositions + sizeof d * (size_t)i, sizeof d);
    return d;
}

static bool find_decomposition(const struct dpk_unicode *u, uint32_t code,
                               struct dpk_tok_decomposition *d) {
    uint32_t lo = 0, hi = u->n_decompositions;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        *d = entry(u, mid);
        uint32_t at = d->code & ~DPK_TOK_COMPOSES;
        if (at == code) return true;
        if (at < code) lo = mid + 1;
        else hi = mid;
    }
    return false;
}

static struct dpk_tok_decomposition composition(const struct dpk_unicode *u, uint32_t i) {
    return entry(u, dpk_load32(u->compositions + 4 * (size_t)i));
}

/* The code that a and b compose to, 0 if none. */
static uint32_t compose(const struct dpk_unicode *u, uint32_t a, uint32_t b) {
    if (a - L_BASE < L_COUNT && b - V_BASE < V_COUNT)
        return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a - S_BASE < S_COUNT && (a - S_BASE) % T_COUNT == 0 && b - T_BASE - 1 < T_COUNT - 1)
        return a + (b - T_BASE);
    uint32_t lo = 0, hi = u->n_compositions;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        struct dpk_tok_decomposition d = composition(u, mid);
        if (d.first == a && d.second == b) return d.code & ~DPK_TOK_COMPOSES;
        if (d.first < a || (d.first == a && d.second < b)) lo = mid + 1;
        else hi = mid;
    }
    return 0;
}

int dpk_unicode_check_nfc(const struct dpk_unicode *u, dpk_error *err) {
    uint32_t n_compose = 0, before = 0;
    for (uint32_t i = 0; i < u->n_decompositions; i++) {
        struct dpk_tok_decomposition d = entry(u, i), step;
        const uint32_t code = d.code & ~DPK_TOK_COMPOSES;
        const bool composes = code != d.code;
        int steps = 1;
        bool ok = (i == 0 || code > before) && code > 0 && code <= 0x10ffff && d.first > 0 &&
                  d.first <= 0x10ffff && d.second <= 0x10ffff && (!composes || d.second);
        /* Only the first part may go on, a few times: so that a text grows by a constant factor. */
        ok = ok && !find_decomposition(u, d.second, &step);
        for (uint32_t at = d.first; ok && find_decomposition(u, at, &step); at = step.first)
            ok = ++steps <= DPK_TOK_MAX_DECOMPOSITION;
        if (!ok) return dpk_error_set(err, DPK_EFORMAT, "tokenizer: bad decomposition %u", i);
        before = code;
        n_compose += composes;
    }
    if (n_compose != u->n_compositions)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %u compositions, want %u",
                             u->n_compositions, n_compose);
    struct dpk_tok_decomposition last = {0};
    for (uint32_t i = 0; i < n_compose; i++) {
        uint32_t at = dpk_load32(u->compositions + 4 * (size_t)i);
        if (at >= u->n_decompositions)
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: composition %u is entry %u of %u", i,
                                 at, u->n_decompositions);
        struct dpk_tok_decomposition d = entry(u, at);
        bool sorted =
            i == 0 || last.first < d.first || (last.first == d.first && last.second < d.second);
        if (!sorted || !(d.code & DPK_TOK_COMPOSES))
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: composition %u out of order", i);
        last = d;
    }
    return DPK_OK;
}

/* ---- Decomposing
 * ------------------------------------------------------------------------------ */

static void decompose(const struct dpk_unicode *u, uint32_t code, struct dpk_codes *out) {
    uint32_t tail[DPK_TOK_MAX_DECOMPOSITION];
    int n = 0;
    struct dpk_tok_decomposition d;
    if (code - S_BASE < S_COUNT) {
        uint32_t s = code - S_BASE, t = s % T_COUNT;
        dpk_codes_add(out, L_BASE + s / (V_COUNT * T_COUNT));
        dpk_codes_add(out, V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT);
        if (t) dpk_codes_add(out, T_BASE + t);
        return;
    }
    while (n < DPK_TOK_MAX_DECOMPOSITION && find_decomposition(u, code, &d)) {
        tail[n++] = d.second;
        code = d.first;
    }
    dpk_codes_add(out, code);
    while (n > 0)
        if (tail[--n]) dpk_codes_add(out, tail[n]);
}

/* A mark as one number: class, place in the run, code. Sorting these is stable by class. */
static int compare_marks(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Sort v[0..n), n marks in a row, by combining class. false: out of memory. */
static bool order_marks(const struct dpk_unicode *u, uint32_t *v, size_t n) {
    if (n <= SHORT) {
        for (size_t i = 1; i < n; i++) {
            uint32_t c = v[i];
            int k = dpk_unicode_run(u, c).combining;
            size_t j = i;
            for (; j > 0 && dpk_unicode_run(u, v[j - 1]).combining > k; j--) v[j] = v[j - 1];
            v[j] = c;
        }
        return true;
    }
    /* class in the upper half, place in the lower: texts are far below 2^32 codes */
    uint64_t *key = malloc(n * sizeof *key);
    uint32_t *copy = malloc(n * sizeof *copy);
    if (key && copy) {
        memcpy(copy, v, n * sizeof *copy);
        for (size_t i = 0; i < n; i++)
            key[i] = (uint64_t)dpk_unicode_run(u, v[i]).combining << 32 | i;
        qsort(key, n, sizeof *key, compare_marks);
        for (size_t i = 0; i < n; i++) v[i] = copy[(uint32_t)key[i]];
    }
    bool ok = key && copy;
    free(key);
    free(copy);
    return ok;
}

void dpk_unicode_nfc(const struct dpk_unicode *u, const uint32_t *in, size_t n,
                     struct dpk_codes *out) {
    size_t plain = 0;
    while (plain < n && in[plain] < 0x300) plain++;
    if (plain == n) { /* nothing below composes with anything below */
        for (size_t i = 0; i < n; i++) dpk_codes_add(out, in[i]);
        return;
    }
    struct dpk_codes d = {0};
    for (size_t i = 0; i < n; i++) decompose(u, in[i], &d);
    for (size_t i = 0; i < d.n && !d.failed;) {
        size_t end = i;
        while (end < d.n && dpk_unicode_run(u, d.v[end]).combining) end++;
        if (end > i + 1 && !order_marks(u, d.v + i, end - i)) d.failed = true;
        i = end + 1;
    }
    size_t starter = SIZE_MAX; /* in out */
    int last = 0;              /* class of the code before */
    for (size_t i = 0; i < d.n; i++) {
        int k = dpk_unicode_run(u, d.v[i]).combining;
        /* Blocked: something of class 0, or of the same or a higher class, stands between. */
        if (starter != SIZE_MAX && (starter + 1 == out->n || (last != 0 && last < k))) {
            uint32_t c = compose(u, out->v[starter], d.v[i]);
            if (c) {
                out->v[starter] = c;
                continue;
            }
        }
        if (k == 0) starter = out->n;
        last = k;
        dpk_codes_add(out, d.v[i]);
        if (out->failed) break;
    }
    out->failed = out->failed || d.failed;
    dpk_codes_free(&d);
}
