/* Normal random numbers that equal PyTorch's: the generator of its CPU device (mt19937) and of
 * its CUDA device (Philox).
 *
 * A generator is a plain value: copy it to remember a state. Calls continue where the last one
 * ended, as calls of torch.randn with one torch.Generator do. */
#ifndef DPK_RANDOM_H
#define DPK_RANDOM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dpk_random_kind {
    DPK_RANDOM_CPU = 0,  /* torch.Generator("cpu") */
    DPK_RANDOM_CUDA = 1, /* torch.Generator("cuda") */
};

enum { DPK_RANDOM_MT = 624 };

struct dpk_random {
    enum dpk_random_kind kind;
    /* CPU */
    uint32_t mt[DPK_RANDOM_MT];
    uint32_t mt_next; /* first unused word of mt; DPK_RANDOM_MT when all are used */
    bool have_second; /* a call of fewer than 16 values left the second normal of a pair */
    double second;
    /* CUDA */
    uint64_t seed, offset; /* offset counts 32-bit words per thread, a multiple of 4 */
    uint32_t threads;      /* that the device runs at once */
};

/* Start at `seed`. The CPU generator uses its low 32 bits, as PyTorch does. threads (CUDA only):
 * how many threads the device runs at once, a multiple of 256 (multiprocessors times threads of
 * each); 0 means an H100's 270336. The numbers depend on it only for arrays of more values than
 * that. */
void dpk_random_seed(struct dpk_random *r, enum dpk_random_kind kind, uint64_t seed,
                     uint32_t threads);

/* out[i], i < n: what torch.randn(n, dtype=dtype, generator=r) gives, widened to float32. dtype:
 * DPK_F32, DPK_F16 or DPK_BF16 (enum dpk_dtype). Advances the generator exactly as PyTorch 2.15
 * does, which depends on n and dtype. Values agree to 5e-7 with the CPU's (its vectorised
 * logarithm and cosine are not libm's), to about 1e-6 with a GPU's. */
void dpk_random_normal(struct dpk_random *r, int dtype, size_t n, float *out);

/* Advance a generator of a CUDA device as a draw of n values does, without making them. */
void dpk_random_skip(struct dpk_random *r, size_t n);

/* What a DPK_RANDOM_CUDA generator draws, not rounded; out NULL: it only advances. A build may be
 * without (random_philox.c), and must then not be asked for this kind. */
void dpk_random_philox(struct dpk_random *r, size_t n, float *out);

#endif
