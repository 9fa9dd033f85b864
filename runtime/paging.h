/* Weights that come and go: which pages of the mapped file a run needs now. */
#ifndef DPK_PAGING_H
#define DPK_PAGING_H

#include "plan.h"

/* Ask for the weights of operator `op` (past the last: nothing) ahead of time: the file is read
 * while something else runs. Tables that only some rows of are read are left alone. */
void dpk_paging_ask(const struct dpk_plan *plan, const struct dpk_plan_stage *stage, uint32_t op);

/* Let go of the pages with weights of operator `op`. They stay in the system's cache while it has
 * room, and come back when they are read. */
void dpk_paging_drop(const struct dpk_plan *plan, const struct dpk_plan_stage *stage, uint32_t op);

#endif
