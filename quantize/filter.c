#include "filter.h"

#include "../formats/dpk_check.h"
#include "../formats/fail.h"
#include "../formats/stream.h"
#include "../formats/utf8.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_FILE = 1 << 20, /* bytes of a filter file */
    MAX_RULES = 10000,
    MAX_TESTS = 8, /* of one rule */
};

enum test_field { FIELD_IN, FIELD_OUT, FIELD_ROWS, FIELD_KIND, FIELD_GLOB };
enum test_compare { CMP_EQ, CMP_NE, CMP_LT, CMP_LE, CMP_GT, CMP_GE, CMP_MULTIPLE };

struct test {
    int field, compare;
    int64_t value;
    const char *glob; /* in the filter's text */
};
struct rule {
    bool quantize;
    int n_tests;
    struct test test[MAX_TESTS];
    char *reason; /* owned: "line 3: skip 320 640" */
};
enum preset { PRESET_FILE, PRESET_DIFFUSION_FAST, PRESET_ALL, PRESET_NONE, PRESET_AUTO };
struct dpk_filter {
    int preset;
    char id[32];
    char *text; /* owned; cut into words by NUL */
    struct rule *rules;
    size_t n_rules;
};

const char *dpk_layer_kind_name(int kind) {
    static const char *const names[] = {"linear", "conv1x1", "conv"};
    return kind >= 0 && kind <= DPK_LAYER_CONV ? names[kind] : "?";
}

bool dpk_glob_match(const char *glob, const char *name) {
    const char *star = NULL, *retry = NULL; /* the last '*', and where its rest was tried last */
    while (*name) {
        if (*glob == '*') {
            star = ++glob;
            retry = name;
        } else if (*glob == '?' || *glob == *name) {
            glob++;
            name++;
        } else if (star) {
            glob = star;
            name = ++retry;
        } else {
            return false;
        }
    }
    while (*glob == '*') glob++;
    return *glob == 0;
}

/* ---- diffusion-fast -------------------------------------------------------------------------- */

/* The pairs of run_benchmark.py's dynamic_quant_filter_fn, (in, out) after QKV fusion. */
static const int16_t skipped_pairs[][2] = {
    {256, 128},   {320, 640},   {512, 256},   {512, 512},   {512, 1536},  {640, 320},  {640, 640},
    {640, 1280},  {640, 1920},  {640, 5120},  {960, 320},   {960, 640},   {1280, 640}, {1920, 640},
    {1920, 1280}, {2048, 1280}, {2048, 2560}, {2560, 1280}, {2816, 1280},
};

static bool diffusion_fast(const struct dpk_filter_layer *layer, const char **reason) {
    static const char *const components[] = {"unet.", "transformer.", "vae."};
    bool ours = false;
    for (size_t i = 0; i < sizeof components / sizeof *components; i++)
        ours = ours || strncmp(layer->name, components[i], strlen(components[i])) == 0;
    *reason = "not in the denoiser or the autoencoder";
    if (!ours) return false;
    *reason = "a convolution";
    if (layer->kind == DPK_LAYER_CONV) return false;
    *reason = "a 1x1 convolution without 128 among its channels";
    if (layer->kind == DPK_LAYER_CONV1X1 && layer->in != 128 && layer->out != 128) return false;
    *reason = "16 inputs or fewer";
    if (layer->in <= 16) return false;
    *reason = "shape on the list of those that lose";
    for (size_t i = 0; i < sizeof skipped_pairs / sizeof *skipped_pairs; i++)
        if (layer->in == skipped_pairs[i][0] && layer->out == skipped_pairs[i][1]) return false;
    *reason = "shape not on the list of those that lose";
    return true;
}

/* ---- Deciding -------------------------------------------------------------------------------- */

static bool test_holds(const struct test *t, const struct dpk_filter_layer *layer) {
    int64_t v;
    switch (t->field) {
    case FIELD_GLOB:
        return dpk_glob_match(t->glob, layer->name);
    case FIELD_IN:
        v = layer->in;
        break;
    case FIELD_OUT:
        v = layer->out;
        break;
    case FIELD_ROWS:
        if (layer->rows <= 0) return false;
        v = layer->rows;
        break;
    default:
        v = layer->kind;
        break;
    }
    switch (t->compare) {
    case CMP_EQ:
        return v == t->value;
    case CMP_NE:
        return v != t->value;
    case CMP_LT:
        return v < t->value;
    case CMP_LE:
        return v <= t->value;
    case CMP_GT:
        return v > t->value;
    case CMP_GE:
        return v >= t->value;
    default:
        return v % t->value == 0;
    }
}

bool dpk_filter_decide(const struct dpk_filter *f, const struct dpk_filter_layer *layer,
                       const char **reason) {
    const char *unused;
    if (!reason) reason = &unused;
    switch (f->preset) {
    case PRESET_DIFFUSION_FAST:
        return diffusion_fast(layer, reason);
    case PRESET_ALL:
        *reason = "all layers";
        return true;
    case PRESET_NONE:
        *reason = "no layers";
        return false;
    case PRESET_AUTO:
        *reason = "if it gains";
        return true;
    default:
        break;
    }
    for (size_t i = 0; i < f->n_rules; i++) {
        const struct rule *r = &f->rules[i];
        int k = 0;
        while (k < r->n_tests && test_holds(&r->test[k], layer)) k++;
        if (k < r->n_tests) continue;
        *reason = r->reason;
        return r->quantize;
    }
    *reason = "no rule matches";
    return true;
}

const char *dpk_filter_id(const struct dpk_filter *f) { return f->id; }

/* ---- Parsing --------------------------------------------------------------------------------- */

struct parser {
    const char *name;
    unsigned line;
    dpk_error *err;
};

/* A decimal number below 2^40 and nothing else. */
static bool parse_number(const char *s, int64_t *v) {
    *v = 0;
    if (!*s) return false;
    for (; *s; s++) {
        if (*s < '0' || *s > '9' || *v >= INT64_C(1) << 36) return false;
        *v = *v * 10 + (*s - '0');
    }
    return true;
}

/* "in>=17": *is_compare is false if the word is none of the sort (then it is a glob). */
static int parse_compare(const struct parser *p, const char *word, struct test *t,
                         bool *is_compare) {
    static const char *const fields[] = {"in", "out", "rows", "kind"};
    static const struct {
        const char *s;
        int compare;
    } signs[] = {{"!=", CMP_NE}, {"<=", CMP_LE}, {">=", CMP_GE},     {"=", CMP_EQ},
                 {"<", CMP_LT},  {">", CMP_GT},  {"%", CMP_MULTIPLE}};
    const size_t n_name = strcspn(word, "=!<>%");
    int rc = DPK_OK;
    *is_compare = word[n_name] != 0;
    if (!*is_compare) goto done;
    int field = -1;
    for (int i = 0; i < 4; i++)
        if (strlen(fields[i]) == n_name && strncmp(word, fields[i], n_name) == 0) field = i;
    if (field < 0)
        DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: \"%.60s\": want in, out, rows or kind to compare",
                 p->name, p->line, word);
    const char *value = NULL;
    for (size_t i = 0; i < sizeof signs / sizeof *signs && !value; i++)
        if (strncmp(word + n_name, signs[i].s, strlen(signs[i].s)) == 0) {
            *t = (struct test){.field = field, .compare = signs[i].compare};
            value = word + n_name + strlen(signs[i].s);
        }
    if (!value)
        DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: \"%.60s\": want one of = != < <= > >= %%", p->name,
                 p->line, word);
    if (field == FIELD_KIND) {
        for (t->value = DPK_LAYER_CONV; t->value >= 0; t->value--)
            if (strcmp(value, dpk_layer_kind_name((int)t->value)) == 0) break;
        if (t->value < 0 || t->compare > CMP_NE)
            DPK_FAIL(p->err, DPK_EFORMAT,
                     "%s:%u: \"%.60s\": want = or != and one of linear, conv1x1, conv", p->name,
                     p->line, word);
    } else if (!parse_number(value, &t->value) || (t->compare == CMP_MULTIPLE && t->value == 0)) {
        DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: \"%.60s\": want a%s number after the sign", p->name,
                 p->line, word, t->compare == CMP_MULTIPLE ? " positive" : "");
    }
done:
    return rc;
}

static int add_test(const struct parser *p, struct rule *r, struct test t) {
    if (r->n_tests == MAX_TESTS)
        return dpk_error_set(p->err, DPK_EFORMAT, "%s:%u: more than %d conditions", p->name,
                             p->line, MAX_TESTS);
    r->test[r->n_tests++] = t;
    return DPK_OK;
}

/* The words after `quantize` or `skip`. */
static int parse_tests(const struct parser *p, struct rule *r, char **word, size_t n) {
    int rc = DPK_OK;
    if (n == 0)
        DPK_FAIL(p->err, DPK_EFORMAT,
                 "%s:%u: nothing after it; want a pattern, a shape or a "
                 "comparison (* for every layer)",
                 p->name, p->line);
    for (size_t i = 0; i < n; i++) {
        struct test t = {0};
        bool is_compare;
        int64_t in, out;
        if (parse_number(word[i], &in)) {
            if (i + 1 == n || !parse_number(word[i + 1], &out))
                DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: \"%.60s\": want two numbers, in and out",
                         p->name, p->line, word[i]);
            DPK_TRY(add_test(p, r, (struct test){FIELD_IN, CMP_EQ, in, NULL}));
            DPK_TRY(add_test(p, r, (struct test){FIELD_OUT, CMP_EQ, out, NULL}));
            i++;
            continue;
        }
        DPK_TRY(parse_compare(p, word[i], &t, &is_compare));
        if (!is_compare) t = (struct test){FIELD_GLOB, CMP_EQ, 0, word[i]};
        DPK_TRY(add_test(p, r, t));
    }
done:
    return rc;
}

static int parse_rule(const struct parser *p, struct rule *r, char **word, size_t n) {
    int rc = DPK_OK;
    if (strcmp(word[0], "min_in_features") == 0) {
        int64_t v;
        if (n != 2 || !parse_number(word[1], &v))
            DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: want min_in_features and one number", p->name,
                     p->line);
        DPK_TRY(add_test(p, r, (struct test){FIELD_IN, CMP_LT, v, NULL}));
    } else if (strcmp(word[0], "skip") == 0 || strcmp(word[0], "quantize") == 0) {
        r->quantize = word[0][0] == 'q';
        DPK_TRY(parse_tests(p, r, word + 1, n - 1));
    } else {
        DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: \"%.60s\": want quantize, skip or min_in_features",
                 p->name, p->line, word[0]);
    }
done:
    return rc;
}

/* One line, NUL-terminated, cut up in place. */
static int parse_line(struct dpk_filter *f, const struct parser *p, char *line) {
    enum { MAX_WORDS = 2 * MAX_TESTS };
    char *word[MAX_WORDS];
    size_t n = 0;
    int rc = DPK_OK;
    line[strcspn(line, "#")] = 0;
    char shown[80];
    snprintf(shown, sizeof shown, "%s", line + strspn(line, " \t\r"));
    for (char *s = strtok_r(line, " \t\r", &line); s; s = strtok_r(NULL, " \t\r", &line)) {
        if (n == MAX_WORDS)
            DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: more than %d words", p->name, p->line, MAX_WORDS);
        word[n++] = s;
    }
    if (n == 0) goto done;
    if (f->n_rules == MAX_RULES)
        DPK_FAIL(p->err, DPK_EFORMAT, "%s:%u: more than %d rules", p->name, p->line, MAX_RULES);
    struct rule *rules = realloc(f->rules, (f->n_rules + 1) * sizeof *rules);
    if (!rules) DPK_FAIL(p->err, DPK_ENOMEM, "%s: no memory for its rules", p->name);
    f->rules = rules;
    struct rule *r = &rules[f->n_rules];
    *r = (struct rule){0};
    DPK_TRY(parse_rule(p, r, word, n));
    for (size_t i = strlen(shown); i > 0 && strchr(" \t\r", shown[i - 1]); i--) shown[i - 1] = 0;
    if (asprintf(&r->reason, "line %u: %s", p->line, shown) < 0) {
        r->reason = NULL;
        DPK_FAIL(p->err, DPK_ENOMEM, "%s: no memory for its rules", p->name);
    }
    f->n_rules++;
done:
    return rc;
}

int dpk_filter_parse(struct dpk_filter **out, const char *name, const char *text, size_t n_bytes,
                     dpk_error *err) {
    struct parser p = {name, 0, err};
    struct dpk_filter *f = calloc(1, sizeof *f);
    int rc = DPK_OK;
    *out = NULL;
    if (!f || !(f->text = malloc(n_bytes + 1)))
        DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for %zu bytes", name, n_bytes);
    if (n_bytes) memcpy(f->text, text, n_bytes);
    f->text[n_bytes] = 0;
    snprintf(f->id, sizeof f->id, "file:%016" PRIx64, dpk_bytes_sum(f->text, n_bytes));
    for (size_t i = 0; i < n_bytes; i++)
        if ((uint8_t)f->text[i] < 0x20 && !memchr("\t\r\n", f->text[i], 3))
            DPK_FAIL(err, DPK_EFORMAT, "%s: control character %#x at byte %zu: not a text file",
                     name, (unsigned)f->text[i], i);
    char *line = f->text + dpk_utf8_mark(f->text), *end = f->text + n_bytes;
    while (line < end) {
        char *next = memchr(line, '\n', (size_t)(end - line));
        if (!next) next = end;
        *next = 0;
        p.line++;
        DPK_TRY(parse_line(f, &p, line));
        line = next + 1;
    }
    *out = f;
    f = NULL;
done:
    dpk_filter_free(f);
    return rc;
}

int dpk_filter_open(struct dpk_filter **out, const char *spec, dpk_error *err) {
    static const char *const presets[] = {
        [PRESET_DIFFUSION_FAST] = "diffusion-fast", [PRESET_ALL] = "all", [PRESET_NONE] = "none",
        [PRESET_AUTO] = "auto"};
    struct dpk_stream s = {.fd = -1};
    char *text = NULL;
    size_t n_bytes;
    dpk_error why = {0};
    int rc = DPK_OK;
    *out = NULL;
    for (int i = PRESET_DIFFUSION_FAST; i <= PRESET_AUTO; i++) {
        if (strcmp(spec, presets[i]) != 0) continue;
        struct dpk_filter *f = calloc(1, sizeof *f);
        if (!f) DPK_FAIL(err, DPK_ENOMEM, "filter %s: no memory", spec);
        f->preset = i;
        snprintf(f->id, sizeof f->id, "%s", spec);
        *out = f;
        return DPK_OK;
    }
    if (dpk_stream_open(&s, spec, &why) != DPK_OK)
        DPK_FAIL(err, DPK_EARG,
                 "filter %s: neither diffusion-fast, all, none nor auto, nor a file: %.300s", spec,
                 why.msg);
    DPK_TRY(dpk_stream_load(&s, MAX_FILE, &text, &n_bytes, err));
    DPK_TRY(dpk_filter_parse(out, spec, text, n_bytes, err));
done:
    free(text);
    if (s.name) dpk_stream_close(&s);
    return rc;
}

void dpk_filter_free(struct dpk_filter *f) {
    if (!f) return;
    for (size_t i = 0; i < f->n_rules; i++) free(f->rules[i].reason);
    free(f->rules);
    free(f->text);
    free(f);
}
