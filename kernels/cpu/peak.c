/* Peaks: loops of independent multiply-adds on registers alone.
 *
 * As many chains as there are registers for, so that throughput is measured and not latency. The
 * registers are named in the text: no compiler can spill, merge or reorder them. The numbers are
 * ones, since zeros draw less power than real work. */
#include "peak.h"

#include <stddef.h>
#include <time.h>

#if defined(__x86_64__)

enum { ROUNDS = 1 << 18, REPEATS = 12 };

#define REPEAT12(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define REPEAT24(F)                                                                                \
    REPEAT12(F)                                                                                    \
    F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23)

#define LOW_REGISTERS                                                                              \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define ALL_REGISTERS                                                                              \
    LOW_REGISTERS, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",         \
        "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31"

/* ROUNDS times one step of every chain. Chains 0-11 are ymm registers with the operands in ymm14
 * and ymm15; chains 0-23 zmm registers with zmm30 and zmm31. */
#define LOOP(name, features, clear, load, step, ...)                                               \
    __attribute__((target(features))) static void name(void) {                                     \
        static const float one = 1;                                                                \
        long n = ROUNDS;                                                                           \
        __asm__ volatile(load clear "1:\n\t" step "dec %0\n\tjnz 1b\n\t"                           \
                         : "+r"(n)                                                                 \
                         : "m"(one)                                                                \
                         : "cc", __VA_ARGS__);                                                     \
    }
#define LOOP_Y(name, features, step)                                                               \
    LOOP(name, features, REPEAT12(CLEAR_Y), LOAD_Y, REPEAT12(step), LOW_REGISTERS)
#define LOOP_Z(name, features, step)                                                               \
    LOOP(name, features, REPEAT24(CLEAR_Z), LOAD_Z, REPEAT24(step), ALL_REGISTERS)
#define LOAD_Y "vbroadcastss %1, %%ymm14\n\tvbroadcastss %1, %%ymm15\n\t"
#define LOAD_Z "vbroadcastss %1, %%zmm30\n\tvbroadcastss %1, %%zmm31\n\t"
#define CLEAR_Y(i) "vpxor %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n\t"
#define CLEAR_Z(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define FMA_Y(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #i "\n\t"
#define FMA_Z(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define BF16_Z(i) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define DOT8_Y(i) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #i "\n\t"
#define DOT8_Z(i) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define MADD_Y(i)                                                                                  \
    "vpmaddwd %%ymm14, %%ymm15, %%ymm13\n\tvpaddd %%ymm13, %%ymm" #i ", %%ymm" #i "\n\t"
#define MADD_Z(i)                                                                                  \
    "vpmaddwd %%zmm30, %%zmm31, %%zmm29\n\tvpaddd %%zmm29, %%zmm" #i ", %%zmm" #i "\n\t"
LOOP_Y(fma_avx2, "avx2,fma", FMA_Y)
LOOP_Z(fma_avx512, "avx512f", FMA_Z)
LOOP_Z(dot_bf16, "avx512f", BF16_Z)
LOOP_Y(madd_avx2, "avx2", MADD_Y)
LOOP_Z(madd_avx512, "avx512f,avx512bw", MADD_Z)
LOOP_Y(dot8_avx2, "avx2", DOT8_Y)
LOOP_Z(dot8_avx512, "avx512f", DOT8_Z)

/* Operations of a lane of 32 bits: two for each number in it. */
struct loop {
    void (*run)(void);
    int lanes, ops;
};

static struct loop find_loop(int isa, int dtype, bool dot) {
    static const struct loop none = {NULL, 0, 0};
    bool wide = isa >= DPK_ISA_AVX512;
    if (isa == DPK_ISA_REF || !dpk_isa_available(isa)) return none;
    if (dtype == DPK_S8) {
        if (dot && dpk_isa_has_dot(isa))
            return wide ? (struct loop){dot8_avx512, 24 * 16, 8}
                        : (struct loop){dot8_avx2, 12 * 8, 8};
        return wide ? (struct loop){madd_avx512, 24 * 16, 4} : (struct loop){madd_avx2, 12 * 8, 4};
    }
    if (dtype == DPK_BF16 && isa == DPK_ISA_AVX512BF16) return (struct loop){dot_bf16, 24 * 16, 4};
    return wide ? (struct loop){fma_avx512, 24 * 16, 2} : (struct loop){fma_avx2, 12 * 8, 2};
}

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double dpk_peak_measure(int isa, int dtype, bool dot) {
    struct loop loop = find_loop(isa, dtype, dot);
    double best = 1e9;
    if (!loop.run) return 0;
    for (int i = 0; i < REPEATS; i++) {
        double t = thread_seconds();
        loop.run();
        t = thread_seconds() - t;
        if (t < best) best = t;
    }
    return (double)loop.lanes * loop.ops * ROUNDS / best;
}

#else

double dpk_peak_measure(int isa, int dtype, bool dot) {
    return (void)isa, (void)dtype, (void)dot, 0;
}

#endif
