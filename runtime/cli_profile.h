/* Where the time of a program goes: by operator, by kernel (an operator at its types and form), and
 * layer by layer. */
#ifndef DPK_CLI_PROFILE_H
#define DPK_CLI_PROFILE_H

#include "cli.h"
#include "plan.h"

/* What all threads of a session could do: operations a second; 0 where that is not known. */
struct dpk_cli_peaks {
    double f32, bf16, s8; /* products of activations of these types */
};

int dpk_cli_threads(const struct dpk_backend *backend); /* of a CPU; 0 of others */

/* Measures for some 60 ms on a CPU. */
struct dpk_cli_peaks dpk_cli_peaks_measure(const struct dpk_backend *backend);

struct dpk_cli_profile {
    const struct dpk_file *file;
    const struct dpk_plan_stage *stage;
    struct dpk_cli_peaks peaks;
    const double *seconds; /* [n_ops] of each operator, the fastest run's */
};

/* Totals of a row; what ideal is, is the time that the arithmetic would take at the peak. */
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
