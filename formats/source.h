/* A model source: a folder in Hugging Face layout, an archive of one, or a single checkpoint file.
 *
 * Names are relative, with '/' between parts: "unet/config.json". Parts may not be empty, "." or
 * "..". A folder's links are followed (the Hugging Face cache is made of links). An archive is a
 * tar, plain or compressed (gzip, zstd, xz, bzip2), or a zip; the model may be at its root or in
 * one top-level folder. Members stored without compression are read where they lie in the archive;
 * others are unpacked once, at first use, into an unlinked temporary file in $TMPDIR (default
 * /tmp). */
#ifndef DPK_SOURCE_H
#define DPK_SOURCE_H

#include "stream.h"

#include <cjson/cJSON.h>

enum dpk_source_kind { DPK_SOURCE_FOLDER, DPK_SOURCE_ARCHIVE, DPK_SOURCE_FILE };
#define DPK_SOURCE_MAX_JSON ((size_t)64 << 20) /* bytes of a JSON file */

struct dpk_source; /* opaque; one thread at a time, but for reads of streams already open */

/* Open a folder, an archive or a .safetensors file. A file of another kind (a pickle, ...) is
 * DPK_EUNSUPPORTED, an archive with names that lead outside or come twice DPK_EFORMAT. */
int dpk_source_open(struct dpk_source **source, const char *path, dpk_error *err);
void dpk_source_close(struct dpk_source *source); /* NULL is harmless */
int dpk_source_kind(const struct dpk_source *source);
const char *dpk_source_path(const struct dpk_source *source); /* as given */

/* 1 if a regular file of that name is there, else 0. */
int dpk_source_has(const struct dpk_source *source, const char *name);
/* Names of the files and folders directly in a folder ("" is the root), sorted bytewise, folders
 * with a final '/'. A folder that is not there is empty. Free with dpk_source_list_free. */
int dpk_source_list(const struct dpk_source *source, const char *folder, char ***names, size_t *n,
                    dpk_error *err);
void dpk_source_list_free(char **names, size_t n);

/* One file as a stream; the source must outlive it. A missing file: DPK_EFORMAT. A single-file
 * source has one file, named "". */
int dpk_source_stream(struct dpk_source *source, const char *name, struct dpk_stream *stream,
                      dpk_error *err);
/* A whole small file in a new buffer with a NUL after it (free it). Over max_bytes: DPK_EFORMAT. */
int dpk_source_read(struct dpk_source *source, const char *name, size_t max_bytes, char **data,
                    size_t *n_bytes, dpk_error *err);
/* A JSON file, checked strictly (RFC 8259, UTF-8, no key twice in an object, no NUL in a string)
 * but for Python's NaN, Infinity and -Infinity, which become STRINGS of that spelling (cJSON cannot
 * hold them; dpk_config_double takes them back). Free with cJSON_Delete. */
int dpk_source_json(struct dpk_source *source, const char *name, cJSON **json, dpk_error *err);
/* The same of text in memory; `name` is for messages. */
int dpk_json_parse(cJSON **json, const char *name, const char *text, size_t n_bytes,
                   dpk_error *err);

#endif
