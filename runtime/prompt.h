/* Prompts to ids where one row of a text encoder is not all: prompts of several chunks, and prompts
 * whose words have weights. */
#ifndef DPK_PROMPT_H
#define DPK_PROMPT_H

#include "tokenizer.h"

#include <stdbool.h>
#include <stdint.h>

/* A part of a prompt whose words have one weight. */
struct dpk_prompt_part {
    size_t begin, bytes; /* in the text */
    double weight;
};

struct dpk_prompt {
    char *text; /* owned, not NUL-terminated: without brackets and weights */
    size_t n_parts;
    struct dpk_prompt_part *parts; /* [n_parts], owned; neighbours differ in weight */
};

/* weighted: take brackets for weights, as the web user interfaces do ("(a)" 1.1, "[a]" 1/1.1,
 * "(a:1.3)" 1.3, nested ones multiplied, an open one reaches the end, a closing one without an
 * opening is text). Else all is one part of weight 1. Errors: DPK_EARG (a weight that no float can
 * hold), DPK_ENOMEM. */
int dpk_prompt_parse(struct dpk_prompt *p, const char *text, bool weighted, dpk_error *err);
void dpk_prompt_free(struct dpk_prompt *p); /* also of a zeroed struct */

/* Tokens of all parts, without start and end. Errors as dpk_tokenizer_encode. */
int dpk_prompt_count(const struct dpk_prompt *p, const struct dpk_tokenizer *t, size_t *n_tokens,
                     dpk_error *err);

/* Tokens of a chunk: what start and end leave of a row. */
size_t dpk_prompt_room(const struct dpk_tokenizer *t);

/* Chunks that hold that many tokens: 1 for none. */
uint32_t dpk_prompt_chunks(const struct dpk_tokenizer *t, size_t n_tokens);

/* ids [n_chunks,max_length]: each row a start token, its share of the tokens, an end token,
 * padding; tokens past the last chunk are left out. weights [n_chunks,max_length] or NULL: of each
 * token, 1 for start, end and padding. Takes memory. Errors as dpk_tokenizer_encode. */
int dpk_prompt_encode(const struct dpk_prompt *p, const struct dpk_tokenizer *t, uint32_t n_chunks,
                      int32_t *ids, float *weights, dpk_error *err);

/* context [length,width] of one chunk: every row times its weight, then all rows times the one
 * number that brings back the mean of all. */
void dpk_prompt_weigh(float *context, const float *weights, size_t length, size_t width);

#endif
