/* PNG pictures through libpng: 8-bit RGB with text chunks. */
#ifndef DPK_PNG_H
#define DPK_PNG_H

#include "dpk_error.h"

#include <stddef.h>
#include <stdint.h>

struct dpk_png_text {
    char *key;   /* 1 to 79 printable ASCII characters, no space at either end */
    char *value; /* UTF-8 */
};
struct dpk_png {
    uint32_t width, height;
    uint8_t *rgb; /* owned: [height, width, 3] */
    size_t n_texts;
    struct dpk_png_text *texts; /* owned, in file order */
};

/* Write rgb [height, width, 3]. ASCII values become tEXt chunks, others iTXt. The file appears
 * whole under its name or not at all (temporary file beside it, fsync, rename). Errors: DPK_EARG
 * (size 0 or over 65535, key not allowed, value not UTF-8), DPK_EIO, DPK_ENOMEM. */
int dpk_png_write(const char *path, uint32_t width, uint32_t height, const uint8_t *rgb,
                  const struct dpk_png_text *texts, size_t n_texts, dpk_error *err);

/* Read any PNG as 8-bit RGB: grey and palettes expanded, 16 bits scaled, alpha dropped. Text of
 * tEXt, zTXt and iTXt chunks comes as UTF-8 (the first two are Latin-1 in the file). Over
 * max_pixels: DPK_EARG. A damaged file: DPK_EFORMAT. On failure *png is empty. */
int dpk_png_read(struct dpk_png *png, const char *path, uint64_t max_pixels, dpk_error *err);
void dpk_png_free(struct dpk_png *png);                               /* also of a zeroed struct */
const char *dpk_png_find(const struct dpk_png *png, const char *key); /* NULL if absent */

#endif
