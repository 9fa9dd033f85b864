/* Fault points in front of a whole program: LD_PRELOAD this.
 *   FAULT_KIND    memory or io
 *   FAULT_AT      the point that fails, from 1; 0: none, and
 *   FAULT_POINTS  the file that is told the first point of each place, one a line */
#include "fault_points.h"

#include <string.h>

static __attribute__((constructor)) void begin(void) {
    static uint64_t record[FAULT_MOST];
    const char *kind = getenv("FAULT_KIND"), *at = getenv("FAULT_AT");
    if (!kind || !at) return;
    long point = strtol(at, NULL, 10);
    if (!point) fault_record = record;
    fault_arm(strcmp(kind, "memory") ? FAULT_IO : FAULT_MEMORY, point);
}

static __attribute__((destructor)) void end(void) {
    const char *path = getenv("FAULT_POINTS");
    long n = fault_disarm();
    FILE *file = fault_record && path ? fopen(path, "w") : NULL;
    for (long i = 0; file && i < n && i < FAULT_MOST; i++) {
        long k = 0;
        while (fault_record[k] != fault_record[i]) k++;
        if (k == i) fprintf(file, "%ld\n", i + 1);
    }
    if (file) fclose(file);
}
