/* Contract of the attention kernels with queries as columns, all bfloat16. Included by kernels.h
 * only; a level that has them sets `attn_columns` of the table.
 *
 * Operands are panels of 16 queries, 8 keys or 8 channels whose elements of a pair of channels (or
 * of keys) adjoin, zero where the second one is missing:
 *     q [panels][pairs][16][2]        queries
 *     k [ceil(n / 8)][pairs][8][2]    keys
 *     v [groups][v_stride][8][2]      channels, pairs of keys */
#ifndef DPK_KERNELS_ATTENTION_H
#define DPK_KERNELS_ATTENTION_H

/* One panel of k from 8 rows of `cols` channels; the largest squared length of a row, NaN passed
 * over. */
typedef float dpk_attn_columns_key_fn(uint16_t *dst, const uint16_t *const *rows, int cols);

/* Eight keys (four pairs) of every panel of v from their rows of `cols` channels; a row that is
 * NULL: zeros. */
typedef void dpk_attn_columns_value_fn(uint16_t *dst, size_t v_stride, const uint16_t *const *rows,
                                       int cols);

/* Squared lengths of the 16 queries of a panel. */
typedef void dpk_attn_columns_length_fn(float *out, const uint16_t *q, int pairs);

/* A block of n keys for up to 48 queries. `block`: with p = 2^(scale (q k - m)), rounded to bfloat16
 * (relative error at most 2^-7),
 *     l[i] += sum over keys of p,   o[c][i] += sum over keys of v p
 * scale (q k - m) must be below 127, or not finite; what is below -127 makes p = 0, and so does what
 * is not finite. `top`: m[i] = max(m[i], max over keys of q k), NaN passed over. */
struct dpk_attn_columns {
    const uint16_t *q, *k, *v;
    uint16_t *p;     /* scratch [ceil(n / 8) * 4][panels][16][2] */
    float *m, *l;    /* [panels * 16] */
    float *o;        /* [groups * 8][panels * 16] */
    size_t v_stride; /* pairs */
    int32_t panels;  /* 1 .. 3 */
    int32_t pairs;   /* of channels */
    int32_t groups;  /* of 8 channels */
    int32_t n;       /* keys; what fills the last panel of k must be finite or repeat a key */
    float scale;     /* with log2(e), positive */
};
typedef void dpk_attn_columns_fn(const struct dpk_attn_columns *t);

/* y[i][c] = o[c][i] / l[i] for i < n queries, c < cols; 0 where l[i] is. False if any of these o is
 * not finite. */
typedef bool dpk_attn_columns_finish_fn(uint16_t *y, size_t y_stride,
                                        const struct dpk_attn_columns *t, int n, int cols);

struct dpk_attn_columns_kernels {
    dpk_attn_columns_key_fn *key;
    dpk_attn_columns_value_fn *value;
    dpk_attn_columns_length_fn *length;
    dpk_attn_columns_fn *block, *top;
    dpk_attn_columns_finish_fn *finish;
};

#endif
