/* The quality card as a page: one file, nothing fetched, no scripts; light and dark. */
#ifndef DPK_HTML_H
#define DPK_HTML_H

#include "report.h"

#include <stdio.h>

/* The whole page. Parts of the subject that are NULL (measure, alone, timed) are left out.
 * Errors: DPK_ENOMEM (a picture could not be packed). Failed writes show in ferror(out). */
int dpk_html_page(FILE *out, const struct dpk_report_subject *subject,
                  const struct dpk_layers *layers, dpk_error *err);

#endif
