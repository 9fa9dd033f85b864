/* Between the files of the emulation: emu_block.cpp runs kernels, emu_runtime.cpp is the runtime
 * that queues them. */
#ifndef DPK_EMU_IMPL_H
#define DPK_EMU_IMPL_H

#include "emu.h"

struct dpk_emu_launch {
    const char *name;
    dim3 grid, block;
    size_t shared;
    size_t shared_limit; /* of static and dynamic shared memory together */
    std::function<void()> body;
};

/* Run all blocks. The caller holds the device's lock and has opened its memory. */
void dpk_emu_run(const struct dpk_emu_launch *l);
/* A message and abort(). */
__attribute__((format(printf, 1, 2), noreturn)) void dpk_emu_die(const char *format, ...);
uint64_t dpk_emu_random(void);

#endif
