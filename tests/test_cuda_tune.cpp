/* The choice of cuBLASLt's algorithms: the heuristic's without a file, measured once and kept in
 * the cache, files that are damaged or hostile, captures. On the emulated device every algorithm is
 * as fast as the next, so that a test can tell the ways apart by counting. */
#include "../kernels/cuda/lt.h"
#include "support_cuda_kernels.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static std::string cache_file(void) {
    std::string dir = std::string(folder) + "/diffpak", found;
    DIR *d = opendir(dir.c_str());
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') found = dir + "/" + e->d_name;
    if (d) closedir(d);
    return found;
}

static std::string read_all(const std::string &path) {
    std::string text;
    FILE *f = fopen(path.c_str(), "r");
    assert_non_null(f);
    for (int c; (c = fgetc(f)) != EOF;) text += (char)c;
    fclose(f);
    return text;
}

static void write_all(const std::string &path, const std::string &text) {
    FILE *f = fopen(path.c_str(), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text.data(), 1, text.size(), f), text.size());
    assert_int_equal(fclose(f), 0);
}

static void reopen(const char *tune) {
    if (tune) setenv("DPK_CUDA_TUNE", tune, 1);
    else unsetenv("DPK_CUDA_TUNE");
    dpk_cuda_tune_close(&cuda);
    dpk_cuda_tune_open(&cuda);
}

static int open_folder(void **state_) {
    snprintf(folder, sizeof folder, "/tmp/dpk-tune-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    setenv("XDG_CACHE_HOME", folder, 1);
    return set_up(state_);
}

static int close_folder(void **state_) {
    int rc = tear_down(state_);
    std::string file = cache_file();
    if (!file.empty()) unlink(file.c_str());
    rmdir((std::string(folder) + "/diffpak").c_str());
    return rc | rmdir(folder);
}

static struct dpk_lt_product product_of(int m, int n, int k) {
    struct dpk_lt_product p = {};
    p.m = m, p.n = n, p.k = k;
    p.lda = p.ldb = k, p.ldd = n;
    p.batch = 1;
    p.dtype = p.out_dtype = DPK_BF16;
    p.alpha = 1.0f;
    return p;
}

/* Run the product on random operands and compare; returns how many ran in all, preparing too. */
static size_t run(const struct dpk_lt_product *p, bool prepare) {
    dpk_error err = {};
    size_t before = 0, after = 0;
    for (int i = 0; i < DPK_EMU_LT_ALGOS; i++) before += dpk_emu_lt_runs(i);
    std::vector<float> a((size_t)(p->m * p->lda)), b((size_t)(p->n * p->ldb));
    for (float &v : a) v = rounded(draw_float(), p->dtype);
    for (float &v : b) v = rounded(draw_float(), p->dtype);
    std::vector<unsigned char> ab = encoded(a, p->dtype), bb = encoded(b, p->dtype);
    void *da = to_device(ab.data(), ab.size()), *db = to_device(bb.data(), bb.size());
    void *d = device((size_t)(p->m * p->ldd) * bytes_of(p->out_dtype));
    if (prepare && dpk_lt_prepare(&cuda, p, &err)) fail_msg("%s", err.msg);
    if (dpk_lt_run(&cuda, p, da, db, NULL, d, NULL, &err)) fail_msg("%s", err.msg);
    std::vector<float> got = decoded(d, (size_t)(p->m * p->ldd), p->out_dtype);
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            double want = 0;
            for (int64_t k = 0; k < p->k; k++)
                want += (double)a[(size_t)(i * p->lda + k)] * (double)b[(size_t)(j * p->ldb + k)];
            if (!(fabs((double)got[(size_t)(i * p->ldd + j)] - want) <= 0x1p-8 * fabs(want) + 1e-4))
                fail_msg("%lld, %lld: %g, want %g", (long long)i, (long long)j,
                         (double)got[(size_t)(i * p->ldd + j)], want);
        }
    forget();
    for (int i = 0; i < DPK_EMU_LT_ALGOS; i++) after += dpk_emu_lt_runs(i);
    return after - before;
}

/* One product and nothing on the disk. */
static void test_heuristic(void **) {
    struct dpk_lt_product p = product_of(9, 16, 24);
    reopen("0");
    assert_int_equal(run(&p, true), 1);
    reopen(NULL); /* an emulated device does not measure unless told */
    assert_int_equal(run(&p, true), 1);
    assert_int_equal(run(&p, false), 1);
    reopen("0");
    assert_true(cache_file().empty());
}

static void test_measured_once(void **) {
    struct dpk_lt_product p = product_of(9, 16, 24), q = product_of(5, 8, 32);
    reopen("1");
    assert_true(run(&p, true) > 20); /* every candidate a few times */
    assert_int_equal(run(&p, true), 1);
    assert_int_equal(run(&q, false), 1); /* not prepared: never measured in a run */
    reopen("1");
    std::string first = read_all(cache_file());
    assert_int_equal(run(&p, true), 1); /* from the file */
    assert_true(run(&q, true) > 20);    /* has no entry yet */
    reopen("1");
    assert_true(read_all(cache_file()).size() >= first.size());
}

/* Where there is no memory to measure in, nothing is kept: the next run may measure. */
static void test_no_memory(void **) {
    struct dpk_lt_product p = product_of(11, 16, 40);
    reopen("1");
    dpk_emu_set_memory(dpk_emu_in_use() + 4096); /* the operands, not the copies of B */
    assert_int_equal(run(&p, true), 1);
    dpk_emu_set_memory((size_t)4 << 30);
    reopen("1");
    assert_true(run(&p, true) > 20);
    reopen("1");
    assert_int_equal(run(&p, true), 1);
}

/* Whatever is in the file, products are right, and nothing fails. */
static void test_damaged_files(void **) {
    struct dpk_lt_product p = product_of(12, 24, 40);
    reopen("1");
    run(&p, true);
    reopen("1");
    const std::string path = cache_file(), good = read_all(path);
    for (int i = 0; i < 300; i++) {
        std::string text = good;
        state = (uint64_t)i;
        for (int n = draw(1, 4); n > 0; n--) {
            size_t at = (size_t)draw(0, (int)text.size() - 1);
            int what = draw(0, 3);
            if (what == 0) text[at] = (char)draw(0, 255);
            if (what == 1) text.erase(at, (size_t)draw(1, 40));
            if (what == 2) text.insert(at, (size_t)draw(1, 40), (char)draw(32, 126));
            if (what == 3) text.resize(at + 1);
            if (text.empty()) text = "x";
        }
        write_all(path, text);
        reopen("1");
        run(&p, true);
    }
    /* Algorithms of another shape, and numbers beyond the types. */
    std::string head = good.substr(0, good.find('\n') + 1), line = good.substr(head.size());
    write_all(path, head + "99999999999999999999" + line.substr(line.find(' ')));
    reopen("1");
    run(&p, true);
    write_all(path, head + std::string(5 << 20, '7'));
    reopen("1");
    run(&p, true);
    /* Not a file, not a place. */
    unlink(path.c_str());
    assert_int_equal(mkdir(path.c_str(), 0777), 0);
    reopen("1");
    run(&p, true);
    reopen("0");
    assert_int_equal(rmdir(path.c_str()), 0);
    setenv("XDG_CACHE_HOME", "/dev/null", 1);
    reopen("1");
    run(&p, true);
    reopen("0");
    setenv("XDG_CACHE_HOME", "relative", 1);
    setenv("HOME", "also-relative", 1);
    reopen("1");
    run(&p, true);
    reopen("0");
    setenv("XDG_CACHE_HOME", folder, 1);
}

/* Products queued in a capture: nothing waits, allocates or measures. */
static void test_capture(void **) {
    dpk_error err = {};
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    struct dpk_lt_product p = product_of(8, 8, 16);
    std::vector<unsigned char> zeros(8 * 16 * 2);
    reopen("1");
    void *a = to_device(zeros.data(), zeros.size()), *d = device(8 * 8 * 2);
    assert_int_equal(cudaStreamBeginCapture(cuda.stream, cudaStreamCaptureModeThreadLocal), 0);
    assert_int_equal(dpk_lt_run(&cuda, &p, a, a, NULL, d, NULL, &err), DPK_OK);
    assert_int_equal(cudaStreamEndCapture(cuda.stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphLaunch(exec, cuda.stream), cudaSuccess);
    for (float v : decoded(d, 64, DPK_BF16)) assert_true(v == 0.0f);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    forget();
    reopen("0");
}

/* What cuBLASLt does not do is an error, not a wrong number. */
static void test_refused(void **) {
    dpk_error err = {};
    struct dpk_lt_product p = product_of(8, 8, 16);
    reopen("0");
    p.ldb = 8; /* shorter than a row */
    assert_int_equal(dpk_lt_prepare(&cuda, &p, &err), DPK_EBACKEND);
    assert_true(err.msg[0] != 0);
    p = product_of(8, 8, 16);
    p.lda = 17; /* rows of 16-bit numbers that are not aligned */
    assert_int_equal(dpk_lt_prepare(&cuda, &p, &err), DPK_EBACKEND);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heuristic), cmocka_unit_test(test_measured_once),
        cmocka_unit_test(test_no_memory), cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_capture),   cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
