/* Tokenizer files of a model folder to the blob that the runtime reads (FORMAT.md, "Tokenizer
 * blobs"). */
#ifndef DPK_PACK_TOKENIZER_H
#define DPK_PACK_TOKENIZER_H

#include "../formats/dpk_error.h"
#include "../formats/tokenizer_blob.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A file's contents; data NULL: there is no such file. */
struct dpk_pack_text {
    const void *data;
    size_t n_bytes;
};

struct dpk_pack_tokenizer {
    const char *name;                    /* for messages: the folder, as "tokenizer_2" */
    uint32_t kind;                       /* enum dpk_tokenizer_kind */
    struct dpk_pack_text config;         /* tokenizer_config.json */
    struct dpk_pack_text special_tokens; /* special_tokens_map.json */
    struct dpk_pack_text added_tokens;   /* added_tokens.json */
    struct dpk_pack_text vocab, merges;  /* CLIP: vocab.json, merges.txt */
    struct dpk_pack_text spiece;         /* T5: spiece.model */
    struct dpk_pack_text
        tokenizer;       /* tokenizer.json; CLIP: read only where vocab or merges is missing */
    uint32_t max_length; /* 0: model_max_length of the config (PixArt: 120) */
    bool lower_strip;    /* T5: text.lower().strip() first, as PixArt's pipeline does */
};

/* *blob: malloc'ed, the caller frees it. The same input gives the same bytes.
 * Errors: DPK_EFORMAT (names the file and what is wrong in it), DPK_EUNSUPPORTED, DPK_ENOMEM. */
int dpk_pack_tokenizer(const struct dpk_pack_tokenizer *src, void **blob, size_t *n_bytes,
                       dpk_error *err);

#endif
