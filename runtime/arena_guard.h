/* The arena of a CPU under AddressSanitizer: forbidden ground but for the operands, the result and
 * the scratch of the operator that runs, with a strip behind every block that nobody owns. An
 * operator that strays from what it was given is found at once. Other builds have none of this. */
#ifndef DPK_ARENA_GUARD_H
#define DPK_ARENA_GUARD_H

#include "plan.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define DPK_ARENA_GUARD 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DPK_ARENA_GUARD 1
#endif
#endif

#ifdef DPK_ARENA_GUARD
#include <sanitizer/asan_interface.h>

/* Bytes behind each block, part of its size: what a plan says it needs is what it takes. */
enum { DPK_RED_ZONE = DPK_ALIGN };

static inline void dpk_arena_forbid(const struct dpk_plan *plan) {
    if (!strcmp(plan->backend->name, "cpu"))
        ASAN_POISON_MEMORY_REGION(plan->arena, plan->arena_bytes);
}

static inline void dpk_arena_allow_all(const struct dpk_plan *plan) {
    if (!strcmp(plan->backend->name, "cpu"))
        ASAN_UNPOISON_MEMORY_REGION(plan->arena, plan->arena_bytes);
}

static inline void dpk_arena_allow(const void *data, uint64_t bytes) {
    if (data) ASAN_UNPOISON_MEMORY_REGION(data, bytes);
}
#else
enum { DPK_RED_ZONE = 0 };

static inline void dpk_arena_forbid(const struct dpk_plan *plan) { (void)plan; }
static inline void dpk_arena_allow_all(const struct dpk_plan *plan) { (void)plan; }
static inline void dpk_arena_allow(const void *data, uint64_t bytes) { (void)data, (void)bytes; }
#endif

#endif
