# Fuzz targets: tests/fuzz_NAME.c, run by libFuzzer (`make fuzz`) or replayed over tests/corpus/NAME (`make test`).
# Their inputs, what was spent and what was found: tests/corpus/README.md.
FUZZ_NAMES := $(patsubst tests/fuzz_%.c,%,$(wildcard tests/fuzz_*.c))
FUZZ_BIN   := $(addprefix $(BUILD)/tests/replay_,$(FUZZ_NAMES))
TIME       ?= 60
FUZZ       ?= $(FUZZ_NAMES)
FUZZ_LIBS   = $(TOOL_LIBS) -lz -lcmocka
FUZZ_OBJ    = $(filter %.o,$^) $(filter %.a,$^) -Wl,--wrap=dpk_pack_unicode_tables
FUZZ_HELP  := $(TEST_HELP) $(BUILD)/obj/tests/replay_tables.o

# What a target needs of a program's own half.
$(BUILD)/tests/replay_batch $(BUILD)/tests/fuzz_batch: $(call obj,$(addprefix runtime/cli_,batch.c picture.c options.c output.c))

$(FUZZ_BIN): $(BUILD)/tests/replay_%: $(BUILD)/obj/tests/fuzz_%.o $(BUILD)/obj/tests/replay.o $(FUZZ_HELP) $(BUILD)/obj/libtools.a $(LIB)/libdiffpak.a
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) $(FUZZ_OBJ) $(FUZZ_LIBS) -o $@

$(addprefix $(BUILD)/tests/fuzz_,$(FUZZ_NAMES)): $(BUILD)/tests/fuzz_%: $(BUILD)/obj/tests/fuzz_%.o $(FUZZ_HELP) $(BUILD)/obj/libtools.a $(LIB)/libdiffpak.a
	@mkdir -p $(@D)
	$(call say,LD $@)
	$(Q)$(CC) $(LDFLAGS) -fsanitize=fuzzer $(FUZZ_OBJ) $(FUZZ_LIBS) -o $@

# Arithmetic on what was checked before: its comparisons tell the fuzzer nothing, and there are millions.
$(BUILD)/obj/kernels/%.o $(BUILD)/obj/runtime/walk.o $(BUILD)/obj/runtime/plan.o $(BUILD)/obj/runtime/plan_%.o: \
    CFLAGS += $(if $(findstring fuzzer,$(SAN)),-fno-sanitize-coverage=trace-cmp)

## fuzz: libFuzzer on every target, TIME=60 seconds each (FUZZ=name for one); needs clang. Crashes are left in build/fuzz/
fuzz:
	@command -v clang >/dev/null || { echo "fuzz: needs clang and its compiler-rt"; exit 1; }
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/fuzz CC=clang SAN=address,undefined,fuzzer-no-link OPT=-O1 fuzz-run
fuzz-run: $(addprefix $(BUILD)/tests/fuzz_,$(FUZZ))
	@for n in $(FUZZ); do \
	    mkdir -p $(BUILD)/corpus/$$n tests/corpus/$$n; echo "fuzz_$$n, $(TIME) s"; \
	    ASAN_OPTIONS=allocator_may_return_null=1 $(BUILD)/tests/fuzz_$$n -max_total_time=$(TIME) -timeout=25 \
	        -rss_limit_mb=3000 -max_len=65536 -print_final_stats=1 -verbosity=0 -artifact_prefix=$(BUILD)/$$n- \
	        $$([ ! -e tests/corpus/$$n.dict ] || echo -dict=tests/corpus/$$n.dict) \
	        $(BUILD)/corpus/$$n tests/corpus/$$n || exit 1; \
	done
.PHONY: fuzz fuzz-run
