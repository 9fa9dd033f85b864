/* Model sources: folders, archives of every kind compared with the folder, and hostile ones. */
#include "../formats/source.h"
#include "support_files.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static struct dpk_source *open_good(const char *path) {
    struct dpk_source *s = NULL;
    dpk_error err;
    if (dpk_source_open(&s, path, &err) != DPK_OK) fail_msg("%s", err.msg);
    return s;
}

/* Opening must fail with this code and a message of one line that has these words. */
static void open_bad(const char *path, int code, const char *says) {
    struct dpk_source *s;
    dpk_error err = {0};
    int rc = dpk_source_open(&s, path, &err);
    if (rc != code || !strstr(err.msg, says) || strchr(err.msg, '\n'))
        fail_msg("code %d, want %d with \"%s\": %s", rc, code, says, err.msg);
    assert_null(s);
}

/* A model folder with small and large, compressible and random, empty, deep and long-named files.
 * */
#define LONG                                                                                       \
    "a_folder_with_quite_a_long_name_that_goes_on/and_another_one_inside_of_it_as_long_as_that/"   \
    "a_file_whose_name_does_not_fit_in_the_hundred_bytes_of_a_tar_header_so_it_needs_more_room_"   \
    "than_there_is_in_the_name_and_prefix_fields_together_which_are_two_hundred_and_fifty_five."   \
    "bin"
static const char *const members[] = {
    "model_index.json", "unet/config.json", "unet/weights.bin",      "vae/zeros.bin",
    "vae/empty.txt",    "vae/one.bin",      "tokenizer/sub/a/b.txt", LONG};
enum { N_MEMBERS = sizeof members / sizeof *members };

static void make_model(const char *dir) {
    uint64_t seed = 7;
    size_t n = (6u << 20) + 12345; /* over what is kept in memory */
    uint8_t *data = malloc(n);
    for (size_t i = 0; i < n; i++) data[i] = (uint8_t)noise(&seed);
    put_text(in_dir(dir, members[0]), "{\"_class_name\": \"X\"}");
    put_text(in_dir(dir, members[1]), "{\"a\": 1}\n");
    put_file(in_dir(dir, members[2]), data, n);
    put_file(in_dir(dir, members[5]), data, 1);
    put_file(in_dir(dir, members[7]), data, 70001);
    memset(data, 0, n);
    put_file(in_dir(dir, members[3]), data, n - 511);
    put_file(in_dir(dir, members[4]), data, 0);
    put_text(in_dir(dir, members[6]), "deep\n");
    free(data);
}

/* Whether a stream reads the archive (or file) itself. */
static int is_in_place(const struct dpk_stream *s, const char *path) {
    struct stat a, b;
    assert_int_equal(stat(path, &a), 0);
    return !s->memory && fstat(s->fd, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

/* Every member of the archive is what the folder has; in a plain archive it is read in place. The
 * members are asked for from last to first, which is not the archive's order. */
static void compare_with_folder(const char *path, const char *dir, int in_place) {
    struct dpk_source *s = open_good(path);
    assert_int_equal(dpk_source_kind(s), DPK_SOURCE_ARCHIVE);
    for (int round = 0; round < 2; round++)
        for (int i = N_MEMBERS - 1; i >= 0; i--) {
            size_t n_want, n = 0, at = 0;
            uint8_t *want = get_file(in_dir(dir, members[i]), &n_want), piece[1000];
            struct dpk_stream stream;
            char *data;
            dpk_error err;
            assert_true(dpk_source_has(s, members[i]));
            if (dpk_source_stream(s, members[i], &stream, &err) != DPK_OK) fail_msg("%s", err.msg);
            assert_int_equal(stream.n_bytes, n_want);
            if (is_in_place(&stream, path) != in_place) fail_msg("%s: %s", path, members[i]);
            while (at < n_want) {
                n = n_want - at < sizeof piece ? n_want - at : sizeof piece;
                assert_int_equal(dpk_stream_read(&stream, at, piece, n, &err), DPK_OK);
                assert_memory_equal(piece, want + at, n);
                at += n + 1000 * (size_t)round;
            }
            dpk_stream_close(&stream);
            assert_int_equal(dpk_source_read(s, members[i], n_want, &data, &n, &err), DPK_OK);
            assert_int_equal(n, n_want);
            assert_memory_equal(data, want, n);
            free(data);
            if (n_want)
                assert_int_equal(dpk_source_read(s, members[i], n_want - 1, &data, &n, &err),
                                 DPK_EFORMAT);
            free(want);
        }
    dpk_source_close(s);
}

static void compare_lists(const struct dpk_source *a, const struct dpk_source *b,
                          const char *folder) {
    char **x, **y;
    size_t n, m;
    assert_int_equal(dpk_source_list(a, folder, &x, &n, NULL), DPK_OK);
    assert_int_equal(dpk_source_list(b, folder, &y, &m, NULL), DPK_OK);
    assert_int_equal(n, m);
    for (size_t i = 0; i < n; i++) assert_string_equal(x[i], y[i]);
    dpk_source_list_free(x, n);
    dpk_source_list_free(y, m);
}

static void test_archives(void **state) {
    static const struct {
        const char *file, *format, *filter, *options, *prefix;
        int in_place;
    } kinds[] = {
        {"a.tar", "tar", "none", NULL, "", 1},
        {"b.tar", "tar", "none", NULL, "./", 1},
        {"c.tar", "tar", "none", NULL, "top/", 1},
        {"d.tar", "gnutar", "none", NULL, "./sdxl-base-1.0/", 1},
        {"e.tar.zst", "tar", "zstd", NULL, "top/", 0},
        {"f.tar.gz", "gnutar", "gzip", NULL, "", 0},
        {"g.tar.xz", "tar", "xz", "compression-level=0", "top/", 0},
        {"h.tar.bz2", "tar", "bzip2", NULL, "top/", 0},
        {"i.zip", "zip", "none", "compression=store", "top/", 1},
        {"j.zip", "zip", "none", "compression=store,zip64", "", 1},
        {"k.zip", "zip", "none", "compression=deflate", "top/", 0},
    };
    const char *dir = in_dir(*state, "model");
    struct dpk_source *folder;
    make_model(dir);
    folder = open_good(dir);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const char *path = in_dir(*state, kinds[i].file);
        struct dpk_source *s;
        put_archive(path, kinds[i].format, kinds[i].filter, kinds[i].options, dir, kinds[i].prefix);
        compare_with_folder(path, dir, kinds[i].in_place);
        s = open_good(path);
        compare_lists(s, folder, "");
        compare_lists(s, folder, "vae");
        compare_lists(s, folder, "tokenizer/sub");
        compare_lists(s, folder, "nothing");
        dpk_source_close(s);
        unlink(path);
    }
    dpk_source_close(folder);
}

static void test_folder(void **state) {
    static const char *const bad[] = {"",          "/etc/passwd", "..",       "../x",
                                      "unet/../x", "unet//x",     "./unet/x", "unet/.",
                                      "unet",      "unet/",       "none",     "none/config.json"};
    const char *dir = in_dir(*state, "model");
    struct dpk_stream stream;
    struct dpk_source *s;
    char **names;
    dpk_error err;
    size_t n;
    make_model(dir);
    put_text(in_dir(*state, "x"), "outside");
    assert_int_equal(symlink("../../x", in_dir(dir, "unet/link")), 0);
    assert_int_equal(symlink("nowhere", in_dir(dir, "unet/broken")), 0);
    s = open_good(dir);
    assert_int_equal(dpk_source_kind(s), DPK_SOURCE_FOLDER);
    assert_string_equal(dpk_source_path(s), dir);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(dpk_source_has(s, bad[i]));
        assert_int_not_equal(dpk_source_stream(s, bad[i], &stream, &err), DPK_OK);
    }
    assert_int_equal(dpk_source_stream(s, "unet/none", &stream, &err), DPK_EFORMAT);
    assert_non_null(strstr(err.msg, "unet/none"));
    assert_true(dpk_source_has(s, "unet/link")); /* as the Hugging Face cache has it */
    assert_false(dpk_source_has(s, "unet/broken"));
    assert_int_equal(dpk_source_list(s, "unet", &names, &n, &err), DPK_OK);
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "config.json");
    assert_string_equal(names[1], "link");
    assert_string_equal(names[2], "weights.bin");
    dpk_source_list_free(names, n);
    assert_int_equal(dpk_source_list(s, "../x", &names, &n, &err), DPK_EARG);
    dpk_source_close(s);
    open_bad(in_dir(*state, "none"), DPK_EIO, "none");
    open_bad("/dev/null", DPK_EIO, "regular");
}

static void test_single_file(void **state) {
    struct dpk_source *s = open_good("tests/data/single/tiny-sd15.safetensors");
    struct dpk_stream stream;
    dpk_error err;
    (void)state;
    assert_int_equal(dpk_source_kind(s), DPK_SOURCE_FILE);
    assert_true(dpk_source_has(s, ""));
    assert_false(dpk_source_has(s, "x"));
    assert_int_equal(dpk_source_stream(s, "", &stream, &err), DPK_OK);
    assert_int_equal(stream.n_bytes, 957670);
    dpk_stream_close(&stream);
    assert_int_equal(dpk_source_stream(s, "x", &stream, &err), DPK_EFORMAT);
    dpk_source_close(s);
}

static void test_links(void **state) {
    static const struct odd_entry entries[] = {
        {"m/model_index.json", AE_IFREG, NULL, "{}"},
        {"m/vae/real", AE_IFREG, NULL, "contents"},
        {"m/vae/hard", 0, "m/vae/real", NULL},
        {"m/vae/soft", AE_IFLNK, "real", NULL},
        {"m/unet/up", AE_IFLNK, "../vae/./soft", NULL},
        {"m/unet/out", AE_IFLNK, "../../../etc/passwd", NULL},
        {"m/unet/root", AE_IFLNK, "/etc/passwd", NULL},
        {"m/unet/gone", AE_IFLNK, "nothing", NULL},
        {"m/unet/loop", AE_IFLNK, "pool", NULL},
        {"m/unet/pool", AE_IFLNK, "loop", NULL},
    };
    static const char *const good[] = {"vae/hard", "vae/soft", "unet/up"};
    static const char *const bad[][2] = {{"unet/out", "outside"},
                                         {"unet/root", "outside"},
                                         {"unet/gone", "m/unet/nothing"},
                                         {"unet/loop", "itself"}};
    const char *path = in_dir(*state, "links.tar");
    struct dpk_source *s;
    dpk_error err;
    char *data;
    put_odd_archive(path, "tar", entries, sizeof entries / sizeof *entries);
    s = open_good(path);
    for (size_t i = 0; i < 3; i++) {
        if (dpk_source_read(s, good[i], 100, &data, NULL, &err) != DPK_OK) fail_msg("%s", err.msg);
        assert_string_equal(data, "contents");
        free(data);
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(dpk_source_read(s, bad[i][0], 100, &data, NULL, &err), DPK_EFORMAT);
        assert_non_null(strstr(err.msg, bad[i][1]));
    }
    dpk_source_close(s);
}

static void test_hostile_names(void **state) {
    static const char *const names[] = {"../x", "a/../../x", "/etc/x", "a/../x", ".."};
    const char *path = in_dir(*state, "bad.tar");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int zip = 0; zip < 2; zip++) {
            struct odd_entry entries[] = {{"model_index.json", AE_IFREG, NULL, "{}"},
                                          {names[i], AE_IFREG, NULL, "x"}};
            put_odd_archive(path, zip ? "zip" : "tar", entries, 2);
            open_bad(path, DPK_EFORMAT, "leads outside");
        }
    struct odd_entry twice[] = {{"a/x", AE_IFREG, NULL, "1"}, {"./a//x", AE_IFREG, NULL, "2"}};
    put_odd_archive(path, "tar", twice, 2);
    open_bad(path, DPK_EFORMAT, "a/x comes twice");
    struct odd_entry pickle[] = {{"archive/data.pkl", AE_IFREG, NULL, "1"}};
    put_odd_archive(path, "zip", pickle, 1);
    open_bad(path, DPK_EUNSUPPORTED, "weights_only=True");
    put_text(path, "just some text, longer than a header of anything, but no archive of a model");
    open_bad(path, DPK_EUNSUPPORTED, "archive");
    put_text(path, "");
    open_bad(path, DPK_EUNSUPPORTED, "archive");
}

/* Names may have 4096 bytes, of files and of what links lead to. Each is copied more than once. */
static void test_long_names(void **state) {
    enum { MAX_NAME = 4096 };
    const char *path = in_dir(*state, "long.tar");
    char name[MAX_NAME + 2] = "m/";
    for (size_t i = 2; i < MAX_NAME; i++) name[i] = i % 100 ? 'a' : '/';
    for (int over = 0; over < 2; over++) {
        if (over) name[MAX_NAME] = 'b';
        const struct odd_entry entries[][2] = {
            {{"m/model_index.json", AE_IFREG, NULL, "{}"}, {name, AE_IFREG, NULL, "x"}},
            {{"m/model_index.json", AE_IFREG, NULL, "{}"}, {"m/soft", AE_IFLNK, name, NULL}},
            {{"m/model_index.json", AE_IFREG, NULL, "{}"}, {"m/hard", 0, name, NULL}},
        };
        for (int zip = 0; zip < 2; zip++)
            for (size_t i = 0; i < (zip ? 1 : 3); i++) {
                put_odd_archive(path, zip ? "zip" : "tar", entries[i], 2);
                if (over) {
                    open_bad(path, DPK_EFORMAT, "a name of more than 4096 bytes");
                    continue;
                }
                struct dpk_source *s = open_good(path);
                if (i == 0) assert_true(dpk_source_has(s, name + 2));
                dpk_source_close(s);
            }
    }
}

/* A megabyte of headers, packed into a few bytes, again and again: members by the million. */
static void test_many_members(void **state) {
    enum { HEADERS = 2048, TIMES = (1 << 20) / HEADERS };
    const struct odd_entry entry = {"model_index.json", AE_IFREG, NULL, ""};
    const char *path = in_dir(*state, "many.tar.zst");
#ifdef __SANITIZE_ADDRESS__
    skip(); /* a million headers take libarchive too long then */
#endif
    uint8_t *headers, *packed = malloc((size_t)HEADERS * 512);
    size_t n = 0;
    put_odd_archive(path, "ustar", &entry, 1);
    headers = realloc(get_file(path, NULL), (size_t)HEADERS * 512);
    for (size_t i = 1; i < HEADERS; i++) memcpy(headers + i * 512, headers, 512);
    struct archive *a = archive_write_new();
    archive_write_set_format_raw(a);
    archive_write_add_filter_zstd(a);
    archive_write_open_memory(a, packed, (size_t)HEADERS * 512, &n);
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_filetype(e, AE_IFREG);
    archive_write_header(a, e);
    assert_int_equal(archive_write_data(a, headers, (size_t)HEADERS * 512), HEADERS * 512);
    archive_entry_free(e);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
    FILE *f = fopen(path, "wb");
    for (int i = 0; i <= TIMES; i++) assert_int_equal(fwrite(packed, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    open_bad(path, DPK_EFORMAT, "more than 1048576 members");
    free(headers);
    free(packed);
}

/* Where the model lies in an archive. */
static void test_top(void **state) {
    const char *path = in_dir(*state, "top.tar");
    struct dpk_source *s;
    struct odd_entry mac[] = {{"__MACOSX/m/._a", AE_IFREG, NULL, "1"},
                              {"README", AE_IFREG, NULL, "2"},
                              {"m/model_index.json", AE_IFREG, NULL, "{}"},
                              {"m/vae/config.json", AE_IFREG, NULL, "{}"}};
    put_odd_archive(path, "tar", mac, 4);
    s = open_good(path);
    assert_true(dpk_source_has(s, "vae/config.json"));
    assert_false(dpk_source_has(s, "README"));
    dpk_source_close(s);
    put_odd_archive(path, "tar", mac + 3, 1); /* everything in m/ */
    s = open_good(path);
    assert_true(dpk_source_has(s, "vae/config.json"));
    dpk_source_close(s);
    struct odd_entry root[] = {{"config.json", AE_IFREG, NULL, "{}"},
                               {"m/model_index.json", AE_IFREG, NULL, "{}"}};
    put_odd_archive(path, "tar", root, 2);
    s = open_good(path);
    assert_true(dpk_source_has(s, "m/model_index.json"));
    assert_true(dpk_source_has(s, "config.json"));
    dpk_source_close(s);
}

/* Cut and flipped archives of a real small model: errors or the right bytes, never a crash. */
static void test_damaged(void **state) {
    static const char *const kinds[][3] = {{"tar", "none", NULL},
                                           {"tar", "zstd", NULL},
                                           {"zip", "none", "compression=deflate"},
                                           {"zip", "none", "compression=store"}};
    const char *dir = in_dir(*state, "small"), *path = in_dir(*state, "d");
    uint64_t seed = 99;
    put_text(in_dir(dir, "model_index.json"), "{\"a\": [1, 2, 3]}");
    put_text(in_dir(dir, "unet/config.json"), "{\"b\": \"some text that can be compressed\"}");
    for (size_t k = 0; k < 4; k++) {
        size_t n, failed = 0;
        uint8_t *good;
        put_archive(path, kinds[k][0], kinds[k][1], kinds[k][2], dir, "m/");
        good = get_file(path, &n);
        for (int i = 0; i < 300; i++) {
            size_t at = noise(&seed) % n, cut = i % 2 ? n : at;
            uint8_t was = good[at];
            struct dpk_source *s;
            dpk_error err = {0};
            char *data = NULL;
            if (i % 2) good[at] ^= (uint8_t)(1u << noise(&seed) % 8);
            put_file(path, good, cut);
            if (dpk_source_open(&s, path, &err) != DPK_OK) {
                assert_true(err.msg[0]);
                failed++;
                good[at] = was;
                continue;
            }
            if (dpk_source_read(s, "unet/config.json", 100, &data, NULL, &err) != DPK_OK) failed++;
            else assert_true(strlen(data) <= 100);
            free(data);
            dpk_source_close(s);
            good[at] = was;
        }
        assert_true(failed >= 60);
        free(good);
    }
}

/* Unpacking that finds no room, or no folder, says so and leaves the source usable. */
static void test_no_room(void **state) {
    const char *dir = in_dir(*state, "model"), *path = in_dir(*state, "r.tar.zst");
    struct dpk_stream stream;
    struct dpk_source *s;
    dpk_error err;
    make_model(dir);
    put_archive(path, "tar", "zstd", NULL, dir, "");
    s = open_good(path);
    setenv("TMPDIR", in_dir(*state, "none"), 1);
    assert_int_equal(dpk_source_stream(s, "unet/weights.bin", &stream, &err), DPK_EIO);
    assert_non_null(strstr(err.msg, "TMPDIR"));
    /* What is larger than the caller takes is not unpacked to find that out. */
    char *data;
    assert_int_equal(dpk_source_read(s, "unet/weights.bin", 1 << 20, &data, NULL, &err),
                     DPK_EFORMAT);
    assert_non_null(strstr(err.msg, "at most 1048576 are allowed"));
    setenv("TMPDIR", *state, 1);
    assert_int_equal(dpk_source_stream(s, "unet/weights.bin", &stream, &err), DPK_OK);
    dpk_stream_close(&stream);
    unsetenv("TMPDIR");
    dpk_source_close(s);
}

static void test_json(void **state) {
    static const struct {
        const char *text, *says; /* says NULL: good */
    } cases[] = {
        {"{\"a\": [1, -2.5e3, true, false, null, \"x\\u00e9\\n\"], \"b\": {}}", NULL},
        {" [] ", NULL},
        {"{\"a\": 1, \"a\": 2}", "\"a\" comes twice"},
        {"{\"x\": {\"a\": 1, \"b\": 3, \"\\u0061\": 2}}", "\"a\" comes twice"},
        {"{\"a\": 1, \"A\": 2}", NULL},
        {"", "want a value"},
        {"{\"a\": 01}", "want '}'"},
        {"{\"a\": 1.}", "want a digit"},
        {"{\"a\": .5}", "want a value"},
        {"{\"a\": +1}", "want a value"},
        {"{\"a\": nan}", "want a value"},
        {"{\"a\": NaNs}", "want '}'"},
        {"{\"a\": - Infinity}", "want a value"},
        {"{'a': 1}", "want a string"},
        {"{\"a\": 1,}", "want a string"},
        {"{\"a\": \"\t\"}", "rest of a string"},
        {"{\"a\": \"\\u0000\"}", "NUL"},
        {"{\"a\": \"\xff\"}", "UTF-8"},
        {"{} {}", "want the end"},
        {"{\"a\"", "want ':'"},
    };
    char deep[600];
    cJSON *json;
    dpk_error err;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = strlen(cases[i].text);
        char *tight = malloc(n ? n : 1); /* no NUL after it */
        int rc;
        memcpy(tight, cases[i].text, n);
        rc = dpk_json_parse(&json, "j", tight, n, &err);
        if (rc != (cases[i].says ? DPK_EFORMAT : DPK_OK) ||
            (cases[i].says && !strstr(err.msg, cases[i].says)))
            fail_msg("%s: %d: %s", cases[i].text, rc, err.msg);
        cJSON_Delete(json);
        free(tight);
    }
    for (size_t depth = 127; depth < 130; depth++) {
        memset(deep, '[', depth);
        memset(deep + depth, ']', depth);
        int rc = dpk_json_parse(&json, "j", deep, 2 * depth, &err);
        assert_int_equal(rc, depth <= 128 ? DPK_OK : DPK_EFORMAT);
        cJSON_Delete(json);
    }
}

/* Python's number words, outside of strings only. */
static void test_python_numbers(void **state) {
    static const char text[] = "{\"a\":-Infinity,\"b\":[Infinity,NaN , \"NaN, \\\"-Infinity\\\\\"],"
                               "\"Infinity\":NaN, \"c\":-1}";
    struct dpk_source *s;
    const cJSON *b;
    cJSON *json;
    char *printed;
    (void)state;
    assert_int_equal(dpk_json_parse(&json, "j", text, sizeof text - 1, NULL), DPK_OK);
    printed = cJSON_PrintUnformatted(json);
    assert_string_equal(printed, "{\"a\":\"-Infinity\",\"b\":[\"Infinity\",\"NaN\",\"NaN, "
                                 "\\\"-Infinity\\\\\"],\"Infinity\":\"NaN\",\"c\":-1}");
    cJSON_free(printed);
    cJSON_Delete(json);
    s = open_good("tests/data/tiny-pixart");
    assert_int_equal(dpk_source_json(s, "scheduler/scheduler_config.json", &json, NULL), DPK_OK);
    b = cJSON_GetObjectItemCaseSensitive(json, "lambda_min_clipped");
    assert_string_equal(cJSON_GetStringValue(b), "-Infinity");
    cJSON_Delete(json);
    dpk_source_close(s);
}

#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        SCRATCH(test_archives),      SCRATCH(test_folder),
        SCRATCH(test_links),         SCRATCH(test_hostile_names),
        SCRATCH(test_long_names),    SCRATCH(test_many_members),
        SCRATCH(test_top),           SCRATCH(test_damaged),
        SCRATCH(test_no_room),       cmocka_unit_test(test_single_file),
        cmocka_unit_test(test_json), cmocka_unit_test(test_python_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
