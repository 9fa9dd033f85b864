/* Running a kernel: blocks one after another, the threads of a block as fibers. */
#include "emu_impl.h"
#include "fiber.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define DPK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DPK_ASAN 1
#endif
#endif
#ifdef DPK_ASAN
#include <sanitizer/asan_interface.h>
#define PLAIN __attribute__((no_sanitize("address")))
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define PLAIN
#endif

enum {
    MAX_THREADS = 1024,
    STATIC_LIMIT = DPK_EMU_SHARED,
    SHARED_LIMIT = DPK_EMU_SHARED_OPTIN,
    GAP = 64, /* poisoned, between pieces of shared memory */
    MAX_PIECES = 64,
};
enum state { READY, AT_BLOCK, AT_WARP, DONE };

dpk_emu_thread *dpk_emu_self;

struct thread {
    dpk_emu_thread self;
    dpk_fiber fiber;
    enum state state;
    unsigned phase; /* meetings so far: which half of the slots */
};

struct meeting {
    unsigned mask, here; /* lanes that are to come, that have come */
};

struct warp {
    unsigned done; /* lanes that have returned */
    unsigned n_meetings;
    struct meeting meetings[32]; /* a lane waits at one */
    alignas(16) unsigned char slots[2][32 * DPK_EMU_SLOT];
};

static thread threads[MAX_THREADS];
static warp warps[MAX_THREADS / 32];
static dpk_fiber host;
static const dpk_emu_launch *running;
static unsigned n_threads, n_alive, n_waiting;
static long barrier_sum, barrier_result;

static struct {
    const void *key;
    size_t offset, bytes;
} pieces[MAX_PIECES];
static int n_pieces;
static size_t shared_end;
alignas(1024) static unsigned char shared_memory[SHARED_LIMIT + (MAX_PIECES + 2) * GAP];

void dpk_emu_die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "emulated CUDA: %s%s", running ? running->name : "", running ? ": " : "");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    abort();
}

static uint64_t random_state = 1;

uint64_t dpk_emu_random(void) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void dpk_emu_shuffle(uint64_t seed) { random_state = seed; }

/* ---- Shared memory ------------------------------------------------------------------------- */

static size_t add_piece(const void *key, size_t n_bytes) {
    if (n_pieces == MAX_PIECES) dpk_emu_die("more than %d shared arrays", MAX_PIECES);
    size_t at = shared_end;
    shared_end += (n_bytes + GAP - 1) / GAP * GAP + GAP;
    pieces[n_pieces].key = key;
    pieces[n_pieces].offset = at;
    pieces[n_pieces++].bytes = n_bytes;
    ASAN_UNPOISON_MEMORY_REGION(shared_memory + at, n_bytes);
    memset(shared_memory + at, 0xff, n_bytes);
    return at;
}

static void open_shared(void) {
    n_pieces = 0;
    shared_end = 0;
    ASAN_POISON_MEMORY_REGION(shared_memory, sizeof shared_memory);
    add_piece(NULL, running->shared);
}

/* The arrays are those of the launch's first block; a new block finds them undefined. */
static void clear_shared(void) {
    for (int i = 0; i < n_pieces; i++)
        memset(shared_memory + pieces[i].offset, 0xff, pieces[i].bytes);
}

void *dpk_emu_shared(const void *key, size_t n_bytes) {
    for (int i = 0; i < n_pieces; i++)
        if (pieces[i].key == key) return shared_memory + pieces[i].offset;
    size_t fixed = n_bytes;
    for (int i = 1; i < n_pieces; i++) fixed += pieces[i].bytes;
    if (fixed > STATIC_LIMIT) dpk_emu_die("%zu bytes of static shared memory", fixed);
    if (fixed + running->shared > running->shared_limit)
        dpk_emu_die("%zu bytes of shared memory, %zu are allowed", fixed + running->shared,
                    running->shared_limit);
    return shared_memory + add_piece(key, n_bytes);
}

void *dpk_emu_shared_dynamic(void) { return shared_memory; }

/* ---- Threads ------------------------------------------------------------------------------- */

static thread *current(void) { return threads + dpk_emu_self->linear; }

/* Let others run until this thread is READY again. */
static void wait_here(void) {
    thread *t = current();
    dpk_fiber_switch(&t->fiber, &host, false);
    dpk_emu_self = &t->self;
}

static void release_block(void) {
    for (unsigned i = 0; i < n_threads; i++)
        if (threads[i].state == AT_BLOCK) threads[i].state = READY;
    barrier_result = barrier_sum;
    barrier_sum = 0;
    n_waiting = 0;
}

long dpk_emu_block_barrier(long value) {
    barrier_sum += value;
    n_waiting++;
    if (n_waiting == n_alive) {
        release_block();
        return barrier_result;
    }
    current()->state = AT_BLOCK;
    wait_here();
    return barrier_result;
}

unsigned char *dpk_emu_warp_meet(unsigned mask, const void *mine, size_t n_bytes,
                                 dpk_emu_combine *combine, const void *arg) {
    thread *t = current();
    unsigned w = t->self.linear / 32, lane = t->self.linear % 32, here = 1u << lane;
    unsigned lanes = n_threads - w * 32 < 32 ? (1u << (n_threads - w * 32)) - 1 : 0xffffffffu;
    unsigned char *slots = warps[w].slots[t->phase++ % 2];
    if (!(mask & here)) dpk_emu_die("lane %u is not in its own mask %08x", lane, mask);
    if (n_bytes > DPK_EMU_SLOT) dpk_emu_die("%zu bytes do not fit a slot", n_bytes);
    if (n_bytes) memcpy(slots + lane * DPK_EMU_SLOT, mine, n_bytes);
    mask &= lanes; /* a warp may be cut short by the size of the block */
    if (mask & warps[w].done)
        dpk_emu_die("lanes %08x meet, of which %08x have returned", mask, mask & warps[w].done);
    struct meeting *m = warps[w].meetings, *end = m + warps[w].n_meetings;
    while (m < end && m->mask != mask) m++;
    if (m == end) {
        *m = {mask, 0};
        warps[w].n_meetings++;
    }
    m->here |= here;
    if (m->here != mask) {
        t->state = AT_WARP;
        wait_here();
        return slots;
    }
    *m = warps[w].meetings[--warps[w].n_meetings];
    if (combine) combine(slots, mask, arg);
    for (unsigned l = 0; l < 32; l++)
        if ((mask >> l & 1) && l != lane) threads[w * 32 + l].state = READY;
    return slots;
}

PLAIN static void thread_main(void) {
    dpk_fiber_begin();
    thread *t = current();
    running->body();
    t->state = DONE;
    warps[t->self.linear / 32].done |= 1u << t->self.linear % 32;
    n_alive--;
    if (n_alive && n_waiting == n_alive) release_block();
    dpk_fiber_switch(&t->fiber, &host, true);
    abort();
}

static void start_thread(unsigned i, uint3 block) {
    thread *t = threads + i;
    dim3 size = running->block;
    t->self.linear = i;
    t->self.thread_idx = uint3{i % size.x, i / size.x % size.y, i / size.x / size.y};
    t->self.block_idx = block;
    t->self.block_dim = size;
    t->self.grid_dim = running->grid;
    t->state = READY;
    t->phase = 0;
    dpk_fiber_start(&t->fiber, thread_main);
}

static void report_stuck(void) {
    unsigned n[4] = {0};
    for (unsigned i = 0; i < n_threads; i++) n[threads[i].state]++;
    dpk_emu_die("%u threads wait for the block, %u for lanes of their warp, %u have returned",
                n[AT_BLOCK], n[AT_WARP], n[DONE]);
}

static void shuffle(std::vector<unsigned> &order) {
    for (size_t i = order.size(); i > 1; i--) {
        size_t j = dpk_emu_random() % i;
        unsigned swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

/* Every thread that is ready, but those of warps in `waits`, up to its next meeting; false if there
 * is none. */
static bool run_ready(const std::vector<unsigned> &order, uint64_t waits) {
    bool moved = false;
    for (unsigned i : order) {
        if (threads[i].state != READY || (waits >> (i / 32) & 1)) continue;
        dpk_emu_self = &threads[i].self;
        dpk_fiber_switch(&host, &threads[i].fiber, false);
        moved = true;
    }
    return moved;
}

static void run_block(uint3 block, const std::vector<unsigned> &order) {
    n_alive = n_threads;
    n_waiting = 0;
    barrier_sum = 0;
    clear_shared();
    for (unsigned w = 0; w < (n_threads + 31) / 32; w++) warps[w].done = warps[w].n_meetings = 0;
    for (unsigned i = 0; i < n_threads; i++) start_thread(i, block);
    /* Some warps (a bit each) get on only when the others cannot: work that needs a barrier between
     * warps and has none meets one that is far behind. */
    const uint64_t slow = dpk_emu_random() & dpk_emu_random();
    while (n_alive)
        if (!run_ready(order, slow) && !run_ready(order, 0)) report_stuck();
}

void dpk_emu_run(const struct dpk_emu_launch *l) {
    running = l;
    n_threads = l->block.x * l->block.y * l->block.z;
    uint64_t n_blocks = (uint64_t)l->grid.x * l->grid.y * l->grid.z;
    std::vector<unsigned> blocks(n_blocks), order(n_threads);
    for (unsigned i = 0; i < n_blocks; i++) blocks[i] = i;
    for (unsigned i = 0; i < n_threads; i++) order[i] = i;
    shuffle(blocks);
    shuffle(order);
    open_shared();
    for (unsigned b : blocks)
        run_block(uint3{b % l->grid.x, b / l->grid.x % l->grid.y, b / l->grid.x / l->grid.y},
                  order);
    dpk_emu_self = NULL;
    running = NULL;
}
