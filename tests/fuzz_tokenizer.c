/* Tokenizer tables and prompts. Byte 0: CLIP or T5 (bit 0), a raw blob (bit 1); byte 1: length of
 * the prompt, which follows; then edits of a valid blob (fuzz_edit: part 0 is the header, the other
 * seven are the rest in equal pieces), or the blob. */
#include "support_fuzz.h"

#include "../convert/pack_tokenizer.h"
#include "../runtime/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 8 };
struct base {
    uint8_t *blob;
    size_t n_bytes, begin[PARTS + 1];
};

static struct dpk_pack_text load(const char *folder, const char *name) {
    char path[256];
    struct dpk_pack_text t;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    t.data = fuzz_load(path, &t.n_bytes);
    return t;
}

static struct base make_base(uint32_t kind) {
    struct base b = {0};
    struct dpk_pack_tokenizer src = {.name = "tokenizer", .kind = kind};
    dpk_error err;
    const char *folder = kind == DPK_TOKENIZER_T5 ? "tests/data/tiny-pixart/tokenizer"
                                                  : "tests/data/tiny-sd15/tokenizer";
    void *blob = NULL;
    src.config = load(folder, "tokenizer_config.json");
    src.special_tokens = load(folder, "special_tokens_map.json");
    if (kind == DPK_TOKENIZER_T5) {
        src.added_tokens = load(folder, "added_tokens.json");
        src.spiece = load(folder, "spiece.model");
        src.max_length = 120;
        src.lower_strip = true;
    } else {
        src.vocab = load(folder, "vocab.json");
        src.merges = load(folder, "merges.txt");
    }
    if (dpk_pack_tokenizer(&src, &blob, &b.n_bytes, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(2);
    }
    free((void *)src.config.data), free((void *)src.special_tokens.data);
    free((void *)src.added_tokens.data), free((void *)src.spiece.data);
    free((void *)src.vocab.data), free((void *)src.merges.data);
    b.blob = blob;
    size_t head = sizeof(struct dpk_tok_header);
    for (size_t i = 1; i <= PARTS; i++)
        b.begin[i] = head + (b.n_bytes - head) * (i - 1) / (PARTS - 1);
    return b;
}

static void encode(const struct dpk_tokenizer *t, const char *prompt, size_t n) {
    size_t length = dpk_tokenizer_max_length(t), n_tokens = 0, alone = 0;
    uint32_t limit = dpk_tokenizer_id_limit(t);
    int32_t *ids = malloc(length * sizeof *ids), *mask = malloc(length * sizeof *mask), some[8];
    dpk_error err;
    if (!ids || !mask) abort();
    int rc = dpk_tokenizer_encode(t, prompt, n, ids, mask, &n_tokens, &err);
    fuzz_check_error(rc, &err);
    for (size_t i = 0; rc == DPK_OK && i < length; i++) {
        fuzz_require(ids[i] >= 0 && (uint32_t)ids[i] < limit, "ids are below the limit");
        fuzz_require(mask[i] == (i < n_tokens), "the mask covers the tokens");
    }
    int again = dpk_tokenizer_ids(t, prompt, n, some, 8, &alone, &err);
    fuzz_check_error(again, &err);
    fuzz_require(again == rc, "both ways agree about the prompt");
    fuzz_require(rc != DPK_OK || alone <= n_tokens, "start and end add tokens");
    free(ids);
    free(mask);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static struct base bases[2];
    struct fuzz_bytes in = {data, n_bytes};
    if (!bases[0].blob) {
        bases[0] = make_base(DPK_TOKENIZER_CLIP);
        bases[1] = make_base(DPK_TOKENIZER_T5);
    }
    unsigned mode = (unsigned)fuzz_take(&in, 1);
    size_t n = (size_t)fuzz_take(&in, 1);
    const struct base *b = &bases[mode & 1];
    if (n > in.n) n = in.n;
    const char *prompt = (const char *)in.at;
    in.at += n, in.n -= n;
    size_t size = mode & 2 ? in.n : b->n_bytes;
    uint8_t *blob = malloc(size ? size : 1);
    if (!blob) return 0;
    memcpy(blob, mode & 2 ? in.at : b->blob, size);
    if (!(mode & 2)) fuzz_edit(blob, b->begin, PARTS, &in);

    struct dpk_tokenizer *t = NULL;
    dpk_error err;
    uint32_t kind = mode & 1 ? DPK_TOKENIZER_T5 : DPK_TOKENIZER_CLIP;
    int rc = dpk_tokenizer_open(&t, kind, blob, size, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) encode(t, prompt, n);
    dpk_tokenizer_free(t);
    free(blob);
    return 0;
}
