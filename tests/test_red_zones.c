/* Under AddressSanitizer, what an operator may touch of the arena ends where its operands, its
 * result and its scratch end; in other builds blocks have nothing behind them. */
#include "../runtime/arena_guard.h"
#include "../runtime/exec.h"
#include "support_dpk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Program "setup" of a small file on one thread, its inputs given. */
struct bench {
    char *folder;
    struct dpk_file file;
    struct dpk_backend *backend;
    struct dpk_plan plan;
};

static struct bench b;
static float numbers[4096];

#define assert_ok(x)                                                                               \
    if ((x) != DPK_OK) fail_msg("%s", err.msg)

static int setup(void **state) {
    (void)state;
    char path[600];
    dpk_error err;
    uint32_t stage;
    b.folder = support_folder_make();
    snprintf(path, sizeof path, "%s/a.dpk", b.folder);
    assert_ok(support_dpk_write(path, 5, 1, &err));
    assert_ok(dpk_file_open(&b.file, path, &err));
    assert_ok(dpk_cpu_create(&b.backend, 1, NULL, DPK_F32, &err));
    assert_ok(b.backend->attach(b.backend, &b.file, DPK_F32, NULL, &err));
    const struct dpk_plan_input in[2] = {{"pooled", DPK_F32, {2, {1, 24}}, numbers},
                                         {"timesteps", DPK_F32, {1, {2}}, numbers}};
    dpk_plan_init(&b.plan, b.backend, &b.file, DPK_F32);
    assert_ok(dpk_plan_add(&b.plan, "setup", in, 2, -1, &stage, &err));
    assert_ok(dpk_plan_place(&b.plan, &err));
    dpk_plan_bind(&b.plan, b.backend->alloc(b.backend, b.plan.arena_bytes));
    assert_ok(dpk_exec_give_all(&b.plan, 0, in, 2, &err));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    b.backend->release(b.backend, b.plan.arena, b.plan.arena_bytes);
    dpk_plan_free(&b.plan);
    b.backend->free(b.backend);
    dpk_file_close(&b.file);
    support_folder_remove(b.folder);
    return 0;
}

/* The plan's own account is what is taken: blocks are their values, rounded up, and their zones. */
static void test_blocks_have_zones(void **state) {
    (void)state;
    const struct dpk_plan_stage *s = &b.plan.stages[0];
    uint64_t end = 0;
    for (uint32_t v = 0; v < s->program->n_inputs + s->program->n_ops; v++) {
        const struct dpk_plan_block *block = &b.plan.blocks[s->values[v].block];
        const uint64_t bytes = (s->values[v].bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
        assert_int_equal(block->bytes, bytes + DPK_RED_ZONE);
    }
    for (uint32_t i = 0; i < b.plan.n_blocks; i++)
        if (b.plan.blocks[i].offset + b.plan.blocks[i].bytes > end)
            end = b.plan.blocks[i].offset + b.plan.blocks[i].bytes;
    assert_int_equal(end, b.plan.arena_bytes);
}

#ifdef DPK_ARENA_GUARD

static int (*honest)(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err);
static unsigned n_calls, n_edges;

static void check_edges(const struct dpk_tensor *t) {
    if (!t->data) return;
    const uint8_t *data = t->data;
    const size_t bytes = (size_t)dpk_shape_count(&t->shape) * 4;
    assert_null(__asan_region_is_poisoned((void *)(uintptr_t)data, bytes));
    assert_true(__asan_address_is_poisoned(data + bytes));
    if (data != b.plan.arena) assert_true(__asan_address_is_poisoned(data - 1));
    n_edges++;
}

static uint64_t scratch_bytes(const struct dpk_call *call) {
    return b.plan.stages[0].scratch_bytes[call - b.plan.stages[0].calls];
}

/* Every byte of the arena that this operator has no part in is forbidden. */
static int run_checked(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err) {
    size_t own = 0, open = 0;
    for (int k = 0; k < DPK_MAX_IN; k++) check_edges(&call->in[k]);
    check_edges(&call->out);
    for (uint64_t i = 0; i < b.plan.arena_bytes; i++) {
        const uint8_t *at = (const uint8_t *)b.plan.arena + i;
        const uint8_t *scratch = call->scratch;
        bool owned = scratch && at >= scratch && at < scratch + scratch_bytes(call);
        for (int k = 0; k <= DPK_MAX_IN; k++) {
            const struct dpk_tensor *t = k < DPK_MAX_IN ? &call->in[k] : &call->out;
            const uint8_t *data = t->data;
            owned = owned || (data && at >= data && at < data + dpk_shape_count(&t->shape) * 4);
        }
        own += owned;
        open += !__asan_address_is_poisoned(at);
    }
    assert_int_equal(own, open);
    assert_true(open < b.plan.arena_bytes);
    n_calls++;
    return honest(be, call, err);
}

static void test_nothing_else_is_open(void **state) {
    (void)state;
    dpk_error err;
    honest = b.backend->run;
    b.backend->run = run_checked;
    assert_ok(dpk_exec_run(&b.plan, 0, NULL, &err));
    b.backend->run = honest;
    assert_int_equal(n_calls, b.plan.stages[0].program->n_ops);
    assert_true(n_edges >= 2 * n_calls);
}

static int stray; /* bytes from the begin (negative) or the end of the result */

static int run_stray(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err) {
    uint8_t *out = call->out.data;
    ((volatile uint8_t *)out)[stray < 0 ? stray : dpk_shape_count(&call->out.shape) * 4 + stray] =
        1;
    return honest(be, call, err);
}

/* What happens to a process whose last operator writes one byte beside its result: it dies, with
 * the sanitizer's word for it. */
static void expect_caught(int offset) {
    int pipe_fd[2], status;
    char text[4096];
    size_t n = 0;
    assert_int_equal(pipe(pipe_fd), 0);
    const pid_t child = fork();
    if (child == 0) {
        dpk_error err;
        dup2(pipe_fd[1], 2);
        stray = offset, honest = b.backend->run, b.backend->run = run_stray;
        dpk_exec_run(&b.plan, 0, NULL, &err);
        _exit(0);
    }
    close(pipe_fd[1]);
    for (ssize_t got;
         n + 1 < sizeof text && (got = read(pipe_fd[0], text + n, sizeof text - 1 - n)) > 0;)
        n += (size_t)got;
    text[n] = 0;
    close(pipe_fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (status == 0 || !strstr(text, "use-after-poison")) fail_msg("status %d: %s", status, text);
}

static void test_straying_is_caught(void **state) {
    (void)state;
    expect_caught(0);
    expect_caught(DPK_RED_ZONE - 1);
}

#else

static void test_no_zones(void **state) {
    (void)state;
    assert_int_equal(DPK_RED_ZONE, 0);
}

#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_have_zones),
#ifdef DPK_ARENA_GUARD
        cmocka_unit_test(test_nothing_else_is_open),
        cmocka_unit_test(test_straying_is_caught),
#else
        cmocka_unit_test(test_no_zones),
#endif
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
