/* safetensors: a strict parser of the header (huggingface/safetensors, README "Format").
 *
 * 8 bytes little-endian header length, the JSON header, the buffer. What must hold, and is checked:
 * the header is at most 100 MB, begins with '{', is strict JSON in UTF-8 with unique keys and
 * nothing but white space after it; each tensor has exactly dtype, shape and data_offsets; its
 * shape's product times the element's size is its length; the tensors cover the buffer with no hole
 * and no overlap. */
#ifndef DPK_SAFETENSORS_H
#define DPK_SAFETENSORS_H

#include "stream.h"

enum { DPK_ST_MAX_RANK = 8 };
#define DPK_ST_MAX_HEADER UINT64_C(100000000)

enum dpk_st_dtype {
    DPK_ST_BOOL = 1,
    DPK_ST_F4,      /* two to a byte */
    DPK_ST_F6_E2M3, /* four to three bytes */
    DPK_ST_F6_E3M2,
    DPK_ST_U8,
    DPK_ST_I8,
    DPK_ST_F8_E5M2,
    DPK_ST_F8_E4M3,
    DPK_ST_F8_E8M0,
    DPK_ST_F8_E4M3FNUZ,
    DPK_ST_F8_E5M2FNUZ,
    DPK_ST_I16,
    DPK_ST_U16,
    DPK_ST_F16,
    DPK_ST_BF16,
    DPK_ST_I32,
    DPK_ST_U32,
    DPK_ST_F32,
    DPK_ST_C64,
    DPK_ST_F64,
    DPK_ST_I64,
    DPK_ST_U64,
    DPK_ST_N_DTYPES
};
const char *dpk_st_dtype_name(int dtype); /* as in the header: "F32", ...; "?" if unknown */
int dpk_st_dtype_bits(int dtype);         /* of one element; 0 if unknown */

struct dpk_st_tensor {
    const char *name; /* UTF-8 without control characters */
    int dtype;        /* enum dpk_st_dtype */
    int rank;         /* 0 .. DPK_ST_MAX_RANK */
    uint64_t dim[DPK_ST_MAX_RANK];
    uint64_t n_elements;
    uint64_t offset, n_bytes; /* from the beginning of the file */
};
struct dpk_st_pair {
    const char *key, *value;
};
struct dpk_safetensors {
    size_t n_tensors, n_meta;
    struct dpk_st_tensor *tensors; /* in order of offset */
    struct dpk_st_pair *meta;      /* __metadata__, sorted by key (bytewise) */
    uint64_t header_bytes;         /* with the 8 bytes of its length */
    uint64_t hash;                 /* XXH3-64 of those: names, types, shapes, offsets, metadata */
    char *text;                    /* owned: the strings above */
    uint32_t *by_name;             /* owned: indices into tensors, sorted by name */
};

/* Parse the header at the beginning of `in`, which must end with the buffer. On failure *st is
 * empty. Errors: DPK_EFORMAT (rule broken, names the tensor), DPK_EUNSUPPORTED (dtype unknown, rank
 * over 8), DPK_EIO, DPK_ENOMEM. */
int dpk_st_open(struct dpk_safetensors *st, const struct dpk_stream *in, dpk_error *err);
void dpk_st_close(struct dpk_safetensors *st); /* also of a zeroed struct */

const struct dpk_st_tensor *dpk_st_find(const struct dpk_safetensors *st, const char *name);
const char *dpk_st_meta(const struct dpk_safetensors *st, const char *key); /* NULL if absent */

#endif
