/* A tar or zip as a folder: an index made in one pass, then members in place or unpacked on demand.
 *
 * A compressed tar can only be read from front to back, so the pass that makes the index keeps
 * small members (configs, tokenizers) in memory, and the decoder that unpacks the large ones stays
 * open between members: asked for in archive order, they cost one more pass in all. */
#include "source_impl.h"

#include "fail.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    KEEP_MEMBER = 4 << 20, /* bytes of a member that is kept in memory */
    KEEP_TOTAL = 64 << 20,
    MAX_MEMBERS = 1 << 20,
    MAX_NAME = 4096, /* bytes */
    MAX_LINKS = 8,   /* that lead to each other */
    READ_BUFFER = 256 << 10
};

struct member {
    char *name;    /* with the top-level folder */
    char *target;  /* of a link: the full name it leads to, "" if outside; else NULL */
    char *kept;    /* its bytes, if kept in memory */
    int64_t place; /* where its bytes lie in the archive, or -1 */
    int64_t temp;  /* where they lie in the temporary file, or -1 */
    uint64_t size;
    size_t ordinal; /* number of its header in the archive */
};

/* libarchive's view of the archive's descriptor. */
struct input {
    int fd;
    uint64_t at, n_bytes;
    unsigned char buffer[READ_BUFFER];
};

struct dpk_archive {
    char *path;
    struct input input;
    struct member *members; /* sorted by name */
    size_t n, cap;
    char *top; /* "folder/" that holds the model, or "" */
    size_t n_kept;
    int temp_fd; /* -1 until needed */
    uint64_t temp_bytes;
    struct archive *reader; /* the open decoder, or NULL */
    size_t next;            /* number of the header it reads next */
};

/* ---- Reading through libarchive ---------------------------------------------------------------
 * */

static la_ssize_t input_read(struct archive *reader, void *data, const void **buffer) {
    struct input *in = data;
    ssize_t r;
    do r = pread(in->fd, in->buffer, sizeof in->buffer, (off_t)in->at);
    while (r < 0 && errno == EINTR);
    if (r < 0) archive_set_error(reader, errno, "cannot read: %s", strerror(errno));
    else in->at += (uint64_t)r;
    *buffer = in->buffer;
    return r < 0 ? ARCHIVE_FATAL : r;
}

static la_int64_t input_skip(struct archive *reader, void *data, la_int64_t n) {
    struct input *in = data;
    uint64_t left = in->n_bytes - in->at;
    (void)reader;
    if (n < 0) return 0;
    if ((uint64_t)n > left) n = (la_int64_t)left;
    in->at += (uint64_t)n;
    return n;
}

static la_int64_t input_seek(struct archive *reader, void *data, la_int64_t offset, int whence) {
    struct input *in = data;
    int64_t base = whence == SEEK_SET   ? 0
                   : whence == SEEK_CUR ? (int64_t)in->at
                                        : (int64_t)in->n_bytes;
    int64_t to;
    if (__builtin_add_overflow(base, (int64_t)offset, &to) || to < 0 ||
        (uint64_t)to > in->n_bytes) {
        archive_set_error(reader, EINVAL, "seek outside the archive");
        return ARCHIVE_FATAL;
    }
    in->at = (uint64_t)to;
    return to;
}

static void reader_close(struct dpk_archive *a) {
    if (a->reader) archive_read_free(a->reader);
    a->reader = NULL;
}

/* Begin a pass. The filters are named one by one: libarchive's "all" also runs outside programs. */
static int reader_open(struct dpk_archive *a, dpk_error *err) {
    int rc = DPK_OK;
    reader_close(a);
    a->next = 0;
    a->input.at = 0;
    a->reader = archive_read_new();
    if (!a->reader) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", a->path);
    archive_read_support_format_tar(a->reader);
    archive_read_support_format_zip_seekable(a->reader);
    if (archive_read_support_filter_gzip(a->reader) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(a->reader) != ARCHIVE_OK ||
        archive_read_support_filter_xz(a->reader) != ARCHIVE_OK ||
        archive_read_support_filter_bzip2(a->reader) != ARCHIVE_OK)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "libarchive was built without gzip, zstd, xz or bzip2");
    archive_read_set_callback_data(a->reader, &a->input);
    archive_read_set_read_callback(a->reader, input_read);
    archive_read_set_skip_callback(a->reader, input_skip);
    archive_read_set_seek_callback(a->reader, input_seek);
    if (archive_read_open1(a->reader) != ARCHIVE_OK)
        DPK_FAIL(err, DPK_EUNSUPPORTED,
                 "%s: neither a folder nor a safetensors file nor a tar or zip: %s", a->path,
                 archive_error_string(a->reader));
done:
    if (rc != DPK_OK) reader_close(a);
    return rc;
}

/* The next header; *entry is NULL at the end. A warning (a name that the locale cannot show) is
 * none of ours, a damaged header is fatal. */
static int reader_next(struct dpk_archive *a, struct archive_entry **entry, dpk_error *err) {
    int r = archive_read_next_header(a->reader, entry);
    if (r == ARCHIVE_EOF) {
        *entry = NULL;
        return DPK_OK;
    }
    if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
        return dpk_error_set(err, a->next == 0 ? DPK_EUNSUPPORTED : DPK_EFORMAT,
                             "%s: %s (member %zu): %s", a->path,
                             a->next == 0 ? "not a tar or zip archive" : "damaged archive", a->next,
                             archive_error_string(a->reader));
    a->next++;
    return DPK_OK;
}

/* ---- The index --------------------------------------------------------------------------------
 * */

/* `base`'s folder (NULL: the root) joined with path, "." parts dropped and ".." taken back; `up` 0
 * forbids "..". NULL: absolute, leads outside, or empty (errno 0), or no memory (errno ENOMEM). */
static char *normal_name(const char *base, const char *path, int up) {
    const char *slash = base ? strrchr(base, '/') : NULL;
    size_t n = slash ? (size_t)(slash - base) : 0;
    char *out = path[0] == '/' ? NULL : malloc(n + strlen(path) + 2);
    errno = !out && path[0] != '/' ? ENOMEM : 0;
    if (!out) return NULL;
    if (n) memcpy(out, base, n);
    while (*path) {
        size_t part = strcspn(path, "/");
        if (part == 2 && path[0] == '.' && path[1] == '.') {
            if (!up || n == 0) goto outside;
            while (n > 0 && out[n - 1] != '/') n--;
            if (n > 0) n--;
        } else if (part > 0 && !(part == 1 && path[0] == '.')) {
            if (n) out[n++] = '/';
            memcpy(out + n, path, part);
            n += part;
        }
        path += part;
        while (*path == '/') path++;
    }
    out[n] = '\0';
    if (n) return out;
outside:
    free(out);
    errno = 0;
    return NULL;
}

static const char *entry_text(const char *utf8, const char *raw) { return utf8 ? utf8 : raw; }

/* Keep a small member's bytes. */
static int keep_member(struct dpk_archive *a, struct member *m, dpk_error *err) {
    size_t got = 0;
    int rc = DPK_OK;
    m->kept = malloc(m->size ? m->size : 1);
    if (!m->kept) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", a->path);
    while (got < m->size) {
        la_ssize_t r = archive_read_data(a->reader, m->kept + got, m->size - got);
        if (r <= 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: %s: %s", a->path, m->name,
                     r < 0 ? archive_error_string(a->reader) : "ends early");
        got += (size_t)r;
    }
    a->n_kept += m->size;
done:
    return rc;
}

/* Whether the bytes at the place are those that libarchive reads first. */
static int place_holds(struct dpk_archive *a, const struct member *m) {
    unsigned char here[4096];
    const void *block = NULL;
    size_t n = 0;
    la_int64_t at = 0;
    if ((uint64_t)m->place > a->input.n_bytes || m->size > a->input.n_bytes - (uint64_t)m->place)
        return 0;
    if (m->size == 0) return 1;
    if (archive_read_data_block(a->reader, &block, &n, &at) != ARCHIVE_OK || at != 0 || n == 0)
        return 0;
    if (n > sizeof here) n = sizeof here;
    return n <= m->size && dpk_pread_all(a->input.fd, here, n, (uint64_t)m->place) &&
           memcmp(here, block, n) == 0;
}

/* Take the entry whose header was read last into the index. Folders, and names that the archive's
 * character set does not give, are passed over; pipes and devices too. */
static int add_member(struct dpk_archive *a, struct archive_entry *e, const struct dpk_zip *zip,
                      dpk_error *err) {
    const char *raw = archive_entry_pathname(e);
    const char *name = entry_text(archive_entry_pathname_utf8(e), raw);
    const char *hard = entry_text(archive_entry_hardlink_utf8(e), archive_entry_hardlink(e));
    const char *soft = entry_text(archive_entry_symlink_utf8(e), archive_entry_symlink(e));
    int is_tar = (archive_format(a->reader) & ARCHIVE_FORMAT_BASE_MASK) == ARCHIVE_FORMAT_TAR;
    int plain = archive_filter_code(a->reader, 0) == ARCHIVE_FILTER_NONE;
    struct member m = {.place = -1, .temp = -1, .ordinal = a->next - 1};
    int rc = DPK_OK;
    int is_link = hard || (soft && archive_entry_filetype(e) == AE_IFLNK);
    if (!name || (!is_link && archive_entry_filetype(e) != AE_IFREG)) return DPK_OK;
    if (strlen(name) > MAX_NAME || (hard && strlen(hard) > MAX_NAME) ||
        (soft && strlen(soft) > MAX_NAME))
        DPK_FAIL(err, DPK_EFORMAT, "%s: member %.200s...: a name of more than %d bytes", a->path,
                 name, (int)MAX_NAME);
    if (a->n >= MAX_MEMBERS)
        DPK_FAIL(err, DPK_EFORMAT, "%s: more than %d members", a->path, (int)MAX_MEMBERS);
    m.name = normal_name(NULL, name, 0);
    if (!m.name && errno) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", a->path);
    if (!m.name)
        DPK_FAIL(err, DPK_EFORMAT, "%s: member %.200s: its name leads outside the archive", a->path,
                 name);
    if (is_link) {
        m.target = hard ? normal_name(NULL, hard, 0) : normal_name(m.name, soft, 1);
        if (!m.target && !errno) m.target = strdup("");
        if (!m.target) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", a->path);
    } else {
        if (!archive_entry_size_is_set(e) || archive_entry_size(e) < 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: member %s has no size", a->path, m.name);
        m.size = (uint64_t)archive_entry_size(e);
        if (plain && is_tar && archive_entry_sparse_count(e) == 0)
            m.place = dpk_tar_place(a->input.fd, archive_read_header_position(a->reader), m.size);
        else if (plain && !is_tar && raw) m.place = dpk_zip_place(zip, a->input.fd, raw, m.size);
        if (m.place >= 0 && !place_holds(a, &m)) m.place = -1;
        else if (!plain && m.size <= KEEP_MEMBER && a->n_kept + m.size <= KEEP_TOTAL)
            DPK_TRY(keep_member(a, &m, err));
    }
    if (a->n == a->cap) {
        size_t cap = a->cap ? 2 * a->cap : 64;
        struct member *grown = reallocarray(a->members, cap, sizeof *grown);
        if (!grown) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", a->path);
        a->members = grown;
        a->cap = cap;
    }
    a->members[a->n++] = m;
    memset(&m, 0, sizeof m);
done:
    free(m.name);
    free(m.target);
    free(m.kept);
    return rc;
}

static int compare_members(const void *a, const void *b) {
    return strcmp(((const struct member *)a)->name, ((const struct member *)b)->name);
}

static struct member *find_member(const struct dpk_archive *a, const char *full) {
    struct member want = {.name = (char *)full};
    return a->n ? bsearch(&want, a->members, a->n, sizeof want, compare_members) : NULL;
}

/* The member of a name within the model, NULL if absent or no memory. */
static struct member *find_in_model(const struct dpk_archive *a, const char *name) {
    size_t n_top = strlen(a->top), n = strlen(name);
    char *full = malloc(n_top + n + 1);
    struct member *m;
    if (!full) return NULL;
    memcpy(full, a->top, n_top);
    memcpy(full + n_top, name, n + 1);
    m = find_member(a, full);
    free(full);
    return m;
}

/* Decide which folder of the archive is the model's: the root if a config is there, else the only
 * folder with a model_index.json, else the one folder that everything is in. */
static int find_top(struct dpk_archive *a, dpk_error *err) {
    static const char index[] = "/model_index.json";
    const char *with_index = NULL, *only = NULL;
    size_t n_index = 0, n_only = 0, n_with = 0;
    int one = 1;
    a->top = strdup("");
    if (!a->top) return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", a->path);
    if (find_member(a, "model_index.json") || find_member(a, "config.json")) return DPK_OK;
    for (size_t i = 0; i < a->n; i++) {
        const char *name = a->members[i].name;
        size_t part = strcspn(name, "/");
        if (strncmp(name, "__MACOSX/", 9) == 0 || strncmp(name, "._", 2) == 0) continue;
        if (strcmp(name + part, index) == 0) {
            n_index++;
            with_index = name;
            n_with = part;
        }
        if (name[part] == '\0' || (only && (part != n_only || memcmp(only, name, part) != 0)))
            one = 0;
        only = name;
        n_only = part;
    }
    if (n_index == 1) {
        only = with_index;
        n_only = n_with;
    } else if (!one || !only) {
        return DPK_OK;
    }
    free(a->top);
    a->top = strndup(only, n_only + 1); /* with its slash */
    return a->top ? DPK_OK : dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", a->path);
}

int dpk_archive_open(struct dpk_archive **archive, const char *path, int fd, uint64_t n_bytes,
                     dpk_error *err) {
    struct dpk_archive *a = calloc(1, sizeof *a);
    struct dpk_zip *zip = dpk_zip_open(fd, n_bytes);
    struct archive_entry *entry;
    int rc = DPK_OK;
    *archive = NULL;
    if (a) a->temp_fd = -1;
    if (!a || !(a->path = strdup(path))) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    a->input.fd = fd;
    a->input.n_bytes = n_bytes;
    DPK_TRY(reader_open(a, err));
    for (;;) {
        DPK_TRY(reader_next(a, &entry, err));
        if (!entry) break;
        DPK_TRY(add_member(a, entry, zip, err));
    }
    if (a->n) qsort(a->members, a->n, sizeof *a->members, compare_members);
    for (size_t i = 1; i < a->n; i++)
        if (strcmp(a->members[i - 1].name, a->members[i].name) == 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: member %s comes twice", path, a->members[i].name);
    for (size_t i = 0; i < a->n; i++) {
        const char *base = strrchr(a->members[i].name, '/');
        if (strcmp(base ? base + 1 : a->members[i].name, "data.pkl") == 0)
            DPK_FAIL(err, DPK_EUNSUPPORTED, DPK_PICKLE_MESSAGE, path);
    }
    DPK_TRY(find_top(a, err));
    *archive = a;
    a = NULL;
done:
    dpk_zip_close(zip);
    dpk_archive_close(a);
    return rc;
}

void dpk_archive_close(struct dpk_archive *a) {
    if (!a) return;
    reader_close(a);
    for (size_t i = 0; i < a->n; i++) {
        free(a->members[i].name);
        free(a->members[i].target);
        free(a->members[i].kept);
    }
    if (a->temp_fd >= 0) close(a->temp_fd);
    free(a->members);
    free(a->top);
    free(a->path);
    free(a);
}

int dpk_archive_has(const struct dpk_archive *a, const char *name) {
    return find_in_model(a, name) != NULL;
}

int dpk_archive_list(const struct dpk_archive *a, const char *folder, struct dpk_names *names) {
    size_t n_top = strlen(a->top), n_folder = strlen(folder);
    int rc = DPK_OK;
    for (size_t i = 0; i < a->n; i++) {
        const char *name = a->members[i].name;
        size_t part;
        if (strncmp(name, a->top, n_top) != 0) continue;
        name += n_top;
        if (n_folder) {
            if (strncmp(name, folder, n_folder) != 0 || name[n_folder] != '/') continue;
            name += n_folder + 1;
        }
        part = strcspn(name, "/");
        /* Members of one folder lie together in the order of names. */
        if (name[part] && names->n) {
            const char *last = names->names[names->n - 1];
            if (strncmp(last, name, part + 1) == 0 && last[part + 1] == '\0') continue;
        }
        DPK_TRY(dpk_names_add(names, name, part, name[part] ? "/" : ""));
    }
done:
    return rc;
}

/* ---- Members ----------------------------------------------------------------------------------
 * */

static int open_temp(struct dpk_archive *a, dpk_error *err) {
    const char *dir = getenv("TMPDIR");
    char *path = NULL;
    int rc = DPK_OK;
    if (!dir || !dir[0]) dir = "/tmp";
    a->temp_fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (a->temp_fd >= 0) goto done;
    /* Not every file system has unnamed files. */
    if (asprintf(&path, "%s/diffpak-XXXXXX", dir) < 0) {
        path = NULL;
        DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", a->path);
    }
    a->temp_fd = mkostemp(path, O_CLOEXEC);
    if (a->temp_fd < 0)
        DPK_FAIL(err, DPK_EIO, "%s: cannot make a temporary file to unpack to (TMPDIR): %s", dir,
                 strerror(errno));
    unlink(path);
done:
    free(path);
    return rc;
}

static int write_all(struct dpk_archive *a, const void *data, size_t n, uint64_t offset,
                     dpk_error *err) {
    while (n > 0) {
        ssize_t w = pwrite(a->temp_fd, data, n, (off_t)offset);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0)
            return dpk_error_set(err, DPK_EIO,
                                 "%s: cannot unpack to the temporary file (TMPDIR): %s", a->path,
                                 w < 0 ? strerror(errno) : "nothing written");
        data = (const char *)data + w;
        n -= (size_t)w;
        offset += (uint64_t)w;
    }
    return DPK_OK;
}

/* Bring the decoder to the member and copy it behind what the temporary file holds. */
static int unpack(struct dpk_archive *a, struct member *m, dpk_error *err) {
    struct archive_entry *entry;
    uint64_t base = (a->temp_bytes + 4095) / 4096 * 4096;
    int rc = DPK_OK, r;
    if (a->temp_fd < 0) DPK_TRY(open_temp(a, err));
    if (!a->reader || m->ordinal < a->next) DPK_TRY(reader_open(a, err));
    do {
        DPK_TRY(reader_next(a, &entry, err));
        if (!entry) DPK_FAIL(err, DPK_EIO, "%s: changes while it is read", a->path);
    } while (a->next <= m->ordinal);
    for (;;) {
        const void *block;
        size_t n;
        la_int64_t at;
        r = archive_read_data_block(a->reader, &block, &n, &at);
        if (r == ARCHIVE_EOF) break;
        if (r != ARCHIVE_OK)
            DPK_FAIL(err, DPK_EFORMAT, "%s: %s: %s", a->path, m->name,
                     archive_error_string(a->reader));
        if (at < 0 || (uint64_t)at > m->size || n > m->size - (uint64_t)at)
            DPK_FAIL(err, DPK_EFORMAT, "%s: %s: more than its %llu bytes", a->path, m->name,
                     (unsigned long long)m->size);
        DPK_TRY(write_all(a, block, n, base + (uint64_t)at, err));
        /* What a sparse member leaves out at its end is zero. */
        if (base + (uint64_t)at + n > a->temp_bytes) a->temp_bytes = base + (uint64_t)at + n;
    }
    if (ftruncate(a->temp_fd, (off_t)(base + m->size)) != 0)
        DPK_FAIL(err, DPK_EIO, "%s: cannot unpack to the temporary file: %s", a->path,
                 strerror(errno));
    a->temp_bytes = base + m->size;
    m->temp = (int64_t)base;
done:
    /* After a failure the decoder stands anywhere. */
    if (rc != DPK_OK) reader_close(a);
    return rc;
}

int dpk_archive_stream(struct dpk_archive *a, const char *name, uint64_t max_bytes,
                       struct dpk_stream *stream, dpk_error *err) {
    struct member *m = find_in_model(a, name);
    char *full = NULL;
    int rc = DPK_OK;
    if (!m) DPK_FAIL(err, DPK_EFORMAT, "%s: has no %s", a->path, name);
    for (int i = 0; m->target; i++) {
        struct member *to = i < MAX_LINKS ? find_member(a, m->target) : NULL;
        if (!to)
            DPK_FAIL(err, DPK_EFORMAT, "%s: %s is a link to %s", a->path, m->name,
                     i >= MAX_LINKS ? "itself"
                     : m->target[0] ? m->target
                                    : "a place outside the archive");
        m = to;
    }
    if (m->size > max_bytes)
        DPK_FAIL(err, DPK_EFORMAT, "%s/%s: %llu bytes, at most %llu are allowed", a->path, name,
                 (unsigned long long)m->size, (unsigned long long)max_bytes);
    if (asprintf(&full, "%s/%s", a->path, name) < 0) {
        full = NULL;
        DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", a->path);
    }
    if (m->kept) {
        rc = dpk_stream_memory(stream, full, m->kept, m->size, err);
    } else if (m->place >= 0) {
        rc = dpk_stream_range(stream, full, a->input.fd, 0, (uint64_t)m->place, m->size, err);
    } else {
        if (m->temp < 0) DPK_TRY(unpack(a, m, err));
        rc = dpk_stream_range(stream, full, a->temp_fd, 0, (uint64_t)m->temp, m->size, err);
    }
done:
    free(full);
    return rc;
}
