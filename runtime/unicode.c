/* Character properties, case and grapheme clusters by search in sorted tables. */
#include "unicode.h"

#include "../formats/fail.h"

#include <stdlib.h>

enum { MAX_CODE = 0x10ffff };

/* ---- Arrays and UTF-8
 * ------------------------------------------------------------------------- */

static bool grow(void **v, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return true;
    size_t want = *cap < 64 ? 64 : *cap * 2;
    if (want < need) want = need;
    void *p = want > SIZE_MAX / size ? NULL : realloc(*v, want * size);
    if (!p) return false;
    *v = p;
    *cap = want;
    return true;
}

void dpk_codes_add(struct dpk_codes *c, uint32_t code) {
    void *v = c->v;
    if (c->failed || !grow(&v, &c->cap, c->n + 1, sizeof *c->v)) {
        c->failed = true;
        return;
    }
    c->v = v;
    c->v[c->n++] = code;
}

void dpk_codes_free(struct dpk_codes *c) {
    free(c->v);
    memset(c, 0, sizeof *c);
}

void dpk_bytes_add(struct dpk_bytes *b, const char *s, size_t n) {
    void *v = b->v;
    if (b->failed || !grow(&v, &b->cap, b->n + n, 1)) {
        b->failed = true;
        return;
    }
    b->v = v;
    if (n) memcpy(b->v + b->n, s, n);
    b->n += n;
}

void dpk_bytes_add_code(struct dpk_bytes *b, uint32_t code) {
    char s[4];
    if (code < 0x80) {
        s[0] = (char)code;
        dpk_bytes_add(b, s, 1);
        return;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned lead[] = {0, 0xc0, 0xe0, 0xf0};
    s[0] = (char)(lead[more] | code >> 6 * more);
    for (int i = 1; i <= more; i++) s[i] = (char)(0x80 | (code >> 6 * (more - i) & 0x3f));
    dpk_bytes_add(b, s, (size_t)more + 1);
}

void dpk_bytes_free(struct dpk_bytes *b) {
    free(b->v);
    memset(b, 0, sizeof *b);
}

uint32_t dpk_utf8_decode(const char *s, size_t n, size_t *length) {
    unsigned char c = (unsigned char)s[0];
    size_t more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    if (more >= n) more = n - 1;
    uint32_t code = more == 0 ? c : c & (0x3fu >> more);
    for (size_t i = 1; i <= more; i++) code = code << 6 | ((unsigned char)s[i] & 0x3f);
    *length = more + 1;
    return code;
}

void dpk_codes_add_utf8(struct dpk_codes *c, const char *s, size_t n) {
    size_t length;
    for (size_t i = 0; i < n; i += length) dpk_codes_add(c, dpk_utf8_decode(s + i, n - i, &length));
}

/* ---- Tables
 * ----------------------------------------------------------------------------------- */

struct dpk_tok_run dpk_unicode_run(const struct dpk_unicode *u, uint32_t code) {
    uint32_t lo = 0, hi = u->n_runs;
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (dpk_load32(u->runs + 8 * (size_t)mid) <= code) lo = mid;
        else hi = mid;
    }
    struct dpk_tok_run run;
    memcpy(&run, u->runs + 8 * (size_t)lo, sizeof run);
    return run;
}

int dpk_unicode_lower(const struct dpk_unicode *u, uint32_t code, uint32_t out[2]) {
    out[0] = code;
    if (code == 0x130) { /* the only one with two */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    uint32_t lo = 0, hi = u->n_lower;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        uint32_t at = dpk_load32(u->lower + 8 * (size_t)mid);
        if (at == code) {
            out[0] = dpk_load32(u->lower + 8 * (size_t)mid + 4);
            break;
        }
        if (at < code) lo = mid + 1;
        else hi = mid;
    }
    return 1;
}

/* The condition Final_Sigma of the Unicode standard, section 3.13. */
static bool final_sigma(const struct dpk_unicode *u, const uint32_t *in, size_t n, size_t at) {
    size_t i = at;
    while (i > 0 && dpk_unicode_class(u, in[i - 1]) & DPK_TOK_IGNORABLE) i--;
    if (i == 0 || !(dpk_unicode_class(u, in[i - 1]) & DPK_TOK_CASED)) return false;
    i = at + 1;
    while (i < n && dpk_unicode_class(u, in[i]) & DPK_TOK_IGNORABLE) i++;
    return i == n || !(dpk_unicode_class(u, in[i]) & DPK_TOK_CASED);
}

void dpk_unicode_lower_text(const struct dpk_unicode *u, const uint32_t *in, size_t n,
                            struct dpk_codes *out) {
    for (size_t i = 0; i < n; i++) {
        uint32_t low[2];
        if (in[i] == 0x3a3) {
            dpk_codes_add(out, final_sigma(u, in, n, i) ? 0x3c2 : 0x3c3);
            continue;
        }
        int m = dpk_unicode_lower(u, in[i], low);
        for (int k = 0; k < m; k++) dpk_codes_add(out, low[k]);
    }
}

static bool is_scalar(uint32_t code) {
    return code <= MAX_CODE && (code < 0xd800 || code > 0xdfff);
}

static int check_runs(const struct dpk_unicode *u, dpk_error *err) {
    uint32_t before = 0;
    if (u->n_runs == 0) return dpk_error_set(err, DPK_EFORMAT, "tokenizer: no character classes");
    for (uint32_t i = 0; i < u->n_runs; i++) {
        struct dpk_tok_run r;
        memcpy(&r, u->runs + 8 * (size_t)i, sizeof r);
        if ((i == 0) != (r.start == 0) || (i && r.start <= before) || r.start > MAX_CODE ||
            r.flags > 127 || r.cluster >= DPK_TOK_N_CLUSTERS || r.zero)
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: bad run %u of character classes", i);
        before = r.start;
    }
    return DPK_OK;
}

static int check_lower(const struct dpk_unicode *u, dpk_error *err) {
    uint32_t before = 0;
    for (uint32_t i = 0; i < u->n_lower; i++) {
        uint32_t code = dpk_load32(u->lower + 8 * (size_t)i);
        uint32_t low = dpk_load32(u->lower + 8 * (size_t)i + 4);
        if ((i && code <= before) || !is_scalar(code) || !is_scalar(low))
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: bad lower case entry %u", i);
        before = code;
    }
    return DPK_OK;
}

int dpk_unicode_check(const struct dpk_unicode *u, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(check_runs(u, err));
    DPK_TRY(check_lower(u, err));
    rc = dpk_unicode_check_nfc(u, err);
done:
    return rc;
}

/* ---- Grapheme clusters
 * ------------------------------------------------------------------------ */

static bool breaks_alone(int c) {
    return c == DPK_TOK_CR || c == DPK_TOK_LF || c == DPK_TOK_CONTROL;
}

/* Does a Hangul sequence go on from a to b (rules GB6 to GB8)?  */
static bool hangul_joins(int a, bool a_is_lv, int b) {
    if (a == DPK_TOK_HANGUL_L)
        return b == DPK_TOK_HANGUL_L || b == DPK_TOK_HANGUL_V || b == DPK_TOK_HANGUL_S;
    if (a == DPK_TOK_HANGUL_V || (a == DPK_TOK_HANGUL_S && a_is_lv))
        return b == DPK_TOK_HANGUL_V || b == DPK_TOK_HANGUL_T;
    if (a == DPK_TOK_HANGUL_T || a == DPK_TOK_HANGUL_S) return b == DPK_TOK_HANGUL_T;
    return false;
}

size_t dpk_unicode_cluster(const struct dpk_unicode *u, const uint32_t *in, size_t n) {
    int a = dpk_unicode_run(u, in[0]).cluster;
    size_t regionals = a == DPK_TOK_REGIONAL;
    bool picture = a == DPK_TOK_PICTOGRAPHIC; /* a pictograph, then Extend* up to here */
    bool picture_zwj = false;                 /* and a ZWJ after that */
    for (size_t i = 1; i < n; i++) {
        int b = dpk_unicode_run(u, in[i]).cluster;
        bool join;
        if (a == DPK_TOK_CR && b == DPK_TOK_LF) join = true;
        else if (breaks_alone(a) || breaks_alone(b)) join = false;
        else if (b == DPK_TOK_EXTEND || b == DPK_TOK_ZWJ || b == DPK_TOK_SPACING ||
                 a == DPK_TOK_PREPEND)
            join = true;
        else if (b == DPK_TOK_PICTOGRAPHIC && picture_zwj) join = true;
        else if (b == DPK_TOK_REGIONAL && a == DPK_TOK_REGIONAL) join = regionals % 2 == 1;
        else join = hangul_joins(a, (in[i - 1] - 0xac00) % 28 == 0, b);
        if (!join) return i;
        picture_zwj = picture && b == DPK_TOK_ZWJ;
        picture = b == DPK_TOK_PICTOGRAPHIC || (picture && b == DPK_TOK_EXTEND);
        regionals = b == DPK_TOK_REGIONAL ? regionals + 1 : 0;
        a = b;
    }
    return n;
}
