/* UTF-8 well-formedness (Unicode standard, table 3-7): no overlong forms, no surrogates. */
#ifndef DPK_UTF8_H
#define DPK_UTF8_H

#include <stddef.h>

/* Bytes of the sequence at s (1 to 4), 0 if it is not well-formed. n > 0 bytes are there. */
static inline size_t dpk_utf8_length(const unsigned char *s, size_t n) {
    unsigned low = 0x80, high = 0xbf;
    size_t length;
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (length > n) return 0;
    if (s[0] == 0xe0) low = 0xa0;
    if (s[0] == 0xed) high = 0x9f;
    if (s[0] == 0xf0) low = 0x90;
    if (s[0] == 0xf4) high = 0x8f;
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if (s[i] < 0x80 || s[i] > 0xbf) return 0;
    return length;
}

/* Does the sequence of this length move the cursor or begin a line: a control character (C0, DEL, C1) or a
 * separator of lines or paragraphs? */
static inline int dpk_utf8_is_control(const unsigned char *s, size_t length) {
    if (length == 1) return s[0] < 0x20 || s[0] == 0x7f;
    if (length == 2) return s[0] == 0xc2 && s[1] < 0xa0;
    return length == 3 && s[0] == 0xe2 && s[1] == 0x80 && (s[2] == 0xa8 || s[2] == 0xa9);
}

/* Bytes of the byte order mark that a text begins with: 3 or 0. s is NUL-terminated. */
static inline size_t dpk_utf8_mark(const char *s) {
    return s[0] == '\xef' && s[1] == '\xbb' && s[2] == '\xbf' ? 3 : 0;
}

/* Offset of the first byte that is not part of well-formed UTF-8; n if all is. */
static inline size_t dpk_utf8_check(const char *s, size_t n) {
    size_t at = 0;
    while (at < n) {
        size_t length = dpk_utf8_length((const unsigned char *)s + at, n - at);
        if (length == 0) break;
        at += length;
    }
    return at;
}

#endif
