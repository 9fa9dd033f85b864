# Tests under sanitizers and valgrind, and their line coverage; included by the Makefile.

# ---- Coverage: formats/ and the runtime library are compiled to count lines, the rest as usual.
# Not formats/png_plain.c, which only builds without libpng have (tests/test_without.sh), nor the loading of a CUDA driver.
COVERED := $(FORMATS_SRC) $(filter-out runtime/plugin.c,$(RUNTIME_SRC))
ifneq ($(COVERAGE),)
$(call obj,$(COVERED)): CFLAGS += -O0 --coverage -fprofile-update=atomic
LDFLAGS += --coverage
endif
