/* Tokenizer blobs: header, byte buffers, and the order of things. */
#include "pack_tokenizer_impl.h"

#include "../formats/fail.h"
#include "../formats/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Buffers
 * ---------------------------------------------------------------------------------- */

int dpk_pack_put(struct dpk_pack_bytes *b, const void *v, size_t n, dpk_error *err) {
    if (n > b->cap - b->n) {
        size_t cap = b->cap ? b->cap : 4096;
        while (cap - b->n < n && cap < SIZE_MAX / 4) cap *= 2;
        void *p = realloc(b->v, cap);
        if (!p) return dpk_error_set(err, DPK_ENOMEM, "tokenizer: out of memory");
        b->v = p;
        b->cap = cap;
    }
    if (n) memcpy(b->v + b->n, v, n);
    b->n += n;
    return DPK_OK;
}

int dpk_pack_put32(struct dpk_pack_bytes *b, uint32_t v, dpk_error *err) {
    return dpk_pack_put(b, &v, sizeof v, err);
}

int dpk_pack_word_add(struct dpk_pack_words *w, const struct dpk_pack_word *word, dpk_error *err) {
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 64;
        void *p = realloc(w->v, cap * sizeof *w->v);
        if (!p) return dpk_error_set(err, DPK_ENOMEM, "tokenizer: out of memory");
        w->v = p;
        w->cap = cap;
    }
    w->v[w->n++] = *word;
    return DPK_OK;
}

int dpk_pack_word_compare(const void *a, const void *b) {
    const struct dpk_pack_word *x = a, *y = b;
    int c = memcmp(x->s, y->s, x->n < y->n ? x->n : y->n);
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

const struct dpk_pack_word *dpk_pack_word_find(const struct dpk_pack_words *w, const char *s) {
    struct dpk_pack_word key = {.s = s, .n = (uint32_t)strlen(s)};
    if (w->n == 0) return NULL;
    return bsearch(&key, w->v, w->n, sizeof *w->v, dpk_pack_word_compare);
}

int dpk_pack_put_specials(const struct dpk_pack_words *specials, struct dpk_tok_header *h,
                          struct dpk_pack_bytes *out, dpk_error *err) {
    int rc = DPK_OK;
    h->n_specials = (uint32_t)specials->n;
    for (size_t i = 0; i < specials->n; i++) {
        const struct dpk_pack_word *w = &specials->v[i];
        DPK_TRY(dpk_pack_put32(out, w->id | w->n << 24, err));
        DPK_TRY(dpk_pack_put32(out, w->flags, err));
    }
done:
    return rc;
}

static int put_contents(const struct dpk_pack_words *w, struct dpk_pack_bytes *out,
                        dpk_error *err) {
    int rc = DPK_OK;
    for (size_t i = 0; i < w->n; i++) DPK_TRY(dpk_pack_put(out, w->v[i].s, w->v[i].n, err));
done:
    return rc;
}

int dpk_pack_put_texts(const struct dpk_pack_words *specials, const struct dpk_pack_words *pieces,
                       struct dpk_tok_header *h, struct dpk_pack_bytes *out, dpk_error *err) {
    int rc = DPK_OK;
    const size_t before = out->n;
    DPK_TRY(put_contents(specials, out, err));
    if (pieces) DPK_TRY(put_contents(pieces, out, err));
    if (out->n - before > UINT32_MAX) DPK_FAIL(err, DPK_EUNSUPPORTED, "tokenizer: over 4 GiB");
    h->text_bytes = (uint32_t)(out->n - before);
    while ((out->n - before) % 4) DPK_TRY(dpk_pack_put(out, "", 1, err));
done:
    return rc;
}

/* ---- JSON files
 * ------------------------------------------------------------------------------- */

static int read_json(cJSON **json, const struct dpk_pack_tokenizer *src, const char *file,
                     const struct dpk_pack_text *text, dpk_error *err) {
    char name[256];
    *json = NULL;
    if (!text->data) return DPK_OK;
    snprintf(name, sizeof name, "%s/%s", src->name, file);
    int rc = dpk_json_parse(json, name, text->data, text->n_bytes, err);
    if (rc == DPK_OK && !cJSON_IsObject(*json))
        rc = dpk_error_set(err, DPK_EFORMAT, "%s: want a JSON object", name);
    return rc;
}

int dpk_pack_json_read(struct dpk_pack_json *j, const struct dpk_pack_tokenizer *src,
                       dpk_error *err) {
    int rc = DPK_OK;
    memset(j, 0, sizeof *j);
    DPK_TRY(read_json(&j->config, src, "tokenizer_config.json", &src->config, err));
    DPK_TRY(
        read_json(&j->special_tokens, src, "special_tokens_map.json", &src->special_tokens, err));
    DPK_TRY(read_json(&j->added_tokens, src, "added_tokens.json", &src->added_tokens, err));
    bool whole = src->kind == DPK_TOKENIZER_T5 ? src->spiece.data != NULL
                                               : src->vocab.data && src->merges.data;
    if (!whole) DPK_TRY(read_json(&j->tokenizer, src, "tokenizer.json", &src->tokenizer, err));
done:
    if (rc) dpk_pack_json_free(j);
    return rc;
}

void dpk_pack_json_free(struct dpk_pack_json *j) {
    cJSON_Delete(j->config);
    cJSON_Delete(j->special_tokens);
    cJSON_Delete(j->added_tokens);
    cJSON_Delete(j->tokenizer);
    memset(j, 0, sizeof *j);
}

/* ---- The blob
 * --------------------------------------------------------------------------------- */

static int set_max_length(const struct dpk_pack_tokenizer *src, const struct dpk_pack_json *j,
                          struct dpk_tok_header *h, dpk_error *err) {
    double n = src->max_length;
    if (n == 0) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(j->config, "model_max_length");
        if (!cJSON_IsNumber(v))
            return dpk_error_set(err, DPK_EFORMAT,
                                 "%s/tokenizer_config.json: model_max_length is missing",
                                 src->name);
        n = v->valuedouble;
    }
    if (!(n >= 2 && n <= DPK_TOK_MAX_LENGTH))
        return dpk_error_set(err, DPK_EUNSUPPORTED, "%s: maximum length is %.17g, want 2..%d",
                             src->name, n, DPK_TOK_MAX_LENGTH);
    const cJSON *own = cJSON_GetObjectItemCaseSensitive(j->config, "model_max_length");
    if (src->kind == DPK_TOKENIZER_CLIP && cJSON_IsNumber(own) && own->valuedouble != n)
        return dpk_error_set(err, DPK_EUNSUPPORTED,
                             "%s/tokenizer_config.json: model_max_length is %.17g, the encoder "
                             "takes %.17g tokens: want the same",
                             src->name, own->valuedouble, n);
    h->max_length = (uint32_t)n;
    return DPK_OK;
}

/* Switches that would give other ids. */
static int check_switches(const struct dpk_pack_tokenizer *src, const struct dpk_pack_json *j,
                          dpk_error *err) {
    static const char *const sides[] = {"padding_side", "truncation_side"};
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
        const cJSON *side = cJSON_GetObjectItemCaseSensitive(j->config, sides[i]);
        if (cJSON_IsString(side) && strcmp(side->valuestring, "right") != 0)
            return dpk_error_set(err, DPK_EUNSUPPORTED,
                                 "%s/tokenizer_config.json: %s is %.40s, supported: right",
                                 src->name, sides[i], side->valuestring);
    }
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(j->config, "split_special_tokens")))
        return dpk_error_set(err, DPK_EUNSUPPORTED,
                             "%s/tokenizer_config.json: split_special_tokens is true, supported: "
                             "false",
                             src->name);
    return DPK_OK;
}

int dpk_pack_tokenizer(const struct dpk_pack_tokenizer *src, void **blob, size_t *n_bytes,
                       dpk_error *err) {
    const bool t5 = src->kind == DPK_TOKENIZER_T5;
    int rc = DPK_OK;
    struct dpk_pack_json json = {0};
    struct dpk_pack_bytes out = {0};
    struct dpk_tok_header h = {
        .magic = DPK_TOK_MAGIC, .version = DPK_TOK_VERSION, .kind = src->kind};
    /* \w is asked for only where a special token must stand alone: T5's sentinels. */
    const struct dpk_pack_unicode clip_tables = {.classes = DPK_TOK_LETTER | DPK_TOK_NUMBER |
                                                            DPK_TOK_SPACE | DPK_TOK_WORD,
                                                 .combining = true,
                                                 .lower = true,
                                                 .decompositions = true};
    const struct dpk_pack_unicode t5_tables = {
        .classes = DPK_TOK_SPACE | DPK_TOK_WORD |
                   (src->lower_strip ? DPK_TOK_CASED | DPK_TOK_IGNORABLE | DPK_TOK_STRIP : 0),
        .clusters = true,
        .lower = src->lower_strip};
    *blob = NULL;
    *n_bytes = 0;
    if (src->kind != DPK_TOKENIZER_CLIP && !t5)
        DPK_FAIL(err, DPK_EARG, "%s: tokenizer kind %u", src->name, src->kind);
    if (src->lower_strip && !t5)
        DPK_FAIL(err, DPK_EARG, "%s: lower_strip is for T5 only", src->name);
    DPK_TRY(dpk_pack_json_read(&json, src, err));
    DPK_TRY(set_max_length(src, &json, &h, err));
    DPK_TRY(check_switches(src, &json, err));
    h.flags = src->lower_strip ? DPK_TOK_LOWER_STRIP : 0;
    DPK_TRY(dpk_pack_put(&out, &h, sizeof h, err));
    DPK_TRY(dpk_pack_unicode_tables(t5 ? &t5_tables : &clip_tables, &h, &out, err));
    if (t5) DPK_TRY(dpk_pack_t5(src, &json, &h, &out, err));
    else DPK_TRY(dpk_pack_clip(src, &json, &h, &out, err));
    memcpy(out.v, &h, sizeof h);
    *blob = out.v;
    *n_bytes = out.n;
    out.v = NULL;
done:
    free(out.v);
    dpk_pack_json_free(&json);
    return rc;
}
