/* Maps a few rows at a time: whatever parts a plan has, results are the same bits as with whole
 * maps, at every instruction-set level, for odd sizes and several images; and a smaller arena is
 * what comes of it. */
#include "../kernels/cpu/cpu.h"
#include "../runtime/exec.h"
#include "../runtime/session.h"
#include "support_dpk.h"
#include "support_golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_LIMITS = 4 };

/* One component on random inputs. */
struct shot {
    const struct dpk_model *model;
    struct dpk_backend *backend;
    const char *program; /* "decode" or "encode" */
    struct dpk_plan_input in;
};

struct result {
    uint64_t arena_bytes;
    uint32_t n_parts, n_joined; /* of those row by row: with several operators */
    size_t n_bytes;
    uint8_t *data;
};

static float *random_map(const struct dpk_shape *shape, uint64_t *seed) {
    size_t n = (size_t)dpk_shape_count(shape);
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(support_random(seed) >> 8) / (1 << 22) - 2; /* -2 .. 2 */
    return x;
}

/* Run it with whole maps (limit 0), or in the smallest arena down to the limit. */
static struct result run(const struct shot *shot, uint64_t limit) {
    dpk_error err = {0};
    struct dpk_plan plan;
    struct result r = {0};
    uint32_t stage;
    dpk_plan_init(&plan, shot->backend, &shot->model->file,
                  dpk_plan_act_dtype(shot->backend, &shot->model->file));
    plan.whole = !limit;
    if (dpk_plan_add(&plan, shot->program, &shot->in, 1, -1, &stage, &err) ||
        (limit ? dpk_plan_fit(&plan, limit, &err) : dpk_plan_place(&plan, &err)))
        fail_msg("%s", err.msg);
    const struct dpk_plan_stage *s = &plan.stages[0];
    r.arena_bytes = plan.arena_bytes;
    for (uint32_t i = 0; i < s->n_parts; i++) {
        r.n_parts += s->parts[i].rows > 0;
        r.n_joined += s->parts[i].rows > 0 && s->parts[i].n_ops > 1;
    }
    uint8_t *arena = shot->backend->alloc(shot->backend, plan.arena_bytes + DPK_ALIGN);
    assert_non_null(arena);
    memset(arena, 0xff, plan.arena_bytes + DPK_ALIGN); /* NaN in any type */
    dpk_plan_bind(&plan, arena);
    if (dpk_exec_give_all(&plan, 0, &shot->in, 1, &err) || dpk_exec_run(&plan, 0, NULL, &err))
        fail_msg("%s", err.msg);
    const struct dpk_program *p = s->program;
    for (uint32_t v = 0; v < p->n_inputs + p->n_ops; v++) {
        if (!(p->values[v].flags & DPK_VALUE_OUTPUT)) continue;
        r.data = realloc(r.data, r.n_bytes + s->values[v].bytes);
        assert_non_null(r.data);
        if (dpk_exec_take(&plan, 0, v, r.data + r.n_bytes, &err)) fail_msg("%s", err.msg);
        r.n_bytes += s->values[v].bytes;
    }
    for (int i = 0; i < DPK_ALIGN; i++) assert_int_equal(arena[plan.arena_bytes + (size_t)i], 0xff);
    shot->backend->release(shot->backend, arena, plan.arena_bytes + DPK_ALIGN);
    dpk_plan_free(&plan);
    return r;
}

static void compare(const struct shot *shot, const char *what) {
    struct result whole = run(shot, 0);
    uint64_t limits[N_LIMITS] = {whole.arena_bytes * 3 / 4, whole.arena_bytes / 2,
                                 whole.arena_bytes / 3, 1};
    struct result last = {0};
    for (int i = 0; i < N_LIMITS; i++) {
        struct result r = run(shot, limits[i]);
        assert_int_equal(r.n_bytes, whole.n_bytes);
        if (memcmp(r.data, whole.data, r.n_bytes) != 0) {
            size_t at = 0;
            while (r.data[at] == whole.data[at]) at++;
            fail_msg("%s: arena of %llu instead of %llu: byte %zu of %zu differs", what,
                     (unsigned long long)r.arena_bytes, (unsigned long long)whole.arena_bytes, at,
                     r.n_bytes);
        }
        if (i) assert_true(r.arena_bytes <= last.arena_bytes / 8 * 9);
        last = r;
        free(r.data);
    }
    printf("%s: %llu bytes instead of %llu, %u parts by rows, %u joined\n", what,
           (unsigned long long)last.arena_bytes, (unsigned long long)whole.arena_bytes,
           last.n_parts, last.n_joined);
    assert_true(last.n_joined > 0);
    assert_true(last.arena_bytes < whole.arena_bytes * 9 / 10);
    free(whole.data);
}

static void check_level(const struct dpk_model *model, int isa, int threads, uint64_t *seed) {
    dpk_error err;
    struct shot shot = {.model = model};
    char what[96];
    static const int32_t sizes[][3] = {{2, 6, 17}, {1, 13, 9}, {1, 23, 5}};
    const int n_sizes = isa == dpk_isa_ref ? 1 : 3; /* it is slow, and plans are the same */
    if (dpk_cpu_create(&shot.backend, threads, dpk_isa_name(isa), 0, &err)) fail_msg("%s", err.msg);
    for (int i = 0; i < n_sizes; i++) {
        const int32_t *size = sizes[i];
        for (int encode = 0; encode < 2; encode++) {
            int32_t f = encode ? 8 : 1, c = encode ? 3 : 4;
            shot.program = encode ? "encode" : "decode";
            shot.in = (struct dpk_plan_input){.name = encode ? "image" : "latent",
                                              .dtype = DPK_F32,
                                              .shape = {4, {size[0], size[1] * f, size[2] * f, c}}};
            /* The encoder takes any size. */
            if (encode) shot.in.shape.dim[1] += 3, shot.in.shape.dim[2] += 1;
            shot.in.data = random_map(&shot.in.shape, seed);
            snprintf(what, sizeof what, "%s %s [%d,%d,%d,%d]", dpk_isa_name(isa), shot.program,
                     size[0], shot.in.shape.dim[1], shot.in.shape.dim[2], c);
            compare(&shot, what);
            free((void *)(uintptr_t)shot.in.data);
        }
    }
    shot.backend->free(shot.backend);
}

static void check_model(const char *name, const char *source, const char *options, int first_isa) {
    uint64_t seed = 5;
    struct dpk_model *model = golden_model(name, source, options);
    for (int isa = first_isa; isa < DPK_N_ISAS; isa++)
        if (dpk_isa_available(isa)) check_level(model, isa, 1 + isa % 3, &seed);
    dpk_model_free(model);
}

static void test_bf16(void **state) {
    (void)state;
    check_model("rows-bf16", "models/shapes-xl", "--dtype bf16", dpk_isa_ref);
}

static void test_f32(void **state) {
    (void)state;
    check_model("rows-f32", "models/shapes-xl", "--dtype f32", dpk_isa_ref + 1);
}

/* A table that goes over several rows of a map is not every row's. */
static void test_table(void **state) {
    (void)state;
    static const int32_t sizes[] = {8, 40, 240}; /* C, W C, H W C */
    const struct dpk_shape map = {4, {1, 6, 5, 8}};
    const struct dpk_rows rows = {2, 4, false};
    dpk_error err;
    struct dpk_backend *be;
    size_t bytes;
    if (dpk_cpu_create(&be, 1, NULL, 0, &err)) fail_msg("%s", err.msg);
    for (int i = 0; i < 3; i++) {
        struct dpk_op op = {.opcode = DPK_OP_add};
        memset(op.in, 0xff, sizeof op.in), memset(op.wt, 0xff, sizeof op.wt); /* NONE */
        op.in[0] = 0, op.wt[DPK_WT(add, table)] = 0;
        struct dpk_call call = {.op = &op};
        call.in[0].dtype = call.out.dtype = DPK_F32;
        call.in[0].shape = call.out.shape = map;
        call.wt[DPK_WT(add, table)].dtype = DPK_F32;
        call.wt[DPK_WT(add, table)].shape = (struct dpk_shape){1, {sizes[i]}};
        assert_int_equal(be->rows_scratch(be, &call, &rows, &bytes), sizes[i] <= 40);
    }
    be->free(be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
