/* What was measured, for people. */
#include "report.h"

#include <inttypes.h>
#include <math.h>

enum { MOST_LINES = 400 };

static void put_db(FILE *out, double db) {
    if (isfinite(db)) fprintf(out, "%.1f dB", db);
    else fputs("equal", out);
}

static void put_alone(FILE *out, const struct dpk_alone *a, const struct dpk_layers *layers) {
    fprintf(out, "\nlayers alone, best value for their bytes first (%" PRIu32 " runs)\n", a->runs);
    fprintf(out, "%5s %10s %12s %6s  %s\n", "rank", "PSNR", "saves", "layers", "layer");
    for (size_t i = 0; i < a->n_units && i < MOST_LINES; i++) {
        const struct dpk_alone_unit *u = &a->unit[a->order[i]];
        bool taken = false;
        char db[24] = "equal";
        for (size_t k = 0; k < a->n_layers; k++)
            taken |= a->unit_of[k] == a->order[i] && layers->layer[k].quantized;
        if (isfinite(dpk_alone_psnr(u))) snprintf(db, sizeof db, "%.1f dB", dpk_alone_psnr(u));
        fprintf(out, "%5zu %10s %9.1f kB %6zu  %s%s\n", i + 1, db, (double)u->bytes_saved / 1e3,
                u->n_layers, u->name, taken ? "" : "  (left)");
    }
}

void dpk_card_text(FILE *out, const struct dpk_report_subject *subject,
                   const struct dpk_layers *layers) {
    const struct dpk_measure *m = subject->measure;
    const struct dpk_timed_shapes *t = subject->timed;
    if (m) {
        fputs("quality  PSNR ", out);
        put_db(out, m->psnr);
        fprintf(out,
                ", SSIM %.4f, latent error %.4f (%" PRIu32 " picture%s of %" PRIu32 "x%" PRIu32
                ", %" PRIu32 " steps)\n",
                m->ssim, m->latent_error, m->n_pictures, m->n_pictures > 1 ? "s" : "", m->width,
                m->height, m->steps);
        fprintf(out, "speed    a step %.1f ms, was %.1f ms (%s)\n", m->step_after * 1e3,
                m->step_before * 1e3, m->machine);
    }
    if (t) {
        fprintf(out, "\nshapes timed (%s)\n", t->machine);
        for (size_t i = 0; i < t->n; i++)
            fprintf(out, "%4zu layers  %s\n", t->shape[i].n_layers, t->shape[i].text);
    }
    if (subject->alone) put_alone(out, subject->alone, layers);
}
