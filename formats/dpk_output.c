#include "dpk_output.h"

#include "dpk.h"
#include "fail.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 4 << 20,
    WRITEBACK_BYTES = 32 << 20 /* dirty pages are handed to the disk in pieces of this */
};

struct dpk_output {
    int fd;
    char *path, *temp; /* temp: NULL once it is gone */
    uint8_t *buffer;
    size_t n_buffer;
    uint64_t offset; /* where the buffer goes */
    uint64_t written_back;
};

/* The folder that `path` lies in, to be freed. */
static char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

/* Would writing destroy something else, say a tensor file of the model that is read? What is named
 * or begins like a packed file may be replaced, and what is empty. */
static bool is_other_file(const char *path) {
    static const char ending[] = ".dpk";
    const size_t n = strlen(path), e = sizeof ending - 1;
    char head[8];
    if (n > e && strcmp(path + n - e, ending) == 0) return false;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t got = fd >= 0 ? read(fd, head, sizeof head) : -1;
    if (fd >= 0) close(fd);
    return got != 0 && (got != sizeof head || memcmp(head, DPK_MAGIC, sizeof head) != 0);
}

int dpk_output_check(const char *path, dpk_error *err) {
    struct stat st;
    char *folder = NULL;
    int rc = DPK_OK;
    const size_t n = strlen(path);
    if (n == 0 || path[n - 1] == '/')
        DPK_FAIL(err, DPK_EIO, "cannot write '%s': not the name of a file", path);
    const bool exists = stat(path, &st) == 0;
    if (exists && !S_ISREG(st.st_mode))
        DPK_FAIL(err, DPK_EIO, "cannot write %s: it is %s, want a regular file or none", path,
                 S_ISDIR(st.st_mode) ? "a folder" : "a device or a pipe");
    if (exists && is_other_file(path))
        DPK_FAIL(err, DPK_EIO, "cannot write %s: it exists and is no .dpk file", path);
    folder = folder_of(path);
    if (!folder) DPK_FAIL(err, DPK_ENOMEM, "no memory for a path");
    if (stat(folder, &st) != 0)
        DPK_FAIL(err, DPK_EIO, "cannot write %s: folder %s: %s", path, folder, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        DPK_FAIL(err, DPK_EIO, "cannot write %s: %s is not a folder", path, folder);
    if (access(folder, W_OK | X_OK) != 0)
        DPK_FAIL(err, DPK_EIO, "cannot write %s: folder %s: %s", path, folder, strerror(errno));
done:
    free(folder);
    return rc;
}

/* Not mkstemp: the file keeps its permissions when it is renamed, and those are the umask's. */
static int open_temp(struct dpk_output *o, dpk_error *err) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz012345"; /* 32 */
    const size_t n = strlen(o->path) + sizeof ".tmp-XXXXXX";
    char *temp = malloc(n);
    int rc = DPK_OK;
    if (!temp) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a path", o->path);
    for (int attempt = 0; attempt < 100 && o->fd < 0; attempt++) {
        uint8_t random[6];
        if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
            DPK_FAIL(err, DPK_EIO, "%s: no random bytes: %s", o->path, strerror(errno));
        for (size_t i = 0; i < sizeof random; i++) random[i] = (uint8_t)letters[random[i] % 32];
        snprintf(temp, n, "%s.tmp-%.6s", o->path, (const char *)random);
        o->fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (o->fd < 0 && errno != EEXIST) break;
    }
    if (o->fd < 0) DPK_FAIL(err, DPK_EIO, "cannot create %s: %s", temp, strerror(errno));
    o->temp = temp;
    temp = NULL;
done:
    free(temp);
    return rc;
}

int dpk_output_create(struct dpk_output **out, const char *path, uint64_t n_bytes, size_t n_head,
                      dpk_error *err) {
    struct dpk_output *o = NULL;
    int rc = DPK_OK;
    *out = NULL;
    DPK_TRY(dpk_output_check(path, err));
    o = calloc(1, sizeof *o);
    if (!o) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for an output", path);
    o->fd = -1;
    o->path = strdup(path);
    o->buffer = aligned_alloc(4096, BUFFER_BYTES);
    if (!o->path || !o->buffer) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for an output", path);
    o->offset = n_head;
    DPK_TRY(open_temp(o, err));
    /* Not every file system can reserve space; those that can tell now that there is none. */
    if (fallocate(o->fd, 0, 0, (off_t)n_bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS &&
        errno != EINTR)
        DPK_FAIL(err, DPK_EIO, "cannot write %s: no room for %" PRIu64 " bytes: %s", path, n_bytes,
                 strerror(errno));
    *out = o;
    o = NULL;
done:
    dpk_output_free(o);
    return rc;
}

static int write_at(struct dpk_output *o, const uint8_t *p, size_t n, uint64_t offset,
                    dpk_error *err) {
    int rc = DPK_OK;
    while (n > 0) {
        const ssize_t put = pwrite(o->fd, p, n, (off_t)offset);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0)
            DPK_FAIL(err, DPK_EIO, "cannot write %s: %s", o->path,
                     put < 0 ? strerror(errno) : "no progress");
        p += put;
        n -= (size_t)put;
        offset += (uint64_t)put;
    }
done:
    return rc;
}

/* Bytes that follow each other. Starts writing back early, so that the final sync is short. */
static int write_next(struct dpk_output *o, const uint8_t *p, size_t n, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(write_at(o, p, n, o->offset, err));
    o->offset += n;
    if (o->offset - o->written_back >= WRITEBACK_BYTES) {
        /* A hint: an error would show in the sync. */
        (void)sync_file_range(o->fd, (off_t)o->written_back, (off_t)(o->offset - o->written_back),
                              SYNC_FILE_RANGE_WRITE);
        o->written_back = o->offset;
    }
done:
    return rc;
}

static int flush(struct dpk_output *o, dpk_error *err) {
    const int rc = write_next(o, o->buffer, o->n_buffer, err);
    o->n_buffer = 0;
    return rc;
}

int dpk_output_put(struct dpk_output *o, const void *data, size_t n_bytes, dpk_error *err) {
    const uint8_t *p = data;
    int rc = DPK_OK;
    while (n_bytes > 0) {
        if (o->n_buffer == 0 && n_bytes >= BUFFER_BYTES) { /* no need to copy */
            const size_t n = n_bytes / BUFFER_BYTES * BUFFER_BYTES;
            DPK_TRY(write_next(o, p, n, err));
            p += n;
            n_bytes -= n;
            continue;
        }
        const size_t room = BUFFER_BYTES - o->n_buffer, n = n_bytes < room ? n_bytes : room;
        memcpy(o->buffer + o->n_buffer, p, n);
        o->n_buffer += n;
        p += n;
        n_bytes -= n;
        if (o->n_buffer == BUFFER_BYTES) DPK_TRY(flush(o, err));
    }
done:
    return rc;
}

int dpk_output_finish(struct dpk_output *o, const void *head, size_t n_head, dpk_error *err) {
    char *folder = NULL;
    int fd = -1, rc = DPK_OK;
    DPK_TRY(flush(o, err));
    DPK_TRY(write_at(o, head, n_head, 0, err));
    if (fsync(o->fd) != 0)
        DPK_FAIL(err, DPK_EIO, "cannot write %s: sync: %s", o->path, strerror(errno));
    const int closed = close(o->fd);
    o->fd = -1;
    if (closed != 0) DPK_FAIL(err, DPK_EIO, "cannot write %s: close: %s", o->path, strerror(errno));
    if (rename(o->temp, o->path) != 0)
        DPK_FAIL(err, DPK_EIO, "cannot rename %s to %s: %s", o->temp, o->path, strerror(errno));
    free(o->temp);
    o->temp = NULL;
    /* The name itself must last, too; not every file system can sync a folder. */
    folder = folder_of(o->path);
    if (folder) fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) (void)fsync(fd);
done:
    if (fd >= 0) close(fd);
    free(folder);
    return rc;
}

void dpk_output_free(struct dpk_output *o) {
    if (!o) return;
    if (o->fd >= 0) close(o->fd);
    if (o->temp) unlink(o->temp);
    free(o->temp);
    free(o->path);
    free(o->buffer);
    free(o);
}
