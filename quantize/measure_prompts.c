/* The prompts to measure with. */
#include "measure.h"

#include "../formats/fail.h"
#include "../formats/stream.h"
#include "../formats/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 1 << 20 };

/* Plain things first, which small models know as well. */
static const char *const built_in[] = {
    "a large red circle on a blue background",
    "a photograph of a wooden boat on a mountain lake in the morning",
    "a small yellow star at the top on a black background",
    "an oil painting of an old fisherman with a beard",
    "a green heart on a white background",
    "a bowl of fruit on a kitchen table, soft light",
    "a narrow street of a medieval town after rain",
    "a fox running through deep snow",
};
enum { N_BUILT_IN = sizeof built_in / sizeof *built_in };

static int take_lines(struct dpk_prompts *p, const char *name, dpk_error *err) {
    int rc = DPK_OK;
    for (char *line = p->text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        const size_t n = strcspn(line, "\r");
        line[n] = 0;
        if (!n) continue;
        if (p->n == DPK_MEASURE_MAX_PROMPTS)
            DPK_FAIL(err, DPK_EARG, "%s: more than %d prompts", name, DPK_MEASURE_MAX_PROMPTS);
        if (dpk_utf8_check(line, n) != n)
            DPK_FAIL(err, DPK_EARG, "%s: prompt %u is not UTF-8", name, (unsigned)p->n + 1);
        p->at[p->n++] = line;
    }
    if (!p->n) DPK_FAIL(err, DPK_EARG, "%s: no prompts", name);
done:
    return rc;
}

int dpk_prompts_open(struct dpk_prompts *p, const char *spec, dpk_error *err) {
    struct dpk_stream s = {.fd = -1};
    char *end;
    size_t n_bytes;
    int rc = DPK_OK;
    *p = (struct dpk_prompts){0};
    const long n = strtol(spec, &end, 10);
    if (*spec && !*end) {
        if (n < 1 || n > N_BUILT_IN)
            DPK_FAIL(err, DPK_EARG, "%.20s prompts: want 1 to %d, or a file of them", spec,
                     (int)N_BUILT_IN);
        p->n = (uint32_t)n;
        memcpy(p->at, built_in, (size_t)n * sizeof *p->at);
        goto done;
    }
    DPK_TRY(dpk_stream_open(&s, spec, err));
    DPK_TRY(dpk_stream_load(&s, MAX_FILE, &p->text, &n_bytes, err));
    if (memchr(p->text, 0, n_bytes))
        DPK_FAIL(err, DPK_EARG, "%s: has a zero byte, want a prompt a line", spec);
    DPK_TRY(take_lines(p, spec, err));
done:
    dpk_stream_close(&s);
    if (rc != DPK_OK) dpk_prompts_free(p);
    return rc;
}

void dpk_prompts_free(struct dpk_prompts *p) {
    free(p->text);
    *p = (struct dpk_prompts){0};
}
