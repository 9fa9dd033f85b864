/* dpk_json_parse of source.h: cJSON behind a strict check. */
#include "source.h"

#include "fail.h"
#include "json_scan.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

static int compare_keys(const void *a, const void *b) {
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

/* cJSON keeps a key that comes twice and finds the first; Python keeps the last. Neither is meant.
 * */
static int check_keys(const cJSON *item, const char *name, dpk_error *err) {
    int rc = DPK_OK;
    size_t n = 0;
    const cJSON **keys = NULL;
    const cJSON *child;
    cJSON_ArrayForEach(child, item) {
        n++;
        DPK_TRY(check_keys(child, name, err));
    }
    if (!cJSON_IsObject(item) || n < 2) goto done;
    keys = malloc(n * sizeof *keys);
    if (!keys) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", name);
    n = 0;
    cJSON_ArrayForEach(child, item) keys[n++] = child;
    qsort(keys, n, sizeof *keys, compare_keys);
    for (size_t i = 1; i < n; i++)
        if (strcmp(keys[i - 1]->string, keys[i]->string) == 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: key \"%.200s\" comes twice in an object", name,
                     keys[i]->string);
done:
    free(keys);
    return rc;
}

/* Copy checked JSON with Python's number words in quotes: two bytes more for each. */
static size_t quote_words(const char *text, size_t n, char *out) {
    size_t to = 0;
    int in_string = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string || (c != 'N' && c != 'I' && !(c == '-' && text[i + 1] == 'I'))) {
            out[to++] = c;
            if (c == '"') in_string = !in_string;
            if (in_string && c == '\\') out[to++] = text[++i];
            continue;
        }
        size_t word = c == 'N' ? 3 : c == 'I' ? 8 : 9;
        out[to++] = '"';
        memcpy(out + to, text + i, word);
        to += word;
        out[to++] = '"';
        i += word - 1;
    }
    return to;
}

int dpk_json_parse(cJSON **json, const char *name, const char *text, size_t n_bytes,
                   dpk_error *err) {
    /* skip_value leaves the text as it is, so the const is kept. */
    struct dpk_json_scan scan = {.text = (char *)text, .n = n_bytes, .name = name};
    int rc = DPK_OK;
    char *copy = NULL;
    cJSON *parsed = NULL;
    size_t valid = dpk_utf8_check(text, n_bytes);
    *json = NULL;
    if (valid < n_bytes) DPK_FAIL(err, DPK_EFORMAT, "%s: byte %zu is not UTF-8", name, valid);
    DPK_TRY(dpk_json_skip_value(&scan, 1, err));
    DPK_TRY(dpk_json_end(&scan, err));
    if (scan.n_python) {
        copy = malloc(n_bytes + 2 * scan.n_python);
        if (!copy) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", name);
        n_bytes = quote_words(text, n_bytes, copy);
        text = copy;
    }
    parsed = cJSON_ParseWithLength(text, n_bytes);
    /* The text is known to be valid, so what is left is memory. */
    if (!parsed) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory for its JSON", name);
    DPK_TRY(check_keys(parsed, name, err));
    *json = parsed;
    parsed = NULL;
done:
    cJSON_Delete(parsed);
    free(copy);
    return rc;
}
