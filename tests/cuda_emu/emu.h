/* Inside of the emulation: a GPU that runs CUDA sources compiled as C++.
 *
 * Threads of a block are fibers that run in a shuffled order, blocks run one after another in a
 * shuffled order, shared memory is NaN when a block begins, device memory is NaN when it is
 * allocated and out of the host's reach but for copies and kernels. A stream runs nothing until
 * somebody waits for it: a host that does not wait, or changes pinned memory too early, is found
 * out. Everything that a real device counts as an error of the program (barriers that not all
 * threads reach, shared memory beyond the limit, a call that cannot be captured) ends in a message
 * and abort(), or in the error code that CUDA gives.
 *
 * Kernels declare shared memory with DPK_SHARED and DPK_SHARED_DYNAMIC of device.cuh. */
#ifndef DPK_EMU_H
#define DPK_EMU_H

#include "emu_log.h"

#include <functional>
#include <stdint.h>

#define DPK_CUDA_EMU 1

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
    unsigned x, y, z;
};

/* What a thread knows of itself. */
struct dpk_emu_thread {
    uint3 thread_idx, block_idx;
    dim3 block_dim, grid_dim;
    unsigned linear; /* number in its block */
};
extern dpk_emu_thread *dpk_emu_self;

#define threadIdx (dpk_emu_self->thread_idx)
#define blockIdx (dpk_emu_self->block_idx)
#define blockDim (dpk_emu_self->block_dim)
#define gridDim (dpk_emu_self->grid_dim)
#define warpSize 32

/* Shared memory of the block: the same bytes for every thread that asks with this key (the address
 * of a static variable), and the dynamic part. */
void *dpk_emu_shared(const void *key, size_t n_bytes);
void *dpk_emu_shared_dynamic(void);

/* Wait for all threads of the block. Returns the sum of what they brought. */
long dpk_emu_block_barrier(long value);

/* A meeting of the lanes in `mask` (bit l: lane l of the warp). Each brings n_bytes, at most
 * DPK_EMU_SLOT. When all have come, the last one runs `combine` (unless NULL) over the slots:
 * lane l's bytes are at slots + l * DPK_EMU_SLOT. Returns the slots; they are valid until the lane
 * comes to its next meeting. */
enum { DPK_EMU_SLOT = 256 };
/* Shared memory of a block: without cudaFuncSetAttribute, and with it on the architectures that
 * have least (8.6, 8.9, 12.0). */
enum { DPK_EMU_SHARED = 48 << 10, DPK_EMU_SHARED_OPTIN = 99 << 10 };
typedef void dpk_emu_combine(unsigned char *slots, unsigned mask, const void *arg);
unsigned char *dpk_emu_warp_meet(unsigned mask, const void *mine, size_t n_bytes,
                                 dpk_emu_combine *combine, const void *arg);
static inline unsigned dpk_emu_lane(void) { return dpk_emu_self->linear % 32; }

/* ---- What tests may ask -------------------------------------------------------------------- */

extern "C" {
/* Forget the log and write a new one from here on. */
__attribute__((visibility("default"))) void dpk_emu_log_start(void);
/* Entries so far; they stay until the next start. */
__attribute__((visibility("default"))) size_t dpk_emu_log(const struct dpk_emu_entry **entries);
/* Order of threads and blocks from now on. */
__attribute__((visibility("default"))) void dpk_emu_shuffle(uint64_t seed);
/* Bytes of device memory in use. */
__attribute__((visibility("default"))) size_t dpk_emu_in_use(void);
/* Bytes of device memory there are (4 GiB at first). */
__attribute__((visibility("default"))) void dpk_emu_set_memory(size_t n_bytes);
}

/* The name of the kernel that is launched next, for messages. */
void dpk_emu_name(const char *name);
struct CUstream_st;
/* kernel NULL: a library's, which has what it needs. */
int dpk_emu_enqueue(CUstream_st *stream, const void *kernel, dim3 grid, dim3 block, size_t shared,
                    const std::function<void()> &body);
/* Dynamic shared memory that launches of the kernel may ask for. */
int dpk_emu_allow_shared(const void *kernel, int n_bytes);

#endif
