/* Small safetensors files made by tests, all float32. */
#ifndef SUPPORT_TENSORS_H
#define SUPPORT_TENSORS_H

#include <stddef.h>
#include <stdint.h>

struct tensor_file;
struct tensor_file *tensor_file_new(void);
/* The values of a tensor of these dimensions, zero at first. One of that name that is there is
 * returned. They stay where they are until the file is written. */
float *tensor_file_add(struct tensor_file *f, const char *name, int rank, const uint64_t *dim);
#define TENSOR_FILE_ADD(f, name, ...)                                                              \
    tensor_file_add(f, name, (int)(sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t)),          \
                    (uint64_t[]){__VA_ARGS__})
/* The same, filled with noise of -1 to 1. */
float *tensor_file_noise(struct tensor_file *f, const char *name, int rank, const uint64_t *dim,
                         uint64_t *seed);
#define TENSOR_FILE_NOISE(f, seed, name, ...)                                                      \
    tensor_file_noise(f, name, (int)(sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t)),        \
                      (uint64_t[]){__VA_ARGS__}, seed)
/* One entry of __metadata__; value is JSON text of a string's inside. */
void tensor_file_meta(struct tensor_file *f, const char *key, const char *value);
void tensor_file_write(struct tensor_file *f, const char *path); /* and free it */

#endif
