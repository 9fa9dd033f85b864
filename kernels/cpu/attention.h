/* What the two ways to compute attention share: with queries as rows (attention_rows.c, all types and
 * options) and as columns (attention_columns.c, faster, not everything). */
#ifndef DPK_ATTENTION_H
#define DPK_ATTENTION_H

#include "cpu.h"
#include "scalar.h"

#include <stddef.h>

struct dpk_attention;
/* A block of query rows of head `group % heads` of image `group / heads`: those from block *
 * s->rows on, s->rows or what is left. The whole row (all heads) of the first one begins at y. */
typedef void dpk_attention_block_fn(const struct dpk_attention *s, int group, int block, int worker,
                                    char *y);

/* One call of the operator. A way embeds it as its first member. */
struct dpk_attention {
    const struct dpk_cpu *cpu;
    const struct dpk_kernels *k;
    const struct dpk_call *call;
    const struct dpk_attention_attrs *attrs;
    int workers;
    int dtype, images, heads, d, lq, lk;
    size_t size; /* bytes of an element */
    size_t q_stride, k_stride, v_stride;
    float scale;          /* with log2(e) */
    int rows, row_blocks; /* of a block; blocks of a head */
    dpk_attention_block_fn *block;
    /* Filled by dpk_attention_plan_tasks. */
    int span, spans; /* blocks of a task that quantizes, such tasks of an image; 0: none does */
    size_t at_made, bytes;
};

/* Bytes of a row of the result, as numbers. */
static inline size_t dpk_attention_row_bytes(const struct dpk_attention *s) {
    return (size_t)s->heads * (size_t)s->d * s->size;
}

/* Channel `off` of head `head`, of token `token` of image b, in a tensor [B, length, stride]. */
static inline const char *dpk_attention_token(const struct dpk_attention *s,
                                              const struct dpk_tensor *t, size_t stride, int length,
                                              int b, int token, int off, int head) {
    size_t row = (size_t)b * (size_t)length + (size_t)token;
    return (const char *)t->data +
           (row * stride + (size_t)off + (size_t)head * (size_t)s->d) * s->size;
}

/* Is there this optional input? */
static inline bool dpk_attention_has(const struct dpk_attention *s, int input) {
    return s->call->in[input].shape.rank > 0;
}

/* Room of n_bytes at *end, rounded up to 64 bytes. */
static inline size_t dpk_attention_reserve(size_t *end, size_t n_bytes) {
    size_t at = *end;
    *end += (n_bytes + 63) / 64 * 64;
    return at;
}

static inline int dpk_attention_round(int n, int unit) { return (n + unit - 1) / unit * unit; }

/* After a way took n_bytes of scratch for itself: what tasks need, and the sum in s->bytes. */
void dpk_attention_plan_tasks(struct dpk_attention *s, size_t n_bytes);
/* Make all blocks, as rows of numbers or quantized. */
int dpk_attention_run_tasks(struct dpk_cpu *cpu, struct dpk_attention *s, dpk_error *err);

/* Rows of a block, scratch in bytes, and the run: of the way with queries as rows, */
int dpk_attention_rows_of_block(const struct dpk_attention *s);
size_t dpk_attention_rows_scratch(const struct dpk_attention *s);
int dpk_attention_rows_run(struct dpk_cpu *cpu, const struct dpk_attention *s, dpk_error *err);
/* and as columns: bfloat16 at levels with such kernels, without bias and not causal. */
bool dpk_attention_by_columns(const struct dpk_attention *s);
int dpk_attention_columns_of_block(const struct dpk_attention *s);
size_t dpk_attention_columns_scratch(const struct dpk_attention *s);
int dpk_attention_columns_run(struct dpk_cpu *cpu, const struct dpk_attention *s, dpk_error *err);

#endif
