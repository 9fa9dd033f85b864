/* Tokenizer blobs: packing what is wrong, opening what is broken. */
#include "support_files.h"
#include "support_tokens.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include <cmocka.h>

#define SHAPES "models/shapes-xl/tokenizer"
#define PIXART "tests/data/tiny-pixart/tokenizer"
enum { CLIP = DPK_TOKENIZER_CLIP, T5 = DPK_TOKENIZER_T5 };

static void test_same_bytes(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct packed a = pack_folder(i ? T5 : CLIP, i ? PIXART : SHAPES, i ? 120 : 0, i);
        struct packed b = pack_folder(i ? T5 : CLIP, i ? PIXART : SHAPES, i ? 120 : 0, i);
        assert_int_equal(a.n_bytes, b.n_bytes);
        assert_memory_equal(a.blob, b.blob, a.n_bytes);
        packed_free(&a);
        packed_free(&b);
    }
}

static const char *const probes[] = {
    "a photo of an astronaut",
    "It's A Test!! <|endoftext|> \xc3\xa9 e\xcc\x81 \xea\xb0\x81",
    "</s><extra_id_5> \xef\xbc\xa1\xcc\x81",
    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80 \xef\xb7\xba",
    "",
};

/* Open a blob that may be broken; if it opens, it must work. */
static bool try_blob(uint32_t kind, const uint8_t *blob, size_t n) {
    struct dpk_tokenizer *t = NULL;
    dpk_error err = {0};
    int rc = dpk_tokenizer_open(&t, kind, blob, n, &err);
    if (rc) {
        assert_null(t);
        assert_true(rc == DPK_EFORMAT || rc == DPK_EUNSUPPORTED || rc == DPK_ENOMEM);
        assert_true(err.msg[0] && !strchr(err.msg, '\n'));
        return false;
    }
    const size_t length = dpk_tokenizer_max_length(t);
    int32_t *ids = malloc(length * sizeof *ids), *mask = malloc(length * sizeof *mask);
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        size_t tokens;
        assert_int_equal(
            dpk_tokenizer_encode(t, probes[i], strlen(probes[i]), ids, mask, &tokens, &err),
            DPK_OK);
        for (size_t k = 0; k < length; k++)
            assert_in_range(ids[k], 0, dpk_tokenizer_id_limit(t) - 1);
    }
    free(ids);
    free(mask);
    dpk_tokenizer_free(t);
    return true;
}

/* A copy of exactly n bytes, so that a sanitizer sees what is read beyond. */
static uint8_t *copy_of(const struct packed *p, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    memcpy(copy, p->blob, n);
    return copy;
}

static void test_truncated(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        struct packed p = pack_folder(k ? T5 : CLIP, k ? PIXART : SHAPES, k ? 120 : 0, k);
        uint64_t seed = 3;
        for (size_t i = 0; i < 200; i++) {
            size_t n = i < 100 ? i : noise(&seed) % p.n_bytes;
            uint8_t *copy = copy_of(&p, n);
            assert_false(try_blob(k ? T5 : CLIP, copy, n));
            free(copy);
        }
        uint8_t *longer = calloc(1, p.n_bytes + 4);
        memcpy(longer, p.blob, p.n_bytes);
        assert_false(try_blob(k ? T5 : CLIP, longer, p.n_bytes + 4));
        /* unaligned is fine */
        memcpy(longer + 1, p.blob, p.n_bytes);
        assert_true(try_blob(k ? T5 : CLIP, longer + 1, p.n_bytes));
        free(longer);
        packed_free(&p);
    }
}

/* Flipped bytes: many are caught, none does harm. */
static void test_flipped(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        const uint32_t kind = k ? T5 : CLIP;
        struct packed p = pack_folder(kind, k ? PIXART : SHAPES, k ? 120 : 0, k);
        uint8_t *copy = copy_of(&p, p.n_bytes);
        uint64_t seed = 11;
        int caught = 0;
        for (size_t i = 0; i < 64 * 8; i++) { /* every bit of the header */
            copy[i / 8] ^= (uint8_t)(1 << i % 8);
            caught += !try_blob(kind, copy, p.n_bytes);
            copy[i / 8] ^= (uint8_t)(1 << i % 8);
        }
        /* only flags, ids and lengths that are as good as others pass */
        assert_true(caught > 64 * 8 * 3 / 5);
        for (int i = 0; i < (k ? 300 : 1000); i++) {
            size_t at = 64 + noise(&seed) % (p.n_bytes - 64);
            uint8_t old = copy[at];
            copy[at] = (uint8_t)noise(&seed);
            try_blob(kind, copy, p.n_bytes);
            copy[at] = old;
        }
        assert_memory_equal(copy, p.blob, p.n_bytes);
        assert_false(try_blob(kind == T5 ? CLIP : T5, copy, p.n_bytes));
        assert_false(try_blob(3, copy, p.n_bytes));
        free(copy);
        packed_free(&p);
    }
}

/* Only the charsmap is broken: the trie is walked with care. */
static void test_charsmap(void **state) {
    (void)state;
    struct packed p = pack_folder(T5, PIXART, 120, true);
    const struct dpk_tok_header *h = p.blob;
    const size_t begin = p.n_bytes - ((h->charsmap_bytes + 3) & ~(size_t)3);
    uint64_t seed = 5;
    for (int round = 0; round < 40; round++) {
        uint8_t *copy = copy_of(&p, p.n_bytes);
        uint32_t trie;
        memcpy(&trie, copy + begin, 4);
        for (uint32_t i = 0; i < trie / 4; i++)
            if (noise(&seed) % 4 == 0) {
                uint32_t v = noise(&seed);
                memcpy(copy + begin + 4 + 4 * (size_t)i, &v, 4);
            }
        try_blob(T5, copy, p.n_bytes);
        free(copy);
    }
    packed_free(&p);
}

/* Merges whose pairs would all meet in one place of the table if they were hashed without a seed:
 * opening them takes as long as opening others, not quadratic time. */
static void test_colliding_merges(void **state) {
    enum { N = 60000, SIZE = 1 << 17 }; /* the table has twice the room */
    (void)state;
    struct packed p = pack_folder(CLIP, SHAPES, 0, false);
    struct dpk_tok_header h;
    memcpy(&h, p.blob, sizeof h);
    const size_t n_texts = (h.text_bytes + 3) & ~(size_t)3;
    const size_t begin = p.n_bytes - n_texts - h.n_entries * sizeof(struct dpk_tok_merge);
    const size_t n_bytes = begin + N * sizeof(struct dpk_tok_merge) + n_texts;
    uint8_t *blob = malloc(n_bytes);
    double seconds[2];
    h.n_entries = N;
    memcpy(blob, p.blob, begin);
    memcpy(blob, &h, sizeof h);
    memcpy(blob + n_bytes - n_texts, (uint8_t *)p.blob + p.n_bytes - n_texts, n_texts);
    for (int meet = 0; meet < 2; meet++) {
        struct dpk_tok_merge m = {.result = 1};
        struct dpk_tokenizer *t;
        dpk_error err;
        for (size_t n = 0; n < N; m.right++) {
            if (meet && XXH3_64bits_withSeed(&m, 8, 0) % SIZE >= SIZE / 64) continue;
            memcpy(blob + begin + n++ * sizeof m, &m, sizeof m);
        }
        const clock_t before = clock();
        if (dpk_tokenizer_open(&t, CLIP, blob, n_bytes, &err)) fail_msg("%s", err.msg);
        seconds[meet] = (double)(clock() - before) / CLOCKS_PER_SEC;
        dpk_tokenizer_free(t);
    }
    if (seconds[1] > 20 * seconds[0] + 0.1)
        fail_msg("%d merges are opened in %.3f and %.3f seconds", N, seconds[0], seconds[1]);
    free(blob);
    packed_free(&p);
}

/* ---- Packing
 * ---------------------------------------------------------------------------------- */

static void refuse(const struct dpk_pack_tokenizer *src, int code, const char *word) {
    void *blob = NULL;
    size_t n;
    dpk_error err = {0};
    int rc = dpk_pack_tokenizer(src, &blob, &n, &err);
    if (rc != code || !strstr(err.msg, word))
        fail_msg("code %d: %s (want %d, %s)", rc, err.msg, code, word);
    assert_null(blob);
}

static struct dpk_pack_text text(const char *s) { return (struct dpk_pack_text){s, strlen(s)}; }

static void test_pack_clip(void **state) {
    (void)state;
    struct folder f;
    folder_open(&f, CLIP, SHAPES, 0);
    const struct dpk_pack_tokenizer good = f.src;
    struct dpk_pack_tokenizer s = good;
    s.merges.data = NULL;
    refuse(&s, DPK_EFORMAT, "merges.txt");
    s = good, s.vocab = text("[1]");
    refuse(&s, DPK_EFORMAT, "object");
    s = good, s.vocab = text("{\"a\": 1.5}");
    refuse(&s, DPK_EFORMAT, "\"a\"");
    s = good, s.vocab = text("{\"a\": 1, \"a\": 2}");
    refuse(&s, DPK_EFORMAT, "twice");
    s = good, s.vocab = text("{\"a\": 1");
    refuse(&s, DPK_EFORMAT, "tokenizer");
    s = good, s.vocab = text("{\"<|startoftext|>\": 1, \"<|endoftext|>\": 2}");
    refuse(&s, DPK_EFORMAT, "byte symbol");
    s = good, s.merges = text("#version: 0.2\na b c\n");
    refuse(&s, DPK_EFORMAT, "merge 2");
    s = good, s.merges = text("#version: 0.2\nqqq zzz\n");
    refuse(&s, DPK_EFORMAT, "qqq");
    s = good, s.merges = text("#version: 0.2\nt h\nt h\n");
    refuse(&s, DPK_EFORMAT, "twice");
    s = good, s.config = text("{\"model_max_length\": 77, \"eos_token\": \"<|nothing|>\"}");
    s.special_tokens.data = NULL;
    refuse(&s, DPK_EFORMAT, "<|nothing|>");
    s = good, s.config = text("{}");
    refuse(&s, DPK_EFORMAT, "model_max_length");
    s = good, s.max_length = 1;
    refuse(&s, DPK_EUNSUPPORTED, "maximum length");
    s = good, s.max_length = 20;
    refuse(&s, DPK_EUNSUPPORTED, "model_max_length is 77, the encoder takes 20 tokens");
    s = good, s.config = text("{\"model_max_length\": 77, \"padding_side\": \"left\"}");
    refuse(&s, DPK_EUNSUPPORTED, "padding_side is left, supported: right");
    s = good, s.config = text("{\"model_max_length\": 77, \"truncation_side\": \"left\"}");
    refuse(&s, DPK_EUNSUPPORTED, "truncation_side is left, supported: right");
    s = good, s.config = text("{\"model_max_length\": 77, \"split_special_tokens\": true}");
    refuse(&s, DPK_EUNSUPPORTED, "split_special_tokens is true, supported: false");
    s = good, s.kind = 9;
    refuse(&s, DPK_EARG, "kind 9");
    s = good, s.lower_strip = true;
    refuse(&s, DPK_EARG, "lower_strip");
    folder_close(&f);
}

static void test_pack_t5(void **state) {
    (void)state;
    struct folder f;
    folder_open(&f, T5, PIXART, 120);
    const struct dpk_pack_tokenizer good = f.src;
    struct dpk_pack_tokenizer s = good;
    uint64_t seed = 9;
    s.spiece.data = NULL;
    refuse(&s, DPK_EFORMAT, "spiece.model");
    for (int i = 0; i < 30; i++) { /* cut anywhere: a broken message, or parts missing */
        void *blob = NULL;
        size_t n;
        dpk_error err = {0};
        s = good;
        s.spiece.n_bytes = noise(&seed) % good.spiece.n_bytes;
        int rc = dpk_pack_tokenizer(&s, &blob, &n, &err);
        assert_true(rc == DPK_EFORMAT || rc == DPK_EUNSUPPORTED);
    }
    s = good, s.spiece = text("\x0a\x04\x0a\x02"
                              "ab");
    refuse(&s, DPK_EFORMAT, "unknown piece");
    s = good, s.spiece = text("\x12\x02\x18\x02");
    refuse(&s, DPK_EUNSUPPORTED, "model type 2");
    folder_close(&f);
}

/* The same tokenizer written as one tokenizer.json gives the same ids. */
static void test_tokenizer_json(void **state) {
    (void)state;
    struct folder f;
    folder_open(&f, CLIP, SHAPES, 0);
    cJSON *root = cJSON_CreateObject(), *model = cJSON_AddObjectToObject(root, "model");
    cJSON_AddStringToObject(model, "type", "BPE");
    cJSON *end = cJSON_AddStringToObject(model, "end_of_word_suffix", "</w>");
    cJSON_AddItemToObject(model, "vocab",
                          cJSON_ParseWithLength(f.src.vocab.data, f.src.vocab.n_bytes));
    cJSON *merges = cJSON_AddArrayToObject(model, "merges");
    char *lines = strndup(f.src.merges.data, f.src.merges.n_bytes), *save = NULL;
    int n = 0;
    for (char *l = strtok_r(lines, "\n", &save); l; l = strtok_r(NULL, "\n", &save), n++) {
        if (*l == '#') continue;
        char *space = strchr(l, ' ');
        if (n % 2) {
            cJSON_AddItemToArray(merges, cJSON_CreateString(l));
        } else {
            *space = 0;
            const char *pair[] = {l, space + 1};
            cJSON_AddItemToArray(merges, cJSON_CreateStringArray(pair, 2));
        }
    }
    char *json = cJSON_PrintUnformatted(root);
    struct packed plain = pack_folder(CLIP, SHAPES, 0, false);
    struct dpk_pack_tokenizer s = f.src;
    s.vocab.data = s.merges.data = NULL;
    s.tokenizer = text(json);
    void *blob;
    size_t n_bytes;
    dpk_error err = {0};
    if (dpk_pack_tokenizer(&s, &blob, &n_bytes, &err)) fail_msg("%s", err.msg);
    assert_int_equal(n_bytes, plain.n_bytes);
    assert_memory_equal(blob, plain.blob, n_bytes);
    free(blob);
    packed_free(&plain);
    free(json);
    cJSON_DeleteItemFromObjectCaseSensitive(model, "type"); /* as older versions write it */
    json = cJSON_PrintUnformatted(root);
    s.tokenizer = text(json);
    if (dpk_pack_tokenizer(&s, &blob, &n_bytes, &err)) fail_msg("%s", err.msg);
    free(blob);
    free(json);
    cJSON_SetValuestring(end, ""); /* GPT-2's words begin with their space instead */
    json = cJSON_PrintUnformatted(root);
    s.tokenizer = text(json);
    refuse(&s, DPK_EUNSUPPORTED, "want BPE with </w>");
    free(json);
    free(lines);
    cJSON_Delete(root);
    folder_close(&f);
}

/* added_tokens_decoder, as newer folders have it, stands over the named tokens' own flags. */
static void test_decoder_table(void **state) {
    (void)state;
    struct folder f;
    folder_open(&f, CLIP, SHAPES, 0);
    f.src.config =
        text("{\"model_max_length\": 77, \"pad_token\": \"!\", \"added_tokens_decoder\": {"
             "\"0\": {\"content\": \"!\", \"lstrip\": true, \"normalized\": false},"
             "\"1\": {\"content\": \"\\\"\", \"rstrip\": true, \"single_word\": true}}}");
    void *blob;
    size_t n_bytes;
    dpk_error err = {0};
    struct dpk_tokenizer *t;
    if (dpk_pack_tokenizer(&f.src, &blob, &n_bytes, &err)) fail_msg("%s", err.msg);
    if (dpk_tokenizer_open(&t, CLIP, blob, n_bytes, &err)) fail_msg("%s", err.msg);
    int32_t ids[77];
    size_t n;
    assert_int_equal(dpk_tokenizer_encode(t, "! \" !\"a\"", 8, ids, NULL, &n, &err), DPK_OK);
    /* ! " ! then "a" is no single word on either side */
    assert_int_equal(ids[1], 0);
    assert_int_equal(ids[2], 1);
    assert_int_equal(ids[3], 0);
    assert_int_not_equal(ids[4], 1);
    assert_int_equal(ids[76], 0);
    dpk_tokenizer_free(t);
    free(blob);
    folder_close(&f);
}

/* Pack CLIP with these texts and count its special tokens. */
static uint32_t count_specials(const struct folder *f, const char *config, const char *added) {
    struct dpk_pack_tokenizer s = f->src;
    void *blob;
    size_t n_bytes;
    dpk_error err = {0};
    struct dpk_tok_header h;
    s.config = text(config);
    s.special_tokens.data = NULL;
    s.added_tokens.data = NULL;
    if (added) s.added_tokens = text(added);
    if (dpk_pack_tokenizer(&s, &blob, &n_bytes, &err)) fail_msg("%s", err.msg);
    assert_true(try_blob(CLIP, blob, n_bytes));
    memcpy(&h, blob, sizeof h);
    free(blob);
    return h.n_specials;
}

/* Of a token that comes twice, also with other rules, the last one counts: no file has both. */
static void test_special_twice(void **state) {
    (void)state;
    struct folder f;
    folder_open(&f, CLIP, SHAPES, 0);
    assert_int_equal(count_specials(&f, "{\"model_max_length\": 77}", NULL), 2);
    assert_int_equal(count_specials(&f,
                                    "{\"model_max_length\": 77, \"added_tokens_decoder\": {"
                                    "\"0\": {\"content\": \"!\"}, \"1\": {\"content\": \"!\"},"
                                    "\"2\": {\"content\": \"!\", \"normalized\": true}}}",
                                    NULL),
                     3);
    struct dpk_pack_tokenizer s = f.src;
    s.added_tokens = text("{\"<a>\": 1, \"<a>\": 2}");
    refuse(&s, DPK_EFORMAT, "\"<a>\" comes twice");
    folder_close(&f);
}

/* As many special tokens as there may be: added ones, the four named, those of a list. */
static void test_many_specials(void **state) {
    enum { MOST = 20000, NAMED = 4 };
    const char *const config = "{\"model_max_length\": 77}";
    struct folder f;
    char *added, *list;
    size_t n;
    (void)state;
    folder_open(&f, CLIP, SHAPES, 0);
    FILE *out = open_memstream(&added, &n);
    fprintf(out, "{");
    /* Of many lengths, which is what tells most of them apart. */
    for (int i = 0; i < MOST - NAMED; i++)
        fprintf(out, "\"<%0*d>\": %d,\n", 5 + i % 200, i, 1000 + i);
    const size_t end = (size_t)ftell(out);
    fprintf(out, "\"<last>\": 1}");
    fclose(out);
    added[end - 2] = '}';
    const char last = added[end];
    added[end] = '\0';
    assert_int_equal(count_specials(&f, config, added), MOST - NAMED + 2);
    added[end - 2] = ',';
    added[end] = last;
    struct dpk_pack_tokenizer s = f.src;
    s.config = text(config);
    s.added_tokens = text(added);
    refuse(&s, DPK_EUNSUPPORTED, "more than 20000 special tokens");
    free(added);

    out = open_memstream(&list, &n);
    fprintf(out, "{\"model_max_length\": 77, \"additional_special_tokens\": [\"!\"");
    for (int i = 0; i < MOST; i++) fprintf(out, ", \"!\"");
    fprintf(out, "]}");
    fclose(out);
    s = f.src, s.config = text(list);
    s.added_tokens = text("{\"!\": 0}"); /* so that none of the list is added */
    s.special_tokens.data = NULL;
    refuse(&s, DPK_EUNSUPPORTED, "more than 20000 special tokens");
    free(list);
    folder_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),       cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),          cmocka_unit_test(test_charsmap),
        cmocka_unit_test(test_pack_clip),        cmocka_unit_test(test_pack_t5),
        cmocka_unit_test(test_tokenizer_json),   cmocka_unit_test(test_decoder_table),
        cmocka_unit_test(test_special_twice),    cmocka_unit_test(test_many_specials),
        cmocka_unit_test(test_colliding_merges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
