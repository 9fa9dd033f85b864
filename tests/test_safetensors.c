#include "../formats/safetensors.h"
#include "support_files.h"

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

/* Parse length + header + n_data zero bytes, in a buffer of just that size. */
static int open_text(struct dpk_safetensors *st, const char *header, size_t n_header, size_t n_data,
                     dpk_error *err) {
    struct dpk_stream in;
    uint8_t *file = calloc(1, 8 + n_header + n_data);
    int rc;
    assert_non_null(file);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)n_header >> 8 * i);
    memcpy(file + 8, header, n_header);
    assert_int_equal(dpk_stream_memory(&in, "t", file, 8 + n_header + n_data, NULL), DPK_OK);
    rc = dpk_st_open(st, &in, err);
    dpk_stream_close(&in);
    free(file);
    return rc;
}

static void test_good(void **state) {
    static const char header[] =
        "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[8,32]},"
        "\"__metadata__\":{\"format\":\"pt\",\"a\\n\":\"\\u00e9 \\ud83d\\ude00 \\\"{}\"},"
        " \"a\" : { \"data_offsets\" : [ 0 , 8 ] , \"shape\":[], \"dtype\":\"I64\" } ,\n"
        "\"\\u0065mpty\":{\"dtype\":\"BF16\",\"shape\":[5,0],\"data_offsets\":[8,8]},"
        "\"four\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[32,35]}}  \n ";
    struct dpk_safetensors st;
    dpk_error err;
    (void)state;
    if (open_text(&st, header, sizeof header - 1, 35, &err) != DPK_OK) fail_msg("%s", err.msg);
    assert_int_equal(st.n_tensors, 4);
    const struct dpk_st_tensor *t = dpk_st_find(&st, "b");
    assert_non_null(t);
    assert_int_equal(t->dtype, DPK_ST_F32);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->dim[0], 2);
    assert_int_equal(t->dim[1], 3);
    assert_int_equal(t->n_elements, 6);
    assert_int_equal(t->n_bytes, 24);
    assert_int_equal(t->offset, 8 + sizeof header - 1 + 8);
    t = dpk_st_find(&st, "a");
    assert_int_equal(t->rank, 0);
    assert_int_equal(t->n_elements, 1);
    assert_int_equal(dpk_st_find(&st, "empty")->n_bytes, 0);
    assert_int_equal(dpk_st_find(&st, "four")->n_elements, 6);
    assert_null(dpk_st_find(&st, "c"));
    assert_string_equal(st.tensors[0].name, "a");
    assert_string_equal(st.tensors[1].name, "empty");
    assert_string_equal(dpk_st_meta(&st, "format"), "pt");
    assert_string_equal(dpk_st_meta(&st, "a\n"), "\xc3\xa9 \xf0\x9f\x98\x80 \"{}");
    assert_null(dpk_st_meta(&st, "none"));
    dpk_st_close(&st);
    assert_int_equal(open_text(&st, "{}", 2, 0, &err), DPK_OK);
    assert_int_equal(st.n_tensors, 0);
    assert_null(dpk_st_find(&st, "a"));
    dpk_st_close(&st);
}

/* Every type of the specification, with the bits of an element. */
static void test_dtypes(void **state) {
    static const struct {
        const char *name;
        int bits;
    } types[] = {{"BOOL", 8},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6},
                 {"U8", 8},          {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8},
                 {"F8_E8M0", 8},     {"F8_E4M3FNUZ", 8}, {"I16", 16},    {"U16", 16},
                 {"F8_E5M2FNUZ", 8}, {"F16", 16},        {"BF16", 16},   {"I32", 32},
                 {"U32", 32},        {"F32", 32},        {"C64", 64},    {"F64", 64},
                 {"I64", 64},        {"U64", 64}};
    (void)state;
    assert_int_equal(sizeof types / sizeof *types, DPK_ST_N_DTYPES - 1);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct dpk_safetensors st;
        char header[200];
        size_t n_data = (size_t)types[i].bits * 12 / 8;
        int n = snprintf(header, sizeof header,
                         "{\"x\":{\"dtype\":\"%s\",\"shape\":[3,4],\"data_offsets\":[0,%zu]}}",
                         types[i].name, n_data);
        assert_int_equal(open_text(&st, header, (size_t)n, n_data, NULL), DPK_OK);
        assert_string_equal(dpk_st_dtype_name(st.tensors[0].dtype), types[i].name);
        assert_int_equal(dpk_st_dtype_bits(st.tensors[0].dtype), types[i].bits);
        dpk_st_close(&st);
        assert_int_equal(open_text(&st, header, (size_t)n, n_data - 1, NULL), DPK_EFORMAT);
        assert_int_equal(open_text(&st, header, (size_t)n, n_data + 1, NULL), DPK_EFORMAT);
    }
    assert_string_equal(dpk_st_dtype_name(0), "?");
    assert_int_equal(dpk_st_dtype_bits(DPK_ST_N_DTYPES), 0);
}

#define X(body) "{\"x\":{" body "}}"
#define D "\"dtype\":\"U8\","
#define S "\"shape\":[4],"
#define O "\"data_offsets\":[0,4]"

static void test_bad(void **state) {
    static const struct {
        const char *header;
        size_t n_data;
        int code;
        const char *says;
    } cases[] = {
        {" {}", 0, DPK_EFORMAT, "begin with '{'"},
        {"[]", 0, DPK_EFORMAT, "begin with '{'"},
        {"{}x", 0, DPK_EFORMAT, "want the end"},
        {"{},", 0, DPK_EFORMAT, "want the end"},
        {"{}", 1, DPK_EFORMAT, "0 bytes, the file has 1"},
        {"{,}", 0, DPK_EFORMAT, "want a string"},
        {X(D S O) "}", 4, DPK_EFORMAT, "want the end"},
        {"{\"x\":{" D S O "}", 4, DPK_EFORMAT, "want '}'"},
        {"{\"x\":{" D S O "},}", 4, DPK_EFORMAT, "want a string"},
        {X(D S O), 3, DPK_EFORMAT, "x: data_offsets [0, 4], the file has 3"},
        {X(D S O), 5, DPK_EFORMAT, "take 4 bytes, the file has 5"},
        {X(D S), 4, DPK_EFORMAT, "want a string"},
        {X(D O), 4, DPK_EFORMAT, "x has no shape"},
        {X(S O), 4, DPK_EFORMAT, "x has no dtype"},
        {X(D "\"shape\":[4]"), 4, DPK_EFORMAT, "x has no data_offsets"},
        {X(""), 0, DPK_EFORMAT, "want a string"},
        {X(D D S O), 4, DPK_EFORMAT, "x: key dtype, want"},
        {X(D S O ",\"more\":1"), 4, DPK_EFORMAT, "x: key more, want"},
        {X("\"dtype\":\"F17\"," S O), 4, DPK_EUNSUPPORTED, "dtype F17 is not known"},
        {X("\"dtype\":\"u8\"," S O), 4, DPK_EUNSUPPORTED, "dtype u8"},
        {X("\"dtype\":8," S O), 4, DPK_EFORMAT, "want a string"},
        {X(D "\"shape\":[3]," O), 4, DPK_EFORMAT, "4 bytes of data, its shape wants 3"},
        {X(D "\"shape\":4," O), 4, DPK_EFORMAT, "want '['"},
        {X(D "\"shape\":[4.0]," O), 4, DPK_EFORMAT, "want an integer"},
        {X(D "\"shape\":[4e0]," O), 4, DPK_EFORMAT, "want an integer"},
        {X(D "\"shape\":[-4]," O), 4, DPK_EFORMAT, "non-negative"},
        {X(D "\"shape\":[04]," O), 4, DPK_EFORMAT, "leading zero"},
        {X(D "\"shape\":[\"4\"]," O), 4, DPK_EFORMAT, "non-negative"},
        {X(D "\"shape\":[4,]," O), 4, DPK_EFORMAT, "non-negative"},
        {X(D "\"shape\":[1,1,1,1,1,1,1,1,4]," O), 4, DPK_EUNSUPPORTED, "than 8 dimensions"},
        {X(D "\"shape\":[4294967296,4294967296]," O), 4, DPK_EFORMAT, "over 2^64"},
        {X(D "\"shape\":[18446744073709551616]," O), 4, DPK_EFORMAT, "below 2^64"},
        {X("\"dtype\":\"F64\",\"shape\":[2305843009213693953],\"data_offsets\":[0,8]"), 8,
         DPK_EFORMAT, "2^64 bits"},
        {X("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]"), 1, DPK_EFORMAT, "3 elements"},
        {X(D S "\"data_offsets\":[4,0]"), 4, DPK_EFORMAT, "[4, 0]"},
        {X(D S "\"data_offsets\":[0]"), 4, DPK_EFORMAT, "want ','"},
        {X(D S "\"data_offsets\":[0,4,4]"), 4, DPK_EFORMAT, "want ']'"},
        {X(D S "\"data_offsets\":[18446744073709551612,18446744073709551615]"), 4, DPK_EFORMAT,
         "the file has 4"},
        {X(D S "\"data_offsets\":[1,5]"), 5, DPK_EFORMAT, "a hole before it"},
        {"{\"x\":{" D S O "},\"y\":{" D S "\"data_offsets\":[5,9]}}", 9, DPK_EFORMAT,
         "y begins at 5, want 4: a hole"},
        {"{\"x\":{" D S O "},\"y\":{" D S "\"data_offsets\":[3,7]}}", 7, DPK_EFORMAT,
         "y begins at 3, want 4: it overlaps"},
        {"{\"x\":{" D S O "},\"y\":{" D S O "}}", 4, DPK_EFORMAT, "y begins at 0, want 4"},
        {"{\"x\":{" D S O "},\"x\":{" D S "\"data_offsets\":[4,8]}}", 8, DPK_EFORMAT,
         "x comes twice"},
        {"{\"x\":{" D S O "},\"\\u0078\":{" D S "\"data_offsets\":[4,8]}}", 8, DPK_EFORMAT,
         "x comes twice"},
        {"{\"x\":{" D "\"shape\":[0],\"data_offsets\":[0,0]},\"x\":{" D S O "}}", 4, DPK_EFORMAT,
         "x comes twice"},
        {"{\"e\":{" D "\"shape\":[0],\"data_offsets\":[2,2]},\"x\":{" D S O "}}", 4, DPK_EFORMAT,
         "want"},
        {"{\"__metadata__\":{\"a\":1}}", 0, DPK_EFORMAT, "want a string"},
        {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, DPK_EFORMAT,
         "__metadata__ comes twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, DPK_EFORMAT, "comes twice"},
        {"{\"__metadata__\":[]}", 0, DPK_EFORMAT, "want '{'"},
        {"{\"__metadata__\":{\"a\":\"\\u0000\"}}", 0, DPK_EFORMAT, "NUL"},
        {"{\"__metadata__\":{\"a\":\"\\ud800\"}}", 0, DPK_EFORMAT, "surrogate"},
        {"{\"__metadata__\":{\"a\":\"\\ud800\\u0041\"}}", 0, DPK_EFORMAT, "surrogate"},
        {"{\"__metadata__\":{\"a\":\"\\udc00\"}}", 0, DPK_EFORMAT, "surrogate"},
        {"{\"__metadata__\":{\"a\":\"\\x41\"}}", 0, DPK_EFORMAT, "escape"},
        {"{\"__metadata__\":{\"a\":\"\\u12g4\"}}", 0, DPK_EFORMAT, "hexadecimal"},
        {"{\"__metadata__\":{\"a\":\"\n\"}}", 0, DPK_EFORMAT, "rest of a string"},
        {"{\"__metadata__\":{\"a\":\"\xff\"}}", 0, DPK_EFORMAT, "not UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xc0\x80\"}}", 0, DPK_EFORMAT, "not UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xed\xa0\x80\"}}", 0, DPK_EFORMAT, "not UTF-8"},
        {"{\"a\\nb\":{" D S O "}}", 4, DPK_EFORMAT, "control character"},
        {"{\"x\":[[[[", 0, DPK_EFORMAT, "want '{'"},
        {"{\"x", 0, DPK_EFORMAT, "rest of a string"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dpk_safetensors st;
        dpk_error err = {0};
        int rc = open_text(&st, cases[i].header, strlen(cases[i].header), cases[i].n_data, &err);
        if (rc != cases[i].code || !strstr(err.msg, cases[i].says))
            fail_msg("case %zu %s: code %d, want %d: %s", i, cases[i].header, rc, cases[i].code,
                     err.msg);
        assert_null(st.tensors);
    }
}

/* Names that would push what is wrong out of a message. */
static void test_long_names(void **state) {
    (void)state;
    for (int n = 255; n <= 256; n++) {
        char header[512], name[257];
        struct dpk_safetensors st;
        dpk_error err = {0};
        memset(name, 'n', sizeof name);
        name[n] = 0;
        snprintf(header, sizeof header, "{\"%s\":{" D S O "}}", name);
        int rc = open_text(&st, header, strlen(header), 4, &err);
        if (n == 255) {
            assert_int_equal(rc, DPK_OK);
            dpk_st_close(&st);
        } else {
            assert_int_equal(rc, DPK_EFORMAT);
            assert_non_null(strstr(err.msg, "name of 256 bytes, want at most 255: nnn"));
        }
    }
}

static void test_lengths(void **state) {
    static const uint8_t files[][12] = {
        {0},
        {1, 0, 0, 0, 0, 0, 0, 0, '{'},
        {3, 0, 0, 0, 0, 0, 0, 0, '{', '}'},
        {2, 0, 0, 0, 0, 0, 0, 0x80, '{', '}'},
        {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}'},
        {1, 0xe1, 0xf5, 5, 0, 0, 0, 0, '{', '}'}, /* 100,000,001 */
    };
    static const size_t n_bytes[] = {0, 9, 10, 10, 10, 10};
    struct dpk_safetensors st;
    struct dpk_stream in;
    dpk_error err;
    (void)state;
    for (size_t i = 0; i < sizeof n_bytes / sizeof *n_bytes; i++) {
        dpk_stream_memory(&in, "t", files[i], n_bytes[i], NULL);
        assert_int_equal(dpk_st_open(&st, &in, &err), DPK_EFORMAT);
        dpk_stream_close(&in);
    }
}

/* What a parsed header promises: tensors in order, covering the buffer, all found by name. */
static void check_promises(const struct dpk_safetensors *st, uint64_t n_bytes) {
    uint64_t at = st->header_bytes;
    for (size_t i = 0; i < st->n_tensors; i++) {
        const struct dpk_st_tensor *t = &st->tensors[i];
        uint64_t n = 1;
        assert_int_equal(t->offset, at);
        for (int k = 0; k < t->rank; k++) n *= t->dim[k];
        assert_int_equal(n, t->n_elements);
        assert_int_equal(n * (uint64_t)dpk_st_dtype_bits(t->dtype), t->n_bytes * 8);
        assert_ptr_equal(dpk_st_find(st, t->name), t);
        at += t->n_bytes;
    }
    assert_int_equal(at, n_bytes);
}

/* A real file cut at every byte of its header and then at 100 places: always an error. */
static void test_truncated(void **state) {
    size_t n = 0, header;
    uint8_t *file = get_file("tests/data/lora/sdxl_peft/pytorch_lora_weights.safetensors", &n);
    (void)state;
    header = 8 + file[0] + 256 * (size_t)file[1];
    assert_true(header < n);
    for (size_t cut = 0; cut < n; cut += cut < header ? 1 : 1 + (n - header) / 100) {
        struct dpk_safetensors st;
        struct dpk_stream in;
        uint8_t *part = malloc(cut ? cut : 1);
        dpk_error err = {0};
        memcpy(part, file, cut);
        dpk_stream_memory(&in, "t", part, cut, NULL);
        assert_int_equal(dpk_st_open(&st, &in, &err), DPK_EFORMAT);
        assert_true(err.msg[0] && !strchr(err.msg, '\n'));
        dpk_stream_close(&in);
        free(part);
        /* The same cut, with a length that agrees: the JSON itself ends early. */
        if (cut > 8 && cut < header)
            assert_int_equal(open_text(&st, (char *)file + 8, cut - 8, 0, NULL), DPK_EFORMAT);
    }
    free(file);
}

/* Bits flipped and bytes replaced in the header: an error, or a header that keeps its promises. */
static void test_flipped(void **state) {
    static const uint8_t replace[] = {'"', '\\', '{', '}', '[', ']', ',', ':', '0', '9', 0, ' '};
    size_t n = 0, header, accepted = 0, refused = 0;
    uint8_t *file = get_file("tests/data/lora/sd15_old/pytorch_lora_weights.safetensors", &n);
    (void)state;
    header = 8 + file[0] + 256 * (size_t)file[1];
    if (header > 3000) header = 3000;
    for (size_t at = 0; at < header; at++)
        for (unsigned k = 0; k < 8 + sizeof replace; k++) {
            struct dpk_safetensors st;
            struct dpk_stream in;
            uint8_t was = file[at];
            /* The whole file is long to parse: one kind of change a byte, all kinds in turn. */
            if ((at + k) % 7 != 0) continue;
            file[at] = k < 8 ? (uint8_t)(was ^ 1u << k) : replace[k - 8];
            dpk_stream_memory(&in, "t", file, n, NULL);
            if (dpk_st_open(&st, &in, NULL) == DPK_OK) {
                check_promises(&st, n);
                accepted++;
            } else {
                assert_null(st.text);
                refused++;
            }
            dpk_st_close(&st);
            dpk_stream_close(&in);
            file[at] = was;
        }
    free(file);
    assert_true(accepted > 100 && refused > 1000);
}

static size_t n_real;

static int check_real(const char *path, const struct stat *sb, int type, struct FTW *ftw) {
    size_t n = strlen(path), suffix = strlen(".safetensors");
    struct dpk_safetensors st;
    struct dpk_stream in;
    dpk_error err;
    (void)ftw;
    if (type != FTW_F || n < suffix || strcmp(path + n - suffix, ".safetensors") != 0) return 0;
    assert_int_equal(dpk_stream_open(&in, path, &err), DPK_OK);
    if (dpk_st_open(&st, &in, &err) != DPK_OK) fail_msg("%s", err.msg);
    check_promises(&st, (uint64_t)sb->st_size);
    assert_true(st.n_tensors > 0);
    dpk_st_close(&st);
    dpk_stream_close(&in);
    n_real++;
    return 0;
}

static void test_real_files(void **state) {
    (void)state;
    nftw("tests/data", check_real, 16, 0);
    nftw("models/shapes-xl", check_real, 16, 0);
    assert_true(n_real >= 30);
}

/* The sum is of the description: another name, another sum; the data have no part in it. */
static void test_hash(void **state) {
    struct dpk_safetensors a, b, c;
    (void)state;
    assert_int_equal(open_text(&a, X(D S O), strlen(X(D S O)), 4, NULL), DPK_OK);
    assert_int_equal(open_text(&b, X(D S O), strlen(X(D S O)), 4, NULL), DPK_OK);
    assert_int_equal(open_text(&c, X(D S O) " ", strlen(X(D S O)) + 1, 4, NULL), DPK_OK);
    assert_true(a.hash == b.hash && a.hash != c.hash);
    dpk_st_close(&a);
    dpk_st_close(&b);
    dpk_st_close(&c);
}

static void test_stream(void **state) {
    const char *path = in_dir(*state, "s");
    struct dpk_stream s;
    dpk_error err;
    char buf[8] = "";
    put_text(path, "0123456789");
    assert_int_equal(dpk_stream_open(&s, path, &err), DPK_OK);
    assert_int_equal(dpk_stream_read(&s, 7, buf, 3, &err), DPK_OK);
    assert_memory_equal(buf, "789", 3);
    assert_int_equal(dpk_stream_read(&s, 8, buf, 3, &err), DPK_EFORMAT);
    assert_int_equal(dpk_stream_read(&s, UINT64_MAX, buf, 3, &err), DPK_EFORMAT);
    assert_int_equal(dpk_stream_read(&s, 10, buf, 0, &err), DPK_OK);
    put_text(path, "0123"); /* cut while open: an error, not a signal */
    assert_int_equal(dpk_stream_read(&s, 2, buf, 5, &err), DPK_EIO);
    dpk_stream_close(&s);
    assert_int_equal(dpk_stream_open(&s, *state, &err), DPK_EIO);
    assert_int_equal(dpk_stream_open(&s, in_dir(*state, "none"), &err), DPK_EIO);
    dpk_stream_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_long_names),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_real_files),
        cmocka_unit_test(test_hash),
        cmocka_unit_test_setup_teardown(test_stream, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
