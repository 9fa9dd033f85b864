/* What was measured, as members of the report's JSON. */
#include "report.h"

#include <inttypes.h>
#include <math.h>

static void member(FILE *out, const char *name, double v) {
    fprintf(out, ",\"%s\":", name);
    dpk_report_put_number(out, v);
}

static void put_measure(FILE *out, const struct dpk_measure *m) {
    fprintf(out,
            ",\n\"measured\":{\"width\":%" PRIu32 ",\"height\":%" PRIu32 ",\"steps\":%" PRIu32
            ",\"scheduler\":",
            m->width, m->height, m->steps);
    dpk_report_put_string(out, m->scheduler);
    fputs(",\"machine\":", out);
    dpk_report_put_string(out, m->machine);
    member(out, "latent_error", m->latent_error);
    member(out, "psnr_db", m->psnr); /* null: equal */
    member(out, "ssim", m->ssim);
    member(out, "step_seconds_before", m->step_before);
    member(out, "step_seconds_after", m->step_after);
    fputs(",\n\"pictures\":[", out);
    for (uint32_t i = 0; i < m->n_pictures; i++) {
        const struct dpk_measure_picture *p = &m->picture[i];
        fputs(i ? ",\n{\"prompt\":" : "\n{\"prompt\":", out);
        dpk_report_put_string(out, p->prompt);
        fprintf(out, ",\"seed\":%" PRIu64, p->seed);
        member(out, "latent_error", p->latent_error);
        member(out, "psnr_db", p->psnr);
        member(out, "ssim", p->ssim);
        fputc('}', out);
    }
    fputs("\n]}", out);
}

static void put_alone(FILE *out, const struct dpk_alone *a, const struct dpk_layers *layers) {
    fprintf(out, ",\n\"sensitivity\":{\"runs\":%" PRIu32 ",\"ranking\":[", a->runs);
    for (size_t i = 0; i < a->n_units; i++) {
        const struct dpk_alone_unit *u = &a->unit[a->order[i]];
        bool comma = false;
        fputs(i ? ",\n{\"layers\":[" : "\n{\"layers\":[", out);
        for (size_t k = 0; k < a->n_layers; k++) {
            if (a->unit_of[k] != a->order[i]) continue;
            if (comma) fputc(',', out);
            dpk_report_put_string(out, layers->layer[k].name);
            comma = true;
        }
        fprintf(out, "],\"bytes_saved\":%" PRIu64, u->bytes_saved);
        member(out, "picture_mse", u->error);
        member(out, "psnr_db", dpk_alone_psnr(u));
        fputc('}', out);
    }
    fputs("\n]}", out);
}

static void put_timed(FILE *out, const struct dpk_timed_shapes *t) {
    fputs(",\n\"timed\":{\"machine\":", out);
    dpk_report_put_string(out, t->machine);
    fputs(",\"shapes\":[", out);
    for (size_t i = 0; i < t->n; i++) {
        const struct dpk_timed_shape *s = &t->shape[i];
        fprintf(out,
                "%s{\"kind\":\"%s\",\"in\":%" PRId64 ",\"out\":%" PRId64 ",\"rows\":%" PRId64
                ",\"glu\":%s,\"layers\":%zu",
                i ? ",\n" : "\n", dpk_layer_kind_name(s->kind), s->in, s->out, s->rows,
                s->glu ? "true" : "false", s->n_layers);
        member(out, "seconds_before", s->before);
        member(out, "seconds_after", s->after);
        fprintf(out, ",\"quantize\":%s}", s->quantize ? "true" : "false");
    }
    fputs("\n]}", out);
}

void dpk_card_json(FILE *out, const struct dpk_report_subject *subject,
                   const struct dpk_layers *layers) {
    if (subject->measure) put_measure(out, subject->measure);
    if (subject->alone) put_alone(out, subject->alone, layers);
    if (subject->timed) put_timed(out, subject->timed);
}

void dpk_card_json_layer(FILE *out, const struct dpk_report_subject *subject, size_t i) {
    const struct dpk_measure *m = subject->measure;
    if (!m || !m->layer[i].uses) return;
    fprintf(out, ",\"output_uses\":%" PRIu32, m->layer[i].uses);
    member(out, "output_error", dpk_measure_layer_error(m, i));
    member(out, "output_share", dpk_measure_layer_share(m, i));
}
