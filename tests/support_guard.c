#include "support_guard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sys/mman.h>
#include <unistd.h>

/* Mapped: [before ... NaN][array][page without access]. At least one page stands before the
 * array. */
static size_t mapped_bytes(size_t n_bytes, size_t page) {
    return (n_bytes + page - 1) / page * page + 2 * page;
}

void *test_guard_alloc(size_t n_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), all = mapped_bytes(n_bytes, page);
    char *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + all - page, page, PROT_NONE) != 0) {
        fprintf(stderr, "guarded array of %zu bytes: no memory\n", n_bytes);
        exit(1);
    }
    memset(p, 0xff, all - page);
    return p + all - page - n_bytes;
}

void test_guard_free(void *array, size_t n_bytes) {
    if (!array) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), all = mapped_bytes(n_bytes, page);
    unsigned char *start = (unsigned char *)array + n_bytes + page - all;
    for (unsigned char *p = start; p < (unsigned char *)array; p++) assert_int_equal(*p, 0xff);
    munmap(start, all);
}
