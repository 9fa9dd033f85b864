/* Plans: programs with all shapes known, every value at its place in one arena.
 *
 * A plan is a row of stages, each a program of the file with the shapes of its inputs, run in order
 * (a stage may run many times before the next one begins). A stage can take values from an earlier
 * one: its inputs that bear the name of an output there. Everything else is given by the host.
 *
 *     time   | text ........ | setup ......... | step (again and again) | decode ....... |
 *     arena  | values of text share their bytes with values of later stages              |
 *            |               | outputs of setup: kept until step's end  |                |
 *
 * A stage is cut into parts: single operators, and runs of operators on maps that go a few rows at
 * a time (walk.h). What only they read then needs no place as a whole. Parts are chosen such that
 * nothing is computed twice, but where a memory limit asks for more (dpk_plan_fit): with two group
 * norms in a part, what lies between them is made twice.
 *
 * Time is counted in operators. A part is a single moment: what any of its operators takes or makes
 * is there during all of it. A value lives from the operator that makes it to the last that
 * reads it: an input of the host from the start of its stage, an output to the end of its stage,
 * a value that a later stage takes to that stage's end. Scratch lives for one operator. Where the
 * backend can, a result takes over the bytes of an operand that dies. Values whose times do not
 * meet may share bytes; so host inputs must be given again before every run of a stage. */
#ifndef DPK_PLAN_H
#define DPK_PLAN_H

#include "../kernels/backend.h"

enum { DPK_PLAN_MAX_STAGES = 5 };

/* Bytes that are in use from time `first` to time `last`. */
struct dpk_plan_block {
    uint64_t bytes; /* multiple of DPK_ALIGN */
    uint64_t offset;
    uint32_t first, last;
    /* Where a part overwrites what it reads, row by row: the block of its result, and where in (or
     * beyond) that block this one begins. They share bytes at the result's time `first` on, by
     * design. Else DPK_NONE. */
    uint32_t under;
    uint64_t delta; /* multiple of DPK_ALIGN */
    bool kept;      /* alive from `first` to the end of the last stage that takes it */
};

struct dpk_plan_value {
    struct dpk_shape shape;
    int32_t dtype;
    uint64_t bytes;  /* exact */
    uint32_t block;  /* whose offset is the value's */
    bool from_stage; /* an input that an earlier stage makes, there value `source` */
    uint32_t source;
};

enum { DPK_PART_MAX = 24 };

/* Operators first .. first + n_ops of a stage: with rows 0 a single one, which runs as a whole. */
struct dpk_plan_part {
    uint32_t first, n_ops;
    int32_t rows; /* of its tallest map at a time, about */
    int32_t tallest;
    uint32_t streamed; /* operators whose result is never there as a whole: a bit each */
    uint32_t measured; /* group norms */
};

/* An operator that picks rows by number: values of input `input` must be 0 .. limit-1. */
struct dpk_plan_check {
    uint32_t input;
    int32_t limit;
};

struct dpk_plan_stage {
    const struct dpk_program *program;
    uint32_t begin;                /* time of its host inputs; operator i runs at begin + 1 + i */
    uint32_t end;                  /* time when its outputs are fetched */
    int from;                      /* stage that it takes inputs from, or -1 */
    struct dpk_plan_value *values; /* [n_inputs + n_ops] */
    struct dpk_call *calls;        /* [n_ops] */
    uint32_t *scratch;             /* [n_ops] block, or DPK_NONE */
    uint64_t *scratch_bytes;       /* [n_ops] */
    uint32_t *reader;              /* [n_inputs + n_ops] the last operator that reads the value;
                                      DPK_NONE: none, n_ops: an output */
    struct dpk_plan_part *parts;   /* [n_parts] of at most n_ops */
    uint32_t n_parts;
    struct dpk_plan_check *checks; /* [n_checks] */
    uint32_t n_checks;
    struct dpk_cost *costs; /* [n_ops] */
    double work;            /* an estimate of time, to share a progress bar by */
    bool once;              /* let go of weights behind each operator (dpk_paging_drop) */
};

struct dpk_plan {
    struct dpk_backend *backend;
    const struct dpk_file *file;
    int32_t act_dtype;
    bool whole; /* before dpk_plan_add: all maps as a whole, for those who look at them */
    uint32_t n_stages;
    struct dpk_plan_stage stages[DPK_PLAN_MAX_STAGES];
    struct dpk_plan_block *blocks;
    uint32_t n_blocks, cap_blocks;
    uint64_t arena_bytes; /* after dpk_plan_place: exactly what runs use */
    void *arena;          /* after dpk_plan_bind */
    uint64_t live_bytes;  /* most bytes alive at one time: no arena of these parts can be less */
    uint64_t *live;       /* [end of the last stage + 2] bytes alive at each time */
};

/* An input that the host gives. */
struct dpk_plan_input {
    const char *name;
    int32_t dtype; /* DPK_F32 or DPK_I32 */
    struct dpk_shape shape;
    const void *data; /* read by dpk_exec_give_all only */
};

/* An empty plan. act_dtype: DPK_F32 or DPK_BF16. backend and file are borrowed. */
void dpk_plan_init(struct dpk_plan *plan, struct dpk_backend *backend, const struct dpk_file *file,
                   int32_t act_dtype);
void dpk_plan_free(struct dpk_plan *plan); /* also of a zeroed struct */

/* Add a stage: find all its shapes. from: the stage whose outputs it takes by name, or -1. Every
 * other input must be in `inputs` (extra ones are ignored). *stage gets its number.
 * Errors: DPK_EFORMAT (no such program, a shape rule broken, types differ), DPK_EARG (an input
 * missing, of wrong type, rank or size), DPK_ENOMEM. */
int dpk_plan_add(struct dpk_plan *plan, const char *program, const struct dpk_plan_input *inputs,
                 size_t n_inputs, int from, uint32_t *stage, dpk_error *err);

/* After the last stage: find lifetimes, give every block its offset. May be called again, after
 * parts have changed. */
int dpk_plan_place(struct dpk_plan *plan, dpk_error *err);

/* The first half of that: blocks, their lifetimes and how much is alive when. */
int dpk_plan_find_lives(struct dpk_plan *plan, dpk_error *err);

/* Instead of dpk_plan_place: parts such that the arena is no larger than `limit`, with the least
 * recomputation that was found; or, where that cannot be, the smallest arena found (which
 * is no error). */
int dpk_plan_fit(struct dpk_plan *plan, uint64_t limit, dpk_error *err);

/* ---- plan_parts.c ---- */

/* Cut a new stage into parts that compute nothing twice. */
void dpk_plan_cut(const struct dpk_plan *plan, struct dpk_plan_stage *stage);
/* Part n and the next one as one part; false if they cannot be. */
bool dpk_plan_join(const struct dpk_plan *plan, struct dpk_plan_stage *stage, uint32_t n);
/* If part *n is a single operator: make one of all that can go row by row with it without making
 * anything twice. *n gets its number. False if there is none. */
bool dpk_plan_complete(const struct dpk_plan *plan, struct dpk_plan_stage *stage, uint32_t *n);
/* Rows that operators of the part make more often than once, in floating-point operations. */
double dpk_plan_extra(const struct dpk_plan_stage *stage, const struct dpk_plan_part *part);

/* Point every call into an arena of arena_bytes, 64-byte aligned, of the plan's backend. */
void dpk_plan_bind(struct dpk_plan *plan, void *arena);

/* Offsets for blocks so that no two share bytes at one time; *total gets the end of the last.
 * Errors: DPK_ENOMEM. */
int dpk_plan_place_blocks(struct dpk_plan_block *blocks, uint32_t n, uint64_t *total,
                          dpk_error *err);

/* Number of the input or output of this name in the stage, or DPK_NONE. */
uint32_t dpk_plan_find_input(const struct dpk_plan_stage *stage, const struct dpk_file *file,
                             const char *name);
uint32_t dpk_plan_find_output(const struct dpk_plan_stage *stage, const struct dpk_file *file,
                              const char *name);

/* The type that activations have with this backend and file: decided by the type that most of the
 * file's float matrices (by bytes) have; where all are quantized, by metadata "convert.dtype". */
int32_t dpk_plan_act_dtype(const struct dpk_backend *backend, const struct dpk_file *file);

/* An estimate of an operator's time, in units of one floating-point operation. */
double dpk_plan_work(const struct dpk_cost *cost);

/* "[2,77,768]" into out (at least 64 bytes); returns out. */
char *dpk_plan_shape_text(const struct dpk_shape *shape, char *out, size_t size);

#endif
