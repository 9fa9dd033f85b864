# diffpak: `make help` lists the targets. Everything is built under $(BUILD); variants (BUILD=build/asan SAN=address,undefined) coexist.
CC    ?= cc
SAN   ?=
V     ?=
OPT   ?= -O2
DEBUGINFO ?= -g
PYTHON ?= python3

# For another processor: make ARCH=aarch64, or CC=aarch64-linux-gnu-gcc. Built under build/aarch64, run by $(RUN).
HOST  := $(shell uname -m)
ifneq ($(filter-out $(HOST),$(ARCH)),)
CC    := $(ARCH)-linux-gnu-gcc
endif
TARGET := $(shell $(CC) -dumpmachine)
ARCH   := $(firstword $(subst -, ,$(TARGET)))
CROSS  := $(if $(filter-out $(HOST),$(ARCH)),$(TARGET))
BUILD  ?= build$(if $(CROSS),/$(ARCH))$(if $(WITHOUT),/without-$(subst $() ,-,$(strip $(WITHOUT))))
RUN    ?= $(if $(CROSS),qemu-$(ARCH) -cpu max)
ifneq ($(CROSS),)
AR     := $(CROSS)-ar
endif
PKG_CONFIG ?= $(if $(CROSS),PKG_CONFIG_LIBDIR=/usr/lib/$(CROSS)/pkgconfig) pkg-config

WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Werror
CFLAGS += -std=c11 -D_GNU_SOURCE $(OPT) $(DEBUGINFO) $(WARN) -fPIC -fvisibility=hidden -ffp-contract=off -pthread \
           -ffile-prefix-map=$(CURDIR)=.
CPPFLAGS += -MMD -MP
LDFLAGS += -pthread
Q := $(if $(V),,@)
say = $(if $(V),,@echo '  $(1)')
ifneq ($(SAN),)
CFLAGS  += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
LDFLAGS += -fsanitize=$(SAN)
endif

include runtime/package/parts.mk

# Instruction-set levels: files named *_<level>.c get the level's flags; files in kernels/cpu/isa/ are compiled once per level.
FLAGS_ref        :=
FLAGS_avx2       := -mavx2 -mfma -mf16c
FLAGS_avx512     := $(FLAGS_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
FLAGS_avx512bf16 := $(FLAGS_avx512) -mavx512bf16 -mavx512vnni -mavx512vbmi
FLAGS_neon       :=
FLAGS_neondot    := -march=armv8.2-a+dotprod
FLAGS_neonbf16   := $(FLAGS_neondot)+bf16+i8mm
LEVELS_x86_64    := avx2 avx512 avx512bf16
LEVELS_aarch64   := neon neonbf16
LEVELS           := ref $(filter-out $(LEFT_LEVELS),$(LEVELS_$(ARCH)))
# Extras of a level: more files, no table of their own.
EXTRAS           := $(if $(filter neon,$(LEVELS)),neondot) $(if $(filter avx512bf16,$(LEVELS)),avx512)
ALL_LEVELS       := ref $(LEVELS_x86_64) $(LEVELS_aarch64) neondot
level_of = $(filter $(ALL_LEVELS),$(lastword $(subst _, ,$(basename $(notdir $(1))))))

# Third-party libraries of the tools; the runtime library has none.
PKGS_TOOLS := libarchive libcjson libxxhash libutf8proc libpng
TOOL_CFLAGS = $(shell $(PKG_CONFIG) --cflags $(PKGS_TOOLS) 2>/dev/null)
TOOL_LIBS   = $(shell $(PKG_CONFIG) --libs $(PKGS_TOOLS) 2>/dev/null) -lm
CLI_LIBS    = $(if $(strip $(CLI_PKGS)),$(shell $(PKG_CONFIG) --libs $(CLI_PKGS) 2>/dev/null)) -lm

# The reading half of formats/, all that the runtime takes from it.
FORMATS_READ := $(addprefix formats/,fail.c ops.c ops_check.c ops_shape.c ops_cost.c dpk_read.c dpk_check.c \
                 dpk_check_program.c map_guard.c)
KERNEL_ALL   := $(filter-out $(LEFT_FILES),$(wildcard kernels/cpu/*.c))
KERNEL_SRC   := $(foreach s,$(KERNEL_ALL),$(if $(filter-out $(LEVELS) $(EXTRAS),$(call level_of,$(s))),,$(s)))
ISA_SRC      := $(filter-out $(LEFT_FILES),$(wildcard kernels/cpu/isa/*.c))
RUNTIME_SRC  := $(filter-out $(LEFT_FILES) $(wildcard runtime/cli*.c),$(wildcard runtime/*.c))
CLI_SRC      := $(filter-out $(LEFT_FILES),$(wildcard runtime/cli*.c)) $(addprefix formats/,json_scan.c npy.c) $(CLI_PNG)
FORMATS_SRC  := $(filter-out formats/png_plain.c,$(wildcard formats/*.c))
CONVERT_SRC  := $(filter-out convert/cli.c,$(wildcard convert/*.c))
QUANTIZE_SRC := $(filter-out quantize/cli.c,$(wildcard quantize/*.c))

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
ISA_OBJ := $(foreach l,$(LEVELS),$(patsubst kernels/cpu/isa/%.c,$(BUILD)/obj/kernels/cpu/isa/%.$(l).o,$(ISA_SRC)))
LIB_OBJ := $(call obj,$(FORMATS_READ) $(KERNEL_SRC) $(RUNTIME_SRC)) $(ISA_OBJ)

BIN := $(BUILD)/bin
LIB := $(BUILD)/lib
comma := ,
.DEFAULT_GOAL := all
include runtime/package/package.mk

## all: the three programs and the libraries (default)
all: $(BIN)/diffpak $(BIN)/diffpak-convert $(if $(wildcard quantize/cli.c),$(BIN)/diffpak-quantize) $(LIB)/libdiffpak.a $(LIB)/libdiffpak.so

# Where tests under sanitizers spend their time.
$(addprefix $(BUILD)/obj/kernels/cpu/,tile_ref.o tile_s16_ref.o tile_s8_ref.o op_conv2d.o gemm.o): override OPT := $(OPT:-O1=-O2)
$(BUILD)/obj/kernels/cpu/isa/%.o: CPPFLAGS += -Ikernels/cpu
$(BUILD)/obj/kernels/cpu/kernels.o: CPPFLAGS += '-DDPK_LEVELS=$(foreach l,$(LEVELS),DPK_BUILT($(l)))'
define isa_rule
$(BUILD)/obj/kernels/cpu/isa/%.$(1).o: kernels/cpu/isa/%.c
	@mkdir -p $$(@D)
	$$(call say,CC $$< ($(1)))
	$$(Q)$$(CC) $$(CPPFLAGS) $$(CFLAGS) $(FLAGS_$(1)) -DDPK_LEVEL=$(1) -DDPK_LEVEL_$(1)=1 -c $$< -o $$@
endef
$(foreach l,$(LEVELS),$(eval $(call isa_rule,$(l))))

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC $<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(FLAGS_$(call level_of,$<)) $(TOOL_CFLAGS) -c $< -o $@

$(LIB)/libdiffpak.a: $(LIB_OBJ)
	@mkdir -p $(@D)
	$(Q)rm -f $@
	$(call say,AR $@)
	$(Q)$(AR) rcs $@ $^

$(LIB)/libdiffpak.so: $(LIB_OBJ) runtime/package/libdiffpak.map
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -shared -Wl,-soname,libdiffpak.so.$(SOVERSION) -Wl,--version-script=$(filter %.map,$^) \
	    $(if $(SAN),,-Wl$(comma)-z$(comma)defs) $(LDFLAGS) $(LIB_OBJ) -lm -o $@

# The tools' half: everything of formats/ (the reading half is in libdiffpak.a already), convert/ and quantize/ without their mains.
$(BUILD)/obj/libtools.a: $(call obj,$(filter-out $(FORMATS_READ),$(FORMATS_SRC)) $(CONVERT_SRC) $(QUANTIZE_SRC))
	@mkdir -p $(@D)
	$(Q)rm -f $@
	$(call say,AR $@)
	$(Q)$(AR) rcs $@ $^

$(BIN)/diffpak: $(call obj,$(CLI_SRC)) $(LIB)/libdiffpak.a
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) $^ $(CLI_LIBS) -o $@

$(BIN)/diffpak-convert: $(call obj,convert/cli.c) $(BUILD)/obj/libtools.a $(LIB)/libdiffpak.a
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) $^ $(TOOL_LIBS) -o $@

$(BIN)/diffpak-quantize: $(call obj,quantize/cli.c) $(BUILD)/obj/libtools.a $(LIB)/libdiffpak.a
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) $^ $(TOOL_LIBS) -o $@

# Unit tests: tests/test_*.c, one program each (cmocka).
TEST_SRC := $(wildcard tests/test_*.c)
TEST_BIN := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))
TEST_HELP := $(call obj,$(wildcard tests/support*.c))
$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(TEST_HELP) $(BUILD)/obj/libtools.a $(LIB)/libdiffpak.a
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) $^ $(TOOL_LIBS) -lcmocka -o $@

include tests/sanitize.mk
include tests/fuzz.mk
include tests/aarch64.mk
include kernels/cuda/cuda.mk

# Scripts that test the built programs; they print their totals like the unit tests.
TEST_SH := $(wildcard tests/test_*.sh)

## deps: install the packages that are missing (apt-get)
deps:
	@.ci/deps

## test: everything that must hold: unit, operator, parity, program and hostile-file tests, also under ASan and UBSan
test: deps
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory check BUILD=$(BUILD)/asan SAN=address,undefined OPT=-O1 DEBUGINFO=-g1 TEST_SH=

# In front of whole programs, by tests/test_faults_cli.sh.
FAULTS := $(BUILD)/tests/fault_preload.so
$(FAULTS): tests/fault_preload.c tests/fault_points.h
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) -std=gnu11 -D_GNU_SOURCE -O1 -g -fPIC -shared -Wall -Wextra -Werror $< -ldl -o $@

# check: build and run the tests of one variant
check: all emulated $(TEST_BIN) $(FUZZ_BIN) $(if $(TEST_SH),$(FAULTS))
	@BUILD=$(BUILD) RUN="$(RUN)" tests/run.sh $(BUILD)/logs $(addprefix ./,$(TEST_SH)) $(TEST_BIN) $(FUZZ_BIN)

## demo: install what is missing, build, convert models/shapes-xl and paint demo.png
demo: deps
	@$(MAKE) --no-print-directory all
	$(BIN)/diffpak-convert models/shapes-xl -o $(BUILD)/shapes-xl.dpk
	$(BIN)/diffpak generate $(BUILD)/shapes-xl.dpk -p "a large red circle on a blue background" --seed 42 --steps 20 -o demo.png
	@echo "the picture is $(CURDIR)/demo.png"

# Benchmarks: programs tests/bench_*.c.
$(BUILD)/tests/bench_%: $(BUILD)/obj/tests/bench_%.o $(TEST_HELP) $(BUILD)/obj/libtools.a $(LIB)/libdiffpak.a
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) $^ $(TOOL_LIBS) -lcmocka -o $@

## bench: kernels against the measured peak of this machine
bench: $(BUILD)/tests/bench_kernels $(BUILD)/tests/bench_ops
	$(BUILD)/tests/bench_kernels
	$(BUILD)/tests/bench_ops

## bench-peak: the most multiply-adds a second that a core of this machine can do, by type
bench-peak: $(BUILD)/tests/bench_peak
	$(BUILD)/tests/bench_peak

# Other runtimes live in an environment of their own.
.PHONY: bench-peers bench-pixels
PEERS_DIR  ?= $(BUILD)/peers
PEERS_VENV ?= $(PEERS_DIR)/venv
PEERS_PACKAGES := torch diffusers transformers accelerate safetensors openvino nncf matplotlib
$(PEERS_VENV)/ready:
	python3 -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install -q $(PEERS_PACKAGES)
	-CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON" $(PEERS_VENV)/bin/pip install -q \
	    --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python
	touch $@

## bench-peers: beside OpenVINO, PyTorch and stable-diffusion.cpp at real sizes (ROWS=, PEERS=, PEERS_OPTIONS="--rounds 3 --threads 2")
bench-peers: all $(BUILD)/tests/bench_peak $(PEERS_VENV)/ready
	$(PEERS_VENV)/bin/python tests/bench_peers.py --build $(BUILD) --dir $(PEERS_DIR) \
	    $(if $(ROWS),--rows $(ROWS)) $(if $(PEERS),--peers $(PEERS)) $(PEERS_OPTIONS)

## bench-pixels: time of a step over 512 to 2048 pixels against the model's own count of operations (MODEL=FILE.dpk)
bench-pixels: all
	@[ -n "$(MODEL)" ] || { echo "want MODEL=FILE.dpk"; exit 1; }
	python3 tests/bench_pixels.py $(MODEL) --build $(BUILD) --out $(BUILD)/pixels

## bench-real: the four real models from their configs with drawn weights: convert, count, one step, one decode
bench-real: all
	BUILD=$(BUILD) tests/bench_real.sh $(MODELS)

## bench-quality: do quantized files still paint what is asked: 64 pictures by each scheme, judged (needs python3 with NumPy)
bench-quality: all
	$(PYTHON) tests/bench_quality.py --build $(BUILD)

## test-slurm: a job array on a Slurm cluster of this machine alone (root; slurmctld, slurmd, munge)
test-slurm: all
	BUILD=$(BUILD) tests/slurm.sh

## format: lay out the sources by .clang-format
format:
	clang-format -i $(filter-out formats/xxhash.h,$(wildcard */*.[ch] */*/*.[ch] */*/*/*.[ch]))

## help: this list
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## clean: remove the build tree
clean:
	rm -rf build

.PHONY: all emulated cuda cuda-resources deps test check demo bench bench-peak bench-real bench-quality test-slurm format help clean
.SECONDARY:
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
