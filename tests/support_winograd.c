#include "support_winograd.h"

#include "support_pack.h"

#include <math.h>

static const double points[5] = {0, 0.65f, -0.65f, 1.5, -1.5};

double test_wino_g(int i, int k) {
    double divisor = 1;
    if (i == 5) return k == 2;
    for (int j = 0; j < 5; j++) divisor *= j == i ? 1 : points[i] - points[j];
    return pow(points[i], k) / divisor;
}

double test_wino_b(int i, int k) {
    double c[7] = {1};
    int degree = 0;
    for (int j = 0; j < 5; j++) {
        if (j == i) continue;
        for (int m = ++degree; m >= 0; m--) c[m] = (m ? c[m - 1] : 0) - points[j] * c[m];
    }
    return c[k];
}

float test_normal(uint32_t *s) {
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += test_random_float(s);
    return sum / 2;
}
