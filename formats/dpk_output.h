/* A large file that appears whole or not at all: written under a temporary name in its own folder,
 * synced, renamed. */
#ifndef DPK_OUTPUT_H
#define DPK_OUTPUT_H

#include "dpk_error.h"

#include <stddef.h>
#include <stdint.h>

struct dpk_output;

/* Can `path` be made or replaced? DPK_EIO if it is a folder, a device or a pipe, if there is a
 * file there that neither is nor is named a .dpk file (and is not empty), or if its folder is
 * missing or cannot be written. */
int dpk_output_check(const char *path, dpk_error *err);
/* Make PATH.tmp-XXXXXX of n_bytes, of which the first n_head come at the end; fails at once if the
 * disk has no room for it. */
int dpk_output_create(struct dpk_output **o, const char *path, uint64_t n_bytes, size_t n_head,
                      dpk_error *err);
/* Next bytes after the head. */
int dpk_output_put(struct dpk_output *o, const void *data, size_t n_bytes, dpk_error *err);
/* Write the head, sync, rename. Only then is there a file at `path`. */
int dpk_output_finish(struct dpk_output *o, const void *head, size_t n_head, dpk_error *err);
/* Removes the temporary file, if there still is one. NULL is fine. */
void dpk_output_free(struct dpk_output *o);

#endif
