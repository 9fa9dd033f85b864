/* Charts as inline SVG. Units are those of a picture 440 wide, which the page scales. */
#include "html_impl.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 440, HEIGHT = 230, LEFT = 58, RIGHT = 432, TOP = 12, BOTTOM = 196 };

/* An axis from low to high, perhaps logarithmic, over pixels from..to. */
struct axis {
    double low, high, from, to;
    bool log;
};

static double place(const struct axis *a, double v) {
    const double t =
        a->log ? log(v / a->low) / log(a->high / a->low) : (v - a->low) / (a->high - a->low);
    return a->from + (a->to - a->from) * (t < 0 ? 0 : t > 1 ? 1 : t);
}

static void begin_chart(FILE *out, int height, const char *label) {
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n", WIDTH, height,
            label);
}

static void put_percent(FILE *out, double v) { fprintf(out, "%.4g %%", v * 100); }

/* Lines and labels at the powers of ten of a vertical logarithmic axis. */
static void decades(FILE *out, const struct axis *y) {
    for (double v = y->low; v <= y->high * 1.001; v *= 10) {
        const double at = place(y, v);
        fprintf(out,
                "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>"
                "<text class=\"end\" x=\"%d\" y=\"%.1f\">",
                LEFT, at, RIGHT, at, LEFT - 4, at + 3.5);
        put_percent(out, v);
        fputs("</text>\n", out);
    }
}

/* Powers of ten around all positive values; at least two decades. */
static void widen(struct axis *a, double v, bool *any) {
    if (!(v > 0) || !isfinite(v)) return;
    const double low = pow(10, floor(log10(v))), high = pow(10, ceil(log10(v)));
    if (!*any || low < a->low) a->low = low;
    if (!*any || high > a->high) a->high = high;
    *any = true;
}

static void settle(struct axis *a, bool any) {
    if (!any) a->low = 0.001, a->high = 1;
    if (a->high < a->low * 99) a->low = a->high / 100;
    if (a->low < a->high * 1e-8) a->low = a->high * 1e-8;
}

static void legend(FILE *out, const struct dpk_html_components *c, double y) {
    double x = LEFT;
    for (size_t i = 0; i < c->n; i++) {
        fprintf(out, "<rect class=\"c%zu\" x=\"%.0f\" y=\"%.0f\" width=\"9\" height=\"9\"/>", i, x,
                y - 8);
        fprintf(out, "<text x=\"%.0f\" y=\"%.0f\">", x + 13, y);
        dpk_html_text_n(out, c->name[i], c->length[i] < 24 ? c->length[i] : 24);
        fputs("</text>\n", out);
        x += 24 + 7.6 * (double)(c->length[i] < 24 ? c->length[i] : 24);
        if (x > RIGHT - 60) break;
    }
}

void dpk_html_chart_errors(FILE *out, const struct dpk_layers *layers, const struct dpk_measure *m,
                           const struct dpk_html_components *c) {
    struct axis y = {.from = BOTTOM, .to = TOP, .log = true};
    bool any = false;
    size_t n = 0, at = 0;
    for (size_t i = 0; i < layers->n; i++) {
        if (!m->layer[i].uses) continue;
        widen(&y, dpk_measure_layer_error(m, i), &any);
        n++;
    }
    settle(&y, any);
    const double step = (double)(RIGHT - LEFT) / (double)(n ? n : 1);
    begin_chart(out, HEIGHT, "Output error of every quantized layer");
    decades(out, &y);
    for (size_t i = 0; i < layers->n; i++) {
        const double e = dpk_measure_layer_error(m, i);
        if (!m->layer[i].uses) continue;
        const double top = e > 0 ? place(&y, e) : BOTTOM;
        fprintf(out,
                "<rect class=\"c%zu\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\"><title>",
                dpk_html_component_of(c, layers->layer[i].name), LEFT + step * (double)at, top,
                step > 2 ? step - 0.6 : step * 0.85, BOTTOM - top);
        dpk_html_text(out, layers->layer[i].name);
        fputs(": ", out);
        put_percent(out, e);
        fputs("</title></rect>\n", out);
        at++;
    }
    fprintf(out, "<line class=\"axis\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>\n", LEFT, BOTTOM,
            RIGHT, BOTTOM);
    legend(out, c, HEIGHT - 12);
    fputs("</svg>\n", out);
}

void dpk_html_chart_scatter(FILE *out, const struct dpk_layers *layers, const struct dpk_measure *m,
                            const struct dpk_html_components *c) {
    struct axis x = {.low = INFINITY, .high = -INFINITY, .from = LEFT + 16, .to = RIGHT - 18};
    struct axis y = {.from = BOTTOM, .to = TOP, .log = true};
    bool any = false;
    for (size_t i = 0; i < layers->n; i++) {
        const double db = dpk_sqnr_db(layers->layer[i].signal, layers->layer[i].noise);
        if (!m->layer[i].uses || !isfinite(db)) continue;
        widen(&y, dpk_measure_layer_share(m, i), &any);
        x.low = fmin(x.low, floor(db / 5) * 5);
        x.high = fmax(x.high, ceil(db / 5) * 5);
    }
    settle(&y, any);
    if (!(x.low <= x.high)) x.low = 30, x.high = 50;
    if (x.high - x.low < 5) x.high = x.low + 5;
    begin_chart(out, HEIGHT + 14, "Weight SQNR against share of the error, by layer");
    decades(out, &y);
    const double tick = x.high - x.low > 40 ? 20 : 5;
    for (double v = ceil(x.low / tick) * tick; v <= x.high; v += tick)
        fprintf(out,
                "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>"
                "<text class=\"mid\" x=\"%.1f\" y=\"%d\">%.0f dB</text>\n",
                place(&x, v), TOP, place(&x, v), BOTTOM, place(&x, v), BOTTOM + 13, v);
    for (size_t i = 0; i < layers->n; i++) {
        const double db = dpk_sqnr_db(layers->layer[i].signal, layers->layer[i].noise);
        const double share = dpk_measure_layer_share(m, i);
        if (!m->layer[i].uses || !isfinite(db) || !(share > 0)) continue;
        fprintf(out, "<circle class=\"c%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>",
                dpk_html_component_of(c, layers->layer[i].name), place(&x, db), place(&y, share));
        dpk_html_text(out, layers->layer[i].name);
        fprintf(out, ": %.1f dB, ", db);
        put_percent(out, share);
        fputs("</title></circle>\n", out);
    }
    legend(out, c, HEIGHT + 2);
    fputs("</svg>\n", out);
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

static void size_bar(FILE *out, const char *class, double y, double width, double bytes) {
    const double w = width > 0.5 ? width : 0.5;
    fprintf(out, "<rect class=\"%s\" x=\"%d\" y=\"%.0f\" width=\"%.1f\" height=\"13\"/>", class,
            LEFT + 74, y, w);
    fprintf(out, "<text x=\"%.1f\" y=\"%.0f\">", LEFT + 74 + w + 4, y + 10);
    dpk_html_bytes(out, bytes);
    fputs("</text>\n", out);
}

void dpk_html_chart_sizes(FILE *out, const struct dpk_report_subject *subject,
                          const struct dpk_layers *layers, const struct dpk_html_components *c) {
    double before[DPK_HTML_MAX_COMPONENTS + 1] = {0}, after[DPK_HTML_MAX_COMPONENTS + 1] = {0};
    double most = 1, sum_before = 0, sum_after = 0;
    for (size_t i = 0; i < layers->n; i++) {
        const struct dpk_layer *l = &layers->layer[i];
        const size_t k = dpk_html_component_of(c, l->name);
        before[k] += (double)l->bytes_before;
        after[k] += (double)l->bytes_after;
        sum_before += (double)l->bytes_before;
        sum_after += (double)l->bytes_after;
    }
    const double file_after = subject->file_after
                                  ? (double)subject->file_after
                                  : (double)subject->file_before - sum_before + sum_after;
    before[c->n] = (double)subject->file_before - sum_before;
    after[c->n] = file_after - sum_after;
    for (size_t i = 0; i <= c->n; i++) most = fmax(most, fmax(before[i], after[i]));
    const double scale = (RIGHT - LEFT - 74 - 62) / most;
    begin_chart(out, (int)(c->n + 1) * 42 + 8, "Sizes before and after, by component");
    for (size_t i = 0; i <= c->n; i++) {
        const double y = 8 + 42 * (double)i;
        fprintf(out, "<text class=\"end\" x=\"%d\" y=\"%.0f\">", LEFT + 68, y + 18);
        if (i < c->n) dpk_html_text_n(out, c->name[i], c->length[i] < 18 ? c->length[i] : 18);
        else fputs("all else", out);
        fputs("</text>\n", out);
        size_bar(out, "before", y, before[i] * scale, before[i]);
        size_bar(out, "after", y + 16, after[i] * scale, after[i]);
    }
    fputs("</svg>\n", out);
}
