/* attention: softmax(scale q k^T + bias + masks) v per head, see ops.def.
 *
 * Of bfloat16 with heads up to 160 channels, flash attention on tensor cores (Dao, 2023):
 * a block has BQ = 64 MI query rows of a head, four warps of 16 MI rows each, and walks the keys in
 * tiles of BK, two buffers deep: the next tile's K and V come by cp.async while this one is
 * multiplied.
 *     S = Q K^T          (ldmatrix; sums in registers)
 *     P = 2^(S scale log2(e) - m), m the running maximum; O = O 2^(m_before - m) + P V
 * P goes from sums to the next product's A fragments without leaving its lanes; V comes by
 * ldmatrix.trans. Rows in shared memory are d rounded up to 16, and 16 bytes of padding, so that
 * eight rows of a chunk lie in different banks. Operands are views into rows of any stride: fused
 * QKV buffers are read where they are.
 *     d       40 48 | 64 | 72 80 | 96 | 128 | 160
 *     MI x BK   2x64  2x64  2x48  1x64  1x64  1x32      at most 85 KiB of shared memory
 * Logits that overflow are limited to finite ones (NaN becomes the largest), so that no NaN comes
 * of them: the usual tile does not look; where its sums show that something was not finite it is
 * done again with limits. Tiles with a mask, a bias, the diagonal of a causal one or the end of the
 * keys take every logit on its own. Bound at d = 64 by 2^x: 16 a cycle and multiprocessor, as long
 * as both products together; at mma.sync rates FA2 has 298 TFLOP/s on an H100. Not measured here.
 *
 * Longer heads, and float32: attention_plain.cu. */
#include "attention.cuh"
#include "mma.cuh"

/* ---- Flash attention ------------------------------------------------------------------------- */

template <int D_, int MI_, int BK_> struct flash {
    enum {
        D = D_,   /* channels in shared memory, a multiple of 16 */
        MI = MI_, /* 16-row fragments of a warp */
        BK = BK_,
        BQ = 64 * MI_,
        THREADS = 128,
        CHUNKS = D / 8,
        PITCH = D + 8, /* elements */
        KV = BK * PITCH,
        SHARED_BYTES = (BQ * PITCH + 4 * KV) * 2,
    };
};

/* Rows first .. first + n of a head to shared memory; zeros beyond `end` and beyond d. */
template <class F>
__device__ __forceinline__ void load_rows(const dpk_attention_args &a, dpk_async &async,
                                          dpk_bf16 *to, const dpk_bf16 *from, long long stride,
                                          int first, int n, int end) {
    for (int i = threadIdx.x; i < n * F::CHUNKS; i += F::THREADS) {
        int r = i / F::CHUNKS, c = i % F::CHUNKS * 8;
        bool in = first + r < end && c < a.d;
        const dpk_bf16 *p = from + (in ? (first + r) * stride + c : 0);
        dpk_bf16 *dst = to + r * F::PITCH + c;
        if (a.aligned) {
            async.copy16(dst, p, in);
            continue;
        }
        unsigned v[4] = {0, 0, 0, 0};
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (in && c + e < a.d) v[e / 2] |= (unsigned)__bfloat16_as_ushort(p[e]) << 16 * (e % 2);
        }
        *(uint4 *)dst = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

template <class F>
__device__ __forceinline__ void logits(const dpk_bf16 *q, const dpk_bf16 *k, int lane,
                                       float (&s)[F::MI][F::BK / 8][4]) {
#pragma unroll
    for (int i = 0; i < F::MI; i++) {
#pragma unroll
        for (int j = 0; j < F::BK / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) s[i][j][e] = 0.0f;
        }
    }
#pragma unroll
    for (int c = 0; c < F::D; c += 16) {
        uint32_t fq[F::MI][4], fk[F::BK / 8][2];
#pragma unroll
        for (int i = 0; i < F::MI; i++) {
            dpk_ldmatrix(fq[i], q + (i * 16 + (lane & 15)) * F::PITCH + c + (lane >> 4) * 8);
        }
#pragma unroll
        for (int j = 0; j < F::BK / 8; j += 2) {
            int r = j * 8 + (lane & 7) + (lane >> 4 << 3);
            dpk_ldmatrix(fk[j], k + r * F::PITCH + c + (lane >> 3 & 1) * 8);
        }
        dpk_mma<dpk_bf16, F::MI, F::BK / 8>(s, fq, fk);
    }
}

/* Softmax of a tile: s becomes 2^(s * factor - m). m: of rows g, g + 8 of each fragment, the
 * maximum so far; *sums of this lane's probabilities. */
template <class F>
__device__ __forceinline__ void tile_softmax(float (&s)[F::MI][F::BK / 8][4], float factor,
                                             float (&m)[F::MI][2], float (&sums)[F::MI][2]) {
#pragma unroll
    for (int i = 0; i < F::MI; i++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = -INFINITY, sum = 0.0f;
#pragma unroll
            for (int j = 0; j < F::BK / 8; j++) {
                top = fmaxf(top, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            m[i][h] = fmaxf(m[i][h], top * factor);
            float base = m[i][h] == -INFINITY ? 0.0f : m[i][h];
#pragma unroll
            for (int j = 0; j < F::BK / 8; j++) {
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    s[i][j][e] = dpk_exp2(fmaf(s[i][j][e], factor, -base));
                    sum += s[i][j][e];
                }
            }
            sums[i][h] = sum;
        }
    }
}

/* Every logit of the tile on its own. */
template <class F>
__device__ __forceinline__ void full_logits(const dpk_attention_args &a, int image, int head,
                                            int row0, int key0, int lane,
                                            float (&s)[F::MI][F::BK / 8][4]) {
#pragma unroll
    for (int i = 0; i < F::MI; i++) {
#pragma unroll
        for (int j = 0; j < F::BK / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = row0 + i * 16 + (lane >> 2) + e / 2 * 8;
                int key = key0 + j * 8 + (lane & 3) * 2 + e % 2;
                s[i][j][e] = dpk_full_logit<dpk_bf16>(a, image, head, row, key, s[i][j][e]);
            }
        }
    }
}

template <class F>
__device__ __forceinline__ void add_values(float (&o)[F::MI][F::D / 8][4], const dpk_bf16 *v,
                                           int lane, const float (&p)[F::MI][F::BK / 8][4]) {
#pragma unroll
    for (int k = 0; k < F::BK; k += 16) {
        uint32_t fp[F::MI][4], fv[F::D / 8][2];
#pragma unroll
        for (int i = 0; i < F::MI; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float *from = p[i][k / 8 + e / 2] + e % 2 * 2;
                fp[i][e] = dpk_pack_bf16(from[0], from[1]);
            }
        }
#pragma unroll
        for (int j = 0; j < F::D / 8; j += 2) {
            int r = k + (lane & 15);
            dpk_ldmatrix_trans(fv[j], v + r * F::PITCH + j * 8 + (lane >> 4) * 8);
        }
        dpk_mma<dpk_bf16, F::MI, F::D / 8>(o, fp, fv);
    }
}

/* O / l to the result, through the warp's rows of shared memory. */
template <class F>
__device__ __forceinline__ void
write_rows(const dpk_attention_args &a, dpk_bf16 *mine, int image, int head, int row0, int lane,
           const float (&o)[F::MI][F::D / 8][4], float (&l)[F::MI][2]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < F::MI; i++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = l[i][h];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            float by = sum > 0.0f ? 1.0f / sum : 0.0f;
            dpk_bf16 *row = mine + (i * 16 + (lane >> 2) + h * 8) * F::PITCH + (lane & 3) * 2;
#pragma unroll
            for (int j = 0; j < F::D / 8; j++) {
                *(unsigned *)(row + j * 8) =
                    dpk_pack_bf16(o[i][j][2 * h] * by, o[i][j][2 * h + 1] * by);
            }
        }
    }
    __syncwarp();
    for (int i = lane; i < 16 * F::MI * F::CHUNKS; i += 32) {
        int r = i / F::CHUNKS, c = i % F::CHUNKS * 8;
        if (row0 + r >= a.lq || c >= a.d) continue;
        long long at = ((long long)image * a.lq + row0 + r) * ((long long)a.heads * a.d) +
                       (long long)head * a.d + c;
        float v[8];
        dpk_load8(v, mine + r * F::PITCH + c, 8);
        dpk_store8(a.out, DPK_BF16, at, v, a.d - c < 8 ? a.d - c : 8);
    }
}

template <class F>
__global__ void __launch_bounds__(F::THREADS) attention_flash(const dpk_attention_args a) {
    DPK_SHARED_DYNAMIC(dpk_bf16, shared);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, tiles = (a.lq + F::BQ - 1) / F::BQ;
    int q0 = blockIdx.x % tiles * F::BQ, head = blockIdx.x / tiles % a.heads;
    int image = blockIdx.x / tiles / a.heads, row0 = q0 + warp * 16 * F::MI;
    const dpk_bf16 *q = (const dpk_bf16 *)a.q + (long long)image * a.lq * a.q_stride + head * a.d;
    const dpk_bf16 *k = (const dpk_bf16 *)a.k + (long long)image * a.lk * a.k_stride + head * a.d;
    const dpk_bf16 *v = (const dpk_bf16 *)a.v + (long long)image * a.lk * a.v_stride + head * a.d;
    dpk_bf16 *mine = shared + warp * 16 * F::MI * F::PITCH, *keys = shared + F::BQ * F::PITCH;
    int end = a.causal && q0 + F::BQ < a.lk ? q0 + F::BQ : a.lk;
    float o[F::MI][F::D / 8][4] = {}, m[F::MI][2], l[F::MI][2] = {};
    dpk_async async;
#pragma unroll
    for (int i = 0; i < F::MI; i++) m[i][0] = m[i][1] = -INFINITY;

    load_rows<F>(a, async, shared, q, a.q_stride, q0, F::BQ, a.lq);
    load_rows<F>(a, async, keys, k, a.k_stride, 0, F::BK, a.lk);
    load_rows<F>(a, async, keys + 2 * F::KV, v, a.v_stride, 0, F::BK, a.lk);
    async.commit();
    for (int k0 = 0, now = 0; k0 < end; k0 += F::BK, now ^= 1) {
        async.template wait<0>();
        __syncthreads();
        if (k0 + F::BK < end) {
            dpk_bf16 *next = keys + (now ^ 1) * F::KV;
            load_rows<F>(a, async, next, k, a.k_stride, k0 + F::BK, F::BK, a.lk);
            load_rows<F>(a, async, next + 2 * F::KV, v, a.v_stride, k0 + F::BK, F::BK, a.lk);
            async.commit();
        }
        float s[F::MI][F::BK / 8][4], top[F::MI][2], sums[F::MI][2];
        bool full = a.mask || a.bias || k0 + F::BK > a.lk || (a.causal && k0 + F::BK > row0);
        for (;;) {
            bool bad = false;
            logits<F>(mine, keys + now * F::KV, lane, s);
            if (full) full_logits<F>(a, image, head, row0, k0, lane, s);
#pragma unroll
            for (int i = 0; i < F::MI; i++) top[i][0] = m[i][0], top[i][1] = m[i][1];
            tile_softmax<F>(s, full ? 1.0f : a.scale, top, sums);
            if (full) break;
#pragma unroll
            for (int i = 0; i < F::MI; i++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    bad = bad || !(sums[i][h] < INFINITY) || !(top[i][h] > -INFINITY);
                }
            }
            full = __any_sync(0xffffffffu, bad);
            if (!full) break;
        }
#pragma unroll
        for (int i = 0; i < F::MI; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float base = top[i][h] == -INFINITY ? 0.0f : top[i][h];
                float alpha = dpk_exp2(m[i][h] - base);
                l[i][h] = l[i][h] * alpha + sums[i][h];
                m[i][h] = top[i][h];
#pragma unroll
                for (int j = 0; j < F::D / 8; j++) {
                    o[i][j][2 * h] *= alpha;
                    o[i][j][2 * h + 1] *= alpha;
                }
            }
        }
        add_values<F>(o, keys + (2 + now) * F::KV, lane, s);
    }
    async.template wait<0>();
    write_rows<F>(a, mine, image, head, row0, lane, o, l);
}

/* ---- Host ------------------------------------------------------------------------------------ */

static int64_t last_of(const struct dpk_tensor *t) { return t->shape.dim[t->shape.rank - 1]; }
static int64_t length_of(const struct dpk_tensor *t) {
    return dpk_shape_count(&t->shape) / last_of(t) / t->shape.dim[0];
}

static int describe(const struct dpk_call *call, dpk_attention_args *a, dpk_error *err) {
    const struct dpk_attention_attrs *attrs = DPK_ATTRS(attention, call->op);
    const struct dpk_tensor *q = &call->in[DPK_IN(attention, q)];
    const struct dpk_tensor *k = &call->in[DPK_IN(attention, k)];
    const struct dpk_tensor *v = &call->in[DPK_IN(attention, v)];
    const struct dpk_tensor *mask = &call->in[DPK_IN(attention, mask)];
    const struct dpk_tensor *bias = &call->in[DPK_IN(attention, bias)];
    size_t bytes = q->dtype == DPK_F32 ? 4 : 2;
    *a = dpk_attention_args();
    int64_t lq = length_of(q), lk = length_of(k), blocks = lq * q->shape.dim[0] * attrs->heads;
    if (blocks > INT32_MAX || lk > INT32_MAX - 64 || lq > INT32_MAX - 128) {
        DPK_FAIL(err, DPK_EUNSUPPORTED,
                 "cuda attention: %lld queries of all heads, %lld keys, want at most %d",
                 (long long)blocks, (long long)lk, INT32_MAX);
    }
    if (q->data) {
        a->q = (const char *)q->data + (size_t)attrs->q_off * bytes;
        a->k = (const char *)k->data + (size_t)attrs->k_off * bytes;
        a->v = (const char *)v->data + (size_t)attrs->v_off * bytes;
    }
    a->out = call->out.data;
    if (mask->shape.rank) a->mask = (const int *)mask->data;
    if (bias->shape.rank) a->bias = bias->data;
    a->q_stride = last_of(q), a->k_stride = last_of(k), a->v_stride = last_of(v);
    a->images = q->shape.dim[0];
    a->lq = (int)lq, a->lk = (int)lk;
    a->heads = attrs->heads, a->d = attrs->head_dim;
    a->causal = attrs->causal;
    a->scale = attrs->scale > 0.0f ? attrs->scale : 1.0f / sqrtf((float)attrs->head_dim);
    a->scale *= DPK_LOG2E;
    a->aligned = a->d % 8 == 0 && a->q_stride % 8 == 0 && a->k_stride % 8 == 0 &&
                 a->v_stride % 8 == 0 && attrs->q_off % 8 == 0 && attrs->k_off % 8 == 0 &&
                 attrs->v_off % 8 == 0;
    return DPK_OK;
}

static bool is_long(const struct dpk_call *call, const dpk_attention_args *a) {
    return call->out.dtype == DPK_BF16 && a->d > 160 && a->aligned;
}

size_t dpk_cuda_scratch_attention(const struct dpk_cuda *, const struct dpk_call *call) {
    dpk_attention_args a;
    if (describe(call, &a, NULL) != DPK_OK || !is_long(call, &a)) return 0;
    return dpk_attention_scratch_long(&a);
}

int dpk_cuda_prepare_attention(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    dpk_attention_args a;
    DPK_TRY(describe(call, &a, err));
    return is_long(call, &a) ? dpk_attention_prepare_long(cuda, &a, err) : DPK_OK;
}

template <class F>
static int run_flash(struct dpk_cuda *cuda, const dpk_attention_args *a, dpk_error *err) {
    int64_t blocks = ((int64_t)a->lq + F::BQ - 1) / F::BQ * a->heads * a->images;
    DPK_CUDA_TRY(DPK_LAUNCH((attention_flash<F>), dim3((unsigned)blocks), dim3(F::THREADS),
                            F::SHARED_BYTES, cuda->stream, *a),
                 "attention", err);
    return DPK_OK;
}

int dpk_cuda_run_attention(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    dpk_attention_args a;
    DPK_TRY(describe(call, &a, err));
    if (call->out.dtype == DPK_F32) return dpk_attention_run_plain(cuda, &a, DPK_F32, err);
    if (is_long(call, &a)) return dpk_attention_run_long(cuda, &a, call->scratch, err);
    if (a.d <= 32) return run_flash<flash<32, 2, 64>>(cuda, &a, err);
    if (a.d <= 48) return run_flash<flash<48, 2, 64>>(cuda, &a, err);
    if (a.d <= 64) return run_flash<flash<64, 2, 64>>(cuda, &a, err);
    if (a.d <= 80) return run_flash<flash<80, 2, 48>>(cuda, &a, err);
    if (a.d <= 96) return run_flash<flash<96, 1, 64>>(cuda, &a, err);
    if (a.d <= 128) return run_flash<flash<128, 1, 64>>(cuda, &a, err);
    if (a.d <= 160) return run_flash<flash<160, 1, 32>>(cuda, &a, err);
    return dpk_attention_run_plain(cuda, &a, DPK_BF16, err);
}
