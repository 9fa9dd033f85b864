/* Every rule of FORMAT.md: each file of tests/attacks/ must be refused for its own reason; panels as
 * the second reader (read_dpk.py) unpacks them. Whether both readers agree: test_conformance.c. */
#include "support_attacks.h"
#include "support_dpk.h"
#include "support_golden.h"

#include "../formats/dpk_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/wait.h>

#include <cmocka.h>

static struct dpk_section *section(uint8_t *file, int id) {
    return (struct dpk_section *)(void *)(file + sizeof(struct dpk_header)) + (id - 1);
}
static void *record(uint8_t *file, int id, size_t offset) {
    return file + section(file, id)->offset + offset;
}
static struct dpk_tensor_record *tensor_of(uint8_t *file, uint32_t i) {
    return record(file, DPK_SECTION_TENSORS, i * sizeof(struct dpk_tensor_record));
}

static uint8_t *good;
static size_t n_good;
static char *folder;

static int setup(void **state) {
    (void)state;
    char path[600];
    dpk_error err;
    folder = support_folder_make();
    snprintf(path, sizeof path, "%s/good.dpk", folder);
    if (support_dpk_write(path, 21, 2, &err) != DPK_OK) return -1;
    good = support_file_read(path, &n_good);
    return support_dpk_check(good, n_good, &err);
}
static int teardown(void **state) {
    (void)state;
    free(good);
    support_folder_remove(folder);
    return 0;
}

static void test_every_rule(void **state) {
    (void)state;
    int n_wrong = 0, n_attacks = 0;
    struct attack attack;
    for (uint8_t *f; (f = attack_make(n_attacks, good, n_good, &attack)); n_attacks++) {
        char message[1024];
        const int rc = attack_verdict(f, n_good, message);
        if ((rc != DPK_EFORMAT && rc != DPK_EUNSUPPORTED) || !strstr(message, attack.message)) {
            print_error("%s: want \"%s\", got %d %s\n", attack.what, attack.message, rc, message);
            n_wrong++;
        }
        free(f);
    }
    print_message("%d attacks\n", n_attacks);
    assert_true(n_attacks > 200);
    assert_int_equal(n_wrong, 0);
}

/* Nor does the quantizer take such a file and make a good-looking one of it. */
static void test_quantizer_refuses(void **state) {
    (void)state;
    char path[600];
    struct attack attack;
    if (access(golden_build_path("bin/diffpak-quantize"), X_OK)) skip(); /* built without tools */
    snprintf(path, sizeof path, "%s/attack.dpk", folder);
    for (int i = 0;; i++) {
        uint8_t *f = attack_make(i, good, n_good, &attack);
        if (!f) break;
        if (i % 20 == 7 || strstr(attack.what, "pieces[1].score")) {
            support_file_write(path, f, n_good);
            int status = golden_shell("%s %s -o %s.q --scheme int8-weight -q 2>/dev/null",
                                      golden_build_path("bin/diffpak-quantize"), path, path);
            if (status != 1) fail_msg("%s: exit status %d", attack.what, status);
        }
        free(f);
    }
}

/* Any byte of the front changed and every sum repaired: accepted or refused, but never a crash. The
 * many values tried are what a fuzzer's first minutes would try. */
static void test_random_changes(void **state) {
    (void)state;
    static const uint32_t interesting[] = {0,          1,          0x7fffffff, 0x80000000,
                                           0xffffffff, 0xfffffffe, 0x10000,    64};
    uint64_t random = 3;
    dpk_error err;
    const size_t front = (size_t)section(good, DPK_SECTION_WEIGHTS)->offset;
    uint8_t *f = aligned_alloc(64, (n_good + 63) / 64 * 64);
    int n_accepted = 0;
    for (int i = 0; i < 20000; i++) {
        memcpy(f, good, n_good);
        for (uint32_t n = 1 + support_random(&random) % 3; n-- > 0;) {
            const size_t at = support_random(&random) % (front / 4) * 4;
            uint32_t v = support_random(&random);
            if (v % 4) v = interesting[v / 4 % 8];
            memcpy(f + at, &v, sizeof v);
        }
        support_dpk_repair(f, n_good);
        n_accepted += support_dpk_check(f, n_good, &err) == DPK_OK;
    }
    assert_true(n_accepted < 20000);
    free(f);
}

/* ---- The second reader ---- */

static FILE *second_reader(const char *arguments) {
    char command[1200];
    snprintf(command, sizeof command, "python3 tests/read_dpk.py %s", arguments);
    return popen(command, "r");
}

/* One element of a panel as it lies in the file; *at moves on. */
static double next_element(const uint8_t **at, uint32_t dtype) {
    uint32_t bits = 0;
    float f;
    const size_t n = dtype == DPK_S8 ? 1 : dtype == DPK_BF16 ? 2 : 4;
    memcpy((uint8_t *)&bits + (dtype == DPK_BF16 ? 2 : 0), *at, n);
    memcpy(&f, &bits, sizeof f);
    *at += n;
    return dtype == DPK_S8 ? (int8_t)bits : (double)f;
}

/* Walk the array [panel][k / g][16][g] of a tensor in the order of its bytes, and put every element
 * that exists where it belongs in `rows` [rows][taps][c]. Returns the end of the bytes. */
static const uint8_t *walk_panels(const struct dpk_tensor_record *t, const uint8_t *at,
                                  double *values) {
    const size_t g = (size_t)dpk_panel_group((int)t->dtype);
    const bool glu = t->layout == DPK_LAYOUT_PANEL_GLU;
    const size_t rows = (size_t)t->dim[0], c = (size_t)t->dim[t->rank - 1];
    const size_t taps = t->rank == 4 ? (size_t)t->dim[1] * (size_t)t->dim[2] : 1;
    const size_t n_panels = glu ? (rows / 2 + 7) / 8 : (rows + 15) / 16;
    for (size_t p = 0; p < n_panels; p++)
        for (size_t tap = 0; tap < taps; tap++)
            for (size_t first = 0; first < c; first += g)
                for (size_t slot = 0; slot < 16; slot++)
                    for (size_t channel = first; channel < first + g; channel++) {
                        const size_t half = glu ? rows / 2 : rows;
                        const size_t row = glu ? p * 8 + slot % 8 : p * 16 + slot;
                        const size_t n = row + (glu && slot >= 8 ? half : 0);
                        const double value = next_element(&at, t->dtype);
                        if (row < half && channel < c)
                            values[(n * taps + tap) * c + channel] = value;
                    }
    return at;
}

/* Both readers find the same logical values in panels: here by walking the array of FORMAT.md,
 * there by its index formula. */
static void test_second_reader_unpacks(void **state) {
    (void)state;
    if (system("python3 -c '' 2>/dev/null") != 0) skip();
    char path[600], line[700];
    const uint32_t n_tensors = section(good, DPK_SECTION_TENSORS)->count;
    const uint8_t *weights = good + section(good, DPK_SECTION_WEIGHTS)->offset;
    unsigned seen = 0; /* kinds of tensors */
    snprintf(path, sizeof path, "%s/good.dpk", folder);
    for (uint32_t i = 0; i < n_tensors; i++) {
        const struct dpk_tensor_record *t = tensor_of(good, i);
        if (t->layout == DPK_LAYOUT_RAW || t->dtype == DPK_F16 || t->dtype == DPK_S4) continue;
        const struct dpk_shape shape = dpk_tensor_shape(t);
        const size_t n = (size_t)dpk_shape_count(&shape);
        double *want = calloc(n, sizeof *want);
        assert_true(walk_panels(t, weights + t->offset, want) == weights + t->offset + t->bytes);
        snprintf(line, sizeof line, "%s --unpack %s", path,
                 (const char *)record(good, DPK_SECTION_STRINGS, t->name));
        FILE *in = second_reader(line);
        for (size_t j = 0; j < n; j++) {
            double got;
            if (fscanf(in, "%lf", &got) != 1) fail_msg("tensor %u: only %zu values", i, j);
            if (got != want[j] && !(isnan(got) && isnan(want[j])))
                fail_msg("tensor %u, value %zu: %g, want %g", i, j, got, want[j]);
        }
        assert_int_equal(fgetc(in), '\n');
        assert_int_equal(fgetc(in), EOF);
        assert_int_equal(pclose(in), 0);
        free(want);
        seen |= 1u << (t->dtype + (t->rank == 4 ? 8 : t->layout == DPK_LAYOUT_PANEL_GLU ? 16 : 0));
    }
    /* Linears of f32, bf16, s8; convolutions of f32, bf16; a glu of f32. */
    assert_int_equal(seen, 0x12 + 4 + 0x600 + 0x20000);
}

/* The operators' chapter of FORMAT.md is that of ops.def. */
static void test_specification_is_current(void **state) {
    (void)state;
    if (system("python3 -c '' 2>/dev/null") != 0) skip();
    assert_int_equal(system("python3 tests/format_table.py --check"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_rule),
        cmocka_unit_test(test_quantizer_refuses),
        cmocka_unit_test(test_random_changes),
        cmocka_unit_test(test_second_reader_unpacks),
        cmocka_unit_test(test_specification_is_current),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
