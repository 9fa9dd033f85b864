# The CUDA backend: the plugin libdiffpak-cuda.so, the same sources for an emulated device, their tests.
CUDA_HOME  ?= $(firstword $(wildcard /usr/local/cuda /usr/lib/cuda /opt/cuda))
NVCC       ?= $(or $(wildcard $(CUDA_HOME)/bin/nvcc),$(shell command -v nvcc 2>/dev/null))
CUDA_SRC   := $(wildcard kernels/cuda/*.cu)
CUDA_LIB   := $(LIB)/libdiffpak-cuda.so
# What the plugin takes from formats/: its own copies, which nobody sees.
CUDA_C_OBJ := $(call obj,$(FORMATS_READ))

# Architectures that the compiler at hand knows. No kernel asks which it is compiled for: one PTX, of the first, is assembled for
# all, and goes along for those not listed (sm_87, sm_110, the ones to come). Half the time of a compilation for each, no slower code.
CUDA_ARCHS ?= 80 86 89 90 100 120
ifneq ($(NVCC),)
CUDA_KNOWN   := $(filter $(patsubst sm_%,%,$(shell $(NVCC) --list-gpu-code 2>/dev/null)),$(CUDA_ARCHS))
CUDA_FIRST   := compute_$(firstword $(CUDA_KNOWN))
CUDA_GENCODE := -gencode 'arch=$(CUDA_FIRST),code=[$(subst $() ,$(comma),$(CUDA_KNOWN:%=sm_%) $(CUDA_FIRST))]'
# The smaller compression is read by drivers from 12.4 on, which CUDA 13 has anyway: a quarter of the size.
CUDA_SMALL   := $(if $(shell $(NVCC) --version | grep -E 'release (1[3-9]|[2-9][0-9])\.'),--compress-mode=size)
endif
NVCCFLAGS = -std=c++17 -O3 -ccbin $(CUDA_CXX) -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-parameter \
    -Ikernels/cuda --threads 2 -Xptxas -v

# The C++ compiler that belongs to CC. Sanitizers of one compiler need the library of the same.
CUDA_CXX ?= $(if $(findstring clang,$(CC)),$(patsubst clang%,clang++%,$(CC)),$(or $(shell command -v g++ 2>/dev/null),c++))

$(BUILD)/cuda/%.o: kernels/cuda/%.cu
	@mkdir -p $(@D)
	$(call say,NVCC $<)
	$(Q)$(NVCC) $(NVCCFLAGS) $(CUDA_SMALL) $(CUDA_GENCODE) -MMD -MF $(@:.o=.d) -c $< -o $@ 2>$(@:.o=.log) || { cat $(@:.o=.log); exit 1; }

-include $(wildcard $(BUILD)/cuda/*.d)

$(CUDA_LIB): $(patsubst kernels/cuda/%.cu,$(BUILD)/cuda/%.o,$(CUDA_SRC)) $(CUDA_C_OBJ)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(NVCC) -shared -ccbin $(CUDA_CXX) -cudart static $^ -lcublasLt -o $@ \
	    -Xlinker -soname,libdiffpak-cuda.so,-z,defs,--exclude-libs,ALL,-rpath,$(CUDA_HOME)/lib64 -lpthread -ldl -lm

## cuda: the CUDA plugin, libdiffpak-cuda.so, for all architectures that nvcc knows (CUDA 12 or 13)
cuda:
ifeq ($(NVCC),)
	@echo "make cuda: no nvcc here; install the CUDA toolkit, or say NVCC=/path/to/nvcc" >&2; exit 1
else
	@$(MAKE) --no-print-directory $(CUDA_LIB)
	@cp $(CUDA_LIB) $(BUILD)/cuda/stripped.so && strip $(BUILD)/cuda/stripped.so
	@ls -l $(CUDA_LIB) $(BUILD)/cuda/stripped.so | awk '{printf "%-40s %6.1f MiB\n", $$9, $$5 / 1048576}'
	@test $$(wc -c <$(BUILD)/cuda/stripped.so) -le 31457280 || { echo "the plugin is larger than 30 MiB" >&2; exit 1; }
endif

## cuda-resources: registers, shared memory and spills of each CUDA kernel, and their limits
cuda-resources:
	@$(MAKE) --no-print-directory cuda
	@awk -f kernels/cuda/resources.awk kernels/cuda/resources.txt $(patsubst kernels/cuda/%.cu,$(BUILD)/cuda/%.log,$(CUDA_SRC))

## cuda-check: the plugin as nvcc makes it, its size and its kernels' limits; says so where there is no nvcc
cuda-check:
ifeq ($(NVCC),)
	@echo "NOT COMPILED: the CUDA plugin for real devices needs nvcc"
else
	@mkdir -p $(BUILD)
	@$(MAKE) --no-print-directory cuda-resources >$(BUILD)/cuda.log 2>&1 || { grep -v registers $(BUILD)/cuda.log; exit 1; }
	@grep -E 'MiB|^[0-9]+ kernels' $(BUILD)/cuda.log
endif

# ---- On a real device ------------------------------------------------------------------------------------------------

CUDA_TESTS := test_small_ops test_norm test_attention test_linear_conv test_parity test_cuda
HAVE_GPU    = nvidia-smi -L >/dev/null 2>&1 || { echo "$@: no CUDA device here (nvidia-smi finds none); nothing was run" >&2; exit 1; }

## test-cuda: operator and parity tests on the CUDA device of this machine, then under compute-sanitizer
test-cuda:
	@$(HAVE_GPU)
	@$(MAKE) --no-print-directory cuda all $(addprefix $(BUILD)/tests/,$(CUDA_TESTS))
	@DPK_TEST_CUDA=gpu BUILD=$(BUILD) tests/run.sh $(BUILD)/logs $(addprefix $(BUILD)/tests/,$(CUDA_TESTS))
	@for tool in memcheck racecheck; do for t in test_small_ops test_norm test_attention test_linear_conv; do \
	    echo "compute-sanitizer $$tool $$t"; DPK_TEST_CUDA=gpu BUILD=$(BUILD) compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(BUILD)/tests/$$t >$(BUILD)/logs/$$tool-$$t.log 2>&1 || { tail -n 40 $(BUILD)/logs/$$tool-$$t.log; exit 1; }; done; done

## bench-cuda: pictures of 30 steps and a table of operators on the CUDA device; MODELS="a.dpk b.dpk" or build/real/*.dpk
bench-cuda:
	@$(HAVE_GPU)
	@$(MAKE) --no-print-directory cuda all
	@for m in $(or $(MODELS),$(wildcard build/real/*.dpk)); do echo "== $$m"; \
	    $(BIN)/diffpak bench $$m --backend cuda --repeat 3 --profile || exit 1; \
	    $(BIN)/diffpak generate $$m -p "a photograph of a lighthouse" --steps 30 --backend cuda --seed 1 -o $(BUILD)/bench-cuda.png || exit 1; done

.PHONY: cuda-check test-cuda bench-cuda

# ---- The emulated device: the same sources as C++ --------------------------------------------------------------------

EMU_LIB := $(if $(filter thread,$(SAN)),,$(if $(shell command -v $(CUDA_CXX) 2>/dev/null),$(LIB)/libdiffpak-cuda-emu.so))
EMU_OBJ := $(patsubst %,$(BUILD)/obj/emu/%.o,$(CUDA_SRC) $(wildcard tests/cuda_emu/*.cpp))
EMU_FLAGS = -std=c++17 -D_GNU_SOURCE $(OPT:-O1=-O2) $(DEBUGINFO) -fPIC -fvisibility=hidden -ffp-contract=off -pthread -Wall -Wextra -Wshadow -Werror \
    -Wno-unknown-pragmas -fno-strict-aliasing -Itests/cuda_emu -Ikernels/cuda -ffile-prefix-map=$(CURDIR)=. \
    $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)

$(BUILD)/obj/emu/%.o: %
	@mkdir -p $(@D)
	$(call say,CXX $< (emulated))
	$(Q)$(CUDA_CXX) -MMD -MP $(EMU_FLAGS) -x c++ -c $< -o $@

$(LIB)/libdiffpak-cuda-emu.so: $(EMU_OBJ) $(CUDA_C_OBJ)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CUDA_CXX) -shared $(if $(SAN),,-Wl$(comma)-z$(comma)defs) $(LDFLAGS) $^ -lm -o $@

# Tests below the plugin, in C++: tests/test_cuda_*.cpp with the kernels of products and attention.
ifneq ($(EMU_LIB),)
TEST_CUDA := $(patsubst tests/%.cpp,$(BUILD)/tests/%,$(wildcard tests/test_cuda_*.cpp))
TEST_BIN  += $(TEST_CUDA)
endif
TEST_CUDA_OBJ := $(patsubst %,$(BUILD)/obj/emu/%.o,$(wildcard tests/cuda_emu/*.cpp) \
    $(addprefix kernels/cuda/,attention.cu attention_plain.cu conv.cu gemm.cu gemm_f32.cu gemm_s8.cu gemm_weight_only.cu linear.cu tune.cu)) \
    $(call obj,$(addprefix formats/,fail.c ops.c ops_check.c ops_shape.c))
$(TEST_CUDA): $(BUILD)/tests/%: $(BUILD)/obj/emu/tests/%.cpp.o $(TEST_CUDA_OBJ)
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CUDA_CXX) $(LDFLAGS) $^ -lm -lcmocka -o $@

# emulated: what tests need of it; says so where there is no C++ compiler
emulated: $(EMU_LIB)
	$(if $(EMU_LIB),,@echo "NOT TESTED: the CUDA backend needs a C++ compiler ($(CUDA_CXX)), and no SAN=thread" >&2)
