/* The operator table in C: records as they stand in the file, names and types of operands, shape
 * rules, cost. Everything here is derived from ops.def, except the rules that ops.def states in
 * words and the costs, which are functions of ops_check.c, ops_shape.c and ops_cost.c. */
#ifndef DPK_OPS_H
#define DPK_OPS_H

#include "dpk_error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DPK_MAX_IN = 6,
    DPK_MAX_WT = 4,
    DPK_MAX_ATTR = 16,
    DPK_MAX_RANK = 4,
};
#define DPK_NONE UINT32_MAX /* an absent operand, or an index that points at nothing */

/* Types of weights and arrays. The values stand in the file. */
enum dpk_dtype {
    DPK_F32 = 1,
    DPK_BF16 = 2,
    DPK_F16 = 3,
    DPK_S8 = 4,
    DPK_S4 = 5, /* two a byte */
    DPK_I32 = 6,
};

/* Type class of a value. ACT is what the backend chooses for the file (float32 or bfloat16). The
 * values stand in the file. */
enum dpk_value_type {
    DPK_VALUE_ACT = 1,
    DPK_VALUE_F32 = 2,
    DPK_VALUE_I32 = 3,
    DPK_VALUE_FLT = 100, /* operand rule only: ACT or F32 */
};

/* Layout of a weight. The values stand in the file.
 *   RAW        row-major
 *   PANEL      [ceil(N/16)][K'/g][16][g]: 16 rows, groups of g adjacent k; g = 1 f32, 2 bf16 and
 *              f16, 4 s8, 8 s4. K' = taps * roundup(C, g) for a convolution [N,kh,kw,C]
 *              (taps = kh*kw), roundup(K, g) for a linear; zero padded. s4: two's complement, the
 *              even k in the low half of its byte
 *   PANEL_GLU  as PANEL of the 2F rows in the order 8 value rows, 8 gate rows, 8 value rows, ...:
 *              panel p holds values 8p..8p+7 and then gates 8p..8p+7 (zero rows from F on)
 *   VEC        float32 [n], in the file RAW with rank 1 and dtype F32; operand rule only */
enum dpk_layout {
    DPK_LAYOUT_RAW = 0,
    DPK_LAYOUT_PANEL = 1,
    DPK_LAYOUT_PANEL_GLU = 2,
    DPK_LAYOUT_VEC = 100,
};

enum dpk_act {
    DPK_ACT_NONE = 0,
    DPK_ACT_SILU = 1,       /* x / (1 + exp(-x)) */
    DPK_ACT_GELU = 2,       /* x * Phi(x), by erf */
    DPK_ACT_GELU_TANH = 3,  /* the tanh approximation of it */
    DPK_ACT_QUICK_GELU = 4, /* x / (1 + exp(-1.702 x)) */
    DPK_N_ACTS
};

enum dpk_opcode {
#define DPK_OP(number, name, ins, wts, attrs) DPK_OP_##name = number,
#include "ops.def"
#undef DPK_OP
    DPK_N_OPCODES
};

/* Attributes of each operator: `struct dpk_linear_attrs { int32_t act; int32_t glu; ... }`. They
 * are another view of dpk_op.attr, hence may_alias. */
#define A_INT(name) int32_t name;
#define A_BOOL(name) int32_t name;
#define A_ACT(name) int32_t name;
#define A_FLOAT(name) float name;
#define DPK_OP(number, name, ins, wts, attrs)                                                      \
    struct __attribute__((may_alias)) dpk_##name##_attrs {                                         \
        attrs int32_t end_;                                                                        \
    };
#include "ops.def"
#undef DPK_OP
#undef A_INT
#undef A_BOOL
#undef A_ACT
#undef A_FLOAT

/* Positions of operands in dpk_op.in and of weights in dpk_op.wt: DPK_IN(linear, x2), and
 * DPK_WT(linear, b). */
#define IN(name, type) int name;
#define IN_OPT(name, type) int name;
#define WT(name, layout) int name;
#define WT_OPT(name, layout) int name;
#define DPK_OP(number, name, ins, wts, attrs)                                                      \
    struct dpk_##name##_in_positions {                                                             \
        ins int end_;                                                                              \
    };                                                                                             \
    struct dpk_##name##_wt_positions {                                                             \
        wts int end_;                                                                              \
    };
#include "ops.def"
#undef DPK_OP
#undef IN
#undef IN_OPT
#undef WT
#undef WT_OPT
#define DPK_IN(op, operand) (offsetof(struct dpk_##op##_in_positions, operand) / sizeof(int))
#define DPK_WT(op, operand) (offsetof(struct dpk_##op##_wt_positions, operand) / sizeof(int))

/* One operator as it stands in the file: 128 bytes, little-endian. It makes value number
 * n_inputs + (its own index). */
struct dpk_op {
    uint32_t opcode;
    uint32_t name;           /* string offset: the source layer, "" if it has none */
    uint32_t in[DPK_MAX_IN]; /* value numbers, each below its own; DPK_NONE if absent */
    uint32_t wt[DPK_MAX_WT]; /* tensor numbers; DPK_NONE if absent */
    uint32_t zero[4];
    union {
        int32_t i;
        float f;
    } attr[DPK_MAX_ATTR]; /* unused ones are zero */
};

/* The attribute struct of an operator record: DPK_ATTRS(linear, op)->act. */
#define DPK_ATTRS(name, op) ((const struct dpk_##name##_attrs *)(const void *)(op)->attr)

/* What ops.def says, as data. */
struct dpk_operand_info {
    const char *name;
    int type; /* enum dpk_value_type for inputs, enum dpk_layout for weights */
    bool optional;
};
struct dpk_attr_info {
    const char *name;
    char kind; /* 'i' int, 'b' bool, 'a' activation, 'f' float */
};
struct dpk_op_info {
    const char *name; /* NULL: no such operator */
    int n_in, n_wt, n_attr;
    struct dpk_operand_info in[DPK_MAX_IN + 1];
    struct dpk_operand_info wt[DPK_MAX_WT + 1];
    struct dpk_attr_info attr[DPK_MAX_ATTR + 1];
};
/* NULL for an unknown opcode. */
const struct dpk_op_info *dpk_op_info_get(uint32_t opcode);

/* A shape: rank 1..4, every dimension at least 1, product of dimensions below 2^40. Dimensions from
 * rank on are not looked at, and are 0 in shapes made here. */
#define DPK_MAX_COUNT ((int64_t)1 << 40)
struct dpk_shape {
    int32_t rank;
    int32_t dim[DPK_MAX_RANK];
};
int64_t dpk_shape_count(const struct dpk_shape *s); /* elements; 0 if it is no valid shape */

/* Logical shape of a weight as its operator sees it: linear [N,K] (glu: [2F,K]), convolution
 * [N,kh,kw,C], VEC [n], RAW [rows,C]. */

/* Check every rule of ops.def that needs no input shapes: required operands present, attributes in
 * range, shapes of the weights (wt[i] is ignored where op->wt[i] is DPK_NONE). layer is used in
 * messages, may be NULL. Returns DPK_OK or DPK_EFORMAT. */
int dpk_op_check(const struct dpk_op *op, const char *layer, const struct dpk_shape wt[DPK_MAX_WT],
                 dpk_error *err);

/* Result shape of `op` on inputs `in` (in[i] is ignored where op->in[i] is DPK_NONE) and weights of
 * shapes `wt`. Checks every rule that ops.def states about shapes and attributes (dpk_op_check is
 * part of it); layer is used in messages, may be NULL. Returns DPK_OK, or DPK_EFORMAT with a
 * message such as "linear unet.x.to_q: x has 320 channels, w wants 640". */
int dpk_op_shape(const struct dpk_op *op, const char *layer, const struct dpk_shape in[DPK_MAX_IN],
                 const struct dpk_shape wt[DPK_MAX_WT], struct dpk_shape *out, dpk_error *err);

/* Cost of one run: arithmetic (a multiply-add is 2, any other function of a number 1) and bytes
 * read and written, with act_bytes per activation and wt_bytes[i] bytes of weight i. Convolutions
 * count as direct convolutions. The shapes must have passed dpk_op_shape. */
struct dpk_cost {
    double flops, bytes;
};
struct dpk_cost dpk_op_cost(const struct dpk_op *op, const struct dpk_shape in[DPK_MAX_IN],
                            const struct dpk_shape wt[DPK_MAX_WT], const struct dpk_shape *out,
                            int act_bytes, const uint64_t wt_bytes[DPK_MAX_WT]);

/* Bytes of a weight of this type and layout; 0 if the combination is not valid.
 * shape: linear [N,K] (GLU: [2F,K]), convolution [N,kh,kw,C], RAW any. */
uint64_t dpk_weight_bytes(int dtype, int layout, const struct dpk_shape *shape);
/* g of enum dpk_layout: k adjacent in a panel row. 0 for a type that has no panels. */
int dpk_panel_group(int dtype);

const char *dpk_dtype_name(int dtype);   /* "f32", "bf16", ...; "?" if unknown */
const char *dpk_layout_name(int layout); /* "raw", "panel", "panel_glu" */
const char *dpk_act_name(int act);       /* "none", "silu", ... */

#endif
