/* Values from Hugging Face configs, with the rules of their classes: a key that is missing or null
 * has the class's default. Every error names the file, the key, what was found and what was wanted.
 * */
#ifndef DPK_CONFIG_H
#define DPK_CONFIG_H

#include "source.h"

struct dpk_config {
    const cJSON *json; /* an object */
    cJSON *owned;      /* the whole document, if this struct owns it */
    char name[256];    /* "unet/config.json", for messages */
};

int dpk_config_open(struct dpk_config *c, struct dpk_source *source, const char *name,
                    dpk_error *err);
/* From text, as the tests do. */
int dpk_config_parse(struct dpk_config *c, const char *name, const char *text, dpk_error *err);
void dpk_config_close(struct dpk_config *c); /* also of a zeroed struct */

/* The item, NULL if missing or null. */
const cJSON *dpk_config_item(const struct dpk_config *c, const char *key);
/* DPK_EFORMAT if the key is missing or null: call it before a getter whose key has no default. */
int dpk_config_require(const struct dpk_config *c, const char *key, dpk_error *err);

/* An integer in lo..hi. A number with a fraction, or a boolean, is an error; 1.0 is 1. */
int dpk_config_int(const struct dpk_config *c, const char *key, int def, int lo, int hi, int *out,
                   dpk_error *err);
/* A number in lo..hi, both included; use -INFINITY, INFINITY for no limit. Also the strings NaN,
 * Infinity and -Infinity (see dpk_source_json); NaN only if lo is -INFINITY and hi INFINITY. */
int dpk_config_double(const struct dpk_config *c, const char *key, double def, double lo, double hi,
                      double *out, dpk_error *err);
int dpk_config_bool(const struct dpk_config *c, const char *key, int def, int *out, dpk_error *err);
/* A switch that is not supported: absent, null or false, else DPK_EUNSUPPORTED. */
int dpk_config_false(const struct dpk_config *c, const char *key, dpk_error *err);
/* def may be NULL. *out belongs to the config, or is def. */
int dpk_config_string(const struct dpk_config *c, const char *key, const char *def,
                      const char **out, dpk_error *err);
/* A string that must be one of `choices` (NULL-terminated); *out is its index. Another one is
 * DPK_EUNSUPPORTED and the message lists the choices. def may be NULL: then the key is required. */
int dpk_config_choice(const struct dpk_config *c, const char *key, const char *def,
                      const char *const *choices, int *out, dpk_error *err);

/* Length of a list; 0 if missing or null, error if not a list or longer than max. */
int dpk_config_length(const struct dpk_config *c, const char *key, int max, int *n, dpk_error *err);
/* Exactly n integers: a list of n, or one number (or def) n times. */
int dpk_config_ints(const struct dpk_config *c, const char *key, int def, int lo, int hi, int n,
                    int *out, dpk_error *err);
/* Element i of a list of n_outer, as n integers: a list of n, or one number n times. One number (or
 * def) in place of the outer list counts for all: [1, [1, 2], [2, 1]]. */
int dpk_config_nested_ints(const struct dpk_config *c, const char *key, int def, int lo, int hi,
                           int n_outer, int i, int n, int *out, dpk_error *err);
/* A list of at most max strings; missing or null: *n = 0. The strings belong to the config. */
int dpk_config_strings(const struct dpk_config *c, const char *key, int max, const char **out,
                       int *n, dpk_error *err);
/* An object within; *sub borrows from c (closing it is harmless). Missing or null: sub->json is
 * NULL, and every getter of it gives defaults. */
int dpk_config_object(const struct dpk_config *c, const char *key, struct dpk_config *sub,
                      dpk_error *err);

/* An item as text for the .dpk metadata: strings as they are, null, true, false, numbers in the
 * shortest decimal form that reads back the same, lists and objects as JSON. New buffer (free it);
 * NULL: no memory. */
char *dpk_config_text(const cJSON *item);

#endif
