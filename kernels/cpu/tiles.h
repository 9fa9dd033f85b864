/* The product tiles of all levels: struct dpk_tile of cpu.h states their contract. Tile sizes are
 * those of the best register use: rows x 16-column panels, see the head of each tile_*.c. */
#ifndef DPK_TILES_H
#define DPK_TILES_H

#include "cpu.h"

enum {
    DPK_MR_REF = 4,
    DPK_NP_REF = 1,
    DPK_MR_AVX2 = 6,
    DPK_NP_AVX2 = 1,
    DPK_MR_AVX512 = 6,
    DPK_NP_AVX512 = 4,
};

dpk_tile_fn dpk_tile_f32_f32_ref, dpk_tile_f32_bf16_ref, dpk_tile_f32_f16_ref,
    dpk_tile_bf16_bf16_ref;
dpk_tile_fn dpk_tile_f32_f32_avx2, dpk_tile_f32_bf16_avx2, dpk_tile_f32_f16_avx2;
dpk_tile_fn dpk_tile_f32_f32_avx512, dpk_tile_f32_bf16_avx512, dpk_tile_f32_f16_avx512;
dpk_tile_fn dpk_tile_bf16_bf16_avx512bf16;
dpk_tile_fn dpk_tile_s8_ref, dpk_tile_s8_avx2, dpk_tile_s8_dot_avx2, dpk_tile_s8_avx512,
    dpk_tile_s8_dot_avx512;
dpk_tile_s16_fn dpk_tile_s16_ref, dpk_tile_s16_avx512bf16;

#endif
