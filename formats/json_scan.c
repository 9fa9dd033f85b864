#include "json_scan.h"

#include "fail.h"

#include <string.h>

static int is_digit(char c) { return c >= '0' && c <= '9'; }

/* The byte at `at`, or NUL at the end: NUL is never valid JSON, so the end needs no case of its
 * own. */
static char peek(const struct dpk_json_scan *s) { return s->at < s->n ? s->text[s->at] : '\0'; }

static int fail_at(const struct dpk_json_scan *s, const char *wanted, dpk_error *err) {
    unsigned char c = (unsigned char)peek(s);
    if (s->at >= s->n)
        return dpk_error_set(err, DPK_EFORMAT, "%s: JSON ends at byte %zu, want %s", s->name, s->at,
                             wanted);
    if (c > 0x20 && c < 0x7f)
        return dpk_error_set(err, DPK_EFORMAT, "%s: JSON byte %zu is '%c', want %s", s->name, s->at,
                             c, wanted);
    return dpk_error_set(err, DPK_EFORMAT, "%s: JSON byte %zu is 0x%02x, want %s", s->name, s->at,
                         c, wanted);
}

void dpk_json_space(struct dpk_json_scan *s) {
    for (;;) {
        char c = peek(s);
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
        s->at++;
    }
}

int dpk_json_accept(struct dpk_json_scan *s, char c) {
    dpk_json_space(s);
    if (s->at >= s->n || s->text[s->at] != c) return 0;
    s->at++;
    return 1;
}

int dpk_json_expect(struct dpk_json_scan *s, char c, dpk_error *err) {
    char wanted[4] = {'\'', c, '\'', '\0'};
    return dpk_json_accept(s, c) ? DPK_OK : fail_at(s, wanted, err);
}

/* Four hexadecimal digits. */
static int read_hex4(struct dpk_json_scan *s, unsigned *out, dpk_error *err) {
    unsigned v = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        char c = peek(s);
        if (is_digit(c)) v = v * 16 + (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f') v = v * 16 + (unsigned)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') v = v * 16 + (unsigned)(c - 'A' + 10);
        else return fail_at(s, "four hexadecimal digits", err);
    }
    *out = v;
    return DPK_OK;
}

static size_t put_utf8(char *to, unsigned c) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (char)(0xc0 | (c >> 6));
        to[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (char)(0xe0 | (c >> 12));
        to[1] = (char)(0x80 | ((c >> 6) & 0x3f));
        to[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    to[0] = (char)(0xf0 | (c >> 18));
    to[1] = (char)(0x80 | ((c >> 12) & 0x3f));
    to[2] = (char)(0x80 | ((c >> 6) & 0x3f));
    to[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* After a backslash: one escape, a surrogate pair counting as one. *n bytes of UTF-8 go to `to`. */
static int read_escape(struct dpk_json_scan *s, char *to, size_t *n, dpk_error *err) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    char c = peek(s);
    const char *simple = c ? strchr(from, c) : NULL;
    unsigned code, low;
    int rc = DPK_OK;
    if (simple) {
        to[0] = into[simple - from];
        *n = 1;
        s->at++;
        goto done;
    }
    if (c != 'u') return fail_at(s, "an escape of JSON", err);
    s->at++;
    DPK_TRY(read_hex4(s, &code, err));
    if (code == 0)
        DPK_FAIL(err, DPK_EFORMAT, "%s: JSON string with a NUL before byte %zu", s->name, s->at);
    if (code >= 0xdc00 && code < 0xe000)
        DPK_FAIL(err, DPK_EFORMAT, "%s: lone surrogate before JSON byte %zu", s->name, s->at);
    if (code >= 0xd800 && code < 0xdc00) {
        if (peek(s) != '\\') return fail_at(s, "the second half of a surrogate pair", err);
        s->at++;
        if (peek(s) != 'u') return fail_at(s, "the second half of a surrogate pair", err);
        s->at++;
        DPK_TRY(read_hex4(s, &low, err));
        if (low < 0xdc00 || low >= 0xe000)
            DPK_FAIL(err, DPK_EFORMAT, "%s: lone surrogate before JSON byte %zu", s->name, s->at);
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *n = put_utf8(to, code);
done:
    return rc;
}

/* A string. Decoded into the text itself if decode is set: no escape is shorter than what it stands
 * for, and the closing quote's place takes the NUL. */
static int scan_string(struct dpk_json_scan *s, int decode, const char **out, dpk_error *err) {
    int rc = DPK_OK;
    size_t to;
    dpk_json_space(s);
    if (peek(s) != '"') return fail_at(s, "a string", err);
    to = ++s->at;
    if (decode) *out = s->text + to;
    for (;;) {
        unsigned char c = (unsigned char)peek(s);
        if (c < 0x20) return fail_at(s, "the rest of a string", err);
        s->at++;
        if (c == '"') break;
        if (c == '\\') {
            char utf8[4];
            size_t n = 0;
            DPK_TRY(read_escape(s, utf8, &n, err));
            if (decode) memcpy(s->text + to, utf8, n);
            to += n;
        } else {
            if (decode) s->text[to] = (char)c;
            to++;
        }
    }
    if (decode) s->text[to] = '\0';
done:
    return rc;
}

int dpk_json_string(struct dpk_json_scan *s, const char **out, dpk_error *err) {
    return scan_string(s, 1, out, err);
}

int dpk_json_u64(struct dpk_json_scan *s, uint64_t *out, dpk_error *err) {
    uint64_t v = 0;
    size_t start;
    dpk_json_space(s);
    start = s->at;
    while (is_digit(peek(s))) {
        uint64_t digit = (uint64_t)(peek(s) - '0');
        if (s->at > start && v == 0) return fail_at(s, "a number without leading zero", err);
        if (__builtin_mul_overflow(v, UINT64_C(10), &v) || __builtin_add_overflow(v, digit, &v))
            return fail_at(s, "an integer below 2^64", err);
        s->at++;
    }
    if (s->at == start) return fail_at(s, "a non-negative integer", err);
    if (peek(s) == '.' || peek(s) == 'e' || peek(s) == 'E') return fail_at(s, "an integer", err);
    *out = v;
    return DPK_OK;
}

static int accept_word(struct dpk_json_scan *s, const char *word) {
    size_t n = strlen(word);
    if (s->n - s->at < n || memcmp(s->text + s->at, word, n) != 0) return 0;
    s->at += n;
    return 1;
}

static int skip_number(struct dpk_json_scan *s, dpk_error *err) {
    if (peek(s) == '-') s->at++;
    if (!is_digit(peek(s))) return fail_at(s, "a value", err);
    if (peek(s) == '0') s->at++;
    else
        while (is_digit(peek(s))) s->at++;
    if (peek(s) == '.') {
        s->at++;
        if (!is_digit(peek(s))) return fail_at(s, "a digit", err);
        while (is_digit(peek(s))) s->at++;
    }
    if (peek(s) == 'e' || peek(s) == 'E') {
        s->at++;
        if (peek(s) == '+' || peek(s) == '-') s->at++;
        if (!is_digit(peek(s))) return fail_at(s, "a digit", err);
        while (is_digit(peek(s))) s->at++;
    }
    return DPK_OK;
}

static int skip_value(struct dpk_json_scan *s, int python, int depth, dpk_error *err) {
    int rc = DPK_OK;
    char open, close;
    dpk_json_space(s);
    open = peek(s);
    if (open == '"') return scan_string(s, 0, NULL, err);
    if (accept_word(s, "true") || accept_word(s, "false") || accept_word(s, "null")) return DPK_OK;
    if (python &&
        (accept_word(s, "NaN") || accept_word(s, "Infinity") || accept_word(s, "-Infinity"))) {
        s->n_python++;
        return DPK_OK;
    }
    if (open != '{' && open != '[') return skip_number(s, err);
    if (depth >= DPK_JSON_MAX_DEPTH)
        DPK_FAIL(err, DPK_EFORMAT, "%s: JSON deeper than %d at byte %zu", s->name,
                 (int)DPK_JSON_MAX_DEPTH, s->at);
    s->at++;
    close = open == '{' ? '}' : ']';
    if (dpk_json_accept(s, close)) goto done;
    do {
        if (open == '{') {
            DPK_TRY(scan_string(s, 0, NULL, err));
            DPK_TRY(dpk_json_expect(s, ':', err));
        }
        DPK_TRY(skip_value(s, python, depth + 1, err));
    } while (dpk_json_accept(s, ','));
    DPK_TRY(dpk_json_expect(s, close, err));
done:
    return rc;
}

int dpk_json_skip_value(struct dpk_json_scan *s, int python, dpk_error *err) {
    return skip_value(s, python, 0, err);
}

int dpk_json_end(struct dpk_json_scan *s, dpk_error *err) {
    dpk_json_space(s);
    return s->at == s->n ? DPK_OK : fail_at(s, "the end", err);
}
