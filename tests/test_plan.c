/* Plans: blocks that live at one time never share bytes, and every operator finds its operands as
 * they were made, whatever shares memory with them. The backend here computes nothing: it marks
 * every byte of a result with the number of its maker and checks the marks of what it reads. */
#include "support_dpk.h"
#include "../runtime/exec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Placing ------------------------------------------------------------------------------ */

static void check_blocks(const struct dpk_plan_block *b, uint32_t n, uint64_t total) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(b[i].offset % DPK_ALIGN, 0);
        if (b[i].offset + b[i].bytes > end) end = b[i].offset + b[i].bytes;
        for (uint32_t k = 0; k < i; k++) {
            bool together = b[i].first <= b[k].last && b[k].first <= b[i].last;
            bool overlap =
                b[i].offset < b[k].offset + b[k].bytes && b[k].offset < b[i].offset + b[i].bytes;
            if (together && overlap) fail_msg("blocks %u and %u share bytes", i, k);
        }
    }
    assert_int_equal(end, total);
}

static uint64_t most_alive(const struct dpk_plan_block *b, uint32_t n, uint32_t times) {
    uint64_t most = 0;
    for (uint32_t t = 0; t <= times; t++) {
        uint64_t live = 0;
        for (uint32_t i = 0; i < n; i++)
            if (b[i].first <= t && t <= b[i].last) live += b[i].bytes;
        if (live > most) most = live;
    }
    return most;
}

static void test_blocks_do_not_meet(void **state) {
    (void)state;
    enum { MAX = 200 };
    uint64_t seed = 7;
    for (int round = 0; round < 200; round++) {
        struct dpk_plan_block b[MAX];
        uint64_t total, again;
        uint32_t n = support_random(&seed) % MAX + 1;
        for (uint32_t i = 0; i < n; i++) {
            b[i].bytes = (uint64_t)DPK_ALIGN * (support_random(&seed) % 50 + 1);
            b[i].first = support_random(&seed) % 100;
            b[i].last = b[i].first + support_random(&seed) % (round % 20 + 1);
            b[i].under = DPK_NONE;
            b[i].kept = false;
        }
        assert_int_equal(dpk_plan_place_blocks(b, n, &total, NULL), DPK_OK);
        check_blocks(b, n, total);
        uint64_t bound = most_alive(b, n, 120);
        assert_true(total >= bound);
        assert_true(total <= 2 * bound);
        assert_int_equal(dpk_plan_place_blocks(b, n, &again, NULL), DPK_OK);
        assert_int_equal(total, again);
    }
}

/* Of two holes the smaller one that is large enough is used. */
static void test_best_fit(void **state) {
    (void)state;
    struct dpk_plan_block b[] = {
        {1024, 0, 0, 9, DPK_NONE, 0, 0}, {896, 0, 0, 1, DPK_NONE, 0, 0},
        {832, 0, 0, 9, DPK_NONE, 0, 0},  {768, 0, 0, 1, DPK_NONE, 0, 0},
        {704, 0, 0, 9, DPK_NONE, 0, 0},  {640, 0, 2, 9, DPK_NONE, 0, 0},
    };
    uint64_t total;
    assert_int_equal(dpk_plan_place_blocks(b, 6, &total, NULL), DPK_OK);
    check_blocks(b, 6, total);
    assert_int_equal(total, 1024 + 896 + 832 + 768 + 704);
    assert_int_equal(b[5].offset, b[3].offset);
    struct dpk_plan_block huge[] = {{UINT64_MAX - 63, 0, 0, 1, DPK_NONE, 0, 0},
                                    {128, 0, 0, 1, DPK_NONE, 0, 0}};
    assert_int_equal(dpk_plan_place_blocks(huge, 2, &total, NULL), DPK_ENOMEM);
}

/* ---- A backend of marks ------------------------------------------------------------------- */

struct marker {
    struct dpk_backend base;
    struct dpk_plan *plan;
    uint32_t stage; /* that runs now */
    bool share;     /* results may take over operands */
    uint32_t n_runs, n_shared;
};

static uint8_t mark_of(uint32_t stage, uint32_t value) {
    return (uint8_t)(1 + (value * 7 + stage * 101) % 251);
}

/* Value numbers of inputs that setup made are marked as setup's. */
static uint8_t expected(const struct marker *m, uint32_t v) {
    const struct dpk_plan_stage *s = &m->plan->stages[m->stage];
    if (!s->values[v].from_stage) return mark_of(m->stage, v);
    const char *name = dpk_file_string(m->plan->file, s->program->values[v].name);
    const struct dpk_plan_stage *from = &m->plan->stages[s->from];
    return mark_of((uint32_t)s->from, dpk_plan_find_output(from, m->plan->file, name));
}

static int marker_run(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err) {
    (void)err;
    struct marker *m = (struct marker *)be;
    const struct dpk_plan_stage *s = &m->plan->stages[m->stage];
    uint32_t index = (uint32_t)(call->op - s->program->ops);
    for (int k = 0; k < DPK_MAX_IN; k++) {
        uint32_t v = call->op->in[k];
        if (v == DPK_NONE) continue;
        const uint8_t *data = call->in[k].data;
        for (uint64_t i = 0; i < s->values[v].bytes; i++)
            if (data[i] != expected(m, v))
                fail_msg("stage %u operator %u: operand %u was overwritten", m->stage, index, v);
        m->n_shared += data == call->out.data;
    }
    if (call->scratch) memset(call->scratch, 0, 100 + index);
    uint32_t out = s->program->n_inputs + index;
    memset(call->out.data, mark_of(m->stage, out), s->values[out].bytes);
    m->n_runs++;
    return DPK_OK;
}

static int marker_copy(struct dpk_backend *be, void *to, const void *from, size_t n,
                       dpk_error *err) {
    (void)be, (void)err;
    memcpy(to, from, n);
    return DPK_OK;
}

static int marker_act(const struct dpk_backend *be, int dtype) {
    (void)be;
    return dtype == DPK_BF16 ? DPK_BF16 : DPK_F32;
}

static size_t marker_scratch(const struct dpk_backend *be, const struct dpk_call *call) {
    const struct marker *m = (const struct marker *)be;
    for (uint32_t i = 0; i < m->plan->n_stages; i++) {
        const struct dpk_program *p = m->plan->stages[i].program;
        if (call->op >= p->ops && call->op < p->ops + p->n_ops)
            return call->op->opcode == DPK_OP_add ? 100 + (size_t)(call->op - p->ops) : 0;
    }
    return 0;
}

static bool marker_in_place(const struct dpk_backend *be, const struct dpk_call *call, int i) {
    (void)call, (void)i;
    return ((const struct marker *)be)->share;
}

static struct marker marker_make(struct dpk_plan *plan, bool share) {
    return (struct marker){.base = {.name = "cpu",
                                    .act_dtype = marker_act,
                                    .upload = marker_copy,
                                    .download = marker_copy,
                                    .scratch_bytes = marker_scratch,
                                    .in_place = marker_in_place,
                                    .run = marker_run},
                           .plan = plan,
                           .share = share};
}

/* ---- Random programs ---------------------------------------------------------------------- */

enum { MAX_OPS = 60, WIDTH = 24 };

/* add and slice over values [B, L, WIDTH], casting in and out; setup's outputs are kept. */
static void write_program(struct dpk_writer *w, const char *name, uint32_t n_host, uint32_t n_from,
                          uint32_t n_ops, uint64_t *seed) {
    struct dpk_value values[MAX_OPS + 16] = {{0}};
    struct dpk_op ops[MAX_OPS] = {{0}};
    uint32_t n_inputs = n_host + n_from;
    char text[32];
    for (uint32_t v = 0; v < n_inputs; v++) {
        bool host = v < n_host;
        snprintf(text, sizeof text, host ? "host.%u" : "kept.%u", host ? v : v - n_host);
        assert_int_equal(dpk_writer_string(w, text, &values[v].name, NULL), DPK_OK);
        values[v].type = host ? DPK_VALUE_F32 : DPK_VALUE_ACT;
        values[v].rank = 3;
        values[v].dim[2] = WIDTH;
    }
    for (uint32_t i = 0; i < n_ops; i++) {
        uint32_t v = n_inputs + i;
        struct dpk_op *op = &ops[i];
        memset(op->in, 0xff, sizeof op->in);
        memset(op->wt, 0xff, sizeof op->wt);
        values[v].type = DPK_VALUE_ACT;
        bool cast = i < n_host || support_random(seed) % 4 == 0;
        op->opcode = cast ? DPK_OP_slice : DPK_OP_add;
        /* Mostly recent values, so that lifetimes end; and some from far back. */
        uint32_t from = i < n_host ? i : n_host + support_random(seed) % (v - n_host);
        if (i >= n_host && v > n_inputs + 4 && support_random(seed) % 4)
            from = v - 1 - support_random(seed) % 4;
        op->in[0] = from;
        if (cast) {
            struct dpk_slice_attrs a = {.mul = 1, .lo = -1e30f, .hi = 1e30f};
            memcpy(op->attr, &a, sizeof a - sizeof a.end_);
        } else {
            op->in[DPK_IN(add, c)] = v - 1;
        }
    }
    uint32_t n_outputs = 5; /* the last ones, by name */
    for (uint32_t k = 0; k < n_outputs; k++) {
        uint32_t v = n_inputs + n_ops - n_outputs + k;
        snprintf(text, sizeof text, strcmp(name, "setup") ? "out.%u" : "kept.%u", k);
        assert_int_equal(dpk_writer_string(w, text, &values[v].name, NULL), DPK_OK);
        values[v].flags = DPK_VALUE_OUTPUT;
    }
    dpk_error err;
    if (dpk_writer_program(w, name, values, n_inputs, ops, n_ops, &err)) fail_msg("%s", err.msg);
}

static void write_file(const char *path, uint64_t *seed) {
    dpk_error err;
    struct dpk_writer *w = NULL;
    if (dpk_writer_create(&w, path, &err)) fail_msg("%s", err.msg);
    write_program(w, "text", 2, 0, 10 + support_random(seed) % 40, seed);
    write_program(w, "setup", 3, 0, 12 + support_random(seed) % 40, seed);
    write_program(w, "step", 2, 5, 12 + support_random(seed) % 40, seed);
    write_program(w, "decode", 1, 0, 10 + support_random(seed) % 40, seed);
    if (dpk_writer_begin(w, &err) || dpk_writer_finish(w, &err)) fail_msg("%s", err.msg);
    dpk_writer_free(w);
}

static void run_stage(struct marker *m, uint32_t stage) {
    struct dpk_plan *plan = m->plan;
    const struct dpk_plan_stage *s = &plan->stages[stage];
    dpk_error err;
    m->stage = stage;
    for (uint32_t v = 0; v < s->program->n_inputs; v++) {
        if (s->values[v].from_stage) continue;
        uint8_t *data = malloc(s->values[v].bytes);
        memset(data, mark_of(stage, v), s->values[v].bytes);
        assert_int_equal(dpk_exec_give(plan, stage, v, data, &err), DPK_OK);
        free(data);
    }
    if (dpk_exec_run(plan, stage, NULL, &err)) fail_msg("%s", err.msg);
    for (uint32_t v = 0; v < s->program->n_inputs + s->program->n_ops; v++) {
        if (!(s->program->values[v].flags & DPK_VALUE_OUTPUT)) continue;
        uint8_t *data = malloc(s->values[v].bytes);
        assert_int_equal(dpk_exec_take(plan, stage, v, data, &err), DPK_OK);
        for (uint64_t i = 0; i < s->values[v].bytes; i++)
            if (data[i] != mark_of(stage, v)) fail_msg("output %u was overwritten", v);
        free(data);
    }
}

static void check_plan(const char *path, bool share, int32_t act, uint32_t *shared) {
    dpk_error err;
    struct dpk_file file;
    struct dpk_plan plan;
    struct marker m = marker_make(&plan, share);
    uint32_t stage[4];
    struct dpk_plan_input in[3] = {{"host.0", DPK_F32, {3, {2, 5, WIDTH, 0}}, NULL},
                                   {"host.1", DPK_F32, {3, {2, 5, WIDTH, 0}}, NULL},
                                   {"host.2", DPK_F32, {3, {2, 5, WIDTH, 0}}, NULL}};
    if (dpk_file_open(&file, path, &err)) fail_msg("%s", err.msg);
    dpk_plan_init(&plan, &m.base, &file, act);
    if (dpk_plan_add(&plan, "text", in, 3, -1, &stage[0], &err) ||
        dpk_plan_add(&plan, "setup", in, 3, -1, &stage[1], &err) ||
        dpk_plan_add(&plan, "step", in, 3, (int)stage[1], &stage[2], &err) ||
        dpk_plan_add(&plan, "decode", in, 3, -1, &stage[3], &err) || dpk_plan_place(&plan, &err))
        fail_msg("%s", err.msg);
    check_blocks(plan.blocks, plan.n_blocks, plan.arena_bytes);
    assert_true(plan.arena_bytes >= plan.live_bytes);
    uint32_t n_runs = 0;
    uint8_t *arena = aligned_alloc(DPK_ALIGN, plan.arena_bytes + DPK_ALIGN);
    memset(arena, 0xee, plan.arena_bytes + DPK_ALIGN);
    dpk_plan_bind(&plan, arena);
    static const int times[4] = {2, 1, 3, 2}; /* stages may run again */
    for (uint32_t i = 0; i < 4; i++)
        for (int k = 0; k < times[i]; k++) {
            run_stage(&m, i);
            n_runs += plan.stages[i].program->n_ops;
        }
    assert_int_equal(m.n_runs, n_runs);
    for (int i = 0; i < DPK_ALIGN; i++) assert_int_equal(arena[plan.arena_bytes + (size_t)i], 0xee);
    *shared += m.n_shared;
    free(arena);
    dpk_plan_free(&plan);
    dpk_file_close(&file);
}

static void test_values_survive(void **state) {
    (void)state;
    char *folder = support_folder_make(), path[512];
    uint64_t seed = 3;
    uint32_t shared[2] = {0, 0};
    snprintf(path, sizeof path, "%s/plan.dpk", folder);
    for (int round = 0; round < 30; round++) {
        write_file(path, &seed);
        check_plan(path, false, DPK_F32, &shared[0]);
        check_plan(path, true, DPK_F32, &shared[1]);
        check_plan(path, true, DPK_BF16, &shared[1]);
    }
    assert_int_equal(shared[0], 0);
    assert_true(shared[1] > 100); /* results did take over operands */
    support_folder_remove(folder);
}

/* ---- Errors ------------------------------------------------------------------------------- */

static void expect(const struct dpk_file *file, const char *program,
                   const struct dpk_plan_input *in, size_t n, int code, const char *text) {
    dpk_error err = {0};
    struct dpk_plan plan;
    struct marker m = marker_make(&plan, false);
    uint32_t stage;
    dpk_plan_init(&plan, &m.base, file, DPK_F32);
    int rc = dpk_plan_add(&plan, program, in, n, -1, &stage, &err);
    if (rc != code || !strstr(err.msg, text)) fail_msg("%d %s, want %s", rc, err.msg, text);
    dpk_plan_free(&plan);
}

static void test_inputs_are_checked(void **state) {
    (void)state;
    char *folder = support_folder_make(), path[512];
    dpk_error err;
    struct dpk_file file;
    uint64_t seed = 11;
    struct dpk_plan_input in[2] = {{"host.0", DPK_F32, {3, {2, 5, WIDTH, 0}}, NULL},
                                   {"host.1", DPK_F32, {3, {2, 5, WIDTH, 0}}, NULL}};
    snprintf(path, sizeof path, "%s/plan.dpk", folder);
    write_file(path, &seed);
    if (dpk_file_open(&file, path, &err)) fail_msg("%s", err.msg);
    expect(&file, "nothing", in, 2, DPK_EFORMAT, "no program nothing");
    expect(&file, "text", in, 1, DPK_EARG, "input host.1 is missing");
    expect(&file, "step", in, 2, DPK_EARG, "input kept.0 is missing");
    in[1].dtype = DPK_I32;
    expect(&file, "text", in, 2, DPK_EARG, "input host.1 is i32, the model takes f32");
    in[1].dtype = DPK_F32;
    in[1].shape.rank = 2;
    expect(&file, "text", in, 2, DPK_EARG, "host.1 is [2,5], the model takes [0,0,24]");
    in[1].shape = (struct dpk_shape){3, {2, 5, WIDTH + 1, 0}};
    expect(&file, "text", in, 2, DPK_EARG, "host.1 is [2,5,25]");
    in[1].shape = (struct dpk_shape){3, {2, 0, WIDTH, 0}};
    expect(&file, "text", in, 2, DPK_EARG, "host.1 is [2,0,24]");
    in[1].shape = (struct dpk_shape){3, {INT32_MAX, INT32_MAX, WIDTH, 0}};
    expect(&file, "text", in, 2, DPK_EARG, "host.1 is [2147483647");
    dpk_file_close(&file);
    support_folder_remove(folder);
}

/* Row numbers are checked before a program runs: an embedding of 5 rows, a select of T rows. */
static void test_row_numbers_are_checked(void **state) {
    (void)state;
    char *folder = support_folder_make(), path[512];
    dpk_error err;
    struct dpk_writer *w = NULL;
    struct dpk_file file;
    struct dpk_plan plan;
    struct marker m = marker_make(&plan, false);
    struct dpk_value values[3] = {{.type = DPK_VALUE_I32, .rank = 2},
                                  {.type = DPK_VALUE_ACT},
                                  {.type = DPK_VALUE_ACT, .flags = DPK_VALUE_OUTPUT}};
    struct dpk_op ops[2] = {{.opcode = DPK_OP_embedding}, {.opcode = DPK_OP_add}};
    struct dpk_tensor_spec spec = {.name = "table",
                                   .source = "",
                                   .dtype = DPK_F32,
                                   .layout = DPK_LAYOUT_RAW,
                                   .shape = {2, {5, 4, 0, 0}},
                                   .scale = DPK_NONE,
                                   .colsum = DPK_NONE};
    float table[20] = {0};
    uint32_t tensor, stage;
    snprintf(path, sizeof path, "%s/rows.dpk", folder);
    if (dpk_writer_create(&w, path, &err) || dpk_writer_tensor(w, &spec, &tensor, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < 2; i++) {
        memset(ops[i].in, 0xff, sizeof ops[i].in);
        memset(ops[i].wt, 0xff, sizeof ops[i].wt);
    }
    ops[0].in[0] = 0, ops[0].wt[0] = tensor;
    ops[1].in[0] = ops[1].in[1] = 1;
    dpk_writer_string(w, "ids", &values[0].name, NULL);
    dpk_writer_string(w, "sum", &values[2].name, NULL);
    if (dpk_writer_program(w, "text", values, 1, ops, 2, &err) || dpk_writer_begin(w, &err) ||
        dpk_writer_put(w, tensor, table, sizeof table, &err) || dpk_writer_finish(w, &err))
        fail_msg("%s", err.msg);
    dpk_writer_free(w);

    if (dpk_file_open(&file, path, &err)) fail_msg("%s", err.msg);
    struct dpk_plan_input in = {"ids", DPK_I32, {2, {1, 3, 0, 0}}, NULL};
    dpk_plan_init(&plan, &m.base, &file, DPK_F32);
    if (dpk_plan_add(&plan, "text", &in, 1, -1, &stage, &err) || dpk_plan_place(&plan, &err))
        fail_msg("%s", err.msg);
    void *arena = aligned_alloc(DPK_ALIGN, plan.arena_bytes);
    dpk_plan_bind(&plan, arena);
    const int32_t good[3] = {0, 4, 2}, high[3] = {0, 4, 5}, low[3] = {0, -1, 2};
    assert_int_equal(dpk_exec_give(&plan, stage, 0, good, &err), DPK_OK);
    assert_int_equal(dpk_exec_give(&plan, stage, 0, high, &err), DPK_EARG);
    assert_string_equal(err.msg, "text: ids[2] is 5, the table has 5 rows");
    assert_int_equal(dpk_exec_give(&plan, stage, 0, low, &err), DPK_EARG);
    assert_string_equal(err.msg, "text: ids[1] is -1, the table has 5 rows");
    free(arena);
    dpk_plan_free(&plan);
    dpk_file_close(&file);
    support_folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_do_not_meet),      cmocka_unit_test(test_best_fit),
        cmocka_unit_test(test_values_survive),          cmocka_unit_test(test_inputs_are_checked),
        cmocka_unit_test(test_row_numbers_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
