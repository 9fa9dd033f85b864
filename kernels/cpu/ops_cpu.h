/* The operators of the CPU backend: three symbols each, defined in op_<name>.c and called through
 * the table in cpu.c.
 *
 *   run       do the call; operands were checked by dpk_op_shape, scratch is call->scratch
 *   scratch   bytes of scratch that run needs (data pointers are NULL when it is asked); 0 if none
 *   in_place  bit i set: the result may lie where input i lies (same size in bytes)
 *
 * And of operators that make quantized rows only under conditions:
 *   rows8     whether this call can (pointers are NULL) */
#ifndef DPK_OPS_CPU_H
#define DPK_OPS_CPU_H

#include "cpu.h"

#include <stddef.h>

#define DPK_OP(number, name, ins, wts, attrs)                                                      \
    int dpk_cpu_run_##name(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err);      \
    size_t dpk_cpu_scratch_##name(const struct dpk_cpu *cpu, const struct dpk_call *call);         \
    extern const uint32_t dpk_cpu_in_place_##name;
#include "../../formats/ops.def"
#undef DPK_OP

/* dpk_backend.rows_scratch and run_rows: cpu_rows.c. Two operators know rows themselves. */
bool dpk_cpu_rows_scratch(const struct dpk_backend *be, const struct dpk_call *call,
                          const struct dpk_rows *rows, size_t *bytes);
int dpk_cpu_run_rows(struct dpk_backend *be, const struct dpk_call *call,
                     const struct dpk_rows *rows, dpk_error *err);
int dpk_cpu_rows_group_norm(struct dpk_cpu *cpu, const struct dpk_call *call,
                            const struct dpk_rows *rows, dpk_error *err);
int dpk_cpu_rows_conv2d(struct dpk_cpu *cpu, const struct dpk_call *call,
                        const struct dpk_rows *rows, dpk_error *err);
size_t dpk_cpu_rows_scratch_conv2d(const struct dpk_cpu *cpu, const struct dpk_call *call,
                                   const struct dpk_rows *rows);

bool dpk_cpu_rows8_attention(const struct dpk_cpu *cpu, const struct dpk_call *call);
bool dpk_cpu_rows8_linear(const struct dpk_cpu *cpu, const struct dpk_call *call);

#endif
