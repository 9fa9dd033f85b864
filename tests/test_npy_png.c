#include "../formats/npy.h"
#include "../formats/png.h"
#include "support_files.h"

#include <dirent.h>
#include <math.h>
#include <png.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static size_t count_files(const char *dir) {
    DIR *d = opendir(dir);
    size_t n = 0;
    assert_non_null(d);
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

/* ---- NPY ----------------------------------------------------------------------------------------
 * */

static void test_npy_round_trip(void **state) {
    static const size_t shapes[][4] = {{0}, {5}, {2, 3}, {4, 1, 7}, {3, 0, 2}, {2, 3, 5, 4099}};
    static const int ranks[] = {0, 1, 2, 3, 3, 4};
    const char *path = in_dir(*state, "a.npy");
    uint64_t seed = 3;
    for (size_t s = 0; s < 6; s++)
        for (int type = DPK_NPY_F32; type <= DPK_NPY_I32; type++) {
            size_t n = 1;
            struct dpk_npy a;
            dpk_error err;
            uint32_t *data;
            for (int i = 0; i < ranks[s]; i++) n *= shapes[s][i];
            data = malloc(4 * n + 4);
            for (size_t i = 0; i < n; i++) data[i] = noise(&seed);
            if (dpk_npy_write(path, type, ranks[s], shapes[s], data, &err) != DPK_OK)
                fail_msg("%s", err.msg);
            if (dpk_npy_read(&a, path, 0, 1 << 20, &err) != DPK_OK) fail_msg("%s", err.msg);
            assert_int_equal(a.type, type);
            assert_int_equal(a.rank, ranks[s]);
            assert_int_equal(a.n, n);
            assert_memory_equal(a.dim, shapes[s], (size_t)ranks[s] * sizeof a.dim[0]);
            if (n) assert_memory_equal(a.data, data, 4 * n);
            dpk_npy_free(&a);
            assert_int_equal(dpk_npy_read(&a, path, 0, n ? 4 * n - 1 : 0, &err),
                             n ? DPK_EARG : DPK_OK);
            dpk_npy_free(&a);
            free(data);
        }
    assert_int_equal(count_files(*state), 1); /* no temporary file is left */
}

/* Headers as numpy.save of NumPy 1.23 and later writes them. */
static void test_npy_bytes(void **state) {
    static const struct {
        int type, rank;
        size_t dim[4];
        const char *dict;
    } cases[] = {
        {DPK_NPY_F32, 0, {0}, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }"},
        {DPK_NPY_I32, 1, {1}, "{'descr': '<i4', 'fortran_order': False, 'shape': (1,), }"},
        {DPK_NPY_F32,
         4,
         {1, 2, 1, 1},
         "{'descr': '<f4', 'fortran_order': False, 'shape': "
         "(1, 2, 1, 1), }"},
    };
    const char *path = in_dir(*state, "a.npy");
    for (size_t i = 0; i < 3; i++) {
        float data[2] = {1.5f, -2};
        size_t n, n_dict = strlen(cases[i].dict);
        uint8_t *file;
        assert_int_equal(
            dpk_npy_write(path, cases[i].type, cases[i].rank, cases[i].dim, data, NULL), DPK_OK);
        file = get_file(path, &n);
        assert_int_equal(n, 128 + (i == 2 ? 8 : 4));
        assert_memory_equal(file, "\x93NUMPY\x01\x00\x76\x00", 10);
        assert_memory_equal(file + 10, cases[i].dict, n_dict);
        for (size_t k = 10 + n_dict; k < 127; k++) assert_int_equal(file[k], ' ');
        assert_int_equal(file[127], '\n');
        assert_memory_equal(file + 128, data, n - 128);
        free(file);
    }
}

/* A file of version 1 or 2 around a dict and data. */
static void put_npy(const char *path, int version, const char *dict, const void *data, size_t n) {
    size_t n_dict = strlen(dict), front = version == 1 ? 10 : 12;
    uint8_t *file = calloc(1, front + n_dict + n);
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (uint8_t)version;
    file[8] = (uint8_t)n_dict;
    file[9] = (uint8_t)(n_dict >> 8);
    memcpy(file + front, dict, n_dict);
    if (n) memcpy(file + front + n_dict, data, n);
    put_file(path, file, front + n_dict + n);
    free(file);
}

static void test_npy_types(void **state) {
    static const double f8[3] = {0.1, -1e300, 3};
    static const float f8_as_f4[3] = {0.1f, -INFINITY, 3};
    static const uint16_t f2[4] = {0x3c00, 0x8001, 0x7bff, 0xfc00};
    static const float f2_as_f4[4] = {1, -0x1p-24f, 65504, -INFINITY};
    static const int64_t i8[3] = {-2147483648LL, 2147483647, 7};
    static const int32_t i8_as_i4[3] = {INT32_MIN, INT32_MAX, 7};
    static const float i8_as_f4[3] = {-2147483648.0f, 2147483648.0f, 7};
    static const int64_t wide[1] = {2147483648LL};
    const char *path = in_dir(*state, "a.npy");
    struct dpk_npy a;
    put_npy(path, 1, "{\"shape\":(3,),\"descr\":\"<f8\",\"fortran_order\":True}\n", f8, 24);
    assert_int_equal(dpk_npy_read(&a, path, 0, 100, NULL), DPK_OK);
    assert_memory_equal(a.data, f8_as_f4, 12);
    dpk_npy_free(&a);
    assert_int_equal(dpk_npy_read(&a, path, DPK_NPY_I32, 100, NULL), DPK_EARG);
    put_npy(path, 2, "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 2,), }", f2, 8);
    assert_int_equal(dpk_npy_read(&a, path, DPK_NPY_F32, 100, NULL), DPK_OK);
    assert_memory_equal(a.data, f2_as_f4, 16);
    dpk_npy_free(&a);
    put_npy(path, 1, "{'descr': '<i8', 'fortran_order': False, 'shape': (1, 3), }", i8, 24);
    assert_int_equal(dpk_npy_read(&a, path, 0, 100, NULL), DPK_OK);
    assert_int_equal(a.type, DPK_NPY_I32);
    assert_memory_equal(a.data, i8_as_i4, 12);
    dpk_npy_free(&a);
    assert_int_equal(dpk_npy_read(&a, path, DPK_NPY_F32, 100, NULL), DPK_OK);
    assert_memory_equal(a.data, i8_as_f4, 12);
    dpk_npy_free(&a);
    put_npy(path, 1, "{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", wide, 8);
    assert_int_equal(dpk_npy_read(&a, path, 0, 100, NULL), DPK_EFORMAT);
}

static void test_npy_bad(void **state) {
    static const struct {
        const char *dict;
        size_t n_data;
        int code;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 8, DPK_OK},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 7, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 9, DPK_EFORMAT},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", 8, DPK_EUNSUPPORTED},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", 8, DPK_EUNSUPPORTED},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1), }", 8, DPK_OK},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", 16, DPK_EUNSUPPORTED},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2,), }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'shape': (2,), }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2), }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2 1), }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'shape': (2,)}", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,2)}", 8, DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296,4294967296,)}", 8,
         DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387905,)}", 4,
         DPK_EFORMAT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 8,
         DPK_EFORMAT},
        {"", 8, DPK_EFORMAT},
        {"{'descr", 8, DPK_EFORMAT},
    };
    const char *path = in_dir(*state, "a.npy");
    uint8_t data[16] = {0};
    struct dpk_npy a;
    dpk_error err = {0};
    uint8_t *file;
    size_t n;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int rc;
        put_npy(path, 1, cases[i].dict, data, cases[i].n_data);
        rc = dpk_npy_read(&a, path, 0, 1000, &err);
        if (rc != cases[i].code) fail_msg("%s: %d %s", cases[i].dict, rc, err.msg);
        dpk_npy_free(&a);
    }
    put_npy(path, 3, cases[0].dict, data, 8);
    assert_int_equal(dpk_npy_read(&a, path, 0, 1000, &err), DPK_EUNSUPPORTED);
    put_npy(path, 1, cases[0].dict, data, 8);
    file = get_file(path, &n);
    for (size_t cut = 0; cut < n; cut++) {
        put_file(path, file, cut);
        assert_int_equal(dpk_npy_read(&a, path, 0, 1000, &err), DPK_EFORMAT);
        assert_null(strchr(err.msg, '\n'));
    }
    for (size_t i = 0; i < n * 8; i++) {
        file[i / 8] ^= (uint8_t)(1u << i % 8);
        put_file(path, file, n);
        dpk_npy_read(&a, path, 0, 1000, &err);
        dpk_npy_free(&a);
        file[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    free(file);
    assert_int_equal(dpk_npy_read(&a, in_dir(*state, "none"), 0, 1000, &err), DPK_EIO);
    assert_int_equal(dpk_npy_read(&a, *state, 0, 1000, &err), DPK_EIO);
}

/* ---- PNG ----------------------------------------------------------------------------------------
 * */

static uint8_t *make_picture(uint32_t width, uint32_t height) {
    uint8_t *rgb = malloc((size_t)width * height * 3);
    uint64_t seed = width + 1000 * (uint64_t)height;
    for (size_t i = 0; i < (size_t)width * height * 3; i++)
        rgb[i] = (uint8_t)(i / 7 + (noise(&seed) & 31));
    return rgb;
}

static void test_png_round_trip(void **state) {
    static const uint32_t sizes[][2] = {{1, 1}, {3, 5}, {64, 48}, {333, 257}};
    struct dpk_png_text texts[] = {{"prompt", "a red circle, \"big\"\nsecond line"},
                                   {"negative", ""},
                                   {"model name", "caf\xc3\xa9 \xe5\x86\x86 \xf0\x9f\x94\xb4"},
                                   {"seed", "18446744073709551615"}};
    const char *path = in_dir(*state, "p.png");
    for (size_t s = 0; s < 4; s++) {
        uint32_t w = sizes[s][0], h = sizes[s][1];
        uint8_t *rgb = make_picture(w, h);
        struct dpk_png p;
        dpk_error err;
        if (dpk_png_write(path, w, h, rgb, texts, 4, &err) != DPK_OK) fail_msg("%s", err.msg);
        if (dpk_png_read(&p, path, (uint64_t)w * h, &err) != DPK_OK) fail_msg("%s", err.msg);
        assert_int_equal(p.width, w);
        assert_int_equal(p.height, h);
        assert_memory_equal(p.rgb, rgb, (size_t)w * h * 3);
        assert_int_equal(p.n_texts, 4);
        for (size_t i = 0; i < 4; i++)
            assert_string_equal(dpk_png_find(&p, texts[i].key), texts[i].value);
        assert_null(dpk_png_find(&p, "steps"));
        dpk_png_free(&p);
        assert_int_equal(dpk_png_read(&p, path, (uint64_t)w * h - 1, &err), DPK_EARG);
        free(rgb);
    }
    assert_int_equal(count_files(*state), 1);
}

/* The kinds of chunks, in the bytes of the file: tEXt for ASCII, iTXt for the rest. */
static void test_png_chunks(void **state) {
    struct dpk_png_text texts[] = {{"a", "plain"}, {"b", "\xc3\xa9"}};
    const char *path = in_dir(*state, "p.png");
    uint8_t rgb[3] = {1, 2, 3}, *file;
    size_t n, n_text = 0, n_itxt = 0;
    assert_int_equal(dpk_png_write(path, 1, 1, rgb, texts, 2, NULL), DPK_OK);
    file = get_file(path, &n);
    for (size_t at = 8; at + 12 <= n;) {
        size_t length =
            (size_t)file[at] << 24 | file[at + 1] << 16 | file[at + 2] << 8 | file[at + 3];
        if (memcmp(file + at + 4, "tEXt", 4) == 0) {
            assert_int_equal(length, 7);
            assert_memory_equal(file + at + 8, "a\0plain", 7);
            n_text++;
        } else if (memcmp(file + at + 4, "iTXt", 4) == 0) {
            assert_memory_equal(file + at + 8 + length - 2, "\xc3\xa9", 2);
            n_itxt++;
        }
        at += length + 12;
    }
    assert_true(n_text == 1 && n_itxt == 1);
    free(file);
}

static void test_png_arguments(void **state) {
    static const char *const keys[] = {
        "",
        " a",
        "a ",
        "a  b",
        "a\n",
        "caf\xc3\xa9",
        "12345678901234567890123456789012345678901234567890123456789012345678901234567890"};
    const char *path = in_dir(*state, "p.png");
    uint8_t rgb[12] = {0};
    dpk_error err;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct dpk_png_text text = {(char *)keys[i], "x"};
        assert_int_equal(dpk_png_write(path, 2, 2, rgb, &text, 1, &err), DPK_EARG);
    }
    struct dpk_png_text text = {"prompt", "\xff"};
    assert_int_equal(dpk_png_write(path, 2, 2, rgb, &text, 1, &err), DPK_EARG);
    assert_int_equal(dpk_png_write(path, 0, 2, rgb, NULL, 0, &err), DPK_EARG);
    assert_int_equal(dpk_png_write(path, 2, 65536, rgb, NULL, 0, &err), DPK_EARG);
    assert_int_equal(dpk_png_write(in_dir(*state, "no/p.png"), 2, 2, rgb, NULL, 0, &err), DPK_EIO);
    assert_int_equal(count_files(*state), 0);
}

/* Other colour types, made through libpng's own rows. */
static void put_png(const char *path, int color, int depth, int interlace, const uint8_t *rows,
                    size_t row_bytes) {
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_color palette[4] = {{10, 20, 30}, {40, 50, 60}, {70, 80, 90}, {100, 110, 120}};
    png_byte alpha[4] = {0, 100, 200, 255};
    png_text latin = {.compression = PNG_TEXT_COMPRESSION_zTXt, .key = (char *)"Title"};
    png_bytep list[4];
    FILE *f = fopen(path, "wb");
    latin.text = (char *)"caf\xe9";
    latin.text_length = 4;
    for (size_t y = 0; y < 4; y++) list[y] = (png_bytep)rows + y * row_bytes;
    png_init_io(png, f);
    png_set_IHDR(png, info, 4, 4, depth, color,
                 interlace ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, 0, 0);
    if (color == PNG_COLOR_TYPE_PALETTE) {
        png_set_PLTE(png, info, palette, 4);
        png_set_tRNS(png, info, alpha, 4, NULL);
    }
    png_set_text(png, info, &latin, 1);
    png_write_info(png, info);
    png_write_image(png, list);
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    fclose(f);
}

static void test_png_kinds(void **state) {
    static const struct {
        int color, depth;
        size_t pixel_bits;
    } kinds[] = {{PNG_COLOR_TYPE_GRAY, 8, 8},       {PNG_COLOR_TYPE_GRAY, 2, 2},
                 {PNG_COLOR_TYPE_GRAY, 16, 16},     {PNG_COLOR_TYPE_GRAY_ALPHA, 8, 16},
                 {PNG_COLOR_TYPE_PALETTE, 2, 2},    {PNG_COLOR_TYPE_RGB, 16, 48},
                 {PNG_COLOR_TYPE_RGB_ALPHA, 8, 32}, {PNG_COLOR_TYPE_RGB, 8, 24}};
    const char *path = in_dir(*state, "p.png");
    uint64_t seed = 8;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int interlace = 0; interlace < 2; interlace++) {
            size_t row = kinds[k].pixel_bits * 4 / 8, step = kinds[k].pixel_bits / 8;
            uint8_t rows[128];
            struct dpk_png p;
            dpk_error err;
            for (size_t i = 0; i < sizeof rows; i++) rows[i] = (uint8_t)noise(&seed);
            put_png(path, kinds[k].color, kinds[k].depth, interlace, rows, row);
            if (dpk_png_read(&p, path, 16, &err) != DPK_OK) fail_msg("%s", err.msg);
            assert_string_equal(dpk_png_find(&p, "Title"), "caf\xc3\xa9");
            for (size_t i = 0; i < 16; i++) {
                const uint8_t *from = rows + i / 4 * row + i % 4 * step;
                unsigned two = rows[i / 4 * row] >> (6 - 2 * (i % 4)) & 3;
                for (size_t c = 0; c < 3; c++) {
                    int want = kinds[k].color & PNG_COLOR_MASK_COLOR ? from[c] : from[0];
                    if (kinds[k].color == PNG_COLOR_TYPE_PALETTE)
                        want = (int)(10 + 30 * two + 10 * c);
                    else if (kinds[k].depth == 2) want = (int)two * 85;
                    else if (kinds[k].depth == 16) {
                        size_t at = kinds[k].color & PNG_COLOR_MASK_COLOR ? 2 * c : 0;
                        want = ((from[at] << 8 | from[at + 1]) * 255 + 32767) / 65535;
                    }
                    assert_int_equal(p.rgb[3 * i + c], want);
                }
            }
            dpk_png_free(&p);
        }
}

static void test_png_damaged(void **state) {
    struct dpk_png_text text = {"prompt", "\xc3\xa9t\xc3\xa9"};
    const char *path = in_dir(*state, "p.png");
    uint8_t *rgb = make_picture(20, 17), *file;
    struct dpk_png p;
    dpk_error err;
    size_t n;
    assert_int_equal(dpk_png_write(path, 20, 17, rgb, &text, 1, &err), DPK_OK);
    file = get_file(path, &n);
    for (size_t cut = 0; cut < n; cut++) {
        put_file(path, file, cut);
        assert_int_equal(dpk_png_read(&p, path, 1000, &err), DPK_EFORMAT);
        assert_null(p.rgb);
    }
    for (size_t at = 0; at < n; at++) {
        /* Every byte but a chunk's length is under a signature or a sum. */
        file[at] ^= 0x10;
        put_file(path, file, n);
        assert_int_not_equal(dpk_png_read(&p, path, 1000, &err), DPK_OK);
        file[at] ^= 0x10;
    }
    free(file);
    free(rgb);
    assert_int_equal(dpk_png_read(&p, in_dir(*state, "none"), 1000, &err), DPK_EIO);
    put_text(path, "no picture");
    assert_int_equal(dpk_png_read(&p, path, 1000, &err), DPK_EFORMAT);
}

static void test_png_golden(void **state) {
    struct dpk_png p;
    dpk_error err;
    (void)state;
    if (dpk_png_read(&p, "tests/data/shapes-xl-golden/tall.png", 1 << 20, &err) != DPK_OK)
        fail_msg("%s", err.msg);
    assert_true(p.width < p.height);
    dpk_png_free(&p);
}

/* A full disk: an error, what stood there before stays, no temporary file. */
static void test_no_room(void **state) {
    const char *npy = in_dir(*state, "a.npy"), *png = in_dir(*state, "a.png");
    struct rlimit was, small;
    uint8_t *rgb = make_picture(200, 200), *file;
    size_t dim[1] = {30000}, n;
    dpk_error err;
    put_text(npy, "old npy");
    put_text(png, "old png");
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = was;
    small.rlim_cur = 4096;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc_npy = dpk_npy_write(npy, DPK_NPY_F32, 1, dim, rgb, &err);
    int rc_png = dpk_png_write(png, 200, 200, rgb, NULL, 0, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(rc_npy, DPK_EIO);
    assert_int_equal(rc_png, DPK_EIO);
    assert_non_null(strstr(err.msg, "a.png"));
    assert_int_equal(count_files(*state), 2);
    file = get_file(npy, &n);
    assert_string_equal((char *)file, "old npy");
    free(file);
    file = get_file(png, &n);
    assert_string_equal((char *)file, "old png");
    free(file);
    free(rgb);
    /* A device is written to, never replaced. */
    rgb = make_picture(9, 9);
    assert_int_equal(dpk_png_write("/dev/full", 9, 9, rgb, NULL, 0, &err), DPK_EIO);
    assert_int_equal(dpk_png_write("/dev/null", 9, 9, rgb, NULL, 0, &err), DPK_OK);
    struct stat st;
    assert_true(stat("/dev/null", &st) == 0 && S_ISCHR(st.st_mode));
    free(rgb);
}

#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        SCRATCH(test_npy_round_trip), SCRATCH(test_npy_bytes),           SCRATCH(test_npy_types),
        SCRATCH(test_npy_bad),        SCRATCH(test_png_round_trip),      SCRATCH(test_png_chunks),
        SCRATCH(test_png_arguments),  SCRATCH(test_png_kinds),           SCRATCH(test_png_damaged),
        SCRATCH(test_no_room),        cmocka_unit_test(test_png_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
