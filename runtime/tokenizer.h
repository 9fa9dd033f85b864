/* Prompts to token ids, from the tables in a .dpk file (FORMAT.md, "Tokenizer blobs"). The
 * result equals that of the Hugging Face fast tokenizers. */
#ifndef DPK_TOKENIZER_H
#define DPK_TOKENIZER_H

#include "../formats/dpk_error.h"

#include <stddef.h>
#include <stdint.h>

struct dpk_tokenizer;

/* Check every table of the blob and make a tokenizer of it. kind: enum dpk_tokenizer_kind. The
 * blob is not copied and must stay as it is until dpk_tokenizer_free; it need not be aligned.
 * The tokenizer is read-only afterwards: any number of threads may encode with it. Errors:
 * DPK_EFORMAT (the blob breaks a rule), DPK_EUNSUPPORTED (unknown kind or blob version),
 * DPK_ENOMEM. */
int dpk_tokenizer_open(struct dpk_tokenizer **t, uint32_t kind, const void *blob, size_t n_bytes,
                       dpk_error *err);
void dpk_tokenizer_free(struct dpk_tokenizer *t); /* NULL is fine */

/* Ids of a prompt as the model takes them. */
size_t dpk_tokenizer_max_length(const struct dpk_tokenizer *t);

/* Every id that encode gives is below this. Compare it with the rows of the embedding table. */
uint32_t dpk_tokenizer_id_limit(const struct dpk_tokenizer *t);

/* Encode `n_bytes` of UTF-8 (NUL bytes are text). ids [max_length]: the tokens with the model's
 * start and end tokens, cut to max_length (the end token stays), padded. mask [max_length] or
 * NULL: 1 for a token, 0 for padding. n_tokens or NULL: how many tokens the whole prompt has,
 * start and end included; more than max_length means that it was cut. Errors: DPK_EARG (not
 * UTF-8: names the byte; over 1 MiB), DPK_ENOMEM. */
int dpk_tokenizer_encode(const struct dpk_tokenizer *t, const char *utf8, size_t n_bytes,
                         int32_t *ids, int32_t *mask, size_t *n_tokens, dpk_error *err);

/* The tokens of a text alone, without start, end and padding: the first `cap` into ids [cap];
 * *n_tokens: how many there are. Errors as dpk_tokenizer_encode. */
int dpk_tokenizer_ids(const struct dpk_tokenizer *t, const char *utf8, size_t n_bytes, int32_t *ids,
                      size_t cap, size_t *n_tokens, dpk_error *err);

/* A row [max_length] as the model takes it, of n tokens (they must fit): start token, if there is
 * one, tokens, end token, padding. Returns where the tokens begin. */
size_t dpk_tokenizer_row(const struct dpk_tokenizer *t, const int32_t *tokens, size_t n,
                         int32_t *ids);

#endif
