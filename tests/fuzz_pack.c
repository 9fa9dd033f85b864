/* Tokenizer files to tables. Byte 0 chooses a kind and one of its files; the rest is what that file
 * says instead. Tables that come out are opened, and encode a prompt. */
#include "support_fuzz.h"
#include "support_tokens.h"

#include <stdlib.h>
#include <string.h>

enum { N_FILES = 7 };

/* The files of a tokenizer, in this order. */
static struct dpk_pack_text *file_of(struct dpk_pack_tokenizer *t, unsigned i) {
    struct dpk_pack_text *const all[N_FILES] = {&t->config,   &t->special_tokens, &t->added_tokens,
                                                &t->vocab,    &t->merges,         &t->spiece,
                                                &t->tokenizer};
    return all[i % N_FILES];
}

static void use(const struct dpk_pack_tokenizer *src, const void *blob, size_t n_bytes) {
    static const char prompt[] = "A photo, of the \xc3\xa9t\xc3\xa9 </s> <extra_id_0> 123!";
    struct dpk_tokenizer *t = NULL;
    dpk_error err;
    int rc = dpk_tokenizer_open(&t, src->kind, blob, n_bytes, &err);
    fuzz_check_error(rc, &err);
    fuzz_require(rc != DPK_EFORMAT, "what was packed keeps the rules");
    if (rc == DPK_OK) {
        size_t length = dpk_tokenizer_max_length(t), n;
        int32_t *ids = malloc(length * sizeof *ids);
        fuzz_require(ids != NULL, "memory");
        rc = dpk_tokenizer_encode(t, prompt, strlen(prompt), ids, NULL, &n, &err);
        fuzz_check_error(rc, &err);
        free(ids);
    }
    dpk_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static struct folder folders[2];
    if (!folders[0].n) {
        folder_open(&folders[0], DPK_TOKENIZER_CLIP, "tests/data/tiny-sd15/tokenizer", 0);
        folder_open(&folders[1], DPK_TOKENIZER_T5, "tests/data/tiny-pixart/tokenizer", 120);
        size_t n;
        const uint8_t *small = fuzz_load("tests/corpus/pack/seed_t5_spiece_model", &n);
        folders[1].src.spiece = (struct dpk_pack_text){small + 1, n - 1};
    }
    if (n_bytes == 0) return 0;
    struct dpk_pack_tokenizer src = folders[data[0] & 1].src;
    struct dpk_pack_text *file = file_of(&src, data[0] >> 1);
    /* Not the last one, which counts only without these. */
    if (file == &src.tokenizer) src.vocab = src.merges = src.spiece = (struct dpk_pack_text){0};
    *file = (struct dpk_pack_text){data + 1, n_bytes - 1};
    src.lower_strip = src.kind == DPK_TOKENIZER_T5;
    void *blob = NULL;
    size_t n;
    dpk_error err;
    int rc = dpk_pack_tokenizer(&src, &blob, &n, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) use(&src, blob, n);
    free(blob);
    return 0;
}
