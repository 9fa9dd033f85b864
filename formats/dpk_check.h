/* Rules of the container, on memory: shared by the reader, which checks what it has read, and by
 * the writer, which checks what it is about to write. Every message names the file, the place, what
 * was found and what was wanted. */
#ifndef DPK_CHECK_H
#define DPK_CHECK_H

#include "dpk.h"

enum { DPK_TABLE_BYTES = 64 + 32 * DPK_N_SECTIONS }; /* header and section table */

static inline uint64_t dpk_round_up(uint64_t n, uint64_t align) { /* n < 2^64 - align */
    return (n + align - 1) / align * align;
}

/* XXH3-64 of the header and section table, with the field of the sum as zero. */
uint64_t dpk_table_sum(const uint8_t table[DPK_TABLE_BYTES]);
uint64_t dpk_bytes_sum(const void *data, size_t n_bytes);
/* XXH3-64 of the tensors' sums in table order. */
uint64_t dpk_tensors_sum(const struct dpk_tensor_record *tensors, uint32_t n);

/* Header and section table: after it, the offsets and sizes of the sections are those of a file of
 * file_bytes bytes, one after the other. */
int dpk_check_table(const uint8_t table[DPK_TABLE_BYTES], uint64_t file_bytes, const char *path,
                    dpk_error *err);

/* Everything else before the weights. f->front (aligned to DPK_ALIGN, all of the file up to the
 * weights) and f->file_bytes are set, the table was checked. Fills sections .. tensors of f and
 * allocates f->programs, also on failure the caller's to free. */
int dpk_check_front(struct dpk_file *f, const char *path, dpk_error *err);

/* ---- Between dpk_check.c and dpk_check_program.c ---- */

struct dpk_check {
    struct dpk_file *f;
    const char *path;
    dpk_error *err;
};
int dpk_check_programs(const struct dpk_check *c);
/* Is `offset` that of a string's first byte? */
bool dpk_check_is_string(const struct dpk_check *c, uint32_t offset);
/* `offset` is a string, not empty, of at most DPK_MAX_NAME bytes without control characters. */
int dpk_check_name(const struct dpk_check *c, uint32_t offset, const char *what, uint32_t index);
/* No two of the names are equal. Sorts `names`. */
int dpk_check_unique(const struct dpk_check *c, const char **names, size_t n, const char *what);
bool dpk_check_all_zero(const void *p, size_t n_bytes);

#endif
