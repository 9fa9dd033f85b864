/* The CUDA backend in tests: the plugin of an emulated device (libdiffpak-cuda-emu.so beside the
 * test programs, see tests/cuda_emu/emu.h), or with DPK_TEST_CUDA=gpu in the environment the real
 * one. */
#ifndef SUPPORT_CUDA_H
#define SUPPORT_CUDA_H

#include "../kernels/backend.h"

/* Let dpk_plugin_open find the plugin. False: there is none (no C++ compiler built it; said once on
 * stderr). */
bool support_cuda_available(void);

/* A backend whose run() takes operands in host memory, as a CPU's does: it carries them to the
 * device, weights in the way of a model's, and brings the result back. Fails the test if it cannot
 * be made; NULL if there is none. free() as usual. */
struct dpk_backend *support_cuda_open(int act_dtype);

/* A function of the emulation by name (tests/cuda_emu/emu.h); NULL on a real device. */
void *support_cuda_symbol(const char *name);

#endif
