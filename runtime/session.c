/* Sessions: a backend with a model, and the one arena that plans of this session are bound to. */
#include "session.h"
#include "plugin.h"

#include "../formats/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int create_backend(struct dpk_session *s, const dpk_session_options *o, dpk_error *err) {
    int rc = DPK_OK;
    const bool cuda = o->backend && !strcmp(o->backend, "cuda");
    if (o->backend && strcmp(o->backend, "cpu") && !cuda)
        DPK_FAIL(err, DPK_EARG, "backend %.40s: there is cpu, and cuda", o->backend);
    if (o->act_dtype && o->act_dtype != DPK_F32 && o->act_dtype != DPK_BF16)
        DPK_FAIL(err, DPK_EARG, "activations of type %d, want 0, f32 or bf16", o->act_dtype);
    if (o->threads < 0 || o->threads > 4096)
        DPK_FAIL(err, DPK_EARG, "%d threads, want 1 to 4096, or 0 for all cores", o->threads);
    if (cuda) DPK_TRY(dpk_plugin_open(&s->backend, o->act_dtype, err));
    else DPK_TRY(dpk_cpu_create(&s->backend, o->threads, o->isa, o->act_dtype, err));
    s->act_dtype = dpk_plan_act_dtype(s->backend, &s->model->file);
    DPK_TRY(s->backend->attach(s->backend, &s->model->file, s->act_dtype, s->model->share, err));
done:
    return rc;
}

int dpk_session_create(dpk_session **session, const dpk_model *model,
                       const dpk_session_options *options, dpk_error *err) {
    int rc = DPK_OK;
    *session = NULL;
    dpk_session_options o = dpk_session_options_default();
    struct dpk_session *s = calloc(1, sizeof *s);
    if (!s) DPK_FAIL(err, DPK_ENOMEM, "no memory for a session");
    if (options) {
        if (options->struct_size < sizeof(size_t) || options->struct_size > sizeof o)
            DPK_FAIL(err, DPK_EARG, "session options of %zu bytes, this library knows %zu",
                     options->struct_size, sizeof o);
        memcpy(&o, options, options->struct_size);
    }
    s->model = model;
    s->memory_limit = o.memory_limit;
    DPK_TRY(create_backend(s, &o, err));
    snprintf(s->description, sizeof s->description, "%s, %s, %s activations", s->backend->name,
             s->backend->detail, dpk_dtype_name(s->act_dtype));
    *session = s;
    s = NULL;
done:
    dpk_session_free(s);
    return rc;
}

void dpk_session_release(struct dpk_session *session) {
    if (session->arena)
        session->backend->release(session->backend, session->arena, session->arena_bytes);
    session->arena = NULL;
    session->arena_bytes = 0;
}

void dpk_session_free(dpk_session *session) {
    if (!session) return;
    dpk_session_release(session);
    if (session->loop)
        session->backend->release(session->backend, session->loop, session->loop_bytes);
    if (session->backend) session->backend->free(session->backend);
    free(session);
}

const char *dpk_session_describe(const dpk_session *session) { return session->description; }

void dpk_session_page(const struct dpk_session *session, struct dpk_plan *plan, uint32_t often) {
    bool maps = !strcmp(session->backend->name, "cpu"); /* others copied the weights */
    for (uint32_t i = 0; i < plan->n_stages; i++)
        plan->stages[i].once = session->memory_limit && maps && i != often;
}

int dpk_session_fit(const struct dpk_session *session, struct dpk_plan *plan, uint64_t host_bytes,
                    dpk_error *err) {
    const uint64_t limit = session->memory_limit;
    if (!limit) return dpk_plan_place(plan, err);
    return dpk_plan_fit(plan, limit > host_bytes ? limit - host_bytes : 1, err);
}

int dpk_session_take(struct dpk_session *session, struct dpk_plan *plan, uint64_t host_bytes,
                     const char *what, dpk_error *err) {
    int rc = DPK_OK;
    uint64_t need = plan->arena_bytes;
    if (session->memory_limit &&
        (need > session->memory_limit || host_bytes > session->memory_limit - need))
        DPK_FAIL(err, DPK_ENOMEM, "%s: needs at least %llu bytes, the limit is %llu", what,
                 (unsigned long long)(need + host_bytes),
                 (unsigned long long)session->memory_limit);
    bool too_big =
        session->memory_limit && session->arena_bytes + host_bytes > session->memory_limit;
    if (session->arena_bytes < need || too_big) dpk_session_release(session);
    if (!session->arena) {
        session->arena = session->backend->alloc(session->backend, need ? need : DPK_ALIGN);
        if (!session->arena)
            DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for an arena of %llu bytes", what,
                     (unsigned long long)need);
        session->arena_bytes = need ? need : DPK_ALIGN;
    }
    dpk_plan_bind(plan, session->arena);
done:
    return rc;
}

int dpk_session_take_loop(struct dpk_session *session, uint64_t n_bytes, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_backend *be = session->backend;
    if (session->loop && session->loop_bytes < n_bytes) {
        be->release(be, session->loop, session->loop_bytes);
        session->loop = NULL;
    }
    if (!session->loop) {
        session->loop = be->alloc(be, n_bytes);
        if (!session->loop)
            DPK_FAIL(err, DPK_ENOMEM, "no memory for a loop of %llu bytes",
                     (unsigned long long)n_bytes);
        session->loop_bytes = n_bytes;
    }
done:
    return rc;
}
