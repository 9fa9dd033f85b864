/* Writing a file that appears whole under its name or not at all: a temporary name beside it,
 * fsync, rename. What exists and is no regular file (a pipe), or is a name of an open one
 * (/dev/stdout), is written directly.
 * In a header because the programs that write NPY and PNG files share no other object. */
#ifndef DPK_ATOMIC_FILE_H
#define DPK_ATOMIC_FILE_H

#include "dpk.h"
#include "fail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct dpk_atomic_file {
    const char *path; /* borrowed */
    char *temp;       /* NULL: written directly */
    int fd;
};

/* Nobody wants a picture or an array in place of a model: a slip of the command line. */
static inline bool dpk_atomic_is_model(const char *path) {
    char head[8];
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const bool regular = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    const ssize_t got = regular ? read(fd, head, sizeof head) : -1;
    if (fd >= 0) close(fd);
    return got == sizeof head && memcmp(head, DPK_MAGIC, sizeof head) == 0;
}

static inline int dpk_atomic_check(const char *path, dpk_error *err) {
    if (!dpk_atomic_is_model(path)) return DPK_OK;
    return dpk_error_set(err, DPK_EIO, "%s: cannot write: it is a packed model", path);
}

/* The open file that a path is a name of, whatever kind of file that is; -1: of none. */
static inline int dpk_atomic_descriptor(const char *path) {
    static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};
    if (strcmp(path, "/dev/stdout") == 0) return STDOUT_FILENO;
    if (strcmp(path, "/dev/stderr") == 0) return STDERR_FILENO;
    for (int i = 0; i < 2; i++) {
        const size_t n = strlen(folders[i]);
        if (strncmp(path, folders[i], n) != 0) continue;
        const size_t digits = strspn(path + n, "0123456789");
        if (digits > 0 && digits < 7 && path[n + digits] == 0) return atoi(path + n);
    }
    return -1;
}

static inline int dpk_atomic_open(struct dpk_atomic_file *f, const char *path, dpk_error *err) {
    struct stat st;
    f->path = path;
    f->temp = NULL;
    f->fd = -1;
    const int rc = dpk_atomic_check(path, err);
    if (rc != DPK_OK) return rc;
    const int there = dpk_atomic_descriptor(path);
    if (there >= 0 || (stat(path, &st) == 0 && !S_ISREG(st.st_mode))) {
        f->fd = there >= 0 ? fcntl(there, F_DUPFD_CLOEXEC, 0) : open(path, O_WRONLY | O_CLOEXEC);
        if (f->fd >= 0) return DPK_OK;
        return dpk_error_set(err, DPK_EIO, "%s: cannot write: %s", path, strerror(errno));
    }
    /* open and not mkstemp, so that the file's mode is the user's default. */
    for (int i = 0; i < 1000 && f->fd < 0; i++) {
        free(f->temp);
        if (asprintf(&f->temp, "%s.tmp-%ld-%d", path, (long)getpid(), i) < 0) {
            f->temp = NULL;
            return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", path);
        }
        f->fd = open(f->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (f->fd < 0 && errno != EEXIST) break;
    }
    if (f->fd >= 0) return DPK_OK;
    free(f->temp);
    f->temp = NULL;
    return dpk_error_set(err, DPK_EIO, "%s: cannot create: %s", path, strerror(errno));
}

static inline int dpk_atomic_write(struct dpk_atomic_file *f, const void *data, size_t n,
                                   dpk_error *err) {
    while (n > 0) {
        ssize_t w = write(f->fd, data, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0)
            return dpk_error_set(err, DPK_EIO, "%s: cannot write: %s", f->path,
                                 w < 0 ? strerror(errno) : "nothing written");
        data = (const char *)data + w;
        n -= (size_t)w;
    }
    return DPK_OK;
}

/* Give the file its name if rc is DPK_OK, else remove what was written. Returns rc or its own
 * error. */
static inline int dpk_atomic_close(struct dpk_atomic_file *f, int rc, dpk_error *err) {
    if (f->fd < 0) return rc;
    /* A model may have come under that name since. */
    if (rc == DPK_OK && f->temp) rc = dpk_atomic_check(f->path, err);
    if (rc == DPK_OK && f->temp && fsync(f->fd) != 0)
        rc = dpk_error_set(err, DPK_EIO, "%s: cannot write: %s", f->path, strerror(errno));
    if (close(f->fd) != 0 && rc == DPK_OK)
        rc = dpk_error_set(err, DPK_EIO, "%s: cannot write: %s", f->path, strerror(errno));
    if (rc == DPK_OK && f->temp && rename(f->temp, f->path) != 0)
        rc = dpk_error_set(err, DPK_EIO, "%s: cannot create: %s", f->path, strerror(errno));
    if (rc != DPK_OK && f->temp) unlink(f->temp);
    free(f->temp);
    f->temp = NULL;
    f->fd = -1;
    return rc;
}

#endif
