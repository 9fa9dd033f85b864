/* Inside the source: what source.c and the archive reader share. */
#ifndef DPK_SOURCE_IMPL_H
#define DPK_SOURCE_IMPL_H

#include "stream.h"

/* The message for PyTorch's own files, which only Python can read; its one argument is the path. */
#define DPK_PICKLE_MESSAGE                                                                         \
    "%.120s: a PyTorch pickle, want safetensors; convert it with: python3 -c \"import sys,torch; " \
    "from safetensors.torch import save_file; s=torch.load(sys.argv[1],'cpu',weights_only=True); " \
    "save_file({k:v.clone().contiguous() for k,v in s.get('state_dict',s).items() "                \
    "if hasattr(v,'clone')},sys.argv[2])\" IN.bin OUT.safetensors"

/* Whether a file's first 8 bytes are those of a pickle without the zip that newer PyTorch puts
 * around it: protocol 2 to 5, and too large for the length that a safetensors file begins with. */
int dpk_is_bare_pickle(const unsigned char *head);

/* A growing list of strings. */
struct dpk_names {
    char **names;
    size_t n, cap;
};
int dpk_names_add(struct dpk_names *list, const char *name, size_t n_bytes, const char *suffix);
void dpk_names_free(struct dpk_names *list);

/* An archive's index (source_archive.c). fd is borrowed and must outlive it. */
struct dpk_archive;
int dpk_archive_open(struct dpk_archive **archive, const char *path, int fd, uint64_t n_bytes,
                     dpk_error *err);
void dpk_archive_close(struct dpk_archive *archive);
int dpk_archive_has(const struct dpk_archive *archive, const char *name);
int dpk_archive_list(const struct dpk_archive *archive, const char *folder,
                     struct dpk_names *names);
/* max_bytes: an error for a larger one, before it is unpacked. */
int dpk_archive_stream(struct dpk_archive *archive, const char *name, uint64_t max_bytes,
                       struct dpk_stream *stream, dpk_error *err);

/* Where an archive's stored members lie (source_place.c). -1: not stored as it is, or not sure. */
int64_t dpk_tar_place(int fd, int64_t header, uint64_t size);
struct dpk_zip; /* the central directory's entries that are stored */
/* NULL if it cannot be understood: members are then unpacked. */
struct dpk_zip *dpk_zip_open(int fd, uint64_t n_bytes);
void dpk_zip_close(struct dpk_zip *zip);
int64_t dpk_zip_place(const struct dpk_zip *zip, int fd, const char *name, uint64_t size);
/* pread of exactly n bytes; 0 if they are not there. */
int dpk_pread_all(int fd, void *dst, size_t n, uint64_t offset);

#endif
