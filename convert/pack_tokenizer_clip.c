/* CLIP: vocab.json and merges.txt (or tokenizer.json) to ids of bytes and merges. */
#include "pack_tokenizer_impl.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>

#define WORD_END "</w>"

struct clip {
    const struct dpk_pack_tokenizer *src;
    const struct dpk_pack_json *json;
    cJSON *vocab_file;            /* owned */
    struct dpk_pack_words vocab;  /* by content */
    struct dpk_pack_bytes merges; /* struct dpk_tok_merge */
    char *joined;                 /* of the merge in hand */
    size_t joined_bytes;
    dpk_error *err;
};

static int compare_merges(const void *a, const void *b) {
    const struct dpk_tok_merge *x = a, *y = b;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

static int read_vocab(struct clip *c) {
    const cJSON *table = NULL, *v;
    int rc = DPK_OK;
    if (c->json->tokenizer) {
        const cJSON *model = cJSON_GetObjectItemCaseSensitive(c->json->tokenizer, "model");
        table = cJSON_GetObjectItemCaseSensitive(model, "vocab");
    } else {
        struct dpk_pack_tokenizer only = {.name = c->src->name, .kind = DPK_TOKENIZER_CLIP};
        struct dpk_pack_json j;
        /* through the same strict reader as the other files */
        only.config = c->src->vocab;
        DPK_TRY(dpk_pack_json_read(&j, &only, c->err));
        c->vocab_file = j.config;
        table = c->vocab_file;
    }
    if (!cJSON_IsObject(table) || !table->child)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: there is no vocabulary", c->src->name);
    cJSON_ArrayForEach(v, table) {
        struct dpk_pack_word w = {.s = v->string, .n = (uint32_t)strlen(v->string)};
        if (!cJSON_IsNumber(v) || v->valuedouble < 0 || v->valuedouble > DPK_TOK_MAX_ID ||
            v->valuedouble != (double)(uint32_t)v->valuedouble)
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: vocabulary entry \"%.60s\" has no id in 0..%d",
                     c->src->name, v->string, DPK_TOK_MAX_ID);
        w.id = (uint32_t)v->valuedouble;
        DPK_TRY(dpk_pack_word_add(&c->vocab, &w, c->err));
    }
    qsort(c->vocab.v, c->vocab.n, sizeof *c->vocab.v, dpk_pack_word_compare);
done:
    return rc;
}

static int find_id(struct clip *c, const char *s, const char *what, uint32_t *id) {
    const struct dpk_pack_word *w = dpk_pack_word_find(&c->vocab, s);
    if (!w)
        return dpk_error_set(c->err, DPK_EFORMAT, "%s: %s \"%.60s\" is not in the vocabulary",
                             c->src->name, what, s);
    *id = w->id;
    return DPK_OK;
}

/* The visible character that stands for a byte (GPT-2's bytes_to_unicode), with a word end or
 * not. */
static int put_byte_ids(struct clip *c, struct dpk_pack_bytes *out) {
    int rc = DPK_OK;
    for (int end = 0; end < 2; end++) {
        uint32_t other = 0x100;
        for (uint32_t b = 0; b < 256; b++) {
            bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
            uint32_t code = visible ? b : other++, id = 0;
            char s[8] = {(char)code};
            if (code >= 0x80) {
                s[0] = (char)(0xc0 | code >> 6);
                s[1] = (char)(0x80 | (code & 0x3f));
            }
            if (end) strcat(s, WORD_END);
            DPK_TRY(find_id(c, s, "byte symbol", &id));
            DPK_TRY(dpk_pack_put32(out, id, c->err));
        }
    }
done:
    return rc;
}

static int add_merge(struct clip *c, const char *left, const char *right) {
    struct dpk_tok_merge m;
    int rc = DPK_OK;
    size_t n = strlen(left), r = strlen(right);
    if (n + r + 1 > c->joined_bytes) {
        char *p = realloc(c->joined, 2 * (n + r + 1));
        if (!p) DPK_FAIL(c->err, DPK_ENOMEM, "tokenizer: out of memory");
        c->joined = p;
        c->joined_bytes = 2 * (n + r + 1);
    }
    memcpy(c->joined, left, n);
    memcpy(c->joined + n, right, r + 1);
    DPK_TRY(find_id(c, left, "merge part", &m.left));
    DPK_TRY(find_id(c, right, "merge part", &m.right));
    DPK_TRY(find_id(c, c->joined, "merge", &m.result));
    rc = dpk_pack_put(&c->merges, &m, sizeof m, c->err);
done:
    return rc;
}

/* Two symbols with one space between; text is cut up. */
static int add_merge_text(struct clip *c, char *text, size_t line) {
    char *space = strchr(text, ' ');
    if (!space || space == text || !space[1] || strchr(space + 1, ' '))
        return dpk_error_set(c->err, DPK_EFORMAT, "%s: merge %zu is \"%.60s\", want two symbols",
                             c->src->name, line, text);
    *space = 0;
    return add_merge(c, text, space + 1);
}

/* merges.txt: "#version: ..." first, then one merge a line. */
static int read_merges_file(struct clip *c) {
    const struct dpk_pack_text *file = &c->src->merges;
    int rc = DPK_OK;
    char *text = malloc(file->n_bytes + 1), *line, *next;
    if (!text) DPK_FAIL(c->err, DPK_ENOMEM, "tokenizer: out of memory");
    memcpy(text, file->data, file->n_bytes);
    text[file->n_bytes] = 0;
    if (strlen(text) != file->n_bytes)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s/merges.txt: byte %zu is NUL", c->src->name, strlen(text));
    size_t number = 0;
    for (line = text; *line; line = next) {
        size_t n = strcspn(line, "\n");
        next = line + n + (line[n] == '\n');
        line[n] = 0;
        if (n && line[n - 1] == '\r') line[--n] = 0;
        number++;
        if (n == 0 || (number == 1 && strncmp(line, "#version", 8) == 0)) continue;
        DPK_TRY(add_merge_text(c, line, number));
    }
done:
    free(text);
    return rc;
}

/* tokenizer.json: "a b" or ["a", "b"] */
static int read_merges_json(struct clip *c) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(c->json->tokenizer, "model");
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(model, "merges"), *v;
    const cJSON *kind = cJSON_GetObjectItemCaseSensitive(model, "type");
    const char *type = kind ? cJSON_GetStringValue(kind) : "BPE"; /* older files do not say */
    const char *end =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(model, "end_of_word_suffix"));
    int rc = DPK_OK;
    size_t number = 0;
    if (!type || strcmp(type, "BPE") != 0 || !end || strcmp(end, "</w>") != 0)
        DPK_FAIL(c->err, DPK_EUNSUPPORTED,
                 "%s/tokenizer.json: model %.40s with end_of_word_suffix %.40s, want BPE with </w>",
                 c->src->name, type ? type : "?", end ? end : "?");
    if (!cJSON_IsArray(list))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s/tokenizer.json: there are no merges", c->src->name);
    cJSON_ArrayForEach(v, list) {
        const char *a = cJSON_GetStringValue(cJSON_GetArrayItem(v, 0));
        const char *b = cJSON_GetStringValue(cJSON_GetArrayItem(v, 1));
        number++;
        if (cJSON_IsString(v)) {
            DPK_TRY(add_merge_text(c, v->valuestring, number));
        } else {
            if (!a || !b || cJSON_GetArraySize(v) != 2)
                DPK_FAIL(c->err, DPK_EFORMAT, "%s/tokenizer.json: merge %zu is no pair",
                         c->src->name, number);
            DPK_TRY(add_merge(c, a, b));
        }
    }
done:
    return rc;
}

static int check_merges(struct clip *c) {
    const size_t n = c->merges.n / sizeof(struct dpk_tok_merge);
    int rc = DPK_OK;
    struct dpk_tok_merge *m = malloc(c->merges.n + 1);
    if (!m) DPK_FAIL(c->err, DPK_ENOMEM, "tokenizer: out of memory");
    if (n) memcpy(m, c->merges.v, c->merges.n);
    qsort(m, n, sizeof *m, compare_merges);
    for (size_t i = 1; i < n; i++)
        if (compare_merges(&m[i - 1], &m[i]) == 0)
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: the merge of ids %u and %u comes twice",
                     c->src->name, m[i].left, m[i].right);
done:
    free(m);
    return rc;
}

/* The tokens that frame a prompt. */
static int set_ids(struct clip *c, struct dpk_tok_header *h) {
    static const char *const keys[] = {"bos_token", "eos_token", "pad_token"};
    static const char *const usual[] = {"<|startoftext|>", "<|endoftext|>", "<|endoftext|>"};
    uint32_t *const ids[] = {&h->start_id, &h->end_id, &h->pad_id};
    int rc = DPK_OK;
    for (int i = 0; i < 3; i++) {
        const char *s = dpk_pack_named_token(c->json, keys[i], usual[i]);
        if (!s) DPK_FAIL(c->err, DPK_EFORMAT, "%s: %s has no content", c->src->name, keys[i]);
        DPK_TRY(find_id(c, s, keys[i], ids[i]));
    }
    h->unknown_id = UINT32_MAX;
done:
    return rc;
}

int dpk_pack_clip(const struct dpk_pack_tokenizer *src, const struct dpk_pack_json *j,
                  struct dpk_tok_header *h, struct dpk_pack_bytes *out, dpk_error *err) {
    struct clip c = {.src = src, .json = j, .err = err};
    struct dpk_pack_words specials = {0};
    int rc = DPK_OK;
    if (!j->tokenizer && !(src->vocab.data && src->merges.data))
        DPK_FAIL(err, DPK_EFORMAT, "%s: want vocab.json and merges.txt, or tokenizer.json",
                 src->name);
    DPK_TRY(read_vocab(&c));
    DPK_TRY(set_ids(&c, h));
    DPK_TRY(dpk_pack_specials(j, &c.vocab, true, src->name, &specials, err));
    DPK_TRY(dpk_pack_put_specials(&specials, h, out, err));
    DPK_TRY(put_byte_ids(&c, out));
    if (j->tokenizer) DPK_TRY(read_merges_json(&c));
    else DPK_TRY(read_merges_file(&c));
    DPK_TRY(check_merges(&c));
    h->n_entries = (uint32_t)(c.merges.n / sizeof(struct dpk_tok_merge));
    DPK_TRY(dpk_pack_put(out, c.merges.v, c.merges.n, err));
    DPK_TRY(dpk_pack_put_texts(&specials, NULL, h, out, err));
done:
    free(specials.v);
    free(c.vocab.v);
    free(c.merges.v);
    free(c.joined);
    cJSON_Delete(c.vocab_file);
    return rc;
}
