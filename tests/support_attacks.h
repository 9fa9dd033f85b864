/* Every abuse of a .dpk file in tests/attacks/: a valid file with one rule of FORMAT.md broken and
 * every sum right again. */
#ifndef SUPPORT_ATTACKS_H
#define SUPPORT_ATTACKS_H

#include <stddef.h>
#include <stdint.h>

struct attack {
    const char *what;    /* the change, as it is written */
    const char *message; /* part of what the C reader must say */
};

/* Attack number `index` on a copy of the file `good` of support_dpk_write, to be freed; NULL after
 * the last. */
uint8_t *attack_make(int index, const uint8_t *good, size_t n_bytes, struct attack *attack);

/* The C reader's verdict as `diffpak verify` comes to it: opens the model, reads the weights. */
int attack_verdict(const uint8_t *file, size_t n_bytes, char message[1024]);

#endif
