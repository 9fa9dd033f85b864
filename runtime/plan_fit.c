/* Plans within a memory limit.
 *
 * Greedy: as long as too much is alive, look at the moment when most is, and at what can be done
 * about it there: the part's rows fewer at a time, or the part joined with the one before it or
 * after it, so that the map between them is never there as a whole. Of what is enough around that
 * moment, take what costs the least computation; where nothing is, what lowers it most. */
#include "plan.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>

/* Time lost where rows go fewer at a time: weights are transformed for each portion again, windows
 * move. This share of the part's work, over the rows. */
static const double loss = 0.2;

enum { FEWER_ROWS, JOIN_BEFORE, JOIN_AFTER, N_CHANGES };
enum { MAX_HALVINGS = 5 };

/* The parts of one stage, to go back to. */
struct parts {
    struct dpk_plan_part *at;
    uint32_t n;
};

struct fit {
    struct dpk_plan *plan;
    struct dpk_plan_stage *stage; /* that has the moment */
    uint32_t part;                /* and its part */
    struct parts before, best;
    uint64_t best_live;
    double best_cost;
};

static int save(struct parts *to, const struct dpk_plan_stage *s, dpk_error *err) {
    int rc = DPK_OK;
    void *grown = realloc(to->at, (s->n_parts + 1) * sizeof *to->at);
    if (!grown) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u parts", s->n_parts);
    to->at = grown;
    to->n = s->n_parts;
    memcpy(to->at, s->parts, s->n_parts * sizeof *to->at);
done:
    return rc;
}

static void restore(struct dpk_plan_stage *s, const struct parts *from) {
    s->n_parts = from->n;
    memcpy(s->parts, from->at, from->n * sizeof *from->at);
}

/* The part in which most bytes are alive. */
static void find_moment(struct fit *f) {
    const struct dpk_plan *plan = f->plan;
    uint32_t t = 0, n = 0;
    while (plan->live[t] != plan->live_bytes) t++;
    for (n = 0; n + 1 < plan->n_stages && plan->stages[n].end < t;) n++;
    struct dpk_plan_stage *s = f->stage = &f->plan->stages[n];
    uint32_t op = t <= s->begin + 1 ? 0 : t - s->begin - 1;
    if (op >= s->program->n_ops) op = s->program->n_ops - 1;
    for (n = 0; s->parts[n].first + s->parts[n].n_ops <= op;) n++;
    f->part = n;
}

/* Most bytes alive while a part runs. */
static uint64_t live_during(const struct fit *f, const struct dpk_plan_part *p) {
    uint64_t most = 0;
    for (uint32_t op = p->first; op < p->first + p->n_ops; op++) {
        uint64_t live = f->plan->live[f->stage->begin + 1 + op];
        if (live > most) most = live;
    }
    return most;
}

/* What a part costs more than its operators would, one by one. */
static double cost_of(const struct fit *f, const struct dpk_plan_part *p) {
    if (!p->rows) return 0;
    double extra = dpk_plan_extra(f->stage, p), work = extra;
    for (uint32_t i = 0; i < p->n_ops; i++) work += f->stage->costs[p->first + i].flops;
    return extra + work * loss / p->rows;
}

/* Change the stage's parts; halvings: of the rows. Returns the changed part, or NULL if that cannot
 * be. */
static struct dpk_plan_part *change(struct fit *f, int what, int halvings) {
    struct dpk_plan_stage *s = f->stage;
    uint32_t n = f->part;
    if (!dpk_plan_complete(f->plan, s, &n)) return NULL;
    if (what == JOIN_BEFORE) {
        if (n-- == 0) return NULL;
        if (!dpk_plan_complete(f->plan, s, &n) || !dpk_plan_join(f->plan, s, n)) return NULL;
    }
    if (what == JOIN_AFTER) {
        uint32_t after = n + 1;
        if (after == s->n_parts || !dpk_plan_complete(f->plan, s, &after)) return NULL;
        if (!dpk_plan_join(f->plan, s, n)) return NULL;
    }
    struct dpk_plan_part *p = &s->parts[n];
    if (p->rows >> halvings < DPK_ROWS_STEP) return NULL;
    p->rows = (p->rows >> halvings) / DPK_ROWS_STEP * DPK_ROWS_STEP;
    return p;
}

/* Make a change, see what it brings, take it back. */
static int try_change(struct fit *f, int what, int halvings, uint64_t goal, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_part *p = change(f, what, halvings);
    if (!p) goto undo;
    DPK_TRY(dpk_plan_find_lives(f->plan, err));
    const uint64_t live = live_during(f, p);
    const bool enough = live <= goal, best_enough = f->best_live <= goal;
    const double cost = cost_of(f, p);
    bool better = enough && !best_enough;
    if (enough && best_enough) better = cost < f->best_cost;
    if (!enough && !best_enough)
        better = live < f->best_live || (live == f->best_live && cost < f->best_cost);
    if (better) {
        f->best_live = live;
        f->best_cost = cost;
        DPK_TRY(save(&f->best, f->stage, err));
    }
undo:
    restore(f->stage, &f->before);
done:
    return rc;
}

/* One step; *stuck if nothing helps. */
static int improve(struct fit *f, uint64_t goal, bool *stuck, dpk_error *err) {
    int rc = DPK_OK;
    find_moment(f);
    const uint64_t live = f->best_live = f->plan->live_bytes;
    f->best_cost = 0;
    DPK_TRY(save(&f->before, f->stage, err));
    for (int what = 0; what < N_CHANGES; what++)
        for (int halvings = 0; halvings < MAX_HALVINGS; halvings++)
            DPK_TRY(try_change(f, what, halvings, goal, err));
    *stuck = f->best_live >= live;
    if (!*stuck) restore(f->stage, &f->best);
    DPK_TRY(dpk_plan_place(f->plan, err));
done:
    return rc;
}

/* The smallest arena so far, with all stages' parts. */
struct smallest {
    uint64_t bytes;
    struct parts stages[DPK_PLAN_MAX_STAGES];
};

/* From the usual parts down to the limit, or as far as it goes; *got: the smallest arena on the
 * way. */
static int descend(struct fit *f, uint64_t limit, struct smallest *best, uint64_t *got,
                   dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan *plan = f->plan;
    *got = UINT64_MAX;
    for (uint32_t i = 0; i < plan->n_stages; i++) dpk_plan_cut(plan, &plan->stages[i]);
    DPK_TRY(dpk_plan_place(plan, err));
    for (bool stuck = false; !stuck && *got > limit;) {
        if (plan->arena_bytes < *got) *got = plan->arena_bytes;
        if (*got < best->bytes) {
            best->bytes = *got;
            for (uint32_t i = 0; i < plan->n_stages; i++)
                DPK_TRY(save(&best->stages[i], &plan->stages[i], err));
        }
        /* What is lost between blocks must be saved as well. */
        uint64_t lost = plan->arena_bytes - plan->live_bytes;
        if (*got > limit) DPK_TRY(improve(f, limit > lost ? limit - lost : 0, &stuck, err));
    }
done:
    return rc;
}

int dpk_plan_fit(struct dpk_plan *plan, uint64_t limit, dpk_error *err) {
    int rc = DPK_OK;
    struct fit f = {.plan = plan};
    struct smallest best = {.bytes = UINT64_MAX};
    uint64_t got, goal = 0, least = UINT64_MAX;
    DPK_TRY(descend(&f, limit, &best, &got, err));
    /* What is chosen on the way depends on the goal: before giving up, come near to what is out of
     * reach. These goals do not depend on the limit, so that what is named as the least is met when
     * it is asked for. */
    while (best.bytes > limit) {
        DPK_TRY(descend(&f, goal, &best, &got, err));
        if (got >= least) break;
        least = got;
        goal = least / 16 * 15;
    }
    if (plan->arena_bytes != best.bytes) {
        for (uint32_t i = 0; i < plan->n_stages; i++) restore(&plan->stages[i], &best.stages[i]);
        DPK_TRY(dpk_plan_place(plan, err));
    }
done:
    for (int i = 0; i < DPK_PLAN_MAX_STAGES; i++) free(best.stages[i].at);
    free(f.before.at);
    free(f.best.at);
    return rc;
}
