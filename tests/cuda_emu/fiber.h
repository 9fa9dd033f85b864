/* Fibers: stacks that are switched between by hand. A switch saves the registers that a call
 * preserves and nothing else, some twenty instructions; ucontext would make a system call. */
#ifndef DPK_EMU_FIBER_H
#define DPK_EMU_FIBER_H

#include <stddef.h>

struct dpk_fiber {
    void *sp; /* where it was left */
    char *stack;
    void *fake; /* AddressSanitizer's */
};

enum { DPK_FIBER_STACK = 256 << 10 };

/* Prepare `f` to begin in entry() when it is switched to for the first time. entry never returns:
 * it ends in dpk_fiber_switch with `last`. */
void dpk_fiber_start(struct dpk_fiber *f, void (*entry)(void));
/* Leave `from` and go on in `to`. last: `from` will never be gone back to. The stack of a fiber
 * without one of its own (the host's thread) is not touched. */
void dpk_fiber_switch(struct dpk_fiber *from, struct dpk_fiber *to, bool last);
/* The first thing that entry does. */
void dpk_fiber_begin(void);

#endif
