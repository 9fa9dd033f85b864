/* The Unicode tables of a tokenizer blob, from utf8proc, with the properties that it does not have
 * from PropList.txt, DerivedCoreProperties.txt and WordBreakProperty.txt. */
#include "pack_tokenizer_impl.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { N_CODES = 0x110000, MAX_FULL = 4 };

struct range {
    uint32_t first, last;
};
#define COUNT(a) (sizeof(a) / sizeof *(a))

/* The ranges ascend. Every code is looked for in several of them, most lie after the last. */
static bool in_ranges(const struct range *r, size_t n, uint32_t code) {
    size_t low = 0, high = code <= r[n - 1].last ? n : 0;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (code > r[middle].last) low = middle + 1;
        else high = middle;
    }
    return low < n && code >= r[low].first && code <= r[low].last;
}

static const struct range white_space[] = {
    {0x09, 0x0d},     {0x20, 0x20},     {0x85, 0x85},     {0xa0, 0xa0},     {0x1680, 0x1680},
    {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}};

static const struct range other_lowercase[] = {
    {0xaa, 0xaa},       {0xba, 0xba},       {0x2b0, 0x2b8},     {0x2c0, 0x2c1},
    {0x2e0, 0x2e4},     {0x345, 0x345},     {0x37a, 0x37a},     {0x10fc, 0x10fc},
    {0x1d2c, 0x1d6a},   {0x1d78, 0x1d78},   {0x1d9b, 0x1dbf},   {0x2071, 0x2071},
    {0x207f, 0x207f},   {0x2090, 0x209c},   {0x2170, 0x217f},   {0x24d0, 0x24e9},
    {0x2c7c, 0x2c7d},   {0xa69c, 0xa69d},   {0xa770, 0xa770},   {0xa7f2, 0xa7f4},
    {0xa7f8, 0xa7f9},   {0xab5c, 0xab5f},   {0xab69, 0xab69},   {0x10780, 0x10780},
    {0x10783, 0x10785}, {0x10787, 0x107b0}, {0x107b2, 0x107ba}, {0x1e030, 0x1e06d}};

/* Also the part of Other_Alphabetic that is neither a mark nor a number. */
static const struct range other_uppercase[] = {
    {0x2160, 0x216f}, {0x24b6, 0x24cf}, {0x1f130, 0x1f149}, {0x1f150, 0x1f169}, {0x1f170, 0x1f189}};

/* Word_Break MidLetter, MidNumLet and Single_Quote, which are Case_Ignorable */
static const struct range mid_letter[] = {
    {0x27, 0x27},     {0x2e, 0x2e},     {0x3a, 0x3a},     {0xb7, 0xb7},
    {0x387, 0x387},   {0x55f, 0x55f},   {0x5f4, 0x5f4},   {0x2018, 0x2019},
    {0x2024, 0x2024}, {0x2027, 0x2027}, {0xfe13, 0xfe13}, {0xfe52, 0xfe52},
    {0xfe55, 0xfe55}, {0xff07, 0xff07}, {0xff0e, 0xff0e}, {0xff1a, 0xff1a}};

/* What Unicode 15.1, 16 and 17 have added to the letters, numbers and lower cases that the
 * tokenizers library 0.23 knows, for a utf8proc that is older. */
static const struct range later_letters[] = {
    {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},   {0x105c0, 0x105f3},
    {0x10d4a, 0x10d65}, {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4}, {0x11380, 0x11389},
    {0x1138b, 0x1138b}, {0x1138e, 0x1138e}, {0x11390, 0x113b5}, {0x113b7, 0x113b7},
    {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0}, {0x13460, 0x143fa},
    {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff}, {0x1e5d0, 0x1e5ed},
    {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d}};
static const struct range later_numbers[] = {
    {0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9}, {0x16130, 0x16139},
    {0x16d70, 0x16d79}, {0x1ccf0, 0x1ccf9}, {0x1e5f1, 0x1e5fa}};
static const struct {
    uint32_t first, last, lower; /* of first */
} later_lower[] = {{0x1c89, 0x1c89, 0x1c8a},    {0xa7cb, 0xa7cb, 0x264},
                   {0xa7cc, 0xa7cc, 0xa7cd},    {0xa7ce, 0xa7ce, 0xa7cf},
                   {0xa7d2, 0xa7d2, 0xa7d3},    {0xa7d4, 0xa7d4, 0xa7d5},
                   {0xa7da, 0xa7da, 0xa7db},    {0xa7dc, 0xa7dc, 0x19b},
                   {0x10d50, 0x10d65, 0x10d70}, {0x16ea0, 0x16eb8, 0x16ebb}};

/* Its NFC, on the other hand, is that of Unicode 9: to it these marks have combining class 0, and
 * U+11938 is no composition. */
static const struct range later_marks[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x10d24, 0x10d27},
    {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85},
    {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34},
    {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45},
    {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f},
    {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}};
enum { LATER_COMPOSITION = 0x11938 };

/* Its grapheme clusters are those of Unicode 17: Extend and SpacingMark since 15.1, and two
 * changes of Prepend. */
static const struct range later_extend[] = {
    {0x897, 0x897},     {0x1acf, 0x1add},   {0x1ae0, 0x1aeb},   {0x10d69, 0x10d6d},
    {0x10efa, 0x10efc}, {0x113b8, 0x113c0}, {0x113c2, 0x113c2}, {0x113c5, 0x113c5},
    {0x113c7, 0x113ca}, {0x113cc, 0x113d0}, {0x113d2, 0x113d2}, {0x113e1, 0x113e2},
    {0x11b60, 0x11b67}, {0x11f5a, 0x11f5a}, {0x1611e, 0x1612f}, {0x1e5ee, 0x1e5ef},
    {0x1e6e3, 0x1e6e3}, {0x1e6e6, 0x1e6e6}, {0x1e6ee, 0x1e6ef}, {0x1e6f5, 0x1e6f5}};
enum { NEW_PREPEND = 0x113d1, OLD_PREPEND = 0x11a3a };

static uint32_t lower_of(uint32_t code) {
    for (size_t i = 0; i < COUNT(later_lower); i++)
        if (code >= later_lower[i].first && code <= later_lower[i].last)
            return later_lower[i].lower + (code - later_lower[i].first);
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
}

static int class_of(uint32_t code, int category) {
    if (category == UTF8PROC_CATEGORY_CN) {
        if (in_ranges(later_letters, COUNT(later_letters), code)) category = UTF8PROC_CATEGORY_LO;
        else if (in_ranges(later_numbers, COUNT(later_numbers), code))
            category = UTF8PROC_CATEGORY_ND;
    }
    const bool mark = category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
                      category == UTF8PROC_CATEGORY_ME;
    const bool letter = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
    const bool number = category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
    const bool circled = in_ranges(other_uppercase, COUNT(other_uppercase), code);
    const bool small = in_ranges(other_lowercase, COUNT(other_lowercase), code);
    int f = 0;
    if (letter) f |= DPK_TOK_LETTER;
    if (number) f |= DPK_TOK_NUMBER;
    if (in_ranges(white_space, COUNT(white_space), code)) f |= DPK_TOK_SPACE | DPK_TOK_STRIP;
    if (code >= 0x1c && code <= 0x1f) f |= DPK_TOK_STRIP;
    if (letter || mark || circled || small || category == UTF8PROC_CATEGORY_ND ||
        category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_PC || code == 0x200c ||
        code == 0x200d)
        f |= DPK_TOK_WORD;
    if (category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
        category == UTF8PROC_CATEGORY_LT || small || circled)
        f |= DPK_TOK_CASED;
    if (category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME ||
        category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_LM ||
        category == UTF8PROC_CATEGORY_SK || in_ranges(mid_letter, COUNT(mid_letter), code))
        f |= DPK_TOK_IGNORABLE;
    return f;
}

static int cluster_of(uint32_t code, int boundclass) {
    if (in_ranges(later_extend, COUNT(later_extend), code)) return DPK_TOK_EXTEND;
    if (code == NEW_PREPEND) return DPK_TOK_PREPEND;
    if (code == OLD_PREPEND) return DPK_TOK_OTHER;
    switch (boundclass) {
    case UTF8PROC_BOUNDCLASS_CR:
        return DPK_TOK_CR;
    case UTF8PROC_BOUNDCLASS_LF:
        return DPK_TOK_LF;
    case UTF8PROC_BOUNDCLASS_CONTROL:
        return DPK_TOK_CONTROL;
    case UTF8PROC_BOUNDCLASS_EXTEND:
        return DPK_TOK_EXTEND;
    case UTF8PROC_BOUNDCLASS_E_MODIFIER:
        return DPK_TOK_EXTEND; /* before Unicode 11 */
    case UTF8PROC_BOUNDCLASS_ZWJ:
        return DPK_TOK_ZWJ;
    case UTF8PROC_BOUNDCLASS_PREPEND:
        return DPK_TOK_PREPEND;
    case UTF8PROC_BOUNDCLASS_SPACINGMARK:
        return DPK_TOK_SPACING;
    case UTF8PROC_BOUNDCLASS_L:
        return DPK_TOK_HANGUL_L;
    case UTF8PROC_BOUNDCLASS_V:
        return DPK_TOK_HANGUL_V;
    case UTF8PROC_BOUNDCLASS_T:
        return DPK_TOK_HANGUL_T;
    case UTF8PROC_BOUNDCLASS_LV:
    case UTF8PROC_BOUNDCLASS_LVT:
        return DPK_TOK_HANGUL_S;
    case UTF8PROC_BOUNDCLASS_REGIONAL_INDICATOR:
        return DPK_TOK_REGIONAL;
    case UTF8PROC_BOUNDCLASS_EXTENDED_PICTOGRAPHIC:
        return DPK_TOK_PICTOGRAPHIC;
    default:
        return DPK_TOK_OTHER;
    }
}

static int put_runs(const struct dpk_pack_unicode *want, struct dpk_tok_header *h,
                    struct dpk_pack_bytes *out, dpk_error *err) {
    struct dpk_tok_run last = {0};
    int rc = DPK_OK;
    for (uint32_t code = 0; code < N_CODES; code++) {
        const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)code);
        struct dpk_tok_run run = {.start = code};
        run.flags = (uint8_t)(class_of(code, p->category) & want->classes);
        if (want->clusters) run.cluster = (uint8_t)cluster_of(code, p->boundclass);
        if (want->combining && !in_ranges(later_marks, COUNT(later_marks), code))
            run.combining = (uint8_t)p->combining_class;
        if (code && run.flags == last.flags && run.cluster == last.cluster &&
            run.combining == last.combining)
            continue;
        DPK_TRY(dpk_pack_put(out, &run, sizeof run, err));
        h->n_runs++;
        last = run;
    }
done:
    return rc;
}

static int put_lower(struct dpk_tok_header *h, struct dpk_pack_bytes *out, dpk_error *err) {
    int rc = DPK_OK;
    for (uint32_t code = 0; code < N_CODES; code++) {
        uint32_t low = lower_of(code);
        if (low == code || code == 0x130) continue;
        DPK_TRY(dpk_pack_put32(out, code, err));
        DPK_TRY(dpk_pack_put32(out, low, err));
        h->n_lower++;
    }
done:
    return rc;
}

/* ---- Decompositions
 * --------------------------------------------------------------------------- */

struct full { /* a full canonical decomposition */
    uint32_t code;
    int n;
    utf8proc_int32_t v[MAX_FULL];
    bool composes;
};

/* Collects the decompositions of all but Hangul syllables. *list is malloc'ed. */
static int list_full(struct full **list, size_t *n_list, dpk_error *err) {
    int rc = DPK_OK;
    size_t n = 0, cap = 0;
    struct full *v = NULL;
    for (uint32_t code = 0xa0; code < N_CODES; code++) {
        struct full f = {.code = code};
        int unused = 0;
        if ((code >= 0xac00 && code <= 0xd7a3) || (code >= 0xd800 && code <= 0xdfff) ||
            code == LATER_COMPOSITION)
            continue;
        f.n = (int)utf8proc_decompose_char((utf8proc_int32_t)code, f.v, MAX_FULL,
                                           UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &unused);
        if (f.n < 1 || f.n > MAX_FULL)
            DPK_FAIL(err, DPK_EUNSUPPORTED, "U+%04X decomposes to %d codes, want at most %d", code,
                     f.n, MAX_FULL);
        if (f.n == 1 && f.v[0] == (utf8proc_int32_t)code) continue;
        utf8proc_int32_t composed[MAX_FULL + 1];
        memcpy(composed, f.v, sizeof f.v);
        utf8proc_ssize_t m =
            utf8proc_normalize_utf32(composed, f.n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        f.composes = m == 1 && composed[0] == (utf8proc_int32_t)code;
        if (n == cap) {
            cap = cap ? 2 * cap : 2048;
            void *p = realloc(v, cap * sizeof *v);
            if (!p) DPK_FAIL(err, DPK_ENOMEM, "tokenizer: out of memory");
            v = p;
        }
        v[n++] = f;
    }
    *list = v;
    *n_list = n;
    v = NULL;
done:
    free(v);
    return rc;
}

/* One step of f: its last code, and the code that the others are the decomposition of. */
static int one_step(const struct full *list, size_t n_list, const struct full *f,
                    struct dpk_tok_decomposition *d, dpk_error *err) {
    d->code = f->code | (f->composes ? DPK_TOK_COMPOSES : 0);
    d->first = (uint32_t)f->v[0];
    d->second = f->n > 1 ? (uint32_t)f->v[f->n - 1] : 0;
    if (f->n < 3) return DPK_OK;
    const struct full *other = NULL;
    for (size_t i = 0; i < n_list; i++) {
        const struct full *g = &list[i];
        if (g->n != f->n - 1 || memcmp(g->v, f->v, (size_t)g->n * sizeof *g->v) != 0) continue;
        if (!other || g->composes) other = g;
    }
    if (!other || (f->composes && !other->composes))
        return dpk_error_set(err, DPK_EUNSUPPORTED, "U+%04X decomposes in more than one step",
                             f->code);
    d->first = other->code;
    return DPK_OK;
}

struct pair {
    uint32_t first, second, entry;
};

static int compare_pairs(const void *a, const void *b) {
    const struct pair *x = a, *y = b;
    if (x->first != y->first) return x->first < y->first ? -1 : 1;
    return (x->second > y->second) - (x->second < y->second);
}

static int put_decompositions(struct dpk_tok_header *h, struct dpk_pack_bytes *out,
                              dpk_error *err) {
    struct full *list = NULL;
    struct pair *pairs = NULL;
    size_t n = 0, n_pairs = 0;
    int rc = DPK_OK;
    DPK_TRY(list_full(&list, &n, err));
    pairs = malloc(n * sizeof *pairs);
    if (!pairs) DPK_FAIL(err, DPK_ENOMEM, "tokenizer: out of memory");
    for (size_t i = 0; i < n; i++) {
        struct dpk_tok_decomposition d;
        DPK_TRY(one_step(list, n, &list[i], &d, err));
        DPK_TRY(dpk_pack_put(out, &d, sizeof d, err));
        if (list[i].composes) pairs[n_pairs++] = (struct pair){d.first, d.second, (uint32_t)i};
    }
    qsort(pairs, n_pairs, sizeof *pairs, compare_pairs);
    for (size_t i = 0; i < n_pairs; i++) DPK_TRY(dpk_pack_put32(out, pairs[i].entry, err));
    h->n_decompositions = (uint32_t)n;
done:
    free(pairs);
    free(list);
    return rc;
}

int dpk_pack_unicode_tables(const struct dpk_pack_unicode *want, struct dpk_tok_header *h,
                            struct dpk_pack_bytes *out, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(put_runs(want, h, out, err));
    if (want->lower) DPK_TRY(put_lower(h, out, err));
    if (want->decompositions) DPK_TRY(put_decompositions(h, out, err));
done:
    return rc;
}
