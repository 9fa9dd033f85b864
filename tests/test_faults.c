/* The system says no: at every place of opening, planning, painting, converting, quantizing and of
 * the picture files, memory is refused once, a file operation fails once, moves a part once, is
 * interrupted once: at the first time that a run comes there and, in short runs, at the last. Each
 * time the call must say so (or do without), give back all that it took and leave no file; parts and
 * interruptions must change nothing. */
#include "fault_points.h"

#include "support_golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#if FAULT_POINTS
#include "../convert/conversion.h"
#include "../formats/npy.h"
#include "../formats/png.h"
#include "../quantize/card.h"
#include "support_files.h"

#include <dirent.h>

/* Something to do. Writes to `out` if it writes anything. */
struct action {
    const char *name;
    int (*run)(const char *out, dpk_error *err);
    bool writes;
};

static dpk_model *model; /* of shapes-xl, open for paint */
static dpk_images *picture;
static char model_path[1024];

static int do_open(const char *out, dpk_error *err) {
    dpk_model *m = NULL;
    (void)out;
    int rc = dpk_model_open(&m, model_path, err);
    if (!rc) rc = dpk_model_verify(m, NULL, NULL, err);
    dpk_model_free(m);
    return rc;
}

static int do_load(const char *out, dpk_error *err) {
    dpk_model *m = NULL;
    dpk_model_options options = dpk_model_options_default();
    (void)out;
    options.in_memory = 1;
    int rc = dpk_model_open_with(&m, model_path, &options, err);
    dpk_model_free(m);
    return rc;
}

static int paint(dpk_images **images, dpk_error *err) {
    dpk_session *session = NULL;
    dpk_session_options options = dpk_session_options_default();
    dpk_params params = dpk_params_default();
    const char *prompts[2] = {"a red circle", "a (blue) star, well, and then some"};
    dpk_info info;
    options.threads = 2;
    params.prompts = prompts, params.n_prompts = 2;
    params.negative = "a square", params.scheduler = "dpm++2m-sde";
    params.steps = 1, params.width = 24, params.height = 16;
    int rc = dpk_session_create(&session, model, &options, err);
    if (!rc) rc = dpk_session_plan(session, &params, &info, err);
    if (!rc) rc = dpk_generate(session, &params, images, err);
    dpk_session_free(session);
    return rc;
}

static int do_paint(const char *out, dpk_error *err) {
    dpk_images *images = NULL;
    (void)out;
    int rc = paint(&images, err);
    if (rc) assert_null(images);
    else
        assert_memory_equal(images->rgb, picture->rgb,
                            (size_t)3 * picture->n * picture->width * picture->height);
    dpk_images_free(images);
    return rc;
}

static int convert(const char *source, const char *out, dpk_error *err) {
    struct dpk_conversion *c = NULL;
    const struct dpk_convert_options options = {.source = source, .dtype = DPK_BF16};
    int rc = dpk_conversion_open(&c, &options, err);
    if (!rc) rc = dpk_builder_write(dpk_conversion_builder(c), out, 2, NULL, NULL, err);
    dpk_conversion_close(c);
    return rc;
}
static int do_convert_clip(const char *out, dpk_error *err) {
    return convert("tests/data/tiny-sd15", out, err);
}
static int do_convert_t5(const char *out, dpk_error *err) {
    return convert("tests/data/tiny-pixart", out, err);
}

static int do_quantize(const char *out, dpk_error *err) {
    struct dpk_file f = {0};
    struct dpk_filter *filter = NULL;
    struct dpk_card card = {0};
    struct dpk_scheme scheme = {0};
    int rc = dpk_scheme_parse(&scheme, "int8-dynamic", err);
    struct dpk_card_options options = {
        .input = model_path, .output = out, .scheme = &scheme, .max_error = -1};
    if (!rc) rc = dpk_filter_open(&filter, "all", err);
    options.filter = filter;
    if (!rc) rc = dpk_file_open(&f, model_path, err);
    if (!rc) rc = dpk_card_make(&card, &f, &options, err);
    dpk_card_free(&card);
    dpk_filter_free(filter);
    dpk_file_close(&f);
    return rc;
}

static int do_png(const char *out, dpk_error *err) {
    struct dpk_png_text texts[2] = {{"prompt", "a"}, {"negative", "\xc3\xa9"}};
    struct dpk_png png = {0};
    int rc = dpk_png_write(out, picture->width, picture->height, picture->rgb, texts, 2, err);
    if (!rc) rc = dpk_png_read(&png, out, 1 << 20, err);
    if (!rc) assert_string_equal(dpk_png_find(&png, "negative"), "\xc3\xa9");
    if (rc) unlink(out); /* written by the first half, and whole */
    dpk_png_free(&png);
    return rc;
}

static int do_npy(const char *out, dpk_error *err) {
    float data[6] = {1, 2, 3, 4, 5, 6};
    size_t dim[2] = {2, 3};
    struct dpk_npy a = {0};
    int rc = dpk_npy_write(out, DPK_NPY_F32, 2, dim, data, err);
    if (!rc) rc = dpk_npy_read(&a, out, DPK_NPY_F32, 100, err);
    if (!rc) assert_memory_equal(a.data, data, sizeof data);
    if (rc) unlink(out);
    dpk_npy_free(&a);
    return rc;
}

static const struct action actions[] = {
    {"open", do_open, false},
    {"open --no-mmap", do_load, false},
    {"paint", do_paint, false},
    {"convert (CLIP)", do_convert_clip, true},
    {"convert (T5)", do_convert_t5, true},
    {"quantize", do_quantize, true},
    {"png", do_png, true},
    {"npy", do_npy, true},
};
enum { N_ACTIONS = sizeof actions / sizeof *actions };

/* ---- Counting what is left ---------------------------------------------------------------- */

static int count_entries(const char *folder) {
    int n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while (readdir(dir)) n++;
    closedir(dir);
    return n;
}

struct footing {
    long blocks, pages;
    int descriptors, files;
};
static struct footing stand(const char *folder) {
    return (struct footing){atomic_load(&fault_live), atomic_load(&fault_mapped),
                            count_entries("/proc/self/fd"), count_entries(folder)};
}

static void expect_same_footing(const struct action *a, long at, const char *folder,
                                struct footing was) {
    struct footing is = stand(folder);
    if (memcmp(&is, &was, sizeof is) != 0)
        fail_msg("%s, point %ld: %ld blocks, %ld pages, %d descriptors, %d files are left", a->name,
                 at, is.blocks - was.blocks, is.pages - was.pages,
                 is.descriptors - was.descriptors, is.files - was.files);
}

/* ---- Going through the points ------------------------------------------------------------- */

struct result {
    uint8_t *bytes; /* of the file that the action writes */
    size_t n_bytes;
};

/* One run with point `at` failing. *fired: whether there is such a point. */
static void run_once(const struct action *a, enum fault_kind kind, long at, const char *folder,
                     const struct result *want, long *n_failed, bool *fired) {
    dpk_error err = {0};
    char out[1200];
    snprintf(out, sizeof out, "%s/out", folder);
    struct footing was = stand(folder);
    fault_arm(kind, at);
    int rc = a->run(out, &err);
    *fired = fault_disarm() >= at;
    if (rc && kind != FAULT_MEMORY && kind != FAULT_IO)
        fail_msg("%s, point %ld: %s", a->name, at, err.msg);
    if (rc && (err.code != rc || !err.msg[0] || strchr(err.msg, '\n')))
        fail_msg("%s, point %ld: code %d, error %d \"%s\"", a->name, at, rc, err.code, err.msg);
    if (rc && kind == FAULT_MEMORY && rc != DPK_ENOMEM && rc != DPK_EIO && rc != DPK_EFORMAT &&
        rc != DPK_EBACKEND)
        fail_msg("%s, point %ld: code %d, \"%s\"", a->name, at, rc, err.msg);
    if (!rc && a->writes) {
        struct result got;
        got.bytes = get_file(out, &got.n_bytes);
        bool same = got.n_bytes == want->n_bytes && !memcmp(got.bytes, want->bytes, got.n_bytes);
        free(got.bytes);
        if (!same) fail_msg("%s, point %ld: another file", a->name, at);
        unlink(out);
    }
    *n_failed += rc != 0;
    expect_same_footing(a, at, folder, was);
}

enum { MOST_TWICE = 1000 };

/* The first point of each place and, of short runs, the last, in `points` [n]; *n_places. */
static long choose_points(long n, uint8_t *points, long *n_places) {
    *n_places = 0;
    long n_chosen = 0;
    memset(points, 0, (size_t)n);
    for (long i = 0; i < n; i++) {
        bool first = true, last = true;
        for (long k = 0; k < i && first; k++) first = fault_record[k] != fault_record[i];
        for (long k = i + 1; k < n && last; k++) last = fault_record[k] != fault_record[i];
        points[i] = first || (last && n <= MOST_TWICE);
        n_chosen += points[i], *n_places += first;
    }
    return n_chosen;
}

static void go_through(const struct action *a, enum fault_kind kind, const char *folder,
                       const char *what) {
    dpk_error err = {0};
    struct result want = {0};
    static uint8_t points[FAULT_MOST];
    static uint64_t record[FAULT_MOST];
    long n_failed = 0, n_places;
    bool fired;
    char out[1200];
    snprintf(out, sizeof out, "%s/out", folder);
    for (int i = 0; i < 2; i++) /* what libraries make once and keep is there after the first */
        if (a->run(out, &err)) fail_msg("%s: %s", a->name, err.msg);
    if (a->writes) want.bytes = get_file(out, &want.n_bytes);
    unlink(out);
    fault_record = record;
    fault_arm(kind, 0);
    int rc = a->run(out, &err);
    long n = fault_disarm();
    assert_true(!rc && n <= FAULT_MOST);
    long n_chosen = choose_points(n, points, &n_places);
    fault_record = NULL;
    unlink(out);
    for (long i = 0; i < n; i++)
        if (points[i]) run_once(a, kind, i + 1, folder, &want, &n_failed, &fired);
    run_once(a, kind, n + 1000, folder, &want, &n_failed, &fired);
    assert_false(fired);
    free(want.bytes);
    print_message("%-16s %-14s %6ld points, %5ld places, %5ld tried, %5ld failed the call\n",
                  a->name, what, n, n_places, n_chosen, n_failed);
    if (kind == FAULT_MEMORY) assert_true(n_failed > 0 && n_failed >= n_chosen / 2);
}

static void test_kind(const char *folder, enum fault_kind kind, const char *what) {
    for (int i = 0; i < N_ACTIONS; i++) go_through(&actions[i], kind, folder, what);
}

static void test_memory(void **state) { test_kind(*state, FAULT_MEMORY, "no memory"); }
static void test_io(void **state) { test_kind(*state, FAULT_IO, "EIO, ENOSPC"); }
static void test_short(void **state) { test_kind(*state, FAULT_SHORT, "a part"); }
static void test_signal(void **state) { test_kind(*state, FAULT_SIGNAL, "EINTR"); }

static int setup(void **state) {
    dpk_error err = {0};
    model = golden_model("faults", "models/shapes-xl", "");
    snprintf(model_path, sizeof model_path, "%s", golden_build_path("tests/faults.dpk"));
    if (paint(&picture, &err)) fail_msg("%s", err.msg);
    return scratch_setup(state);
}
static int teardown(void **state) {
    dpk_images_free(picture);
    dpk_model_free(model);
    return scratch_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_io),
        cmocka_unit_test(test_short),
        cmocka_unit_test(test_signal),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
#else
static void test_elsewhere(void **state) { (void)state; } /* the plain build has the points */
int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_elsewhere)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
