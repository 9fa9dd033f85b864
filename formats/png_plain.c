/* PNG without a library, for builds that have none (make WITHOUT=png): pictures are written
 * uncompressed (stored blocks of RFC 1951) and cannot be read. */
#include "atomic_file.h"
#include "fail.h"
#include "png_check.h"

enum { BLOCK = 65535 }; /* bytes of a stored block, at most */

struct writer {
    struct dpk_atomic_file *out;
    uint32_t a, b; /* Adler-32 of the rows (RFC 1950) */
    uint64_t left; /* bytes of rows still to come */
    size_t used;   /* of data, bytes of the block */
    bool first;    /* block */
    uint8_t *data; /* [2 + 5 + BLOCK + 4]: a whole IDAT chunk's */
    dpk_error *err;
};

static uint8_t *put_u32(uint8_t *to, uint32_t v) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(v >> (24 - 8 * i));
    return to + 4;
}

/* CRC-32 of the PNG specification, annex D, without its table. */
static uint32_t crc(uint32_t c, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    }
    return c;
}

static int write_chunk(struct writer *w, const char *type, const uint8_t *data, size_t n) {
    uint8_t head[8], tail[4];
    int rc = DPK_OK;
    memcpy(put_u32(head, (uint32_t)n), type, 4);
    put_u32(tail, ~crc(crc(~0u, head + 4, 4), data, n));
    DPK_TRY(dpk_atomic_write(w->out, head, sizeof head, w->err));
    DPK_TRY(dpk_atomic_write(w->out, data, n, w->err));
    DPK_TRY(dpk_atomic_write(w->out, tail, sizeof tail, w->err));
done:
    return rc;
}

/* The block gathered so far, as a chunk of its own. */
static int write_block(struct writer *w) {
    static const uint8_t zlib[2] = {0x78, 0x01};
    uint8_t *head = w->data + 2, *end = head + 5 + w->used;
    const bool last = w->left == 0;
    memcpy(w->data, zlib, 2);
    head[0] = last;
    head[1] = (uint8_t)w->used, head[2] = (uint8_t)(w->used >> 8);
    head[3] = (uint8_t)~head[1], head[4] = (uint8_t)~head[2];
    if (last) end = put_u32(end, w->b << 16 | w->a);
    uint8_t *begin = w->first ? w->data : head;
    w->first = false;
    w->used = 0;
    return write_chunk(w, "IDAT", begin, (size_t)(end - begin));
}

static int write_bytes(struct writer *w, const uint8_t *p, size_t n) {
    int rc = DPK_OK;
    for (size_t i = 0; i < n; i++) {
        w->a = (w->a + p[i]) % 65521;
        w->b = (w->b + w->a) % 65521;
        w->data[7 + w->used++] = p[i];
        w->left--;
        if (w->used == BLOCK || w->left == 0) DPK_TRY(write_block(w));
    }
done:
    return rc;
}

/* tEXt, or iTXt where it is more than ASCII (no compression, no language, no translated key). */
static int write_text(struct writer *w, const struct dpk_png_text *text) {
    const bool ascii = dpk_png_is_ascii(text->value);
    size_t key = strlen(text->key) + 1, more = ascii ? 0 : 4, value = strlen(text->value);
    uint8_t *data = calloc(key + more + value, 1);
    if (!data) return dpk_error_set(w->err, DPK_ENOMEM, "%s: out of memory", w->out->path);
    memcpy(data, text->key, key);
    memcpy(data + key + more, text->value, value);
    int rc = write_chunk(w, ascii ? "tEXt" : "iTXt", data, key + more + value);
    free(data);
    return rc;
}

int dpk_png_write(const char *path, uint32_t width, uint32_t height, const uint8_t *rgb,
                  const struct dpk_png_text *texts, size_t n_texts, dpk_error *err) {
    static const uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'}, filter = 0;
    struct dpk_atomic_file out = {.fd = -1};
    struct writer w = {.out = &out, .a = 1, .first = true, .err = err};
    uint8_t header[13] = {0};
    const size_t row = (size_t)width * 3;
    int rc = DPK_OK;
    DPK_TRY(dpk_png_check(path, width, height, texts, n_texts, err));
    w.data = malloc(2 + 5 + BLOCK + 4);
    if (!w.data) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    DPK_TRY(dpk_atomic_open(&out, path, err));
    DPK_TRY(dpk_atomic_write(&out, signature, sizeof signature, err));
    put_u32(put_u32(header, width), height);
    header[8] = 8, header[9] = 2; /* bits, RGB */
    DPK_TRY(write_chunk(&w, "IHDR", header, sizeof header));
    for (size_t i = 0; i < n_texts; i++) DPK_TRY(write_text(&w, &texts[i]));
    w.left = (uint64_t)height * (row + 1);
    for (uint32_t y = 0; y < height; y++) {
        DPK_TRY(write_bytes(&w, &filter, 1));
        DPK_TRY(write_bytes(&w, rgb + y * row, row));
    }
    DPK_TRY(write_chunk(&w, "IEND", header, 0));
done:
    free(w.data);
    return dpk_atomic_close(&out, rc, err);
}

int dpk_png_read(struct dpk_png *png, const char *path, uint64_t max_pixels, dpk_error *err) {
    (void)max_pixels;
    *png = (struct dpk_png){0};
    return dpk_error_set(err, DPK_EUNSUPPORTED, "%s: this build reads no PNG", path);
}

void dpk_png_free(struct dpk_png *png) { *png = (struct dpk_png){0}; }

const char *dpk_png_find(const struct dpk_png *png, const char *key) {
    (void)png, (void)key;
    return NULL;
}
