/* Tensor-core fragments and asynchronous copies (sm_80 and newer), and their emulation.
 *
 * Layouts are PTX's of mma.sync: of a warp's lane l, with g = l / 4 and t = l % 4 and rows of 32
 * bytes (16 elements of 16 bits, or 32 of 8),
 *   A 16 rows     a[0] row g, bytes 4t..4t+3; a[1] row g + 8; a[2], a[3] the same, 16 bytes on
 *   B 8 columns   b[0] column g, bytes 4t..4t+3; b[1] 16 bytes on; a column's k's are contiguous
 *   C 16 x 8      c[0], c[1] row g, columns 2t, 2t+1; c[2], c[3] row g + 8
 * Tiles in shared memory have rows of 64 bytes, two to a line of 128, with 16-byte chunks permuted
 * so that eight consecutive rows of one chunk, which is what ldmatrix reads at a time, lie in
 * different banks (dpk_swizzle).
 *
 * In the emulation lanes meet and the last one computes for all, from the lanes' own
 * registers and addresses: wrong lane mappings give wrong results there too. Copies are not made
 * before the wait that promises them, and their destination is NaN (integers: -1) until then. */
#ifndef DPK_MMA_CUH
#define DPK_MMA_CUH

#include "device.cuh"

#include <stdint.h>

#ifdef DPK_CUDA_EMU
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <vector>
#endif

/* Offset in bytes of a chunk (0..3) of a row. */
__device__ __forceinline__ int dpk_swizzle(int row, int chunk) {
    int line = row >> 1;
    return line * 128 + (((row & 1) << 2 | (chunk ^ (line & 3))) << 4);
}

/* What the tensor cores multiply: the accumulator's type goes with it. */
template <class T> struct dpk_product;
template <> struct dpk_product<dpk_bf16> { typedef float acc; };
template <> struct dpk_product<int8_t> { typedef int32_t acc; };

#ifndef DPK_CUDA_EMU

/* Copies of one thread, global to shared memory, in groups. */
struct dpk_async {
    /* 16 bytes, both ends aligned; zeros where !valid (src is then not read, but a valid address).
     */
    __device__ __forceinline__ void copy16(void *dst, const void *src, bool valid) {
        uint32_t to = (uint32_t)__cvta_generic_to_shared(dst);
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(src),
                     "r"(valid ? 16 : 0)
                     : "memory");
    }
    __device__ __forceinline__ void commit() {
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    /* All but the last N groups are there, for this thread. */
    template <int N> __device__ __forceinline__ void wait() {
        asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
    }
};

/* Four 8 x 16-byte matrices; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void dpk_ldmatrix(uint32_t r[4], const void *row) {
    uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

/* The same, each matrix (of 16-bit elements) transposed. */
__device__ __forceinline__ void dpk_ldmatrix_trans(uint32_t r[4], const void *row) {
    uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void dpk_mma_one(float c[4], const uint32_t a[4], const uint32_t b[2],
                                            dpk_bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void dpk_mma_one(int32_t c[4], const uint32_t a[4], const uint32_t b[2],
                                            int8_t) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* c[i][j] += a[i] b[j]: MI x NJ products of 16 x 8. */
template <class T, int MI, int NJ>
__device__ __forceinline__ void dpk_mma(typename dpk_product<T>::acc (&c)[MI][NJ][4],
                                        const uint32_t (&a)[MI][4], const uint32_t (&b)[NJ][2]) {
#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
        for (int j = 0; j < NJ; j++) dpk_mma_one(c[i][j], a[i], b[j], T());
    }
}

#else

static inline void dpk_emu_aligned(const void *p) {
    if ((uintptr_t)p % 16 == 0) return;
    fputs("a 16-byte access is not aligned\n", stderr);
    abort();
}

struct dpk_async {
    struct copy {
        void *dst;
        const void *src;
    };
    std::deque<std::vector<copy>> groups = std::deque<std::vector<copy>>(1);
    void copy16(void *dst, const void *src, bool valid) {
        dpk_emu_aligned(dst);
        dpk_emu_aligned(src);
        memset(dst, 0xff, 16);
        groups.back().push_back({dst, valid ? src : nullptr});
    }
    void commit() { groups.emplace_back(); }
    template <int N> void wait() {
        for (; groups.size() > N + 1; groups.pop_front()) {
            for (const copy &c : groups.front()) {
                if (c.src) memcpy(c.dst, c.src, 16);
                else memset(c.dst, 0, 16);
            }
        }
    }
};

/* What a lane brings to a meeting is the address of its struct T. */
template <class T> static inline T *dpk_emu_lane_of(unsigned char *slots, int l) {
    T *p;
    memcpy(&p, slots + l * DPK_EMU_SLOT, sizeof p);
    return p;
}

struct dpk_emu_matrix {
    uint32_t *r;
    const void *row;
    bool trans;
};

static inline void dpk_emu_load_matrices(unsigned char *slots, unsigned, const void *) {
    for (int l = 0; l < 32; l++) {
        const dpk_emu_matrix *to = dpk_emu_lane_of<dpk_emu_matrix>(slots, l);
        for (int i = 0; i < 4; i++) {
            uint16_t pair[2];
            for (int e = 0; e < 2; e++) {
                int row = to->trans ? 2 * (l % 4) + e : l / 4,
                    at = to->trans ? l / 4 : 2 * (l % 4) + e;
                const dpk_emu_matrix *from = dpk_emu_lane_of<dpk_emu_matrix>(slots, 8 * i + row);
                memcpy(&pair[e], (const char *)from->row + 2 * at, 2);
            }
            memcpy(&to->r[i], pair, 4);
        }
    }
}

static inline void dpk_ldmatrix(uint32_t r[4], const void *row) {
    dpk_emu_matrix mine = {r, row, false}, *p = &mine;
    dpk_emu_aligned(row);
    dpk_emu_warp_meet(0xffffffffu, &p, sizeof p, dpk_emu_load_matrices, NULL);
}

static inline void dpk_ldmatrix_trans(uint32_t r[4], const void *row) {
    dpk_emu_matrix mine = {r, row, true}, *p = &mine;
    dpk_emu_aligned(row);
    dpk_emu_warp_meet(0xffffffffu, &p, sizeof p, dpk_emu_load_matrices, NULL);
}

static inline void dpk_emu_widen(float out[2], uint32_t r, dpk_bf16) {
    uint32_t lo = r << 16, hi = r & 0xffff0000u;
    memcpy(&out[0], &lo, 4);
    memcpy(&out[1], &hi, 4);
}

static inline void dpk_emu_widen(int32_t out[4], uint32_t r, int8_t) {
    for (int i = 0; i < 4; i++) out[i] = (int8_t)(r >> 8 * i);
}

template <class T, int MI, int NJ> struct dpk_emu_fragments {
    typename dpk_product<T>::acc (*c)[NJ][4];
    const uint32_t (*a)[4];
    const uint32_t (*b)[2];
    static void multiply(unsigned char *slots, unsigned, const void *) {
        typedef typename dpk_product<T>::acc acc;
        enum { PER = 4 / sizeof(T), K = 32 / sizeof(T) };
        acc a[16][K], b[8][K];
        for (int i = 0; i < MI; i++) {
            for (int l = 0; l < 32; l++) {
                const uint32_t *r = dpk_emu_lane_of<dpk_emu_fragments>(slots, l)->a[i];
                for (int q = 0; q < 4; q++) {
                    dpk_emu_widen(a[l / 4 + q % 2 * 8] + (l % 4) * PER + q / 2 * (K / 2), r[q],
                                  T());
                }
            }
            for (int j = 0; j < NJ; j++) {
                for (int l = 0; l < 32; l++) {
                    const uint32_t *r = dpk_emu_lane_of<dpk_emu_fragments>(slots, l)->b[j];
                    for (int q = 0; q < 2; q++) {
                        dpk_emu_widen(b[l / 4] + (l % 4) * PER + q * (K / 2), r[q], T());
                    }
                }
                for (int l = 0; l < 32; l++) {
                    acc *c = dpk_emu_lane_of<dpk_emu_fragments>(slots, l)->c[i][j];
                    for (int q = 0; q < 4; q++) {
                        const acc *row = a[l / 4 + q / 2 * 8], *column = b[l % 4 * 2 + q % 2];
                        acc sum = c[q];
                        for (int k = 0; k < K; k++) sum += row[k] * column[k];
                        c[q] = sum;
                    }
                }
            }
        }
    }
};

template <class T, int MI, int NJ>
static inline void dpk_mma(typename dpk_product<T>::acc (&c)[MI][NJ][4], const uint32_t (&a)[MI][4],
                           const uint32_t (&b)[NJ][2]) {
    dpk_emu_fragments<T, MI, NJ> mine = {c, a, b}, *p = &mine;
    dpk_emu_warp_meet(0xffffffffu, &p, sizeof p, dpk_emu_fragments<T, MI, NJ>::multiply, NULL);
}

#endif
#endif
