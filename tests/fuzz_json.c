/* JSON: the strict scanner against cJSON, then every reader of config values on every key of the
 * object that the text is. */
#include "support_fuzz.h"

#include "../formats/config.h"
#include "../formats/json_scan.h"
#include "../formats/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ITEMS = 8 };

static struct dpk_json_scan scan_of(char *copy, const uint8_t *data, size_t n) {
    memcpy(copy, data, n);
    return (struct dpk_json_scan){.text = copy, .n = n, .name = "fuzz"};
}

/* Whether the text is one value. */
static bool is_value(char *copy, const uint8_t *data, size_t n, int python) {
    struct dpk_json_scan s = scan_of(copy, data, n);
    dpk_error err;
    int rc = dpk_json_skip_value(&s, python, &err);
    if (rc == DPK_OK) rc = dpk_json_end(&s, &err);
    fuzz_require(memcmp(copy, data, n) == 0, "a check changes nothing");
    return rc == DPK_OK;
}

/* A string or a number that the text begins with. */
static void read_first(char *copy, const uint8_t *data, size_t n) {
    struct dpk_json_scan s = scan_of(copy, data, n);
    const char *text = NULL;
    uint64_t number = 0;
    dpk_error err;
    int rc = dpk_json_string(&s, &text, &err);
    fuzz_require(rc != DPK_OK || strlen(text) < n, "a string is no longer than its text");
    s = scan_of(copy, data, n);
    rc = dpk_json_u64(&s, &number, &err);
    if (rc != DPK_OK) return;
    copy[s.at] = 0;
    fuzz_require(number == strtoull(copy + strspn(copy, " \t\r\n"), NULL, 10), "the number");
}

static void read_value(const struct dpk_config *c, const char *key) {
    static const char *const choices[] = {"epsilon", "v_prediction", NULL};
    struct dpk_config sub;
    const char *text = NULL, *strings[MAX_ITEMS];
    int i = 0, n = 0, ints[MAX_ITEMS];
    double d = 0;
    dpk_error err;
    int rc = dpk_config_int(c, key, 1, -5, 1000, &i, &err);
    fuzz_check_error(rc, &err);
    fuzz_require(rc != DPK_OK || (i >= -5 && i <= 1000), "an integer within its limits");
    rc = dpk_config_double(c, key, 1, -2, 1e6, &d, &err);
    fuzz_check_error(rc, &err);
    fuzz_require(rc != DPK_OK || (d >= -2 && d <= 1e6), "a number within its limits");
    fuzz_check_error(dpk_config_double(c, key, NAN, -INFINITY, INFINITY, &d, &err), &err);
    fuzz_check_error(dpk_config_bool(c, key, 0, &i, &err), &err);
    fuzz_check_error(dpk_config_string(c, key, NULL, &text, &err), &err);
    fuzz_check_error(dpk_config_choice(c, key, "epsilon", choices, &i, &err), &err);
    rc = dpk_config_length(c, key, MAX_ITEMS, &n, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        fuzz_require(n >= 0 && n <= MAX_ITEMS, "a length within its limit");
        fuzz_check_error(dpk_config_ints(c, key, 1, 0, 100, n, ints, &err), &err);
        for (int k = 0; k < n; k++)
            fuzz_check_error(dpk_config_nested_ints(c, key, 1, 0, 100, n, k, 3, ints, &err), &err);
    }
    fuzz_check_error(dpk_config_strings(c, key, MAX_ITEMS, strings, &n, &err), &err);
    rc = dpk_config_object(c, key, &sub, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) dpk_config_close(&sub);
}

/* As metadata: UTF-8, and a number comes back. */
static void write_value(const cJSON *item) {
    char *text = dpk_config_text(item);
    fuzz_require(text != NULL, "memory");
    fuzz_require(dpk_utf8_check(text, strlen(text)) == strlen(text), "metadata is UTF-8");
    if (cJSON_IsNumber(item)) fuzz_require(strtod(text, NULL) == item->valuedouble, text);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char *copy = malloc(n_bytes + 1);
    cJSON *json = NULL;
    dpk_error err;
    fuzz_require(copy != NULL, "memory");
    const bool strict = is_value(copy, data, n_bytes, 0), python = is_value(copy, data, n_bytes, 1);
    read_first(copy, data, n_bytes);
    memcpy(copy, data, n_bytes);
    copy[n_bytes] = 0;
    int rc = dpk_json_parse(&json, "fuzz", copy, n_bytes, &err);
    fuzz_check_error(rc, &err);
    fuzz_require(rc == DPK_OK || !json, "nothing is left of a text that was refused");
    fuzz_require(rc != DPK_OK || python, "a text that breaks the grammar is refused");
    fuzz_require(!strict || python, "Python's JSON is JSON and more");
    cJSON_Delete(json);
    if (strlen(copy) == n_bytes) {
        struct dpk_config c;
        rc = dpk_config_parse(&c, "fuzz", copy, &err);
        fuzz_check_error(rc, &err);
        const cJSON *item = rc == DPK_OK ? c.json->child : NULL;
        for (int k = 0; item && k < MAX_ITEMS; item = item->next, k++) {
            read_value(&c, item->string);
            write_value(item);
        }
        if (rc == DPK_OK) dpk_config_close(&c);
    }
    free(copy);
    return 0;
}
