/* Tokenizers against the Hugging Face fast tokenizers (tests/data/golden), hard and hostile
 * input. */
#include "../runtime/unicode.h"
#include "support_files.h"
#include "support_golden.h"
#include "support_tokens.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include <cmocka.h>

#define CONFIGS "tests/data/configs/"
#define SDXL CONFIGS "sdxl-base-1.0/"
#define PIXART CONFIGS "pixart-xl-2-1024-ms/tokenizer"
enum { CLIP = DPK_TOKENIZER_CLIP, T5 = DPK_TOKENIZER_T5, MAX = 512 };

struct tokens {
    int32_t ids[MAX], mask[MAX];
    size_t kept, n;
};

static struct tokens encode_bytes(const struct packed *p, const char *text, size_t n) {
    struct tokens out;
    dpk_error err = {0};
    const size_t length = dpk_tokenizer_max_length(p->t);
    assert_true(length <= MAX);
    if (dpk_tokenizer_encode(p->t, text, n, out.ids, out.mask, &out.n, &err))
        fail_msg("%s", err.msg);
    out.kept = 0;
    while (out.kept < length && out.mask[out.kept]) out.kept++;
    for (size_t i = out.kept; i < length; i++) assert_int_equal(out.mask[i], 0);
    assert_int_equal(out.kept, out.n < length ? out.n : length);
    for (size_t i = 0; i < length; i++)
        assert_in_range(out.ids[i], 0, dpk_tokenizer_id_limit(p->t) - 1);
    return out;
}

static struct tokens encode(const struct packed *p, const char *text) {
    return encode_bytes(p, text, strlen(text));
}

/* The tokens without padding are `want`. */
static void expect(const struct packed *p, const char *text, size_t n, const int *want, size_t m,
                   const char *what) {
    struct tokens got = encode_bytes(p, text, n);
    bool same = got.kept == m;
    for (size_t i = 0; same && i < m; i++) same = got.ids[i] == want[i];
    if (same) return;
    print_error("%s: %.*s\n got:", what, (int)n, text);
    for (size_t i = 0; i < got.kept; i++) print_error(" %d", (int)got.ids[i]);
    print_error("\nwant:");
    for (size_t i = 0; i < m; i++) print_error(" %d", want[i]);
    fail_msg("\n%s differs", what);
}

static int expect_list(const struct packed *p, const char *text, const cJSON *list,
                       const char *what) {
    int want[MAX], m = 0;
    const cJSON *v;
    if (!list) return 0;
    cJSON_ArrayForEach(v, list) want[m++] = v->valueint;
    expect(p, text, strlen(text), want, (size_t)m, what);
    return 1;
}

static void test_prompts(void **state) {
    (void)state;
    struct packed clip = pack_folder(CLIP, SDXL "tokenizer", 0, false);
    struct packed clip2 = pack_folder(CLIP, SDXL "tokenizer_2", 0, false);
    struct packed t5 = pack_folder(T5, PIXART, 120, true);
    struct packed raw = pack_folder(T5, PIXART, 120, false);
    assert_int_equal(dpk_tokenizer_max_length(clip.t), 77);
    assert_int_equal(dpk_tokenizer_max_length(t5.t), 120);
    assert_int_equal(dpk_tokenizer_id_limit(clip.t), 49408);
    assert_int_equal(dpk_tokenizer_id_limit(t5.t), 32100);
    char *text = (char *)get_file("tests/data/golden/tokens.jsonl", NULL), *line = text;
    int n[4] = {0}, lines = 0;
    for (char *next; (next = strchr(line, '\n')) != NULL; line = next + 1) {
        cJSON *j = cJSON_ParseWithLength(line, (size_t)(next - line));
        assert_non_null(j);
        const char *prompt = cJSON_GetStringValue(cJSON_GetObjectItem(j, "text"));
        if (prompt) {
            const cJSON *a = cJSON_GetObjectItem(j, "clip"), *b = cJSON_GetObjectItem(j, "clip2");
            const cJSON *c = cJSON_GetObjectItem(j, "t5"), *d = cJSON_GetObjectItem(j, "t5_raw");
            /* cJSON ends a string at an escaped NUL: such a prompt needs its length. */
            bool nul = strstr(line, "\\u0000") && strstr(line, "\\u0000") < next;
            lines++;
            if (!nul) {
                n[0] += expect_list(&clip, prompt, a, "clip");
                n[1] += expect_list(&clip2, prompt, b ? b : a, "clip2");
                n[2] += expect_list(&t5, prompt, c, "t5");
                n[3] += expect_list(&raw, prompt, d ? d : c, "t5_raw");
            }
        }
        cJSON_Delete(j);
    }
    assert_int_equal(lines, 200);
    for (int i = 0; i < 4; i++) assert_int_equal(n[i], 199);
    free(text);
    packed_free(&clip);
    packed_free(&clip2);
    packed_free(&t5);
    packed_free(&raw);
}

/* NUL bytes are text: the line of tokens.jsonl that has them. */
static void test_nul(void **state) {
    (void)state;
    char *text = (char *)get_file("tests/data/golden/tokens.jsonl", NULL);
    struct packed clip = pack_folder(CLIP, SDXL "tokenizer", 0, false);
    struct packed t5 = pack_folder(T5, PIXART, 120, true);
    for (char *at = text; (at = strstr(at, "\\u0000")) != NULL; at += 6) memcpy(at, "\\ufdd5", 6);
    int n = 0;
    for (char *line = text, *next; (next = strchr(line, '\n')) != NULL; line = next + 1) {
        cJSON *j = cJSON_ParseWithLength(line, (size_t)(next - line));
        char *prompt = cJSON_GetStringValue(cJSON_GetObjectItem(j, "text"));
        if (prompt && strstr(prompt, "\xef\xb7\x95")) {
            size_t m = strlen(prompt);
            for (char *at; (at = strstr(prompt, "\xef\xb7\x95")) != NULL;) {
                /* one byte for three; strstr looks at what follows the NUL no more */
                memmove(at + 1, at + 3, m - (size_t)(at - prompt) - 2);
                *at = 0;
                m -= 2;
            }
            int want[MAX], k = 0;
            const cJSON *v;
            cJSON_ArrayForEach(v, cJSON_GetObjectItem(j, "clip")) want[k++] = v->valueint;
            expect(&clip, prompt, m, want, (size_t)k, "clip with NUL");
            k = 0;
            cJSON_ArrayForEach(v, cJSON_GetObjectItem(j, "t5")) want[k++] = v->valueint;
            expect(&t5, prompt, m, want, (size_t)k, "t5 with NUL");
            n++;
        }
        cJSON_Delete(j);
    }
    struct tokens got = encode_bytes(&clip, "a\0b", 3);
    assert_int_equal(got.n, 5);
    print_message("%d prompts with NUL\n", n);
    free(text);
    packed_free(&clip);
    packed_free(&t5);
}

/* ids, and masks where there are, of the small models' goldens. */
static void check_model(const char *model, const char *folder, uint32_t kind, uint32_t max_length,
                        const char *ids, const char *mask) {
    char path[256];
    dpk_error err;
    struct dpk_tensors *golden;
    snprintf(path, sizeof path, "tests/data/%s/%s", model, folder);
    struct packed p = pack_folder(kind, path, max_length, kind == T5);
    snprintf(path, sizeof path, "tests/data/golden/%s.json", model);
    char *text = (char *)get_file(path, NULL);
    cJSON *json = cJSON_Parse(text);
    snprintf(path, sizeof path, "tests/data/golden/%s.safetensors", model);
    if (dpk_tensors_open_file(&golden, path, &err)) fail_msg("%s", err.msg);
    const cJSON *prompt;
    int row = 0;
    cJSON_ArrayForEach(prompt, cJSON_GetObjectItem(json, "prompts")) {
        struct tokens got = encode(&p, prompt->valuestring);
        dpk_array want = golden_array(golden, ids, row, 0);
        assert_int_equal(golden_count(&want), dpk_tokenizer_max_length(p.t));
        assert_memory_equal(got.ids, want.data, golden_count(&want) * sizeof(int32_t));
        golden_free(&want);
        if (mask) {
            want = golden_array(golden, mask, row, 0);
            assert_memory_equal(got.mask, want.data, golden_count(&want) * sizeof(int32_t));
            golden_free(&want);
        }
        row++;
    }
    assert_int_equal(row, 6);
    dpk_tensors_close(golden);
    cJSON_Delete(json);
    free(text);
    packed_free(&p);
}

static void test_models(void **state) {
    (void)state;
    check_model("tiny-sd15", "tokenizer", CLIP, 0, "text.ids", NULL);
    check_model("tiny-sdxl", "tokenizer", CLIP, 0, "text.ids", NULL);
    check_model("tiny-sdxl", "tokenizer_2", CLIP, 0, "text.ids_2", NULL);
    check_model("tiny-ssd1b", "tokenizer", CLIP, 0, "text.ids", NULL);
    check_model("tiny-ssd1b", "tokenizer_2", CLIP, 0, "text.ids_2", NULL);
    check_model("tiny-pixart", "tokenizer", T5, 120, "text.ids", "text.mask");
    static const char *const folders[] = {"tokenizer", "tokenizer_2"};
    for (int i = 0; i < 2; i++) {
        char path[64];
        dpk_error err;
        struct dpk_tensors *golden;
        snprintf(path, sizeof path, "models/shapes-xl/%s", folders[i]);
        struct packed p = pack_folder(CLIP, path, 0, false);
        if (dpk_tensors_open_file(&golden, "tests/data/shapes-xl-golden/main.safetensors", &err))
            fail_msg("%s", err.msg);
        dpk_array want = golden_array(golden, i ? "input_ids_2" : "input_ids", 0, 0);
        struct tokens got = encode(&p, "a large red circle on a blue background");
        assert_memory_equal(got.ids, want.data, 77 * sizeof(int32_t));
        golden_free(&want);
        dpk_tensors_close(golden);
        packed_free(&p);
    }
}

/* What the goldens do not have; ids from transformers 5.23. */
static void test_special(void **state) {
    (void)state;
    struct packed clip = pack_folder(CLIP, SDXL "tokenizer", 0, false);
    struct packed clip2 = pack_folder(CLIP, SDXL "tokenizer_2", 0, false);
    struct packed raw = pack_folder(T5, PIXART, 120, false);
    static const int upper[] = {49406, 320, 49406, 321,  49406, 322, 49407, 323,
                                27,    347, 40786, 4160, 91,    285, 49407};
    static const int short_forms[] = {49406, 585, 568, 982, 13222, 338, 49407};
    static const int words[] = {3, 9, 32096, 3, 115, 32096, 75, 1, 1};
    static const int wide[] = {3, 1, 3, 9, 1};
    static const int plain[] = {49406, 256, 748, 995, 49407};
    static const int pads[] = {49406, 0, 0, 0, 0, 0, 0, 49407};
    const struct {
        const struct packed *p;
        const char *text;
        const int *want;
        size_t n;
    } cases[] = {
        {&clip, "a<|startoftext|>b<|STARTOFTEXT|>c<|endoftext|>d<|ENDOFTEXT|>", upper, 15},
        {&clip, "it's 'Re!'s", short_forms, 7},
        {&clip, "! !! !!!", plain, 5},
        {&clip2, "! !! !!!", pads, 8}, /* its padding is a special token */
        {&raw, "a <extra_id_3> b<extra_id_3>c</s>", words, 9},
        /* fullwidth </s>, and spaces that are written out */
        {&raw,
         "\xef\xbc\x9c/s\xef\xbc\x9e \xe2\x96\x81\xe2\x96\x81"
         "a",
         wide, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect(cases[i].p, cases[i].text, strlen(cases[i].text), cases[i].want, cases[i].n,
               "special");
    assert_int_equal(encode(&clip, "").n, 2);
    assert_int_equal(encode(&raw, "").n, 1);
    assert_int_equal(encode(&raw, " \t\n").n, 1);
    packed_free(&clip);
    packed_free(&clip2);
    packed_free(&raw);
}

static void test_not_utf8(void **state) {
    (void)state;
    static const struct {
        const char *text;
        const char *where;
    } bad[] = {{"\xff", "byte 0 (0xff)"},      {"ab\xc3", "byte 2 (0xc3)"},
               {"\xc0\x80", "byte 0"},         {"a\xed\xa0\x80", "byte 1"},
               {"\xf4\x90\x80\x80", "byte 0"}, {"ok \xe2\x82", "byte 3"},
               {"\xe2\x82\xac\x80", "byte 3"}};
    struct packed clip = pack_folder(CLIP, "models/shapes-xl/tokenizer", 0, false);
    int32_t ids[77];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dpk_error err = {0};
        int rc =
            dpk_tokenizer_encode(clip.t, bad[i].text, strlen(bad[i].text), ids, NULL, NULL, &err);
        assert_int_equal(rc, DPK_EARG);
        if (!strstr(err.msg, bad[i].where)) fail_msg("%s, want %s", err.msg, bad[i].where);
    }
    char *big = calloc(1, (1 << 20) + 1);
    dpk_error err = {0};
    assert_int_equal(dpk_tokenizer_encode(clip.t, big, (1 << 20) + 1, ids, NULL, NULL, &err),
                     DPK_EARG);
    free(big);
    packed_free(&clip);
}

/* A megabyte of anything ends soon: no step is quadratic. */
static void test_long(void **state) {
    (void)state;
    static const char *const units[] = {"a",
                                        " ",
                                        "'",
                                        "\xcc\x81\xcc\xa3",
                                        "\xe2\x96\x81",
                                        "<extra_id_7>",
                                        "\xce\xa3'",
                                        "<|endoftext|",
                                        "\xf0\x9f\x87\xa9",
                                        "ab!",
                                        "\xe3\x8f\x8d",
                                        "1\xe2\x80\x8d"};
    struct packed p[3] = {pack_folder(CLIP, SDXL "tokenizer", 0, false),
                          pack_folder(T5, PIXART, 120, true), pack_folder(T5, PIXART, 120, false)};
    enum { N = 1 << 20 };
    char *text = malloc(N);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const size_t m = strlen(units[i]), n = N - N % m;
        for (size_t k = 0; k < n; k++) text[k] = units[i][k % m];
        for (int k = 0; k < 3; k++) encode_bytes(&p[k], text, n);
    }
    struct tokens got = encode_bytes(&p[0], "a a a", 5);
    assert_int_equal(got.n, 5);
    memset(text, 'x', N);
    got = encode_bytes(&p[0], text, 100000);
    assert_true(got.n > 1000);
    assert_int_equal(got.ids[76], 49407);
    free(text);
    for (int k = 0; k < 3; k++) packed_free(&p[k]);
}

/* NFC of random texts equals utf8proc's, where both have the same Unicode version. */
static void test_nfc(void **state) {
    (void)state;
    static const uint32_t ranges[][2] = {
        {0x20, 0x250},    {0x300, 0x345},     {0x370, 0x480},    {0x1e00, 0x2000}, {0xac00, 0xd7a4},
        {0x1100, 0x1113}, {0x1161, 0x1176},   {0x11a8, 0x11c3},  {0x915, 0x95f},   {0x3040, 0x30ff},
        {0xf900, 0xfa0e}, {0x1d15e, 0x1d166}, {0x11099, 0x110bb}};
    struct packed clip = pack_folder(CLIP, "models/shapes-xl/tokenizer", 0, false);
    struct dpk_unicode u = {0};
    const struct dpk_tok_header *h = clip.blob;
    u.n_runs = h->n_runs;
    u.n_lower = h->n_lower;
    u.n_decompositions = h->n_decompositions;
    u.runs = (const uint8_t *)(h + 1);
    u.lower = u.runs + 8 * (size_t)u.n_runs;
    u.decompositions = u.lower + 8 * (size_t)u.n_lower;
    u.compositions = u.decompositions + 12 * (size_t)u.n_decompositions;
    for (uint32_t i = 0; i < u.n_decompositions; i++)
        u.n_compositions += dpk_load32(u.decompositions + 12 * (size_t)i) >> 31;
    uint64_t seed = 7;
    for (int round = 0; round < 20000; round++) {
        uint32_t text[48];
        int32_t want[48 * 4 + 1];
        size_t n = 1 + noise(&seed) % (round % 100 == 0 ? 48 : 8);
        for (size_t i = 0; i < n; i++) {
            const uint32_t *r = ranges[noise(&seed) % (sizeof ranges / sizeof *ranges)];
            text[i] = r[0] + noise(&seed) % (r[1] - r[0]);
            if (round % 3 == 0 && i) text[i] = 0x300 + noise(&seed) % 0x45;
        }
        size_t m = 0;
        int last = 0;
        for (size_t i = 0; i < n; i++)
            m += (size_t)utf8proc_decompose_char((int32_t)text[i], want + m, 4, UTF8PROC_DECOMPOSE,
                                                 &last);
        for (size_t i = 1; i < m; i++) { /* canonical order */
            int k = utf8proc_get_property(want[i])->combining_class;
            for (size_t j = i; k && j > 0; j--) {
                if (utf8proc_get_property(want[j - 1])->combining_class <= k) break;
                int32_t c = want[j];
                want[j] = want[j - 1];
                want[j - 1] = c;
            }
        }
        m = (size_t)utf8proc_normalize_utf32(want, (utf8proc_ssize_t)m,
                                             UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        struct dpk_codes got = {0};
        dpk_unicode_nfc(&u, text, n, &got);
        assert_false(got.failed);
        assert_int_equal(got.n, m);
        assert_memory_equal(got.v, want, m * sizeof *want);
        dpk_codes_free(&got);
    }
    packed_free(&clip);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts),  cmocka_unit_test(test_nul),
        cmocka_unit_test(test_models),   cmocka_unit_test(test_special),
        cmocka_unit_test(test_not_utf8), cmocka_unit_test(test_long),
        cmocka_unit_test(test_nfc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
