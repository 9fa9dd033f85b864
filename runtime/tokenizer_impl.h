/* Inside the tokenizers: an open blob, and the two models. Callers use tokenizer.h. */
#ifndef DPK_TOKENIZER_IMPL_H
#define DPK_TOKENIZER_IMPL_H

#include "tokenizer.h"
#include "unicode.h"

enum { DPK_TOK_MAX_TEXT = 1 << 20 }; /* bytes of a prompt */

/* Strings sorted bytewise, one after the other in the blob's text. */
struct dpk_tok_words {
    const uint8_t *records; /* 8 bytes each, id_length first */
    const uint8_t *text;    /* of the first */
    uint32_t *offset;       /* [n + 1], owned: where each begins in text */
    uint32_t n;
    uint32_t first[257]; /* words that begin with byte b: first[b] .. first[b + 1] */
};

struct dpk_tokenizer {
    struct dpk_tok_header h;
    uint32_t id_limit;
    struct dpk_unicode unicode;
    struct dpk_tok_words special[2]; /* matched in the raw text, in the normalised text */
    /* CLIP */
    const uint8_t *byte_ids; /* 256 ids of the bytes, 256 of the bytes that end a word */
    const uint8_t *merges;
    uint32_t *merge_table; /* owned: open addressing by (left, right), rank + 1; 0 is empty */
    uint32_t merge_mask;
    uint64_t merge_seed;
    /* T5 */
    struct dpk_tok_words pieces;
    double unknown_score;
    const uint8_t *charsmap_trie; /* Darts units */
    uint32_t n_trie;
    const uint8_t *charsmap_text; /* NUL-terminated strings */
    uint32_t charsmap_text_bytes;
};

/* What one encode call works with. */
struct dpk_tok_run_state {
    const struct dpk_tokenizer *t;
    int32_t *ids;
    size_t cap, n; /* ids kept, and counted */
    bool failed;   /* out of memory */
    struct dpk_codes codes, more;
    struct dpk_bytes word;
    void *nodes; /* of the model's search */
    size_t nodes_bytes;
};

void dpk_tok_emit(struct dpk_tok_run_state *r, uint32_t id);
/* A scratch array of n_bytes; NULL (and failed) without memory. Its contents do not last. */
void *dpk_tok_scratch(struct dpk_tok_run_state *r, size_t n_bytes);

/* The longest word that text[0..n) begins with: its number, *length its bytes; UINT32_MAX if none.
 * each (may be NULL) is called for every word that it begins with, the shortest first. */
uint32_t dpk_tok_match(const struct dpk_tok_words *w, const char *text, size_t n, size_t *length,
                       void (*each)(void *arg, uint32_t word, size_t length), void *arg);
static inline uint32_t dpk_tok_id(const struct dpk_tok_words *w, uint32_t word) {
    return dpk_load32(w->records + 8 * (size_t)word) & DPK_TOK_MAX_ID;
}

/* A model: check and prepare its tables; normalise a part of the text between special tokens;
 * cut the normalised text into words and emit their tokens. */
int dpk_bpe_open(struct dpk_tokenizer *t, dpk_error *err);
void dpk_bpe_normalize(struct dpk_tok_run_state *r, const char *text, size_t n,
                       struct dpk_bytes *out);
void dpk_bpe_encode(struct dpk_tok_run_state *r, const char *text, size_t n);
int dpk_unigram_open(struct dpk_tokenizer *t, dpk_error *err);
void dpk_unigram_normalize(struct dpk_tok_run_state *r, const char *text, size_t n,
                           struct dpk_bytes *out);
void dpk_unigram_encode(struct dpk_tok_run_state *r, const char *text, size_t n);

#endif
