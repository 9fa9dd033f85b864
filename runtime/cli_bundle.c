/* `diffpak bundle`, `unbundle`, and `verify` of a bundle.
 *
 * A bundle is NAME.tar.zst: one folder with a model and what goes with it (licence, quality card,
 * sample pictures), and a last file XXH3SUMS, which `xxhsum -c` reads as well: a line
 * "XXH3_<16 digits>  <file>" for each other file. Members are regular files without folders of
 * their own; times and owners are zero: the same files give the same bytes. */
#define XXH_INLINE_ALL

#include "cli_bundle.h"

#include "../formats/atomic_file.h"
#include "../formats/utf8.h"
#include "../formats/xxhash.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILES = 1000, MAX_NAME = 200, BLOCK = 1 << 20 };
static const char sums_name[] = "XXH3SUMS";

struct member {
    char name[MAX_NAME + 1];
    uint64_t sum;
};
struct bundle {
    const char *path;
    struct member files[MAX_FILES];
    size_t n;
    char *sums;   /* owned: content of XXH3SUMS */
    char *buffer; /* [BLOCK], owned */
    struct dpk_cli_bar bar;
    uint64_t done, total; /* bytes */
};

static int bundle_begin(struct bundle **b, const char *path, bool quiet, dpk_error *err) {
    setlocale(LC_CTYPE, "C.UTF-8"); /* libarchive's notion of names; where there is none: ASCII */
    *b = calloc(1, sizeof **b);
    if (*b) (*b)->buffer = malloc(BLOCK);
    if (!*b || !(*b)->buffer) return dpk_error_set(err, DPK_ENOMEM, "%s: no memory", path);
    (*b)->path = path;
    dpk_cli_bar_start(&(*b)->bar, quiet);
    return DPK_OK;
}

static void bundle_end(struct bundle *b) {
    if (!b) return;
    dpk_cli_bar_end(&b->bar);
    free(b->sums), free(b->buffer), free(b);
}

static void show(struct bundle *b, const char *what, size_t n_bytes) {
    b->done += n_bytes;
    if (b->total && b->done <= b->total)
        dpk_cli_bar_show(&b->bar, what, (double)b->done / (double)b->total);
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* A name that stands for a file in a folder on every system and in the lines of XXH3SUMS. */
static bool good_name(const char *name) {
    size_t n = strlen(name);
    if (n < 1 || n > MAX_NAME || name[0] == '.' || name[0] == '-' || !strcmp(name, sums_name))
        return false;
    for (size_t i = 0, length; i < n; i += length) {
        const unsigned char *c = (const unsigned char *)name + i;
        length = dpk_utf8_length(c, n - i);
        if (!length || dpk_utf8_is_control(c, length) || strchr("/\\:*?\"<>|", *c)) return false;
    }
    return true;
}

static int add_name(struct bundle *b, const char *name, struct member **m, dpk_error *err) {
    if (!good_name(name))
        return dpk_error_set(err, DPK_EFORMAT, "%s: file \"%.200s\": name not allowed", b->path,
                             name);
    for (size_t i = 0; i < b->n; i++)
        if (!strcmp(b->files[i].name, name))
            return dpk_error_set(err, DPK_EFORMAT, "%s: two files %s", b->path, name);
    if (b->n == MAX_FILES)
        return dpk_error_set(err, DPK_EFORMAT, "%s: more than %d files", b->path, MAX_FILES);
    *m = &b->files[b->n++];
    strcpy((*m)->name, name);
    return DPK_OK;
}

/* ---- bundle ------------------------------------------------------------------------------- */

static int archive_failed(const struct bundle *b, struct archive *a, dpk_error *err) {
    const char *why = archive_error_string(a);
    return dpk_error_set(err, DPK_EIO, "%s: %s", b->path, why ? why : "archive error");
}

static int begin_member(const struct bundle *b, struct archive *a, const char *folder,
                        const char *name, uint64_t size, dpk_error *err) {
    struct archive_entry *entry = archive_entry_new();
    char path[2 * MAX_NAME + 2];
    int rc = DPK_OK;
    if (!entry) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory", b->path);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    archive_entry_set_pathname(entry, path);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, (int64_t)size);
    archive_entry_set_mtime(entry, 0, 0);
    if (archive_write_header(a, entry) != ARCHIVE_OK) rc = archive_failed(b, a, err);
done:
    archive_entry_free(entry);
    return rc;
}

static int write_member(struct bundle *b, struct archive *a, const char *folder, const char *path,
                        dpk_error *err) {
    const char *slash = strrchr(path, '/');
    struct member *m;
    struct stat st;
    XXH3_state_t *state = XXH3_createState();
    uint64_t left = 0;
    /* O_NONBLOCK: a pipe is an error, not something to wait for. */
    int rc = DPK_OK, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
        DPK_FAIL(err, DPK_EIO, "%s: cannot open: %s", path,
                 fd < 0 ? strerror(errno) : "not a regular file");
    if (!state) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory", path);
    DPK_TRY(add_name(b, slash ? slash + 1 : path, &m, err));
    DPK_TRY(begin_member(b, a, folder, m->name, (uint64_t)st.st_size, err));
    XXH3_64bits_reset(state);
    for (left = (uint64_t)st.st_size; left;) {
        ssize_t got = read(fd, b->buffer, left < BLOCK ? (size_t)left : BLOCK);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            DPK_FAIL(err, DPK_EIO, "%s: cannot read: %s", path,
                     got ? strerror(errno) : "it became shorter");
        XXH3_64bits_update(state, b->buffer, (size_t)got);
        if (archive_write_data(a, b->buffer, (size_t)got) != got) {
            rc = archive_failed(b, a, err);
            goto done;
        }
        left -= (uint64_t)got;
        show(b, m->name, (size_t)got);
    }
    m->sum = XXH3_64bits_digest(state);
done:
    if (fd >= 0) close(fd);
    XXH3_freeState(state);
    return rc;
}

static int write_sums(struct bundle *b, struct archive *a, const char *folder, dpk_error *err) {
    size_t size = 0;
    FILE *to = open_memstream(&b->sums, &size);
    int rc = DPK_OK;
    for (size_t i = 0; to && i < b->n; i++)
        fprintf(to, "XXH3_%016llx  %s\n", (unsigned long long)b->files[i].sum, b->files[i].name);
    if (!to || fclose(to)) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory", b->path);
    DPK_TRY(begin_member(b, a, folder, sums_name, size, err));
    if (archive_write_data(a, b->sums, size) != (la_ssize_t)size) rc = archive_failed(b, a, err);
done:
    return rc;
}

static int write_bundle(struct bundle *b, struct archive *a, struct dpk_atomic_file *file,
                        const char *model, const struct dpk_cli_list *others, dpk_error *err) {
    const char *slash = strrchr(model, '/'), *name = slash ? slash + 1 : model;
    char folder[MAX_NAME + 1];
    struct stat st, out;
    const bool there = !stat(b->path, &out);
    int rc = DPK_OK;
    if (!ends_with(name, ".dpk") || strlen(name) > MAX_NAME)
        DPK_FAIL(err, DPK_EARG, "%s: want a name that ends in .dpk", model);
    snprintf(folder, sizeof folder, "%.*s", (int)strlen(name) - 4, name);
    for (uint32_t i = 0; i < others->n; i++)
        if (ends_with(others->at[i], ".dpk"))
            DPK_FAIL(err, DPK_EARG, "%s: a second model, want one in a bundle", others->at[i]);
    if (!good_name(folder))
        DPK_FAIL(err, DPK_EARG, "%s: the folder \"%.200s\": name not allowed", model, folder);
    for (uint32_t i = 0; i <= others->n; i++) {
        const char *path = i ? others->at[i - 1] : model;
        if (stat(path, &st)) continue;
        b->total += (uint64_t)st.st_size;
        if (there && st.st_dev == out.st_dev && st.st_ino == out.st_ino)
            DPK_FAIL(err, DPK_EARG, "%s: is to be in the bundle and the bundle", path);
    }
    DPK_TRY(dpk_atomic_open(file, b->path, err));
    if (!a || archive_write_set_format_pax_restricted(a) != ARCHIVE_OK ||
        archive_write_add_filter_zstd(a) != ARCHIVE_OK ||
        archive_write_open_fd(a, file->fd) != ARCHIVE_OK)
        DPK_FAIL(err, DPK_EIO, "%s: %s", b->path, a ? archive_error_string(a) : "no memory");
    DPK_TRY(write_member(b, a, folder, model, err));
    for (uint32_t i = 0; i < others->n; i++)
        DPK_TRY(write_member(b, a, folder, others->at[i], err));
    DPK_TRY(write_sums(b, a, folder, err));
    if (archive_write_close(a) != ARCHIVE_OK) rc = archive_failed(b, a, err);
done:
    return rc;
}

int dpk_cli_bundle(int argc, char **argv) {
    const char *model, *out = NULL;
    const char *const names[] = {"MODEL.dpk"};
    bool quiet = false;
    struct dpk_cli_list others = {0};
    const struct dpk_cli_option options[] = {{"--output", "-o", CLI_TEXT, &out},
                                             {"--quiet", "-q", CLI_FLAG, &quiet}};
    int status = dpk_cli_parse_rest(argc, argv, options, CLI_N(options), names, &model, 1, &others);
    if (!status && !out) status = dpk_cli_usage(argv[0], "-o OUT.tar.zst is missing");
    struct dpk_atomic_file file = {.fd = -1};
    struct bundle *b = NULL;
    dpk_model *opened = NULL;
    dpk_error err = {0};
    if (!status) {
        struct archive *a = archive_write_new();
        int rc = bundle_begin(&b, out, quiet, &err);
        if (!rc) rc = dpk_model_open(&opened, model, &err);
        if (!rc && (rc = dpk_model_verify(opened, NULL, NULL, &err))) {
            const dpk_error why = err;
            dpk_error_set(&err, rc, "%s: %s", model, why.msg);
        }
        if (!rc) rc = write_bundle(b, a, &file, model, &others, &err);
        archive_write_free(a);
        rc = dpk_atomic_close(&file, rc, &err);
        bundle_end(b);
        if (rc) status = dpk_cli_fail(&err);
    }
    dpk_model_free(opened);
    free(others.at);
    return status;
}

/* ---- unbundle, verify --------------------------------------------------------------------- */

/* The name of a member in the folder that all members share; NULL if that is broken. */
static const char *member_name(struct archive_entry *entry, char *folder, size_t size) {
    const char *path = archive_entry_pathname_utf8(entry);
    const char *slash = path ? strchr(path, '/') : NULL;
    if (!slash || slash == path || (size_t)(slash - path) >= size ||
        archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry))
        return NULL;
    if (!folder[0]) snprintf(folder, size, "%.*s", (int)(slash - path), path);
    if (!good_name(folder)) return NULL;
    return !strncmp(folder, path, (size_t)(slash - path)) && !folder[slash - path] ? slash + 1
                                                                                   : NULL;
}

/* The bytes of one member to fd (-1: nowhere), its sum to *sum, or, if text, its bytes to *text. */
static int read_member(struct bundle *b, struct archive *a, int fd, uint64_t *sum, char **text,
                       dpk_error *err) {
    XXH3_state_t *state = XXH3_createState();
    size_t n_text = 0;
    la_ssize_t got = 0;
    int rc = DPK_OK;
    if (!state) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory", b->path);
    XXH3_64bits_reset(state);
    while ((got = archive_read_data(a, b->buffer, BLOCK)) > 0) {
        struct dpk_atomic_file to = {.path = b->path, .fd = fd};
        XXH3_64bits_update(state, b->buffer, (size_t)got);
        if (text) {
            char *grown = n_text < BLOCK ? realloc(*text, n_text + (size_t)got + 1) : NULL;
            if (!grown) DPK_FAIL(err, DPK_EFORMAT, "%s: %s is too large", b->path, sums_name);
            *text = grown;
            memcpy(grown + n_text, b->buffer, (size_t)got);
            grown[n_text += (size_t)got] = 0;
        } else if (fd >= 0) {
            DPK_TRY(dpk_atomic_write(&to, b->buffer, (size_t)got, err));
        }
        b->done = (uint64_t)archive_filter_bytes(a, -1);
        show(b, "unpack", 0);
    }
    if (got < 0) {
        rc = archive_failed(b, a, err);
        goto done;
    }
    if (text && *text && strlen(*text) != n_text)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %s holds a NUL byte", b->path, sums_name);
    *sum = XXH3_64bits_digest(state);
done:
    XXH3_freeState(state);
    return rc;
}

/* Every line of XXH3SUMS is of a file, every file has its line. */
static int compare_sums(const struct bundle *b, dpk_error *err) {
    size_t n = 0;
    for (char *line = b->sums, *end; line && *line; line = end + 1, n++) {
        char want[2 * MAX_NAME];
        end = strchr(line, '\n');
        if (!end) return dpk_error_set(err, DPK_EFORMAT, "%s: %s ends early", b->path, sums_name);
        if (n >= b->n) continue;
        int length = snprintf(want, sizeof want, "XXH3_%016llx  %s",
                              (unsigned long long)b->files[n].sum, b->files[n].name);
        if (length != end - line || memcmp(line, want, (size_t)length))
            return dpk_error_set(err, DPK_EFORMAT,
                                 "%s: file %s has another sum or place, want %.*s", b->path,
                                 b->files[n].name, (int)(end - line), line);
    }
    if (!b->sums || n != b->n)
        return dpk_error_set(err, DPK_EFORMAT, "%s: %zu files, %zu lines of sums", b->path, b->n,
                             n);
    return DPK_OK;
}

/* Where members go: a folder, or for verify the model alone, into a file without a name. */
struct target {
    const char *folder;
    int model;
};

static int take_member(struct bundle *b, struct archive *a, const char *name, struct target *to,
                       dpk_error *err) {
    struct member *m;
    char *path = NULL;
    int fd = -1, rc = DPK_OK;
    DPK_TRY(add_name(b, name, &m, err));
    if (to->folder) {
        if (asprintf(&path, "%s/%s", to->folder, name) < 0) {
            path = NULL;
            DPK_FAIL(err, DPK_ENOMEM, "%s: no memory", b->path);
        }
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot create: %s", path, strerror(errno));
    }
    DPK_TRY(read_member(b, a,
                        to->folder                ? fd
                        : ends_with(name, ".dpk") ? to->model
                                                  : -1,
                        &m->sum, NULL, err));
    if (fd >= 0 && fsync(fd)) DPK_FAIL(err, DPK_EIO, "%s: cannot write: %s", path, strerror(errno));
done:
    if (fd >= 0 && close(fd) && !rc)
        rc = dpk_error_set(err, DPK_EIO, "%s: cannot write: %s", path, strerror(errno));
    free(path);
    return rc;
}

static int read_bundle(struct bundle *b, struct archive *a, struct target *to, dpk_error *err) {
    char folder[MAX_NAME + 1] = "";
    struct archive_entry *entry;
    struct stat st;
    size_t n_models = 0;
    int rc = DPK_OK, got = ARCHIVE_OK;
    if (!stat(b->path, &st)) b->total = (uint64_t)st.st_size;
    if (!a || archive_read_support_format_tar(a) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(a) != ARCHIVE_OK ||
        archive_read_open_filename(a, b->path, BLOCK) != ARCHIVE_OK)
        DPK_FAIL(err, DPK_EIO, "%s: %s", b->path, a ? archive_error_string(a) : "no memory");
    while ((got = archive_read_next_header(a, &entry)) == ARCHIVE_OK) {
        uint64_t sum;
        const char *name = member_name(entry, folder, sizeof folder);
        if (!name || b->sums)
            DPK_FAIL(err, DPK_EFORMAT, "%s: member \"%.200s\": want files in one folder, %s last",
                     b->path, archive_entry_pathname(entry) ? archive_entry_pathname(entry) : "",
                     sums_name);
        if (!strcmp(name, sums_name)) {
            DPK_TRY(read_member(b, a, -1, &sum, &b->sums, err));
            continue;
        }
        n_models += ends_with(name, ".dpk");
        DPK_TRY(take_member(b, a, name, to, err));
    }
    if (got != ARCHIVE_EOF) {
        rc = archive_failed(b, a, err);
        goto done;
    }
    if (n_models != 1) DPK_FAIL(err, DPK_EFORMAT, "%s: %zu models, want one", b->path, n_models);
    DPK_TRY(compare_sums(b, err));
done:
    return rc;
}

static void remove_folder(const char *folder) {
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (e->d_name[0] != '.') unlinkat(dirfd(dir), e->d_name, 0);
    if (dir) closedir(dir);
    rmdir(folder);
}

static int unbundle(const char *path, const char *folder, bool quiet, dpk_error *err) {
    struct bundle *b = NULL;
    struct archive *a = archive_read_new();
    struct target to = {0};
    struct stat st;
    char *temp = NULL;
    int rc = DPK_OK;
    int n_folder = (int)strlen(folder);
    while (n_folder > 1 && folder[n_folder - 1] == '/') n_folder--;
    DPK_TRY(bundle_begin(&b, path, quiet, err));
    if (!lstat(folder, &st)) DPK_FAIL(err, DPK_EIO, "%s: is there already", folder);
    if (!stat(path, &st) && !dpk_cli_is_bundle(path))
        DPK_FAIL(err, DPK_EFORMAT, "%s: not a bundle, which is a .tar.zst", path);
    if (asprintf(&temp, "%.*s.tmp-%ld", n_folder, folder, (long)getpid()) < 0) temp = NULL;
    if (!temp) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory", path);
    if (mkdir(temp, 0777))
        DPK_FAIL(err, DPK_EIO, "%s: cannot make the folder: %s", folder, strerror(errno));
    to.folder = temp;
    DPK_TRY(read_bundle(b, a, &to, err));
    if (rename(temp, folder))
        DPK_FAIL(err, DPK_EIO, "%s: cannot make the folder: %s", folder, strerror(errno));
done:
    if (rc && to.folder) remove_folder(temp);
    free(temp);
    archive_read_free(a);
    bundle_end(b);
    return rc;
}

int dpk_cli_unbundle(int argc, char **argv) {
    const char *path, *out = NULL;
    const char *const names[] = {"BUNDLE.tar.zst"};
    bool quiet = false;
    dpk_error err = {0};
    const struct dpk_cli_option options[] = {{"--output", "-o", CLI_TEXT, &out},
                                             {"--quiet", "-q", CLI_FLAG, &quiet}};
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), names, &path, 1);
    if (parsed) return parsed;
    if (!out) return dpk_cli_usage(argv[0], "-o FOLDER is missing");
    return unbundle(path, out, quiet, &err) ? dpk_cli_fail(&err) : CLI_GOOD;
}

bool dpk_cli_is_bundle(const char *path) {
    char head[4];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool same =
        fd >= 0 && read(fd, head, sizeof head) == sizeof head && !memcmp(head, DPK_BUNDLE_MAGIC, 4);
    if (fd >= 0) close(fd);
    return same;
}

int dpk_cli_bundle_model(const char *path, bool quiet, int *fd, dpk_error *err) {
    const char *folder = getenv("TMPDIR");
    struct bundle *b = NULL;
    struct archive *a = archive_read_new();
    struct target to = {0};
    char *temp = NULL;
    int rc = DPK_OK;
    *fd = -1;
    DPK_TRY(bundle_begin(&b, path, quiet, err));
    if (asprintf(&temp, "%s/diffpak-verify-XXXXXX", folder && *folder ? folder : "/tmp") < 0)
        temp = NULL;
    if (!temp) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory", path);
    *fd = mkostemp(temp, O_CLOEXEC);
    if (*fd < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot create (TMPDIR): %s", temp, strerror(errno));
    unlink(temp);
    to.model = *fd;
    DPK_TRY(read_bundle(b, a, &to, err));
done:
    if (rc && *fd >= 0) close(*fd), *fd = -1;
    free(temp);
    archive_read_free(a);
    bundle_end(b);
    return rc;
}
