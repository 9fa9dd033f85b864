/* Loaders of the tensor-core product: each fills the rows of a tile, 64 bytes at a time.
 *
 *     L(args, row0, first)      rows from row0 on, beginning with k-step `first`
 *     STAGED, SMALL             holds data in registers; is for the small tile alone
 *     issue(async, stage)       begin to fetch the next step: by cp.async, or into registers
 *     finish(stage)             put what is in registers to shared memory
 *
 * A thread has the same 16-byte chunk of a step in every row it serves: rows threadIdx.x / 4 + i *
 * THREADS / 4. Rows and k's beyond the operand are zeros. Every global access is of 16 bytes but in
 * the loaders that say otherwise.
 *
 *     dpk_load_rows       rows that are contiguous and aligned: x, concat(x, x2), weights
 *     dpk_load_elements   bfloat16 rows of any length: element by element
 *     dpk_load_pixels     a convolution's rows, C a multiple of 8: zero padding, stride, upsampling
 *     dpk_load_channels   the same, any C: element by element
 *     dpk_load_quantized  the same for W8A8: pixels quantized on the way by their row's scale
 *     dpk_load_s8, _s4    quantized weights as bfloat16; 8 or 4 bytes an access */
#ifndef DPK_LOADERS_CUH
#define DPK_LOADERS_CUH

#include "mma.cuh"
#include "quantize.cuh"

template <int ROWS, int THREADS> struct dpk_load_base {
    enum { STEP = THREADS / 4, N = (ROWS + STEP - 1) / STEP, STAGED = 0, SMALL = 0 };
    static __device__ __forceinline__ int row(int i) { return (int)threadIdx.x / 4 + i * STEP; }
    static __device__ __forceinline__ bool has(int i) { return ROWS % STEP == 0 || row(i) < ROWS; }
    static __device__ __forceinline__ char *at(char *stage, int i) {
        return stage + dpk_swizzle(row(i), threadIdx.x & 3);
    }
};

/* The same, for loaders that go through registers. */
template <int ROWS, int THREADS> struct dpk_load_staged : dpk_load_base<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    enum { STAGED = 1 };
    uint4 held[base::N];
    __device__ __forceinline__ void finish(char *stage) {
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            if (base::has(i)) *(uint4 *)base::at(stage, i) = held[i];
        }
    }
};

/* ---- Rows ------------------------------------------------------------------------------------ */

struct dpk_rows_args {
    const char *p, *p2;        /* 16-byte aligned; p2 may be NULL */
    long long stride, stride2; /* bytes, multiples of 16 */
    int chunks, chunks2;       /* of 16 bytes in a row of each */
    int rows;
};

static inline dpk_rows_args dpk_weight_rows(const void *w, long long row_bytes, int rows) {
    dpk_rows_args a = {(const char *)w, NULL, row_bytes, 0, (int)(row_bytes / 16), 0, rows};
    return a;
}

template <int ROWS, int THREADS> struct dpk_load_rows : dpk_load_base<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    typedef dpk_rows_args args;
    const args &a;
    int row0, chunk;
    __device__ __forceinline__ dpk_load_rows(const args &a_, int row0_, int first)
        : a(a_), row0(row0_), chunk(first * 4 + (threadIdx.x & 3)) {}
    __device__ __forceinline__ void issue(dpk_async &async, char *stage) {
        bool second = chunk >= a.chunks;
        int at = second ? chunk - a.chunks : chunk;
        bool in = !second || at < a.chunks2;
        long long stride = second ? a.stride2 : a.stride;
        const char *from = (second ? a.p2 : a.p) + (long long)at * 16;
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            if (!base::has(i)) continue;
            int r = row0 + base::row(i);
            bool valid = in && r < a.rows;
            async.copy16(base::at(stage, i), valid ? from + r * stride : a.p, valid);
        }
        chunk += 4;
    }
    __device__ __forceinline__ void finish(char *) {}
};

struct dpk_elements_args {
    const dpk_bf16 *p, *p2;
    int k, k2; /* elements of a row in each */
    int rows;
};

template <int ROWS, int THREADS> struct dpk_load_elements : dpk_load_staged<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    typedef dpk_elements_args args;
    enum { SMALL = 1 };
    const args &a;
    int row0, k;
    __device__ __forceinline__ dpk_load_elements(const args &a_, int row0_, int first)
        : a(a_), row0(row0_), k(first * 32 + (threadIdx.x & 3) * 8) {}
    __device__ __forceinline__ unsigned element(int r, int i) const {
        if (i < a.k) return __bfloat16_as_ushort(a.p[(long long)r * a.k + i]);
        i -= a.k;
        return i < a.k2 ? __bfloat16_as_ushort(a.p2[(long long)r * a.k2 + i]) : 0;
    }
    __device__ __forceinline__ void issue(dpk_async &, char *) {
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            unsigned v[4] = {0, 0, 0, 0};
            int r = row0 + base::row(i);
            if (base::has(i) && r < a.rows) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    v[e] = element(r, k + 2 * e) | element(r, k + 2 * e + 1) << 16;
                }
            }
            this->held[i] = make_uint4(v[0], v[1], v[2], v[3]);
        }
        k += 32;
    }
};

/* ---- Pixels ---------------------------------------------------------------------------------- */

struct dpk_pixels_args {
    const void *x; /* [images][h][w][c] of bfloat16, or of `dtype` where quantized */
    int dtype;
    int c, chunks; /* channels; 16-byte chunks of a tap in the weight */
    int h, w, up_h, up_w, out_h, out_w;
    int kh, kw, stride, pad_top, pad_left;
    int rows;           /* output pixels */
    const float *scale; /* [rows], where quantized */
    int rule;           /* enum dpk_quantize_rule, where quantized */
};

/* Source of an upsampled coordinate: floor(i * n / n_up). The host has seen to n * n_up < 2^31. */
__device__ __forceinline__ int dpk_nearest(int i, int n, int n_up) {
    if (n_up == n) return i;
    if (n_up == 2 * n) return i >> 1;
    return i * n / n_up;
}

/* Where the rows of a thread lie, and its place in K: tap (ky, kx), chunk of the tap. */
template <int ROWS, int THREADS> struct dpk_walk {
    typedef dpk_load_base<ROWS, THREADS> base;
    const dpk_pixels_args &a;
    int image[base::N], y[base::N], x[base::N]; /* first pixel of the image; first tap */
    int ky, kx, chunk;
    __device__ __forceinline__ dpk_walk(const dpk_pixels_args &a_, int row0, int first) : a(a_) {
        int at = first * 4 + (threadIdx.x & 3), tap = at / a.chunks;
        chunk = at % a.chunks;
        ky = tap / a.kw;
        kx = tap % a.kw;
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            int r = row0 + base::row(i), line = r / a.out_w;
            bool in = base::has(i) && r < a.rows;
            image[i] = line / a.out_h * a.h * a.w;
            y[i] = in ? line % a.out_h * a.stride - a.pad_top : -(1 << 30);
            x[i] = r % a.out_w * a.stride - a.pad_left;
        }
    }
    /* Pixel of row i at the tap, -1: padding, or no row. */
    __device__ __forceinline__ int pixel(int i) const {
        int py = y[i] + ky, px = x[i] + kx;
        bool in = py >= 0 && py < a.up_h && px >= 0 && px < a.up_w && ky < a.kh;
        if (!in) return -1;
        return image[i] + dpk_nearest(py, a.h, a.up_h) * a.w + dpk_nearest(px, a.w, a.up_w);
    }
    __device__ __forceinline__ void next() {
        for (chunk += 4; chunk >= a.chunks;) {
            chunk -= a.chunks;
            if (++kx == a.kw) kx = 0, ky++;
        }
    }
};

template <int ROWS, int THREADS> struct dpk_load_pixels : dpk_load_base<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    typedef dpk_pixels_args args;
    dpk_walk<ROWS, THREADS> walk;
    __device__ __forceinline__ dpk_load_pixels(const args &a, int row0, int first)
        : walk(a, row0, first) {}
    __device__ __forceinline__ void issue(dpk_async &async, char *stage) {
        const dpk_bf16 *x = (const dpk_bf16 *)walk.a.x;
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            if (!base::has(i)) continue;
            int pixel = walk.pixel(i);
            bool valid = pixel >= 0 && walk.chunk * 8 < walk.a.c;
            long long at = valid ? (long long)pixel * walk.a.c + walk.chunk * 8 : 0;
            async.copy16(base::at(stage, i), x + at, valid);
        }
        walk.next();
    }
    __device__ __forceinline__ void finish(char *) {}
};

template <int ROWS, int THREADS> struct dpk_load_channels : dpk_load_staged<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    typedef dpk_pixels_args args;
    enum { SMALL = 1 };
    dpk_walk<ROWS, THREADS> walk;
    __device__ __forceinline__ dpk_load_channels(const args &a, int row0, int first)
        : walk(a, row0, first) {}
    __device__ __forceinline__ void issue(dpk_async &, char *) {
        const dpk_bf16 *x = (const dpk_bf16 *)walk.a.x;
        int c = walk.chunk * 8, n = walk.a.c - c;
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            unsigned v[4] = {0, 0, 0, 0};
            int pixel = walk.pixel(i);
            const dpk_bf16 *from = x + (long long)(pixel < 0 ? 0 : pixel) * walk.a.c + c;
#pragma unroll
            for (int e = 0; e < 8; e++) {
                if (pixel < 0 || e >= n) continue;
                v[e / 2] |= (unsigned)__bfloat16_as_ushort(from[e]) << 16 * (e % 2);
            }
            this->held[i] = make_uint4(v[0], v[1], v[2], v[3]);
        }
        walk.next();
    }
};

template <int ROWS, int THREADS> struct dpk_load_quantized : dpk_load_staged<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    typedef dpk_pixels_args args;
    dpk_walk<ROWS, THREADS> walk;
    float scale[base::N];
    __device__ __forceinline__ dpk_load_quantized(const args &a, int row0, int first)
        : walk(a, row0, first) {
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            int r = row0 + base::row(i);
            scale[i] = base::has(i) && r < a.rows ? a.scale[r] : 1.0f;
        }
    }
    __device__ __forceinline__ void issue(dpk_async &, char *) {
        int c = walk.chunk * 16, n = walk.a.c - c;
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            int pixel = walk.pixel(i);
            uint4 q = make_uint4(0, 0, 0, 0);
            if (pixel >= 0) {
                float v[16];
                dpk_load_up_to_16(v, walk.a.x, walk.a.dtype, (long long)pixel * walk.a.c + c, n);
                q = dpk_quantize16(v, scale[i], walk.a.rule);
            }
            this->held[i] = q;
        }
        walk.next();
    }
};

/* ---- Quantized weights as bfloat16 ----------------------------------------------------------- */

struct dpk_dequant_args {
    const uint8_t *w;    /* [rows][stride] */
    long long stride;    /* bytes of a row, a multiple of 16 */
    int rows, n;         /* on the device; logical */
    int c, c_pad, pitch; /* as in struct dpk_cuda_weight */
    const float *scale;  /* s4: [n][groups] */
    int group, groups;   /* s4 */
    int glu_rows;        /* F of a weight in the order of PANEL_GLU, 0: rows are logical rows */
};

template <int ROWS, int THREADS> struct dpk_load_s8 : dpk_load_staged<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    typedef dpk_dequant_args args;
    const args &a;
    int row0, k;
    __device__ __forceinline__ dpk_load_s8(const args &a_, int row0_, int first)
        : a(a_), row0(row0_), k(first * 32 + (threadIdx.x & 3) * 8) {}
    __device__ __forceinline__ void issue(dpk_async &, char *) {
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            int r = row0 + base::row(i);
            uint2 q = make_uint2(0, 0);
            if (base::has(i) && r < a.rows && k < a.pitch) {
                q = *(const uint2 *)(a.w + r * a.stride + k);
            }
            this->held[i] = make_uint4(pair(q.x, 0), pair(q.x, 16), pair(q.y, 0), pair(q.y, 16));
        }
        k += 32;
    }
    /* Two bytes to two bfloat16: exact. */
    static __device__ __forceinline__ unsigned pair(unsigned q, int shift) {
        return dpk_pack_bf16((float)(int8_t)(q >> shift), (float)(int8_t)(q >> (shift + 8)));
    }
};

template <int ROWS, int THREADS> struct dpk_load_s4 : dpk_load_staged<ROWS, THREADS> {
    typedef dpk_load_base<ROWS, THREADS> base;
    typedef dpk_dequant_args args;
    const args &a;
    int row0, k;
    __device__ __forceinline__ dpk_load_s4(const args &a_, int row0_, int first)
        : a(a_), row0(row0_), k(first * 32 + (threadIdx.x & 3) * 8) {}
    __device__ __forceinline__ void issue(dpk_async &, char *) {
        int tap = k / a.c_pad, c = k % a.c_pad;
        int group = tap * (a.c / a.group) + c / a.group; /* a group holds whole chunks */
        bool in = k < a.pitch && c < a.c;
#pragma unroll
        for (int i = 0; i < base::N; i++) {
            int r = row0 + base::row(i), logical = dpk_logical_row(r, a.glu_rows);
            unsigned v[4] = {0, 0, 0, 0};
            if (base::has(i) && in && logical >= 0 && logical < a.n) {
                unsigned q = *(const unsigned *)(a.w + r * a.stride + k / 2);
                float scale = a.scale[(long long)logical * a.groups + group];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    v[e] = dpk_pack_bf16((float)nibble(q, 2 * e) * scale,
                                         (float)nibble(q, 2 * e + 1) * scale);
                }
            }
            this->held[i] = make_uint4(v[0], v[1], v[2], v[3]);
        }
        k += 32;
    }
    static __device__ __forceinline__ int nibble(unsigned q, int e) {
        return (int)(q << (28 - 4 * e)) >> 28;
    }
};

#endif
