/* Weights under a memory limit: a program that runs once keeps little more than one operator's
 * weights in memory, and computes the same. Resident bytes come from /proc/self/smaps. */
#include "../runtime/exec.h"
#include "../runtime/session.h"
#include "support_golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { LAYERS = 24, WIDTH = 640, ROWS = 3 };
#define LAYER_BYTES ((uint64_t)WIDTH * WIDTH * sizeof(float))

static char path[1024];

static struct dpk_op new_op(uint32_t opcode, uint32_t in) {
    struct dpk_op o = {.opcode = opcode};
    for (int i = 0; i < DPK_MAX_IN; i++) o.in[i] = DPK_NONE;
    for (int i = 0; i < DPK_MAX_WT; i++) o.wt[i] = DPK_NONE;
    o.in[0] = in;
    return o;
}

static struct dpk_op new_cast(uint32_t in) {
    struct dpk_op o = new_op(DPK_OP_slice, in);
    o.attr[2].f = 1; /* times 1, no limits */
    o.attr[4].f = -INFINITY, o.attr[5].f = INFINITY;
    return o;
}

/* text: x [B,WIDTH] through linear layers, one after the other, to context. */
static int write_model(void **state) {
    (void)state;
    dpk_error err = {0};
    struct dpk_writer *w = NULL;
    struct dpk_value values[LAYERS + 3] = {0};
    struct dpk_op ops[LAYERS + 2];
    const struct dpk_shape shape = {2, {WIDTH, WIDTH}};
    float *data = malloc(LAYER_BYTES);
    assert_non_null(data);
    snprintf(path, sizeof path, "%s", golden_build_path("tests/paging.dpk"));
    int rc = dpk_writer_create(&w, path, &err);
    values[0] = (struct dpk_value){.type = DPK_VALUE_F32, .rank = 2, .dim = {0, WIDTH}};
    if (!rc) rc = dpk_writer_string(w, "x", &values[0].name, &err);
    ops[0] = new_cast(0);
    for (uint32_t i = 0; i < LAYERS && !rc; i++) {
        char name[32];
        snprintf(name, sizeof name, "layer.%u", i);
        const struct dpk_tensor_spec spec = {
            name, name, DPK_F32, DPK_LAYOUT_PANEL, shape, DPK_NONE, DPK_NONE, 0, 0};
        ops[1 + i] = new_op(DPK_OP_linear, 1 + i);
        rc = dpk_writer_tensor(w, &spec, &ops[1 + i].wt[DPK_WT(linear, w)], &err);
    }
    ops[LAYERS + 1] = new_cast(LAYERS + 1);
    for (uint32_t i = 0; i < LAYERS + 2; i++) values[1 + i].type = DPK_VALUE_ACT;
    values[LAYERS + 2].type = DPK_VALUE_F32, values[LAYERS + 2].flags = DPK_VALUE_OUTPUT;
    if (!rc) rc = dpk_writer_string(w, "context", &values[LAYERS + 2].name, &err);
    if (!rc) rc = dpk_writer_program(w, "text", values, 1, ops, LAYERS + 2, &err);
    if (!rc) rc = dpk_writer_begin(w, &err);
    uint32_t random = 1;
    for (uint32_t i = 0; i < LAYERS && !rc; i++) {
        for (size_t k = 0; k < (size_t)WIDTH * WIDTH; k++) {
            random = random * 1664525u + 1013904223u;
            data[k] = ((float)(random >> 8) / (1 << 23) - 1) * 0.07f; /* keeps the scale */
        }
        rc = dpk_writer_put(w, i, data, LAYER_BYTES, &err);
    }
    if (!rc) rc = dpk_writer_finish(w, &err);
    dpk_writer_free(w), free(data);
    if (rc) fail_msg("%s", err.msg);
    return 0;
}

static int remove_model(void **state) {
    (void)state;
    return unlink(path);
}

/* Resident bytes of all mappings of the file. */
static uint64_t resident(void) {
    char line[4096];
    uint64_t sum = 0, kb;
    bool ours = false;
    const char *name = strrchr(path, '/');
    FILE *f = fopen("/proc/self/smaps", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        unsigned long long begin, end;
        if (sscanf(line, "%llx-%llx ", &begin, &end) == 2) ours = strstr(line, name) != NULL;
        else if (ours && sscanf(line, "Rss: %llu kB", (unsigned long long *)&kb) == 1)
            sum += kb * 1024;
    }
    fclose(f);
    return sum;
}

/* ---- Operator by operator ------------------------------------------------------------------ */

static uint64_t peak;
static int (*real_run)(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err);

static int watched_run(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err) {
    int rc = real_run(be, call, err);
    uint64_t now = resident();
    if (now > peak) peak = now;
    return rc;
}

/* Run the text program; the peak is measured when an operator is done, before its weights go. */
static uint64_t run_plan(bool once, float *out) {
    dpk_error err = {0};
    struct dpk_file file;
    struct dpk_backend *be = NULL;
    struct dpk_plan plan;
    float x[ROWS * WIDTH];
    uint32_t stage;
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)(i % 17) - 8;
    const struct dpk_plan_input in = {"x", DPK_F32, {2, {ROWS, WIDTH}}, x};
    if (dpk_file_open(&file, path, &err) || dpk_cpu_create(&be, 2, NULL, DPK_F32, &err) ||
        be->attach(be, &file, DPK_F32, NULL, &err))
        fail_msg("%s", err.msg);
    peak = 0, real_run = be->run, be->run = watched_run;
    dpk_plan_init(&plan, be, &file, DPK_F32);
    if (dpk_plan_add(&plan, "text", &in, 1, -1, &stage, &err) || dpk_plan_place(&plan, &err))
        fail_msg("%s", err.msg);
    plan.stages[stage].once = once;
    void *arena = be->alloc(be, plan.arena_bytes);
    assert_non_null(arena);
    dpk_plan_bind(&plan, arena);
    uint32_t context = dpk_plan_find_output(&plan.stages[stage], &file, "context");
    if (dpk_exec_give_all(&plan, stage, &in, 1, &err) || dpk_exec_run(&plan, stage, NULL, &err) ||
        dpk_exec_take(&plan, stage, context, out, &err))
        fail_msg("%s", err.msg);
    be->release(be, arena, plan.arena_bytes);
    dpk_plan_free(&plan), be->free(be), dpk_file_close(&file);
    return peak;
}

static void test_operators_let_go(void **state) {
    (void)state;
    static float with[ROWS * WIDTH], without[ROWS * WIDTH];
    uint64_t all = run_plan(false, without), few = run_plan(true, with);
    printf("%d layers of %.1f MB: %.1f MB resident, %.1f MB when let go of\n", LAYERS,
           (double)LAYER_BYTES / 1e6, (double)all / 1e6, (double)few / 1e6);
    assert_true(all >= LAYERS * LAYER_BYTES * 95 / 100);
    /* One layer, and what the system maps around the pages that are read. */
    assert_true(few <= LAYER_BYTES + (4u << 20));
    assert_memory_equal(with, without, sizeof with);
    for (int i = 0; i < ROWS * WIDTH; i++) assert_true(isfinite(with[i]));
}

/* ---- Sessions ------------------------------------------------------------------------------ */

/* What is left resident after a component ran in a session with this limit. */
static uint64_t run_session(uint64_t limit, int expected, float *out) {
    dpk_error err = {0};
    dpk_model *model = NULL;
    dpk_session *s = NULL;
    dpk_arrays *made = NULL;
    dpk_session_options o = dpk_session_options_default();
    float x[ROWS * WIDTH];
    o.memory_limit = limit;
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)(i % 17) - 8;
    dpk_array in = {"x", DPK_ARRAY_F32, 2, {ROWS, WIDTH}, x};
    if (dpk_model_open(&model, path, &err) || dpk_session_create(&s, model, &o, &err))
        fail_msg("%s", err.msg);
    int rc = dpk_session_run(s, "text", &in, 1, &made, &err);
    if (rc != expected) fail_msg("%d %s, want %d", rc, err.msg, expected);
    uint64_t left = resident();
    if (made) memcpy(out, made->at[0].data, ROWS * WIDTH * sizeof *out);
    dpk_arrays_free(made), dpk_session_free(s), dpk_model_free(model);
    return left;
}

static void test_sessions_with_a_limit(void **state) {
    (void)state;
    static float free_run[ROWS * WIDTH], limited[ROWS * WIDTH];
    uint64_t all = run_session(0, DPK_OK, free_run);
    uint64_t few = run_session(1 << 20, DPK_OK, limited);
    assert_true(all >= LAYERS * LAYER_BYTES * 95 / 100);
    assert_true(few <= LAYER_BYTES);
    assert_memory_equal(free_run, limited, sizeof limited);
    run_session(1000, DPK_ENOMEM, limited); /* less than the activations need */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operators_let_go),
        cmocka_unit_test(test_sessions_with_a_limit),
    };
    return cmocka_run_group_tests(tests, write_model, remove_model);
}
