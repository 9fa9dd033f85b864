/* The log of an emulated device's calls, for tests in C: see emu.h. */
#ifndef DPK_EMU_LOG_H
#define DPK_EMU_LOG_H

#include <stddef.h>

enum dpk_emu_kind {
    DPK_EMU_LAUNCH,      /* a kernel is queued (or captured) */
    DPK_EMU_RUN,         /* a kernel runs */
    DPK_EMU_GRAPH,       /* a graph is queued */
    DPK_EMU_CAPTURE,     /* a capture begins */
    DPK_EMU_COPY_IN,     /* host to device, queued */
    DPK_EMU_COPY_OUT,    /* device to host, queued */
    DPK_EMU_COPY_DEVICE, /* device to device, queued */
    DPK_EMU_SET,
    DPK_EMU_SYNC, /* the host waits: stream, event or device */
    DPK_EMU_ALLOC,
    DPK_EMU_FREE,
};
struct dpk_emu_entry {
    enum dpk_emu_kind kind;
    const char *name; /* of kernels */
    size_t n_bytes;   /* of copies and allocations */
};

#endif
