/* A strict scanner of JSON text (RFC 8259) with exact integers, for what cJSON is too lenient or
 * too large for: the headers of safetensors files, and a check before cJSON parses a config. */
#ifndef DPK_JSON_SCAN_H
#define DPK_JSON_SCAN_H

#include "dpk_error.h"

#include <stddef.h>
#include <stdint.h>

enum { DPK_JSON_MAX_DEPTH = 128 };

struct dpk_json_scan {
    char *text;       /* strings are decoded in place, so the text is consumed */
    size_t at, n;     /* next byte, length */
    const char *name; /* for messages */
    size_t n_python;  /* NaN, Infinity and -Infinity met by dpk_json_skip_value */
};

void dpk_json_space(struct dpk_json_scan *s);
/* 1 and past it if the next byte, after white space, is c; else 0. */
int dpk_json_accept(struct dpk_json_scan *s, char c);
int dpk_json_expect(struct dpk_json_scan *s, char c, dpk_error *err);
/* A string, decoded in place and NUL-terminated; one that holds a NUL is an error. *out points into
 * text. */
int dpk_json_string(struct dpk_json_scan *s, const char **out, dpk_error *err);
/* A non-negative integer without fraction, exponent or leading zero. */
int dpk_json_u64(struct dpk_json_scan *s, uint64_t *out, dpk_error *err);
/* Check one value of any kind and pass it, leaving the text unchanged. python: NaN, Infinity and
 * -Infinity are values too, and are counted. */
int dpk_json_skip_value(struct dpk_json_scan *s, int python, dpk_error *err);
/* White space up to the end of the text. */
int dpk_json_end(struct dpk_json_scan *s, dpk_error *err);

#endif
