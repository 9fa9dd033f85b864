/* What both writers of PNG refuse before they open a file. */
#ifndef DPK_PNG_CHECK_H
#define DPK_PNG_CHECK_H

#include "fail.h"
#include "png.h"
#include "utf8.h"

#include <stdbool.h>
#include <string.h>

enum { DPK_PNG_MAX_SIDE = 65535, DPK_PNG_MAX_TEXTS = 1000 };

static inline bool dpk_png_key_is_good(const char *key) {
    size_t n = strlen(key);
    if (n < 1 || n > 79 || key[0] == ' ' || key[n - 1] == ' ') return false;
    for (size_t i = 0; i < n; i++)
        if (key[i] < ' ' || key[i] > '~' || (key[i] == ' ' && key[i + 1] == ' ')) return false;
    return true;
}

static inline bool dpk_png_is_ascii(const char *text) {
    while (*text && (unsigned char)*text < 0x80) text++;
    return !*text;
}

/* DPK_EARG, or DPK_OK: the arguments of dpk_png_write. */
static inline int dpk_png_check(const char *path, uint32_t width, uint32_t height,
                                const struct dpk_png_text *texts, size_t n, dpk_error *err) {
    int rc = DPK_OK;
    if (width < 1 || height < 1 || width > DPK_PNG_MAX_SIDE || height > DPK_PNG_MAX_SIDE ||
        n > DPK_PNG_MAX_TEXTS)
        DPK_FAIL(err, DPK_EARG, "%s: picture of %u x %u with %zu texts", path, width, height, n);
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(texts[i].value);
        if (!dpk_png_key_is_good(texts[i].key))
            DPK_FAIL(err, DPK_EARG, "%s: text key \"%.80s\", want 1 to 79 printable ASCII", path,
                     texts[i].key);
        if (length > INT32_MAX / 2 || dpk_utf8_check(texts[i].value, length) != length)
            DPK_FAIL(err, DPK_EARG, "%s: text \"%s\" is not UTF-8", path, texts[i].key);
    }
done:
    return rc;
}

#endif
