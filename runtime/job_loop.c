/* The loop around the network where a device works on its own (struct dpk_loop of backend.h): all
 * that steps need is put into its memory before the first, every step is queued with one call, and
 * nothing comes back before the pictures do, unless the caller wants to see the latents.
 *
 * What the network takes from the host apart from latent and step (a mask of tokens, say) may be
 * overwritten in the course of a step, as any input may: each step copies it anew from where it is
 * kept. */
#include "job_impl.h"

#include "../formats/fail.h"

#include <string.h>

_Static_assert((int)DPK_LOOP_SLOTS == (int)DPK_SAMPLER_SLOTS, "a row has as many slots");

/* ---- Memory of the device ------------------------------------------------------------------ */

static uint64_t loop_cut(uint64_t *end, uint64_t n_bytes) {
    uint64_t at = *end;
    *end += (n_bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    return at;
}

static void *loop_part(struct dpk_job *job, uint64_t *end, uint64_t n_bytes) {
    uint64_t at = loop_cut(end, n_bytes);
    uint8_t *base = job->session->loop;
    return base && n_bytes ? base + at : NULL;
}

static uint64_t latent_values(const struct dpk_job *job) {
    return (uint64_t)job->n_images * job->h * job->w * job->channels;
}

static uint32_t count_draws(const struct dpk_job *job) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < job->schedule->n_rows; i++) n += job->schedule->rows[i].draws_noise;
    return n;
}

static void *place_of(const struct dpk_job *job, uint32_t stage, uint32_t value) {
    const struct dpk_plan *plan = &job->plan;
    const struct dpk_plan_value *v = &plan->stages[stage].values[value];
    return plan->arena ? (uint8_t *)plan->arena + plan->blocks[v->block].offset : NULL;
}

/* The inputs of a step: where the loop writes two of them, and copies of the others. */
static void cut_inputs(struct dpk_job *job, struct dpk_loop *loop, uint64_t *end) {
    const struct dpk_plan_stage *s = &job->plan.stages[job->step];
    for (uint32_t v = 0; v < s->program->n_inputs; v++) {
        const char *name = dpk_file_string(job->plan.file, s->program->values[v].name);
        void *place = place_of(job, job->step, v);
        if (s->values[v].from_stage) continue;
        if (!strcmp(name, "latent")) loop->latent = place;
        else if (!strcmp(name, "step")) loop->step = place;
        else if (loop->n_gives < DPK_LOOP_GIVES)
            loop->give[loop->n_gives++] = (struct dpk_loop_give){
                place, loop_part(job, end, s->values[v].bytes), (size_t)s->values[v].bytes};
    }
}

/* The same cut twice: to count, and with the session's memory. Returns its size. */
static uint64_t cut_loop(struct dpk_job *job, struct dpk_loop *loop) {
    const dpk_params *p = &job->params;
    const struct dpk_schedule *s = job->schedule;
    const uint64_t n = latent_values(job);
    uint64_t end = 0;
    *loop = (struct dpk_loop){.one = (int64_t)(n / job->n_images),
                              .n_images = (int32_t)job->n_images,
                              .channels = (int32_t)job->channels,
                              .guided = job->guided,
                              .guidance = p->guidance,
                              .rescale = p->guidance_rescale};
    loop->rows = loop_part(job, &end, s->n_rows * sizeof(struct dpk_loop_row));
    loop->row = loop_part(job, &end, 2 * sizeof *loop->row);
    loop->x = loop_part(job, &end, n * sizeof *loop->x);
    loop->state = loop_part(job, &end, dpk_sampler_state_size(s, n) * sizeof *loop->state);
    loop->noise = loop_part(job, &end, count_draws(job) * n * sizeof *loop->noise);
    if (job->guided && p->guidance_rescale > 0)
        loop->ratio = loop_part(job, &end, job->n_images * sizeof *loop->ratio);
    if (p->mask) {
        loop->repaint = loop_part(job, &end, (uint64_t)job->w * job->h);
        loop->init_latent = loop_part(job, &end, n * sizeof *loop->init_latent);
        loop->init_noise = loop_part(job, &end, n * sizeof *loop->init_noise);
    }
    loop->output = place_of(job, job->step, job->out_noise);
    cut_inputs(job, loop, &end);
    return end;
}

void dpk_job_plan_loop(struct dpk_job *job) {
    struct dpk_loop loop;
    if (job->session->backend->run_list) job->loop_bytes = cut_loop(job, &loop);
}

uint64_t dpk_job_device_bytes(const struct dpk_job *job) {
    const struct dpk_backend *be = job->session->backend;
    return be->held_bytes ? be->held_bytes(be) + job->plan.arena_bytes + job->loop_bytes : 0;
}

/* ---- What goes there ----------------------------------------------------------------------- */

static struct dpk_loop_terms terms_of(const struct dpk_sampler_terms *t) {
    struct dpk_loop_terms to = {.x = t->x, .kept = t->kept, .m = t->m, .noise = t->noise};
    memcpy(to.slot, t->slot, sizeof to.slot);
    return to;
}

static bool keeps_something(const struct dpk_sampler_terms *k) {
    bool keeps = k->x != 0 || k->m != 0 || k->kept != 0;
    for (int j = 0; j < DPK_SAMPLER_SLOTS; j++) keeps = keeps || k->slot[j] != 0;
    return keeps;
}

static void fill_rows(const struct dpk_job *job, struct dpk_loop_row *rows) {
    int32_t draws = 0;
    for (uint32_t i = 0; i < job->schedule->n_rows; i++) {
        const struct dpk_sampler_row *r = &job->schedule->rows[i];
        rows[i] = (struct dpk_loop_row){.input_scale = r->input_scale,
                                        .m_x = r->m_x,
                                        .m_e = r->m_e,
                                        .next = terms_of(&r->next),
                                        .keep = terms_of(&r->keep),
                                        .store = r->store,
                                        .noise = r->draws_noise ? draws++ : -1,
                                        .keeps = keeps_something(&r->keep)};
        dpk_schedule_level(job->schedule, i + 1, &rows[i].signal, &rows[i].level);
    }
}

static int upload(struct dpk_job *job, const void *to, const void *from, size_t n_bytes,
                  dpk_error *err) {
    struct dpk_backend *be = job->session->backend;
    return to ? be->upload(be, (void *)(uintptr_t)to, from, n_bytes, err) : DPK_OK;
}

/* One array of noise: made on the device if the generator is a device's, else here. */
static int fill_noise(struct dpk_job *job, float *to, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_backend *be = job->session->backend;
    const bool each = job->params.n_seeds > 1;
    const uint64_t n = latent_values(job), one = n / job->n_images;
    if (job->params.rng != DPK_RNG_CUDA || !be->normal) {
        dpk_job_draw(job, job->n_images, job->noise);
        DPK_TRY(upload(job, to, job->noise, n * sizeof *to, err));
        goto done;
    }
    for (uint32_t i = 0; i < (each ? job->n_images : 1); i++) {
        struct dpk_random *r = &job->random[i];
        const struct dpk_normal normal = {.out = to + i * one,
                                          .seed = r->seed,
                                          .offset = r->offset,
                                          .threads = r->threads,
                                          .n_images = each ? 1 : (int64_t)job->n_images,
                                          .pixels = (int64_t)job->w * job->h,
                                          .channels = (int64_t)job->channels};
        DPK_TRY(be->normal(be, &normal, err));
        dpk_random_skip(r, each ? one : n);
    }
done:
    return rc;
}

static const void *given(const struct dpk_job *job, const char *name) {
    for (size_t i = 0; i < sizeof job->net_in / sizeof *job->net_in; i++)
        if (!strcmp(job->net_in[i].name, name)) return job->net_in[i].data;
    return NULL;
}

static int upload_inputs(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &job->plan.stages[job->step];
    int next = 0;
    for (uint32_t v = 0; v < s->program->n_inputs; v++) {
        const char *name = dpk_file_string(job->plan.file, s->program->values[v].name);
        if (s->values[v].from_stage || !strcmp(name, "latent") || !strcmp(name, "step")) continue;
        if (next == DPK_LOOP_GIVES)
            DPK_FAIL(err, DPK_EUNSUPPORTED, "step: more than %d inputs from the host",
                     DPK_LOOP_GIVES);
        const struct dpk_loop_give *give = &job->loop.give[next++];
        DPK_TRY(upload(job, give->from, given(job, name), give->n_bytes, err));
    }
done:
    return rc;
}

int dpk_job_loop_begin(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    static const int32_t start[2] = {0, 0};
    const uint64_t bytes = latent_values(job) * sizeof(float);
    struct dpk_loop *loop = &job->loop;
    DPK_TRY(dpk_session_take_loop(job->session, job->loop_bytes, err));
    cut_loop(job, loop);
    fill_rows(job, job->loop_rows);
    DPK_TRY(upload(job, loop->rows, job->loop_rows, job->schedule->n_rows * sizeof *job->loop_rows,
                   err));
    DPK_TRY(upload(job, loop->row, start, sizeof start, err));
    DPK_TRY(upload(job, loop->x, job->x, bytes, err));
    DPK_TRY(upload(job, loop->repaint, job->repaint, (uint64_t)job->w * job->h, err));
    DPK_TRY(upload(job, loop->init_latent, job->init_latent, bytes, err));
    DPK_TRY(upload(job, loop->init_noise, job->init_noise, bytes, err));
    DPK_TRY(upload_inputs(job, err));
    for (uint32_t i = 0; i < count_draws(job); i++)
        DPK_TRY(fill_noise(job, (float *)(uintptr_t)loop->noise + i * latent_values(job), err));
    job->on_device = true;
done:
    return rc;
}

/* ---- Steps --------------------------------------------------------------------------------- */

int dpk_job_loop_row(struct dpk_job *job, uint32_t row, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_backend *be = job->session->backend;
    const struct dpk_plan_stage *s = &job->plan.stages[job->step];
    DPK_TRY(be->run_list(be, s->calls, s->program->n_ops, &job->loop, err));
    DPK_TRY(be->mark(be, (int)(row % DPK_MARKS), err));
done:
    return rc;
}

int dpk_job_loop_wait(struct dpk_job *job, uint32_t row, dpk_error *err) {
    struct dpk_backend *be = job->session->backend;
    return be->wait(be, (int)(row % DPK_MARKS), err);
}

int dpk_job_loop_fetch(struct dpk_job *job, dpk_error *err) {
    struct dpk_backend *be = job->session->backend;
    return be->download(be, job->x, job->loop.x, latent_values(job) * sizeof *job->x, err);
}

int dpk_job_loop_give(struct dpk_job *job, uint32_t index, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_backend *be = job->session->backend;
    const struct dpk_plan_stage *s = &job->plan.stages[job->decode];
    uint32_t input = dpk_plan_find_input(s, job->plan.file, "latent");
    if (input != DPK_NONE)
        DPK_TRY(be->copy(be, place_of(job, job->decode, input), job->loop.x + index * job->loop.one,
                         (size_t)job->loop.one * sizeof *job->loop.x, err));
done:
    return rc;
}
