/* The kernel table of this level. */
#include "../tiles.h"
#include "isa.h"

#define TILE(level, member, mr, np, format)                                                        \
    .tile_##member = {dpk_tile_##member##_##level, mr, np, format},
#define TILE_S16(level, member, mr, np) .tile_##member = {dpk_tile_##member##_##level, mr, np},
#define NO_TILE(...)
#if DPK_HAS_int8
#define TILES_(level) DPK_TILES_##level(TILE, TILE, TILE_S16)
#else
#define TILES_(level) DPK_TILES_##level(TILE, NO_TILE, TILE_S16)
#endif
#define TILES(level) TILES_(level)

extern const struct dpk_kernels DPK_LEVEL_FN(kernels);
/* clang-format off */
const struct dpk_kernels DPK_LEVEL_FN(kernels) = {
    .isa = DPK_LEVEL_FN(isa),
    TILES(DPK_LEVEL)
#ifdef DPK_LEVEL_avx512bf16
    .attn_columns = &dpk_attn_columns_avx512bf16,
#endif
#define DPK_KERNEL(member, type) .member = DPK_LEVEL_FN(member),
#include "../kernels.def"
#if DPK_HAS_f32
#include "../kernels_f32.def"
#endif
#if DPK_HAS_int8
#include "../kernels_int8.def"
#endif
#undef DPK_KERNEL
};
/* clang-format on */
