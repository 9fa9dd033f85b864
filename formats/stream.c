#include "stream.h"

#include "fail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int dpk_stream_range(struct dpk_stream *s, const char *name, int fd, int owns_fd, uint64_t base,
                     uint64_t n_bytes, dpk_error *err) {
    memset(s, 0, sizeof *s);
    s->name = strdup(name);
    if (!s->name || base > INT64_MAX || n_bytes > INT64_MAX - base) {
        int code = s->name ? DPK_EFORMAT : DPK_ENOMEM;
        free((void *)s->name);
        memset(s, 0, sizeof *s);
        if (owns_fd) close(fd);
        return dpk_error_set(err, code, "%s: %s", name,
                             code == DPK_ENOMEM ? "out of memory" : "range over 2^63 bytes");
    }
    s->fd = fd;
    s->owns_fd = owns_fd;
    s->base = base;
    s->n_bytes = n_bytes;
    return DPK_OK;
}

int dpk_stream_open(struct dpk_stream *s, const char *path, dpk_error *err) {
    struct stat st;
    int rc = DPK_OK, fd = -1;
    memset(s, 0, sizeof *s);
    /* O_NONBLOCK: a pipe in the place of a file must not hang the open. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) DPK_FAIL(err, DPK_EIO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) DPK_FAIL(err, DPK_EIO, "%s: not a regular file", path);
    rc = dpk_stream_range(s, path, fd, 1, 0, (uint64_t)st.st_size, err);
    fd = -1;
done:
    if (fd >= 0) close(fd);
    return rc;
}

int dpk_stream_memory(struct dpk_stream *s, const char *name, const void *data, size_t n_bytes,
                      dpk_error *err) {
    int rc = dpk_stream_range(s, name, -1, 0, 0, n_bytes, err);
    /* An empty buffer may be NULL, and NULL says "not memory". */
    if (rc == DPK_OK) s->memory = data ? data : "";
    return rc;
}

void dpk_stream_close(struct dpk_stream *s) {
    if (s->owns_fd) close(s->fd);
    free((void *)s->name);
    memset(s, 0, sizeof *s);
}

int dpk_stream_read(const struct dpk_stream *s, uint64_t offset, void *dst, size_t n,
                    dpk_error *err) {
    int rc = DPK_OK;
    size_t got = 0;
    if (offset > s->n_bytes || n > s->n_bytes - offset)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %zu bytes at %llu, but the file has %llu", s->name, n,
                 (unsigned long long)offset, (unsigned long long)s->n_bytes);
    if (s->memory) {
        if (n) memcpy(dst, (const char *)s->memory + offset, n);
        goto done;
    }
    while (got < n) {
        size_t piece = n - got > INT_MAX / 2 ? INT_MAX / 2 : n - got;
        ssize_t r = pread(s->fd, (char *)dst + got, piece, (off_t)(s->base + offset + got));
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot read: %s", s->name, strerror(errno));
        if (r == 0)
            DPK_FAIL(err, DPK_EIO, "%s: ends at byte %llu of %llu, cut while it was read", s->name,
                     (unsigned long long)(offset + got), (unsigned long long)s->n_bytes);
        got += (size_t)r;
    }
done:
    return rc;
}

int dpk_stream_load(const struct dpk_stream *s, size_t max_bytes, char **data, size_t *n_bytes,
                    dpk_error *err) {
    int rc = DPK_OK;
    char *buffer = NULL;
    size_t n = (size_t)s->n_bytes;
    *data = NULL;
    if (s->n_bytes > max_bytes)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %llu bytes, at most %zu are allowed", s->name,
                 (unsigned long long)s->n_bytes, max_bytes);
    buffer = malloc(n + 1);
    if (!buffer) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory for %zu bytes", s->name, n);
    DPK_TRY(dpk_stream_read(s, 0, buffer, n, err));
    buffer[n] = '\0';
    *data = buffer;
    buffer = NULL;
    if (n_bytes) *n_bytes = n;
done:
    free(buffer);
    return rc;
}
