/* Folders of weights: index, shards, variants. Byte 0: the variant asked for (bits 0 and 1), which
 * folder (bit 2); then the files, each "name\n", its contents and a NUL. A name that ends in
 * .safetensors: the contents are the header, the rest of the file is made to fit. */
#include "support_fuzz.h"

#include "../formats/tensors.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILES = 16, MAX_TAR = 2 << 20 };

static void put(struct archive *tar, const char *name, const void *data, size_t n) {
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_size(e, (la_int64_t)n);
    if (archive_write_header(tar, e) == ARCHIVE_OK) archive_write_data(tar, data, n);
    archive_entry_free(e);
}

/* One file of the input, which ends the text at its NUL. */
static void put_file(struct archive *tar, const char *text, size_t n) {
    char name[128];
    size_t length = strcspn(text, "\n");
    if (length == n || length == 0 || length >= sizeof name) return;
    memcpy(name, text, length);
    name[length] = 0;
    text += length + 1, n -= length + 1;
    const char *end = strrchr(name, '.');
    if (end && strcmp(end, ".safetensors") == 0) {
        size_t n_file;
        uint8_t *file = fuzz_safetensors((const uint8_t *)text, n, &n_file);
        put(tar, name, file, n_file);
        free(file);
    } else {
        put(tar, name, text, n);
    }
}

/* A tar of the input's files in `to`; returns how many bytes. */
static size_t make_tar(struct fuzz_bytes in, uint8_t *to) {
    struct archive *tar = archive_write_new();
    size_t used = 0;
    fuzz_require(tar && archive_write_set_format_pax_restricted(tar) == ARCHIVE_OK &&
                     archive_write_open_memory(tar, to, MAX_TAR, &used) == ARCHIVE_OK,
                 "an archive in memory");
    for (int i = 0; in.n && i < MAX_FILES; i++) {
        char *text = strndup((const char *)in.at, in.n);
        fuzz_require(text != NULL, "memory");
        size_t n = strlen(text), taken = n < in.n ? n + 1 : n;
        put_file(tar, text, n);
        in.at += taken, in.n -= taken;
        free(text);
    }
    archive_write_free(tar);
    return used;
}

static void check_tensors(struct dpk_tensors *t) {
    dpk_error err;
    for (size_t i = 0; i < dpk_tensors_count(t); i++) {
        const struct dpk_tensor_info *info = dpk_tensors_get(t, i);
        uint8_t last;
        fuzz_require(dpk_tensors_find(t, info->name) == info, "found by its name");
        fuzz_require(info->file < dpk_tensors_n_files(t) && dpk_tensors_file(t, info->file),
                     "in a file that is there");
        if (info->n_bytes)
            fuzz_require(dpk_tensors_read(t, info, info->n_bytes - 1, &last, 1, &err) == DPK_OK,
                         "read to its end");
        fuzz_require(dpk_tensors_read(t, info, info->n_bytes, &last, 1, &err) != DPK_OK,
                     "and not past it");
    }
    fuzz_require(dpk_tensors_variant(t) != NULL, "a variant, if only none");
    dpk_tensors_meta(t, "format");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const variants[] = {NULL, "fp16", "", "a-variant-with-a-rather-long-name"};
    static uint8_t tar[MAX_TAR];
    struct fuzz_bytes in = {data, n_bytes};
    const unsigned mode = (unsigned)fuzz_take(&in, 1);
    struct dpk_source *source = NULL;
    struct dpk_tensors *tensors = NULL;
    dpk_error err;
    size_t n = make_tar(in, tar);
    int rc = dpk_source_open(&source, fuzz_file(0, tar, n), &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        rc = dpk_tensors_open(&tensors, source, mode & 4 ? "unet" : "", variants[mode & 3], &err);
        fuzz_check_error(rc, &err);
        if (rc == DPK_OK) check_tensors(tensors);
        dpk_tensors_close(tensors);
    }
    dpk_source_close(source);
    return 0;
}
