/* What the files of the page share. Others use html.h. */
#ifndef DPK_HTML_IMPL_H
#define DPK_HTML_IMPL_H

#include "html.h"

/* ---- html_text.c --------------------------------------------------------------------------- */

/* Text with what HTML would take for markup escaped, also in quoted attributes; bytes that are no
 * UTF-8, and control characters, become U+FFFD. */
void dpk_html_text(FILE *out, const char *s);
void dpk_html_text_n(FILE *out, const char *s, size_t n);
/* "12.3 MB". */
void dpk_html_bytes(FILE *out, double bytes);
/* <img> of a picture [h,w,3], as a PNG in its address. Errors: DPK_ENOMEM. */
int dpk_html_picture(FILE *out, const uint8_t *rgb, uint32_t w, uint32_t h, const char *alt,
                     dpk_error *err);

/* Number of the layer's component, in order of appearance, for its colour. */
enum { DPK_HTML_MAX_COMPONENTS = 6 }; /* later ones share the last colour */
struct dpk_html_components {
    size_t n;
    const char *name[DPK_HTML_MAX_COMPONENTS]; /* up to the first dot */
    size_t length[DPK_HTML_MAX_COMPONENTS];
};
void dpk_html_components_find(struct dpk_html_components *c, const struct dpk_layers *layers);
size_t dpk_html_component_of(const struct dpk_html_components *c, const char *layer);

/* ---- html_chart.c -------------------------------------------------------------------------- */

/* Inline SVG. Errors of layers on a logarithmic axis, one bar a layer, in the order of the file. */
void dpk_html_chart_errors(FILE *out, const struct dpk_layers *layers, const struct dpk_measure *m,
                           const struct dpk_html_components *c);
/* Weight SQNR across, share of the error up. */
void dpk_html_chart_scatter(FILE *out, const struct dpk_layers *layers, const struct dpk_measure *m,
                            const struct dpk_html_components *c);
/* Bytes of the layers by component, and of everything else, before and after. */
void dpk_html_chart_sizes(FILE *out, const struct dpk_report_subject *subject,
                          const struct dpk_layers *layers, const struct dpk_html_components *c);

#endif
