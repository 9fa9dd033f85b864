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
    DPK_MR_NEON = 6,
    DPK_MR_S8_NEON = 3,
    DPK_NP_NEON = 1,
};

/* The tiles of a level, a row each: F(level of the function, member of struct dpk_kernels without
 * tile_, rows, panels, format of A); S8 and S16 for those of integers. The function is
 * dpk_tile_<member>_<level>. What a level lacks, a lower one has (dpk_cpu_tile); levels of bfloat16
 * name all that their files need, for a build without f32 has none but ref below them. */
#define DPK_TILES_ref(F, S8, S16)                                                                  \
    F(ref, f32_f32, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT)                                           \
    F(ref, f32_bf16, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT)                                          \
    F(ref, f32_f16, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT)                                           \
    F(ref, bf16_bf16, DPK_MR_REF, DPK_NP_REF, DPK_A_FLOAT)                                         \
    S8(ref, s8, DPK_MR_REF, DPK_NP_REF, DPK_A_S8)                                                  \
    S16(ref, s16, DPK_MR_REF, DPK_NP_REF)
#define DPK_TILES_avx2(F, S8, S16)                                                                 \
    F(avx2, f32_f32, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_FLOAT)                                        \
    F(avx2, f32_bf16, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_FLOAT)                                       \
    F(avx2, f32_f16, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_FLOAT)                                        \
    S8(avx2, s8, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_S16)                                              \
    S8(avx2, s8_dot, DPK_MR_AVX2, DPK_NP_AVX2, DPK_A_U8)
#define DPK_TILES_avx512(F, S8, S16)                                                               \
    F(avx512, f32_f32, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT)                                  \
    F(avx512, f32_bf16, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT)                                 \
    F(avx512, f32_f16, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT)                                  \
    S8(avx512, s8, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_S16)                                        \
    S8(avx512, s8_dot, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_U8)
#define DPK_TILES_avx512bf16(F, S8, S16)                                                           \
    F(avx512bf16, bf16_bf16, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_FLOAT)                            \
    S8(avx512, s8, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_S16)                                        \
    S8(avx512, s8_dot, DPK_MR_AVX512, DPK_NP_AVX512, DPK_A_U8)                                     \
    S16(avx512bf16, s16, DPK_MR_AVX512, DPK_NP_AVX512)
#define DPK_TILES_neon(F, S8, S16)                                                                 \
    F(neon, f32_f32, DPK_MR_NEON, DPK_NP_NEON, DPK_A_FLOAT)                                        \
    F(neon, f32_bf16, DPK_MR_NEON, DPK_NP_NEON, DPK_A_FLOAT)                                       \
    F(neon, f32_f16, DPK_MR_NEON, DPK_NP_NEON, DPK_A_FLOAT)                                        \
    S8(neon, s8, DPK_MR_S8_NEON, DPK_NP_NEON, DPK_A_S8)                                            \
    S8(neon, s8_dot, DPK_MR_NEON, DPK_NP_NEON, DPK_A_S8)
#define DPK_TILES_neonbf16(F, S8, S16)                                                             \
    F(neonbf16, bf16_bf16, DPK_MR_NEON, DPK_NP_NEON, DPK_A_FLOAT)                                  \
    S8(neonbf16, s8_dot, DPK_MR_NEON, DPK_NP_NEON, DPK_A_S8)

/* clang-format off */
#define DPK_TILE(level, member, mr, np, format) dpk_tile_fn dpk_tile_##member##_##level;
#define DPK_TILE_S16(level, member, mr, np) dpk_tile_s16_fn dpk_tile_##member##_##level;
DPK_TILES_ref(DPK_TILE, DPK_TILE, DPK_TILE_S16)
DPK_TILES_avx2(DPK_TILE, DPK_TILE, DPK_TILE_S16)
DPK_TILES_avx512(DPK_TILE, DPK_TILE, DPK_TILE_S16)
DPK_TILES_avx512bf16(DPK_TILE, DPK_TILE, DPK_TILE_S16)
DPK_TILES_neon(DPK_TILE, DPK_TILE, DPK_TILE_S16)
DPK_TILES_neonbf16(DPK_TILE, DPK_TILE, DPK_TILE_S16)
#undef DPK_TILE
#undef DPK_TILE_S16
/* clang-format on */

/* Attention with queries as columns (kernels_attention.h), of the level that has it. */
extern const struct dpk_attn_columns_kernels dpk_attn_columns_avx512bf16;

/* body(t, number of panels), the number a constant for the compiler. */
#define DPK_BY_PANELS(body, t)                                                                     \
    switch ((t)->n_panels) {                                                                       \
    case 1:                                                                                        \
        body(t, 1);                                                                                \
        break;                                                                                     \
    case 2:                                                                                        \
        body(t, 2);                                                                                \
        break;                                                                                     \
    case 3:                                                                                        \
        body(t, 3);                                                                                \
        break;                                                                                     \
    default:                                                                                       \
        body(t, 4);                                                                                \
        break;                                                                                     \
    }

#endif
