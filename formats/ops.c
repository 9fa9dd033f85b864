#include "ops.h"

#include <stddef.h>

#define IN(name_, type_) {.name = #name_, .type = DPK_VALUE_##type_, .optional = false},
#define IN_OPT(name_, type_) {.name = #name_, .type = DPK_VALUE_##type_, .optional = true},
#define WT(name_, layout_) {.name = #name_, .type = DPK_LAYOUT_##layout_, .optional = false},
#define WT_OPT(name_, layout_) {.name = #name_, .type = DPK_LAYOUT_##layout_, .optional = true},
#define A_INT(name_) {.name = #name_, .kind = 'i'},
#define A_BOOL(name_) {.name = #name_, .kind = 'b'},
#define A_ACT(name_) {.name = #name_, .kind = 'a'},
#define A_FLOAT(name_) {.name = #name_, .kind = 'f'},
/* The structs of ops.h end with one member that is no operand. */
#define N_MEMBERS(op, what) (int)(sizeof(struct dpk_##op##_##what) / sizeof(int) - 1)
#define DPK_OP(number, op, ins, wts, words)                                                        \
    [number] = {.name = #op,                                                                       \
                .n_in = N_MEMBERS(op, in_positions),                                               \
                .n_wt = N_MEMBERS(op, wt_positions),                                               \
                .n_attr = N_MEMBERS(op, attrs),                                                    \
                .in = {ins{NULL, 0, false}},                                                       \
                .wt = {wts{NULL, 0, false}},                                                       \
                .attr = {words{NULL, 0}}},
static const struct dpk_op_info op_table[DPK_N_OPCODES] = {
#include "ops.def"
};
#undef DPK_OP
#undef N_MEMBERS
#undef IN
#undef IN_OPT
#undef WT
#undef WT_OPT
#undef A_INT
#undef A_BOOL
#undef A_ACT
#undef A_FLOAT

_Static_assert(sizeof(struct dpk_op) == 128, "an operator record is 128 bytes");

const struct dpk_op_info *dpk_op_info_get(uint32_t opcode) {
    if (opcode >= DPK_N_OPCODES || !op_table[opcode].name) return NULL;
    return &op_table[opcode];
}

int64_t dpk_shape_count(const struct dpk_shape *s) {
    if (s->rank < 1 || s->rank > DPK_MAX_RANK) return 0;
    int64_t n = 1;
    for (int i = 0; i < s->rank; i++) {
        /* n < 2^40 and a dimension < 2^31: the quotient form cannot overflow. */
        if (s->dim[i] < 1 || n > (DPK_MAX_COUNT - 1) / s->dim[i]) return 0;
        n *= s->dim[i];
    }
    return n;
}

int dpk_panel_group(int dtype) {
    switch (dtype) {
    case DPK_F32:
        return 1;
    case DPK_BF16:
    case DPK_F16:
        return 2;
    case DPK_S8:
        return 4;
    case DPK_S4:
        return 8;
    default:
        return 0;
    }
}

static unsigned dtype_bits(int dtype) {
    switch (dtype) {
    case DPK_F32:
    case DPK_I32:
        return 32;
    case DPK_BF16:
    case DPK_F16:
        return 16;
    case DPK_S8:
        return 8;
    case DPK_S4:
        return 4;
    default:
        return 0;
    }
}

uint64_t dpk_weight_bytes(int dtype, int layout, const struct dpk_shape *shape) {
    const uint64_t count = (uint64_t)dpk_shape_count(shape);
    const uint64_t bits = dtype_bits(dtype), g = (uint64_t)dpk_panel_group(dtype);
    if (count == 0 || bits == 0) return 0;
    if (layout == DPK_LAYOUT_RAW) return bits < 8 ? 0 : count * (bits / 8);

    const int rank = shape->rank;
    if (g == 0 || (rank != 2 && rank != 4)) return 0;
    const uint64_t rows = (uint64_t)shape->dim[0], channels = (uint64_t)shape->dim[rank - 1];
    const uint64_t taps = count / rows / channels;
    uint64_t n_panels;
    if (layout == DPK_LAYOUT_PANEL) {
        n_panels = (rows + 15) / 16;
    } else if (layout == DPK_LAYOUT_PANEL_GLU && rank == 2 && rows % 2 == 0) {
        n_panels = (rows / 2 + 7) / 8;
    } else {
        return 0;
    }
    /* Below 2^40 elements, times at most 16 by row padding and 8 by channel padding, times 32 bits:
     * below 2^52. Every K' is a multiple of g, and 16 g elements are whole bytes. */
    return n_panels * 16 * taps * ((channels + g - 1) / g * g) * bits / 8;
}

const char *dpk_dtype_name(int dtype) {
    static const char *const names[] = {"?", "f32", "bf16", "f16", "s8", "s4", "i32"};
    return dtype >= DPK_F32 && dtype <= DPK_I32 ? names[dtype] : "?";
}

const char *dpk_layout_name(int layout) {
    switch (layout) {
    case DPK_LAYOUT_RAW:
        return "raw";
    case DPK_LAYOUT_PANEL:
        return "panel";
    case DPK_LAYOUT_PANEL_GLU:
        return "panel_glu";
    case DPK_LAYOUT_VEC:
        return "vec";
    default:
        return "?";
    }
}

const char *dpk_act_name(int act) {
    static const char *const names[DPK_N_ACTS] = {"none", "silu", "gelu", "gelu_tanh",
                                                  "quick_gelu"};
    return act >= 0 && act < DPK_N_ACTS ? names[act] : "?";
}
