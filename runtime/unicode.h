/* Unicode properties, case, normalisation and grapheme clusters from the tables of a tokenizer
 * blob. */
#ifndef DPK_UNICODE_H
#define DPK_UNICODE_H

#include "../formats/dpk_error.h"
#include "../formats/tokenizer_blob.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Growing arrays. After a failed allocation `failed` is set and appends do nothing. */
struct dpk_codes {
    uint32_t *v;
    size_t n, cap;
    bool failed;
};
struct dpk_bytes {
    char *v;
    size_t n, cap;
    bool failed;
};
void dpk_codes_add(struct dpk_codes *c, uint32_t code);
void dpk_codes_free(struct dpk_codes *c);
void dpk_bytes_add(struct dpk_bytes *b, const char *v, size_t n);
void dpk_bytes_add_code(struct dpk_bytes *b, uint32_t code); /* as UTF-8 */
void dpk_bytes_free(struct dpk_bytes *b);

/* The code point at the beginning of well-formed UTF-8 of n > 0 bytes; *length its bytes. */
uint32_t dpk_utf8_decode(const char *s, size_t n, size_t *length);
void dpk_codes_add_utf8(struct dpk_codes *c, const char *s, size_t n);

static inline uint32_t dpk_load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The tables, borrowed from the blob. */
struct dpk_unicode {
    const uint8_t *runs, *lower, *decompositions, *compositions;
    uint32_t n_runs, n_lower, n_decompositions, n_compositions;
};

/* Check the tables (n_compositions is the number of entries that compose). Errors: DPK_EFORMAT. */
int dpk_unicode_check(const struct dpk_unicode *u, dpk_error *err);
int dpk_unicode_check_nfc(const struct dpk_unicode *u,
                          dpk_error *err); /* its part in unicode_nfc.c */

struct dpk_tok_run dpk_unicode_run(const struct dpk_unicode *u, uint32_t code);
static inline int dpk_unicode_class(const struct dpk_unicode *u, uint32_t code) {
    return dpk_unicode_run(u, code).flags;
}

/* Lower case of one character, one or two code points; returns how many. */
int dpk_unicode_lower(const struct dpk_unicode *u, uint32_t code, uint32_t out[2]);

/* Append the lower case of in[0..n) as Python's str.lower() gives it: with the final sigma. */
void dpk_unicode_lower_text(const struct dpk_unicode *u, const uint32_t *in, size_t n,
                            struct dpk_codes *out);

/* Append the canonical composition (NFC) of in[0..n). In time n log n. */
void dpk_unicode_nfc(const struct dpk_unicode *u, const uint32_t *in, size_t n,
                     struct dpk_codes *out);

/* Code points of the first extended grapheme cluster of in[0..n), n > 0 (UAX 29 without GB9c). */
size_t dpk_unicode_cluster(const struct dpk_unicode *u, const uint32_t *in, size_t n);

#endif
