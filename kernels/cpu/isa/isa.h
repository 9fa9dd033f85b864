/* Opened by every source of isa/: the name of a kernel at the level being compiled, and the
 * prototypes of all of them.
 *
 * DPK_LEVEL_FN(epilogue) is dpk_epilogue_avx2 when the file is compiled for avx2, and so on. */
#ifndef DPK_ISA_H
#define DPK_ISA_H

#include "../cpu.h"

#define DPK_LEVEL_PASTE2_(member, level) dpk_##member##_##level
#define DPK_LEVEL_PASTE_(member, level) DPK_LEVEL_PASTE2_(member, level)
#define DPK_LEVEL_FN(member) DPK_LEVEL_PASTE_(member, DPK_LEVEL)

#define DPK_KERNEL(member, type) type DPK_LEVEL_FN(member);
#include "../kernels.def"
#include "../kernels_f32.def"
#include "../kernels_int8.def"
#undef DPK_KERNEL

#endif
