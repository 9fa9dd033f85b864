/* CLIP's byte-level byte-pair encoding, as CLIPTokenizer of transformers 5 runs it in the
 * tokenizers library: NFC, white space to one space, lower case; cut into words by the pattern
 *     <|startoftext|> | <|endoftext|> | 's | 't | 're | 've | 'm | 'll | 'd | \p{L}+ | \p{N}
 *     | [^\s\p{L}\p{N}]+
 * (what it leaves out, white space, is dropped); each word's bytes are symbols, the last one
 * with a word end; the pair of neighbours of the lowest rank is merged, the leftmost first,
 * until none is left (Sennrich et al. 2016). */
#include "tokenizer_impl.h"

#include "../formats/fail.h"
#define XXH_INLINE_ALL
#include "../formats/xxhash.h"

#include <stdlib.h>
#include <time.h>

/* Where pairs are in the table is nobody's to know beforehand: a file whose pairs all met would take
 * quadratic time. */
static uint64_t choose_seed(const void *place) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)(uintptr_t)place ^ (uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec;
}

static uint32_t hash_pair(const struct dpk_tokenizer *t, uint32_t left, uint32_t right) {
    const uint32_t pair[2] = {left, right};
    return (uint32_t)XXH3_64bits_withSeed(pair, sizeof pair, t->merge_seed);
}

static struct dpk_tok_merge merge_at(const struct dpk_tokenizer *t, uint32_t rank) {
    struct dpk_tok_merge m;
    memcpy(&m, t->merges + sizeof m * (size_t)rank, sizeof m);
    return m;
}

/* The slot of a pair in the table, or the empty one where it would be. */
static uint32_t find_slot(const struct dpk_tokenizer *t, uint32_t left, uint32_t right) {
    uint32_t i = hash_pair(t, left, right) & t->merge_mask;
    while (t->merge_table[i]) {
        struct dpk_tok_merge m = merge_at(t, t->merge_table[i] - 1);
        if (m.left == left && m.right == right) break;
        i = (i + 1) & t->merge_mask;
    }
    return i;
}

int dpk_bpe_open(struct dpk_tokenizer *t, dpk_error *err) {
    const uint32_t n = t->h.n_entries;
    uint32_t size = 16;
    if (n > DPK_TOK_MAX_ID) return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %u merges", n);
    while (size < 2 * n) size *= 2;
    t->merge_mask = size - 1;
    t->merge_seed = choose_seed(t);
    t->merge_table = calloc(size, sizeof *t->merge_table);
    if (!t->merge_table) return dpk_error_set(err, DPK_ENOMEM, "tokenizer: out of memory");
    for (uint32_t i = 0; i < n; i++) {
        struct dpk_tok_merge m = merge_at(t, i);
        uint32_t slot = find_slot(t, m.left, m.right);
        if (t->merge_table[slot])
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: merge %u repeats merge %u", i,
                                 t->merge_table[slot] - 1);
        t->merge_table[slot] = i + 1;
    }
    return DPK_OK;
}

void dpk_bpe_normalize(struct dpk_tok_run_state *r, const char *text, size_t n,
                       struct dpk_bytes *out) {
    const struct dpk_unicode *u = &r->t->unicode;
    r->codes.n = r->more.n = 0;
    dpk_codes_add_utf8(&r->codes, text, n);
    dpk_unicode_nfc(u, r->codes.v, r->codes.n, &r->more);
    bool in_space = false;
    for (size_t i = 0; i < r->more.n; i++) {
        uint32_t low[2];
        bool space = dpk_unicode_class(u, r->more.v[i]) & DPK_TOK_SPACE;
        if (space && !in_space) dpk_bytes_add_code(out, ' ');
        in_space = space;
        if (space) continue;
        int m = dpk_unicode_lower(u, r->more.v[i], low);
        for (int k = 0; k < m; k++) dpk_bytes_add_code(out, low[k]);
    }
    r->failed = r->failed || r->codes.failed || r->more.failed;
}

/* ---- Merging
 * ---------------------------------------------------------------------------------- */

struct symbol {
    uint32_t id;
    uint32_t before, after; /* neighbours; UINT32_MAX: none. A merged one has id UINT32_MAX */
};

/* Pairs to merge: rank in the upper half, place of the left symbol in the lower. A binary heap
 * with the smallest on top. Entries that a merge has made void are found out when they come up. */
struct heap {
    uint64_t *v;
    size_t n;
};

static void heap_push(struct heap *h, uint64_t v) {
    size_t i = h->n++;
    for (; i > 0 && h->v[(i - 1) / 2] > v; i = (i - 1) / 2) h->v[i] = h->v[(i - 1) / 2];
    h->v[i] = v;
}

static uint64_t heap_pop(struct heap *h) {
    const uint64_t top = h->v[0], last = h->v[--h->n];
    size_t i = 0;
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= h->n) break;
        if (c + 1 < h->n && h->v[c + 1] < h->v[c]) c++;
        if (h->v[c] >= last) break;
        h->v[i] = h->v[c];
        i = c;
    }
    h->v[i] = last;
    return top;
}

/* Rank + 1 of the pair that begins at symbol i; 0: it does not merge. */
static uint32_t pair_rank(const struct dpk_tokenizer *t, const struct symbol *s, uint32_t i) {
    if (i == UINT32_MAX || s[i].after == UINT32_MAX) return 0;
    return t->merge_table[find_slot(t, s[i].id, s[s[i].after].id)];
}

static void push_pair(const struct dpk_tokenizer *t, const struct symbol *s, uint32_t i,
                      struct heap *h) {
    uint32_t rank = pair_rank(t, s, i);
    if (rank) heap_push(h, (uint64_t)rank << 32 | i);
}

/* Emit the tokens of one word, n > 0 bytes. */
static void encode_word(struct dpk_tok_run_state *r, const char *word, size_t n) {
    const struct dpk_tokenizer *t = r->t;
    const uint8_t *ends = t->byte_ids + 4 * 256;
    if (n == 1) {
        dpk_tok_emit(r, dpk_load32(ends + 4 * (size_t)(uint8_t)word[0]));
        return;
    }
    /* n pairs at first, and two at most for each of n - 1 merges. */
    struct heap h = {.v = dpk_tok_scratch(r, n * sizeof(struct symbol) + 3 * n * sizeof *h.v)};
    if (!h.v) return;
    struct symbol *s = (struct symbol *)(void *)(h.v + 3 * n);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *id = (i + 1 == n ? ends : t->byte_ids) + 4 * (size_t)(uint8_t)word[i];
        s[i].id = dpk_load32(id);
        s[i].before = i ? (uint32_t)i - 1 : UINT32_MAX;
        s[i].after = i + 1 < n ? (uint32_t)i + 1 : UINT32_MAX;
    }
    for (uint32_t i = 0; i + 1 < n; i++) push_pair(t, s, i, &h);
    while (h.n) {
        const uint64_t top = heap_pop(&h);
        const uint32_t i = (uint32_t)top, rank = (uint32_t)(top >> 32);
        if (s[i].id == UINT32_MAX || pair_rank(t, s, i) != rank) continue;
        const uint32_t gone = s[i].after;
        s[i].id = merge_at(t, rank - 1).result;
        s[i].after = s[gone].after;
        if (s[i].after != UINT32_MAX) s[s[i].after].before = i;
        s[gone].id = UINT32_MAX;
        push_pair(t, s, s[i].before, &h);
        push_pair(t, s, i, &h);
    }
    for (uint32_t i = 0; i != UINT32_MAX; i = s[i].after) dpk_tok_emit(r, s[i].id);
}

/* ---- Words
 * ------------------------------------------------------------------------------------ */

static bool begins(const char *text, size_t n, const char *with) {
    size_t m = strlen(with);
    return n >= m && memcmp(text, with, m) == 0;
}

/* Bytes of the contraction that the text begins with, 0 if none. */
static size_t contraction(const char *text, size_t n) {
    static const char *const list[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    if (text[0] != '\'') return 0;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (begins(text, n, list[i])) return strlen(list[i]);
    return 0;
}

/* Written special strings that are no special tokens here: the byte level's own pattern cuts
 * them. */
static size_t special_string(struct dpk_tok_run_state *r, const char *text, size_t n) {
    static const char *const middle[] = {"startoftext", "endoftext"};
    if (!begins(text, n, "<|")) return 0;
    for (int i = 0; i < 2; i++) {
        size_t m = strlen(middle[i]);
        if (!begins(text + 2, n - 2, middle[i]) || !begins(text + 2 + m, n - 2 - m, "|>")) continue;
        encode_word(r, text, 2);
        encode_word(r, text + 2, m);
        encode_word(r, text + 2 + m, 2);
        return m + 4;
    }
    return 0;
}

void dpk_bpe_encode(struct dpk_tok_run_state *r, const char *text, size_t n) {
    const struct dpk_unicode *u = &r->t->unicode;
    enum { KIND = DPK_TOK_LETTER | DPK_TOK_NUMBER | DPK_TOK_SPACE };
    size_t at = 0;
    while (at < n && !r->failed) {
        size_t length = special_string(r, text + at, n - at);
        if (length) {
            at += length;
            continue;
        }
        length = contraction(text + at, n - at);
        if (length == 0) {
            int kind = dpk_unicode_class(u, dpk_utf8_decode(text + at, n - at, &length)) & KIND;
            if (kind & DPK_TOK_SPACE) {
                at += length;
                continue;
            }
            while (!(kind & DPK_TOK_NUMBER) && at + length < n) {
                size_t more;
                uint32_t code = dpk_utf8_decode(text + at + length, n - at - length, &more);
                if ((dpk_unicode_class(u, code) & KIND) != kind) break;
                length += more;
            }
        }
        encode_word(r, text + at, length);
        at += length;
    }
}
