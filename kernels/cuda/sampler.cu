/* The loop around the network on the device: struct dpk_loop of backend.h, and normal numbers.
 *
 * The number of the row is read from memory, so that one graph serves all steps. row[0] is the next
 * one: `before` copies it to row[1], `after` reads that and advances row[0]; no block reads a word
 * that another writes. Sums are made in double and rounded once, as runtime/sampler.c does; some
 * hundred thousand values cost nothing even where doubles are slow. */
#include "backend_cuda.h"
#include "device.cuh"

enum { THREADS = 256 };

static unsigned grid_for(const struct dpk_cuda *cuda, int64_t n) {
    unsigned blocks = dpk_cuda_blocks(n, THREADS), most = (unsigned)cuda->n_sm * 8;
    return blocks < most ? blocks : most;
}

/* ---- Before the network -------------------------------------------------------------------- */

__global__ void loop_before_kernel(struct dpk_loop loop, int64_t n) {
    const int32_t row = loop.row[0];
    const float scale = (float)loop.rows[row].input_scale;
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        loop.row[1] = row;
        if (loop.step) *loop.step = row;
    }
    if (!loop.latent) return;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const float v = loop.x[i] * scale;
        loop.latent[i] = v;
        if (loop.guided) loop.latent[n + i] = v;
    }
}

int dpk_cuda_loop_before(struct dpk_cuda *cuda, const struct dpk_loop *loop, dpk_error *err) {
    const int64_t n = loop->one * loop->n_images;
    for (int i = 0; i < loop->n_gives; i++)
        DPK_CUDA_TRY(cudaMemcpyAsync(loop->give[i].to, loop->give[i].from, loop->give[i].n_bytes,
                                     cudaMemcpyDeviceToDevice, cuda->stream),
                     "loop", err);
    DPK_CUDA_TRY(
        DPK_LAUNCH(loop_before_kernel, grid_for(cuda, n), THREADS, 0, cuda->stream, *loop, n),
        "loop", err);
    return DPK_OK;
}

/* ---- After it ------------------------------------------------------------------------------ */

__device__ __forceinline__ float guide(const struct dpk_loop &loop, int64_t n, int64_t i) {
    if (!loop.guided) return loop.output[i];
    const float neg = loop.output[i], pos = loop.output[n + i];
    return __fadd_rn(neg, __fmul_rn(loop.guidance, __fsub_rn(pos, neg)));
}

/* Block b: deviation of image b's positive output over that of its guided one; both by two
 * passes. */
__global__ void loop_ratio_kernel(struct dpk_loop loop, int64_t n) {
    DPK_SHARED(double, partial, [32]);
    const int64_t first = blockIdx.x * loop.one;
    double pos = 0, all = 0, pos2 = 0, all2 = 0;
    for (int64_t i = threadIdx.x; i < loop.one; i += blockDim.x) {
        pos += (double)loop.output[n + first + i];
        all += (double)guide(loop, n, first + i);
    }
    pos = dpk_block_sum(pos, partial) / (double)loop.one;
    all = dpk_block_sum(all, partial) / (double)loop.one;
    for (int64_t i = threadIdx.x; i < loop.one; i += blockDim.x) {
        const double a = (double)loop.output[n + first + i] - pos;
        const double b = (double)guide(loop, n, first + i) - all;
        pos2 += a * a;
        all2 += b * b;
    }
    pos2 = dpk_block_sum(pos2, partial);
    all2 = dpk_block_sum(all2, partial);
    if (threadIdx.x == 0) loop.ratio[blockIdx.x] = (float)sqrt(pos2 / all2);
}

/* A combination of the row's operands for value i; those whose coefficient is 0 are not read. */
__device__ double combine(const struct dpk_loop_terms &k, const struct dpk_loop &loop, int64_t n,
                          int64_t i, double m, const float *noise) {
    double s = k.m * m;
    if (k.x != 0) s += k.x * (double)loop.x[i];
    if (k.kept != 0) s += k.kept * (double)loop.state[i];
    for (int j = 0; j < DPK_LOOP_SLOTS; j++)
        if (k.slot[j] != 0) s += k.slot[j] * (double)loop.state[(1 + j) * n + i];
    if (k.noise != 0) s += k.noise * (double)noise[i];
    return s;
}

__global__ void loop_after_kernel(struct dpk_loop loop, int64_t n) {
    const int32_t number = loop.row[1];
    const struct dpk_loop_row &row = loop.rows[number];
    const float *noise = row.noise < 0 ? NULL : loop.noise + row.noise * n;
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    if (blockIdx.x == 0 && threadIdx.x == 0) loop.row[0] = number + 1;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        float e = guide(loop, n, i);
        if (loop.ratio) {
            const float scaled = __fmul_rn(e, loop.ratio[i / loop.one]);
            e = __fadd_rn(__fmul_rn(loop.rescale, scaled),
                          __fmul_rn(__fsub_rn(1.0f, loop.rescale), e));
        }
        double m = row.m_e * (double)e;
        if (row.m_x != 0) m += row.m_x * (double)loop.x[i];
        float x = (float)combine(row.next, loop, n, i, m, noise);
        if (row.keeps) {
            const float kept = (float)combine(row.keep, loop, n, i, m, noise);
            loop.state[i] = kept;
        }
        if (row.store >= 0) loop.state[(1 + row.store) * n + i] = (float)m;
        if (loop.repaint && !loop.repaint[i % loop.one / loop.channels])
            x = __fadd_rn(__fmul_rn((float)row.signal, loop.init_latent[i]),
                          __fmul_rn((float)row.level, loop.init_noise[i]));
        loop.x[i] = x;
    }
}

int dpk_cuda_loop_after(struct dpk_cuda *cuda, const struct dpk_loop *loop, dpk_error *err) {
    const int64_t n = loop->one * loop->n_images;
    if (loop->ratio)
        DPK_CUDA_TRY(
            DPK_LAUNCH(loop_ratio_kernel, (unsigned)loop->n_images, 512, 0, cuda->stream, *loop, n),
            "guidance", err);
    DPK_CUDA_TRY(
        DPK_LAUNCH(loop_after_kernel, grid_for(cuda, n), THREADS, 0, cuda->stream, *loop, n),
        "sampler", err);
    return DPK_OK;
}

/* ---- Normal numbers ------------------------------------------------------------------------ */

/* Philox4x32-10 and cuRAND's Box-Muller, as runtime/random.c has them: thread k of PyTorch's kernel
 * makes, in every round, the four values k, k + threads, k + 2 threads, k + 3 threads. Functions in
 * double, so that the numbers are the host's. */
__device__ void philox(uint64_t seed, uint64_t counter, uint64_t thread, uint32_t *out) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)thread, c3 = (uint32_t)(thread >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

__device__ void box_muller(uint32_t x, uint32_t y, float *out) {
    const float u =
        __fadd_rn(__fmul_rn((float)x, 2.3283064365386963e-10f), 1.1641532182693481e-10f);
    const float v =
        __fadd_rn(__fmul_rn((float)y, 1.4629180792671596e-09f), 7.3145903963357981e-10f);
    const float s = (float)sqrt(-2.0 * log((double)u));
    out[0] = __fmul_rn(s, (float)sin((double)v));
    out[1] = __fmul_rn(s, (float)cos((double)v));
}

__global__ void normal_kernel(struct dpk_normal job, int64_t threads, int64_t jobs) {
    const int64_t one = job.pixels * job.channels, n = job.n_images * one;
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < jobs; i += stride) {
        const int64_t thread = i % threads, round = i / threads;
        uint32_t word[4];
        float v[4];
        philox(job.seed, job.offset / 4 + (uint64_t)round, (uint64_t)thread, word);
        box_muller(word[0], word[1], v);
        box_muller(word[2], word[3], v + 2);
        for (int j = 0; j < 4; j++) {
            const int64_t at = thread + (round * 4 + j) * threads;
            if (at >= n) break;
            const int64_t image = at / one, c = at % one / job.pixels, p = at % job.pixels;
            job.out[image * one + p * job.channels + c] = v[j];
        }
    }
}

int dpk_cuda_normal(struct dpk_cuda *cuda, const struct dpk_normal *normal, dpk_error *err) {
    const int64_t n = normal->n_images * normal->pixels * normal->channels;
    const int64_t blocks = (n + 255) / 256;
    const int64_t threads = blocks * 256 < normal->threads ? blocks * 256 : normal->threads;
    const int64_t jobs = threads * ((n + 4 * threads - 1) / (4 * threads));
    DPK_CUDA_TRY(DPK_LAUNCH(normal_kernel, grid_for(cuda, jobs), THREADS, 0, cuda->stream, *normal,
                            threads, jobs),
                 "noise", err);
    return DPK_OK;
}
