# Installing and packing; included by the Makefile.
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
LIBDIR  ?= $(PREFIX)/lib
INCDIR  := $(PREFIX)/include/diffpak
MANDIR  ?= $(PREFIX)/share/man
DATADIR ?= $(PREFIX)/share
INSTALL ?= install
PACKAGE := runtime/package

VERSION   := $(shell sed -n 's/.*DPK_PROJECT_VERSION "\(.*\)".*/\1/p' formats/version.h)
SOVERSION := $(firstword $(subst ., ,$(VERSION)))
PROGRAMS  := diffpak diffpak-convert $(if $(wildcard quantize/cli.c),diffpak-quantize)
# From lib/cmake/diffpak to the prefix.
UP = $(shell realpath -m --relative-to=$(LIBDIR)/cmake/diffpak $(PREFIX))
fill = sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@SOVERSION@|$(SOVERSION)|g' -e 's|@PREFIX@|$(PREFIX)|g' \
           -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|@UP@|$(UP)|g'

INSTALLED = $(addprefix $(BINDIR)/,$(PROGRAMS)) \
    $(addprefix $(LIBDIR)/,libdiffpak.a libdiffpak.so.$(VERSION) libdiffpak.so.$(SOVERSION) libdiffpak.so pkgconfig/diffpak.pc \
        cmake/diffpak/diffpak-config.cmake cmake/diffpak/diffpak-config-version.cmake) \
    $(addprefix $(INCDIR)/,diffpak.h dpk_error.h) \
    $(addprefix $(MANDIR)/man1/,$(addsuffix .1,$(PROGRAMS))) $(MANDIR)/man5/dpk.5 \
    $(addprefix $(DATADIR)/bash-completion/completions/,$(PROGRAMS)) $(DATADIR)/zsh/site-functions/_diffpak

## install: programs, libraries, headers, pkg-config and CMake files, manual, completions (DESTDIR=, PREFIX=/usr/local)
install: all
	for d in $(sort $(dir $(INSTALLED))); do $(INSTALL) -d "$(DESTDIR)$$d" || exit 1; done
	$(INSTALL) -m 755 $(addprefix $(BIN)/,$(PROGRAMS)) "$(DESTDIR)$(BINDIR)"
	$(INSTALL) -m 644 $(LIB)/libdiffpak.a "$(DESTDIR)$(LIBDIR)"
	$(INSTALL) -m 755 $(LIB)/libdiffpak.so "$(DESTDIR)$(LIBDIR)/libdiffpak.so.$(VERSION)"
	if [ -e $(LIB)/libdiffpak-cuda.so ]; then $(INSTALL) -m 755 $(LIB)/libdiffpak-cuda.so "$(DESTDIR)$(LIBDIR)"; fi
	ln -sf libdiffpak.so.$(VERSION) "$(DESTDIR)$(LIBDIR)/libdiffpak.so.$(SOVERSION)"
	ln -sf libdiffpak.so.$(SOVERSION) "$(DESTDIR)$(LIBDIR)/libdiffpak.so"
	$(INSTALL) -m 644 runtime/diffpak.h formats/dpk_error.h "$(DESTDIR)$(INCDIR)"
	$(fill) $(PACKAGE)/diffpak.pc.in >"$(DESTDIR)$(LIBDIR)/pkgconfig/diffpak.pc"
	for f in diffpak-config.cmake diffpak-config-version.cmake; do \
	    $(fill) $(PACKAGE)/$$f.in >"$(DESTDIR)$(LIBDIR)/cmake/diffpak/$$f" || exit 1; done
	$(INSTALL) -m 644 $(wildcard runtime/*.1 convert/*.1 quantize/*.1) "$(DESTDIR)$(MANDIR)/man1"
	$(INSTALL) -m 644 formats/dpk.5 "$(DESTDIR)$(MANDIR)/man5"
	$(INSTALL) -m 644 $(PACKAGE)/diffpak.bash "$(DESTDIR)$(DATADIR)/bash-completion/completions/diffpak"
	for p in $(filter-out diffpak,$(PROGRAMS)); do \
	    ln -sf diffpak "$(DESTDIR)$(DATADIR)/bash-completion/completions/$$p" || exit 1; done
	$(INSTALL) -m 644 $(PACKAGE)/_diffpak "$(DESTDIR)$(DATADIR)/zsh/site-functions"

## uninstall: remove what install put there (same DESTDIR and PREFIX)
uninstall:
	for f in $(INSTALLED) $(LIBDIR)/libdiffpak-cuda.so; do rm -f "$(DESTDIR)$$f"; done
	for d in $(INCDIR) $(LIBDIR)/cmake/diffpak; do rmdir "$(DESTDIR)$$d" 2>/dev/null || :; done

## dist: the sources of the last commit as build/diffpak-VERSION.tar.zst
dist:
	@mkdir -p $(BUILD)
	git archive --prefix=diffpak-$(VERSION)/ -o $(BUILD)/diffpak-$(VERSION).tar HEAD
	zstd -q -19 -f --rm $(BUILD)/diffpak-$(VERSION).tar -o $(BUILD)/diffpak-$(VERSION).tar.zst
	@ls -l $(BUILD)/diffpak-$(VERSION).tar.zst

## deb: Debian packages of the last commit in build/deb (needs debhelper)
DEB := $(BUILD)/deb
deb:
	@command -v dh >/dev/null || { echo "deb: no debhelper here: apt-get install debhelper devscripts" >&2; exit 1; }
	rm -rf $(DEB)
	mkdir -p $(DEB)
	git archive --prefix=diffpak-$(VERSION)/ HEAD | tar -xf - -C $(DEB)
	cp -r $(DEB)/diffpak-$(VERSION)/$(PACKAGE)/debian $(DEB)/diffpak-$(VERSION)
	printf 'diffpak ($(VERSION)) unstable; urgency=medium\n\n  * Release $(VERSION).\n\n -- %s  %s\n' \
	    "$$(sed -n 's/^Maintainer: //p' $(PACKAGE)/debian/control)" "$$(git log -1 --format=%cD)" \
	    >$(DEB)/diffpak-$(VERSION)/debian/changelog
	cd $(DEB)/diffpak-$(VERSION) && env -u MAKEFLAGS -u MAKELEVEL dpkg-buildpackage -b -us -uc -j2 >../build.log 2>&1 || \
	    { tail -n 20 ../build.log >&2; exit 1; }
	rm -rf $(DEB)/diffpak-$(VERSION)
	@ls -l $(DEB)/*.deb

## size: what each part costs in the stripped diffpak
size: $(BIN)/diffpak
	$(Q)$(CC) $(LDFLAGS) -Wl,-Map=$(BUILD)/size.map $(call obj,$(CLI_SRC)) $(LIB)/libdiffpak.a $(CLI_LIBS) -o $(BUILD)/size.bin
	$(Q)$(CROSS:%=%-)strip $(BUILD)/size.bin
	$(Q)awk -v file=$$(wc -c <$(BUILD)/size.bin) -f $(PACKAGE)/size.awk $(BUILD)/size.map

.PHONY: install uninstall dist deb size
