#include "html_impl.h"

#include "../formats/fail.h"
#include "../formats/utf8.h"

#include <png.h>
#include <stdlib.h>
#include <string.h>

void dpk_html_text_n(FILE *out, const char *s, size_t n) {
    while (n > 0) {
        const size_t c = dpk_utf8_length((const unsigned char *)s, n);
        const bool control = c == 1 && ((unsigned char)*s < 0x20 || *s == 0x7f);
        if (c == 0 || (control && *s != '\t' && *s != '\n')) fputs("\xef\xbf\xbd", out);
        else if (*s == '&') fputs("&amp;", out);
        else if (*s == '<') fputs("&lt;", out);
        else if (*s == '>') fputs("&gt;", out);
        else if (*s == '"') fputs("&quot;", out);
        else if (*s == '\'') fputs("&#39;", out);
        else fwrite(s, 1, c, out);
        s += c ? c : 1;
        n -= c ? c : 1;
    }
}

void dpk_html_text(FILE *out, const char *s) { dpk_html_text_n(out, s, strlen(s)); }

void dpk_html_bytes(FILE *out, double bytes) {
    if (bytes >= 1e9) fprintf(out, "%.2f GB", bytes / 1e9);
    else if (bytes >= 1e6) fprintf(out, "%.1f MB", bytes / 1e6);
    else fprintf(out, "%.1f kB", bytes / 1e3);
}

/* ---- Pictures -------------------------------------------------------------------------------- */

static void base64(FILE *out, const uint8_t *p, size_t n) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t more = n - i > 1 ? p[i + 1] : 0, last = n - i > 2 ? p[i + 2] : 0;
        const uint32_t v = (uint32_t)p[i] << 16 | more << 8 | last;
        const char four[4] = {digit[v >> 18], digit[v >> 12 & 63],
                              n - i > 1 ? digit[v >> 6 & 63] : '=',
                              n - i > 2 ? digit[v & 63] : '='};
        fwrite(four, 1, 4, out);
    }
}

int dpk_html_picture(FILE *out, const uint8_t *rgb, uint32_t w, uint32_t h, const char *alt,
                     dpk_error *err) {
    png_image image = {
        .version = PNG_IMAGE_VERSION, .width = w, .height = h, .format = PNG_FORMAT_RGB};
    png_alloc_size_t n = 0;
    uint8_t *data = NULL;
    int rc = DPK_OK;
    if (!png_image_write_get_memory_size(image, n, 0, rgb, 0, NULL))
        DPK_FAIL(err, DPK_ENOMEM, "picture of %u x %u: %s", w, h, image.message);
    data = malloc(n);
    if (!data || !png_image_write_to_memory(&image, data, &n, 0, rgb, 0, NULL))
        DPK_FAIL(err, DPK_ENOMEM, "picture of %u x %u: no memory for a PNG", w, h);
    fprintf(out, "<img width=\"%u\" height=\"%u\" alt=\"", w, h);
    dpk_html_text(out, alt);
    fputs("\" src=\"data:image/png;base64,", out);
    base64(out, data, n);
    fputs("\">", out);
done:
    png_image_free(&image);
    free(data);
    return rc;
}

/* ---- Components ------------------------------------------------------------------------------ */

size_t dpk_html_component_of(const struct dpk_html_components *c, const char *layer) {
    const size_t n = strcspn(layer, ".");
    for (size_t i = 0; i < c->n; i++)
        if (c->length[i] == n && !memcmp(c->name[i], layer, n)) return i;
    return DPK_HTML_MAX_COMPONENTS - 1;
}

void dpk_html_components_find(struct dpk_html_components *c, const struct dpk_layers *layers) {
    c->n = 0;
    for (size_t i = 0; i < layers->n && c->n < DPK_HTML_MAX_COMPONENTS; i++) {
        const char *name = layers->layer[i].name;
        const size_t n = strcspn(name, "."), at = dpk_html_component_of(c, name);
        if (at < c->n && c->length[at] == n && !memcmp(c->name[at], name, n)) continue;
        c->name[c->n] = name;
        c->length[c->n++] = n;
    }
}
