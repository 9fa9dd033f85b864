/* The one error style inside the project (see dpk_error.h for what callers see).
 *
 *     int rc = DPK_OK;
 *     DPK_TRY(thing_open(&t, path, err));
 *     if (t.n == 0) DPK_FAIL(err, DPK_EFORMAT, "%s: %zu bytes, no header", path, t.n_bytes);
 * done:                      // the only label, always reached
 *     thing_close(&t);
 *     return rc;
 */
#ifndef DPK_FAIL_H
#define DPK_FAIL_H

#include "dpk_error.h"

/* Fill `err` (may be NULL); returns `code`. A message longer than the buffer is cut; control
 * characters and bytes that are not UTF-8 become question marks. */
int dpk_error_set(dpk_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define DPK_FAIL(err, code, ...)                                                                   \
    do {                                                                                           \
        rc = dpk_error_set((err), (code), __VA_ARGS__);                                            \
        goto done;                                                                                 \
    } while (0)

#define DPK_TRY(call)                                                                              \
    do {                                                                                           \
        rc = (call);                                                                               \
        if (rc != DPK_OK) goto done;                                                               \
    } while (0)

#endif
