/* T5: spiece.model (SentencePiece's ModelProto) or tokenizer.json to pieces, scores and character
 * map. */
#include "pack_tokenizer_impl.h"

#include "../formats/fail.h"
#include "../formats/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct t5 {
    const struct dpk_pack_tokenizer *src;
    struct dpk_pack_words pieces; /* in order of id, then by content */
    struct dpk_pack_bytes names;  /* of the sentinels, NUL-terminated */
    struct dpk_pack_bytes map;    /* the character map */
    uint32_t unknown_id;          /* UINT32_MAX: none yet */
    dpk_error *err;
};

/* ---- protobuf wire format
 * --------------------------------------------------------------------- */

struct field {
    uint32_t number, type; /* 0 varint, 1 eight bytes, 2 counted bytes, 5 four bytes */
    uint64_t value;        /* types 0, 1, 5 */
    const uint8_t *data;   /* type 2 */
    size_t n;
};

static bool read_varint(const uint8_t **p, const uint8_t *end, uint64_t *out) {
    *out = 0;
    for (int shift = 0; shift < 64 && *p < end; shift += 7) {
        uint8_t b = *(*p)++;
        *out |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) return true;
    }
    return false;
}

/* The next field of a message; false where the message is broken. */
static bool read_field(const uint8_t **p, const uint8_t *end, struct field *f) {
    uint64_t key;
    if (!read_varint(p, end, &key)) return false;
    f->number = (uint32_t)(key >> 3);
    f->type = key & 7;
    size_t left, n = f->type == 1 ? 8 : 4;
    switch (f->type) {
    case 0:
        return read_varint(p, end, &f->value);
    case 1:
    case 5:
        if ((size_t)(end - *p) < n) return false;
        f->value = 0;
        memcpy(&f->value, *p, n);
        *p += n;
        return true;
    case 2:
        if (!read_varint(p, end, &key)) return false;
        left = (size_t)(end - *p);
        if (key > left) return false;
        f->data = *p;
        f->n = (size_t)key;
        *p += f->n;
        return true;
    default:
        return false;
    }
}

static int broken(const struct t5 *c, const char *what) {
    return dpk_error_set(c->err, DPK_EFORMAT, "%s/spiece.model: broken %s", c->src->name, what);
}

/* ---- Pieces
 * ----------------------------------------------------------------------------------- */

static int add_piece(struct t5 *c, const char *s, size_t n, float score) {
    const size_t id = c->pieces.n;
    if (n == 0 || n > DPK_TOK_MAX_PIECE || dpk_utf8_check(s, n) != n)
        return dpk_error_set(c->err, DPK_EFORMAT,
                             "%s: piece %zu has %zu bytes, want 1..%d bytes of UTF-8", c->src->name,
                             id, n, DPK_TOK_MAX_PIECE);
    if (!isfinite(score) || id > DPK_TOK_MAX_ID)
        return dpk_error_set(c->err, DPK_EFORMAT, "%s: piece %zu has score %g", c->src->name, id,
                             (double)score);
    struct dpk_pack_word w = {.s = s, .n = (uint32_t)n, .id = (uint32_t)id, .score = score};
    return dpk_pack_word_add(&c->pieces, &w, c->err);
}

/* message SentencePiece { string piece = 1; float score = 2; Type type = 3; } */
static int read_piece(struct t5 *c, const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    const char *s = "";
    size_t length = 0;
    float score = 0;
    uint64_t type = 1; /* NORMAL */
    while (p < end) {
        struct field f;
        if (!read_field(&p, end, &f)) return broken(c, "piece");
        if (f.number == 1 && f.type == 2) {
            s = (const char *)f.data;
            length = f.n;
        } else if (f.number == 2 && f.type == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&score, &bits, sizeof score);
        } else if (f.number == 3 && f.type == 0) {
            type = f.value;
        }
    }
    if (type == 6)
        return dpk_error_set(c->err, DPK_EUNSUPPORTED, "%s/spiece.model: byte pieces",
                             c->src->name);
    if (type == 2) c->unknown_id = (uint32_t)c->pieces.n;
    return add_piece(c, s, length, score);
}

/* message TrainerSpec { ModelType model_type = 3; bool byte_fallback = 35; } */
static int check_trainer(struct t5 *c, const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    while (p < end) {
        struct field f;
        if (!read_field(&p, end, &f)) return broken(c, "trainer_spec");
        if (f.number == 3 && f.type == 0 && f.value != 1)
            return dpk_error_set(c->err, DPK_EUNSUPPORTED,
                                 "%s/spiece.model: model type %llu, want 1 (unigram)", c->src->name,
                                 (unsigned long long)f.value);
        if (f.number == 35 && f.type == 0 && f.value)
            return dpk_error_set(c->err, DPK_EUNSUPPORTED, "%s/spiece.model: byte fallback",
                                 c->src->name);
    }
    return DPK_OK;
}

/* message NormalizerSpec { bytes precompiled_charsmap = 2; } The fast tokenizer does its own
 * spaces. */
static int read_normalizer(struct t5 *c, const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    while (p < end) {
        struct field f;
        if (!read_field(&p, end, &f)) return broken(c, "normalizer_spec");
        if (f.number != 2 || f.type != 2) continue;
        int rc = dpk_pack_put(&c->map, f.data, f.n, c->err);
        if (rc) return rc;
    }
    return DPK_OK;
}

/* T5 has its sentinels behind the model's pieces, the last one first, with score 0. */
static int add_sentinels(struct t5 *c, const struct dpk_pack_json *j) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(j->config, "extra_ids");
    const double want = cJSON_IsNumber(v) ? v->valuedouble : 100;
    int rc = DPK_OK;
    if (!(want >= 0 && want <= 10000))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: extra_ids is %g", c->src->name, want);
    const int n = (int)want;
    for (int i = n - 1; i >= 0; i--) {
        char s[32];
        int length = snprintf(s, sizeof s, "<extra_id_%d>", i);
        DPK_TRY(dpk_pack_put(&c->names, s, (size_t)length + 1, c->err));
    }
    const char *at = (const char *)c->names.v;
    for (int i = 0; i < n; i++, at += strlen(at) + 1) DPK_TRY(add_piece(c, at, strlen(at), 0));
done:
    return rc;
}

static int read_spiece(struct t5 *c, const struct dpk_pack_json *j) {
    const uint8_t *p = c->src->spiece.data, *end = p + c->src->spiece.n_bytes;
    int rc = DPK_OK;
    while (p < end) {
        struct field f;
        if (!read_field(&p, end, &f)) DPK_TRY(broken(c, "message"));
        if (f.type != 2) continue;
        if (f.number == 1) DPK_TRY(read_piece(c, f.data, f.n));
        if (f.number == 2) DPK_TRY(check_trainer(c, f.data, f.n));
        if (f.number == 3) DPK_TRY(read_normalizer(c, f.data, f.n));
    }
    DPK_TRY(add_sentinels(c, j));
done:
    return rc;
}

/* ---- tokenizer.json
 * --------------------------------------------------------------------------- */

static int put_base64(struct t5 *c, const char *s) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    int n_bits = 0, rc = DPK_OK;
    for (; *s && *s != '='; s++) {
        const char *d = strchr(digits, *s);
        if (!d)
            DPK_FAIL(c->err, DPK_EFORMAT, "%s/tokenizer.json: charsmap is not base64",
                     c->src->name);
        bits = (bits << 6 | (uint32_t)(d - digits)) & 0xffffff;
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        uint8_t byte = (uint8_t)(bits >> n_bits);
        DPK_TRY(dpk_pack_put(&c->map, &byte, 1, c->err));
    }
done:
    return rc;
}

static int read_tokenizer_json(struct t5 *c, const struct dpk_pack_json *j) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(j->tokenizer, "model"), *v;
    const cJSON *norm = cJSON_GetObjectItemCaseSensitive(j->tokenizer, "normalizer");
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(model, "type"));
    const char *how = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(norm, "type"));
    const char *map =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(norm, "precompiled_charsmap"));
    int rc = DPK_OK;
    if (!type || strcmp(type, "Unigram") != 0 || !how || strcmp(how, "Precompiled") != 0 || !map)
        DPK_FAIL(c->err, DPK_EUNSUPPORTED,
                 "%s/tokenizer.json: model %.40s with normalizer %.40s, want Unigram with "
                 "Precompiled",
                 c->src->name, type ? type : "?", how ? how : "?");
    DPK_TRY(put_base64(c, map));
    v = cJSON_GetObjectItemCaseSensitive(model, "unk_id");
    if (cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble <= DPK_TOK_MAX_ID)
        c->unknown_id = (uint32_t)v->valuedouble;
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(model, "vocab")) {
        const char *s = cJSON_GetStringValue(cJSON_GetArrayItem(v, 0));
        const cJSON *score = cJSON_GetArrayItem(v, 1);
        if (!s || !cJSON_IsNumber(score))
            DPK_FAIL(c->err, DPK_EFORMAT, "%s/tokenizer.json: piece %zu is not [text, score]",
                     c->src->name, c->pieces.n);
        DPK_TRY(add_piece(c, s, strlen(s), (float)score->valuedouble));
    }
done:
    return rc;
}

/* ---- The blob
 * --------------------------------------------------------------------------------- */

static int check_pieces(struct t5 *c) {
    if (c->unknown_id >= c->pieces.n)
        return dpk_error_set(c->err, DPK_EFORMAT, "%s: there is no unknown piece among %zu",
                             c->src->name, c->pieces.n);
    /* T5Tokenizer does not ask the model which one it is. */
    if (c->src->spiece.data && c->unknown_id != 2)
        return dpk_error_set(c->err, DPK_EUNSUPPORTED, "%s: the unknown piece is %u, want 2",
                             c->src->name, c->unknown_id);
    if (c->map.n == 0)
        return dpk_error_set(c->err, DPK_EUNSUPPORTED, "%s: there is no precompiled_charsmap",
                             c->src->name);
    qsort(c->pieces.v, c->pieces.n, sizeof *c->pieces.v, dpk_pack_word_compare);
    for (size_t i = 1; i < c->pieces.n; i++)
        if (dpk_pack_word_compare(&c->pieces.v[i - 1], &c->pieces.v[i]) == 0)
            return dpk_error_set(c->err, DPK_EFORMAT, "%s: pieces %u and %u are the same",
                                 c->src->name, c->pieces.v[i - 1].id, c->pieces.v[i].id);
    return DPK_OK;
}

/* Trie and strings as the runtime wants them: strings short, the last one ended. */
static int check_map(struct t5 *c) {
    uint32_t trie = 0;
    if (c->map.n >= 9) memcpy(&trie, c->map.v, sizeof trie);
    if (trie < 4 || trie % 4 || trie > c->map.n - 5)
        return dpk_error_set(c->err, DPK_EFORMAT, "%s: charsmap of %zu bytes has a trie of %u",
                             c->src->name, c->map.n, trie);
    const char *text = (const char *)c->map.v + 4 + trie;
    const size_t n = c->map.n - 4 - trie;
    if (text[n - 1] || dpk_utf8_check(text, n) != n)
        return dpk_error_set(c->err, DPK_EFORMAT,
                             "%s: charsmap's strings are not NUL-terminated UTF-8", c->src->name);
    for (size_t at = 0; at < n; at += strlen(text + at) + 1)
        if (strlen(text + at) > DPK_TOK_MAX_MAPPING)
            return dpk_error_set(c->err, DPK_EUNSUPPORTED,
                                 "%s: charsmap makes %zu bytes of a character, want at most %d",
                                 c->src->name, strlen(text + at), DPK_TOK_MAX_MAPPING);
    return DPK_OK;
}

static int set_ids(struct t5 *c, const struct dpk_pack_json *j, struct dpk_tok_header *h) {
    static const char *const keys[] = {"eos_token", "pad_token"};
    static const char *const usual[] = {"</s>", "<pad>"};
    uint32_t *const ids[] = {&h->end_id, &h->pad_id};
    for (int i = 0; i < 2; i++) {
        const char *s = dpk_pack_named_token(j, keys[i], usual[i]);
        const struct dpk_pack_word *w = s ? dpk_pack_word_find(&c->pieces, s) : NULL;
        if (!w)
            return dpk_error_set(c->err, DPK_EFORMAT, "%s: %s \"%.60s\" is not a piece",
                                 c->src->name, keys[i], s ? s : "");
        *ids[i] = w->id;
    }
    h->start_id = UINT32_MAX;
    h->unknown_id = c->unknown_id;
    return DPK_OK;
}

int dpk_pack_t5(const struct dpk_pack_tokenizer *src, const struct dpk_pack_json *j,
                struct dpk_tok_header *h, struct dpk_pack_bytes *out, dpk_error *err) {
    struct t5 c = {.src = src, .unknown_id = UINT32_MAX, .err = err};
    struct dpk_pack_words specials = {0};
    int rc = DPK_OK;
    if (!src->spiece.data && !j->tokenizer)
        DPK_FAIL(err, DPK_EFORMAT, "%s: want spiece.model or tokenizer.json", src->name);
    if (src->spiece.data) DPK_TRY(read_spiece(&c, j));
    else DPK_TRY(read_tokenizer_json(&c, j));
    DPK_TRY(check_pieces(&c));
    DPK_TRY(check_map(&c));
    DPK_TRY(set_ids(&c, j, h));
    DPK_TRY(dpk_pack_specials(j, &c.pieces, false, src->name, &specials, err));
    DPK_TRY(dpk_pack_put_specials(&specials, h, out, err));
    h->n_entries = (uint32_t)c.pieces.n;
    for (size_t i = 0; i < c.pieces.n; i++) {
        const struct dpk_pack_word *w = &c.pieces.v[i];
        DPK_TRY(dpk_pack_put32(out, w->id | w->n << 24, err));
        DPK_TRY(dpk_pack_put(out, &w->score, sizeof w->score, err));
    }
    DPK_TRY(dpk_pack_put_texts(&specials, &c.pieces, h, out, err));
    h->charsmap_bytes = (uint32_t)c.map.n;
    DPK_TRY(dpk_pack_put(out, c.map.v, c.map.n, err));
    while (out->n % 4) DPK_TRY(dpk_pack_put(out, "", 1, err));
done:
    free(specials.v);
    free(c.pieces.v);
    free(c.names.v);
    free(c.map.v);
    return rc;
}
