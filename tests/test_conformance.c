/* The C reader (as `diffpak verify` uses it) and the second reader, which was written from FORMAT.md
 * alone (read_dpk.py), come to one verdict for one reason (conformance.py): on every attack, on the
 * corpus of fuzz_dpk, on the files of tests/versions/, on random changes. */
#include "support_attacks.h"
#include "support_dpk.h"
#include "support_fuzz.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

static char *folder;
static uint8_t *good;
static size_t n_good;

/* Files for both readers, and the first one's verdicts. */
struct batch {
    char files[600], verdicts[600];
    FILE *out, *said;
    int n, n_accepted;
};

static bool have_python(void) { return system("python3 -c '' 2>/dev/null") == 0; }

static struct batch batch_begin(void) {
    struct batch b = {.n = 0};
    snprintf(b.files, sizeof b.files, "%s/files", folder);
    snprintf(b.verdicts, sizeof b.verdicts, "%s/verdicts", folder);
    b.out = fopen(b.files, "wb");
    b.said = fopen(b.verdicts, "w");
    assert_true(b.out && b.said);
    return b;
}

static void batch_add(struct batch *b, const uint8_t *file, size_t n_bytes) {
    char message[1024];
    const uint64_t size = n_bytes;
    b->n_accepted += attack_verdict(file, n_bytes, message) == DPK_OK;
    b->n++;
    fprintf(b->said, "%s\n", message);
    assert_int_equal(fwrite(&size, 8, 1, b->out), 1);
    assert_int_equal(fwrite(file, 1, n_bytes, b->out), n_bytes);
}

static void batch_compare(struct batch *b) {
    char command[1400];
    assert_int_equal(fclose(b->out) | fclose(b->said), 0);
    snprintf(command, sizeof command, "python3 tests/conformance.py %s %s", b->files, b->verdicts);
    assert_int_equal(system(command), 0);
}

static int setup(void **state) {
    (void)state;
    char path[600];
    dpk_error err;
    folder = support_folder_make();
    snprintf(path, sizeof path, "%s/good.dpk", folder);
    if (support_dpk_write(path, 21, 2, &err) != DPK_OK) return -1;
    good = support_file_read(path, &n_good);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    free(good);
    support_folder_remove(folder);
    return 0;
}

static void test_attacks(void **state) {
    (void)state;
    if (!have_python()) skip();
    struct batch b = batch_begin();
    struct attack attack;
    batch_add(&b, good, n_good);
    for (uint8_t *f; (f = attack_make(b.n - 1, good, n_good, &attack)); free(f))
        batch_add(&b, f, n_good);
    /* What the front does not hold: weights and what lies between them. */
    struct dpk_section weights;
    memcpy(&weights, good + sizeof(struct dpk_header) + 5 * sizeof weights, sizeof weights);
    uint64_t random = 4;
    for (int i = 0; i < 40; i++) {
        const size_t at = (size_t)(weights.offset + support_random(&random) % weights.bytes);
        good[at] ^= 1;
        batch_add(&b, good, n_good);
        good[at] ^= 1;
    }
    for (size_t n = 0; n < 600; n += 37) batch_add(&b, good, n);
    batch_add(&b, good, n_good - 1);
    assert_int_equal(b.n_accepted, 1);
    batch_compare(&b);
}

static int not_dots(const struct dirent *d) { return d->d_name[0] != '.'; }

static void add_folder(struct batch *b, const char *name, bool inputs) {
    struct dirent **list;
    const int n = scandir(name, &list, not_dots, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char path[1100];
        size_t n_bytes, n_file;
        snprintf(path, sizeof path, "%s/%s", name, list[i]->d_name);
        uint8_t *data = support_file_read(path, &n_bytes);
        batch_add(b, data, n_bytes);
        uint8_t *file = inputs ? fuzz_dpk_file(data, n_bytes, &n_file) : NULL;
        if (file) batch_add(b, file, n_file);
        free(file), free(data), free(list[i]);
    }
    free(list);
}

static void test_corpus(void **state) {
    (void)state;
    if (!have_python()) skip();
    struct batch b = batch_begin();
    add_folder(&b, "tests/corpus/dpk", true);
    add_folder(&b, "tests/versions", false);
    assert_true(b.n_accepted > 0 && b.n_accepted < b.n);
    batch_compare(&b);
}

static void test_random_changes(void **state) {
    (void)state;
    if (!have_python()) skip();
    struct batch b = batch_begin();
    uint64_t random = 8;
    struct dpk_section weights;
    memcpy(&weights, good + sizeof(struct dpk_header) + 5 * sizeof weights, sizeof weights);
    uint8_t *f = aligned_alloc(64, (n_good + 63) / 64 * 64);
    for (int i = 0; i < 1200; i++) {
        memcpy(f, good, n_good);
        const size_t at = support_random(&random) % ((size_t)weights.offset / 4) * 4;
        const uint32_t v = support_random(&random) % 5;
        memcpy(f + at, &v, sizeof v);
        support_dpk_repair(f, n_good);
        batch_add(&b, f, n_good);
    }
    free(f);
    assert_true(b.n_accepted > 0 && b.n_accepted < b.n);
    batch_compare(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attacks),
        cmocka_unit_test(test_corpus),
        cmocka_unit_test(test_random_changes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
