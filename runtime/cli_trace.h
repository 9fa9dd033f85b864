/* A run as a timeline, in the Chrome trace format (ui.perfetto.dev, chrome://tracing). */
#ifndef DPK_CLI_TRACE_H
#define DPK_CLI_TRACE_H

#include "cli.h"
#include "plan.h"

struct dpk_cli_span {
    const struct dpk_plan_stage *stage;
    uint32_t op;       /* DPK_NONE: the whole program */
    double begin, end; /* dpk_cli_seconds */
};

/* What happened on one line of the timeline. */
struct dpk_cli_lane {
    struct dpk_cli_span *spans; /* [n], owned */
    size_t n, cap;
    size_t named; /* spans whose operator is known */
    bool lost;    /* no memory for a span */
};

/* Lane 0: programs, and in them operators; lane 1 + i: what thread i of the pool worked at. */
struct dpk_cli_trace {
    struct dpk_pool *pool;
    struct dpk_cli_lane *lanes; /* [n_lanes], owned */
    int n_lanes;
    const struct dpk_plan_stage *stage; /* of the run in progress, or NULL */
    double program_began, op_began;
};

/* Watch the threads of a CPU backend (another one has operators only) until dpk_cli_trace_free,
 * which must come before the backend's. Errors: DPK_ENOMEM. */
int dpk_cli_trace_start(struct dpk_cli_trace *trace, struct dpk_backend *backend, dpk_error *err);
void dpk_cli_trace_free(struct dpk_cli_trace *trace); /* also of a zeroed struct */

/* Around a run of a program, and after each of its operators (or a part of one), with the seconds
 * that it took, or 0: until now. */
void dpk_cli_trace_begin(struct dpk_cli_trace *trace, const struct dpk_plan_stage *stage);
void dpk_cli_trace_operator(struct dpk_cli_trace *trace, uint32_t op, double took);
void dpk_cli_trace_end(struct dpk_cli_trace *trace);

/* Write it all. Errors: DPK_ENOMEM (a span was lost, too), DPK_EIO. */
int dpk_cli_trace_write(const struct dpk_cli_trace *trace, const struct dpk_file *file,
                        const char *path, dpk_error *err);

#endif
