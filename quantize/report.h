/* What was decided and what it costs, for people and for programs. */
#ifndef DPK_REPORT_H
#define DPK_REPORT_H

#include "../formats/atomic_file.h"
#include "measure.h"

#include <stdio.h>

/* One line a layer: name, kind, in, out, what it was fused from, rows a step, decision, bytes
 * before and after, reason. */
void dpk_report_table(FILE *out, const struct dpk_layers *layers);

/* {"layers":[{"name","kind","in","out","rows","quantized","reason"}, ...]}, a layer a line. */
void dpk_report_decisions(FILE *out, const struct dpk_layers *layers);

/* Totals of the layers. */
struct dpk_report_totals {
    size_t n_layers, n_quantized;
    uint64_t bytes_before, bytes_after; /* of all layers */
    double bits;                        /* a weight, all layers */
    double sqnr_db;                     /* of all quantized weights together */
    const struct dpk_layer *worst;      /* lowest SQNR; NULL if nothing is quantized */
};
struct dpk_report_totals dpk_report_sum(const struct dpk_layers *layers);

/* What a report is about. */
struct dpk_report_subject {
    const char *source_path;
    uint64_t source_sum;
    const char *model; /* NULL if unknown */
    const struct dpk_scheme *scheme;
    const char *filter_id;
    uint64_t file_before, file_after; /* bytes; after 0: not written */
    /* What was measured; NULL: not. */
    const struct dpk_measure *measure;
    const struct dpk_alone *alone;
    const struct dpk_timed_shapes *timed;
};

/* A few lines: layers, sizes, error of the weights. */
void dpk_report_summary(FILE *out, const struct dpk_report_subject *subject,
                        const struct dpk_layers *layers);
/* The same and more as JSON: the subject, the totals, and per layer also source, group, bytes, SQNR
 * and share of the total error (null where nothing was lost). */
void dpk_report_json(FILE *out, const struct dpk_report_subject *subject,
                     const struct dpk_layers *layers);
/* To an open file: a page if its name ends in .html, else JSON. The caller opens it before the work
 * whose report it is, which may take hours, and closes it. Errors: DPK_EIO, DPK_ENOMEM. */
int dpk_report_write(struct dpk_atomic_file *file, const struct dpk_report_subject *subject,
                     const struct dpk_layers *layers, dpk_error *err);

/* What was measured: lines for people, nothing if nothing was. */
void dpk_card_text(FILE *out, const struct dpk_report_subject *subject,
                   const struct dpk_layers *layers);

/* ---- For card_json.c ------------------------------------------------------------------------ */

void dpk_report_put_string(FILE *out, const char *s); /* quoted; any bytes */
void dpk_report_put_number(FILE *out, double v);      /* null if it is not finite */
/* What was measured: members that follow others in an object; and those of layer i. */
void dpk_card_json(FILE *out, const struct dpk_report_subject *subject,
                   const struct dpk_layers *layers);
void dpk_card_json_layer(FILE *out, const struct dpk_report_subject *subject, size_t i);

#endif
