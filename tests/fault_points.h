/* Points where the system may say no: this program's own malloc, mmap, open, read, write, ... in
 * front of the C library's, for all code that is linked into it and for the shared libraries that
 * it uses. One point of a run can be made to fail. Include in one file of a program. Sanitizers
 * have such functions themselves: where they are, there are no points (FAULT_POINTS is 0).
 *
 * After SQLite's tests of memory and I/O faults (sqlite.org/testing.html, section 3). */
#ifndef FAULT_POINTS_H
#define FAULT_POINTS_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FAULT_POINTS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define FAULT_POINTS 0
#endif
#endif
#ifndef FAULT_POINTS
#define FAULT_POINTS 1
#endif

#if FAULT_POINTS

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum fault_kind {
    FAULT_NONE,
    FAULT_MEMORY, /* malloc and its kin, mmap, pthread_create: ENOMEM, EAGAIN */
    FAULT_IO,     /* open, stat, read: EIO; write, fsync, close, rename: ENOSPC */
    FAULT_SHORT,  /* a read or write moves a part of what it could */
    FAULT_SIGNAL, /* a read or write is interrupted: EINTR */
};

static atomic_int fault_kind;  /* which points count */
static atomic_long fault_seen; /* points since fault_arm */
static atomic_long fault_at;   /* the one that fails, from 1; 0: none */
static atomic_long fault_live; /* blocks of memory not given back */
static atomic_long fault_mapped; /* pages of maps not given back: of a map, parts may go */

/* Places: a place is the calls that lead to a point. With fault_record the first FAULT_MOST points
 * of a run tell theirs, as a sum of return addresses. */
enum { FAULT_MOST = 1 << 16, FAULT_DEPTH = 5 };
static uint64_t *fault_record; /* [FAULT_MOST] or NULL; set while nothing is armed */
static _Thread_local bool fault_busy;

static void fault_note(long point) {
    void *calls[FAULT_DEPTH];
    uint64_t sum = 0;
    fault_busy = true; /* backtrace may take memory itself */
    int n = backtrace(calls, FAULT_DEPTH);
    fault_busy = false;
    for (int i = 0; i < n; i++) sum = (sum ^ (uintptr_t)calls[i]) * UINT64_C(0x9e3779b97f4a7c15);
    fault_record[point] = sum;
}

static void fault_arm(enum fault_kind kind, long at) {
    atomic_store(&fault_seen, 0);
    atomic_store(&fault_at, at);
    atomic_store(&fault_kind, kind);
}
static long fault_disarm(void) {
    atomic_store(&fault_kind, FAULT_NONE);
    return atomic_load(&fault_seen);
}

static bool fault_here(enum fault_kind kind) {
    if ((int)kind != atomic_load(&fault_kind) || fault_busy) return false;
    long point = atomic_fetch_add(&fault_seen, 1);
    if (fault_record && point < FAULT_MOST) fault_note(point);
    return point + 1 == atomic_load(&fault_at);
}
static bool fault_errno(enum fault_kind kind, int number) {
    if (!fault_here(kind)) return false;
    errno = number;
    return true;
}
#define FAULT_LIVE(n) atomic_fetch_add(&fault_live, n)
static void fault_count_pages(size_t n_bytes, long sign) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    atomic_fetch_add(&fault_mapped, sign * (long)((n_bytes + page - 1) / page));
}

/* So that shared libraries find them too. */
#pragma GCC visibility push(default)

/* ---- Memory ------------------------------------------------------------------------------- */

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);
void __libc_free(void *p);

static void *fault_alive(void *p) {
    if (p) FAULT_LIVE(1);
    return p;
}
void *malloc(size_t n) {
    return fault_errno(FAULT_MEMORY, ENOMEM) ? NULL : fault_alive(__libc_malloc(n));
}
void *calloc(size_t n, size_t size) {
    return fault_errno(FAULT_MEMORY, ENOMEM) ? NULL : fault_alive(__libc_calloc(n, size));
}
void *realloc(void *p, size_t n) {
    if (fault_errno(FAULT_MEMORY, ENOMEM)) return NULL;
    if (p && !n) FAULT_LIVE(-1);
    return p ? __libc_realloc(p, n) : fault_alive(__libc_realloc(p, n));
}
void *aligned_alloc(size_t alignment, size_t n) {
    return fault_errno(FAULT_MEMORY, ENOMEM) ? NULL : fault_alive(__libc_memalign(alignment, n));
}
int posix_memalign(void **p, size_t alignment, size_t n) {
    void *made = aligned_alloc(alignment, n);
    if (made) *p = made;
    return made ? 0 : ENOMEM;
}
void free(void *p) {
    if (p) FAULT_LIVE(-1);
    __libc_free(p);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fault_errno(FAULT_MEMORY, ENOMEM)) return MAP_FAILED;
    void *p = (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset); // NOLINT
    if (p != MAP_FAILED && !(flags & MAP_FIXED)) fault_count_pages(n, 1);
    return p;
}
int munmap(void *at, size_t n) {
    int rc = (int)syscall(SYS_munmap, at, n);
    if (!rc) fault_count_pages(n, -1);
    return rc;
}

/* ---- Files -------------------------------------------------------------------------------- */

static int fault_open(int folder, const char *path, int flags, unsigned mode) {
    if (fault_errno(FAULT_IO, flags & (O_WRONLY | O_RDWR) ? ENOSPC : EIO)) return -1;
    return (int)syscall(SYS_openat, folder, path, flags, mode);
}
static unsigned fault_mode(int flags, va_list rest) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, unsigned) : 0;
}
#define FAULT_DEFINE_OPEN(name)                                                                    \
    int name(const char *path, int flags, ...) {                                                   \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        unsigned mode = fault_mode(flags, rest);                                                   \
        va_end(rest);                                                                              \
        return fault_open(AT_FDCWD, path, flags, mode);                                            \
    }
FAULT_DEFINE_OPEN(open)
FAULT_DEFINE_OPEN(open64)
int openat(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    unsigned mode = fault_mode(flags, rest);
    va_end(rest);
    return fault_open(folder, path, flags, mode);
}
int mkostemp(char *path, int flags) {
    int (*next)(char *, int) = NULL;
    *(void **)&next = dlsym(RTLD_NEXT, "mkostemp");
    return fault_errno(FAULT_IO, ENOSPC) ? -1 : next(path, flags);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *arg) {
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = NULL;
    *(void **)&next = dlsym(RTLD_NEXT, "pthread_create");
    return fault_here(FAULT_MEMORY) ? EAGAIN : next(thread, how, run, arg);
}

int close(int fd) {
    /* The descriptor goes in any case, as Linux does it. */
    int rc = (int)syscall(SYS_close, fd);
    return fault_errno(FAULT_IO, ENOSPC) ? -1 : rc;
}
int fsync(int fd) { return fault_errno(FAULT_IO, ENOSPC) ? -1 : (int)syscall(SYS_fsync, fd); }
int ftruncate(int fd, off_t n) {
    return fault_errno(FAULT_IO, ENOSPC) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}
int rename(const char *from, const char *to) {
    return fault_errno(FAULT_IO, ENOSPC)
               ? -1
               : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int fstat(int fd, struct stat *st) {
    return fault_errno(FAULT_IO, EIO) ? -1 : fstatat(fd, "", st, AT_EMPTY_PATH);
}

/* Half of what was asked for, at least one byte, where a part is to be moved. */
static size_t fault_part(size_t n) { return n > 1 && fault_here(FAULT_SHORT) ? n / 2 : n; }
static bool fault_moves(int number) {
    return fault_errno(FAULT_IO, number) || fault_errno(FAULT_SIGNAL, EINTR);
}
ssize_t read(int fd, void *to, size_t n) {
    return fault_moves(EIO) ? -1 : (ssize_t)syscall(SYS_read, fd, to, fault_part(n));
}
ssize_t write(int fd, const void *from, size_t n) {
    return fault_moves(ENOSPC) ? -1 : (ssize_t)syscall(SYS_write, fd, from, fault_part(n));
}
#define FAULT_DEFINE_AT(name, buffer, number)                                                      \
    ssize_t name(int fd, buffer p, size_t n, off_t at) {                                           \
        return fault_moves(number) ? -1                                                            \
                                   : (ssize_t)syscall(number == EIO ? SYS_pread64 : SYS_pwrite64,  \
                                                      fd, p, fault_part(n), at);                   \
    }
FAULT_DEFINE_AT(pread, void *, EIO)
FAULT_DEFINE_AT(pread64, void *, EIO)
FAULT_DEFINE_AT(pwrite, const void *, ENOSPC)
FAULT_DEFINE_AT(pwrite64, const void *, ENOSPC)

#pragma GCC visibility pop

#endif
#endif
