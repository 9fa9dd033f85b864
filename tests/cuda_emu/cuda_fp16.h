/* float16 as cuda_fp16.h has it: the functions that the backend uses. */
#ifndef DPK_EMU_CUDA_FP16_H
#define DPK_EMU_CUDA_FP16_H

#include "cuda_runtime.h"

struct __half_raw {
    unsigned short x;
};
struct alignas(2) __half {
    unsigned short bits;
    __half() = default;
    __half(const __half_raw &r) : bits(r.x) {}
    explicit __half(float f) {
        unsigned sign = __float_as_uint(f) >> 16 & 0x8000;
        float a = fabsf(f);
        if (a != a) bits = 0x7fff;
        else if (a >= 65520.0f) bits = (unsigned short)(sign | 0x7c00);
        else if (a < 6.103515625e-05f)
            bits = (unsigned short)(sign | (unsigned)lrintf(a * 16777216.0f));
        else {
            unsigned u = __float_as_uint(a);
            u += 0xfff + (u >> 13 & 1);
            bits = (unsigned short)(sign | ((u >> 13) - (112u << 10)));
        }
    }
    operator float() const {
        unsigned e = bits >> 10 & 31, m = bits & 0x3ff;
        float v = e == 0    ? (float)m * 5.9604644775390625e-08f
                  : e == 31 ? __uint_as_float(0x7f800000u | m << 13)
                            : __uint_as_float((e + 112) << 23 | m << 13);
        return bits & 0x8000 ? -v : v;
    }
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

static inline float __half2float(__half v) { return (float)v; }
static inline __half __float2half(float f) { return __half(f); }
static inline __half __float2half_rn(float f) { return __half(f); }
static inline __half __ushort_as_half(unsigned short u) {
    __half_raw r = {u};
    return __half(r);
}

#endif
