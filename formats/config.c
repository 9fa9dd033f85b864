#include "config.h"

#include "fail.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From the source, or from `text` where there is none. */
static int open_config(struct dpk_config *c, struct dpk_source *source, const char *name,
                       const char *text, dpk_error *err) {
    int rc = DPK_OK;
    memset(c, 0, sizeof *c);
    snprintf(c->name, sizeof c->name, "%s", name);
    DPK_TRY(source ? dpk_source_json(source, name, &c->owned, err)
                   : dpk_json_parse(&c->owned, name, text, strlen(text), err));
    if (!cJSON_IsObject(c->owned))
        DPK_FAIL(err, DPK_EFORMAT, "%s: want a JSON object at the top", name);
    c->json = c->owned;
done:
    if (rc != DPK_OK) dpk_config_close(c);
    return rc;
}

int dpk_config_open(struct dpk_config *c, struct dpk_source *source, const char *name,
                    dpk_error *err) {
    return open_config(c, source, name, NULL, err);
}

int dpk_config_parse(struct dpk_config *c, const char *name, const char *text, dpk_error *err) {
    return open_config(c, NULL, name, text, err);
}

void dpk_config_close(struct dpk_config *c) {
    cJSON_Delete(c->owned);
    memset(c, 0, sizeof *c);
}

const cJSON *dpk_config_item(const struct dpk_config *c, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(c->json, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

/* What an item is, as a short JSON text, for messages. */
static const char *describe(const cJSON *item, char *buf, size_t n) {
    char *text = dpk_config_text(item);
    snprintf(buf, n, cJSON_IsString(item) ? "\"%.60s\"" : "%.60s", text ? text : "?");
    free(text);
    return buf;
}

static int wrong(const struct dpk_config *c, const char *key, const cJSON *item, const char *wanted,
                 dpk_error *err) {
    char found[80];
    return dpk_error_set(err, DPK_EFORMAT, "%s: %s is %s, want %s", c->name, key,
                         describe(item, found, sizeof found), wanted);
}

int dpk_config_require(const struct dpk_config *c, const char *key, dpk_error *err) {
    if (dpk_config_item(c, key)) return DPK_OK;
    return dpk_error_set(err, DPK_EFORMAT, "%s: %s is missing or null, want a value", c->name, key);
}

static int item_int(const struct dpk_config *c, const char *key, const cJSON *item, int lo, int hi,
                    int *out, dpk_error *err) {
    char wanted[64];
    double v = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (v >= lo && v <= hi && v == floor(v)) {
        *out = (int)v;
        return DPK_OK;
    }
    snprintf(wanted, sizeof wanted, "an integer from %d to %d", lo, hi);
    return wrong(c, key, item, wanted, err);
}

int dpk_config_int(const struct dpk_config *c, const char *key, int def, int lo, int hi, int *out,
                   dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    *out = def;
    return item ? item_int(c, key, item, lo, hi, out, err) : DPK_OK;
}

int dpk_config_double(const struct dpk_config *c, const char *key, double def, double lo, double hi,
                      double *out, dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    char wanted[96];
    int is_nan = 0;
    double v = 0;
    *out = def;
    if (!item) return DPK_OK;
    snprintf(wanted, sizeof wanted, "a number from %g to %g", lo, hi);
    if (cJSON_IsString(item)) {
        const char *s = item->valuestring;
        is_nan = strcmp(s, "NaN") == 0;
        if (is_nan) v = NAN;
        else if (strcmp(s, "Infinity") == 0) v = INFINITY;
        else if (strcmp(s, "-Infinity") == 0) v = -INFINITY;
        else return wrong(c, key, item, wanted, err);
    } else if (cJSON_IsNumber(item)) {
        v = item->valuedouble;
    } else {
        return wrong(c, key, item, wanted, err);
    }
    if (is_nan ? !(lo == -INFINITY && hi == INFINITY) : !(v >= lo && v <= hi))
        return wrong(c, key, item, wanted, err);
    *out = v;
    return DPK_OK;
}

int dpk_config_bool(const struct dpk_config *c, const char *key, int def, int *out,
                    dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    *out = def;
    if (!item) return DPK_OK;
    if (!cJSON_IsBool(item)) return wrong(c, key, item, "true or false", err);
    *out = cJSON_IsTrue(item) ? 1 : 0;
    return DPK_OK;
}

int dpk_config_false(const struct dpk_config *c, const char *key, dpk_error *err) {
    int value, rc = dpk_config_bool(c, key, 0, &value, err);
    if (rc == DPK_OK && value)
        rc = dpk_error_set(err, DPK_EUNSUPPORTED, "%s: %s is true, supported: false", c->name, key);
    return rc;
}

int dpk_config_string(const struct dpk_config *c, const char *key, const char *def,
                      const char **out, dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    *out = def;
    if (!item) return DPK_OK;
    if (!cJSON_IsString(item)) return wrong(c, key, item, "a string", err);
    *out = item->valuestring;
    return DPK_OK;
}

int dpk_config_choice(const struct dpk_config *c, const char *key, const char *def,
                      const char *const *choices, int *out, dpk_error *err) {
    const char *value = NULL;
    char list[256] = "";
    int rc = DPK_OK;
    *out = 0;
    if (!def) DPK_TRY(dpk_config_require(c, key, err));
    DPK_TRY(dpk_config_string(c, key, def, &value, err));
    for (int i = 0; choices[i]; i++) {
        size_t at = strlen(list);
        if (strcmp(choices[i], value) == 0) {
            *out = i;
            goto done;
        }
        snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", choices[i]);
    }
    DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: %s is \"%.100s\", supported: %s", c->name, key, value,
             list);
done:
    return rc;
}

int dpk_config_length(const struct dpk_config *c, const char *key, int max, int *n,
                      dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    char wanted[64];
    *n = 0;
    if (!item) return DPK_OK;
    snprintf(wanted, sizeof wanted, "a list of at most %d", max);
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) > max)
        return wrong(c, key, item, wanted, err);
    *n = cJSON_GetArraySize(item);
    return DPK_OK;
}

/* An item as n integers: a list of n, or one number n times. */
static int item_ints(const struct dpk_config *c, const char *key, const cJSON *item, int lo, int hi,
                     int n, int *out, dpk_error *err) {
    char wanted[96];
    const cJSON *child;
    int i = 0, rc = DPK_OK;
    if (cJSON_IsNumber(item)) {
        int v = 0;
        DPK_TRY(item_int(c, key, item, lo, hi, &v, err));
        for (i = 0; i < n; i++) out[i] = v;
        goto done;
    }
    snprintf(wanted, sizeof wanted, "an integer from %d to %d, or a list of %d", lo, hi, n);
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != n)
        return wrong(c, key, item, wanted, err);
    cJSON_ArrayForEach(child, item) DPK_TRY(item_int(c, key, child, lo, hi, &out[i++], err));
done:
    return rc;
}

int dpk_config_ints(const struct dpk_config *c, const char *key, int def, int lo, int hi, int n,
                    int *out, dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    for (int i = 0; i < n; i++) out[i] = def;
    return item ? item_ints(c, key, item, lo, hi, n, out, err) : DPK_OK;
}

int dpk_config_nested_ints(const struct dpk_config *c, const char *key, int def, int lo, int hi,
                           int n_outer, int i, int n, int *out, dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    for (int k = 0; k < n; k++) out[k] = def;
    if (!item) return DPK_OK;
    if (cJSON_IsArray(item)) {
        if (cJSON_GetArraySize(item) != n_outer) {
            char wanted[64];
            snprintf(wanted, sizeof wanted, "an integer or a list of %d", n_outer);
            return wrong(c, key, item, wanted, err);
        }
        item = cJSON_GetArrayItem(item, i);
    }
    return item_ints(c, key, item, lo, hi, n, out, err);
}

int dpk_config_strings(const struct dpk_config *c, const char *key, int max, const char **out,
                       int *n, dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key), *child;
    int count = 0, rc = DPK_OK;
    *n = 0;
    DPK_TRY(dpk_config_length(c, key, max, &count, err));
    if (count == 0) goto done;
    cJSON_ArrayForEach(child, item) {
        if (!cJSON_IsString(child)) return wrong(c, key, item, "a list of strings", err);
        out[(*n)++] = child->valuestring;
    }
done:
    return rc;
}

int dpk_config_object(const struct dpk_config *c, const char *key, struct dpk_config *sub,
                      dpk_error *err) {
    const cJSON *item = dpk_config_item(c, key);
    memset(sub, 0, sizeof *sub);
    snprintf(sub->name, sizeof sub->name, "%.180s: %.60s", c->name, key);
    if (item && !cJSON_IsObject(item)) return wrong(c, key, item, "an object", err);
    sub->json = item;
    return DPK_OK;
}

/* The shortest form that reads back the same: at most 17 digits are needed (IEEE 754, 5.12.2). */
static char *number_text(double v) {
    char text[40];
    /* 1e999 in the file; Python reads an infinity too. */
    if (isinf(v)) return strdup(v < 0 ? "-Infinity" : "Infinity");
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    /* 1000000 rather than 1e+06. */
    if (v == floor(v) && fabs(v) < 1e15) snprintf(text, sizeof text, "%.0f", v);
    return strdup(text);
}

char *dpk_config_text(const cJSON *item) {
    char *json, *copy;
    if (cJSON_IsString(item)) return strdup(item->valuestring);
    if (cJSON_IsNumber(item)) return number_text(item->valuedouble);
    json = cJSON_PrintUnformatted(item);
    copy = json ? strdup(json) : NULL;
    cJSON_free(json);
    return copy;
}
