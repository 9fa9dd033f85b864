# Tests under sanitizers and valgrind, and their line coverage; included by the Makefile. Each has a build of its own.

# chosen: build and run the programs $(TESTS) and the scripts $(SCRIPTS) by $(RUN)
chosen: $(BIN)/diffpak $(addprefix $(BUILD)/tests/,$(TESTS)) $(if $(CONVERT),emulated $(BIN)/diffpak-convert $(BIN)/diffpak-quantize)
	@BUILD=$(BUILD) RUN="$(RUN)" tests/run.sh $(BUILD)/logs $(addprefix $(BUILD)/tests/,$(TESTS)) $(addprefix ./tests/,$(SCRIPTS))

## asan: run the tests under AddressSanitizer and UndefinedBehaviorSanitizer; arenas have red zones (runtime/arena_guard.h)
asan:
	@$(MAKE) --no-print-directory check BUILD=$(BUILD)/asan SAN=address,undefined OPT=-O1 DEBUGINFO=-g1 TEST_SH=

## ubsan: run the tests under UndefinedBehaviorSanitizer alone, optimised as usual, with clang's checks of float conversions
ubsan:
	@$(MAKE) --no-print-directory check BUILD=$(BUILD)/ubsan CC=clang SAN=undefined,float-cast-overflow TEST_SH=

# Whatever runs on several threads.
TSAN_TESTS := $(addprefix test_,threads session map paging pipeline prompts img2img attention norm linear_conv small_ops int8_ops winograd)
## tsan: sessions and operators in several threads under ThreadSanitizer (TESTS="test_threads test_session": others)
tsan:
	@TSAN_OPTIONS=suppressions=$(CURDIR)/tests/tsan.supp $(MAKE) --no-print-directory chosen CONVERT=1 BUILD=$(BUILD)/tsan CC=clang \
	    SAN=thread OPT=-O1 TESTS="$(or $(TESTS),$(TSAN_TESTS))"

# The tools' libraries are not instrumented: what they write would count as not written. Nor does clang know of all vector
# instructions what they read. So: the runtime without either, as a program, and tests that need no library but cmocka.
MSAN_TESTS := $(addprefix test_,dpk dpk_rules plan norm small_ops linear_conv attention int8 int8_ops)
## msan: the runtime under MemorySanitizer (clang): operators without vectors, plans, files, pictures; not the tools, whose libraries know nothing of it
msan:
	@ISAS=ref $(MAKE) --no-print-directory chosen BUILD=$(BUILD)/msan CC=clang SAN=memory OPT=-O1 WITHOUT="png archive avx2 avx512 avx512bf16" \
	    TESTS="$(MSAN_TESTS)" SCRIPTS=reading.sh

# No AVX-512 in valgrind 3.19. Replays are of the corpus as it is.
VALGRIND_TESTS := $(addprefix replay_,dpk safetensors config archive npy png tokenizer lora filter) test_plan test_versions \
                  test_tokenizer_blob
VALGRIND := valgrind -q --error-exitcode=9 --leak-check=full --show-leak-kinds=all --errors-for-leak-kinds=definite,indirect
## valgrind: memcheck of the readers over tests/corpus, of plans and of pictures
valgrind:
	@command -v valgrind >/dev/null || { echo "valgrind: it is not installed"; exit 1; }
	@DPK_ISA=avx2 DPK_FUZZ_ROUNDS=0 $(MAKE) --no-print-directory chosen BUILD=$(BUILD)/valgrind OPT="-O1 -g" TESTS="$(VALGRIND_TESTS)" \
	    SCRIPTS=reading.sh RUN="$(VALGRIND)"

# ---- Coverage: formats/ and the runtime library count their lines, the rest is compiled as usual. Not formats/png_plain.c, which
# only builds without libpng have (tests/test_without.sh), nor runtime/plugin.c, which loads a CUDA driver.
COVERED := $(FORMATS_SRC) $(filter-out runtime/plugin.c,$(RUNTIME_SRC))
ifneq ($(COVERAGE),)
$(call obj,$(COVERED)): CFLAGS += -O0 --coverage -fprofile-update=atomic
LDFLAGS += --coverage
endif
# Neither of kernels alone nor of the build itself.
COVERAGE_NOT := $(addprefix test_,cuda_attention cuda_products cuda_tune attention norm linear_conv small_ops int8 int8_ops \
                rows8 winograd winograd_kernels card)
COVERAGE_SH  := test_bundle.sh test_cli.sh test_quantize_cli.sh test_unseen.sh
## coverage: lines of formats/ and of the runtime library that the tests reach, by gcov; fails below 95 %
coverage:
	@rm -rf $(BUILD)/coverage/gcda; find $(BUILD)/coverage -name '*.gcda' -delete 2>/dev/null || true
	@$(MAKE) --no-print-directory chosen BUILD=$(BUILD)/coverage CC=gcc COVERAGE=1 CONVERT=1 SCRIPTS="$(COVERAGE_SH)" \
	    TESTS="$(filter-out $(COVERAGE_NOT),$(patsubst tests/%.c,%,$(TEST_SRC))) $(notdir $(FUZZ_BIN))"
	@tests/coverage.sh $(BUILD)/coverage/obj 95 $(COVERED)

.PHONY: chosen asan ubsan tsan msan valgrind coverage
