/* The kernel tables, one per level, and the choice of a product tile. */
#include "tiles.h"

#include <stddef.h>

#define DPK_KERNEL(member, type) type dpk_##member##_ref;
#include "kernels.def"
#undef DPK_KERNEL

static const struct dpk_kernels table_ref = {
    .tile_f32_f32 = {dpk_tile_f32_f32_ref, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT},
    .tile_f32_bf16 = {dpk_tile_f32_bf16_ref, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT},
    .tile_f32_f16 = {dpk_tile_f32_f16_ref, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT},
    .tile_bf16_bf16 = {dpk_tile_bf16_bf16_ref, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT},
    .tile_s16 = {dpk_tile_s16_ref, DPK_MR_REF, DPK_NP_REF},
    .tile_s8 = {dpk_tile_s8_ref, DPK_MR_REF, DPK_NP_REF, DPK_A_S8},
#define DPK_KERNEL(member, type) .member = dpk_##member##_ref,
#include "kernels.def"
#undef DPK_KERNEL
};

#if defined(__x86_64__)

#define DPK_KERNEL(member, type)                                                                   \
    type dpk_##member##_avx2, dpk_##member##_avx512, dpk_##member##_avx512bf16;
#include "kernels.def"
#undef DPK_KERNEL

static const struct dpk_kernels table_avx2 = {
    .tile_f32_f32 = {dpk_tile_f32_f32_avx2, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_FLOAT},
    .tile_f32_bf16 = {dpk_tile_f32_bf16_avx2, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_FLOAT},
    .tile_f32_f16 = {dpk_tile_f32_f16_avx2, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_FLOAT},
    .tile_s8 = {dpk_tile_s8_avx2, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_S16},
    .tile_s8_dot = {dpk_tile_s8_dot_avx2, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_U8},
#define DPK_KERNEL(member, type) .member = dpk_##member##_avx2,
#include "kernels.def"
#undef DPK_KERNEL
};

static const struct dpk_kernels table_avx512 = {
    .tile_f32_f32 = {dpk_tile_f32_f32_avx512, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT},
    .tile_f32_bf16 = {dpk_tile_f32_bf16_avx512, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT},
    .tile_f32_f16 = {dpk_tile_f32_f16_avx512, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT},
    .tile_s8 = {dpk_tile_s8_avx512, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_S16},
    .tile_s8_dot = {dpk_tile_s8_dot_avx512, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_U8},
#define DPK_KERNEL(member, type) .member = dpk_##member##_avx512,
#include "kernels.def"
#undef DPK_KERNEL
};

static const struct dpk_kernels table_avx512bf16 = {
    .tile_bf16_bf16 = {dpk_tile_bf16_bf16_avx512bf16, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT},
    .tile_s16 = {dpk_tile_s16_avx512bf16, DPK_MR_AVX512, DPK_NP_AVX512},
#define DPK_KERNEL(member, type) .member = dpk_##member##_avx512bf16,
#include "kernels.def"
#undef DPK_KERNEL
};

static const struct dpk_kernels *const tables[DPK_N_ISAS] = {&table_ref, &table_avx2, &table_avx512,
                                                             &table_avx512bf16};
#else
static const struct dpk_kernels *const tables[DPK_N_ISAS] = {&table_ref, NULL, NULL, NULL};
#endif

const struct dpk_kernels *dpk_kernels_get(int isa) { return tables[isa]; }

const struct dpk_tile_kernel *dpk_cpu_tile(int isa, int a_dtype, int b_dtype) {
    for (; isa >= DPK_ISA_REF; isa--) {
        const struct dpk_kernels *k = tables[isa];
        const struct dpk_tile_kernel *tile = NULL;
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
        const struct dpk_kernels *k = tables[isa];
        if (dot && k->tile_s8_dot.fn) return &k->tile_s8_dot;
        if (!dot && k->tile_s8.fn) return &k->tile_s8;
    }
    return NULL;
}
