/* Walks: the order in which the operators of a part of a stage run when they run a few rows of
 * their maps at a time.
 *
 * Each operator makes as many rows as it may at once, as soon as the rows that it reads are there,
 * then the next has its turn: between them, maps are never there as a whole, but as windows of a
 * few rows that move down (streams). A convolution leaves its input's last rows in the window,
 * which moves before more are made, so no row is made twice.
 *
 *     x, all of it:   ||||||||||||||||||||||||||||||||||||||||
 *     group norm:              [......++++]                       + made now, . kept
 *     convolution:    ||||||||||||++++                            all of it, where it is read later
 *
 * A group norm must have seen all rows of an image before it makes the first. Before the pass that
 * makes everything there is one for each group norm of the part, which makes what leads to it.
 * Images go one after the other. The planner walks to learn the sizes of the windows, the executor
 * to run. */
#ifndef DPK_WALK_H
#define DPK_WALK_H

#include "plan.h"

struct dpk_walk {
    const struct dpk_plan_stage *stage;
    const struct dpk_plan_part *part;
    int64_t image, n_images;
    uint32_t active; /* operators of this pass, a bit each */
    uint32_t target; /* that is measured; n_ops in the last pass */
    uint32_t turn;
    int64_t done[DPK_PART_MAX];  /* rows of the image made in this pass */
    int64_t start[DPK_PART_MAX]; /* of streams: first row in the window */
};

/* Rows of an operator of the part: those of `rows` are made now. Of its result, if it is a stream,
 * rows start .. of the image are in the window then, of which start .. start + kept were there
 * before, and lay `moved` rows further down. */
struct dpk_walk_step {
    uint32_t op; /* of the part */
    struct dpk_rows rows;
    int64_t start, kept, moved;
};

void dpk_walk_begin(struct dpk_walk *walk, const struct dpk_plan_stage *stage,
                    const struct dpk_plan_part *part);
/* False when all is done. */
bool dpk_walk_next(struct dpk_walk *walk, struct dpk_walk_step *step);

/* Number in the part of the operator that makes operand k of operator i; DPK_NONE if it is absent,
 * comes from elsewhere, or none of its rows are read. */
uint32_t dpk_walk_maker(const struct dpk_plan_stage *stage, const struct dpk_plan_part *part,
                        uint32_t i, int k);

/* Operators of the part that operator i needs, itself included. */
uint32_t dpk_walk_ancestors(const struct dpk_plan_stage *stage, const struct dpk_plan_part *part,
                            uint32_t i);

/* First row of operand k (of an image) that the result's rows from `row` on need, and the end of
 * those that rows before `row` need. An operand that is no map, or of which no row is read: its
 * height and 0. */
int64_t dpk_walk_from(const struct dpk_call *call, int k, int64_t row);
int64_t dpk_walk_until(const struct dpk_call *call, int k, int64_t row);

#endif
