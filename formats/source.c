#include "source.h"

#include "dpk.h"
#include "fail.h"
#include "source_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct dpk_source {
    int kind; /* enum dpk_source_kind */
    int fd;   /* of the folder, the archive or the file */
    char *path;
    uint64_t n_bytes;            /* of the archive or the file */
    struct dpk_archive *archive; /* kind ARCHIVE */
};

int dpk_names_add(struct dpk_names *list, const char *name, size_t n_bytes, const char *suffix) {
    char *copy;
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 32;
        char **grown = reallocarray(list->names, cap, sizeof *grown);
        if (!grown) return DPK_ENOMEM;
        list->names = grown;
        list->cap = cap;
    }
    copy = malloc(n_bytes + strlen(suffix) + 1);
    if (!copy) return DPK_ENOMEM;
    memcpy(copy, name, n_bytes);
    strcpy(copy + n_bytes, suffix);
    list->names[list->n++] = copy;
    return DPK_OK;
}

void dpk_names_free(struct dpk_names *list) {
    for (size_t i = 0; i < list->n; i++) free(list->names[i]);
    free(list->names);
    memset(list, 0, sizeof *list);
}

/* A relative name that stays inside. */
static int name_is_safe(const char *name) {
    const char *part = name;
    for (;;) {
        size_t n = strcspn(part, "/");
        if (n == 0 || (n == 1 && part[0] == '.') || (n == 2 && part[0] == '.' && part[1] == '.'))
            return 0;
        if (part[n] == '\0') return 1;
        part += n + 1;
    }
}

/* What a file that is neither folder nor archive is: ours if it begins as safetensors does. */
static int is_safetensors(int fd, uint64_t n_bytes) {
    unsigned char head[9];
    uint64_t n = 0;
    if (!dpk_pread_all(fd, head, sizeof head, 0)) return 0;
    for (int i = 0; i < 8; i++) n |= (uint64_t)head[i] << 8 * i;
    return n <= n_bytes - 8 && head[8] == '{';
}

int dpk_is_bare_pickle(const unsigned char *head) {
    return head[0] == 0x80 && head[1] >= 2 && head[1] <= 5 &&
           (head[4] | head[5] | head[6] | head[7]);
}

int dpk_source_open(struct dpk_source **source, const char *path, dpk_error *err) {
    struct dpk_source *s = calloc(1, sizeof *s);
    unsigned char head[8];
    struct stat st;
    int rc = DPK_OK;
    *source = NULL;
    if (!s) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot open: %s", path, strerror(errno));
    s->path = strdup(path);
    if (!s->path) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    if (fstat(s->fd, &st) != 0) DPK_FAIL(err, DPK_EIO, "%s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode)) {
        s->kind = DPK_SOURCE_FOLDER;
    } else if (!S_ISREG(st.st_mode)) {
        DPK_FAIL(err, DPK_EIO, "%s: neither a folder nor a regular file", path);
    } else {
        s->n_bytes = (uint64_t)st.st_size;
        s->kind = is_safetensors(s->fd, s->n_bytes) ? DPK_SOURCE_FILE : DPK_SOURCE_ARCHIVE;
        if (!dpk_pread_all(s->fd, head, sizeof head, 0)) memset(head, 0, sizeof head);
        if (dpk_is_bare_pickle(head)) DPK_FAIL(err, DPK_EUNSUPPORTED, DPK_PICKLE_MESSAGE, path);
        if (memcmp(head, DPK_MAGIC, sizeof head) == 0)
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: is packed already, want the model it came from",
                     path);
        if (s->kind == DPK_SOURCE_ARCHIVE)
            DPK_TRY(dpk_archive_open(&s->archive, path, s->fd, s->n_bytes, err));
    }
    *source = s;
    s = NULL;
done:
    dpk_source_close(s);
    return rc;
}

void dpk_source_close(struct dpk_source *source) {
    if (!source) return;
    dpk_archive_close(source->archive);
    if (source->fd >= 0) close(source->fd);
    free(source->path);
    free(source);
}

int dpk_source_kind(const struct dpk_source *source) { return source->kind; }

const char *dpk_source_path(const struct dpk_source *source) { return source->path; }

int dpk_source_has(const struct dpk_source *source, const char *name) {
    struct stat st;
    if (source->kind == DPK_SOURCE_FILE) return name[0] == '\0';
    if (!name_is_safe(name)) return 0;
    if (source->kind == DPK_SOURCE_ARCHIVE) return dpk_archive_has(source->archive, name);
    return fstatat(source->fd, name, &st, 0) == 0 && S_ISREG(st.st_mode);
}

/* Files and folders directly in a folder of the file system. */
static int list_folder(int dir_fd, const char *folder, struct dpk_names *names) {
    int rc = DPK_OK;
    int fd = openat(dir_fd, folder[0] ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    if (!dir) {
        if (fd >= 0) close(fd);
        return errno == ENOENT || errno == ENOTDIR ? DPK_OK : DPK_EIO;
    }
    errno = 0;
    while ((entry = readdir(dir)) != NULL) {
        struct stat st;
        int is_dir;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        /* A link that leads nowhere is not there. */
        if (fstatat(fd, entry->d_name, &st, 0) != 0) continue;
        is_dir = S_ISDIR(st.st_mode);
        if (!is_dir && !S_ISREG(st.st_mode)) continue;
        DPK_TRY(dpk_names_add(names, entry->d_name, strlen(entry->d_name), is_dir ? "/" : ""));
    }
done:
    closedir(dir);
    return rc;
}

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int dpk_source_list(const struct dpk_source *source, const char *folder, char ***names, size_t *n,
                    dpk_error *err) {
    struct dpk_names list = {0};
    int rc = DPK_OK;
    *names = NULL;
    *n = 0;
    if (source->kind == DPK_SOURCE_FILE) goto done;
    if (folder[0] && !name_is_safe(folder))
        DPK_FAIL(err, DPK_EARG, "%s: \"%s\" is not a name inside", source->path, folder);
    rc = source->kind == DPK_SOURCE_ARCHIVE ? dpk_archive_list(source->archive, folder, &list)
                                            : list_folder(source->fd, folder, &list);
    if (rc != DPK_OK)
        DPK_FAIL(err, rc, "%s/%s: cannot list: %s", source->path, folder,
                 rc == DPK_ENOMEM ? "out of memory" : strerror(errno));
    if (list.n) qsort(list.names, list.n, sizeof *list.names, compare_strings);
    *names = list.names;
    *n = list.n;
    memset(&list, 0, sizeof list);
done:
    dpk_names_free(&list);
    return rc;
}

void dpk_source_list_free(char **names, size_t n) {
    struct dpk_names list = {names, n, n};
    dpk_names_free(&list);
}

/* A file of a folder as a stream that owns its descriptor. */
static int folder_stream(struct dpk_source *source, const char *name, struct dpk_stream *stream,
                         dpk_error *err) {
    struct stat st;
    char *full = NULL;
    int rc = DPK_OK;
    int fd = openat(source->fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        DPK_FAIL(err, errno == ENOENT ? DPK_EFORMAT : DPK_EIO, "%s: cannot open %s: %s",
                 source->path, name, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        DPK_FAIL(err, DPK_EFORMAT, "%s: %s is not a regular file", source->path, name);
    if (asprintf(&full, "%s/%s", source->path, name) < 0) {
        full = NULL;
        DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", source->path);
    }
    rc = dpk_stream_range(stream, full, fd, 1, 0, (uint64_t)st.st_size, err);
    fd = -1;
done:
    if (fd >= 0) close(fd);
    free(full);
    return rc;
}

static int open_stream(struct dpk_source *source, const char *name, uint64_t max_bytes,
                       struct dpk_stream *stream, dpk_error *err) {
    memset(stream, 0, sizeof *stream);
    if (source->kind == DPK_SOURCE_FILE) {
        if (name[0])
            return dpk_error_set(err, DPK_EFORMAT, "%s: one file, it has no %s in it", source->path,
                                 name);
        return dpk_stream_range(stream, source->path, source->fd, 0, 0, source->n_bytes, err);
    }
    if (!name_is_safe(name))
        return dpk_error_set(err, DPK_EARG, "%s: \"%s\" is not a name inside", source->path, name);
    if (source->kind == DPK_SOURCE_ARCHIVE)
        return dpk_archive_stream(source->archive, name, max_bytes, stream, err);
    return folder_stream(source, name, stream, err);
}

int dpk_source_stream(struct dpk_source *source, const char *name, struct dpk_stream *stream,
                      dpk_error *err) {
    return open_stream(source, name, UINT64_MAX, stream, err);
}

int dpk_source_read(struct dpk_source *source, const char *name, size_t max_bytes, char **data,
                    size_t *n_bytes, dpk_error *err) {
    struct dpk_stream stream;
    int rc = DPK_OK;
    *data = NULL;
    DPK_TRY(open_stream(source, name, max_bytes, &stream, err)); /* nothing larger is unpacked */
    DPK_TRY(dpk_stream_load(&stream, max_bytes, data, n_bytes, err));
done:
    dpk_stream_close(&stream);
    return rc;
}

int dpk_source_json(struct dpk_source *source, const char *name, cJSON **json, dpk_error *err) {
    char *text = NULL, *full = NULL;
    size_t n = 0;
    int rc = DPK_OK;
    *json = NULL;
    DPK_TRY(dpk_source_read(source, name, DPK_SOURCE_MAX_JSON, &text, &n, err));
    if (asprintf(&full, "%s/%s", source->path, name) < 0) {
        full = NULL;
        DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", source->path);
    }
    DPK_TRY(dpk_json_parse(json, full, text, n, err));
done:
    free(full);
    free(text);
    return rc;
}
