# What a build of the runtime may leave out: make WITHOUT="avx512 int8 ..."; included by the Makefile. A part is source files that
# are not compiled (FILES_<part>), rows of tables that are not there, and DPK_HAS_<part> = 0 where C has to know.
PARTS       := f32 int8 philox png archive
PART_LEVELS := avx2 avx512 avx512bf16 neon neonbf16
ifneq ($(filter-out $(PARTS) $(PART_LEVELS),$(WITHOUT)),)
$(error WITHOUT=$(filter-out $(PARTS) $(PART_LEVELS),$(WITHOUT)): want some of $(PARTS) $(PART_LEVELS))
endif

# Float32 products: the levels that have no others, of avx512bf16 and neonbf16 what only files of float32 (or float16) need.
LEVELS_f32    := avx2 avx512 neon
FILES_f32     := $(foreach l,$(LEVELS_f32),kernels/cpu/tile_$(l).c) kernels/cpu/isa/winograd_f32.c
FILES_int8    := $(wildcard kernels/cpu/tile_s8_*.c) kernels/cpu/isa/quantize.c
FILES_philox  := runtime/random_philox.c
FILES_png     := formats/png.c
FILES_archive := runtime/cli_bundle.c

LEFT_LEVELS := $(WITHOUT) $(if $(filter f32,$(WITHOUT)),$(LEVELS_f32)) $(if $(filter avx512,$(WITHOUT)),avx512bf16) $(if $(filter neon,$(WITHOUT)),neonbf16)
LEFT_FILES  := $(foreach p,$(WITHOUT),$(FILES_$(p)))
CPPFLAGS    += $(foreach p,$(PARTS),-DDPK_HAS_$(p)=$(if $(filter $(p),$(WITHOUT)),0,1))
# Libraries of diffpak itself; without libpng it writes PNG by itself, uncompressed, and reads none.
CLI_PKGS    := $(if $(filter png,$(WITHOUT)),,libpng) $(if $(filter archive,$(WITHOUT)),,libarchive)
CLI_PNG     := $(if $(filter png,$(WITHOUT)),formats/png_plain.c,formats/png.c)

## musl: diffpak as one static program that needs no library, by musl-gcc, into build/musl/bin (WITHOUT= more)
musl:
	@command -v musl-gcc >/dev/null || { echo "musl: needs musl-gcc (Debian package musl-tools)"; exit 1; }
	@$(MAKE) --no-print-directory CC=musl-gcc LDFLAGS=-static BUILD=$(BUILD)/musl WITHOUT="png archive $(WITHOUT)" \
	    $(BUILD)/musl/bin/diffpak
.PHONY: musl
