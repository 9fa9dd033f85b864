#include "support_int8.h"

#include "support_pack.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

struct dpk_backend *int8_backends[INT8_VARIANTS][INT8_THREADS + 1];

const char *int8_variant_name(int v) {
    static char name[32];
    snprintf(name, sizeof name, "%s%s", dpk_isa_name(v / 2), v % 2 ? " dot" : "");
    return name;
}

int int8_set_up(void **state) {
    (void)state;
    for (int v = 0; v < INT8_VARIANTS; v++) {
        if (!dpk_isa_available(v / 2) || (v % 2 && !dpk_isa_has_dot(v / 2))) continue;
        for (int n = 1; n <= INT8_THREADS; n++) {
            const struct dpk_cpu_options options = {
                .n_threads = n, .isa = dpk_isa_name(v / 2), .no_dot = v % 2 == 0};
            if (dpk_cpu_create_with(&int8_backends[v][n], &options, NULL)) return 1;
        }
    }
    return 0;
}

int int8_tear_down(void **state) {
    (void)state;
    for (int v = 0; v < INT8_VARIANTS; v++)
        for (int n = 1; n <= INT8_THREADS; n++)
            if (int8_backends[v][n]) int8_backends[v][n]->free(int8_backends[v][n]);
    return 0;
}

void *int8_need(size_t n_bytes) {
    void *p = malloc(n_bytes ? n_bytes : 1);
    assert_non_null(p);
    return p;
}

void int8_draw_row(uint32_t *seed, float *x, size_t n, int dtype, int kind) {
    float size = kind == 1 ? 1e-7f : kind == 2 ? 3e37f : kind == 3 ? 1e-40f : 1.5f;
    for (size_t i = 0; i < n; i++) x[i] = kind == 4 ? 0.0f : test_random_float(seed) * size;
    if (kind == 5) { /* halves of the step, and their neighbours */
        for (size_t i = 1; i < n; i++) {
            float h = (float)test_random_int(seed, -127, 126) + 0.5f;
            x[i] = nextafterf(h, (float)test_random_int(seed, -1, 1) * FLT_MAX);
            if (test_random_int(seed, 0, 1)) x[i] = h;
        }
        x[0] = 127.0f;
    }
    if (kind == 6) x[test_random(seed) % n] = 90.0f;
    if (kind == 7) x[test_random(seed) % n] = -FLT_MAX;
    if (kind == 2 || kind == 7) /* stays finite in bfloat16 */
        for (size_t i = 0; i < n; i++) x[i] *= 0.5f;
    test_round(dtype, x, n);
}
