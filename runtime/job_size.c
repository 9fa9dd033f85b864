/* Sizes of a job: what is asked for, what the model paints, and the latent's. */
#include "job_impl.h"

#include "../formats/fail.h"

#include <math.h>
#include <string.h>

/* The next entry "RATIO:HEIGHTxWIDTH " of metadata pipeline.bins; NULL if that is broken. */
static const char *read_bin(const char *s, double bin[3]) {
    static const char after[3] = {':', 'x', ' '};
    for (int i = 0; i < 3; i++) {
        s = dpk_parse_number(s, &bin[i]);
        if (!s || (*s != after[i] && (i < 2 || *s))) return NULL;
        s += *s != 0;
    }
    bool whole = bin[1] == floor(bin[1]) && bin[2] == floor(bin[2]);
    bool fits =
        bin[1] >= 1 && bin[1] <= DPK_JOB_MAX_PIXELS && bin[2] >= 1 && bin[2] <= DPK_JOB_MAX_PIXELS;
    return whole && fits && bin[0] > 0 ? s : NULL;
}

/* The entry whose ratio is nearest to the one asked for, the first of equals (diffusers'
 * classify_height_width_bin: the ratios are the table's own, rounded ones). */
static int find_bin(struct dpk_job *job, const char *bins, dpk_error *err) {
    int rc = DPK_OK;
    const double want = (double)job->params.height / job->params.width;
    double nearest = INFINITY, bin[3];
    for (const char *s = bins; *s;) {
        const char *next = read_bin(s, bin);
        if (!next)
            DPK_FAIL(err, DPK_EFORMAT,
                     "metadata pipeline.bins: \"%.40s\", want RATIO:HEIGHTxWIDTH ...", s);
        s = next;
        if (fabs(bin[0] - want) >= nearest) continue;
        nearest = fabs(bin[0] - want);
        job->paint_height = (uint32_t)bin[1], job->paint_width = (uint32_t)bin[2];
    }
done:
    return rc;
}

static int check_side(const char *name, uint32_t got, uint32_t by, dpk_error *err) {
    int rc = DPK_OK;
    if (got < 1 || got % by || got > DPK_JOB_MAX_PIXELS)
        DPK_FAIL(err, DPK_EARG, "%s is %u, want a multiple of %u up to %d", name, got, by,
                 DPK_JOB_MAX_PIXELS);
done:
    return rc;
}

/* A side that nobody asked for: the picture's, or the model's. */
static uint32_t default_side(uint32_t init, uint32_t by, double standard) {
    if (!init) return (uint32_t)standard;
    return init < by ? by : init / by * by;
}

int dpk_job_size(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_model *m = job->session->model;
    dpk_params *p = &job->params;
    const struct dpk_settings *s = &job->settings;
    const uint32_t by = (uint32_t)s->size_multiple, f = (uint32_t)s->vae_scale;
    const char *bins = p->no_binning ? NULL : dpk_model_meta(m, "pipeline.bins");
    /* With a table, any size can be asked for. */
    const uint32_t asked_by = bins ? 1 : by;
    if (!p->width) p->width = default_side(p->init ? p->init_width : 0, asked_by, s->width);
    if (!p->height) p->height = default_side(p->init ? p->init_height : 0, asked_by, s->height);
    DPK_TRY(check_side("width", p->width, asked_by, err));
    DPK_TRY(check_side("height", p->height, asked_by, err));
    job->paint_width = p->width, job->paint_height = p->height;
    if (bins) DPK_TRY(find_bin(job, bins, err));
    if (bins && (job->paint_width % by || job->paint_height % by))
        DPK_FAIL(err, DPK_EFORMAT, "metadata pipeline.bins: %ux%u, want multiples of %u",
                 job->paint_height, job->paint_width, by);
    job->fitted = job->paint_width != p->width || job->paint_height != p->height;
    job->w = job->paint_width / f, job->h = job->paint_height / f;
    job->channels = (uint32_t)s->latent_channels;
done:
    return rc;
}
