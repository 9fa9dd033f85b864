/* Inside the packing of tokenizers: bytes being written, words being collected. */
#ifndef DPK_PACK_TOKENIZER_IMPL_H
#define DPK_PACK_TOKENIZER_IMPL_H

#include "pack_tokenizer.h"

#include <cjson/cJSON.h>

struct dpk_pack_bytes {
    uint8_t *v;
    size_t n, cap;
};
int dpk_pack_put(struct dpk_pack_bytes *b, const void *v, size_t n, dpk_error *err);
int dpk_pack_put32(struct dpk_pack_bytes *b, uint32_t v, dpk_error *err);

/* A string with what the tokenizer knows of it. The string is borrowed. */
struct dpk_pack_word {
    const char *s;
    uint32_t n, id;
    uint32_t flags; /* specials: enum dpk_tok_special_flags */
    float score;    /* pieces */
};
struct dpk_pack_words {
    struct dpk_pack_word *v;
    size_t n, cap;
};
int dpk_pack_word_add(struct dpk_pack_words *w, const struct dpk_pack_word *word, dpk_error *err);
/* Bytewise by content. */
int dpk_pack_word_compare(const void *a, const void *b);
/* In words sorted so; NULL if absent. */
const struct dpk_pack_word *dpk_pack_word_find(const struct dpk_pack_words *w, const char *s);

/* The parsed JSON files of a tokenizer; NULL where there is no such file. */
struct dpk_pack_json {
    cJSON *config, *special_tokens, *added_tokens, *tokenizer;
};
int dpk_pack_json_read(struct dpk_pack_json *j, const struct dpk_pack_tokenizer *src,
                       dpk_error *err);
void dpk_pack_json_free(struct dpk_pack_json *j);

/* "bos_token", "eos_token", "unk_token" or "pad_token"; fallback where no file names it. */
const char *dpk_pack_named_token(const struct dpk_pack_json *j, const char *key,
                                 const char *fallback);

/* All tokens that are found in the text before the model runs, as transformers 5 adds them: the
 * named ones, additional_special_tokens, added_tokens_decoder (or added_tokens.json),
 * tokenizer.json. vocab, sorted by content, gives their ids. clip: bos_token counts, and
 * normalised contents are lower case. Sorted as the blob wants them. */
int dpk_pack_specials(const struct dpk_pack_json *j, const struct dpk_pack_words *vocab, bool clip,
                      const char *name, struct dpk_pack_words *out, dpk_error *err);

/* Append runs, lower case and decompositions; counts into h. classes: the enum dpk_tok_class
 * bits that the runs tell apart. */
struct dpk_pack_unicode {
    int classes;
    bool combining, clusters, lower, decompositions;
};
int dpk_pack_unicode_tables(const struct dpk_pack_unicode *want, struct dpk_tok_header *h,
                            struct dpk_pack_bytes *out, dpk_error *err);

/* Append everything after the Unicode tables. */
int dpk_pack_clip(const struct dpk_pack_tokenizer *src, const struct dpk_pack_json *j,
                  struct dpk_tok_header *h, struct dpk_pack_bytes *out, dpk_error *err);
int dpk_pack_t5(const struct dpk_pack_tokenizer *src, const struct dpk_pack_json *j,
                struct dpk_tok_header *h, struct dpk_pack_bytes *out, dpk_error *err);

/* Specials' records: id and length, flags. */
int dpk_pack_put_specials(const struct dpk_pack_words *specials, struct dpk_tok_header *h,
                          struct dpk_pack_bytes *out, dpk_error *err);
/* Contents of both (pieces may be NULL), padded. */
int dpk_pack_put_texts(const struct dpk_pack_words *specials, const struct dpk_pack_words *pieces,
                       struct dpk_tok_header *h, struct dpk_pack_bytes *out, dpk_error *err);

#endif
