/* One function an operator: its record, and the plans of its weights. */
#include "builder_impl.h"

#include <string.h>

static bool failed(const struct dpk_prog *p) { return p->b->rc != DPK_OK; }

/* An operator without operands. */
static struct dpk_op operator(uint32_t opcode) {
    struct dpk_op op = {.opcode = opcode};
    for (int i = 0; i < DPK_MAX_WT; i++) op.wt[i] = DPK_NONE;
    return op;
}

/* The attributes of an operator under construction in their struct. */
#define ATTRS(name, op) ((struct dpk_##name##_attrs *)(void *)(op)->attr)

static uint32_t vector(struct dpk_prog *p, const char *layer, const char *suffix, int role, int n) {
    return dpk_builder_want(p, &(struct dpk_weight_want){.layer = layer,
                                                         .suffix = suffix,
                                                         .role = role,
                                                         .dtype = DPK_F32,
                                                         .layout = DPK_LAYOUT_RAW,
                                                         .shape = {1, {n}}});
}

static uint32_t table(struct dpk_prog *p, const char *layer, int rows, int c) {
    return dpk_builder_want(p, &(struct dpk_weight_want){.layer = layer,
                                                         .suffix = "weight",
                                                         .role = DPK_ROLE_TABLE,
                                                         .dtype = p->b->dtype,
                                                         .layout = DPK_LAYOUT_RAW,
                                                         .shape = {2, {rows, c}}});
}

uint32_t dpk_build_linear_opt(struct dpk_prog *p, const char *name, uint32_t x, int n, int k,
                              const struct dpk_linear_opt *opt) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_linear);
    op.in[DPK_IN(linear, x)] = x;
    op.in[DPK_IN(linear, x2)] = opt->x2;
    op.in[DPK_IN(linear, residual)] = opt->residual;
    op.in[DPK_IN(linear, gate)] = opt->gate;
    ATTRS(linear, &op)->act = opt->act;
    ATTRS(linear, &op)->glu = opt->glu;
    ATTRS(linear, &op)->gate_off = opt->gate_off;
    struct dpk_weight_want want = {
        .layer = name,
        .suffix = "weight",
        .stack = opt->stack,
        .role = DPK_ROLE_MATRIX,
        .dtype = p->b->dtype,
        .layout = opt->glu ? DPK_LAYOUT_PANEL_GLU : DPK_LAYOUT_PANEL,
        .flags = opt->conv1x1 ? DPK_TENSOR_CONV1X1 : 0,
        .shape = {2, {n, k}},
    };
    op.wt[DPK_WT(linear, w)] = dpk_builder_want(p, &want);
    if (!opt->no_bias) {
        want.suffix = "bias";
        want.role = DPK_ROLE_BIAS;
        want.dtype = DPK_F32;
        want.layout = DPK_LAYOUT_RAW;
        want.flags = 0;
        want.shape = (struct dpk_shape){1, {n}};
        op.wt[DPK_WT(linear, b)] = dpk_builder_want(p, &want);
    }
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_conv2d_opt(struct dpk_prog *p, const char *name, uint32_t x, int n, int c,
                              const struct dpk_conv2d_opt *opt) {
    if (failed(p)) return 0;
    const int kernel = opt->kernel ? opt->kernel : 3, half = kernel / 2;
    struct dpk_op op = operator(DPK_OP_conv2d);
    struct dpk_conv2d_attrs *a = ATTRS(conv2d, &op);
    op.in[DPK_IN(conv2d, x)] = x;
    op.in[DPK_IN(conv2d, temb)] = opt->temb;
    op.in[DPK_IN(conv2d, residual)] = opt->residual;
    op.in[DPK_IN(conv2d, like)] = opt->like;
    a->stride = opt->stride ? opt->stride : 1;
    a->pad_top = opt->pad ? opt->pad[0] : half;
    a->pad_left = opt->pad ? opt->pad[1] : half;
    a->pad_bottom = opt->pad ? opt->pad[2] : half;
    a->pad_right = opt->pad ? opt->pad[3] : half;
    a->upsample = opt->upsample;
    a->act = opt->act;
    op.wt[DPK_WT(conv2d, w)] =
        dpk_builder_want(p, &(struct dpk_weight_want){.layer = name,
                                                      .suffix = "weight",
                                                      .role = DPK_ROLE_MATRIX,
                                                      .dtype = p->b->dtype,
                                                      .layout = DPK_LAYOUT_PANEL,
                                                      .shape = {4, {n, kernel, kernel, c}}});
    if (!opt->no_bias) op.wt[DPK_WT(conv2d, b)] = vector(p, name, "bias", DPK_ROLE_BIAS, n);
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_group_norm(struct dpk_prog *p, const char *name, uint32_t x, uint32_t x2, int c,
                              int groups, float eps, int act) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_group_norm);
    op.in[DPK_IN(group_norm, x)] = x;
    op.in[DPK_IN(group_norm, x2)] = x2;
    ATTRS(group_norm, &op)->groups = groups;
    ATTRS(group_norm, &op)->eps = eps;
    ATTRS(group_norm, &op)->act = act;
    op.wt[DPK_WT(group_norm, gamma)] = vector(p, name, "weight", DPK_ROLE_GAMMA, c);
    op.wt[DPK_WT(group_norm, beta)] = vector(p, name, "bias", DPK_ROLE_BIAS, c);
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_layer_norm_opt(struct dpk_prog *p, const char *name, uint32_t x, int c,
                                  float eps, const struct dpk_layer_norm_opt *opt) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_layer_norm);
    struct dpk_layer_norm_attrs *a = ATTRS(layer_norm, &op);
    op.in[DPK_IN(layer_norm, x)] = x;
    op.in[DPK_IN(layer_norm, mod)] = opt->mod;
    a->eps = eps;
    a->rms = opt->rms;
    a->shift_off = opt->shift_off;
    a->scale_off = opt->scale_off;
    if (!opt->no_affine) {
        op.wt[DPK_WT(layer_norm, gamma)] = vector(p, name, "weight", DPK_ROLE_GAMMA, c);
        if (!opt->rms) op.wt[DPK_WT(layer_norm, beta)] = vector(p, name, "bias", DPK_ROLE_BIAS, c);
    }
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_attention_opt(struct dpk_prog *p, const char *name, uint32_t q, uint32_t k,
                                 uint32_t v, int heads, int head_dim,
                                 const struct dpk_attention_opt *opt) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_attention);
    struct dpk_attention_attrs *a = ATTRS(attention, &op);
    op.in[DPK_IN(attention, q)] = q;
    op.in[DPK_IN(attention, k)] = k;
    op.in[DPK_IN(attention, v)] = v;
    op.in[DPK_IN(attention, mask)] = opt->mask;
    op.in[DPK_IN(attention, bias)] = opt->bias;
    a->heads = heads;
    a->head_dim = head_dim;
    a->q_off = opt->q_off;
    a->k_off = opt->k_off;
    a->v_off = opt->v_off;
    a->causal = opt->causal;
    a->scale = opt->scale;
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_embedding(struct dpk_prog *p, const char *name, int n, const char *pos,
                             int n_pos, int c, uint32_t ids) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_embedding);
    op.in[DPK_IN(embedding, ids)] = ids;
    op.wt[DPK_WT(embedding, table)] = table(p, name, n, c);
    if (*pos) op.wt[DPK_WT(embedding, pos)] = table(p, pos, n_pos, c);
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_eos_pool(struct dpk_prog *p, uint32_t x, uint32_t ids, int eos_id) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_eos_pool);
    op.in[DPK_IN(eos_pool, x)] = x;
    op.in[DPK_IN(eos_pool, ids)] = ids;
    ATTRS(eos_pool, &op)->eos_id = eos_id;
    return dpk_builder_add(p, NULL, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_sinusoid(struct dpk_prog *p, uint32_t t, int dim, bool flip, float freq_shift) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_sinusoid);
    op.in[DPK_IN(sinusoid, t)] = t;
    ATTRS(sinusoid, &op)->dim = dim;
    ATTRS(sinusoid, &op)->flip = flip;
    ATTRS(sinusoid, &op)->freq_shift = freq_shift;
    ATTRS(sinusoid, &op)->max_period = 10000.0f;
    return dpk_builder_add(p, NULL, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_outer_add(struct dpk_prog *p, uint32_t a, uint32_t c, int act) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_outer_add);
    op.in[DPK_IN(outer_add, a)] = a;
    op.in[DPK_IN(outer_add, c)] = c;
    ATTRS(outer_add, &op)->act = act;
    return dpk_builder_add(p, NULL, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_select(struct dpk_prog *p, uint32_t x, uint32_t index) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_select);
    op.in[DPK_IN(select, x)] = x;
    op.in[DPK_IN(select, index)] = index;
    return dpk_builder_add(p, NULL, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_concat(struct dpk_prog *p, uint32_t a, uint32_t c) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_concat);
    op.in[DPK_IN(concat, a)] = a;
    op.in[DPK_IN(concat, c)] = c;
    return dpk_builder_add(p, NULL, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_slice_opt(struct dpk_prog *p, uint32_t x, int type,
                             const struct dpk_slice_opt *opt) {
    if (failed(p)) return 0;
    const bool limits = opt->lo != 0.0f || opt->hi != 0.0f;
    struct dpk_op op = operator(DPK_OP_slice);
    struct dpk_slice_attrs *a = ATTRS(slice, &op);
    op.in[DPK_IN(slice, x)] = x;
    a->off = opt->off;
    a->count = opt->count;
    a->mul = opt->mul != 0.0f ? opt->mul : 1.0f;
    a->add = opt->add;
    a->lo = limits ? opt->lo : -INFINITY;
    a->hi = limits ? opt->hi : INFINITY;
    return dpk_builder_add(p, NULL, type, &op);
}

uint32_t dpk_build_add_table(struct dpk_prog *p, const char *name, uint32_t x, int rows, int c) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_add);
    op.in[DPK_IN(add, a)] = x;
    op.wt[DPK_WT(add, table)] =
        dpk_builder_want(p, &(struct dpk_weight_want){.layer = name,
                                                      .role = DPK_ROLE_BIAS,
                                                      .dtype = DPK_F32,
                                                      .layout = DPK_LAYOUT_RAW,
                                                      .shape = {1, {rows ? rows * c : c}},
                                                      .table_rows = rows});
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_pos_embed_2d(struct dpk_prog *p, uint32_t x, int base, float interpolation) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_pos_embed_2d);
    op.in[DPK_IN(pos_embed_2d, x)] = x;
    ATTRS(pos_embed_2d, &op)->base = base;
    ATTRS(pos_embed_2d, &op)->interpolation = interpolation;
    return dpk_builder_add(p, NULL, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_unpatchify(struct dpk_prog *p, uint32_t x, int patch) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_unpatchify);
    op.in[DPK_IN(unpatchify, x)] = x;
    ATTRS(unpatchify, &op)->patch = patch;
    return dpk_builder_add(p, NULL, DPK_VALUE_ACT, &op);
}

uint32_t dpk_build_relative_bias(struct dpk_prog *p, const char *name, uint32_t ids, int buckets,
                                 int heads, int max_distance) {
    if (failed(p)) return 0;
    struct dpk_op op = operator(DPK_OP_relative_bias);
    op.in[DPK_IN(relative_bias, ids)] = ids;
    ATTRS(relative_bias, &op)->buckets = buckets;
    ATTRS(relative_bias, &op)->max_distance = max_distance;
    op.wt[DPK_WT(relative_bias, table)] = table(p, name, buckets, heads);
    return dpk_builder_add(p, name, DPK_VALUE_ACT, &op);
}

/* Check and count NAME.SUFFIX of a component; it gets no place in the file. */
static void unused(struct dpk_prog *p, const char *name, const char *suffix, int rank, uint64_t n,
                   uint64_t k) {
    struct dpk_weight_part part;
    if (failed(p)) return;
    const uint64_t dim[2] = {n, k};
    p->b->rc =
        dpk_component_want(p->component, DPK_SUB(name, suffix), rank, dim, &part, &p->b->err);
}

void dpk_build_unused_linear(struct dpk_prog *p, const char *name, int n, int k, bool bias) {
    unused(p, name, "weight", 2, (uint64_t)n, (uint64_t)k);
    if (bias) unused(p, name, "bias", 1, (uint64_t)n, 0);
}

void dpk_build_unused_norm(struct dpk_prog *p, const char *name, int c) {
    unused(p, name, "weight", 1, (uint64_t)c, 0);
    unused(p, name, "bias", 1, (uint64_t)c, 0);
}
