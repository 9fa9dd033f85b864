/* The .dpk container: records as they stand in the file (FORMAT.md is the specification), the
 * strict reader and the writer. Little-endian hosts only: records are used as they are read. */
#ifndef DPK_DPK_H
#define DPK_DPK_H

#include "ops.h"

#include <stddef.h>
#include <stdint.h>

#define DPK_MAGIC                                                                                  \
    "\x89"                                                                                         \
    "DPK\r\n\x1a\n" /* 8 bytes */
#define DPK_BUNDLE_MAGIC "\x28\xb5\x2f\xfd" /* 4 bytes: zstd's (RFC 8878, 3.1.1) */
enum {
    DPK_VERSION = 1,
    DPK_ALIGN = 64,           /* of sections and tensors */
    DPK_WEIGHTS_ALIGN = 4096, /* of the weights section */
    DPK_MAX_NAME = 511        /* bytes of a name: of anything but a metadata value and a source */
};
enum { DPK_MAX_BOUNDARY = 4096 };         /* inputs, and outputs, of a program */
#define DPK_MAX_FRONT ((uint64_t)1 << 30) /* bytes before the weights section */

/* Sections, in file order, each present exactly once, the padding between them zero. */
enum dpk_section_id {
    /* NUL-terminated UTF-8, one after the other; the first is "", no other is empty; every string
     * offset below is the offset of a string's first byte in this section. */
    DPK_SECTION_STRINGS = 1,
    DPK_SECTION_METADATA = 2,   /* struct dpk_pair[], sorted by key (bytewise), keys unique */
    DPK_SECTION_TOKENIZERS = 3, /* struct dpk_blob_entry[], then the blobs */
    DPK_SECTION_PROGRAMS = 4,   /* struct dpk_program_entry[], then values and operators */
    DPK_SECTION_TENSORS = 5,    /* struct dpk_tensor_record[] */
    DPK_SECTION_WEIGHTS = 6,    /* the tensors' bytes in table order, each aligned, gaps zero */
    DPK_N_SECTIONS = 6
};

struct dpk_header { /* 64 bytes */
    uint8_t magic[8];
    uint32_t version;
    uint32_t n_sections;
    uint64_t file_bytes;
    uint64_t hash; /* XXH3-64 of header and section table, with this field as zero */
    uint64_t zero[4];
};
struct dpk_section { /* 32 bytes, n_sections of them after the header */
    uint32_t id;
    uint32_t count; /* records in it: pairs, tokenizers, programs, tensors; strings; weights: 0 */
    uint64_t offset, bytes;
    uint64_t hash; /* XXH3-64 of its bytes; of the weights: XXH3-64 of the tensors' own hashes in
                    * table order (8 bytes each) */
};
struct dpk_pair {
    uint32_t key, value;
};
struct dpk_blob_entry {     /* 32 bytes */
    uint32_t name;          /* "tokenizer", "tokenizer_2" */
    uint32_t kind;          /* enum dpk_tokenizer_kind of tokenizer_blob.h */
    uint64_t offset, bytes; /* within the section; aligned, in order, no gaps but zero padding */
    uint64_t zero;
};
struct dpk_program_entry { /* 32 bytes */
    uint32_t name;         /* "text", "setup", "step", "decode", "encode" */
    uint32_t n_inputs, n_ops;
    uint32_t n_outputs; /* values marked DPK_VALUE_OUTPUT */
    uint64_t offset;    /* within the section, aligned: n_inputs + n_ops value records, padding to
                         * DPK_ALIGN, then n_ops dpk_op */
    uint64_t bytes;
};
enum { DPK_VALUE_OUTPUT = 1 };
/* Value v < n_inputs is an input; value n_inputs + i is what operator i makes. */
struct dpk_value {             /* 32 bytes */
    uint32_t name;             /* inputs and outputs: the name, unique in the program; others "" */
    uint8_t type;              /* enum dpk_value_type: ACT, F32, I32 */
    uint8_t rank;              /* inputs: 1..4, others 0 */
    uint16_t flags;            /* DPK_VALUE_OUTPUT, only where an operator makes the value */
    int32_t dim[DPK_MAX_RANK]; /* inputs: a fixed size, or 0 for any; others 0 */
    uint32_t zero[2];
};
enum dpk_tensor_flags {
    /* A 1x1 convolution in the source (rank 2, panels). For filters: computes as any linear. */
    DPK_TENSOR_CONV1X1 = 1,
    /* s8: rows of the operator's input are quantized to int8 as well, when it runs: per row
     * s = max(|x|max, 1e-5) / 127, q = clamp(round(x / s), -127, 127). A row is what a row of the
     * weight is multiplied with: of a concatenation both parts, of a convolution all taps of an
     * output pixel, zeros in the padding. Without it the weights are widened and the product is one
     * of floats. */
    DPK_TENSOR_DYNAMIC = 2,
    /* With DYNAMIC, the other rule: s = max(|x|max / 127.5, 2^-23), the quotient rounded to x's
     * type, q = clamp(round(x * (1 / s)), -128, 127). */
    DPK_TENSOR_TORCHAO = 4,
};
struct dpk_tensor_record { /* 128 bytes */
    uint32_t name;         /* unique; as "unet.mid_block.attentions.0.norm.weight" */
    uint32_t source;       /* names of the source tensors, in row order, one space between */
    uint32_t dtype, layout, rank;
    int32_t dim[DPK_MAX_RANK]; /* logical shape, see ops.h */
    /* Companions are indexed by logical row, whatever the order of rows in the panels. */
    uint32_t scale;  /* s8: tensor of float32 [N]; s4: of float32 [N, K/group]; else DPK_NONE */
    uint32_t colsum; /* s8: tensor of the int32 row sums of the weights [N]; else DPK_NONE */
    uint32_t group;  /* s4: channels per scale, a multiple of 8 that divides them; else 0 */
    uint64_t offset, bytes; /* offset within the weights section */
    uint64_t hash;          /* XXH3-64 of its bytes */
    uint32_t flags;         /* enum dpk_tensor_flags */
    uint32_t zero[13];
};

/* ---- Reading ------------------------------------------------------------------------------- */

struct dpk_program {
    const char *name;
    uint32_t n_inputs, n_ops, n_outputs;
    const struct dpk_value *values; /* [n_inputs + n_ops] */
    const struct dpk_op *ops;       /* [n_ops] */
};

/* An open file. Everything but the weights is a private copy, checked once; the weights are mapped
 * read-only. (Whoever cuts the file short while it is mapped gets the process a SIGBUS, as with any
 * mapping; writing a new file and renaming it, as the writer does, is safe.) */
struct dpk_file {
    int fd;
    uint64_t file_bytes;
    uint8_t *front; /* owned: the file up to the weights section */
    const struct dpk_section *sections;
    const char *strings;
    uint32_t n_pairs, n_tokenizers, n_programs, n_tensors;
    const struct dpk_pair *pairs;
    const struct dpk_blob_entry *tokenizers;
    struct dpk_program *programs; /* owned */
    const struct dpk_tensor_record *tensors;
    const uint8_t *weights; /* mapped, NULL if empty; tensor i is at weights + tensors[i].offset */
    uint64_t weights_bytes;
    void *map; /* what weights lies in: pages of the file, or of memory with DPK_OPEN_IN_MEMORY */
    size_t map_bytes;
    unsigned flags;          /* enum dpk_open_flags */
    struct dpk_guard *guard; /* NULL without DPK_OPEN_GUARDED */
};

enum dpk_open_flags {
    DPK_OPEN_IN_MEMORY = 1, /* read the weights into memory instead of mapping them */
    DPK_OPEN_GUARDED = 2,   /* a file cut short while mapped is an error, not SIGBUS: map_guard.h */
};

/* Open and check everything except the bytes of the weights: every offset, count, size, index,
 * string, reserved field, every operator against ops.def (operands present, earlier, of the right
 * type; weights of the right layout, rank and size; attributes in range). Shapes that depend on
 * inputs are checked when a plan is made. *f is zeroed on failure.
 * Errors: DPK_EIO, DPK_ENOMEM, DPK_EFORMAT. */
int dpk_file_open(struct dpk_file *f, const char *path, dpk_error *err);
/* The same with flags, enum dpk_open_flags. */
int dpk_file_open_with(struct dpk_file *f, const char *path, unsigned flags, dpk_error *err);
/* Of a guarded file: DPK_EIO if pages of it were missing when they were used. */
int dpk_file_check_whole(const struct dpk_file *f, dpk_error *err);
void dpk_file_close(struct dpk_file *f); /* also of a zeroed struct */

/* Compare every tensor with its sum and every gap with zero, reading through the descriptor (not
 * the mapping). progress may be NULL; non-zero from it stops the check.
 * Errors: DPK_EFORMAT, DPK_EIO, DPK_ENOMEM, DPK_ECANCELLED. */
int dpk_file_verify(const struct dpk_file *f,
                    int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                    dpk_error *err);

const char *dpk_file_meta(const struct dpk_file *f, const char *key); /* NULL if absent */
/* NULL if absent */
const struct dpk_program *dpk_file_program(const struct dpk_file *f, const char *name);
static inline const char *dpk_file_string(const struct dpk_file *f, uint32_t offset) {
    return f->strings + offset;
}
/* tokenizer < n_tokenizers; the bytes are aligned to DPK_ALIGN and live as long as the file. */
const void *dpk_file_blob(const struct dpk_file *f, uint32_t tokenizer, size_t *n_bytes);
struct dpk_shape dpk_tensor_shape(const struct dpk_tensor_record *t);
uint64_t dpk_file_sum(const struct dpk_file *f); /* identifies the content: the header's hash */

/* ---- Writing ------------------------------------------------------------------------------- */

/* Usage: create; add strings, pairs, tokenizers, tensors, programs in any order (tensors get
 * numbers 0, 1, ...); then begin, which fixes the layout, checks it with the reader's rules and
 * makes OUT.tmp-XXXXXX; then put every tensor's bytes in table order; then finish, which writes the
 * front, syncs and renames. Free without finish removes the temporary file. Output depends on the
 * calls alone. */
struct dpk_writer;
/* DPK_EIO if path is a folder, a device or in a folder that cannot be written. NULL: nothing is to
 * be written, for dpk_writer_view. */
int dpk_writer_create(struct dpk_writer **w, const char *path, dpk_error *err);
void dpk_writer_free(struct dpk_writer *w); /* NULL is fine */
int dpk_writer_pair(struct dpk_writer *w, const char *key, const char *value, dpk_error *err);
int dpk_writer_blob(struct dpk_writer *w, const char *name, uint32_t kind, const void *data,
                    size_t n_bytes, dpk_error *err);
/* Declare a tensor of dpk_weight_bytes(dtype, layout, shape) bytes. *index gets its number. */
struct dpk_tensor_spec {
    const char *name, *source;
    int dtype, layout;
    struct dpk_shape shape;
    uint32_t scale, colsum, group; /* DPK_NONE, DPK_NONE, 0 unless quantized */
    uint32_t flags;                /* enum dpk_tensor_flags */
};
int dpk_writer_tensor(struct dpk_writer *w, const struct dpk_tensor_spec *spec, uint32_t *index,
                      dpk_error *err);
/* values: [n_inputs + n_ops], ops: [n_ops]; names in them are offsets from dpk_writer_string.
 * Copied. */
int dpk_writer_program(struct dpk_writer *w, const char *name, const struct dpk_value *values,
                       uint32_t n_inputs, const struct dpk_op *ops, uint32_t n_ops, dpk_error *err);
/* The same string gets the same offset. */
int dpk_writer_string(struct dpk_writer *w, const char *s, uint32_t *offset, dpk_error *err);
int dpk_writer_begin(struct dpk_writer *w, dpk_error *err);
/* Instead of begin: everything but the weights as an open file, of which nothing is written (weights
 * is NULL). Close it; the writer can only be freed. */
int dpk_writer_view(struct dpk_writer *w, struct dpk_file *f, dpk_error *err);
/* Next bytes of tensor `index`; tensors in order, a tensor in as many pieces as one likes. */
int dpk_writer_put(struct dpk_writer *w, uint32_t index, const void *data, size_t n_bytes,
                   dpk_error *err);
int dpk_writer_finish(struct dpk_writer *w, dpk_error *err);

#endif
