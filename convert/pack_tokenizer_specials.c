/* Which tokens are looked for in the text itself, with which rules: what transformers 5 makes of
 * tokenizer_config.json, special_tokens_map.json and added_tokens.json (tokenization_utils_base.py,
 * _from_pretrained; tokenization_utils_tokenizers.py, TokenizersBackend.__init__). */
#include "pack_tokenizer_impl.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>

static const cJSON *item(const cJSON *object, const char *key) {
    return object ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

/* A token is a string or an object with "content". NULL: neither. */
static const char *content_of(const cJSON *v) {
    return cJSON_IsObject(v) ? cJSON_GetStringValue(item(v, "content")) : cJSON_GetStringValue(v);
}

/* special_tokens_map.json stands over tokenizer_config.json, unless that has
 * added_tokens_decoder. */
static const cJSON *lookup(const struct dpk_pack_json *j, const char *key) {
    const cJSON *v = NULL;
    if (!item(j->config, "added_tokens_decoder")) v = item(j->special_tokens, key);
    if (!v || cJSON_IsNull(v)) v = item(j->config, key);
    return v && !cJSON_IsNull(v) ? v : NULL;
}

const char *dpk_pack_named_token(const struct dpk_pack_json *j, const char *key,
                                 const char *fallback) {
    const cJSON *v = lookup(j, key);
    return v ? content_of(v) : fallback;
}

/* Entries of all tables together, also those that say the same again: each is looked for among all
 * that came before it. */
enum { MAX_SPECIALS = 20000 };

struct collect {
    const struct dpk_pack_words *vocab;
    const char *name;
    bool clip;
    size_t n_seen;
    struct dpk_pack_words *out;
    dpk_error *err;
};

static struct dpk_pack_word *find(struct dpk_pack_words *w, const char *s) {
    const size_t n = strlen(s);
    for (size_t i = 0; i < w->n; i++)
        if (w->v[i].n == n && memcmp(w->v[i].s, s, n) == 0) return &w->v[i];
    return NULL;
}

/* v: the token; plain: the flags of one given as a string. A later one of the same content stands
 * over an earlier one. id: -1 where the vocabulary says it. */
static int add(struct collect *c, const cJSON *v, const char *content, double id, uint32_t plain) {
    static const struct {
        const char *key;
        uint32_t flag;
    } flags[] = {{"single_word", DPK_TOK_SINGLE_WORD},
                 {"lstrip", DPK_TOK_LSTRIP},
                 {"rstrip", DPK_TOK_RSTRIP},
                 {"normalized", DPK_TOK_NORMALIZED}};
    const char *s = content ? content : content_of(v);
    if (!s || !*s)
        return dpk_error_set(c->err, DPK_EFORMAT, "%s: a special token has no content", c->name);
    struct dpk_pack_word w = {.s = s, .n = (uint32_t)strlen(s), .flags = plain};
    if (w.n > DPK_TOK_MAX_PIECE)
        return dpk_error_set(c->err, DPK_EUNSUPPORTED,
                             "%s: special token of %u bytes, want at most %d", c->name, w.n,
                             DPK_TOK_MAX_PIECE);
    for (size_t i = 0; cJSON_IsObject(v) && i < sizeof flags / sizeof *flags; i++) {
        const cJSON *f = item(v, flags[i].key);
        if (!f) continue;
        w.flags = cJSON_IsTrue(f) ? w.flags | flags[i].flag : w.flags & ~flags[i].flag;
    }
    const struct dpk_pack_word *known = dpk_pack_word_find(c->vocab, s);
    if (known) id = known->id;
    if (!(id >= 0 && id <= DPK_TOK_MAX_ID))
        return dpk_error_set(c->err, DPK_EFORMAT,
                             "%s: special token \"%.100s\" is not in the vocabulary", c->name, s);
    w.id = (uint32_t)id;
    if (++c->n_seen > MAX_SPECIALS)
        return dpk_error_set(c->err, DPK_EUNSUPPORTED, "%s: more than %d special tokens", c->name,
                             (int)MAX_SPECIALS);
    struct dpk_pack_word *old = find(c->out, s);
    if (!old) return dpk_pack_word_add(c->out, &w, c->err);
    *old = w;
    return DPK_OK;
}

/* added_tokens_decoder: {"49406": {"content": ...}}, tokenizer.json's list: [{"id": ..., ...}] */
static int add_table(struct collect *c, const cJSON *table) {
    const cJSON *v;
    int rc = DPK_OK;
    cJSON_ArrayForEach(v, table) {
        double id = -1;
        const cJSON *own = item(v, "id");
        if (!cJSON_IsObject(v))
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: an added token is not an object", c->name);
        if (v->string) {
            char *end;
            id = (double)strtoul(v->string, &end, 10);
            if (!*v->string || *end)
                DPK_FAIL(c->err, DPK_EFORMAT, "%s: added token number \"%.40s\"", c->name,
                         v->string);
        } else if (cJSON_IsNumber(own)) {
            id = own->valuedouble;
        }
        DPK_TRY(add(c, v, NULL, id, 0));
    }
done:
    return rc;
}

static bool is_named(const struct dpk_pack_json *j, const char *s) {
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    for (int i = 0; i < 4; i++) {
        const char *named = dpk_pack_named_token(j, keys[i], NULL);
        if (named && strcmp(named, s) == 0) return true;
    }
    const cJSON *v;
    cJSON_ArrayForEach(v, lookup(j, "additional_special_tokens")) {
        const char *named = content_of(v);
        if (named && strcmp(named, s) == 0) return true;
    }
    return false;
}

/* Named tokens: those that the decoder table has stay as they are there. */
static int add_named(struct collect *c, const struct dpk_pack_json *j) {
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    static const char *const clip[] = {"<|startoftext|>", "<|endoftext|>", "<|endoftext|>",
                                       "<|endoftext|>"};
    static const char *const t5[] = {NULL, "</s>", "<unk>", "<pad>"};
    const size_t n_table = c->out->n;
    struct dpk_pack_words table = {.v = c->out->v, .n = n_table};
    int rc = DPK_OK;
    for (int i = 0; i < 4; i++) {
        const cJSON *v = lookup(j, keys[i]);
        const char *fallback = c->clip ? clip[i] : t5[i];
        const char *s = v ? content_of(v) : fallback;
        if (!s && !v) continue;
        table.v = c->out->v;
        if (s && find(&table, s)) continue;
        DPK_TRY(add(c, v, s, -1, 0));
    }
    const cJSON *v;
    cJSON_ArrayForEach(v, lookup(j, "additional_special_tokens")) {
        const char *s = content_of(v);
        table.v = c->out->v;
        if (s && find(&table, s)) continue;
        DPK_TRY(add(c, v, s, -1, 0));
    }
done:
    return rc;
}

/* Raw ones first, each group by content: the blob's order. */
static int compare_specials(const void *a, const void *b) {
    const struct dpk_pack_word *x = a, *y = b;
    int xn = x->flags & DPK_TOK_NORMALIZED, yn = y->flags & DPK_TOK_NORMALIZED;
    return xn != yn ? xn - yn : dpk_pack_word_compare(a, b);
}

/* The tokenizer normalises the contents of normalised tokens too. Only what changes nothing is
 * taken. */
static int check_normalized(const struct collect *c) {
    for (size_t i = 0; i < c->out->n; i++) {
        const struct dpk_pack_word *w = &c->out->v[i];
        if (!(w->flags & DPK_TOK_NORMALIZED)) continue;
        for (uint32_t k = 0; k < w->n; k++) {
            bool upper = c->clip && w->s[k] >= 'A' && w->s[k] <= 'Z';
            if (w->s[k] > ' ' && w->s[k] < 127 && !upper) continue;
            return dpk_error_set(c->err, DPK_EUNSUPPORTED,
                                 "%s: normalised token \"%.100s\", want lower case ASCII", c->name,
                                 w->s);
        }
    }
    return DPK_OK;
}

int dpk_pack_specials(const struct dpk_pack_json *j, const struct dpk_pack_words *vocab, bool clip,
                      const char *name, struct dpk_pack_words *out, dpk_error *err) {
    struct collect c = {.vocab = vocab, .name = name, .clip = clip, .out = out, .err = err};
    const cJSON *decoder = item(j->config, "added_tokens_decoder"), *v;
    int rc = DPK_OK;
    /* is_named looks through this list for every token, before it is added itself */
    if (cJSON_GetArraySize(lookup(j, "additional_special_tokens")) > MAX_SPECIALS)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: more than %d special tokens", name, (int)MAX_SPECIALS);
    if (j->tokenizer) DPK_TRY(add_table(&c, item(j->tokenizer, "added_tokens")));
    if (decoder) {
        DPK_TRY(add_table(&c, decoder));
    } else {
        cJSON_ArrayForEach(v, j->added_tokens) {
            if (!cJSON_IsNumber(v))
                DPK_FAIL(err, DPK_EFORMAT, "%s/added_tokens.json: \"%.100s\" has no number", name,
                         v->string);
            bool named = is_named(j, v->string);
            DPK_TRY(add(&c, NULL, v->string, v->valuedouble, named ? 0 : DPK_TOK_NORMALIZED));
        }
    }
    DPK_TRY(add_named(&c, j));
    DPK_TRY(check_normalized(&c));
    qsort(out->v, out->n, sizeof *out->v, compare_specials);
done:
    return rc;
}
