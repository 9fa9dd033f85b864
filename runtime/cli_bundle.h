/* Bundles: a model and what goes with it in one .tar.zst (cli_bundle.c says what is in one). */
#ifndef DPK_CLI_BUNDLE_H
#define DPK_CLI_BUNDLE_H

#include "cli.h"

/* Whether the file begins as a bundle does. */
bool dpk_cli_is_bundle(const char *path);

/* Check a bundle's files against its sums and unpack its model into a file without a name, in
 * $TMPDIR, open at *fd (the caller's to close). Errors: DPK_EIO, DPK_EFORMAT, DPK_ENOMEM. */
int dpk_cli_bundle_model(const char *path, bool quiet, int *fd, dpk_error *err);

#endif
