/* A random-access range of bytes: a file, a member of an archive in place, an unpacked member, or
 * memory.
 *
 * Reads go through pread, not a mapping: they cost no private memory, a file cut short while it is
 * being read is an error and not a signal, and several threads may read one stream at once. */
#ifndef DPK_STREAM_H
#define DPK_STREAM_H

#include "dpk_error.h"

#include <stddef.h>
#include <stdint.h>

struct dpk_stream {
    const char *name;   /* for messages; owned */
    const void *memory; /* not NULL: the bytes are here (borrowed), fd is unused */
    int fd;
    int owns_fd;
    uint64_t base;    /* where the range begins in fd */
    uint64_t n_bytes; /* its length */
};

/* Open a regular file as a stream. Errors: DPK_EIO, DPK_ENOMEM. */
int dpk_stream_open(struct dpk_stream *s, const char *path, dpk_error *err);
/* The range [base, base + n_bytes) of fd. owns_fd: close it with the stream (also if this fails).
 * */
int dpk_stream_range(struct dpk_stream *s, const char *name, int fd, int owns_fd, uint64_t base,
                     uint64_t n_bytes, dpk_error *err);
/* Bytes in memory, which must outlive the stream. */
int dpk_stream_memory(struct dpk_stream *s, const char *name, const void *data, size_t n_bytes,
                      dpk_error *err);
void dpk_stream_close(struct dpk_stream *s); /* also of a zeroed struct */

/* Read exactly n bytes at offset. Outside the range: DPK_EFORMAT. Errors: DPK_EIO. */
int dpk_stream_read(const struct dpk_stream *s, uint64_t offset, void *dst, size_t n,
                    dpk_error *err);
/* Read all of it into a new buffer with a NUL after it (free it). Over max_bytes: DPK_EFORMAT. */
int dpk_stream_load(const struct dpk_stream *s, size_t max_bytes, char **data, size_t *n_bytes,
                    dpk_error *err);

#endif
