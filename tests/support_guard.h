/* Arrays that notice accesses outside: the byte after the last one is in a page that cannot be
 * touched, and what lies before the first is NaN in every type and must still be there when the
 * array is freed. */
#ifndef DPK_TEST_GUARD_H
#define DPK_TEST_GUARD_H

#include <stddef.h>

/* n_bytes of NaN (all bits set), page-guarded. Exits the program when the system has no memory. The
 * address is a multiple of 64 if n_bytes is. */
void *test_guard_alloc(size_t n_bytes);
/* Fails the running test if the bytes before p changed. p NULL: nothing. */
void test_guard_free(void *p, size_t n_bytes);

#endif
