/* Mapped files that become shorter, or whose medium fails, while they are in use: reading such a
 * page is SIGBUS, which ends the process.
 *
 * A guard makes it an error instead: a handler puts a page of zeros in place of the missing one and
 * remembers it; the work goes on (in whatever thread) and is thrown away when dpk_guard_hit is
 * asked. The signal handler and its table of guarded maps are the one global state of the library;
 * they exist only if a caller asks for a guard. SIGBUS elsewhere goes to the handler that was there
 * before. The same idea: systemd's sigbus.c. */
#ifndef DPK_MAP_GUARD_H
#define DPK_MAP_GUARD_H

#include "dpk_error.h"

#include <stdbool.h>
#include <stddef.h>

struct dpk_guard;

/* Guard n_bytes of a map, both whole pages. Errors: DPK_EIO (handler not installed), DPK_ENOMEM (as
 * many maps as there is room for, 64, are guarded). Free it before the map goes. */
int dpk_guard_create(struct dpk_guard **guard, void *map, size_t n_bytes, dpk_error *err);
void dpk_guard_free(struct dpk_guard *guard);

/* Whether a page was missing. */
bool dpk_guard_hit(const struct dpk_guard *guard);

#endif
