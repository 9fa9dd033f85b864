/* The tensor-core product behind linears and convolutions: out = epilogue(A W^T).
 *
 * A [m][k] is what a loader makes of the operator's input, W [n_w][k] a weight, or what a loader
 * makes of one; both K-contiguous. A block makes a tile BM x BN of sums over K in steps of 64 bytes
 * of a row (32 k's of 16 bits, 64 of 8) through STAGES buffers: while the warps multiply one, the
 * loaders fill others, by cp.async or by registers (issue before the product, finish after it).
 * Warps stand WM by WN in the tile, each with (BM / WM) x (BN / WN) sums in registers. The sums go
 * to the epilogue through shared memory, eight adjacent columns of a row to a thread, or, where K
 * is split over blocks, to memory as they are; a second kernel then adds the splits in their order,
 * so that results do not depend on who was first.
 *
 * Tiles        threads  sums/thread  shared memory  for
 *   128 x 160      256       80         72 KiB      widths of 160 x 2^k (SDXL): one wave on 132 SMs
 *   128 x 128      256       64         64 KiB      widths of 128 x 2^k (VAE, T5)
 *    64 x  64      128       32         32 KiB      few rows or columns
 * Per k16 and warp of the first: 7 ldmatrix.x4 for 20 mma. No bank conflicts in the main loop.
 *
 * Floor: the sums at the device's mma.sync rate, about 0.9 of peak on sm_80..89 and 0.6-0.65 of
 * the wgmma peak on sm_90; not measured. */
#ifndef DPK_GEMM_CUH
#define DPK_GEMM_CUH

#include "epilogue.cuh"
#include "mma.cuh"

template <int BM_, int BN_, int WM_, int WN_, int STAGES_, int BLOCKS_> struct dpk_gemm_tile {
    enum {
        BM = BM_,
        BN = BN_,
        WM = WM_,
        WN = WN_,
        STAGES = STAGES_,
        BLOCKS = BLOCKS_, /* on a multiprocessor, where no loader holds data in registers */
        THREADS = WM * WN * 32,
        ROWS = BM / WM,    /* of a warp */
        COLUMNS = BN / WN, /* of a warp */
        MI = ROWS / 16,
        NJ = COLUMNS / 8,
        A_BYTES = BM * 64,
        STAGE_BYTES = (BM + BN) * 64,
        SHARED_BYTES = STAGES * STAGE_BYTES,
        PITCH = COLUMNS + 8 /* of a row of sums in shared memory: no bank conflicts in writing */
    };
    static_assert(NJ % 2 == 0, "ldmatrix brings two columns of fragments");
    static_assert(WM * WN * 16 * PITCH * 4 <= SHARED_BYTES, "sums pass through the stages");
};
typedef dpk_gemm_tile<128, 160, 4, 2, 4, 1> dpk_tile_wide;
typedef dpk_gemm_tile<128, 128, 4, 2, 4, 2> dpk_tile_square;
typedef dpk_gemm_tile<64, 64, 2, 2, 4, 4> dpk_tile_small;

enum dpk_gemm_tile_id { DPK_TILE_WIDE, DPK_TILE_SQUARE, DPK_TILE_SMALL, DPK_N_TILES };
/* Sets of them: kernels are not there for every tile, or the plugin would be twice as large. */
enum dpk_gemm_tiles {
    DPK_TILES_SMALL = 1 << DPK_TILE_SMALL,
    DPK_TILES_NARROW = 1 << DPK_TILE_SQUARE | DPK_TILES_SMALL, /* of widened weights */
    DPK_TILES_ALL = 1 << DPK_TILE_WIDE | DPK_TILES_NARROW
};

struct dpk_gemm_shape {
    int m, n_w;  /* rows of A, rows of W */
    int k_tiles; /* steps of 64 bytes */
    int tiles_m, tiles_n;
    int splits;
    void *partial; /* [splits][m][partial_n] sums; only if splits > 1 */
    int partial_n; /* n_w rounded up to 16 */
};

/* Tiles in groups of eight rows of tiles, so that the blocks of a wave share rows and columns. */
__device__ __forceinline__ void dpk_gemm_place(const dpk_gemm_shape &s, int block, int *tm,
                                               int *tn) {
    const int group = 8;
    int per = group * s.tiles_n, first = block / per * group;
    int height = s.tiles_m - first < group ? s.tiles_m - first : group;
    *tm = first + block % per % height;
    *tn = block % per / height;
}

template <class T, class Tile>
__device__ __forceinline__ void
dpk_gemm_step(typename dpk_product<T>::acc (&acc)[Tile::MI][Tile::NJ][4], const char *stage,
              int row, int column, int lane) {
    const char *a = stage, *b = stage + Tile::A_BYTES;
#pragma unroll
    for (int kk = 0; kk < 4; kk += 2) {
        uint32_t fa[Tile::MI][4], fb[Tile::NJ][2];
#pragma unroll
        for (int i = 0; i < Tile::MI; i++) {
            dpk_ldmatrix(fa[i], a + dpk_swizzle(row + i * 16 + (lane & 15), kk + (lane >> 4)));
        }
#pragma unroll
        for (int j = 0; j < Tile::NJ; j += 2) {
            int r = column + j * 8 + (lane & 7) + (lane >> 4 << 3);
            dpk_ldmatrix(fb[j], b + dpk_swizzle(r, kk + (lane >> 3 & 1)));
        }
        dpk_mma<T, Tile::MI, Tile::NJ>(acc, fa, fb);
    }
}

/* Eight sums (with GLU sixteen) of row m from column c of W on: to their split, or finished. */
template <bool GLU, class Acc>
__device__ __forceinline__ void dpk_gemm_unit(const dpk_gemm_shape &s, const dpk_epilogue_args &e,
                                              int m, int c, const Acc *sums) {
    enum { W = GLU ? 16 : 8 };
    Acc v[W];
#pragma unroll
    for (int i = 0; i < W; i += 4) *(int4 *)(v + i) = *(const int4 *)(sums + i);
    if (s.splits > 1) {
        long long at = ((long long)blockIdx.z * s.m + m) * s.partial_n + c;
        Acc *to = (Acc *)s.partial + at;
#pragma unroll
        for (int i = 0; i < W; i += 4) *(int4 *)(to + i) = *(const int4 *)(v + i);
    } else {
        int j = GLU ? c / 2 : c;
        if (j < e.n) dpk_epilogue8<GLU>(e, m, j, v);
    }
}

template <class T, class Tile, bool GLU>
__device__ __forceinline__ void
dpk_gemm_finish(const dpk_gemm_shape &s, const dpk_epilogue_args &e,
                typename dpk_product<T>::acc (&acc)[Tile::MI][Tile::NJ][4], char *shared, int m0,
                int n0) {
    typedef typename dpk_product<T>::acc Acc;
    enum { W = GLU ? 16 : 8, UNITS = Tile::COLUMNS / W };
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    Acc *mine = (Acc *)shared + warp * 16 * Tile::PITCH;
    int column = n0 + warp % Tile::WN * Tile::COLUMNS;
#pragma unroll
    for (int i = 0; i < Tile::MI; i++) {
        int row = m0 + warp / Tile::WN * Tile::ROWS + i * 16;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < Tile::NJ; j++) {
            Acc *to = mine + (lane >> 2) * Tile::PITCH + j * 8 + (lane & 3) * 2;
            to[0] = acc[i][j][0], to[1] = acc[i][j][1];
            to[8 * Tile::PITCH] = acc[i][j][2], to[8 * Tile::PITCH + 1] = acc[i][j][3];
        }
        __syncwarp();
#pragma unroll 1
        for (int u = lane; u < 16 * UNITS; u += 32) {
            int r = u / UNITS, c = u % UNITS * W;
            if (row + r >= s.m || column + c >= s.n_w) continue;
            dpk_gemm_unit<GLU>(s, e, row + r, column + c, mine + r * Tile::PITCH + c);
        }
    }
}

/* Loaders: see loaders.cuh. */
template <class T, class Tile, template <int, int> class LoadA, template <int, int> class LoadB,
          bool GLU>
__global__ void __launch_bounds__(Tile::THREADS, LoadA<Tile::BM, Tile::THREADS>::STAGED ||
                                                         LoadB<Tile::BN, Tile::THREADS>::STAGED
                                                     ? 1
                                                     : Tile::BLOCKS)
    dpk_gemm_kernel(const dpk_gemm_shape s, const typename LoadA<Tile::BM, Tile::THREADS>::args a,
                    const typename LoadB<Tile::BN, Tile::THREADS>::args b,
                    const dpk_epilogue_args e) {
    typedef typename dpk_product<T>::acc Acc;
    DPK_SHARED_DYNAMIC(char, shared);
    int tm, tn, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    dpk_gemm_place(s, blockIdx.x, &tm, &tn);
    int per = (s.k_tiles + s.splits - 1) / s.splits, first = blockIdx.z * per;
    int end = first + per < s.k_tiles ? first + per : s.k_tiles;
    int row = warp / Tile::WN * Tile::ROWS, column = warp % Tile::WN * Tile::COLUMNS;

    LoadA<Tile::BM, Tile::THREADS> load_a(a, tm * Tile::BM, first);
    LoadB<Tile::BN, Tile::THREADS> load_b(b, tn * Tile::BN, first);
    dpk_async async;
    Acc acc[Tile::MI][Tile::NJ][4];
#pragma unroll
    for (int i = 0; i < Tile::MI; i++) {
#pragma unroll
        for (int j = 0; j < Tile::NJ; j++) {
#pragma unroll
            for (int q = 0; q < 4; q++) acc[i][j][q] = 0;
        }
    }
#pragma unroll
    for (int t = 0; t < Tile::STAGES - 1; t++) {
        char *stage = shared + t * Tile::STAGE_BYTES;
        if (first + t < end) {
            load_a.issue(async, stage);
            load_b.issue(async, stage + Tile::A_BYTES);
            load_a.finish(stage);
            load_b.finish(stage + Tile::A_BYTES);
        }
        async.commit();
    }
    int now = 0, next = Tile::STAGES - 1;
    for (int t = first; t < end; t++) {
        char *stage = shared + next * Tile::STAGE_BYTES;
        bool more = t + Tile::STAGES - 1 < end;
        async.template wait<Tile::STAGES - 2>();
        __syncthreads();
        if (more) {
            load_a.issue(async, stage);
            load_b.issue(async, stage + Tile::A_BYTES);
        }
        async.commit();
        dpk_gemm_step<T, Tile>(acc, shared + now * Tile::STAGE_BYTES, row, column, lane);
        if (more) {
            load_a.finish(stage);
            load_b.finish(stage + Tile::A_BYTES);
        }
        now = now + 1 < Tile::STAGES ? now + 1 : 0;
        next = next + 1 < Tile::STAGES ? next + 1 : 0;
    }
    __syncthreads(); /* every copy was waited for; the stages become the sums' passage */
    dpk_gemm_finish<T, Tile, GLU>(s, e, acc, shared, tm * Tile::BM, tn * Tile::BN);
}

/* Add the splits, then the epilogue: a thread a unit. */
template <class Acc, bool GLU>
__global__ void __launch_bounds__(256, 2)
    dpk_gemm_add_splits(const dpk_gemm_shape s, const dpk_epilogue_args e) {
    enum { W = GLU ? 16 : 8 };
    int units = (e.n + 7) / 8;
    long long u = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (u >= (long long)s.m * units) return;
    int m = (int)(u / units), j = (int)(u % units) * 8;
    Acc v[W];
#pragma unroll
    for (int i = 0; i < W; i++) v[i] = 0;
    for (int z = 0; z < s.splits; z++) {
        const Acc *from =
            (const Acc *)s.partial + ((long long)z * s.m + m) * s.partial_n + (GLU ? 2 * j : j);
#pragma unroll
        for (int i = 0; i < W; i += 4) {
            Acc t[4];
            *(int4 *)t = *(const int4 *)(from + i);
#pragma unroll
            for (int q = 0; q < 4; q++) v[i + q] += t[q];
        }
    }
    dpk_epilogue8<GLU>(e, m, j, v);
}

/* ---- Host ------------------------------------------------------------------------------------ */

struct dpk_gemm_plan {
    int tile; /* enum dpk_gemm_tile_id */
    int splits;
    int k_tiles;
    size_t partial_bytes; /* of scratch, 0 if splits is 1 */
};
/* The tile and the splits that take fewest tile steps on this device, by the number of waves.
 * m, n_w, k_tiles: as in dpk_gemm_shape. tiles: enum dpk_gemm_tiles. */
dpk_gemm_plan dpk_gemm_choose(int n_sm, int m, int n_w, int k_tiles, int tiles);

/* Sums [splits][m][partial_n] in memory to the result. */
template <class Acc, bool GLU>
int dpk_gemm_launch_sums(struct dpk_cuda *cuda, const dpk_gemm_shape &s, const dpk_epilogue_args &e,
                         dpk_error *err) {
    long long units = (long long)s.m * ((e.n + 7) / 8);
    DPK_CUDA_TRY(DPK_LAUNCH((dpk_gemm_add_splits<Acc, GLU>), dim3(dpk_cuda_blocks(units, 256)),
                            dim3(256), 0, cuda->stream, s, e),
                 "the epilogue of a product", err);
    return DPK_OK;
}

template <class T, class Tile, template <int, int> class LoadA, template <int, int> class LoadB,
          bool GLU>
int dpk_gemm_launch_tile(struct dpk_cuda *cuda, dpk_gemm_shape s,
                         const typename LoadA<Tile::BM, Tile::THREADS>::args &a,
                         const typename LoadB<Tile::BN, Tile::THREADS>::args &b,
                         const dpk_epilogue_args &e, dpk_error *err) {
    typedef typename dpk_product<T>::acc Acc;
    s.tiles_m = (s.m + Tile::BM - 1) / Tile::BM;
    s.tiles_n = (s.n_w + Tile::BN - 1) / Tile::BN;
    long long blocks = (long long)s.tiles_m * s.tiles_n;
    if (blocks > INT32_MAX) {
        return dpk_error_set(err, DPK_EUNSUPPORTED,
                             "cuda: a product of %lld tiles, want at most %d", blocks, INT32_MAX);
    }
    DPK_CUDA_TRY(DPK_LAUNCH((dpk_gemm_kernel<T, Tile, LoadA, LoadB, GLU>),
                            dim3((unsigned)blocks, 1, (unsigned)s.splits), dim3(Tile::THREADS),
                            Tile::SHARED_BYTES, cuda->stream, s, a, b, e),
                 "a product", err);
    return s.splits > 1 ? dpk_gemm_launch_sums<Acc, GLU>(cuda, s, e, err) : DPK_OK;
}

/* Run a product as planned; partial: plan.partial_bytes of scratch, 16-byte aligned. */
template <class T, template <int, int> class LoadA, template <int, int> class LoadB, bool GLU>
int dpk_gemm_launch(struct dpk_cuda *cuda, const dpk_gemm_plan &plan, int m, int n_w, void *partial,
                    const typename LoadA<64, 128>::args &a, const typename LoadB<64, 128>::args &b,
                    const dpk_epilogue_args &e, dpk_error *err) {
    dpk_gemm_shape s = {m, n_w, plan.k_tiles, 0, 0, plan.splits, partial, (n_w + 15) / 16 * 16};
    if constexpr (!LoadA<64, 128>::SMALL && !LoadB<64, 128>::STAGED) {
        if (plan.tile == DPK_TILE_WIDE)
            return dpk_gemm_launch_tile<T, dpk_tile_wide, LoadA, LoadB, GLU>(cuda, s, a, b, e, err);
    }
    if constexpr (!LoadA<64, 128>::SMALL) {
        if (plan.tile == DPK_TILE_SQUARE)
            return dpk_gemm_launch_tile<T, dpk_tile_square, LoadA, LoadB, GLU>(cuda, s, a, b, e,
                                                                               err);
    }
    return dpk_gemm_launch_tile<T, dpk_tile_small, LoadA, LoadB, GLU>(cuda, s, a, b, e, err);
}

#endif
