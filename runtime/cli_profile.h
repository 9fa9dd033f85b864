/* Where the time of a program goes: by operator, by kernel (an operator at its types and form), and
 * layer by layer. */
#ifndef DPK_CLI_PROFILE_H
#define DPK_CLI_PROFILE_H

#include "cli.h"
#include "plan.h"

int dpk_cli_threads(const struct dpk_backend *backend); /* of a CPU; 0 of others */

struct dpk_cli_profile {
    const struct dpk_file *file;
    const struct dpk_plan_stage *stage;
    struct dpk_peaks peaks;
    const double *seconds; /* [n_ops] of each operator, the fastest run's */
};

/* Totals of a row. ideal: the time that its products would take at the device's peak, or its bytes
 * at the memory's where that is known and more. */
struct dpk_cli_total {
    char name[64];
    uint32_t calls;
    double seconds, ideal;
    struct dpk_cost cost;
};

/* One operator as a row of its own. */
struct dpk_cli_total dpk_cli_profile_operator(const struct dpk_cli_profile *p, uint32_t op);
/* Without a line break. `all`: the seconds that the row is a share of. */
void dpk_cli_total_print(const struct dpk_cli_total *t, double all);
/* Opens an object and leaves it open. */
void dpk_cli_total_json(struct dpk_cli_json *j, const struct dpk_cli_total *t);

/* Lines of text, or members "kinds", "kernels" and "operators" of the object that is open. Errors:
 * DPK_ENOMEM. */
int dpk_cli_profile_print(const struct dpk_cli_profile *p, dpk_error *err);
int dpk_cli_profile_json(const struct dpk_cli_profile *p, struct dpk_cli_json *j, dpk_error *err);

#endif
