/* Random numbers against PyTorch's (tests/data/golden/rng.*). */
#include "support_golden.h"

#include "../formats/ops.h"
#include "../formats/tensors.h"
#include "../runtime/random.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/data/golden/rng"

static struct dpk_tensors *golden;
static cJSON *cases;

static int setup(void **state) {
    (void)state;
    dpk_error err;
    if (dpk_tensors_open_file(&golden, GOLDEN ".safetensors", &err)) {
        print_error("%s\n", err.msg);
        return -1;
    }
    char *text = NULL;
    size_t n = 0;
    FILE *f = fopen(GOLDEN ".json", "rb");
    if (!f) return -1;
    for (int c; (c = fgetc(f)) != EOF;) {
        if (n % 4096 == 0) text = realloc(text, n + 4097);
        text[n++] = (char)c;
    }
    fclose(f);
    cases = cJSON_ParseWithLength(text, n);
    free(text);
    return cases ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dpk_tensors_close(golden);
    cJSON_Delete(cases);
    return 0;
}

/* float32: within the tolerance. The half types: equal, but where two float32 values that close
 * lie on both sides of a rounding boundary. */
static void compare(const char *name, const float *got, const float *want, size_t n, int dtype,
                    double tolerance) {
    double worst = 0;
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]);
        double ulp = dtype == DPK_F32 ? 0 : fabs(want[i]) * (dtype == DPK_F16 ? 0x1p-10 : 0x1p-7);
        differ += got[i] != want[i];
        assert_false(isnan(got[i]));
        if (d > tolerance + ulp) fail_msg("%s[%zu] = %.9g, want %.9g", name, i, got[i], want[i]);
        if (d > worst) worst = d;
    }
    if (dtype != DPK_F32 && differ > n / 200)
        fail_msg("%s: %zu of %zu values differ", name, differ, n);
}

static int dtype_of(const cJSON *c) {
    const char *s = cJSON_GetStringValue(cJSON_GetObjectItem(c, "dtype"));
    if (!s) return DPK_F32;
    return strcmp(s, "fp16") == 0 ? DPK_F16 : strcmp(s, "bf16") == 0 ? DPK_BF16 : DPK_F32;
}

static double number(const cJSON *c, const char *key) {
    return cJSON_GetNumberValue(cJSON_GetObjectItem(c, key));
}

static int check_draw(const cJSON *c) {
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(c, "name"));
    const int dtype = dtype_of(c);
    const size_t n = (size_t)number(c, "n");
    const bool cuda = strncmp(name, "cuda.", 5) == 0, t4 = strncmp(name, "cuda.t4", 7) == 0;
    const bool second = strstr(name, ".second_call") != NULL;
    /* seeds go up to 2^40, exact in a double */
    const uint64_t seed = second ? 0 : (uint64_t)number(c, "seed");
    const double tolerance = 5e-7;
    struct dpk_random r;
    float *got = malloc(n * sizeof *got);
    dpk_random_seed(&r, cuda ? DPK_RANDOM_CUDA : DPK_RANDOM_CPU, seed, t4 ? 40 * 1024 : 0);
    for (int i = 0; i <= second; i++) {
        uint64_t before = r.offset;
        dpk_random_normal(&r, dtype, n, got);
        if (cuda && !second)
            assert_int_equal(r.offset - before, (uint64_t)number(c, "offset_advance"));
    }
    size_t m = 0;
    float *want = golden_floats(golden, name, "", &m);
    if (want) {
        assert_int_equal(m, n);
        compare(name, got, want, n, dtype, tolerance);
    } else {
        want = golden_floats(golden, name, ".first", &m);
        assert_non_null(want);
        compare(name, got, want, m, dtype, tolerance);
        free(want);
        want = golden_floats(golden, name, ".last", &m);
        assert_non_null(want);
        compare(name, got + n - m, want, m, dtype, tolerance);
        free(want);
        want = golden_floats(golden, name, ".mean_std", &m);
        if (want) {
            double mean = 0, var = 0;
            for (size_t i = 0; i < n; i++) mean += got[i];
            mean /= (double)n;
            for (size_t i = 0; i < n; i++) var += (got[i] - mean) * (got[i] - mean);
            assert_true(fabs(mean - want[0]) < 1e-6);
            double biased = sqrt(var / (double)n), unbiased = sqrt(var / (double)(n - 1));
            assert_true(fabs(biased - want[1]) < 1e-6 || fabs(unbiased - want[1]) < 1e-6);
        }
    }
    free(want);
    free(got);
    return 1;
}

/* Calls of different sizes on one generator; the golden has each call's first 64 values. */
static int check_sequence(const cJSON *c, const cJSON *sizes) {
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(c, "name"));
    struct dpk_random r;
    size_t m = 0, at = 0;
    float *want = golden_floats(golden, name, "", &m);
    assert_non_null(want);
    dpk_random_seed(&r, DPK_RANDOM_CPU, (uint64_t)number(c, "seed"), 0);
    const cJSON *size;
    cJSON_ArrayForEach(size, sizes) {
        size_t n = (size_t)size->valueint, shown = n < 64 ? n : 64;
        float *got = malloc(n * sizeof *got);
        dpk_random_normal(&r, dtype_of(c), n, got);
        assert_true(at + shown <= m);
        compare(name, got, want + at, shown, dtype_of(c), 5e-7);
        at += shown;
        free(got);
    }
    assert_int_equal(at, m);
    free(want);
    return 1;
}

static void test_goldens(void **state) {
    (void)state;
    const cJSON *c;
    int n = 0;
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(cases, "draws")) {
        const cJSON *sizes = cJSON_GetObjectItem(c, "sizes");
        n += sizes ? check_sequence(c, sizes) : check_draw(c);
    }
    assert_int_equal(n, cJSON_GetArraySize(cJSON_GetObjectItem(cases, "draws")));
    assert_true(n >= 60);
}

/* diffusers' latents: one draw for the batch, or one for each picture. */
static void test_latents(void **state) {
    (void)state;
    static const char *const types[] = {"fp32", "fp16", "bf16"};
    static const int dtypes[] = {DPK_F32, DPK_F16, DPK_BF16};
    enum { ONE = 4 * 6 * 8 };
    for (int i = 0; i < 3; i++) {
        char name[64];
        struct dpk_random r;
        float got[2 * ONE];
        size_t n = 0;
        snprintf(name, sizeof name, "latents.%s.one_generator", types[i]);
        float *want = golden_floats(golden, name, "", &n);
        assert_non_null(want);
        assert_int_equal(n, 2 * ONE);
        dpk_random_seed(&r, DPK_RANDOM_CPU, 0, 0);
        dpk_random_normal(&r, dtypes[i], 2 * ONE, got);
        compare(name, got, want, n, dtypes[i], 5e-7);
        free(want);
        snprintf(name, sizeof name, "latents.%s.two_generators", types[i]);
        want = golden_floats(golden, name, "", &n);
        assert_non_null(want);
        for (unsigned k = 0; k < 2; k++) {
            dpk_random_seed(&r, DPK_RANDOM_CPU, k, 0);
            dpk_random_normal(&r, dtypes[i], ONE, got + k * ONE);
        }
        compare(name, got, want, n, dtypes[i], 5e-7);
        free(want);
    }
}

/* First values of a CUDA generator with seed 0 as published by stable-diffusion-webui's
 * rng_philox.py. */
static void test_cuda_published(void **state) {
    (void)state;
    static const float want[] = {-0.92466259f, -0.42534415f, -2.6438457f,
                                 0.14518388f,  -0.12086647f, -0.57972564f};
    struct dpk_random r;
    float got[6];
    dpk_random_seed(&r, DPK_RANDOM_CUDA, 0, 0);
    dpk_random_normal(&r, DPK_F32, 6, got);
    compare("published", got, want, 6, DPK_F32, 1e-6);
}

/* A copy of the generator continues as the original does; nothing is written past n. */
static void test_state(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 0, 15, 16, 17, 3, 31, 1000};
    for (int kind = 0; kind < 2; kind++) {
        struct dpk_random a, b;
        dpk_random_seed(&a, (enum dpk_random_kind)kind, 77, 512);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            float x[1001], y[1001];
            x[sizes[i]] = y[sizes[i]] = 123;
            b = a;
            dpk_random_normal(&a, DPK_F32, sizes[i], x);
            dpk_random_normal(&b, DPK_F32, sizes[i], y);
            assert_memory_equal(x, y, sizes[i] * sizeof *x);
            assert_true(x[sizes[i]] == 123 && y[sizes[i]] == 123);
            if (sizes[i] == 0) continue;
            dpk_random_normal(&b, DPK_F32, sizes[i], y);
            assert_memory_not_equal(x, y, sizes[i] * sizeof *x);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_latents),
        cmocka_unit_test(test_cuda_published),
        cmocka_unit_test(test_state),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
