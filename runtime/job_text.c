/* The prompts of a job: how many chunks, the text program's plan, ids, and its run. */
#include "job_impl.h"
#include "prompt.h"

#include "../formats/fail.h"
#include "../formats/tokenizer_blob.h"

#include <stdio.h>
#include <string.h>

enum { MAX_CHUNKS = 256 };

/* Prompt of a text row; the last may be the negative one. NULL: none. */
static const char *prompt_of_row(const struct dpk_job *job, uint32_t row) {
    const dpk_params *p = &job->params;
    if (row < p->n_prompts) return p->prompts ? p->prompts[row] : NULL;
    return p->negative ? p->negative : "";
}

/* The tokenizer of input ids (0) or ids_2 (1); NULL if there is none. */
static const struct dpk_tokenizer *tokenizer_of(const struct dpk_job *job, int which) {
    const struct dpk_model *m = job->session->model;
    int t = dpk_model_find_tokenizer(m, which ? "tokenizer_2" : "tokenizer");
    return t < 0 ? NULL : m->tokenizers[t];
}

static bool all_are_clip(const struct dpk_file *f) {
    for (uint32_t i = 0; i < f->n_tokenizers; i++)
        if (f->tokenizers[i].kind != DPK_TOKENIZER_CLIP) return false;
    return true;
}

static int count_tokens(const struct dpk_job *job, const char *text, const struct dpk_tokenizer *t,
                        size_t *n, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_prompt prompt = {0};
    DPK_TRY(dpk_prompt_parse(&prompt, text, job->params.prompt_weights, err));
    DPK_TRY(dpk_prompt_count(&prompt, t, n, err));
done:
    dpk_prompt_free(&prompt);
    return rc;
}

int dpk_job_count_chunks(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    const bool clip = all_are_clip(&job->session->model->file);
    job->n_chunks = 1;
    if (p->long_prompt != DPK_LONG_TRUNCATE && p->long_prompt != DPK_LONG_CHUNKS)
        DPK_FAIL(err, DPK_EARG, "long_prompt is %d, want DPK_LONG_TRUNCATE or DPK_LONG_CHUNKS",
                 p->long_prompt);
    if (p->prompt_weights && !clip)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "prompt weights: this model's text encoder is no CLIP");
    if (p->long_prompt != DPK_LONG_CHUNKS || !clip) goto done;
    for (uint32_t row = 0; row < job->text_rows; row++) {
        const char *text = prompt_of_row(job, row);
        for (int i = 0; i < 2 && text; i++) {
            const struct dpk_tokenizer *t = tokenizer_of(job, i);
            size_t n;
            if (!t) continue;
            DPK_TRY(count_tokens(job, text, t, &n, err));
            uint32_t chunks = dpk_prompt_chunks(t, n);
            if (chunks > MAX_CHUNKS)
                DPK_FAIL(err, DPK_EARG, "a prompt of %zu tokens is %u chunks, want at most %d", n,
                         chunks, MAX_CHUNKS);
            if (chunks > job->n_chunks) job->n_chunks = chunks;
        }
    }
done:
    return rc;
}

int dpk_job_plan_text(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    size_t length[2] = {1, 1};
    const uint64_t rows = (uint64_t)job->text_rows * job->n_chunks;
    for (int i = 0; i < 2; i++) {
        const struct dpk_tokenizer *t = tokenizer_of(job, i);
        if (t) length[i] = dpk_tokenizer_max_length(t);
        else if (i == 0) DPK_FAIL(err, DPK_EFORMAT, "the model has no tokenizer");
    }
    dpk_job_input(&job->text_in[0], "ids", DPK_I32, dpk_job_shape(2, rows, length[0], 0, 0));
    dpk_job_input(&job->text_in[1], "ids_2", DPK_I32, dpk_job_shape(2, rows, length[1], 0, 0));
    dpk_job_input(&job->text_in[2], "mask", DPK_I32, dpk_job_shape(2, rows, length[0], 0, 0));
    DPK_TRY(dpk_plan_add(&job->plan, "text", job->text_in, 3, -1, &job->text, err));
    struct dpk_shape context = dpk_job_shape(3, rows, 0, 0, 0);
    struct dpk_shape pooled = dpk_job_shape(2, rows, 0, 0, 0);
    /* Weights are of tokens, so there must be a vector for each. */
    if (job->params.prompt_weights) context.dim[1] = (int32_t)length[0];
    DPK_TRY(dpk_job_output(job, job->text, "context", &context, &job->out_context, err));
    job->out_pooled = dpk_plan_find_output(&job->plan.stages[job->text], job->plan.file, "pooled");
    if (job->out_pooled != DPK_NONE)
        DPK_TRY(dpk_job_output(job, job->text, "pooled", &pooled, &job->out_pooled, err));
done:
    return rc;
}

size_t dpk_job_context_bytes(const struct dpk_job *job) {
    return job->plan.stages[job->text].values[job->out_context].bytes / job->text_rows;
}

size_t dpk_job_pooled_bytes(const struct dpk_job *job) {
    const struct dpk_plan_stage *s = &job->plan.stages[job->text];
    return s->values[job->out_pooled].bytes / job->text_rows / job->n_chunks;
}

void dpk_job_cut_text(struct dpk_job *job) {
    const struct dpk_plan_stage *text = &job->plan.stages[job->text];
    uint32_t stage = job->text;
    job->text_ids[0] = dpk_job_cut_input(job, stage, stage, job->text_in, 3, "ids");
    job->text_ids[1] = dpk_job_cut_input(job, stage, stage, job->text_in, 3, "ids_2");
    /* The tokenizer's mask is wanted also when only the network takes one. */
    uint64_t tokens = (uint64_t)dpk_shape_count(&job->text_in[2].shape);
    job->text_mask = dpk_job_cut(job, tokens * 4);
    job->text_in[2].data = job->text_mask;
    if (job->params.prompt_weights) job->text_weights = dpk_job_cut(job, tokens * 4);
    job->text_context = dpk_job_cut(job, text->values[job->out_context].bytes);
    if (job->out_pooled != DPK_NONE)
        job->text_pooled = dpk_job_cut(job, text->values[job->out_pooled].bytes);
}

/* ---- Ids ---------------------------------------------------------------------------------- */

/* Say that a prompt was cut, if it was: n of its tokens against what there is room for. */
static void note_cut(const struct dpk_job *job, uint32_t row, size_t n, size_t room) {
    const dpk_params *p = &job->params;
    char which[32] = "the negative prompt", line[160];
    if (n <= room || !p->notice) return;
    if (row < p->n_prompts && p->n_prompts > 1) snprintf(which, sizeof which, "prompt %u", row);
    else if (row < p->n_prompts) snprintf(which, sizeof which, "the prompt");
    snprintf(line, sizeof line, "%s has %zu tokens, of which the last %zu are ignored", which, n,
             n - room);
    p->notice(p->notice_arg, line);
}

static int encode_parts(struct dpk_job *job, uint32_t row, const char *text, int which,
                        const struct dpk_tokenizer *t, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_prompt prompt = {0};
    const size_t begin = (size_t)row * job->n_chunks * dpk_tokenizer_max_length(t);
    size_t n;
    DPK_TRY(dpk_prompt_parse(&prompt, text, job->params.prompt_weights, err));
    DPK_TRY(dpk_prompt_encode(&prompt, t, job->n_chunks, job->text_ids[which] + begin,
                              job->text_weights && !which ? job->text_weights + begin : NULL, err));
    if (which) goto done;
    DPK_TRY(dpk_prompt_count(&prompt, t, &n, err));
    note_cut(job, row, n, dpk_prompt_room(t) * job->n_chunks);
done:
    dpk_prompt_free(&prompt);
    return rc;
}

static int encode_row(struct dpk_job *job, uint32_t row, const char *text, dpk_error *err) {
    int rc = DPK_OK;
    for (int i = 0; i < 2; i++) {
        if (!job->text_ids[i]) continue;
        const struct dpk_tokenizer *t = tokenizer_of(job, i);
        if (!t) DPK_FAIL(err, DPK_EFORMAT, "the model has no tokenizer_2");
        if (job->n_chunks > 1 || job->params.prompt_weights) {
            DPK_TRY(encode_parts(job, row, text, i, t, err));
            continue;
        }
        size_t length = dpk_tokenizer_max_length(t), n;
        DPK_TRY(dpk_tokenizer_encode(t, text, strlen(text), job->text_ids[i] + row * length,
                                     i ? NULL : job->text_mask + row * length, &n, err));
        if (!i) note_cut(job, row, n, length);
    }
done:
    return rc;
}

int dpk_job_tokens(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    if (!job->params.prompts) DPK_FAIL(err, DPK_EARG, "no prompts");
    for (uint32_t row = 0; row < job->text_rows; row++) {
        const char *text = prompt_of_row(job, row);
        if (!text) DPK_FAIL(err, DPK_EARG, "prompt %u is missing", row);
        DPK_TRY(encode_row(job, row, text, err));
    }
done:
    return rc;
}

/* ---- The stage ---------------------------------------------------------------------------- */

static void weigh(struct dpk_job *job) {
    const struct dpk_shape *shape =
        &job->plan.stages[job->text].values[job->out_context].shape; /* [rows,L,D] */
    size_t length = (size_t)shape->dim[1], width = (size_t)shape->dim[2];
    for (size_t i = 0; i < (size_t)shape->dim[0]; i++)
        dpk_prompt_weigh(job->text_context + i * length * width, job->text_weights + i * length,
                         length, width);
}

int dpk_job_text(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan *plan = &job->plan;
    DPK_TRY(dpk_exec_give_all(plan, job->text, job->text_in, 3, err));
    DPK_TRY(dpk_exec_run(plan, job->text, hook, err));
    DPK_TRY(dpk_exec_take(plan, job->text, job->out_context, job->text_context, err));
    if (job->text_weights) weigh(job);
    if (!job->text_pooled) goto done;
    DPK_TRY(dpk_exec_take(plan, job->text, job->out_pooled, job->text_pooled, err));
    size_t n = dpk_job_pooled_bytes(job) / sizeof *job->text_pooled;
    for (uint32_t row = 1; row < job->text_rows && job->n_chunks > 1; row++)
        memcpy(job->text_pooled + row * n, job->text_pooled + row * job->n_chunks * n,
               n * sizeof *job->text_pooled);
done:
    return rc;
}
