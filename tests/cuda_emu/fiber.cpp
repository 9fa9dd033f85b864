/* See fiber.h. */
#include "fiber.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define DPK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DPK_ASAN 1
#endif
#endif
#ifdef DPK_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define PLAIN __attribute__((no_sanitize("address")))
#else
#define PLAIN
#endif

/* dpk_emu_swap(void **save, void *load): push what a call preserves, leave the stack pointer at
 * *save, take `load`, pop. A new fiber's stack holds zeros and the entry's address. */
extern "C" void dpk_emu_swap(void **save, void *load);
#if defined(__x86_64__)
enum { SAVED = 6 };
__asm__(".text\n.hidden dpk_emu_swap\n.globl dpk_emu_swap\n.type dpk_emu_swap,@function\n"
        "dpk_emu_swap:\n"
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
        "  ret\n.size dpk_emu_swap,.-dpk_emu_swap\n");
#elif defined(__aarch64__)
enum { SAVED = 20 };
__asm__(".text\n.hidden dpk_emu_swap\n.globl dpk_emu_swap\n.type dpk_emu_swap,%function\n"
        "dpk_emu_swap:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
        "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n"
        "  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
        "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n"
        "  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n  ret\n.size dpk_emu_swap,.-dpk_emu_swap\n");
#else
#error "fibers: x86-64 or AArch64"
#endif

void dpk_fiber_start(struct dpk_fiber *f, void (*entry)(void)) {
    if (!f->stack) {
        void *p = mmap(NULL, DPK_FIBER_STACK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            perror("emulated CUDA: stacks");
            abort();
        }
        f->stack = (char *)p;
    }
#ifdef DPK_ASAN /* the frames that an earlier run never came back to */
    ASAN_UNPOISON_MEMORY_REGION(f->stack + DPK_FIBER_STACK - 4096, 4096);
#endif
    void **top = (void **)(void *)(f->stack + DPK_FIBER_STACK);
    top -= 4;
    memset(top - SAVED, 0, (SAVED + 4) * sizeof(void *));
    void *address;
    memcpy(&address, &entry, sizeof address);
#if defined(__x86_64__)
    top[0] = address; /* `ret` leaves the stack 8 off a multiple of 16, as a call does */
    f->sp = top - SAVED;
#else
    f->sp = top - SAVED;
    ((void **)f->sp)[11] = address; /* x30 */
#endif
    f->fake = NULL;
}

#ifdef DPK_ASAN
static const void *host_bottom;
static size_t host_bytes;
#endif

PLAIN void dpk_fiber_switch(struct dpk_fiber *from, struct dpk_fiber *to, bool last) {
#ifdef DPK_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake, to->stack ? to->stack : host_bottom,
                                   to->stack ? (size_t)DPK_FIBER_STACK : host_bytes);
#else
    (void)last;
#endif
    dpk_emu_swap(&from->sp, to->sp);
#ifdef DPK_ASAN
    const void *bottom;
    size_t n_bytes;
    __sanitizer_finish_switch_fiber(from->fake, &bottom, &n_bytes);
    if (from->stack && !to->stack) host_bottom = bottom, host_bytes = n_bytes;
#endif
}

PLAIN void dpk_fiber_begin(void) {
#ifdef DPK_ASAN
    __sanitizer_finish_switch_fiber(NULL, &host_bottom, &host_bytes);
#endif
}
