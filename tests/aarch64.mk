# Tests of another processor's build under qemu-user; included by the Makefile. Programs that the tests start go through scripts in
# $(BUILD)/run/bin, which look like the programs themselves.
AARCH64_TESTS ?= test_int8 test_linear_conv test_norm test_small_ops test_attention test_winograd_kernels test_random test_parity

$(BUILD)/run/bin/%: $(BIN)/%
	@mkdir -p $(@D)
	@printf '#!/bin/sh\nexec %s "%s" "$$@"\n' '$(RUN)' '$(abspath $<)' >$@ && chmod +x $@

# emulate: build and run $(TESTS) by $(RUN)
emulate: $(addprefix $(BUILD)/run/bin/,diffpak diffpak-convert diffpak-quantize) $(addprefix $(BUILD)/tests/,$(TESTS))
	@TEST_TIMEOUT=3600 BUILD=$(BUILD)/run RUN="$(RUN)" tests/run.sh $(BUILD)/logs $(addprefix $(BUILD)/tests/,$(TESTS))

## deps-aarch64: install what test-aarch64 needs (apt-get)
deps-aarch64:
	@.ci/deps arm64

## test-aarch64: cross build, and the tests of operators and parity under qemu-aarch64 (AARCH64_TESTS= others, all: every one)
test-aarch64:
	@command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null && \
	    test -e /usr/lib/aarch64-linux-gnu/pkgconfig/libarchive.pc || \
	    { echo "test-aarch64: packages are missing; make deps-aarch64 installs them"; exit 1; }
	@$(MAKE) --no-print-directory ARCH=aarch64 BUILD=$(BUILD)/aarch64 emulate \
	    TESTS="$(if $(filter all,$(AARCH64_TESTS)),$(filter-out test_cuda,$(patsubst tests/%.c,%,$(TEST_SRC))),$(AARCH64_TESTS))"
.PHONY: emulate deps-aarch64 test-aarch64
