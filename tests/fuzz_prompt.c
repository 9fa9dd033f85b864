/* Prompts: weights, tokens, chunks. Byte 0: CLIP or T5 (bit 0), brackets are weights (bit 1), chunks
 * less one (bits 2 and 3); then the prompt. */
#include "support_fuzz.h"
#include "support_tokens.h"

#include "../runtime/prompt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void check_parts(const struct dpk_prompt *p, size_t n_bytes, bool weighted) {
    size_t at = 0;
    for (size_t i = 0; i < p->n_parts; i++) {
        const struct dpk_prompt_part *part = &p->parts[i];
        fuzz_require(part->begin == at && part->bytes, "parts follow each other");
        fuzz_require(isfinite((float)part->weight), "a weight is a number");
        fuzz_require(i == 0 || part->weight != part[-1].weight, "neighbours differ");
        at += part->bytes;
    }
    fuzz_require(at <= n_bytes && (weighted || at == n_bytes), "the text is that of the prompt");
}

static void encode(const struct dpk_prompt *p, const struct dpk_tokenizer *t, uint32_t n_chunks) {
    const size_t n = n_chunks * dpk_tokenizer_max_length(t);
    int32_t *ids = malloc(n * sizeof *ids);
    float *weights = malloc(n * sizeof *weights), context[12] = {1, -2, 3};
    size_t n_tokens = 0;
    dpk_error err;
    fuzz_require(ids && weights, "memory");
    int rc = dpk_prompt_encode(p, t, n_chunks, ids, weights, &err);
    fuzz_check_error(rc, &err);
    int counted = dpk_prompt_count(p, t, &n_tokens, &err);
    fuzz_check_error(counted, &err);
    fuzz_require(rc == DPK_OK || counted == rc, "both refuse a prompt");
    for (size_t i = 0; rc == DPK_OK && i < n; i++) {
        fuzz_require(ids[i] >= 0 && (uint32_t)ids[i] < dpk_tokenizer_id_limit(t), "ids");
        fuzz_require(isfinite(weights[i]), "weights");
    }
    if (rc == DPK_OK) dpk_prompt_weigh(context, weights, 4, 3);
    if (counted == DPK_OK)
        fuzz_require(dpk_prompt_chunks(t, n_tokens) * dpk_prompt_room(t) >= n_tokens,
                     "the chunks hold the tokens");
    free(ids);
    free(weights);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static struct packed tokenizers[2];
    if (!tokenizers[0].t) {
        tokenizers[0] = pack_folder(DPK_TOKENIZER_CLIP, "tests/data/tiny-sd15/tokenizer", 0, false);
        tokenizers[1] =
            pack_folder(DPK_TOKENIZER_T5, "tests/data/tiny-pixart/tokenizer", 120, true);
    }
    struct fuzz_bytes in = {data, n_bytes};
    const unsigned mode = (unsigned)fuzz_take(&in, 1);
    const bool weighted = (mode & 2) != 0;
    char *text = malloc(in.n + 1);
    struct dpk_prompt p;
    dpk_error err;
    fuzz_require(text != NULL, "memory");
    memcpy(text, in.at, in.n);
    text[in.n] = 0;
    int rc = dpk_prompt_parse(&p, text, weighted, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        check_parts(&p, strlen(text), weighted);
        encode(&p, tokenizers[mode & 1].t, (mode >> 2 & 3) + 1);
    }
    dpk_prompt_free(&p);
    free(text);
    return 0;
}
