#include "support_tokens.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct dpk_pack_text take(struct folder *f, const char *path, const char *name) {
    char full[512];
    struct dpk_pack_text t = {0};
    snprintf(full, sizeof full, "%s/%s", path, name);
    FILE *file = fopen(full, "rb");
    if (!file) return t;
    fseek(file, 0, SEEK_END);
    t.n_bytes = (size_t)ftell(file);
    rewind(file);
    t.data = f->data[f->n++] = malloc(t.n_bytes + 1);
    assert_non_null(t.data);
    assert_int_equal(fread(f->data[f->n - 1], 1, t.n_bytes, file), t.n_bytes);
    fclose(file);
    return t;
}

void folder_open(struct folder *f, uint32_t kind, const char *path, uint32_t max_length) {
    memset(f, 0, sizeof *f);
    f->src.name = path;
    f->src.kind = kind;
    f->src.config = take(f, path, "tokenizer_config.json");
    f->src.special_tokens = take(f, path, "special_tokens_map.json");
    f->src.added_tokens = take(f, path, "added_tokens.json");
    f->src.vocab = take(f, path, "vocab.json");
    f->src.merges = take(f, path, "merges.txt");
    f->src.spiece = take(f, path, "spiece.model");
    f->src.tokenizer = take(f, path, "tokenizer.json");
    f->src.max_length = max_length;
}

void folder_close(struct folder *f) {
    while (f->n > 0) free(f->data[--f->n]);
}

struct packed pack_folder(uint32_t kind, const char *path, uint32_t max_length, bool lower) {
    struct folder f;
    struct packed p = {0};
    dpk_error err = {0};
    folder_open(&f, kind, path, max_length);
    f.src.lower_strip = lower;
    if (dpk_pack_tokenizer(&f.src, &p.blob, &p.n_bytes, &err)) fail_msg("%s", err.msg);
    folder_close(&f);
    if (dpk_tokenizer_open(&p.t, kind, p.blob, p.n_bytes, &err)) fail_msg("%s", err.msg);
    return p;
}

void packed_free(struct packed *p) {
    dpk_tokenizer_free(p->t);
    free(p->blob);
}
