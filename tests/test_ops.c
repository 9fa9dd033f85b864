/* The operator table: names and numbers, sizes of weights, every shape rule, costs. */
#include "support_dpk.h"

#include "../formats/fail.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* "2,9,24" */
static struct dpk_shape parse_shape(const char *text) {
    struct dpk_shape s = {0};
    while (*text && *text != ' ' && s.rank < DPK_MAX_RANK) {
        char *end;
        s.dim[s.rank++] = (int32_t)strtol(text, &end, 10);
        text = *end == ',' ? end + 1 : end;
    }
    return s;
}

/* Shapes separated by spaces, "-" for an absent operand; operands not mentioned are absent. */
static void parse_operands(const char *text, uint32_t *numbers, struct dpk_shape *shapes, int n) {
    for (int i = 0; i < n; i++) {
        numbers[i] = DPK_NONE;
        shapes[i] = (struct dpk_shape){0};
        if (*text && *text != '-') {
            numbers[i] = (uint32_t)i;
            shapes[i] = parse_shape(text);
        }
        text += strcspn(text, " ");
        text += *text == ' ';
    }
}

struct call {
    struct dpk_op op;
    struct dpk_shape in[DPK_MAX_IN], wt[DPK_MAX_WT], out;
};

/* Attributes are numbers in the order of ops.def; those not mentioned are 0. */
static struct call make_call(uint32_t opcode, const char *in, const char *wt, const char *attrs) {
    struct call c = {.op.opcode = opcode};
    const struct dpk_op_info *info = dpk_op_info_get(opcode);
    parse_operands(in, c.op.in, c.in, DPK_MAX_IN);
    parse_operands(wt, c.op.wt, c.wt, DPK_MAX_WT);
    for (int i = 0; info && i < info->n_attr && *attrs; i++) {
        char *end;
        if (info->attr[i].kind == 'f') c.op.attr[i].f = strtof(attrs, &end);
        else c.op.attr[i].i = (int32_t)strtol(attrs, &end, 10);
        assert_true(end > attrs);
        attrs = end + (*end == ' ');
    }
    return c;
}

/* The result's shape as text, or what is wrong. */
static const char *result_of(struct call *c) {
    static char text[600];
    dpk_error err = {0};
    const int rc = dpk_op_shape(&c->op, "layer", c->in, c->wt, &c->out, &err);
    if (rc != DPK_OK) {
        assert_int_equal(rc, DPK_EFORMAT);
        assert_false(strchr(err.msg, '\n'));
        return strcpy(text, err.msg);
    }
    size_t n = 0;
    for (int i = 0; i < DPK_MAX_RANK; i++) {
        if (i >= c->out.rank) assert_int_equal(c->out.dim[i], 0);
        if (i < c->out.rank)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%d", i ? "," : "", c->out.dim[i]);
    }
    return text;
}

/* ---- Shapes ---- */

struct shape_case {
    uint32_t opcode;
    const char *in, *wt, *attrs;
    const char *want; /* the shape, or a part of the message after ": " */
};

static const struct shape_case shape_cases[] = {
    /* x x2 residual gate; w b; act glu gate_off */
    {DPK_OP_linear, "2,77,640", "1280,640 1280", "", "2,77,1280"},
    {DPK_OP_linear, "640", "3,640", "", "3"},
    {DPK_OP_linear, "2,8,6,40 2,8,6,24 2,8,6,7 1,20", "7,64", "1 0 13", "2,8,6,7"},
    {DPK_OP_linear, "2,9,24 - - 2,33", "66,24 66", "2 1 0", "2,9,33"},
    {DPK_OP_linear, "2,9,25", "66,24", "", "x has 25 channels, w wants 24"},
    {DPK_OP_linear, "2,9,20 2,9,5", "66,24", "", "concat(x, x2) has 25 channels"},
    {DPK_OP_linear, "2,9,20 2,8,4", "66,24", "", "only the last dimension may differ"},
    {DPK_OP_linear, "2,9,20 18,4", "66,24", "", "only the last dimension may differ"},
    {DPK_OP_linear, "2,9,24 - 2,9,24", "66,24", "", "residual is [2,9,24], want [2,9,66]"},
    {DPK_OP_linear, "2,9,24 - - 2,70", "66,24", "0 0 5", "gate is [2,70]"},
    {DPK_OP_linear, "2,9,24 - - 3,71", "66,24", "0 0 5", "gate is [3,71]"},
    {DPK_OP_linear, "2,9,24 - - 71", "66,24", "0 0 5", "gate is [71]"},
    {DPK_OP_linear, "24 - - 1,66", "66,24", "", "x is [24], want rank 2"},
    {DPK_OP_linear, "2,9,24", "65,24", "0 1", "even number of rows"},
    {DPK_OP_linear, "2,9,24", "66,24 33", "0 1", "b is [33], want [66]"},
    {DPK_OP_linear, "2,9,24", "66,24 1,66", "", "b is [1,66]"},
    {DPK_OP_linear, "2,9,24", "66,1,1,24", "", "want rank 2"},
    {DPK_OP_linear, "2,9,24", "66,24", "5", "act is 5"},
    {DPK_OP_linear, "2,9,24", "66,24", "0 2", "glu is 2"},
    {DPK_OP_linear, "-", "66,24", "", "input x is missing"},
    {DPK_OP_linear, "2,9,24", "-", "", "weight w is missing"},
    {DPK_OP_linear, "2,0,24", "66,24", "", "x has the shape [2,0,24]"},
    {DPK_OP_linear, "1048576,4", "1048576,4", "", "2^40 elements"},
    {DPK_OP_linear, "1048576,1048576", "4,4", "", "x has the shape"},
    /* x temb residual like; w b; stride top left bottom right upsample act */
    {DPK_OP_conv2d, "2,9,7,5", "6,3,3,5 6", "1 1 1 1 1", "2,9,7,6"},
    {DPK_OP_conv2d, "2,9,7,5", "6,3,3,5", "2 1 1 1 1", "2,5,4,6"},
    {DPK_OP_conv2d, "2,9,7,5", "6,3,3,5", "2 0 0 1 1", "2,4,3,6"},
    {DPK_OP_conv2d, "2,9,7,5", "6,3,1,5", "1 2 0 0 0", "2,9,7,6"},
    {DPK_OP_conv2d, "2,9,7,5 2,6 2,18,14,6", "6,3,3,5", "1 1 1 1 1 1", "2,18,14,6"},
    {DPK_OP_conv2d, "2,9,7,5 1,6 - 2,17,13,99", "6,3,3,5", "1 1 1 1 1 1", "2,17,13,6"},
    {DPK_OP_conv2d, "2,9,7,5 - - 2,17,13,99", "6,3,3,5", "1 1 1 1 1 0", "without upsample"},
    {DPK_OP_conv2d, "2,9,7,5 - - 2,8,13,99", "6,3,3,5", "1 1 1 1 1 1", "like is [2,8,13,99]"},
    {DPK_OP_conv2d, "2,9,7,5 - - 2,9,6,99", "6,3,3,5", "1 1 1 1 1 1", "like is [2,9,6,99]"},
    {DPK_OP_conv2d, "2,9,7,5 - - 1,9,7,99", "6,3,3,5", "1 1 1 1 1 1", "like is"},
    {DPK_OP_conv2d, "2,9,7,5 3,6", "6,3,3,5", "1 1 1 1 1", "temb is [3,6]"},
    {DPK_OP_conv2d, "2,9,7,5 2,7", "6,3,3,5", "1 1 1 1 1", "temb is [2,7]"},
    {DPK_OP_conv2d, "2,9,7,5 - 2,9,7,5", "6,3,3,5", "1 1 1 1 1", "residual is"},
    {DPK_OP_conv2d, "2,9,7,4", "6,3,3,5", "1 1 1 1 1", "x has 4 channels, w wants 5"},
    {DPK_OP_conv2d, "2,63,5", "6,3,3,5", "1 1 1 1 1", "want rank 4"},
    {DPK_OP_conv2d, "2,9,7,5", "6,45", "1 1 1 1 1", "want rank 4"},
    {DPK_OP_conv2d, "2,2,7,5", "6,3,3,5", "1", "smaller than the kernel"},
    {DPK_OP_conv2d, "2,9,7,5", "6,3,3,5", "0 1 1 1 1", "stride is 0"},
    {DPK_OP_conv2d, "2,9,7,5", "6,3,3,5", "1 3 1 1 1", "pad_top is 3"},
    {DPK_OP_conv2d, "2,9,7,5", "6,3,3,5", "1 1 1 1 -1", "pad_right is -1"},
    {DPK_OP_conv2d, "1,2000000000,1,1", "6,1,1,1", "1 0 0 0 0 1", "too large to enlarge"},
    /* x x2; gamma beta; groups eps act */
    {DPK_OP_group_norm, "2,9,7,24 2,9,7,8", "32 32", "8 1e-5", "2,9,7,32"},
    {DPK_OP_group_norm, "2,32", "32 32", "32 1e-5", "2,32"},
    {DPK_OP_group_norm, "32", "32 32", "8 1e-5", "x is [32], want rank 2"},
    {DPK_OP_group_norm, "2,9,7,24", "32 32", "8 1e-5", "x has 24 channels, gamma wants 32"},
    {DPK_OP_group_norm, "2,9,7,32", "32 31", "8 1e-5", "beta is [31]"},
    {DPK_OP_group_norm, "2,9,7,32", "32 32", "5 1e-5", "do not divide"},
    {DPK_OP_group_norm, "2,9,7,32", "32 32", "0 1e-5", "groups is 0"},
    {DPK_OP_group_norm, "2,9,7,32", "32 32", "8 nan", "eps is not a number"},
    {DPK_OP_group_norm, "2,9,7,32", "32 32", "8 -1", "eps is -1"},
    /* x mod; gamma beta; eps rms shift scale */
    {DPK_OP_layer_norm, "2,9,24", "24 24", "1e-5", "2,9,24"},
    {DPK_OP_layer_norm, "24", "24", "1e-5 1", "24"},
    {DPK_OP_layer_norm, "2,9,24 1,144", "", "1e-5 0 120 24", "2,9,24"},
    {DPK_OP_layer_norm, "2,9,24 2,143", "", "1e-5 0 120 24", "mod is [2,143]"},
    {DPK_OP_layer_norm, "2,9,24 2,143", "", "1e-5 0 24 120", "mod is [2,143]"},
    {DPK_OP_layer_norm, "24 1,144", "", "1e-5", "x is [24]"},
    {DPK_OP_layer_norm, "2,9,24", "25", "1e-5", "x has 24 channels, gamma wants 25"},
    {DPK_OP_layer_norm, "2,9,24", "- 25", "1e-5", "x has 24 channels, beta wants 25"},
    {DPK_OP_layer_norm, "2,9,24", "24 24", "1e-5 1", "beta is given with rms"},
    {DPK_OP_layer_norm, "2,9,24", "24", "1e-5 0 1", "without mod"},
    {DPK_OP_layer_norm, "2,9,24 1,144", "", "1e-5 0 -1", "shift_off is -1"},
    /* q k v mask bias; heads head_dim q_off k_off v_off causal scale */
    {DPK_OP_attention, "2,9,72 2,9,72 2,9,72", "", "3 8 0 24 48 1", "2,9,24"},
    {DPK_OP_attention, "2,4,5,24 2,77,48 2,77,50 2,77 3,20,77", "", "3 8 0 24 26", "2,4,5,24"},
    {DPK_OP_attention, "2,9,24 2,3,3,24 2,9,24", "", "3 8", "2,9,24"},
    {DPK_OP_attention, "2,9,72 2,9,72 2,9,72", "", "3 8 0 24 49",
     "v is [2,9,72], want at least 73"},
    {DPK_OP_attention, "2,9,24 2,9,24 2,8,24", "", "3 8", "of one length"},
    {DPK_OP_attention, "2,9,24 1,9,24 2,9,24", "", "3 8", "one batch"},
    {DPK_OP_attention, "2,9,24 2,9,24 2,9,24 2,8", "", "3 8", "mask is [2,8], want [2,9]"},
    {DPK_OP_attention, "2,7,24 2,9,24 2,9,24 - 3,9,7", "", "3 8", "want [3,7,9]"},
    {DPK_OP_attention, "9,24 9,24 9,24", "", "3 8", "q is [9,24], want rank 3 to 4"},
    {DPK_OP_attention, "2,9,24 2,9,24 2,9,24", "", "0 8", "heads is 0"},
    {DPK_OP_attention, "2,9,24 2,9,24 2,9,24", "", "3 0", "head_dim is 0"},
    {DPK_OP_attention, "2,9,24 2,9,24 2,9,24", "", "2147483647 2147483647", "too many"},
    {DPK_OP_attention, "2,9,24 2,9,24 2,9,24", "", "3 8 2147483647", "q is"},
    {DPK_OP_attention, "2,9,24 2,9,24 2,9,24", "", "3 8 0 0 0 0 inf", "scale is inf"},
    {DPK_OP_embedding, "2,77", "49408,768 77,768", "", "2,77,768"},
    {DPK_OP_embedding, "2,78", "49408,768 77,768", "", "78 ids, only 77 positions"},
    {DPK_OP_embedding, "2,77", "49408,768 77,767", "", "pos has 767"},
    {DPK_OP_embedding, "77", "49408,768", "", "want rank 2"},
    {DPK_OP_eos_pool, "2,77,768 2,77", "", "-1", "2,768"},
    {DPK_OP_eos_pool, "2,77,768 2,76", "", "-1", "ids is [2,76], want [2,77]"},
    {DPK_OP_eos_pool, "2,77,768 2,77", "", "-2", "eos_id is -2"},
    {DPK_OP_sinusoid, "3", "", "320 1 0 10000", "3,320"},
    {DPK_OP_sinusoid, "2,6", "", "256 1 0 10000", "2,1536"},
    {DPK_OP_sinusoid, "2,6,1", "", "256 1 0 10000", "want rank 1 to 2"},
    {DPK_OP_sinusoid, "2,6", "", "255 1 0 10000", "dim is 255"},
    {DPK_OP_sinusoid, "2,6", "", "2 1 1 10000", "freq_shift is 1"},
    {DPK_OP_sinusoid, "2,6", "", "2 1 0 0", "max_period is 0"},
    {DPK_OP_sinusoid, "1,1000000", "", "1000000 1 0 1", "dimension 1 of the result"},
    {DPK_OP_outer_add, "20,32 2,32", "", "1", "20,2,32"},
    {DPK_OP_outer_add, "20,32 2,31", "", "", "a has 32 channels, c 31"},
    {DPK_OP_select, "20,2,32 1", "", "", "2,32"},
    {DPK_OP_select, "20,32 1", "", "", "1,32"},
    {DPK_OP_select, "20,2,3,32 1", "", "", "2,3,32"},
    {DPK_OP_select, "20 1", "", "", "want rank 2 to 4"},
    {DPK_OP_select, "20,32 2", "", "", "index is [2], want [1]"},
    {DPK_OP_concat, "2,9,24 2,9,8", "", "", "2,9,32"},
    {DPK_OP_concat, "2,9,24 2,8,8", "", "", "only the last dimension"},
    {DPK_OP_concat, "2147483647 1", "", "", "dimension 0 of the result"},
    {DPK_OP_slice, "2,9,24", "", "5 7 1 0 -inf inf", "2,9,7"},
    {DPK_OP_slice, "2,9,24", "", "5 0 1 0 -1 1", "2,9,19"},
    {DPK_OP_slice, "2,9,24", "", "24 0 1 0 -1 1", "off 24 and count 0"},
    {DPK_OP_slice, "2,9,24", "", "18 7 1 0 -1 1", "off 18 and count 7"},
    {DPK_OP_slice, "2,9,24", "", "2147483647 2147483647 1 0 -1 1", "off 2147483647"},
    {DPK_OP_slice, "2,9,24", "", "0 0 1 0 1 -1", "lo is 1"},
    {DPK_OP_slice, "2,9,24", "", "0 0 1 0 -1 nan", "hi is not a number"},
    {DPK_OP_add, "2,9,24 2,9,24", "", "", "2,9,24"},
    {DPK_OP_add, "2,9,24 1,9,24", "", "", "2,9,24"},
    {DPK_OP_add, "2,9,24 9,24", "", "", "2,9,24"},
    {DPK_OP_add, "2,9,24 24", "", "", "2,9,24"},
    {DPK_OP_add, "2,9,24", "24", "", "2,9,24"},
    {DPK_OP_add, "2,9,24", "216", "", "2,9,24"},
    {DPK_OP_add, "2,9,24", "48", "", "no product"},
    {DPK_OP_add, "2,9,24 2,1,24", "", "", "c is [2,1,24]"},
    {DPK_OP_add, "2,9,24 1,24", "", "", "c is [1,24]"},
    {DPK_OP_add, "9,24 1,9,24", "", "", "c is [1,9,24]"},
    {DPK_OP_add, "2,9,24", "", "", "either c or table"},
    {DPK_OP_add, "2,9,24 24", "24", "", "either c or table"},
    {DPK_OP_pos_embed_2d, "2,8,6,24", "", "16 2", "2,8,6,24"},
    {DPK_OP_pos_embed_2d, "2,8,6,22", "", "16 2", "multiple of 4"},
    {DPK_OP_pos_embed_2d, "2,8,6,24", "", "0 2", "base is 0"},
    {DPK_OP_pos_embed_2d, "2,8,6,24", "", "16 0", "interpolation is 0"},
    {DPK_OP_unpatchify, "2,8,6,12", "", "2", "2,16,12,3"},
    {DPK_OP_unpatchify, "2,8,6,14", "", "2", "channels a multiple of 4"},
    {DPK_OP_unpatchify, "2,8,6,14", "", "2147483647", "channels a multiple of"},
    {DPK_OP_unpatchify, "2,8,6,12", "", "0", "patch is 0"},
    {DPK_OP_relative_bias, "2,77", "32,12", "32 128", "12,77,77"},
    {DPK_OP_relative_bias, "2,77", "31,12", "32 128", "buckets is 32, table is [31,12]"},
    {DPK_OP_relative_bias, "2,77", "32,12", "32 8", "max_distance is 8"},
    {DPK_OP_relative_bias, "2,1048576", "32,12", "32 128", "2^40 elements"},
};

static void test_shapes(void **state) {
    (void)state;
    unsigned tested = 0;
    int n_wrong = 0;
    for (size_t i = 0; i < sizeof shape_cases / sizeof *shape_cases; i++) {
        const struct shape_case *s = &shape_cases[i];
        struct call c = make_call(s->opcode, s->in, s->wt, s->attrs);
        const char *got = result_of(&c);
        const bool is_shape = s->want[strspn(s->want, "0123456789,")] == 0;
        if (is_shape) tested |= 1u << s->opcode;
        if (is_shape ? strcmp(got, s->want) == 0 : strstr(got, s->want) && strstr(got, " layer: "))
            continue;
        print_error("%s in %s wt %s attr %s: got %s, want %s\n", dpk_op_info_get(s->opcode)->name,
                    s->in, s->wt, s->attrs, got, s->want);
        n_wrong++;
    }
    assert_int_equal(n_wrong, 0);
    for (uint32_t op = 1; op < DPK_N_OPCODES; op++)
        if (dpk_op_info_get(op) && !(tested >> op & 1))
            fail_msg("no shape test of %s", dpk_op_info_get(op)->name);
}

/* Any attributes and shapes: an error or a valid shape, never undefined behaviour. */
static void test_random_calls(void **state) {
    (void)state;
    static const int32_t sizes[] = {0, 1, 2, 3, 4, 8, 24, 32, 1 << 20, INT32_MAX, -1, INT32_MIN};
    uint64_t random = 17;
    int n_good = 0;
    for (int i = 0; i < 200000; i++) {
        struct call c = {.op.opcode = 1 + support_random(&random) % (DPK_N_OPCODES - 1)};
        const struct dpk_op_info *info = dpk_op_info_get(c.op.opcode);
        struct dpk_shape *shapes[2] = {c.in, c.wt};
        uint32_t *numbers[2] = {c.op.in, c.op.wt};
        const int n_all[2] = {DPK_MAX_IN, DPK_MAX_WT}, n_used[2] = {info->n_in, info->n_wt};
        const uint32_t odd = support_random(&random) % 12; /* the sizes most operands have */
        for (int k = 0; k < 2; k++)
            for (int j = 0; j < n_all[k]; j++) {
                struct dpk_shape *s = &shapes[k][j];
                numbers[k][j] = j < n_used[k] && support_random(&random) % 4 ? 0 : DPK_NONE;
                s->rank = (int32_t)(support_random(&random) % 5);
                for (int d = 0; d < s->rank; d++)
                    s->dim[d] = support_random(&random) % 4 ? sizes[odd]
                                                            : sizes[support_random(&random) % 12];
            }
        for (int j = 0; j < info->n_attr; j++) {
            c.op.attr[j].i = sizes[support_random(&random) % 12];
            if (support_random(&random) % 8 == 0) c.op.attr[j].i = (int32_t)support_random(&random);
            if (info->attr[j].kind == 'f' && support_random(&random) % 2) c.op.attr[j].f = 0.5f;
        }
        if (dpk_op_shape(&c.op, NULL, c.in, c.wt, &c.out, NULL) != DPK_OK) continue;
        n_good++;
        assert_true(dpk_shape_count(&c.out) > 0);
        const uint64_t wt_bytes[DPK_MAX_WT] = {100, 100, 100, 100};
        const struct dpk_cost cost = dpk_op_cost(&c.op, c.in, c.wt, &c.out, 2, wt_bytes);
        assert_true(cost.flops >= 0 && isfinite(cost.flops) && cost.bytes > 0);
    }
    assert_true(n_good > 1000);
}

/* ---- Table, sizes, costs ---- */

static void test_table(void **state) {
    (void)state;
    assert_null(dpk_op_info_get(0));
    assert_null(dpk_op_info_get(DPK_N_OPCODES));
    assert_null(dpk_op_info_get(UINT32_MAX));
    const struct dpk_op_info *linear = dpk_op_info_get(DPK_OP_linear);
    assert_string_equal(linear->name, "linear");
    assert_int_equal(linear->n_in, 4);
    assert_int_equal(linear->n_wt, 2);
    assert_int_equal(linear->n_attr, 3);
    assert_string_equal(linear->in[DPK_IN(linear, gate)].name, "gate");
    assert_true(linear->in[3].optional && !linear->in[0].optional);
    assert_int_equal(linear->wt[DPK_WT(linear, b)].type, DPK_LAYOUT_VEC);
    assert_int_equal(linear->attr[0].kind, 'a');
    assert_int_equal(linear->attr[1].kind, 'b');
    const struct dpk_op_info *select = dpk_op_info_get(DPK_OP_select);
    assert_int_equal(select->n_wt + select->n_attr, 0);
    assert_int_equal(select->in[1].type, DPK_VALUE_I32);
    const struct dpk_op_info *attention = dpk_op_info_get(DPK_OP_attention);
    assert_int_equal(attention->n_in, 5);
    assert_int_equal(attention->n_wt, 0);
    assert_int_equal(attention->attr[6].kind, 'f');
    for (uint32_t i = 1; i < DPK_N_OPCODES; i++) {
        const struct dpk_op_info *info = dpk_op_info_get(i);
        if (!info) continue;
        assert_true(info->n_in >= 1 && info->n_in <= DPK_MAX_IN && info->n_wt <= DPK_MAX_WT &&
                    info->n_attr <= DPK_MAX_ATTR);
        assert_null(info->in[info->n_in].name);
        assert_null(info->wt[info->n_wt].name);
        assert_null(info->attr[info->n_attr].name);
    }
    assert_string_equal(dpk_dtype_name(DPK_BF16), "bf16");
    assert_string_equal(dpk_dtype_name(DPK_I32), "i32");
    assert_string_equal(dpk_dtype_name(0), "?");
    assert_string_equal(dpk_dtype_name(7), "?");
    assert_string_equal(dpk_layout_name(DPK_LAYOUT_PANEL_GLU), "panel_glu");
    assert_string_equal(dpk_layout_name(-1), "?");
    assert_string_equal(dpk_act_name(DPK_ACT_QUICK_GELU), "quick_gelu");
    assert_string_equal(dpk_act_name(-1), "?");
    assert_string_equal(dpk_act_name(DPK_N_ACTS), "?");
}

static void test_weight_bytes(void **state) {
    (void)state;
    static const struct {
        int dtype, layout;
        const char *shape;
        uint64_t want;
    } cases[] = {
        {DPK_F32, DPK_LAYOUT_RAW, "7", 28},
        {DPK_F16, DPK_LAYOUT_RAW, "7,3", 42},
        {DPK_S8, DPK_LAYOUT_RAW, "7,3", 21},
        {DPK_S4, DPK_LAYOUT_RAW, "8,8", 0},
        {DPK_I32, DPK_LAYOUT_RAW, "5", 20},
        /* The worked examples of FORMAT.md. */
        {DPK_F32, DPK_LAYOUT_PANEL, "20,5", 640},
        {DPK_BF16, DPK_LAYOUT_PANEL, "20,5", 384},
        {DPK_F16, DPK_LAYOUT_PANEL, "20,5", 384},
        {DPK_S8, DPK_LAYOUT_PANEL, "20,5", 256},
        {DPK_S4, DPK_LAYOUT_PANEL, "20,5", 128},
        {DPK_BF16, DPK_LAYOUT_PANEL, "3,3,3,5", 1728},
        {DPK_S8, DPK_LAYOUT_PANEL, "3,3,3,5", 1152},
        {DPK_F32, DPK_LAYOUT_PANEL_GLU, "22,5", 640},
        {DPK_BF16, DPK_LAYOUT_PANEL_GLU, "22,5", 384},
        {DPK_S8, DPK_LAYOUT_PANEL_GLU, "22,5", 256},
        /* No such thing. */
        {DPK_I32, DPK_LAYOUT_PANEL, "20,5", 0},
        {DPK_F32, DPK_LAYOUT_PANEL, "20", 0},
        {DPK_F32, DPK_LAYOUT_PANEL, "4,5,6", 0},
        {DPK_F32, DPK_LAYOUT_PANEL_GLU, "21,5", 0},
        {DPK_F32, DPK_LAYOUT_PANEL_GLU, "20,1,1,5", 0},
        {DPK_F32, DPK_LAYOUT_VEC, "20", 0},
        {DPK_F32, -1, "20,5", 0},
        {0, DPK_LAYOUT_RAW, "20", 0},
        {99, DPK_LAYOUT_RAW, "20", 0},
        {DPK_F32, DPK_LAYOUT_RAW, "0", 0},
        {DPK_F32, DPK_LAYOUT_RAW, "-4,-4", 0},
        {DPK_F32, DPK_LAYOUT_RAW, "1048576,1048576", 0},
        /* The largest: no overflow. */
        {DPK_F32, DPK_LAYOUT_RAW, "1048576,1048575", (uint64_t)1048576 * 1048575 * 4},
        {DPK_F32, DPK_LAYOUT_PANEL, "1,2147483647", (uint64_t)2147483647 * 64},
        {DPK_S8, DPK_LAYOUT_PANEL, "1,1024,1048575,1", (uint64_t)1024 * 1048575 * 64},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct dpk_shape s = parse_shape(cases[i].shape);
        const uint64_t got = dpk_weight_bytes(cases[i].dtype, cases[i].layout, &s);
        if (got != cases[i].want)
            fail_msg("case %zu: %llu bytes, want %llu", i, (unsigned long long)got,
                     (unsigned long long)cases[i].want);
    }
    const struct dpk_shape bad[] = {{0}, {5, {1, 1, 1, 1}}, {-1, {1}}};
    for (size_t i = 0; i < 3; i++) assert_int_equal(dpk_shape_count(&bad[i]), 0);
}

static struct dpk_cost cost_of(uint32_t opcode, const char *in, const char *wt, const char *attrs,
                               int act_bytes) {
    struct call c = make_call(opcode, in, wt, attrs);
    uint64_t wt_bytes[DPK_MAX_WT] = {0};
    dpk_error err;
    if (dpk_op_shape(&c.op, "", c.in, c.wt, &c.out, &err) != DPK_OK) fail_msg("%s", err.msg);
    for (int i = 0; i < DPK_MAX_WT; i++)
        wt_bytes[i] = dpk_weight_bytes(DPK_F32, DPK_LAYOUT_RAW, &c.wt[i]);
    return dpk_op_cost(&c.op, c.in, c.wt, &c.out, act_bytes, wt_bytes);
}

static void test_costs(void **state) {
    (void)state;
    struct dpk_cost c = cost_of(DPK_OP_linear, "2,10,30", "20,30", "", 2);
    assert_true(c.flops == 2.0 * 20 * 20 * 30);
    assert_true(c.bytes == 2 * (20 * 30 + 20 * 20) + 4 * 20 * 30);
    c = cost_of(DPK_OP_linear, "2,10,30", "20,30 20", "1 1", 2); /* value, gate: all 20 rows */
    assert_true(c.flops == 2.0 * 20 * 20 * 30 + 20 * 10 * (1 + 1 + 2));
    c = cost_of(DPK_OP_conv2d, "1,8,8,4", "6,3,3,4", "2 1 1 1 1", 4);
    assert_true(c.flops == 2.0 * 16 * 6 * 36);
    assert_true(c.bytes == 4 * (8 * 8 * 4 + 16 * 6 + 6 * 36));
    c = cost_of(DPK_OP_attention, "2,5,24 2,7,24 2,7,24", "", "3 8", 2);
    assert_true(c.flops == 2.0 * 3 * 35 * (4 * 8 + 5));
    assert_true(c.bytes == 2 * 2 * 24 * (5 + 7 + 7 + 5));
    c = cost_of(DPK_OP_attention, "1,7,8 1,7,8 1,7,8", "", "1 8 0 0 0 1", 2);
    assert_true(c.flops == 28.0 * (4 * 8 + 5));
    c = cost_of(DPK_OP_attention, "1,7,8 1,3,8 1,3,8", "", "1 8 0 0 0 1", 2);
    assert_true(c.flops == (1 + 2 + 3 * 5.0) * (4 * 8 + 5));
    c = cost_of(DPK_OP_embedding, "1,7", "1000,8", "", 2); /* 7 rows of the table */
    assert_true(fabs(c.bytes - (7 * 4 + 7 * 8 * 4 + 7 * 8 * 2)) < 1e-9);
    c = cost_of(DPK_OP_select, "100,2,8 1", "", "", 2);
    assert_true(c.flops == 0 && c.bytes == 2 * 16 * 2 + 4);
}

/* ---- Shapes through whole programs ---- */

static void test_programs(void **state) {
    (void)state;
    dpk_error err;
    char path[600];
    struct dpk_file f;
    char *folder = support_folder_make();
    snprintf(path, sizeof path, "%s/x.dpk", folder);
    assert_int_equal(support_dpk_write(path, 3, 1, &err), DPK_OK);
    assert_int_equal(dpk_file_open(&f, path, &err), DPK_OK);
    for (uint32_t p = 0; p < f.n_programs; p++) {
        const struct dpk_program *program = &f.programs[p];
        struct dpk_shape shapes[64] = {{0}};
        for (uint32_t v = 0; v < program->n_inputs; v++) {
            shapes[v].rank = program->values[v].rank;
            for (int d = 0; d < shapes[v].rank; d++) {
                const int32_t fixed = program->values[v].dim[d];
                shapes[v].dim[d] = fixed ? fixed : shapes[v].rank == 4 && d ? 6 : 2;
            }
        }
        for (uint32_t i = 0; i < program->n_ops; i++) {
            const struct dpk_op *op = &program->ops[i];
            struct dpk_shape in[DPK_MAX_IN] = {{0}}, wt[DPK_MAX_WT] = {{0}};
            for (int j = 0; j < DPK_MAX_IN; j++)
                if (op->in[j] != DPK_NONE) in[j] = shapes[op->in[j]];
            for (int j = 0; j < DPK_MAX_WT; j++)
                if (op->wt[j] != DPK_NONE) wt[j] = dpk_tensor_shape(&f.tensors[op->wt[j]]);
            if (dpk_op_shape(op, dpk_file_string(&f, op->name), in, wt,
                             &shapes[program->n_inputs + i], &err) != DPK_OK)
                fail_msg("%s: %s", program->name, err.msg);
        }
    }
    dpk_file_close(&f);
    support_folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_random_calls), cmocka_unit_test(test_weight_bytes),
        cmocka_unit_test(test_costs),        cmocka_unit_test(test_programs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
