/* Goldens of the parity tests: arrays from safetensors files, models converted on the way. */
#ifndef SUPPORT_GOLDEN_H
#define SUPPORT_GOLDEN_H

#include "../formats/tensors.h"
#include "../runtime/diffpak.h"

/* $BUILD/NAME (BUILD defaults to "build"), in a static buffer that the next call overwrites. */
const char *golden_build_path(const char *name);

/* Run the shell command; its standard error stays visible. Returns the exit status. */
int golden_shell(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Convert SOURCE to $BUILD/tests/NAME.dpk with these options and open it. Fails the test if it
 * cannot. */
dpk_model *golden_model(const char *name, const char *source, const char *options);

/* One array of a golden file, or part `index` of its first axis (-1: all; the axis is dropped).
 * Four-dimensional images and maps come in NCHW and are turned to NHWC if nhwc. Integers come as
 * int32 if they are ids ("ids" or "mask" in the name), else as float. data is malloc'ed. */
dpk_array golden_array(struct dpk_tensors *golden, const char *name, int index, int nhwc);
/* The n numbers of the tensor `name` + `suffix` as they lie, malloc'ed; NULL if there is none. */
float *golden_floats(struct dpk_tensors *golden, const char *name, const char *suffix, size_t *n);
void golden_free(dpk_array *a);

int golden_has(struct dpk_tensors *golden, const char *name);

/* |got - want| / |want| over all elements; infinite if a value is not finite. */
double golden_relative(const float *got, const float *want, size_t n);
size_t golden_count(const dpk_array *a);

#endif
