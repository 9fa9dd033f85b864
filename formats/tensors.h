/* All the tensors of one component of a model, from however many files they lie in. */
#ifndef DPK_TENSORS_H
#define DPK_TENSORS_H

#include "safetensors.h"
#include "source.h"

struct dpk_tensor_info {
    const char *name;
    int dtype; /* enum dpk_st_dtype */
    int rank;
    uint64_t dim[DPK_ST_MAX_RANK];
    uint64_t n_elements, n_bytes;
    uint32_t file;   /* number of its file */
    uint64_t offset; /* in that file */
    int used;        /* the caller's mark; 0 at first, nothing here changes it */
};

struct dpk_tensors; /* opaque */

/* Open the tensors in a folder of the source ("unet"; "" is the root), in this order of preference,
 * base being diffusion_pytorch_model, then model:
 *     <base>.safetensors                                  or <base>.VARIANT.safetensors
 *     <base>.safetensors.index.json with its shards       or <base>.safetensors.index.VARIANT.json,
 *                                                            <base>.VARIANT.safetensors.index.json
 * variant NULL or "": the files without variant; if there are none and exactly one variant is
 * there, that. A variant that this component does not have: the files without variant, as diffusers
 * does; ask dpk_tensors_variant what was taken. Errors: DPK_EFORMAT naming the missing shard, a key
 * of the index that its shard does not hold, a key in two shards; DPK_EUNSUPPORTED if only pickles
 * are there. */
int dpk_tensors_open(struct dpk_tensors **tensors, struct dpk_source *source, const char *folder,
                     const char *variant, dpk_error *err);
/* Open one .safetensors file by its path in the file system (checkpoints, LoRA). */
int dpk_tensors_open_file(struct dpk_tensors **tensors, const char *path, dpk_error *err);
/* Open one .safetensors file of a source; name "" for a single-file source. */
int dpk_tensors_open_member(struct dpk_tensors **tensors, struct dpk_source *source,
                            const char *name, dpk_error *err);
void dpk_tensors_close(
    struct dpk_tensors *tensors); /* NULL is harmless; before the source's close */

size_t dpk_tensors_count(const struct dpk_tensors *tensors);
/* Tensor i < count, sorted by name (bytewise). */
struct dpk_tensor_info *dpk_tensors_get(struct dpk_tensors *tensors, size_t i);
struct dpk_tensor_info *dpk_tensors_find(struct dpk_tensors *tensors,
                                         const char *name); /* NULL if absent */
/* A value of the files' __metadata__ (the first file that has it), NULL if absent. */
const char *dpk_tensors_meta(const struct dpk_tensors *tensors, const char *key);
const char *dpk_tensors_variant(const struct dpk_tensors *tensors); /* taken; "" for none */
size_t dpk_tensors_n_files(const struct dpk_tensors *tensors);
const char *dpk_tensors_file(const struct dpk_tensors *tensors, size_t file); /* its name */
/* Identifies the content's description: XXH3-64 over the headers' sums in order of file. */
uint64_t dpk_tensors_hash(const struct dpk_tensors *tensors);

/* Bytes [offset, offset + n_bytes) of a tensor as stored. Several threads may read at once. */
int dpk_tensors_read(const struct dpk_tensors *tensors, const struct dpk_tensor_info *info,
                     uint64_t offset, void *dst, size_t n_bytes, dpk_error *err);
/* n elements from `first` on (row-major), as float: F32, F16, BF16, and F64 rounded; other types
 * are DPK_EUNSUPPORTED. Reads in pieces of 64 KiB on the stack. */
int dpk_tensors_read_f32(const struct dpk_tensors *tensors, const struct dpk_tensor_info *info,
                         uint64_t first, size_t n, float *dst, dpk_error *err);
/* "[320, 4, 3, 3]" for messages, into buf (64 bytes hold any sane shape; longer is cut); returns
 * buf. */
const char *dpk_tensor_shape_text(const struct dpk_tensor_info *info, char *buf, size_t buf_bytes);

#endif
