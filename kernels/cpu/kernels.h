/* The kernel table of one instruction-set level. Included by cpu.h only. */
#ifndef DPK_KERNELS_H
#define DPK_KERNELS_H

/* Function types of kernels.def are declared here, each with its contract. */

struct dpk_kernels {
    /* Product tiles by element types of A and B (named A_B). */
    struct dpk_tile_kernel tile_f32_f32, tile_f32_bf16, tile_f32_f16, tile_bf16_bf16;
#define DPK_KERNEL(member, type) type *member;
#include "kernels.def"
#undef DPK_KERNEL
};

/* The table of a level that the machine has. */
const struct dpk_kernels *dpk_kernels_get(int isa);

/* The tile for these element types: this level's, or the nearest lower level's that has one (ref has all). NULL for unknown types. */
const struct dpk_tile_kernel *dpk_cpu_tile(int isa, int a_dtype, int b_dtype);

#endif
