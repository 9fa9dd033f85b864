/* The .dpk reader and writer: round trip, determinism, every truncation, every bit of the front,
 * every rule with the sums repaired, agreement with the second reader (read_dpk.py), and outputs
 * that cannot be written. */
#include "support_dpk.h"

#include "../formats/dpk_check.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
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

static char *folder; /* of this run's files */

static const char *in_folder(const char *name) {
    static char paths[4][600];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int setup(void **state) {
    (void)state;
    folder = support_folder_make();
    return 0;
}
static int teardown(void **state) {
    (void)state;
    support_folder_remove(folder);
    return 0;
}

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        if ((call) != DPK_OK) fail_msg("%s", err.msg);                                             \
    } while (0)

/* ---- Round trip ---- */

static void test_round_trip(void **state) {
    (void)state;
    dpk_error err = {0};
    struct dpk_file f;
    size_t n_blob;
    for (uint32_t seed = 1; seed <= 4; seed++) {
        const char *path = in_folder("round.dpk");
        assert_ok(support_dpk_write(path, seed, 1 + (int)seed % 2, &err));
        assert_ok(dpk_file_open(&f, path, &err));
        assert_int_equal(f.n_programs, 4);
        assert_int_equal(f.n_tokenizers, 2);
        assert_string_equal(dpk_file_meta(&f, "pipeline.steps"), "20");
        assert_string_equal(dpk_file_meta(&f, "empty"), "");
        assert_string_equal(dpk_file_meta(&f, "licence"), "line one\nline two\n");
        assert_null(dpk_file_meta(&f, "pipeline.step"));
        assert_null(dpk_file_meta(&f, "zzz"));
        assert_null(dpk_file_program(&f, "encode"));
        const struct dpk_program *p = dpk_file_program(&f, "step");
        assert_non_null(p);
        assert_int_equal(p->n_inputs, 3);
        assert_int_equal(p->n_outputs, 1);
        assert_string_equal(dpk_file_string(&f, p->values[0].name), "latent");
        const uint8_t *blob = dpk_file_blob(&f, 1, &n_blob);
        assert_int_equal(n_blob, sizeof(struct support_t5));
        assert_int_equal((uintptr_t)blob % DPK_ALIGN, 0);
        assert_memory_equal(((const struct support_t5 *)(const void *)blob)->strings, "abc", 4);
        assert_memory_equal(dpk_file_blob(&f, 0, &n_blob), blob, 8); /* magic and version */
        assert_int_equal(n_blob, sizeof(struct support_clip));
        assert_int_equal((uintptr_t)f.weights % DPK_WEIGHTS_ALIGN, 0);
        for (uint32_t i = 0; i < f.n_tensors; i++)
            assert_true(f.tensors[i].hash ==
                        dpk_bytes_sum(f.weights + f.tensors[i].offset, f.tensors[i].bytes));
        assert_ok(dpk_file_verify(&f, NULL, NULL, &err));
        dpk_file_close(&f);
    }
    dpk_file_close(&f); /* closed, that is zeroed */
}

static void test_deterministic(void **state) {
    (void)state;
    dpk_error err = {0};
    size_t n_a, n_b;
    /* Larger than the writer's buffer, so that pieces of every kind are written. */
    assert_ok(support_dpk_write(in_folder("a.dpk"), 7, 12, &err));
    assert_ok(support_dpk_write(in_folder("b.dpk"), 7, 12, &err));
    uint8_t *a = support_file_read(in_folder("a.dpk"), &n_a);
    uint8_t *b = support_file_read(in_folder("b.dpk"), &n_b);
    assert_true(n_a > 5 << 20);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    free(a);
    free(b);
}

/* ---- Damage ---- */

struct damage {
    uint8_t *good; /* a whole file, and its size */
    size_t n;
    size_t front;
};

static struct damage damage_begin(uint32_t seed) {
    struct damage d;
    dpk_error err = {0};
    struct dpk_section s;
    assert_ok(support_dpk_write(in_folder("good.dpk"), seed, 1, &err));
    d.good = support_file_read(in_folder("good.dpk"), &d.n);
    memcpy(&s, d.good + sizeof(struct dpk_header) + 5 * sizeof s, sizeof s);
    d.front = (size_t)s.offset;
    return d;
}

/* Open must fail with a message of one line that names the file; returns it. */
static const char *refused(const char *path) {
    static dpk_error err;
    struct dpk_file f;
    memset(&err, 0, sizeof err);
    const int rc = dpk_file_open(&f, path, &err);
    if (rc == DPK_OK) {
        dpk_file_close(&f);
        return NULL;
    }
    assert_int_equal(rc, err.code);
    assert_true(strstr(err.msg, path) && !strchr(err.msg, '\n'));
    assert_null(f.front);
    return err.msg;
}

static void test_truncated(void **state) {
    (void)state;
    struct damage d = damage_begin(11);
    const char *path = in_folder("cut.dpk");
    support_file_write(path, d.good, d.n);
    /* From the end down, so that the file is cut and not rewritten: places, then every byte. */
    for (size_t i = 100; i-- > 0;) {
        assert_int_equal(truncate(path, (off_t)(d.front + (d.n - d.front) * i / 100)), 0);
        assert_non_null(refused(path));
    }
    for (size_t n = d.front; n-- > 0;) {
        assert_int_equal(truncate(path, (off_t)n), 0);
        assert_non_null(refused(path));
    }
    /* One byte too many. */
    support_file_write(path, d.good, d.n);
    FILE *f = fopen(path, "ab");
    assert_int_equal(fputc(0, f), 0);
    fclose(f);
    assert_non_null(refused(path));
    free(d.good);
}

static void test_every_bit_of_the_front(void **state) {
    (void)state;
    struct damage d = damage_begin(12);
    dpk_error err = {0};
    assert_ok(support_dpk_check(d.good, d.n, &err));
    for (size_t bit = 0; bit < d.front * 8; bit++) {
        d.good[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (support_dpk_check(d.good, d.n, &err) == DPK_OK)
            fail_msg("bit %zu of byte %zu is not noticed", bit % 8, bit / 8);
        d.good[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    /* The same through files, at some places. */
    uint64_t random = 5;
    for (int i = 0; i < 50; i++) {
        const size_t bit = support_random(&random) % (d.front * 8);
        d.good[bit / 8] ^= (uint8_t)(1 << bit % 8);
        support_file_write(in_folder("bit.dpk"), d.good, d.n);
        assert_non_null(refused(in_folder("bit.dpk")));
        d.good[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    free(d.good);
}

static int stop_at_once(void *arg, uint64_t done, uint64_t total) {
    uint64_t *seen = arg;
    *seen = done;
    return done <= total;
}

static void test_weight_bits(void **state) {
    (void)state;
    struct damage d = damage_begin(13);
    const char *path = in_folder("weights.dpk");
    dpk_error err = {0};
    struct dpk_file f;
    uint64_t random = 99, seen = 0;
    support_file_write(path, d.good, d.n);
    assert_ok(dpk_file_open(&f, path, &err));
    for (int i = 0; i < 200; i++) {
        /* Some in tensors, some in the gaps after them. */
        size_t at = d.front + support_random(&random) % (d.n - d.front);
        if (i % 4 == 0) {
            const uint32_t t = support_random(&random) % (f.n_tensors - 1);
            const uint64_t end = f.tensors[t].offset + f.tensors[t].bytes;
            if (end < f.tensors[t + 1].offset) at = d.front + (size_t)end;
        }
        FILE *out = fopen(path, "r+b");
        fseek(out, (long)at, SEEK_SET);
        fputc(d.good[at] ^ (1 << support_random(&random) % 8), out);
        fflush(out);
        const int rc = dpk_file_verify(&f, NULL, NULL, &err);
        fseek(out, (long)at, SEEK_SET);
        fputc(d.good[at], out);
        fclose(out);
        if (rc != DPK_EFORMAT || !strstr(err.msg, "tensor ")) fail_msg("byte %zu: %d", at, rc);
    }
    assert_ok(dpk_file_verify(&f, NULL, NULL, &err));
    assert_int_equal(dpk_file_verify(&f, stop_at_once, &seen, &err), DPK_ECANCELLED);
    assert_true(seen > 0);
    dpk_file_close(&f);
    free(d.good);
}

/* ---- Files that are no .dpk files, and outputs that cannot be written ---- */

static void test_not_a_file(void **state) {
    (void)state;
    assert_non_null(refused(in_folder("missing.dpk")));
    assert_non_null(strstr(refused(folder), "a folder"));
    assert_non_null(strstr(refused("/dev/null"), "not a regular file"));
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_non_null(strstr(refused(in_folder("fifo")), "not a regular file"));
    support_file_write(in_folder("empty"), "", 0);
    assert_non_null(strstr(refused(in_folder("empty")), "not a .dpk file"));
    support_file_write(in_folder("text"), "{\"a\": 1}\n", 9);
    assert_non_null(strstr(refused(in_folder("text")), "not a .dpk file"));
}

static int count_files(void) {
    DIR *d = opendir(folder);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void test_output_refused(void **state) {
    (void)state;
    dpk_error err = {0};
    struct dpk_writer *w;
    const int before = count_files();
    static const char *const bad[] = {"", "/dev/full", "/dev/null", "/nowhere/x.dpk", "/tmp/"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(dpk_writer_create(&w, bad[i], &err), DPK_EIO);
        assert_null(w);
        assert_true(strstr(err.msg, bad[i]) != NULL);
    }
    assert_int_equal(dpk_writer_create(&w, folder, &err), DPK_EIO);
    assert_non_null(strstr(err.msg, "a folder"));
    if (geteuid() != 0) { /* root may write anywhere */
        assert_int_equal(chmod(folder, 0500), 0);
        assert_int_equal(dpk_writer_create(&w, in_folder("x.dpk"), &err), DPK_EIO);
        assert_int_equal(chmod(folder, 0700), 0);
        assert_non_null(strstr(err.msg, "x.dpk"));
    }
    assert_int_equal(count_files(), before);
}

/* No room: a limit on the size of files stands for a full disk. */
static void test_output_full(void **state) {
    (void)state;
    struct rlimit old, limit;
    dpk_error err = {0};
    size_t n;
    assert_ok(support_dpk_write(in_folder("old.dpk"), 30, 1, &err));
    uint8_t *old_bytes = support_file_read(in_folder("old.dpk"), &n);
    const int before = count_files();
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = 10000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const int rc = support_dpk_write(in_folder("old.dpk"), 31, 1, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, DPK_EIO);
    assert_non_null(strstr(err.msg, in_folder("old.dpk")));
    assert_int_equal(count_files(), before);
    size_t m;
    uint8_t *now = support_file_read(in_folder("old.dpk"), &m);
    assert_int_equal(m, n);
    assert_memory_equal(now, old_bytes, n);
    free(now);
    free(old_bytes);
}

static void test_permissions(void **state) {
    (void)state;
    dpk_error err = {0};
    struct stat st;
    const mode_t old = umask(027);
    assert_ok(support_dpk_write(in_folder("mode.dpk"), 32, 1, &err));
    umask(old);
    assert_int_equal(stat(in_folder("mode.dpk"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
}

/* ---- Wrong use of the writer ---- */

static void test_writer_refuses(void **state) {
    (void)state;
    dpk_error err = {0};
    struct dpk_writer *w;
    uint32_t index, a, b;
    const char *path = in_folder("refused.dpk");
    const int before = count_files();
    uint8_t bytes[64] = {0};
    struct dpk_tensor_spec spec = {"x",      "", DPK_F32, DPK_LAYOUT_RAW, {1, {16}}, DPK_NONE,
                                   DPK_NONE, 0,  0};

    /* The same name twice is found before any byte is written. */
    assert_ok(dpk_writer_create(&w, path, &err));
    assert_ok(dpk_writer_tensor(w, &spec, &index, &err));
    assert_ok(dpk_writer_tensor(w, &spec, &index, &err));
    assert_int_equal(index, 1);
    assert_int_equal(dpk_writer_begin(w, &err), DPK_EFORMAT);
    assert_non_null(strstr(err.msg, "two tensors are called x"));
    assert_int_equal(dpk_writer_put(w, 0, bytes, 4, &err), DPK_EARG);
    assert_int_equal(dpk_writer_finish(w, &err), DPK_EARG);
    dpk_writer_free(w);

    assert_ok(dpk_writer_create(&w, path, &err));
    assert_ok(dpk_writer_pair(w, "k", "1", &err));
    assert_ok(dpk_writer_pair(w, "k", "2", &err));
    assert_int_equal(dpk_writer_begin(w, &err), DPK_EARG);
    dpk_writer_free(w);

    assert_ok(dpk_writer_create(&w, path, &err));
    spec.layout = DPK_LAYOUT_PANEL; /* rank 1 */
    assert_int_equal(dpk_writer_tensor(w, &spec, &index, &err), DPK_EARG);
    spec.layout = DPK_LAYOUT_RAW;
    assert_ok(dpk_writer_tensor(w, &spec, &index, &err));
    assert_ok(dpk_writer_string(w, "same", &a, &err));
    assert_ok(dpk_writer_string(w, "same", &b, &err));
    assert_int_equal(a, b);
    assert_int_equal(dpk_writer_put(w, 0, bytes, 4, &err), DPK_EARG); /* before begin */
    assert_ok(dpk_writer_begin(w, &err));
    assert_int_equal(count_files(), before + 1);
    assert_int_equal(dpk_writer_string(w, "late", &a, &err), DPK_EARG);
    assert_int_equal(dpk_writer_put(w, 1, bytes, 4, &err), DPK_EARG);
    assert_ok(dpk_writer_put(w, 0, bytes, 60, &err));
    assert_int_equal(dpk_writer_finish(w, &err), DPK_EARG); /* 60 of 64 */
    assert_non_null(strstr(err.msg, "60 of its 64"));
    assert_int_equal(dpk_writer_put(w, 0, bytes, 8, &err), DPK_EARG);
    dpk_writer_free(w);
    assert_int_equal(count_files(), before);
    dpk_writer_free(NULL);
}

/* A file of nothing but its frame is valid. */
static void test_smallest(void **state) {
    (void)state;
    dpk_error err = {0};
    struct dpk_writer *w;
    struct dpk_file f;
    const char *path = in_folder("smallest.dpk");
    assert_ok(dpk_writer_create(&w, path, &err));
    assert_ok(dpk_writer_begin(w, &err));
    assert_ok(dpk_writer_finish(w, &err));
    assert_int_equal(dpk_writer_finish(w, &err), DPK_EARG);
    dpk_writer_free(w);
    assert_ok(dpk_file_open(&f, path, &err));
    assert_int_equal(f.file_bytes, 4096);
    assert_int_equal(f.weights_bytes, 0);
    assert_ok(dpk_file_verify(&f, NULL, NULL, &err));
    assert_null(dpk_file_meta(&f, "x"));
    dpk_file_close(&f);
}

/* The front of a file with one program: n_in inputs, n_out outputs that all come from the first. */
static int view_program(uint32_t n_in, uint32_t n_out, dpk_error *err) {
    struct dpk_value *values = calloc(n_in + n_out, sizeof *values);
    struct dpk_op *ops = calloc(n_out, sizeof *ops);
    struct dpk_writer *w;
    struct dpk_file f;
    char name[16];
    assert_int_equal(dpk_writer_create(&w, NULL, err), DPK_OK);
    for (uint32_t i = 0; i < n_in + n_out; i++) {
        snprintf(name, sizeof name, "v%u", i);
        values[i] = (struct dpk_value){.type = DPK_VALUE_F32, .rank = i < n_in};
        assert_int_equal(dpk_writer_string(w, name, &values[i].name, err), DPK_OK);
        if (i < n_in) continue;
        values[i].flags = DPK_VALUE_OUTPUT;
        struct dpk_op *op = &ops[i - n_in];
        *op = (struct dpk_op){.opcode = DPK_OP_slice};
        for (int k = 0; k < DPK_MAX_IN; k++) op->in[k] = k ? DPK_NONE : 0;
        for (int k = 0; k < DPK_MAX_WT; k++) op->wt[k] = DPK_NONE;
        op->attr[2].f = 1;
        op->attr[4].f = -INFINITY, op->attr[5].f = INFINITY;
    }
    assert_int_equal(dpk_writer_program(w, "text", values, n_in, ops, n_out, err), DPK_OK);
    const int rc = dpk_writer_view(w, &f, err);
    dpk_file_close(&f);
    dpk_writer_free(w);
    free(values);
    free(ops);
    return rc;
}

/* As many inputs and outputs as a program may have, and one more, with nothing else wrong. */
static void test_boundaries(void **state) {
    (void)state;
    dpk_error err = {0};
    assert_ok(view_program(4096, 1, &err));
    assert_int_equal(view_program(4097, 1, &err), DPK_EFORMAT);
    assert_non_null(strstr(err.msg, "4097 inputs and 1 operators, want some, at most 4096 inputs"));
    assert_ok(view_program(1, 4096, &err));
    assert_int_equal(view_program(1, 4097, &err), DPK_EFORMAT);
    assert_non_null(strstr(err.msg, "its entry says 4097 of at most 4096"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_truncated),      cmocka_unit_test(test_every_bit_of_the_front),
        cmocka_unit_test(test_weight_bits),    cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_output_refused), cmocka_unit_test(test_output_full),
        cmocka_unit_test(test_permissions),    cmocka_unit_test(test_writer_refuses),
        cmocka_unit_test(test_smallest),       cmocka_unit_test(test_boundaries),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
