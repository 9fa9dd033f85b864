/* Prompts of several chunks, and prompts with weights.
 *
 * The syntax of weights, their meaning and chunks of 75 tokens are those of stable-diffusion-webui
 * (parse_prompt_attention, EmphasisOriginal), without its moving of words to the next chunk. */
#include "prompt.h"

#include "../formats/fail.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Weights ------------------------------------------------------------------------------ */

struct open_bracket {
    size_t part; /* the first within */
    bool round;
};

struct parser {
    const char *at;
    struct dpk_prompt *p;
    size_t n;                  /* bytes of p->text */
    struct open_bracket *open; /* [n_open], owned */
    size_t n_open;
};

/* The number of ":1.3)", after spaces anywhere between, and where it ends; NULL if there is none.
 * Digits and points, as Python's float takes them. */
static const char *read_weight(const char *s, double *weight) {
    static const char *const spaces = " \t\n\r\f\v";
    double value = 0, unit = 1, sign = 1;
    bool digits = false, point = false;
    s += 1 + strspn(s + 1, spaces);
    if (*s == '-' || *s == '+') sign = *s++ == '-' ? -1 : 1;
    for (; (*s >= '0' && *s <= '9') || (*s == '.' && !point); s++) {
        if (*s == '.') {
            point = true;
            continue;
        }
        digits = true;
        value = value * 10 + (*s - '0');
        if (point) unit *= 10;
    }
    s += strspn(s, spaces);
    if (!digits || *s != ')' || !isfinite(value / unit)) return NULL;
    *weight = sign * value / unit;
    return s + 1;
}

static void add_bytes(struct parser *q, const char *s, size_t n) {
    memcpy(q->p->text + q->n, s, n);
    q->n += n;
    q->p->parts[q->p->n_parts - 1].bytes += n;
}

/* Begin a part of its own at a bracket. */
static void cut_part(struct parser *q) {
    struct dpk_prompt *p = q->p;
    if (p->n_parts && !p->parts[p->n_parts - 1].bytes) p->n_parts--;
    p->parts[p->n_parts++] = (struct dpk_prompt_part){q->n, 0, 1};
}

static void open_bracket(struct parser *q, bool round) {
    cut_part(q);
    q->open[q->n_open++] = (struct open_bracket){q->p->n_parts - 1, round};
}

/* Close the last open bracket of this kind, wherever it is among the others. */
static bool close_bracket(struct parser *q, bool round, double weight) {
    size_t i = q->n_open;
    while (i > 0 && q->open[i - 1].round != round) i--;
    if (i == 0) return false;
    for (size_t k = q->open[i - 1].part; k < q->p->n_parts; k++) q->p->parts[k].weight *= weight;
    memmove(&q->open[i - 1], &q->open[i], (q->n_open - i) * sizeof *q->open);
    q->n_open--;
    cut_part(q);
    return true;
}

static void parse_next(struct parser *q) {
    const char *s = q->at, *end;
    double weight;
    if (*s == '\\' && s[1] && strchr("()[]\\", s[1])) {
        add_bytes(q, s + 1, 1);
        q->at += 2;
        return;
    }
    q->at++;
    switch (*s) {
    case '\\': /* before anything else it is left out */
        return;
    case '(':
    case '[':
        open_bracket(q, *s == '(');
        return;
    case ':':
        end = read_weight(s, &weight);
        if (!end) break;
        if (close_bracket(q, true, weight)) q->at = end;
        else add_bytes(q, s, (size_t)(end - s)), q->at = end;
        return;
    case ')':
        if (close_bracket(q, true, 1.1)) return;
        break;
    case ']':
        if (close_bracket(q, false, 1 / 1.1)) return;
        break;
    default:
        q->at = s + strcspn(s, "\\()[]:");
        add_bytes(q, s, (size_t)(q->at - s));
        return;
    }
    add_bytes(q, s, 1);
}

/* Leave out empty parts, join neighbours of one weight. */
static void join_parts(struct dpk_prompt *p) {
    size_t n = 0;
    for (size_t i = 0; i < p->n_parts; i++) {
        if (!p->parts[i].bytes) continue;
        if (n && p->parts[n - 1].weight == p->parts[i].weight)
            p->parts[n - 1].bytes += p->parts[i].bytes;
        else p->parts[n++] = p->parts[i];
    }
    p->n_parts = n;
}

int dpk_prompt_parse(struct dpk_prompt *p, const char *text, bool weighted, dpk_error *err) {
    int rc = DPK_OK;
    const size_t length = strlen(text);
    struct parser q = {.at = text, .p = p};
    *p = (struct dpk_prompt){0};
    size_t n_brackets = 0;
    for (size_t i = 0; weighted && i < length; i++) n_brackets += strchr("()[]", text[i]) != NULL;
    p->text = malloc(length + 1);
    p->parts = calloc(n_brackets + 2, sizeof *p->parts);
    q.open = calloc(n_brackets + 1, sizeof *q.open);
    if (!p->text || !p->parts || !q.open)
        DPK_FAIL(err, DPK_ENOMEM, "prompt: no memory for %zu bytes", length);
    cut_part(&q);
    if (!weighted) add_bytes(&q, text, length);
    while (weighted && *q.at) parse_next(&q);
    while (q.n_open) { /* the end closes what is open */
        bool round = q.open[q.n_open - 1].round;
        close_bracket(&q, round, round ? 1.1 : 1 / 1.1);
    }
    join_parts(p);
    for (size_t i = 0; i < p->n_parts; i++)
        if (!isfinite((float)p->parts[i].weight))
            DPK_FAIL(err, DPK_EARG, "prompt: words with weight %g, want at most %g",
                     p->parts[i].weight, (double)FLT_MAX);
done:
    free(q.open);
    if (rc) dpk_prompt_free(p);
    return rc;
}

void dpk_prompt_free(struct dpk_prompt *p) {
    free(p->text);
    free(p->parts);
    *p = (struct dpk_prompt){0};
}

/* ---- Ids ---------------------------------------------------------------------------------- */

int dpk_prompt_count(const struct dpk_prompt *p, const struct dpk_tokenizer *t, size_t *n_tokens,
                     dpk_error *err) {
    int rc = DPK_OK;
    *n_tokens = 0;
    for (size_t i = 0; i < p->n_parts; i++) {
        size_t n;
        DPK_TRY(dpk_tokenizer_ids(t, p->text + p->parts[i].begin, p->parts[i].bytes, NULL, 0, &n,
                                  err));
        *n_tokens += n;
    }
done:
    return rc;
}

size_t dpk_prompt_room(const struct dpk_tokenizer *t) {
    size_t length = dpk_tokenizer_max_length(t);
    return length > 2 ? length - 2 : 0;
}

uint32_t dpk_prompt_chunks(const struct dpk_tokenizer *t, size_t n_tokens) {
    return n_tokens && dpk_prompt_room(t) ? (uint32_t)((n_tokens - 1) / dpk_prompt_room(t) + 1) : 1;
}

int dpk_prompt_encode(const struct dpk_prompt *p, const struct dpk_tokenizer *t, uint32_t n_chunks,
                      int32_t *ids, float *weights, dpk_error *err) {
    int rc = DPK_OK;
    const size_t length = dpk_tokenizer_max_length(t), room = dpk_prompt_room(t);
    const size_t cap = room * n_chunks;
    size_t n = 0;
    int32_t *all = malloc((cap + 1) * sizeof *all);
    float *of = malloc((cap + 1) * sizeof *of);
    if (!all || !of) DPK_FAIL(err, DPK_ENOMEM, "prompt: no memory for %zu tokens", cap);
    for (size_t i = 0; i < p->n_parts && n < cap; i++) {
        const struct dpk_prompt_part *part = &p->parts[i];
        size_t more, begin = n;
        DPK_TRY(dpk_tokenizer_ids(t, p->text + part->begin, part->bytes, all + n, cap - n, &more,
                                  err));
        n = more < cap - n ? n + more : cap;
        for (size_t k = begin; k < n; k++) of[k] = (float)part->weight;
    }
    for (size_t i = 0; weights && i < n_chunks * length; i++) weights[i] = 1;
    for (uint32_t c = 0; c < n_chunks; c++) {
        const size_t from = c * room, left = from < n ? n - from : 0;
        const size_t count = left < room ? left : room;
        const size_t first =
            dpk_tokenizer_row(t, all + (count ? from : 0), count, ids + c * length);
        if (weights && count) memcpy(weights + c * length + first, of + from, count * sizeof *of);
    }
done:
    free(all);
    free(of);
    return rc;
}

void dpk_prompt_weigh(float *context, const float *weights, size_t length, size_t width) {
    double before = 0, after = 0;
    const size_t n = length * width;
    bool any = false;
    for (size_t r = 0; r < length; r++) any = any || weights[r] != 1;
    if (!any) return;
    for (size_t i = 0; i < n; i++) before += context[i];
    for (size_t i = 0; i < n; i++) after += context[i] *= weights[i / width];
    const double ratio = before / after;
    if (!isfinite(ratio)) return;
    for (size_t i = 0; i < n; i++) context[i] = (float)(context[i] * ratio);
}
