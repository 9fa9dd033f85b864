#include "fail.h"

#include "utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Messages quote files, which may say anything: a control character, or a byte that is not UTF-8,
 * becomes a question mark; a character that the end of the buffer cut goes away. */
static void clean(char *text, size_t cap) {
    const size_t n = strlen(text);
    for (size_t i = 0; i < n;) {
        const unsigned char c = (unsigned char)text[i];
        const size_t length = dpk_utf8_length((const unsigned char *)text + i, n - i);
        if (length == 0 && c >= 0xc2 && n == cap - 1 && n - i < 4) {
            text[i] = 0;
            return;
        }
        const size_t used = length ? length : 1;
        if (!length || dpk_utf8_is_control((const unsigned char *)text + i, length))
            memset(text + i, '?', used);
        i += used;
    }
}

int dpk_error_set(dpk_error *err, int code, const char *format, ...) {
    if (err) {
        va_list args;
        err->code = code;
        va_start(args, format);
        vsnprintf(err->msg, sizeof err->msg, format, args);
        va_end(args);
        clean(err->msg, sizeof err->msg);
    }
    return code;
}
