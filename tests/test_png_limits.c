/* Pictures whose texts would take more room than they may: read without those texts. */
#include "../formats/png.h"
#include "support_files.h"

#include <png.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* One grey pixel, and texts before (or, if late, after) it. */
static void put_texts(const char *path, png_text *texts, int n, int late) {
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_byte row[1] = {77};
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    png_init_io(png, f);
    png_set_IHDR(png, info, 1, 1, 8, PNG_COLOR_TYPE_GRAY, PNG_INTERLACE_NONE, 0, 0);
    if (!late) png_set_text(png, info, texts, n);
    png_write_info(png, info);
    png_write_row(png, row);
    if (late) png_set_text(png, info, texts, n);
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    assert_int_equal(fclose(f), 0);
}

static struct dpk_png read_pixel(const char *path) {
    struct dpk_png p;
    dpk_error err;
    if (dpk_png_read(&p, path, 1, &err) != DPK_OK) fail_msg("%s", err.msg);
    assert_int_equal(p.rgb[0], 77);
    return p;
}

/* The picture is there, the first texts too, those past the 64th are not. */
static void test_many_texts(void **state) {
    enum { MANY = 500 };
    const char *path = in_dir(*state, "p.png");
    png_text texts[MANY] = {{0}};
    char keys[MANY][16];
    for (int i = 0; i < MANY; i++) {
        snprintf(keys[i], sizeof keys[i], "key %d", i);
        texts[i].key = keys[i];
        texts[i].text = (char *)"v";
        texts[i].text_length = 1;
        texts[i].compression = i % 2 ? PNG_TEXT_COMPRESSION_NONE : PNG_TEXT_COMPRESSION_zTXt;
    }
    for (int late = 0; late < 2; late++) {
        put_texts(path, texts, MANY, late);
        struct dpk_png p = read_pixel(path);
        assert_in_range(p.n_texts, 60, 64);
        assert_string_equal(dpk_png_find(&p, "key 59"), "v");
        assert_null(dpk_png_find(&p, "key 64"));
        dpk_png_free(&p);
    }
}

/* A text of a few thousand bytes in the file that unpacks to more than 2 MiB is left out; what
 * comes after it is not. */
static void test_packed_texts(void **state) {
    enum { MOST = 2 << 20, MORE = 4 << 20 };
    static const int kinds[] = {PNG_TEXT_COMPRESSION_zTXt, PNG_ITXT_COMPRESSION_zTXt};
    const char *path = in_dir(*state, "p.png");
    char *large = malloc(MORE + 1);
    assert_non_null(large);
    for (int i = 0; i < 8; i++) {
        const int kind = kinds[i % 2], late = i / 2 % 2;
        const size_t n = i / 4 ? MOST - 100 : MORE; /* 100: its key and the like count too */
        png_text texts[2] = {{.compression = kind, .key = (char *)"large", .text = large},
                             {.compression = PNG_TEXT_COMPRESSION_NONE,
                              .key = (char *)"small",
                              .text = (char *)"v",
                              .text_length = 1}};
        memset(large, 'x', n);
        large[n] = '\0';
        *(kind == PNG_ITXT_COMPRESSION_zTXt ? &texts[0].itxt_length : &texts[0].text_length) = n;
        put_texts(path, texts, 2, late);
        struct dpk_png p = read_pixel(path);
        const char *got = dpk_png_find(&p, "large");
        if (n == MORE) assert_null(got);
        else assert_true(got && strlen(got) == n);
        assert_string_equal(dpk_png_find(&p, "small"), "v");
        dpk_png_free(&p);
    }
    free(large);
}

#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {SCRATCH(test_many_texts), SCRATCH(test_packed_texts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
