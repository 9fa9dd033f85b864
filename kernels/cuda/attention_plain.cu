/* attention where flash attention does not reach (contract: attention.cuh).
 *
 * Heads of bfloat16 above 160 channels (the decoder's, of 512) are two cuBLASLt products around a
 * softmax over rows of scratch, a piece of the queries at a time: float32 logits and bfloat16
 * probabilities of at most 96 MiB. 16384 tokens of 512 channels are 0.55 TFLOP and about 2 GB of
 * traffic. Everything else is a kernel of float32 arithmetic: a block has R <= 16 query rows, walks
 * the keys in tiles of 32 with the running maximum and sum of flash attention, and holds queries
 * and results in shared memory (128 d bytes at R = 16, at most 90 KiB). Not measured. */
#include "attention.cuh"
#include "lt.h"

/* ---- Long heads: softmax between two products ------------------------------------------------ */

/* Rows of logits s [n][pitch], unscaled, to probabilities p [n][pitch]: a block a row. Row r of s
 * is query first + r. */
static __global__ void __launch_bounds__(256)
    attention_softmax(const dpk_attention_args a, int image, int head, int first, int pitch,
                      const float *s, dpk_bf16 *p) {
    DPK_SHARED(float, partial, [32]);
    int row = first + blockIdx.x;
    const float *from = s + (long long)blockIdx.x * pitch;
    dpk_bf16 *to = p + (long long)blockIdx.x * pitch;
    float top = -INFINITY, sum = 0.0f;
    for (int j = threadIdx.x; j < a.lk; j += 256) {
        top = fmaxf(top, dpk_full_logit<dpk_bf16>(a, image, head, row, j, from[j]));
    }
    top = dpk_block_max(top, partial);
    float base = top == -INFINITY ? 0.0f : top;
    for (int j = threadIdx.x; j < a.lk; j += 256) {
        sum += dpk_exp2(dpk_full_logit<dpk_bf16>(a, image, head, row, j, from[j]) - base);
    }
    sum = dpk_block_sum(sum, partial);
    float by = sum > 0.0f ? 1.0f / sum : 0.0f;
    for (int j = threadIdx.x; j < pitch; j += 256) {
        float v = j < a.lk ? dpk_full_logit<dpk_bf16>(a, image, head, row, j, from[j]) : -INFINITY;
        to[j] = __float2bfloat16(dpk_exp2(v - base) * by);
    }
}

/* ---- Everything else ------------------------------------------------------------------------- */

enum { PLAIN_THREADS = 128, PLAIN_KEYS = 32, PLAIN_ROWS = 16, PLAIN_STEP = 64 };

/* Floats of shared memory: queries and results [rows][d], keys, probabilities, three a row. */
static __host__ __device__ size_t plain_floats(int rows, int d) {
    return 2 * (size_t)rows * (size_t)d + PLAIN_KEYS * (PLAIN_STEP + 1) +
           (size_t)PLAIN_KEYS * (size_t)rows + 3 * (size_t)rows;
}

/* The logits of 32 keys from k0 on: s[key][row]. */
template <class T>
__device__ __forceinline__ void plain_logits(const dpk_attention_args &a, const T *k, int rows,
                                             int k0, const float *q, float *keys, float *s) {
    float acc[PLAIN_ROWS * PLAIN_KEYS / PLAIN_THREADS] = {};
    int key = threadIdx.x % PLAIN_KEYS, first = threadIdx.x / PLAIN_KEYS;
    for (int c0 = 0; c0 < a.d; c0 += PLAIN_STEP) {
        int n = a.d - c0 < PLAIN_STEP ? a.d - c0 : PLAIN_STEP;
        __syncthreads();
        for (int i = threadIdx.x; i < PLAIN_KEYS * PLAIN_STEP; i += PLAIN_THREADS) {
            int j = i / PLAIN_STEP, c = i % PLAIN_STEP;
            bool in = k0 + j < a.lk && c < n;
            keys[j * (PLAIN_STEP + 1) + c] =
                in ? dpk_float(k[(k0 + j) * a.k_stride + c0 + c]) : 0.0f;
        }
        __syncthreads();
        for (int c = 0; c < n; c++) {
            float x = keys[key * (PLAIN_STEP + 1) + c];
#pragma unroll
            for (int i = 0; i < PLAIN_ROWS / 4; i++) {
                int r = first + 4 * i;
                if (r < rows) acc[i] += q[r * a.d + c0 + c] * x;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < PLAIN_ROWS / 4; i++) {
        int r = first + 4 * i;
        if (r < rows) s[key * rows + r] = acc[i];
    }
}

template <class T>
__global__ void __launch_bounds__(PLAIN_THREADS, 3)
    attention_plain(const dpk_attention_args a, int rows) {
    DPK_SHARED_DYNAMIC(float, q);
    float *o = q + rows * a.d, *keys = o + rows * a.d, *p = keys + PLAIN_KEYS * (PLAIN_STEP + 1);
    float *m = p + PLAIN_KEYS * rows, *l = m + rows, *alpha = l + rows;
    int tiles = (a.lq + rows - 1) / rows, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int q0 = blockIdx.x % tiles * rows, head = blockIdx.x / tiles % a.heads;
    int image = blockIdx.x / tiles / a.heads;
    const T *from = (const T *)a.q + (long long)image * a.lq * a.q_stride + (long long)head * a.d;
    const T *k = (const T *)a.k + (long long)image * a.lk * a.k_stride + (long long)head * a.d;
    const T *v = (const T *)a.v + (long long)image * a.lk * a.v_stride + (long long)head * a.d;
    int end = a.causal && q0 + rows < a.lk ? q0 + rows : a.lk;
    for (int i = threadIdx.x; i < rows * a.d; i += PLAIN_THREADS) {
        int r = i / a.d, c = i % a.d;
        q[i] = q0 + r < a.lq ? dpk_float(from[(q0 + r) * a.q_stride + c]) : 0.0f;
        o[i] = 0.0f;
    }
    if ((int)threadIdx.x < rows) m[threadIdx.x] = -INFINITY, l[threadIdx.x] = 0.0f;
    for (int k0 = 0; k0 < end; k0 += PLAIN_KEYS) {
        plain_logits(a, k, rows, k0, q, keys, p);
        __syncthreads();
        for (int r = warp; r < rows; r += PLAIN_THREADS / 32) {
            float t = dpk_full_logit<T>(a, image, head, q0 + r, k0 + lane, p[lane * rows + r]);
            float before = m[r], top = fmaxf(before, dpk_warp_max(t));
            float base = top == -INFINITY ? 0.0f : top, e = exp2f(t - base);
            float sum = dpk_warp_sum(e);
            p[lane * rows + r] = e;
            __syncwarp();
            if (lane == 0) {
                alpha[r] = exp2f(before - base);
                l[r] = l[r] * alpha[r] + sum;
                m[r] = top;
            }
        }
        __syncthreads();
        int n = a.lk - k0 < PLAIN_KEYS ? a.lk - k0 : PLAIN_KEYS;
        for (int c = threadIdx.x; c < a.d; c += PLAIN_THREADS) {
            float acc[PLAIN_ROWS];
#pragma unroll
            for (int r = 0; r < PLAIN_ROWS; r++) {
                acc[r] = r < rows ? o[r * a.d + c] * alpha[r] : 0.0f;
            }
            for (int j = 0; j < n; j++) {
                float x = dpk_float(v[(k0 + j) * a.v_stride + c]);
#pragma unroll
                for (int r = 0; r < PLAIN_ROWS; r++) {
                    if (r < rows) acc[r] += p[j * rows + r] * x;
                }
            }
#pragma unroll
            for (int r = 0; r < PLAIN_ROWS; r++) {
                if (r < rows) o[r * a.d + c] = acc[r];
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < rows * a.d; i += PLAIN_THREADS) {
        int r = i / a.d, c = i % a.d;
        if (q0 + r >= a.lq) continue;
        long long at = ((long long)image * a.lq + q0 + r) * ((long long)a.heads * a.d) +
                       (long long)head * a.d + c;
        ((T *)a.out)[at] = dpk_round<T>(l[r] > 0.0f ? o[i] / l[r] : 0.0f);
    }
}

/* ---- Host ------------------------------------------------------------------------------------ */

/* Long heads: queries of a piece, and its logits and probabilities in scratch. */
struct piece {
    int rows, pitch;
    size_t probabilities, n_bytes;
};
static struct piece piece_of(const dpk_attention_args *a) {
    const size_t most = (size_t)96 << 20;
    struct piece p;
    p.pitch = (a->lk + 7) / 8 * 8;
    size_t rows = most / ((size_t)p.pitch * 6) / 64 * 64;
    p.rows = rows < 64 ? 64 : rows > (size_t)a->lq ? a->lq : (int)rows;
    if (p.rows > a->lq) p.rows = a->lq;
    p.probabilities = ((size_t)p.rows * (size_t)p.pitch * 4 + 255) / 256 * 256;
    p.n_bytes = p.probabilities + (size_t)p.rows * (size_t)p.pitch * 2;
    return p;
}

static struct dpk_lt_product logits_product(const dpk_attention_args *a, const struct piece *p,
                                            int n) {
    struct dpk_lt_product q = {};
    q.m = n, q.n = a->lk, q.k = a->d;
    q.lda = a->q_stride, q.ldb = a->k_stride, q.ldd = p->pitch;
    q.batch = 1;
    q.dtype = DPK_BF16, q.out_dtype = DPK_F32;
    q.alpha = 1.0f;
    return q;
}

static struct dpk_lt_product values_product(const dpk_attention_args *a, const struct piece *p,
                                            int n) {
    struct dpk_lt_product q = {};
    q.m = n, q.n = a->d, q.k = a->lk;
    q.lda = p->pitch, q.ldb = a->v_stride, q.ldd = (int64_t)a->heads * a->d;
    q.batch = 1;
    q.dtype = q.out_dtype = DPK_BF16;
    q.b_columns = 1;
    q.alpha = 1.0f;
    return q;
}

size_t dpk_attention_scratch_long(const dpk_attention_args *a) { return piece_of(a).n_bytes; }

int dpk_attention_prepare_long(struct dpk_cuda *cuda, const dpk_attention_args *a, dpk_error *err) {
    struct piece p = piece_of(a);
    int sizes[2] = {p.rows, a->lq % p.rows};
    for (int n : sizes) {
        if (!n) continue;
        struct dpk_lt_product s = logits_product(a, &p, n), o = values_product(a, &p, n);
        DPK_TRY(dpk_lt_prepare(cuda, &s, err));
        DPK_TRY(dpk_lt_prepare(cuda, &o, err));
    }
    return DPK_OK;
}

static int run_piece(struct dpk_cuda *cuda, const dpk_attention_args *a, const struct piece *p,
                     char *scratch, int image, int head, int first, dpk_error *err) {
    int n = a->lq - first < p->rows ? a->lq - first : p->rows;
    struct dpk_lt_product s = logits_product(a, p, n), o = values_product(a, p, n);
    int64_t query = (int64_t)image * a->lq + first, key = (int64_t)image * a->lk;
    const dpk_bf16 *q = (const dpk_bf16 *)a->q + query * a->q_stride + (int64_t)head * a->d;
    const dpk_bf16 *k = (const dpk_bf16 *)a->k + key * a->k_stride + (int64_t)head * a->d;
    const dpk_bf16 *v = (const dpk_bf16 *)a->v + key * a->v_stride + (int64_t)head * a->d;
    dpk_bf16 *out = (dpk_bf16 *)a->out + query * a->heads * a->d + (int64_t)head * a->d;
    float *sums = (float *)scratch;
    dpk_bf16 *weights = (dpk_bf16 *)(scratch + p->probabilities);
    DPK_TRY(dpk_lt_run(cuda, &s, q, k, NULL, sums, NULL, err));
    DPK_CUDA_TRY(DPK_LAUNCH(attention_softmax, dim3((unsigned)n), dim3(256), 0, cuda->stream, *a,
                            image, head, first, p->pitch, sums, weights),
                 "attention", err);
    return dpk_lt_run(cuda, &o, weights, v, NULL, out, NULL, err);
}

int dpk_attention_run_long(struct dpk_cuda *cuda, const dpk_attention_args *a, void *scratch,
                           dpk_error *err) {
    struct piece p = piece_of(a);
    for (int image = 0; image < a->images; image++)
        for (int head = 0; head < a->heads; head++)
            for (int first = 0; first < a->lq; first += p.rows)
                DPK_TRY(run_piece(cuda, a, &p, (char *)scratch, image, head, first, err));
    return DPK_OK;
}

template <class T>
static int run_plain(struct dpk_cuda *cuda, const dpk_attention_args *a, dpk_error *err) {
    const size_t most = 90 << 10;
    int rows = PLAIN_ROWS;
    while (rows > 1 && plain_floats(rows, a->d) * 4 > most) rows--;
    if (plain_floats(rows, a->d) * 4 > most) {
        DPK_FAIL(err, DPK_EUNSUPPORTED, "cuda attention: heads of %d channels, want less", a->d);
    }
    int64_t blocks = ((int64_t)a->lq + rows - 1) / rows * a->heads * a->images;
    DPK_CUDA_TRY(DPK_LAUNCH(attention_plain<T>, dim3((unsigned)blocks), dim3(PLAIN_THREADS),
                            plain_floats(rows, a->d) * 4, cuda->stream, *a, rows),
                 "attention", err);
    return DPK_OK;
}

int dpk_attention_run_plain(struct dpk_cuda *cuda, const dpk_attention_args *a, int dtype,
                            dpk_error *err) {
    return dtype == DPK_F32 ? run_plain<float>(cuda, a, err) : run_plain<dpk_bf16>(cuda, a, err);
}
