/* Rows of activations to integers (contract: rows8.h). */
#include "half.h"
#include "rows8.h"

#include <math.h>
#include <string.h>

struct dpk_rows8 dpk_rows8_of(const struct dpk_cpu *cpu, int dtype, uint32_t flags) {
    const struct dpk_tile_kernel *tile = dpk_cpu_tile_s8(cpu->isa, cpu->dot);
    return (struct dpk_rows8){
        .k = cpu->k,
        .format = tile ? tile->a_format : DPK_A_FLOAT,
        .dtype = dtype,
        .torchao = flags & DPK_TENSOR_TORCHAO,
    };
}

size_t dpk_rows8_bytes(const struct dpk_rows8 *r, size_t n) {
    return (n + 3) / 4 * 4 * (r->format == DPK_A_S16 ? 2 : 1);
}

size_t dpk_rows8_stride(const struct dpk_rows8 *r, size_t n) {
    size_t bytes = DPK_ROW_HEAD + (dpk_rows8_bytes(r, n) + 63) / 64 * 64;
    return bytes % 4096 == 0 ? bytes + 64 : bytes;
}

/* torchao divides in the type of the activations. */
float dpk_rows8_scale(const struct dpk_rows8 *r, float top) {
    if (!isfinite(top)) return NAN;
    if (!r->torchao) return fmaxf(top, 1e-5f) / 127.0f;
    float s = top / 127.5f;
    return fmaxf(r->dtype == DPK_BF16 ? dpk_bf16_f32(dpk_f32_bf16(s)) : s, 0x1p-23f);
}

void dpk_rows8_integers(const struct dpk_rows8 *r, void *q, float scale, const void *x, size_t n) {
    if (isnan(scale)) {
        memset(q, r->format == DPK_A_U8 ? 128 : 0, dpk_rows8_bytes(r, n));
        return;
    }
    struct dpk_quantize t = {.x = x,
                             .dtype = r->dtype,
                             .format = r->format,
                             .n = n,
                             .scale = scale,
                             .torchao = r->torchao,
                             .q = q};
    r->k->quantize(&t);
}

void dpk_rows8_put(const struct dpk_rows8 *r, char *row, const void *x, size_t n) {
    float scale = dpk_rows8_scale(r, r->k->magnitude(x, r->dtype, n));
    memcpy(row, &scale, sizeof scale);
    dpk_rows8_integers(r, row + DPK_ROW_HEAD, scale, x, n);
}
