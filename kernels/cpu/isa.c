/* Instruction-set levels of this machine: the processor's feature bits, and whether the system
 * saves the registers. */
#include "cpu.h"

#include <stddef.h>

static const struct {
    const char *name;
    bool act_bf16;
} levels[DPK_N_ISAS] = {
#define DPK_ISA(NAME, name, act_bf16) {#name, act_bf16},
#include "isa.def"
#undef DPK_ISA
};

const char *dpk_isa_name(int isa) { return isa >= 0 && isa < DPK_N_ISAS ? levels[isa].name : "?"; }
bool dpk_isa_act_bf16(int isa) { return levels[isa].act_bf16; }

#if defined(__x86_64__)
#include <cpuid.h>

/* XCR0 says which registers the system saves; readable only where it enabled OSXSAVE. */
static uint64_t read_xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static int machine_best(void) {
    uint32_t a, b, c, d, c1, b7, c7, d7, a71 = 0;
    if (!__get_cpuid(1, &a, &b, &c1, &d)) return DPK_ISA_REF;
    if (!(c1 & bit_OSXSAVE) || !(c1 & bit_AVX) || !(c1 & bit_FMA) || !(c1 & bit_F16C)) {
        return DPK_ISA_REF;
    }
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return DPK_ISA_REF;
    uint64_t xcr0 = read_xcr0();
    if ((xcr0 & 0x6) != 0x6 || !(b7 & bit_AVX2)) return DPK_ISA_REF;
    uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((xcr0 & 0xe6) != 0xe6 || (b7 & avx512) != avx512) return DPK_ISA_AVX2;
    if (a >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d)) {
        bool bf16 = a71 & 1u << 5;
        if (bf16 && (c7 & bit_AVX512VNNI) && (c7 & bit_AVX512VBMI)) return DPK_ISA_AVX512BF16;
    }
    return DPK_ISA_AVX512;
}

static bool machine_has(int isa) { return isa <= machine_best(); }

bool dpk_isa_has_dot(int isa) {
    uint32_t a, b, c, d;
    if (isa == DPK_ISA_REF || !dpk_isa_available(isa)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (isa >= DPK_ISA_AVX512) return c & bit_AVX512VNNI;
    return a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4); /* AVX-VNNI */
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

/* Bits of Linux, asm/hwcap.h; older headers lack some. */
enum { ASIMDDP = 1 << 20 /* AT_HWCAP */, I8MM = 1 << 13, BF16 = 1 << 14 /* AT_HWCAP2 */ };

static bool machine_has(int isa) {
    if (isa == DPK_ISA_REF || isa == DPK_ISA_NEON) return true;
    unsigned long more = getauxval(AT_HWCAP2);
    return isa == DPK_ISA_NEONBF16 && (getauxval(AT_HWCAP) & ASIMDDP) && (more & I8MM) &&
           (more & BF16);
}

bool dpk_isa_has_dot(int isa) {
    return isa != DPK_ISA_REF && dpk_isa_available(isa) && (getauxval(AT_HWCAP) & ASIMDDP);
}
#else
static bool machine_has(int isa) { return isa == DPK_ISA_REF; }
bool dpk_isa_has_dot(int isa) { return (void)isa, false; }
#endif

bool dpk_isa_available(int isa) { return dpk_kernels_get(isa) && machine_has(isa); }

int dpk_isa_best(void) {
    int isa = DPK_N_ISAS - 1;
    while (isa > DPK_ISA_REF && !dpk_isa_available(isa)) isa--;
    return isa;
}
