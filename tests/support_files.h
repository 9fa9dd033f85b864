/* What the tests of file formats share: a scratch folder, small files, safetensors, archives. Every
 * function fails the running test when it cannot do its work. */
#ifndef DPK_SUPPORT_FILES_H
#define DPK_SUPPORT_FILES_H

#include <stddef.h>
#include <stdint.h>

/* cmocka setup and teardown: *state is the path of an empty folder, removed with all that is in it.
 * */
int scratch_setup(void **state);
int scratch_teardown(void **state);

/* dir/name, kept until the teardown. */
const char *in_dir(const char *dir, const char *name);
/* Write a file, making the folders that its name needs. */
void put_file(const char *path, const void *data, size_t n_bytes);
void put_text(const char *path, const char *text);
/* Read a file; *n_bytes may be NULL. Free it. */
uint8_t *get_file(const char *path, size_t *n_bytes);
/* Write a safetensors file of the header text and data. */
void put_safetensors(const char *path, const char *header, const void *data, size_t n_bytes);

/* Put the folder at src_dir into an archive. format: "tar" (pax), "ustar", "gnutar", "zip"; filter:
 * "none", "gzip", "zstd", "xz", "bzip2"; options: libarchive's, or NULL; prefix: before each name
 * ("model/"). */
void put_archive(const char *path, const char *format, const char *filter, const char *options,
                 const char *src_dir, const char *prefix);
/* One entry more for hostile archives: type AE_IFREG, AE_IFLNK (target) or 0 for a hard link
 * (target). */
struct odd_entry {
    const char *name;
    unsigned type;
    const char *target, *data;
};
void put_odd_archive(const char *path, const char *format, const struct odd_entry *entries,
                     size_t n);

/* Deterministic noise, 0 .. 2^32 - 1 (xorshift). */
uint32_t noise(uint64_t *state);

#endif
