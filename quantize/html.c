#include "html_impl.h"

#include "../formats/fail.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WORST = 15 }; /* layers in the table that is open */

static const char style[] =
    ":root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2024;--soft:#667;"
    "--line:#dcdfe3;--before:#9aa4b1;--after:#2d7d6f}\n"
    "@media (prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1e2125;--ink:#e6e8ea;"
    "--soft:#99a1ab;--line:#343a41;--before:#66707c;--after:#4fb3a1}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\n"
    "main{max-width:60rem;margin:0 auto;padding:1rem}\n"
    "h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0 0;overflow-wrap:anywhere}\n"
    "h2{font-size:1.1rem;margin:2rem 0 .25rem}\n"
    "p{margin:.25rem 0 .75rem;overflow-wrap:anywhere}.soft{color:var(--soft)}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.25rem,1fr));gap:.6rem;"
    "margin:1rem 0}\n"
    ".tiles div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;"
    "padding:.6rem .75rem}\n"
    ".tiles b{display:block;font-size:1.3rem;line-height:1.3}.tiles span{color:var(--soft);"
    "font-size:.85rem}\n"
    ".shots{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;"
    "margin-bottom:1.25rem}\n"
    "figure{margin:0}figcaption{color:var(--soft);font-size:.85rem}\n"
    "img{display:block;width:100%;height:auto;border-radius:.3rem;background:#000}\n"
    "svg{display:block;width:100%;max-width:46rem;height:auto;background:var(--card);"
    "border:1px solid var(--line);border-radius:.5rem}\n"
    "svg text{font:11px system-ui,sans-serif;fill:var(--soft)}.end{text-anchor:end}"
    ".mid{text-anchor:middle}\n"
    ".grid{stroke:var(--line);stroke-width:.6}.axis{stroke:var(--soft);stroke-width:.8}\n"
    ".before{fill:var(--before)}.after{fill:var(--after)}\n"
    ".c0{fill:#2d7d6f}.c1{fill:#c9762c}.c2{fill:#5b6fc4}.c3{fill:#b04a76}.c4{fill:#7b8a2e}"
    ".c5{fill:#7a6a5c}\n"
    "@media (prefers-color-scheme:dark){.c0{fill:#4fb3a1}.c1{fill:#e39a56}.c2{fill:#8b9cec}"
    ".c3{fill:#dc7ba5}.c4{fill:#aebd55}.c5{fill:#b3a28f}}\n"
    ".wide{overflow-x:auto}\n"
    "table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}"
    "\n"
    "td,th{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:right;"
    "white-space:nowrap}\n"
    "td:first-child,th:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;"
    "min-width:11rem}\n"
    "th{color:var(--soft);font-weight:600}summary{cursor:pointer;margin:.75rem 0}\n"
    /* Phones: what a layer costs fits beside its name, its shape and size do not. Charts shrink,
     * their text not as much. */
    "@media (max-width:34rem){svg text{font-size:13px}td,th{padding:.25rem}th{white-space:normal}"
    "td:first-child,th:first-child{min-width:8rem}.costs td:nth-child(2),"
    ".costs th:nth-child(2),.costs td:nth-child(6),.costs th:nth-child(6){display:none}}\n";

struct page {
    FILE *out;
    const struct dpk_report_subject *subject;
    const struct dpk_layers *layers;
    struct dpk_html_components components;
    dpk_error *err;
};

/* ---- Pieces ---------------------------------------------------------------------------------- */

static void put_db(FILE *out, double db) {
    if (isfinite(db)) fprintf(out, "%.1f dB", db);
    else fputs("equal", out);
}

static void put_percent(FILE *out, double v) {
    if (v > 0 && v < 0.0001) fprintf(out, "%.1e %%", v * 100);
    else fprintf(out, "%.2f %%", v * 100);
}

static void heading(const struct page *p, const char *title, const char *text) {
    fprintf(p->out, "<h2>%s</h2>\n", title);
    if (text) fprintf(p->out, "<p class=\"soft\">%s</p>\n", text);
}

static void head(const struct page *p) {
    FILE *out = p->out;
    const char *model = p->subject->model ? p->subject->model : p->subject->source_path;
    char scheme[32];
    fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>",
          out);
    dpk_html_text(out, model);
    fputs(": quality card</title>\n<style>\n", out);
    fputs(style, out);
    fputs("</style>\n</head>\n<body>\n<main>\n<h1>", out);
    dpk_html_text(out, model);
    fputs(": quality card</h1>\n<p class=\"soft\">", out);
    dpk_html_text(out, dpk_scheme_text(p->subject->scheme, scheme));
    if (p->subject->scheme->kind != DPK_SCHEME_INT4_WEIGHT)
        fprintf(out, ", %s scales", dpk_convention_name(p->subject->scheme->convention));
    fputs(", filter ", out);
    dpk_html_text(out, p->subject->filter_id);
    fprintf(out, ": %zu of %zu layers. Made from ", p->layers->n_quantized, p->layers->n);
    dpk_html_text(out, p->subject->source_path);
    fprintf(out, " (%016" PRIx64 ").</p>\n", p->subject->source_sum);
}

static void tiles(const struct page *p) {
    FILE *out = p->out;
    const struct dpk_report_subject *s = p->subject;
    const struct dpk_measure *m = s->measure;
    const struct dpk_report_totals t = dpk_report_sum(p->layers);
    fputs("<div class=\"tiles\">\n", out);
    if (m) {
        fputs("<div><b>", out);
        put_db(out, m->psnr);
        fputs("</b><span>PSNR of the pictures</span></div>\n", out);
        fprintf(out, "<div><b>%.4f</b><span>SSIM of the pictures</span></div>\n", m->ssim);
        fputs("<div><b>", out);
        put_percent(out, m->latent_error);
        fputs("</b><span>error of the final latent, relative L2</span></div>\n", out);
        fprintf(out,
                "<div><b>%.2f&times;</b><span>speed of a step: %.1f ms, was %.1f ms</span></div>\n",
                m->step_after > 0 ? m->step_before / m->step_after : 0, m->step_after * 1e3,
                m->step_before * 1e3);
    }
    if (s->file_after) {
        fputs("<div><b>", out);
        dpk_html_bytes(out, (double)s->file_after);
        fputs("</b><span>file, was ", out);
        dpk_html_bytes(out, (double)s->file_before);
        fputs("</span></div>\n", out);
    }
    fprintf(out, "<div><b>%.2f</b><span>bits a weight, all layers</span></div>\n", t.bits);
    fputs("</div>\n", out);
}

/* ---- Pictures -------------------------------------------------------------------------------- */

static int figure(const struct page *p, const uint8_t *rgb, const char *caption,
                  const char *prompt) {
    int rc = DPK_OK;
    fputs("<figure>", p->out);
    DPK_TRY(dpk_html_picture(p->out, rgb, p->subject->measure->width, p->subject->measure->height,
                             prompt, p->err));
    fprintf(p->out, "<figcaption>%s</figcaption></figure>\n", caption);
done:
    return rc;
}

static int picture(const struct page *p, const struct dpk_measure_picture *shot) {
    enum { GAIN = 8 };
    const struct dpk_measure *m = p->subject->measure;
    const size_t n = (size_t)m->width * m->height * 3;
    uint8_t *difference = malloc(n);
    int rc = DPK_OK;
    if (!difference) DPK_FAIL(p->err, DPK_ENOMEM, "no memory for a picture of differences");
    for (size_t i = 0; i < n; i++) {
        const int d = abs((int)shot->after[i] - (int)shot->before[i]) * GAIN;
        difference[i] = (uint8_t)(d < 255 ? d : 255);
    }
    fputs("<p><b>", p->out);
    dpk_html_text(p->out, shot->prompt);
    fprintf(p->out, "</b><br><span class=\"soft\">seed %" PRIu64 ", PSNR ", shot->seed);
    put_db(p->out, shot->psnr);
    fprintf(p->out, ", SSIM %.4f, latent error ", shot->ssim);
    put_percent(p->out, shot->latent_error);
    fputs("</span></p>\n<div class=\"shots\">\n", p->out);
    DPK_TRY(figure(p, shot->before, "before", shot->prompt));
    DPK_TRY(figure(p, shot->after, "quantized", shot->prompt));
    DPK_TRY(figure(p, difference, "difference &times; 8", shot->prompt));
    fputs("</div>\n", p->out);
done:
    free(difference);
    return rc;
}

static int pictures(const struct page *p) {
    const struct dpk_measure *m = p->subject->measure;
    int rc = DPK_OK;
    heading(p, "Pictures", NULL);
    fprintf(p->out, "<p class=\"soft\">%" PRIu32 " &times; %" PRIu32 " pixels, %" PRIu32 " steps, ",
            m->width, m->height, m->steps);
    dpk_html_text(p->out, m->scheduler);
    fputs(", the model's own guidance; on ", p->out);
    dpk_html_text(p->out, m->machine);
    fputs(".</p>\n", p->out);
    for (uint32_t i = 0; i < m->n_pictures; i++) DPK_TRY(picture(p, &m->picture[i]));
done:
    return rc;
}

/* ---- Layers ---------------------------------------------------------------------------------- */

static void layer_row(const struct page *p, size_t i) {
    const struct dpk_layer *l = &p->layers->layer[i];
    const struct dpk_measure *m = p->subject->measure;
    FILE *out = p->out;
    fputs("<tr><td>", out);
    dpk_html_text(out, l->name);
    fprintf(out, "</td><td>%" PRId64 " &rarr; %" PRId64 "</td><td>", l->in, l->out);
    if (!l->quantized) {
        fputs("left</td><td></td><td></td><td>", out);
        dpk_html_bytes(out, (double)l->bytes_after);
        fputs("</td></tr>\n", out);
        return;
    }
    put_db(out, dpk_sqnr_db(l->signal, l->noise));
    fputs("</td><td>", out);
    if (m && m->layer[i].uses) {
        put_percent(out, dpk_measure_layer_error(m, i));
        fputs("</td><td>", out);
        put_percent(out, dpk_measure_layer_share(m, i));
    } else {
        fputs("</td><td>", out);
    }
    fputs("</td><td>", out);
    dpk_html_bytes(out, (double)l->bytes_after);
    fputs("</td></tr>\n", out);
}

static void table_head(const struct page *p) {
    fputs("<div class=\"wide\"><table class=\"costs\">\n<tr><th>layer</th><th>in, "
          "out</th><th>weight SQNR</th>"
          "<th>output error</th><th>share</th><th>size</th></tr>\n",
          p->out);
}

static void worst_layers(const struct page *p) {
    const struct dpk_measure *m = p->subject->measure;
    size_t worst[WORST], n = 0;
    for (size_t i = 0; i < p->layers->n; i++) {
        if (!m->layer[i].uses) continue;
        size_t at = n < WORST ? n++ : WORST;
        while (at > 0 &&
               dpk_measure_layer_error(m, worst[at - 1]) < dpk_measure_layer_error(m, i)) {
            if (at < WORST) worst[at] = worst[at - 1];
            at--;
        }
        if (at < WORST) worst[at] = i;
    }
    heading(p, "Layers with the largest share", NULL);
    table_head(p);
    for (size_t i = 0; i < n; i++) layer_row(p, worst[i]);
    fputs("</table></div>\n", p->out);
}

static void all_layers(const struct page *p) {
    fprintf(p->out, "<details><summary>All %zu layers</summary>\n", p->layers->n);
    table_head(p);
    for (size_t i = 0; i < p->layers->n; i++) layer_row(p, i);
    fputs("</table></div>\n</details>\n", p->out);
}

static void charts(const struct page *p) {
    const struct dpk_measure *m = p->subject->measure;
    bool any = false; /* is there a quantized layer that was run? */
    for (size_t i = 0; m && i < p->layers->n; i++) any = any || m->layer[i].uses;
    if (any) {
        heading(p, "Error of every layer",
                "Relative L2 error of a layer's output on the unquantized model's own activations, "
                "in the order of the file; logarithmic.");
        dpk_html_chart_errors(p->out, p->layers, m, &p->components);
        heading(p, "Weights against outputs",
                "Across: how well the weights are kept (signal to quantization noise). Up: the "
                "layer's share of the sum of all squared output errors; logarithmic.");
        dpk_html_chart_scatter(p->out, p->layers, m, &p->components);
    }
    heading(p, "Sizes", "Grey: before. Green: after.");
    dpk_html_chart_sizes(p->out, p->subject, p->layers, &p->components);
    if (any) worst_layers(p);
}

static void alone(const struct page *p) {
    const struct dpk_alone *a = p->subject->alone;
    heading(p, "Layers alone",
            "The picture's PSNR when only this layer (or all layers like it) is quantized. Best "
            "value for its bytes first; a budget takes layers from the top.");
    fputs("<div class=\"wide\"><table>\n<tr><th>layer</th><th>layers</th><th>saves</th>"
          "<th>PSNR</th><th>quantized</th></tr>\n",
          p->out);
    for (size_t i = 0; i < a->n_units; i++) {
        const struct dpk_alone_unit *u = &a->unit[a->order[i]];
        bool taken = false;
        for (size_t k = 0; k < a->n_layers; k++)
            taken |= a->unit_of[k] == a->order[i] && p->layers->layer[k].quantized;
        fputs("<tr><td>", p->out);
        dpk_html_text(p->out, u->name);
        fprintf(p->out, "</td><td>%zu</td><td>", u->n_layers);
        dpk_html_bytes(p->out, (double)u->bytes_saved);
        fputs("</td><td>", p->out);
        put_db(p->out, dpk_alone_psnr(u));
        fprintf(p->out, "</td><td>%s</td></tr>\n", taken ? "yes" : "no");
    }
    fputs("</table></div>\n", p->out);
}

static void timed(const struct page *p) {
    const struct dpk_timed_shapes *t = p->subject->timed;
    heading(p, "Shapes timed", NULL);
    fputs("<p class=\"soft\">On ", p->out);
    dpk_html_text(p->out, t->machine);
    fputs(".</p>\n<div class=\"wide\"><table>\n<tr><th>shape</th><th>layers</th><th>rows</th>"
          "<th>before</th><th>quantized</th><th>gain</th><th></th></tr>\n",
          p->out);
    for (size_t i = 0; i < t->n; i++) {
        const struct dpk_timed_shape *s = &t->shape[i];
        fprintf(p->out,
                "<tr><td>%s %" PRId64 " &rarr; %" PRId64 "%s</td><td>%zu</td><td>%" PRId64
                "</td><td>%.3f ms</td><td>%.3f ms</td><td>%.2f&times;</td><td>%s</td></tr>\n",
                dpk_layer_kind_name(s->kind), s->in, s->out, s->glu ? " gated" : "", s->n_layers,
                s->rows, s->before * 1e3, s->after * 1e3, s->before / s->after,
                s->quantize ? "quantize" : "leave");
    }
    fputs("</table></div>\n", p->out);
}

int dpk_html_page(FILE *out, const struct dpk_report_subject *subject,
                  const struct dpk_layers *layers, dpk_error *err) {
    struct page p = {.out = out, .subject = subject, .layers = layers, .err = err};
    int rc = DPK_OK;
    dpk_html_components_find(&p.components, layers);
    head(&p);
    tiles(&p);
    if (subject->measure) DPK_TRY(pictures(&p));
    charts(&p);
    if (subject->alone) alone(&p);
    if (subject->timed) timed(&p);
    all_layers(&p);
    fputs("</main>\n</body>\n</html>\n", out);
done:
    return rc;
}
