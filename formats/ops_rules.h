/* Shared by ops_check.c and ops_shape.c only: one operator under examination, and its error. */
#ifndef DPK_OPS_RULES_H
#define DPK_OPS_RULES_H

#include "ops.h"

#include <stddef.h>

struct dpk_op_case {
    const struct dpk_op *op;
    const struct dpk_op_info *info;
    const char *layer;
    const struct dpk_shape *in; /* [DPK_MAX_IN]; NULL in ops_check.c */
    const struct dpk_shape *wt; /* [DPK_MAX_WT] */
    dpk_error *err;
};

/* "linear unet.x.to_q: ..." as DPK_EFORMAT. */
int dpk_op_bad(const struct dpk_op_case *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

struct dpk_shape_text {
    char s[64];
};
struct dpk_shape_text dpk_shape_print(const struct dpk_shape *s); /* "[2,77,768]" */

#endif
