/* torch.randn of CUDA: Philox4x32-10 (Salmon et al. 2011) as cuRAND, one stream per thread,
 * elements dealt to threads as aten/src/ATen/native/cuda/DistributionTemplates.h. Logarithm, sine
 * and cosine as in random.c. */
#include "random.h"

#include <math.h>

static void philox(uint64_t seed, uint64_t counter, uint64_t thread, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)thread, c3 = (uint32_t)(thread >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = UINT64_C(0xd2511f53) * c0, p1 = UINT64_C(0xcd9e8d57) * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

static void box_muller_cuda(uint32_t x, uint32_t y, float out[2]) {
    float u = (float)x * 0x1p-32f + 0x1p-33f;
    float v = (float)y * (float)(0x1p-32 * 2 * M_PI) + (float)(0x1p-33 * 2 * M_PI);
    float s = (float)sqrt(-2.0 * log(u));
    out[0] = s * (float)sin(v);
    out[1] = s * (float)cos(v);
}

void dpk_random_philox(struct dpk_random *r, size_t n, float *out) {
    const size_t blocks = (n + 255) / 256;
    const size_t threads = blocks * 256 < r->threads ? blocks * 256 : r->threads;
    const uint64_t rounds = (n + 4 * threads - 1) / (4 * threads);
    for (uint64_t round = 0; out && round < rounds; round++) {
        for (size_t k = 0; k < threads; k++) {
            size_t at = k + round * 4 * threads;
            if (at >= n) break;
            uint32_t word[4];
            float v[4];
            philox(r->seed, r->offset / 4 + round, k, word);
            box_muller_cuda(word[0], word[1], v);
            box_muller_cuda(word[2], word[3], v + 2);
            for (int j = 0; j < 4 && at < n; j++, at += threads) out[at] = v[j];
        }
    }
    r->offset += 4 * rounds;
}
