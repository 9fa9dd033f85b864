/* T5's SentencePiece unigram model (Kudo 2018), as T5Tokenizer of transformers 5 runs it in the
 * tokenizers library: the model's precompiled character map, cluster by cluster; cut at white
 * space; each word with U+2581 before it; the segmentation of the highest score by Viterbi. */
#include "tokenizer_impl.h"

#include "../formats/fail.h"
#include "../formats/utf8.h"

#include <math.h>
#include <stdlib.h>

#define METASPACE "\xe2\x96\x81" /* U+2581 */
enum { METASPACE_BYTES = 3 };

int dpk_unigram_open(struct dpk_tokenizer *t, dpk_error *err) {
    const uint8_t *map = t->charsmap_trie;
    const uint32_t n = t->h.charsmap_bytes;
    float lowest = INFINITY;
    for (uint32_t i = 0; i < t->pieces.n; i++) {
        float score;
        memcpy(&score, t->pieces.records + 8 * (size_t)i + 4, sizeof score);
        if (!isfinite(score))
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: score of piece %u is not finite", i);
        if (score < lowest) lowest = score;
    }
    t->unknown_score = (double)lowest - 10;
    const uint32_t trie = n < 4 ? 0 : dpk_load32(map);
    if (n < 9 || trie < 4 || trie % 4 || trie > n - 5)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: charsmap of %u bytes has a trie of %u",
                             n, trie);
    t->charsmap_trie = map + 4;
    t->n_trie = trie / 4;
    t->charsmap_text = map + 4 + trie;
    t->charsmap_text_bytes = n - 4 - trie;
    const char *text = (const char *)t->charsmap_text;
    size_t valid = dpk_utf8_check(text, t->charsmap_text_bytes);
    if (valid != t->charsmap_text_bytes || text[valid - 1])
        return dpk_error_set(err, DPK_EFORMAT,
                             "tokenizer: charsmap's strings are not NUL-terminated UTF-8");
    return DPK_OK;
}

/* ---- Character map
 * ---------------------------------------------------------------------------- */

/* What the shortest entry that s[0..n) begins with maps to; NULL if there is none. The trie is a
 * Darts-clone double array: bits 0-7 and 31 of a unit are the label, bit 8 says that a value hangs
 * on it, bits 10-30 (shifted left by 8 where bit 9 is set) are the offset to the children. A step
 * that leaves the array, and a value that is no short string, count as no entry. */
static const char *map_prefix(const struct dpk_tokenizer *t, const char *s, size_t n,
                              size_t *length) {
    uint32_t node = 0, unit = dpk_load32(t->charsmap_trie);
    node ^= unit >> 10 << ((unit & 0x200) >> 6);
    for (size_t i = 0; i < n && s[i]; i++) {
        node ^= (uint8_t)s[i];
        if (node >= t->n_trie) return NULL;
        unit = dpk_load32(t->charsmap_trie + 4 * (size_t)node);
        if ((unit & 0x800000ff) != (uint8_t)s[i]) return NULL;
        node ^= unit >> 10 << ((unit & 0x200) >> 6);
        if (!(unit & 0x100)) continue;
        if (node >= t->n_trie) return NULL;
        const uint32_t value =
            dpk_load32(t->charsmap_trie + 4 * (size_t)node) & UINT32_C(0x7fffffff);
        if (value >= t->charsmap_text_bytes) return NULL;
        const char *text = (const char *)t->charsmap_text + value;
        if (((uint8_t)text[0] & 0xc0) == 0x80) return NULL;
        *length = strnlen(text, DPK_TOK_MAX_MAPPING + 1);
        return *length <= DPK_TOK_MAX_MAPPING ? text : NULL;
    }
    return NULL;
}

void dpk_unigram_normalize(struct dpk_tok_run_state *r, const char *text, size_t n,
                           struct dpk_bytes *out) {
    const struct dpk_tokenizer *t = r->t;
    r->codes.n = 0;
    dpk_codes_add_utf8(&r->codes, text, n);
    if (r->codes.failed) r->failed = true;
    for (size_t i = 0, at = 0; i < r->codes.n && !r->failed;) {
        size_t codes = dpk_unicode_cluster(&t->unicode, r->codes.v + i, r->codes.n - i);
        size_t bytes = 0, length, m;
        for (size_t k = 0; k < codes; k++) {
            dpk_utf8_decode(text + at + bytes, n - at - bytes, &length);
            bytes += length;
        }
        /* A short cluster is mapped as a whole, by whatever entry it begins with. */
        const char *to = bytes < 6 ? map_prefix(t, text + at, bytes, &m) : NULL;
        if (to) {
            dpk_bytes_add(out, to, m);
        } else {
            for (size_t k = 0; k < bytes; k += length) {
                dpk_utf8_decode(text + at + k, bytes - k, &length);
                to = map_prefix(t, text + at + k, length, &m);
                dpk_bytes_add(out, to ? to : text + at + k, to ? m : length);
            }
        }
        i += codes;
        at += bytes;
    }
}

/* ---- Segmentation
 * ----------------------------------------------------------------------------- */

struct node {
    double score;   /* of the best segmentation that ends here */
    uint32_t start; /* where its last piece begins; UINT32_MAX: none ends here */
    uint32_t id;
};

struct search {
    const struct dpk_tokenizer *t;
    struct node *nodes; /* [bytes + 1] */
    size_t at, char_bytes;
    bool whole_char; /* a piece is exactly the character at `at` */
};

static void relax(struct search *s, size_t end, double score, uint32_t id) {
    struct node *node = &s->nodes[end];
    score += s->nodes[s->at].score;
    if (node->start != UINT32_MAX && !(score > node->score)) return;
    node->score = score;
    node->start = (uint32_t)s->at;
    node->id = id;
}

static void try_piece(void *arg, uint32_t piece, size_t length) {
    struct search *s = arg;
    float score;
    memcpy(&score, s->t->pieces.records + 8 * (size_t)piece + 4, sizeof score);
    relax(s, s->at + length, score, dpk_tok_id(&s->t->pieces, piece));
    if (length == s->char_bytes) s->whole_char = true;
}

/* Emit the tokens of one word, n > 0 bytes. */
static void encode_word(struct dpk_tok_run_state *r, const char *word, size_t n) {
    const struct dpk_tokenizer *t = r->t;
    struct node *nodes = dpk_tok_scratch(r, (n + 1) * (sizeof *nodes + sizeof(uint32_t)));
    if (!nodes) return;
    uint32_t *ids = (uint32_t *)(void *)(nodes + n + 1); /* from the last piece to the first */
    struct search s = {.t = t, .nodes = nodes};
    for (size_t i = 0; i <= n; i++) nodes[i] = (struct node){.start = UINT32_MAX};
    while (s.at < n) {
        size_t longest;
        dpk_utf8_decode(word + s.at, n - s.at, &s.char_bytes);
        s.whole_char = false;
        dpk_tok_match(&t->pieces, word + s.at, n - s.at, &longest, try_piece, &s);
        if (!s.whole_char) relax(&s, s.at + s.char_bytes, t->unknown_score, t->h.unknown_id);
        s.at += s.char_bytes;
    }
    size_t n_ids = 0;
    for (size_t end = n; end > 0; end = nodes[end].start) {
        /* Unknown neighbours become one token. */
        bool fused = n_ids && nodes[end].id == t->h.unknown_id && ids[n_ids - 1] == nodes[end].id;
        if (!fused) ids[n_ids++] = nodes[end].id;
    }
    while (n_ids > 0) dpk_tok_emit(r, ids[--n_ids]);
}

/* A word between white space, to which U+2581 has been put: it is cut before each U+2581. */
static void encode_pieces(struct dpk_tok_run_state *r, const char *word, size_t n) {
    for (size_t at = 0, end; at < n && !r->failed; at = end) {
        end = at + 1;
        while (end < n &&
               !(n - end >= METASPACE_BYTES && memcmp(word + end, METASPACE, METASPACE_BYTES) == 0))
            end++;
        encode_word(r, word + at, end - at);
    }
}

void dpk_unigram_encode(struct dpk_tok_run_state *r, const char *text, size_t n) {
    size_t at = 0, length;
    while (at < n && !r->failed) {
        size_t end = at;
        while (end < n) {
            uint32_t code = dpk_utf8_decode(text + end, n - end, &length);
            if (dpk_unicode_class(&r->t->unicode, code) & DPK_TOK_SPACE) break;
            end += length;
        }
        if (end == at) { /* white space */
            at += length;
            continue;
        }
        r->word.n = 0;
        if (end - at < METASPACE_BYTES || memcmp(text + at, METASPACE, METASPACE_BYTES) != 0)
            dpk_bytes_add(&r->word, METASPACE, METASPACE_BYTES);
        dpk_bytes_add(&r->word, text + at, end - at);
        if (r->word.failed) r->failed = true;
        if (!r->failed) encode_pieces(r, r->word.v, r->word.n);
        at = end;
    }
}
