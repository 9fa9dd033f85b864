/* Backends in libraries of their own, opened when they are asked for. */
#ifndef DPK_PLUGIN_H
#define DPK_PLUGIN_H

#include "../kernels/backend.h"

/* The backend "cuda" of libdiffpak-cuda.so: the file that DPK_CUDA_PLUGIN in the environment names,
 * or else the one beside this library or program, or in ../lib from there, or where the system
 * looks for libraries. act_dtype as in dpk_cpu_create.
 * Errors: DPK_EUNSUPPORTED (no such library, it cannot be loaded, or is of another version),
 * and what its create() says: DPK_EBACKEND without device or driver. */
int dpk_plugin_open(struct dpk_backend **be, int act_dtype, dpk_error *err);

#endif
