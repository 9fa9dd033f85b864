/* The most that one thread of this machine can multiply: what kernels are held against. */
#ifndef DPK_PEAK_H
#define DPK_PEAK_H

#include "cpu.h"

/* Operations (a multiply-add is two) a second of the calling thread in products whose A has this
 * type, by the widest instruction that the level has for it: DPK_F32 fused multiply-adds, DPK_BF16
 * dot products of pairs, DPK_S8 of quantized rows (with `dot` products of bytes in fours, without
 * it 16-bit multiply-adds). Types that the level widens count as F32. 0: nothing can be said (ref,
 * other machines). Takes some 20 ms of the thread's own time: other work does not count, a lower
 * clock does. */
double dpk_peak_measure(int isa, int dtype, bool dot);

#endif
