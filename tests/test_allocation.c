/* Memory of a run: nothing is allocated once the pictures are under way, and the arena takes what
 * was planned. Counting replaces the C library's allocator, so sanitized builds leave it out. */
#include "support_golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTING 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNTING 0
#endif
#endif
#ifndef COUNTING
#define COUNTING 1
#endif

#if COUNTING
static atomic_int counting, calls;

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static void count(void) {
    if (atomic_load(&counting)) atomic_fetch_add(&calls, 1);
}
void *malloc(size_t n) { return count(), __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return count(), __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return count(), __libc_realloc(p, n); }
void *aligned_alloc(size_t alignment, size_t n) { return count(), __libc_memalign(alignment, n); }
int posix_memalign(void **p, size_t alignment, size_t n) {
    count();
    *p = __libc_memalign(alignment, n);
    return *p ? 0 : 12;
}

/* Counts from the first call on; the last one (all work done) stops it. */
static int progress(void *arg, const dpk_progress *p) {
    int *n = arg;
    ++*n;
    atomic_store(&counting, p->fraction < 1.0);
    return 0;
}

static void test_no_allocation_during_a_run(void **state) {
    (void)state;
    dpk_error err;
    dpk_session *s = NULL;
    dpk_images *images = NULL;
    const char *prompts[2] = {"a red circle on a white background", "a blue star"};
    int n = 0;
    dpk_model *model = golden_model("shapes-xl-bf16", "models/shapes-xl", "--dtype bf16");
    dpk_session_options o = dpk_session_options_default();
    o.threads = 2;
    if (dpk_session_create(&s, model, &o, &err)) fail_msg("%s", err.msg);
    dpk_params p = dpk_params_default();
    p.prompts = prompts, p.n_prompts = 2, p.steps = 3, p.width = 160, p.height = 96;
    p.progress = progress, p.progress_arg = &n;
    if (dpk_generate(s, &p, &images, &err)) fail_msg("%s", err.msg);
    atomic_store(&counting, 0);
    assert_true(n >= 4);
    assert_int_equal(atomic_load(&calls), 0);
    dpk_images_free(images), dpk_session_free(s), dpk_model_free(model);
}

#endif

/* What a run with this limit (0: none) is planned to take. */
static uint64_t planned(const dpk_model *model, const dpk_params *p, uint64_t limit) {
    dpk_error err;
    dpk_session *s = NULL;
    dpk_info info;
    dpk_session_options o = dpk_session_options_default();
    o.memory_limit = limit;
    if (dpk_session_create(&s, model, &o, &err)) fail_msg("%s", err.msg);
    if (dpk_session_plan(s, p, &info, &err)) fail_msg("%s", err.msg);
    dpk_session_free(s);
    return info.peak_bytes;
}

/* The plan itself is enough; under it maps go a few rows at a time, for the same picture; one byte
 * under the least is refused. */
static void test_memory_limit_is_exact(void **state) {
    (void)state;
    dpk_error err;
    dpk_session *s = NULL;
    dpk_images *images = NULL;
    uint8_t *first = NULL;
    const size_t n = 96 * 64 * 3;
    const char *prompt = "a green heart";
    dpk_model *model = golden_model("shapes-xl-bf16", "models/shapes-xl", "--dtype bf16");
    dpk_params p = dpk_params_default();
    p.prompts = &prompt, p.steps = 1, p.width = 96, p.height = 64;
    const uint64_t usual = planned(model, &p, 0), least = planned(model, &p, 1);
    printf("planned: %llu bytes, at least %llu\n", (unsigned long long)usual,
           (unsigned long long)least);
    assert_true(least < usual);
    const uint64_t limits[] = {usual, usual - 1, (usual + least) / 2, least, least - 1};
    for (int i = 0; i < 5; i++) {
        dpk_session_options o = dpk_session_options_default();
        o.memory_limit = limits[i];
        assert_true(i == 4 || planned(model, &p, limits[i]) <= limits[i]);
        if (dpk_session_create(&s, model, &o, &err)) fail_msg("%s", err.msg);
        int rc = dpk_generate(s, &p, &images, &err);
        assert_int_equal(rc, i < 4 ? DPK_OK : DPK_ENOMEM);
        dpk_session_free(s);
        if (i == 4) break;
        if (i) assert_memory_equal(images->rgb, first, n);
        else first = memcpy(malloc(n), images->rgb, n);
        dpk_images_free(images);
    }
    free(first);
    dpk_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#if COUNTING
        cmocka_unit_test(test_no_allocation_during_a_run),
#endif
        cmocka_unit_test(test_memory_limit_is_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
