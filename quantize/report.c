#include "report.h"

#include "../formats/fail.h"
#include "../formats/utf8.h"
#include "html.h"

#include <inttypes.h>
#include <math.h>

struct dpk_report_totals dpk_report_sum(const struct dpk_layers *layers) {
    struct dpk_report_totals t = {.n_layers = layers->n, .n_quantized = layers->n_quantized};
    uint64_t weights = 0;
    double signal = 0, noise = 0, lowest = INFINITY;
    for (size_t i = 0; i < layers->n; i++) {
        const struct dpk_layer *l = &layers->layer[i];
        weights += l->weights;
        t.bytes_before += l->bytes_before;
        t.bytes_after += l->bytes_after;
        if (!l->quantized) continue;
        signal += l->signal;
        noise += l->noise;
        const double db = dpk_sqnr_db(l->signal, l->noise);
        if (t.worst && db >= lowest) continue;
        lowest = db;
        t.worst = l;
    }
    t.bits = weights ? 8.0 * (double)t.bytes_after / (double)weights : 0.0;
    t.sqnr_db = dpk_sqnr_db(signal, noise);
    return t;
}

/* ---- For people ------------------------------------------------------------------------------ */

/* "to_q+to_k" of "unet.x.to_q.weight unet.x.to_k.weight"; "" for one source. */
static void print_fused(char *out, size_t n_out, const char *source) {
    size_t n = 0;
    out[0] = 0;
    if (!strchr(source, ' ')) return;
    while (*source) {
        const char *end = source + strcspn(source, " ");
        const char *last = end;
        static const char weight[] = ".weight";
        const size_t n_weight = sizeof weight - 1;
        if ((size_t)(end - source) > n_weight && memcmp(end - n_weight, weight, n_weight) == 0)
            last -= n_weight;
        const char *first = last;
        while (first > source && first[-1] != '.') first--;
        const int put =
            snprintf(out + n, n_out - n, "%s%.*s", n ? "+" : "", (int)(last - first), first);
        n += (size_t)put < n_out - n ? (size_t)put : n_out - n - 1;
        source = *end ? end + 1 : end;
    }
}

void dpk_report_table(FILE *out, const struct dpk_layers *layers) {
    int width = 5;
    for (size_t i = 0; i < layers->n; i++) {
        const int n = (int)strlen(layers->layer[i].name);
        if (n > width) width = n;
    }
    fprintf(out, "%-*s %-7s %6s %6s %-15s %7s %-9s %11s %11s  %s\n", width, "layer", "kind", "in",
            "out", "fused from", "rows", "decision", "bytes", "after", "reason");
    for (size_t i = 0; i < layers->n; i++) {
        const struct dpk_layer *l = &layers->layer[i];
        char fused[64], rows[24] = "?";
        print_fused(fused, sizeof fused, l->source);
        if (l->rows) snprintf(rows, sizeof rows, "%" PRIu64, l->rows);
        fprintf(out,
                "%-*s %-7s %6" PRId64 " %6" PRId64 " %-15s %7s %-9s %11" PRIu64 " %11" PRIu64
                "  %s\n",
                width, l->name, dpk_layer_kind_name(l->kind), l->in, l->out, fused, rows,
                l->quantized ? "quantize" : "leave", l->bytes_before, l->bytes_after, l->reason);
    }
    const struct dpk_report_totals t = dpk_report_sum(layers);
    fprintf(out, "%zu of %zu layers, %" PRIu64 " to %" PRIu64 " bytes, %.2f bits a weight\n",
            t.n_quantized, t.n_layers, t.bytes_before, t.bytes_after, t.bits);
}

void dpk_report_summary(FILE *out, const struct dpk_report_subject *subject,
                        const struct dpk_layers *layers) {
    const struct dpk_report_totals t = dpk_report_sum(layers);
    char scheme[32];
    fprintf(out, "layers   %zu of %zu to %s (%s)\n", t.n_quantized, t.n_layers,
            dpk_scheme_text(subject->scheme, scheme), subject->filter_id);
    if (subject->file_after)
        fprintf(out, "file     %.1f MB, was %.1f MB\n", (double)subject->file_after / 1e6,
                (double)subject->file_before / 1e6);
    fprintf(out, "weights  %.1f MB, were %.1f MB; %.2f bits each\n", (double)t.bytes_after / 1e6,
            (double)t.bytes_before / 1e6, t.bits);
    if (t.worst)
        fprintf(out, "error    weights %.1f dB below the signal; worst layer %.1f dB: %s\n",
                t.sqnr_db, dpk_sqnr_db(t.worst->signal, t.worst->noise), t.worst->name);
    dpk_card_text(out, subject, layers);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* s: UTF-8, or any bytes of a path: those that are no UTF-8 become U+FFFD. */
void dpk_report_put_string(FILE *out, const char *s) {
    size_t n = strlen(s);
    fputc('"', out);
    while (n > 0) {
        const size_t c = dpk_utf8_length((const unsigned char *)s, n);
        if (c == 0) fputs("\\ufffd", out);
        else if (*s == '"' || *s == '\\') fprintf(out, "\\%c", *s);
        else if ((unsigned char)*s < 0x20) fprintf(out, "\\u%04x", (unsigned)*s);
        else fwrite(s, 1, c, out);
        s += c ? c : 1;
        n -= c ? c : 1;
    }
    fputc('"', out);
}

void dpk_report_put_number(FILE *out, double v) {
    if (isfinite(v)) fprintf(out, "%.6g", v);
    else fputs("null", out);
}

/* The members that every list of layers has, without the braces. */
static void put_decision(FILE *out, const struct dpk_layer *l) {
    fputs("\"name\":", out);
    dpk_report_put_string(out, l->name);
    fprintf(out,
            ",\"kind\":\"%s\",\"in\":%" PRId64 ",\"out\":%" PRId64 ",\"rows\":%" PRIu64
            ",\"quantized\":%s,\"reason\":",
            dpk_layer_kind_name(l->kind), l->in, l->out, l->rows, l->quantized ? "true" : "false");
    dpk_report_put_string(out, l->reason);
}

void dpk_report_decisions(FILE *out, const struct dpk_layers *layers) {
    fputs("{\"layers\":[", out);
    for (size_t i = 0; i < layers->n; i++) {
        fputs(i ? ",\n{" : "\n{", out);
        put_decision(out, &layers->layer[i]);
        fputc('}', out);
    }
    fputs("\n]}\n", out);
}

void dpk_report_json(FILE *out, const struct dpk_report_subject *subject,
                     const struct dpk_layers *layers) {
    const struct dpk_report_totals t = dpk_report_sum(layers);
    char scheme[32];
    double noise = 0;
    fputs("{\"source\":", out);
    dpk_report_put_string(out, subject->source_path);
    fprintf(out, ",\"source_sum\":\"%016" PRIx64 "\"", subject->source_sum);
    if (subject->model) {
        fputs(",\"model\":", out);
        dpk_report_put_string(out, subject->model);
    }
    fprintf(out, ",\"scheme\":\"%s\"", dpk_scheme_text(subject->scheme, scheme));
    if (subject->scheme->kind != DPK_SCHEME_INT4_WEIGHT)
        fprintf(out, ",\"convention\":\"%s\"", dpk_convention_name(subject->scheme->convention));
    fputs(",\"filter\":", out);
    dpk_report_put_string(out, subject->filter_id);
    fprintf(out,
            ",\"file_bytes\":{\"before\":%" PRIu64 ",\"after\":%" PRIu64
            "},\n\"totals\":{\"layers\":%zu,\"quantized\":%zu,\"bytes_before\":%" PRIu64
            ",\"bytes_after\":%" PRIu64 ",\"bits_per_weight\":%.4f,\"sqnr_db\":",
            subject->file_before, subject->file_after, t.n_layers, t.n_quantized, t.bytes_before,
            t.bytes_after, t.bits);
    dpk_report_put_number(out, t.sqnr_db);
    fputc('}', out);
    dpk_card_json(out, subject, layers);
    fputs(",\n\"layers\":[", out);
    for (size_t i = 0; i < layers->n; i++)
        if (layers->layer[i].quantized) noise += layers->layer[i].noise;
    for (size_t i = 0; i < layers->n; i++) {
        const struct dpk_layer *l = &layers->layer[i];
        fputs(i ? ",\n{" : "\n{", out);
        put_decision(out, l);
        fputs(",\"source\":", out);
        dpk_report_put_string(out, l->source);
        fprintf(out, ",\"bytes_before\":%" PRIu64 ",\"bytes_after\":%" PRIu64, l->bytes_before,
                l->bytes_after);
        if (l->quantized) {
            if (l->group) fprintf(out, ",\"group\":%d", l->group);
            fputs(",\"sqnr_db\":", out);
            dpk_report_put_number(out, dpk_sqnr_db(l->signal, l->noise));
            fputs(",\"share_of_error\":", out);
            dpk_report_put_number(out, noise > 0 ? l->noise / noise : NAN);
            dpk_card_json_layer(out, subject, i);
        }
        fputc('}', out);
    }
    fputs("\n]}\n", out);
}

int dpk_report_write(struct dpk_atomic_file *file, const struct dpk_report_subject *subject,
                     const struct dpk_layers *layers, dpk_error *err) {
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *memory = open_memstream(&text, &n_bytes);
    int rc = DPK_OK;
    if (!memory) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for the report", file->path);
    const size_t n = strlen(file->path);
    if (n > 5 && strcmp(file->path + n - 5, ".html") == 0)
        rc = dpk_html_page(memory, subject, layers, err);
    else dpk_report_json(memory, subject, layers);
    const bool whole = fclose(memory) == 0;
    if (rc != DPK_OK) goto done;
    if (!whole) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for the report", file->path);
    DPK_TRY(dpk_atomic_write(file, text, n_bytes, err));
done:
    free(text);
    return rc;
}
