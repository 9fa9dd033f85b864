/* Prompts that are too long, and prompts with weights: the syntax, the ids, and contexts and
 * pictures against transformers and diffusers (oracle_prompts.py made the goldens). */
#include "../runtime/prompt.h"
#include "../runtime/session.h"
#include "support_golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct dpk_tensors *golden;
static dpk_model *models[2]; /* xl, sd */

static int open_all(void **state) {
    (void)state;
    dpk_error err;
    models[0] = golden_model("prompts-xl", "models/shapes-xl", "--dtype f32");
    models[1] = golden_model("prompts-sd", "tests/data/tiny-sd15", "--dtype f32");
    if (dpk_tensors_open_file(&golden, "tests/data/prompts.safetensors", &err))
        fail_msg("%s", err.msg);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    dpk_tensors_close(golden);
    dpk_model_free(models[0]), dpk_model_free(models[1]);
    return 0;
}

/* ---- Syntax --------------------------------------------------------------------------------- */

struct part {
    const char *text;
    double weight;
};
static const struct {
    const char *prompt;
    struct part parts[10];
} syntax[] = {
    /* The examples that stable-diffusion-webui gives for its parser. */
    {"normal text", {{"normal text", 1}}},
    {"an (important) word", {{"an ", 1}, {"important", 1.1}, {" word", 1}}},
    {"(unbalanced", {{"unbalanced", 1.1}}},
    {"\\(literal\\]", {{"(literal]", 1}}},
    {"(unnecessary)(parens)", {{"unnecessaryparens", 1.1}}},
    {"a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
     {{"a ", 1},
      {"house", 1.3 * 1.1 * 1.1},
      {" ", 1.1},
      {"on", 1},
      {" a ", 1.1},
      {"hill", 0.5 * 1.1},
      {", sun, ", 1.1},
      {"sky", 1.1 * 1.1 * 1.1 * 1.1},
      {".", 1.1}}},
    /* Corners. */
    {"", {{NULL, 0}}},
    {"()[]()", {{NULL, 0}}},
    {"([(", {{NULL, 0}}},
    {"no) brackets] here:1.2)", {{"no) brackets] here:1.2)", 1}}},
    {"(a:b)", {{"a:b", 1.1}}},
    {"(a: 2 )", {{"a", 2}}},
    {"(a:-.5)b", {{"a", -0.5}, {"b", 1}}},
    {"(a:1.2.3)", {{"a:1.2.3", 1.1}}},
    {"(a:.)", {{"a:.", 1.1}}},
    {"(a:1.5", {{"a:1.5", 1.1}}},
    {"[a:1.5]", {{"a:1.5", 1 / 1.1}}},
    {"\\\\ \\n \\", {{"\\ n ", 1}}},
    {"(caf\xc3\xa9)", {{"caf\xc3\xa9", 1.1}}},
    {"(a[b)c]", {{"a", 1.1}, {"b", 1.1 / 1.1}, {"c", 1 / 1.1}}},
};

static void test_syntax(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof syntax / sizeof *syntax; i++) {
        struct dpk_prompt p;
        dpk_error err;
        size_t n = 0;
        assert_int_equal(dpk_prompt_parse(&p, syntax[i].prompt, true, &err), DPK_OK);
        while (n < 10 && syntax[i].parts[n].text) n++;
        if (p.n_parts != n) fail_msg("%s: %zu parts, want %zu", syntax[i].prompt, p.n_parts, n);
        for (size_t k = 0; k < n; k++) {
            const struct part *want = &syntax[i].parts[k];
            if (p.parts[k].bytes != strlen(want->text) ||
                memcmp(p.text + p.parts[k].begin, want->text, p.parts[k].bytes))
                fail_msg("%s: part %zu is \"%.*s\", want \"%s\"", syntax[i].prompt, k,
                         (int)p.parts[k].bytes, p.text + p.parts[k].begin, want->text);
            if (!(fabs(p.parts[k].weight - want->weight) < 1e-12))
                fail_msg("%s: weight %zu is %g, want %g", syntax[i].prompt, k, p.parts[k].weight,
                         want->weight);
        }
        dpk_prompt_free(&p);
    }
}

/* Any mixture of brackets, colons, numbers and words parses, within its memory. */
static void test_any_text_parses(void **state) {
    (void)state;
    static const char letters[] = "(((()[])))\\\\::.1234 -ab";
    uint32_t random = 1;
    for (int round = 0; round < 20000; round++) {
        char text[40];
        struct dpk_prompt p;
        size_t n = 0;
        for (int k = 0; k < round % 39; k++) {
            random = random * 1664525u + 1013904223u;
            text[n++] = letters[(random >> 16) % (sizeof letters - 1)];
        }
        text[n] = 0;
        assert_int_equal(dpk_prompt_parse(&p, text, true, NULL), DPK_OK);
        size_t end = 0;
        for (size_t k = 0; k < p.n_parts; k++) {
            assert_true(p.parts[k].begin == end && p.parts[k].bytes > 0);
            end += p.parts[k].bytes;
        }
        assert_true(end <= n);
        dpk_prompt_free(&p);
    }
}

/* ---- Ids ------------------------------------------------------------------------------------ */

static const char *const half =
    "a large red circle on a blue background and a small yellow star at the top on the left and a "
    "green heart at the bottom on the right and a purple ring in the middle and a white cross "
    "under it and a cyan diamond over it and an orange triangle beside it and a pink square behind "
    "it and a black star in front of it, ";

static char *long_prompt(const char *rest) {
    size_t size = 2 * strlen(half) + strlen(rest) + 1;
    char *s = malloc(size);
    assert_non_null(s);
    snprintf(s, size, "%s%s%s", half, half, rest);
    return s;
}

/* One chunk of one part is what the tokenizer gives; more chunks hold the tokens it cuts off. */
static void test_chunks_of_ids(void **state) {
    (void)state;
    const struct dpk_tokenizer *t = models[0]->tokenizers[0];
    static const char *const texts[] = {"", "a red circle", half};
    dpk_error err;
    for (size_t i = 0; i < 3; i++) {
        struct dpk_prompt p;
        int32_t want[77], got[3 * 77], all[400];
        size_t n;
        assert_int_equal(dpk_tokenizer_max_length(t), 77);
        assert_int_equal(dpk_prompt_parse(&p, texts[i], false, &err), DPK_OK);
        assert_int_equal(
            dpk_tokenizer_encode(t, texts[i], strlen(texts[i]), want, NULL, NULL, &err), DPK_OK);
        assert_int_equal(dpk_prompt_encode(&p, t, 1, got, NULL, &err), DPK_OK);
        assert_memory_equal(got, want, sizeof want);

        assert_int_equal(dpk_prompt_count(&p, t, &n, &err), DPK_OK);
        assert_true(n <= 150);
        assert_int_equal(dpk_prompt_chunks(t, n), n > 75 ? 2 : 1);
        assert_int_equal(dpk_tokenizer_ids(t, texts[i], strlen(texts[i]), all, 400, &n, &err),
                         DPK_OK);
        assert_int_equal(dpk_prompt_encode(&p, t, 3, got, NULL, &err), DPK_OK);
        for (size_t k = 0; k < 225; k++) {
            size_t at = k / 75 * 77 + 1 + k % 75;
            if (k < n) assert_int_equal(got[at], all[k]);
            else if (k == n) assert_int_equal(got[at], want[76]); /* the end token */
        }
        for (size_t c = 0; c < 3; c++) assert_int_equal(got[c * 77], want[0]);
        dpk_prompt_free(&p);
    }
    assert_int_equal(dpk_prompt_chunks(t, 0), 1);
    assert_int_equal(dpk_prompt_chunks(t, 75), 1);
    assert_int_equal(dpk_prompt_chunks(t, 76), 2);
    assert_int_equal(dpk_prompt_chunks(t, 151), 3);
}

static void test_weighing(void **state) {
    (void)state;
    float x[3 * 2] = {1, 2, 3, 4, 5, 9}, y[3 * 2];
    const float weights[3] = {1, 2, 1}, ones[3] = {1, 1, 1}, zeros[3] = {0, 0, 0};
    memcpy(y, x, sizeof y);
    dpk_prompt_weigh(y, weights, 3, 2); /* sums 24 and 31 */
    for (int i = 0; i < 6; i++) assert_float_equal(y[i], x[i] * weights[i / 2] * 24 / 31, 1e-5);
    memcpy(y, x, sizeof y);
    dpk_prompt_weigh(y, ones, 3, 2);
    assert_memory_equal(y, x, sizeof y);
    dpk_prompt_weigh(y, zeros, 3, 2); /* no mean to bring back */
    for (int i = 0; i < 6; i++) assert_true(y[i] == 0);
}

/* ---- Contexts and pictures ------------------------------------------------------------------ */

struct taken {
    dpk_array context, negative, pooled, latent;
    char notices[4][200];
    int n_notices;
};

static void keep(dpk_array *to, const dpk_array *from) {
    size_t n = golden_count(from) * sizeof(float);
    free(to->data);
    *to = *from;
    to->data = malloc(n);
    assert_non_null(to->data);
    memcpy(to->data, from->data, n);
}

static int take(void *arg, const dpk_array *a) {
    struct taken *t = arg;
    if (!strcmp(a->name, "context")) keep(&t->context, a);
    else if (!strcmp(a->name, "negative_context")) keep(&t->negative, a);
    else if (!strcmp(a->name, "pooled")) keep(&t->pooled, a);
    else if (!strncmp(a->name, "latent_", 7)) keep(&t->latent, a);
    return 0;
}

static void note(void *arg, const char *line) {
    struct taken *t = arg;
    assert_true(t->n_notices < 4 && !strchr(line, '\n'));
    snprintf(t->notices[t->n_notices++], sizeof t->notices[0], "%s", line);
}

static void forget(struct taken *t) {
    golden_free(&t->context), golden_free(&t->negative);
    golden_free(&t->pooled), golden_free(&t->latent);
    *t = (struct taken){0};
}

static void compare(const char *name, const char *what, const dpk_array *got, double limit) {
    char key[64];
    snprintf(key, sizeof key, "%s.%s", name, what);
    if (!golden_has(golden, key)) return;
    dpk_array want = golden_array(golden, key, -1, 1);
    if (!got->data) fail_msg("%s is missing", key);
    assert_int_equal(golden_count(got), golden_count(&want));
    assert_int_equal(got->dim[1], want.dim[1]);
    double error = golden_relative(got->data, want.data, golden_count(got));
    printf("%s: %.2e\n", key, error);
    if (!(error <= limit)) fail_msg("%s differs by %g", key, error);
    golden_free(&want);
}

static dpk_session *make_session(const dpk_model *model) {
    dpk_error err;
    dpk_session *s = NULL;
    if (dpk_session_create(&s, model, NULL, &err)) fail_msg("%s", err.msg);
    return s;
}

static dpk_params params_of(const char *const *prompt, uint32_t side, struct taken *t) {
    static const uint64_t seed = 17;
    dpk_params p = dpk_params_default();
    p.prompts = prompt, p.steps = 4, p.width = p.height = side;
    p.seeds = &seed, p.n_seeds = 1;
    p.trace = take, p.trace_arg = t;
    p.notice = note, p.notice_arg = t;
    return p;
}

static void check_case(const char *name, const dpk_model *model, const dpk_params *p,
                       uint32_t n_chunks) {
    dpk_error err;
    dpk_images *images = NULL;
    dpk_info info;
    struct taken *t = p->trace_arg;
    dpk_session *s = make_session(model);
    if (dpk_session_plan(s, p, &info, &err) || dpk_generate(s, p, &images, &err))
        fail_msg("%s: %s", name, err.msg);
    assert_int_equal(info.n_chunks, n_chunks);
    assert_int_equal(t->n_notices, 0);
    compare(name, "context", &t->context, 1e-4);
    compare(name, "negative", &t->negative, 1e-4);
    compare(name, "pooled", &t->pooled, 1e-4);
    compare(name, "latents", &t->latent, 1e-3);
    dpk_images_free(images), dpk_session_free(s), forget(t);
}

static const char *const weighted = "a (red:1.5) circle on [blue] \\(or\\) (((sky)))";

static void test_long_prompt(void **state) {
    (void)state;
    struct taken t = {0};
    char *text = long_prompt("the end");
    const char *const prompt[1] = {text};
    dpk_params p = params_of(prompt, 64, &t);
    p.negative = "a red circle", p.guidance = 5;
    p.long_prompt = DPK_LONG_CHUNKS;
    dpk_array context = golden_array(golden, "xl_long.context", -1, 0);
    check_case("xl_long", models[0], &p, (uint32_t)context.dim[1] / 77);
    golden_free(&context), free(text);
}

static void test_weighted_prompt(void **state) {
    (void)state;
    struct taken t = {0};
    dpk_params p = params_of(&weighted, 64, &t);
    p.negative = "(ring:1.2)", p.guidance = 5;
    p.prompt_weights = 1;
    check_case("xl_weighted", models[0], &p, 1);
}

static void test_long_weighted_prompt(void **state) {
    (void)state;
    struct taken t = {0};
    char *text = long_prompt("the end|");
    char *all = malloc(strlen(text) + strlen(weighted) + 20);
    assert_non_null(all);
    *strchr(text, '|') = 0;
    /* A weight of almost 1 keeps the texts apart, as the golden has them. */
    sprintf(all, "(%s:1.0000000001)%s", text, weighted);
    const char *const prompt[1] = {all};
    dpk_params p = params_of(prompt, 48, &t);
    p.guidance = 7.5f;
    p.long_prompt = DPK_LONG_CHUNKS, p.prompt_weights = 1;
    dpk_array context = golden_array(golden, "sd_weighted_long.context", -1, 0);
    check_case("sd_weighted_long", models[1], &p, (uint32_t)context.dim[1] / 77);
    golden_free(&context), free(text), free(all);
}

/* ---- What the options do not change ---------------------------------------------------------- */

static void generate(dpk_session *s, const dpk_params *p) {
    dpk_error err;
    dpk_images *images = NULL;
    if (dpk_generate(s, p, &images, &err)) fail_msg("%s", err.msg);
    dpk_images_free(images);
}

static void expect_same(const struct taken *a, const struct taken *b) {
    assert_int_equal(golden_count(&a->context), golden_count(&b->context));
    assert_memory_equal(a->context.data, b->context.data, golden_count(&a->context) * 4);
    assert_memory_equal(a->latent.data, b->latent.data, golden_count(&a->latent) * 4);
}

/* A short prompt without brackets is the same with chunks and with weights; a long one is cut, and
 * that is said. */
static void test_short_and_cut_prompts(void **state) {
    (void)state;
    static const char *const short_prompt = "a red circle";
    struct taken plain = {0}, other = {0}, cut = {0};
    char *text = long_prompt("x");
    const char *const prompts[2] = {text, short_prompt};
    dpk_session *s = make_session(models[0]);
    dpk_params p = params_of(&short_prompt, 64, &plain);
    generate(s, &p);
    for (int i = 0; i < 3; i++) {
        p = params_of(&short_prompt, 64, &other);
        p.prompt_weights = i != 1;
        p.long_prompt = i ? DPK_LONG_CHUNKS : DPK_LONG_TRUNCATE;
        generate(s, &p);
        expect_same(&plain, &other);
        forget(&other);
    }
    assert_int_equal(plain.n_notices, 0);

    p = params_of(prompts, 64, &cut);
    p.n_prompts = 2, p.negative = text;
    generate(s, &p);
    assert_int_equal(cut.n_notices, 2);
    assert_non_null(strstr(cut.notices[0], "prompt 0 has"));
    assert_non_null(strstr(cut.notices[1], "the negative prompt has"));
    p = params_of(prompts, 64, &other);
    p.n_prompts = 2, p.negative = text, p.prompt_weights = 1; /* the other way of encoding */
    generate(s, &p);
    expect_same(&cut, &other);
    assert_int_equal(other.n_notices, 2);
    forget(&plain), forget(&other), forget(&cut);
    free(text), dpk_session_free(s);
}

static void test_refusals(void **state) {
    (void)state;
    static const char *const one = "x";
    dpk_error err = {0};
    dpk_info info;
    struct taken t = {0};
    dpk_session *s = make_session(models[0]);
    dpk_params p = params_of(&one, 64, &t);
    p.long_prompt = 7;
    assert_int_equal(dpk_session_plan(s, &p, &info, &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "long_prompt is 7"));
    size_t n = 77 * 300;
    char *endless = malloc(2 * n + 1);
    for (size_t i = 0; i < n; i++) memcpy(endless + 2 * i, "a ", 2);
    endless[2 * n] = 0;
    const char *const prompt[1] = {endless};
    p = params_of(prompt, 64, &t), p.long_prompt = DPK_LONG_CHUNKS;
    assert_int_equal(dpk_session_plan(s, &p, &info, &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "chunks, want at most"));
    free(endless), dpk_session_free(s);

    dpk_model *t5 = golden_model("prompts-t5", "tests/data/tiny-pixart", "--dtype f32");
    s = make_session(t5);
    p = params_of(&one, 64, &t), p.prompt_weights = 1, p.no_binning = 1;
    assert_int_equal(dpk_session_plan(s, &p, &info, &err), DPK_EUNSUPPORTED);
    char *text = long_prompt(half); /* T5 has no chunks: cut, and said */
    const char *const long_one[1] = {text};
    p = params_of(long_one, 64, &t), p.no_binning = 1, p.long_prompt = DPK_LONG_CHUNKS, p.steps = 1;
    generate(s, &p);
    assert_int_equal(t.n_notices, 1);
    forget(&t), free(text), dpk_session_free(s), dpk_model_free(t5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_syntax),
        cmocka_unit_test(test_any_text_parses),
        cmocka_unit_test(test_chunks_of_ids),
        cmocka_unit_test(test_weighing),
        cmocka_unit_test(test_long_prompt),
        cmocka_unit_test(test_weighted_prompt),
        cmocka_unit_test(test_long_weighted_prompt),
        cmocka_unit_test(test_short_and_cut_prompts),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
