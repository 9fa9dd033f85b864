#include "support_files.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

int scratch_setup(void **state) {
    char template[] = "/tmp/diffpak-test-XXXXXX";
    *state = mkdtemp(template) ? strdup(template) : NULL;
    return *state ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

/* Paths made by in_dir, until the teardown. */
static char **paths;
static size_t n_paths;

int scratch_teardown(void **state) {
    nftw(*state, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(*state);
    for (size_t i = 0; i < n_paths; i++) free(paths[i]);
    free(paths);
    paths = NULL;
    n_paths = 0;
    return 0;
}

const char *in_dir(const char *dir, const char *name) {
    char *path = NULL;
    assert_true(asprintf(&path, "%s/%s", dir, name) > 0);
    paths = reallocarray(paths, n_paths + 1, sizeof *paths);
    assert_non_null(paths);
    return paths[n_paths++] = path;
}

void put_file(const char *path, const void *data, size_t n_bytes) {
    char folder[1024];
    FILE *f;
    snprintf(folder, sizeof folder, "%s", path);
    for (char *p = folder + 1; *p; p++)
        if (*p == '/') {
            *p = '\0';
            mkdir(folder, 0777);
            *p = '/';
        }
    f = fopen(path, "wb");
    assert_non_null(f);
    if (n_bytes) assert_int_equal(fwrite(data, 1, n_bytes, f), n_bytes);
    assert_int_equal(fclose(f), 0);
}

void put_text(const char *path, const char *text) { put_file(path, text, strlen(text)); }

uint8_t *get_file(const char *path, size_t *n_bytes) {
    FILE *f = fopen(path, "rb");
    uint8_t *data;
    long n;
    if (!f) fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    n = ftell(f);
    rewind(f);
    data = malloc((size_t)n + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)n, f), n);
    data[n] = 0;
    fclose(f);
    if (n_bytes) *n_bytes = (size_t)n;
    return data;
}

void put_safetensors(const char *path, const char *header, const void *data, size_t n_bytes) {
    size_t n = strlen(header);
    uint8_t *all = malloc(8 + n + n_bytes);
    assert_non_null(all);
    for (int i = 0; i < 8; i++) all[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(all + 8, header, n);
    if (n_bytes) memcpy(all + 8 + n, data, n_bytes);
    put_file(path, all, 8 + n + n_bytes);
    free(all);
}

static struct archive *archive_begin(const char *path, const char *format, const char *filter,
                                     const char *options) {
    struct archive *a = archive_write_new();
    assert_non_null(a);
    if (strcmp(format, "zip") == 0) archive_write_set_format_zip(a);
    else if (strcmp(format, "ustar") == 0) archive_write_set_format_ustar(a);
    else if (strcmp(format, "gnutar") == 0) archive_write_set_format_gnutar(a);
    else archive_write_set_format_pax(a);
    archive_write_set_bytes_in_last_block(a, 1);
    if (strcmp(filter, "none") != 0)
        assert_int_equal(archive_write_add_filter_by_name(a, filter), ARCHIVE_OK);
    if (options) assert_int_equal(archive_write_set_options(a, options), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    return a;
}

static void archive_end(struct archive *a) {
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
}

static void archive_put(struct archive *a, const char *name, unsigned type, const char *target,
                        const void *data, size_t n) {
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_filetype(e, type ? type : AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_mtime(e, 1700000000, 123456789); /* makes pax write an extended header */
    archive_entry_set_size(e, type == AE_IFREG ? (la_int64_t)n : 0);
    if (type == 0) archive_entry_set_hardlink(e, target);
    if (type == AE_IFLNK) archive_entry_set_symlink(e, target);
    if (archive_write_header(a, e) != ARCHIVE_OK)
        fail_msg("cannot write %s: %s", name, archive_error_string(a));
    if (n && type == AE_IFREG) assert_int_equal(archive_write_data(a, data, n), n);
    archive_entry_free(e);
}

static int not_dots(const struct dirent *d) {
    return strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0;
}

static void archive_folder(struct archive *a, const char *dir, const char *name) {
    struct dirent **list;
    int n = scandir(dir, &list, not_dots, alphasort);
    assert_true(n >= 0);
    for (int i = 0; i < n; i++) {
        char path[1024], inner[1024];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, list[i]->d_name);
        snprintf(inner, sizeof inner, "%s%s", name, list[i]->d_name);
        assert_int_equal(stat(path, &st), 0);
        if (S_ISDIR(st.st_mode)) {
            strncat(inner, "/", sizeof inner - strlen(inner) - 1);
            archive_put(a, inner, AE_IFDIR, NULL, NULL, 0);
            archive_folder(a, path, inner);
        } else {
            size_t n_bytes;
            uint8_t *data = get_file(path, &n_bytes);
            archive_put(a, inner, AE_IFREG, NULL, data, n_bytes);
            free(data);
        }
        free(list[i]);
    }
    free(list);
}

void put_archive(const char *path, const char *format, const char *filter, const char *options,
                 const char *src_dir, const char *prefix) {
    struct archive *a = archive_begin(path, format, filter, options);
    archive_folder(a, src_dir, prefix);
    archive_end(a);
}

void put_odd_archive(const char *path, const char *format, const struct odd_entry *entries,
                     size_t n) {
    struct archive *a = archive_begin(path, format, "none", NULL);
    for (size_t i = 0; i < n; i++)
        archive_put(a, entries[i].name, entries[i].type, entries[i].target, entries[i].data,
                    entries[i].data ? strlen(entries[i].data) : 0);
    archive_end(a);
}

uint32_t noise(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 16);
}
