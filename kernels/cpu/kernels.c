/* The kernel tables of the levels that were built (isa/table.c), and the choice of a product
 * tile. */
#include "cpu.h"

#include <stddef.h>

/* DPK_LEVELS, from the Makefile: DPK_BUILT(level) for each. */
#define DPK_BUILT(level) extern const struct dpk_kernels dpk_kernels_##level;
DPK_LEVELS
#undef DPK_BUILT
#define DPK_BUILT(level) &dpk_kernels_##level,
static const struct dpk_kernels *const tables[] = {DPK_LEVELS};

const struct dpk_kernels *dpk_kernels_get(int isa) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (tables[i]->isa == isa) return tables[i];
    }
    return NULL;
}

const struct dpk_tile_kernel *dpk_cpu_tile(int isa, int a_dtype, int b_dtype) {
    for (; isa >= DPK_ISA_REF; isa--) {
        const struct dpk_kernels *k = dpk_kernels_get(isa);
        const struct dpk_tile_kernel *tile = NULL;
        if (!k) continue;
        if (a_dtype == DPK_F32 && b_dtype == DPK_F32) tile = &k->tile_f32_f32;
        if (a_dtype == DPK_F32 && b_dtype == DPK_BF16) tile = &k->tile_f32_bf16;
        if (a_dtype == DPK_F32 && b_dtype == DPK_F16) tile = &k->tile_f32_f16;
        if (a_dtype == DPK_BF16 && b_dtype == DPK_BF16) tile = &k->tile_bf16_bf16;
        if (!tile) return NULL;
        if (tile->fn) return tile;
    }
    return NULL;
}

const struct dpk_tile_kernel *dpk_cpu_tile_s8(int isa, bool dot) {
    for (; isa >= DPK_ISA_REF; isa--) {
        const struct dpk_kernels *k = dpk_kernels_get(isa);
        if (k && dot && k->tile_s8_dot.fn) return &k->tile_s8_dot;
        if (k && !dot && k->tile_s8.fn) return &k->tile_s8;
    }
    return NULL;
}
