#include "png.h"

#include "atomic_file.h"
#include "fail.h"
#include "png_check.h"

#include <png.h>
#include <setjmp.h>

/* libpng reports through these and comes back by longjmp into the function that called it. Those
 * functions (encode, decode_info, decode_rows) own nothing and change no local after setjmp: all
 * that must be freed is with their callers. */
struct job {
    png_structp png;
    png_infop info;
    struct dpk_atomic_file *out; /* writing */
    int in;                      /* reading: descriptor */
    int rc;                      /* of out or in; DPK_OK: the fault is libpng's finding */
    dpk_error *err;
    const char *path;
    bool starved; /* libpng was refused memory */
};

/* libpng does without what it has no memory for where it can, a text say: not so here. */
static png_voidp take_memory(png_structp png, png_alloc_size_t n) {
    struct job *job = png_get_mem_ptr(png);
    void *p = malloc(n);
    if (!p) job->starved = true;
    return p;
}

static void give_memory(png_structp png, png_voidp p) {
    (void)png;
    free(p);
}

static int check_memory(const struct job *job) {
    if (!job->starved) return DPK_OK;
    return dpk_error_set(job->err, DPK_ENOMEM, "%s: out of memory", job->path);
}

static _Noreturn void on_error(png_structp png, png_const_charp message) {
    struct job *job = png_get_error_ptr(png);
    if (job->rc == DPK_OK) job->rc = check_memory(job);
    if (job->rc == DPK_OK)
        job->rc = dpk_error_set(job->err, job->out ? DPK_EIO : DPK_EFORMAT, "%s: PNG: %s",
                                job->path, message);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message) {
    (void)png;
    (void)message;
}

/* ---- Writing ------------------------------------------------------------------------------------
 * */

static void on_write(png_structp png, png_bytep data, size_t n) {
    struct job *job = png_get_io_ptr(png);
    job->rc = dpk_atomic_write(job->out, data, n, job->err);
    if (job->rc != DPK_OK) png_error(png, "write");
}

static void on_flush(png_structp png) { (void)png; }

static int encode(struct job *job, uint32_t width, uint32_t height, const uint8_t *rgb,
                  png_text *texts, size_t n_texts) {
    if (setjmp(png_jmpbuf(job->png))) return job->rc;
    png_set_write_fn(job->png, job, on_write, on_flush);
    png_set_IHDR(job->png, job->info, width, height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (n_texts) png_set_text(job->png, job->info, texts, (int)n_texts);
    png_write_info(job->png, job->info);
    for (uint32_t y = 0; y < height; y++) png_write_row(job->png, rgb + (size_t)y * width * 3);
    png_write_end(job->png, job->info);
    return check_memory(job);
}

static void fill_texts(png_text *to, const struct dpk_png_text *from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const size_t length = strlen(from[i].value);
        const bool ascii = dpk_png_is_ascii(from[i].value);
        to[i].compression = ascii ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
        to[i].key = from[i].key;
        to[i].text = from[i].value;
        to[i].text_length = ascii ? length : 0;
        to[i].itxt_length = ascii ? 0 : length;
    }
}

int dpk_png_write(const char *path, uint32_t width, uint32_t height, const uint8_t *rgb,
                  const struct dpk_png_text *texts, size_t n_texts, dpk_error *err) {
    struct dpk_atomic_file out = {.fd = -1};
    struct job job = {.out = &out, .in = -1, .err = err, .path = path};
    png_text *list = NULL;
    int rc = DPK_OK;
    DPK_TRY(dpk_png_check(path, width, height, texts, n_texts, err));
    list = calloc(n_texts + 1, sizeof *list);
    if (!list) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    fill_texts(list, texts, n_texts);
    job.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &job, on_error, on_warning, &job,
                                        take_memory, give_memory);
    job.info = job.png ? png_create_info_struct(job.png) : NULL;
    if (!job.info) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    DPK_TRY(dpk_atomic_open(&out, path, err));
    DPK_TRY(encode(&job, width, height, rgb, list, n_texts));
done:
    png_destroy_write_struct(&job.png, &job.info);
    free(list);
    return dpk_atomic_close(&out, rc, err);
}

/* ---- Reading ------------------------------------------------------------------------------------
 * */

static void on_read(png_structp png, png_bytep data, size_t n) {
    struct job *job = png_get_io_ptr(png);
    while (n > 0) {
        ssize_t r = read(job->in, data, n);
        if (r < 0 && errno == EINTR) continue;
        if (r < 0)
            job->rc =
                dpk_error_set(job->err, DPK_EIO, "%s: cannot read: %s", job->path, strerror(errno));
        if (r <= 0) png_error(png, "the file ends early");
        data += r;
        n -= (size_t)r;
    }
}

enum { MAX_TEXTS = 64, MAX_CHUNK = 2 << 20 }; /* bytes, unpacked */

/* Everything before the pixels; the rows will come as 8-bit RGB. */
static int decode_info(struct job *job) {
    if (setjmp(png_jmpbuf(job->png))) return job->rc;
    png_set_read_fn(job->png, job, on_read);
    png_set_user_limits(job->png, DPK_PNG_MAX_SIDE, DPK_PNG_MAX_SIDE);
    png_set_chunk_cache_max(job->png, MAX_TEXTS);
    png_set_chunk_malloc_max(job->png, MAX_CHUNK);
    png_set_crc_action(job->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(job->png, job->info);
    png_set_palette_to_rgb(job->png);
    png_set_expand_gray_1_2_4_to_8(job->png);
    png_set_scale_16(job->png);
    png_set_strip_alpha(job->png);
    png_set_gray_to_rgb(job->png);
    png_set_interlace_handling(job->png);
    png_read_update_info(job->png, job->info);
    if (png_get_rowbytes(job->png, job->info) !=
        (size_t)png_get_image_width(job->png, job->info) * 3)
        png_error(job->png, "rows that do not become RGB");
    return DPK_OK;
}

static int decode_rows(struct job *job, png_bytepp rows) {
    if (setjmp(png_jmpbuf(job->png))) return job->rc;
    png_read_image(job->png, rows);
    png_read_end(job->png, job->info);
    return check_memory(job);
}

/* Latin-1 becomes UTF-8. NULL: no memory. */
static char *text_value(const char *text, bool is_utf8) {
    size_t n = strlen(text), to = 0;
    char *out;
    if (is_utf8) return strdup(text);
    out = malloc(2 * n + 1);
    for (size_t i = 0; out && i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x80) out[to++] = (char)(0xc0 | c >> 6);
        out[to++] = (char)(c < 0x80 ? c : 0x80 | (c & 0x3f));
    }
    if (out) out[to] = '\0';
    return out;
}

static int take_texts(struct dpk_png *p, const struct job *job) {
    png_textp list = NULL;
    int n = 0, rc = DPK_OK;
    png_get_text(job->png, job->info, &list, &n);
    p->texts = calloc((size_t)n + 1, sizeof *p->texts);
    if (!p->texts) DPK_FAIL(job->err, DPK_ENOMEM, "%s: out of memory", job->path);
    for (int i = 0; i < n; i++) {
        if (!list[i].key[0]) continue; /* PNG wants a key; libpng lets it pass */
        struct dpk_png_text *t = &p->texts[p->n_texts++];
        const char *value = list[i].text ? list[i].text : "";
        bool is_utf8 = list[i].compression >= PNG_ITXT_COMPRESSION_NONE;
        if (is_utf8 && dpk_utf8_check(value, strlen(value)) != strlen(value))
            DPK_FAIL(job->err, DPK_EFORMAT, "%s: PNG: text \"%.79s\" is not UTF-8", job->path,
                     list[i].key);
        t->key = text_value(list[i].key, false);
        t->value = text_value(value, is_utf8);
        if (!t->key || !t->value) DPK_FAIL(job->err, DPK_ENOMEM, "%s: out of memory", job->path);
    }
done:
    return rc;
}

int dpk_png_read(struct dpk_png *p, const char *path, uint64_t max_pixels, dpk_error *err) {
    struct job job = {.in = -1, .err = err, .path = path};
    png_bytepp rows = NULL;
    int rc = DPK_OK;
    memset(p, 0, sizeof *p);
    job.in = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (job.in < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot open: %s", path, strerror(errno));
    job.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &job, on_error, on_warning, &job,
                                       take_memory, give_memory);
    job.info = job.png ? png_create_info_struct(job.png) : NULL;
    if (!job.info) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    DPK_TRY(decode_info(&job));
    p->width = png_get_image_width(job.png, job.info);
    p->height = png_get_image_height(job.png, job.info);
    if ((uint64_t)p->width * p->height > max_pixels)
        DPK_FAIL(err, DPK_EARG, "%s: picture of %u x %u, at most %llu pixels are allowed", path,
                 p->width, p->height, (unsigned long long)max_pixels);
    p->rgb = malloc((size_t)p->width * p->height * 3);
    rows = malloc(p->height * sizeof *rows);
    if (!p->rgb || !rows)
        DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory for %u x %u pixels", path, p->width,
                 p->height);
    for (uint32_t y = 0; y < p->height; y++) rows[y] = p->rgb + (size_t)y * p->width * 3;
    DPK_TRY(decode_rows(&job, rows));
    DPK_TRY(take_texts(p, &job));
done:
    png_destroy_read_struct(&job.png, &job.info, NULL);
    if (job.in >= 0) close(job.in);
    free(rows);
    if (rc != DPK_OK) dpk_png_free(p);
    return rc;
}

void dpk_png_free(struct dpk_png *p) {
    for (size_t i = 0; i < p->n_texts; i++) {
        free(p->texts[i].key);
        free(p->texts[i].value);
    }
    free(p->texts);
    free(p->rgb);
    memset(p, 0, sizeof *p);
}

const char *dpk_png_find(const struct dpk_png *p, const char *key) {
    for (size_t i = 0; i < p->n_texts; i++)
        if (strcmp(p->texts[i].key, key) == 0) return p->texts[i].value;
    return NULL;
}
