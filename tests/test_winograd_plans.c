/* Winograd convolution of the CPU backend: blocks and threads show in no result, scratch is small,
 * and the choice between it and the direct way. */
#include "../kernels/cpu/winograd.h"
#include "support_guard.h"
#include "support_winograd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* The case's convolution as dpk_wino takes it; weights is to be filled by dpk_gemm_weight. */
static struct dpk_wino describe(const struct test_wino *o, const struct dpk_gemm *weights) {
    return (struct dpk_wino){
        .x = o->call.in[0].data,
        .dtype = o->dtype,
        .images = o->t.images,
        .h = o->t.h,
        .w = o->t.w,
        .out_h = o->t.out_h,
        .out_w = o->t.out_w,
        .c = o->t.c,
        .n = o->t.n,
        .integers = o->dtype == DPK_BF16,
        .weights = weights,
        .bias = o->call.wt[1].data,
    };
}

static void *run_plan(struct dpk_backend *be, struct dpk_wino w, const struct test_wino *o) {
    struct dpk_cpu *cpu = (struct dpk_cpu *)be;
    assert_true(dpk_wino_pays(&w));
    size_t scratch = (dpk_wino_plan(cpu, &w) + 63) / 64 * 64;
    void *memory = test_guard_alloc(scratch);
    w.out = test_guard_alloc(o->n * o->bytes);
    dpk_wino_run(cpu, &w, memory);
    test_guard_free(memory, scratch);
    return w.out;
}

/* Whether the weights are made as a whole or row by row, the input held as a whole or in parts,
 * shows in no bit. */
static void check_plans(int isa, const struct test_wino *o) {
    struct dpk_cpu *cpu = (struct dpk_cpu *)test_wino_backends[isa][1];
    struct dpk_gemm weights = {0};
    assert_true(dpk_gemm_weight(&weights, cpu, &o->call.wt[0], o->dtype));
    struct dpk_wino w = describe(o, &weights);
    void *whole = run_plan(test_wino_backends[isa][1], w, o);
    for (int i = 0; i < 12; i++) {
        struct dpk_wino limited = w;
        limited.most_whole_u = 1;
        limited.most_held_v = (size_t)(i % 4) * 1500000 + 1;
        void *y = run_plan(test_wino_backends[isa][i % TEST_WINO_THREADS + 1], limited, o);
        if (memcmp(whole, y, o->n * o->bytes) != 0) {
            fail_msg("%s %s: limits %d give other bits", dpk_isa_name(isa),
                     dpk_dtype_name(o->w_dtype), i);
        }
        test_guard_free(y, o->n * o->bytes);
    }
    test_guard_free(whole, o->n * o->bytes);
}

static void test_plans(void **state) {
    static const int types[][2] = {
        {DPK_BF16, DPK_BF16}, {DPK_BF16, DPK_S8}, {DPK_F32, DPK_BF16}, {DPK_F32, DPK_S8}};
    struct test_wino_case c = {.images = 2, .h = 30, .w = 34, .c = 340, .n = 210, .bias = true};
    struct test_wino o;
    (void)state;
    for (int i = 0; i < 4; i++) {
        c.dtype = types[i][0];
        c.w_dtype = types[i][1];
        test_wino_open(&o, &c, 1);
        for (int isa = 0; isa < DPK_N_ISAS; isa++) {
            if (test_wino_here(isa, c.dtype)) check_plans(isa, &o);
        }
        test_wino_close(&o);
        c.c = 48; /* one segment */
    }
}

/* Scratch of the convolutions of SDXL and its decoder at 1024 x 1024, SD 1.5 at 512 x 512. */
static void test_scratch(void **state) {
    static const int shapes[][5] = {
        {2, 128, 128, 320, 320}, {2, 128, 128, 960, 320},   {2, 64, 64, 1920, 640},
        {2, 64, 64, 640, 640},   {2, 32, 32, 2560, 1280},   {2, 32, 32, 1280, 1280},
        {2, 16, 16, 2560, 1280}, {1, 1024, 1024, 128, 128}, {1, 1024, 1024, 256, 256},
        {1, 512, 512, 512, 512}, {1, 128, 128, 512, 512},   {1, 1024, 1024, 128, 3},
    };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes * 6; i++) {
        const int *s = shapes[i / 6];
        const int threads = 1 << (i / 2 % 3 * 2), dtype = i % 2 ? DPK_F32 : DPK_BF16;
        struct dpk_backend *be = NULL;
        struct dpk_weight weight = {.dtype = DPK_BF16, .shape = {4, {s[4], 3, 3, s[3]}}};
        struct dpk_gemm weights = {0};
        assert_int_equal(dpk_cpu_create(&be, threads, "ref", DPK_BF16, NULL), DPK_OK);
        struct dpk_cpu *cpu = (struct dpk_cpu *)be;
        assert_true(dpk_gemm_weight(&weights, cpu, &weight, dtype));
        struct dpk_wino w = {.images = s[0], .h = s[1], .w = s[2], .out_h = s[1], .out_w = s[2]};
        w.dtype = dtype;
        w.integers = dtype == DPK_BF16;
        w.weights = &weights;
        w.c = s[3];
        w.n = s[4];
        assert_true(dpk_wino_pays(&w));
        size_t bytes = dpk_wino_plan(cpu, &w), most = threads > 4 ? 64 : 40;
        be->free(be);
        if (bytes > most << 20) {
            fail_msg("shape %zu, %d threads: %zu bytes of scratch", i / 6, threads, bytes);
        }
    }
}

/* Small maps, other steps and paddings stay with the direct convolution. */
static void test_choice(void **state) {
    struct test_wino_case c = {.images = 1, .h = 12, .w = 12, .c = 32, .n = 16};
    (void)state;
    for (int i = 0; i < 2 * DPK_N_ISAS; i++) {
        struct dpk_backend *const *levels = test_wino_backends[i / 2];
        struct dpk_backend *direct = levels[0], *be = levels[1];
        struct test_wino o;
        c.dtype = i % 2 ? DPK_F32 : DPK_BF16;
        if (!test_wino_here(i / 2, c.dtype)) continue;
        test_wino_open(&o, &c, 1);
        struct dpk_conv2d_attrs *attrs = (struct dpk_conv2d_attrs *)(void *)o.op.attr;
        size_t least = direct->scratch_bytes(direct, &o.call);
        assert_true(be->scratch_bytes(be, &o.call) > least + 100000);
        attrs->stride = 2;
        assert_int_equal(be->scratch_bytes(be, &o.call), direct->scratch_bytes(direct, &o.call));
        attrs->stride = 1;
        attrs->pad_top = 0;
        assert_int_equal(be->scratch_bytes(be, &o.call), direct->scratch_bytes(direct, &o.call));
        attrs->pad_top = 1;
        o.call.in[0].shape.dim[1] = o.call.out.shape.dim[1] = 4;
        assert_int_equal(be->scratch_bytes(be, &o.call), direct->scratch_bytes(direct, &o.call));
        o.call.in[0].shape.dim[1] = 12;
        test_wino_close(&o);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_choice),
    };
    return cmocka_run_group_tests(tests, test_wino_set_up, test_wino_tear_down);
}
