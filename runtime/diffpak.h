/* diffpak: paint pictures with a packed text-to-image model.
 *
 *     dpk_error err;
 *     dpk_model *model = NULL;
 *     dpk_session *session = NULL;
 *     dpk_images *pictures = NULL;
 *     const char *prompt = "a large red circle on a blue background";
 *     dpk_params params = dpk_params_default();
 *     params.prompts = &prompt;
 *     if (dpk_model_open(&model, "model.dpk", &err) ||
 *         dpk_session_create(&session, model, NULL, &err) ||
 *         dpk_generate(session, &params, &pictures, &err))
 *         fprintf(stderr, "%s\n", err.msg);
 *     else
 *         write_ppm("out.ppm", pictures->width, pictures->height, pictures->rgb);
 *     dpk_images_free(pictures), dpk_session_free(session), dpk_model_free(model);
 *
 * Manners. The library never prints, never ends the process and keeps no global state. Every call
 * that can fail returns DPK_OK (0) or an enum dpk_status, and fills the caller's dpk_error (which
 * may be NULL) with one line. free(NULL) is fine. Handles of one model may be used by several
 * threads: a dpk_model is read-only once open; a dpk_session takes one call at a time.
 *
 * Shapes are written [A,B,C], last axis adjacent. Images and latents are NHWC. */
#ifndef DIFFPAK_H
#define DIFFPAK_H

#if __has_include("dpk_error.h")
#include "dpk_error.h"
#else
#include "../formats/dpk_error.h"
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DPK_API __attribute__((visibility("default")))

/* "0.1.0"; static. */
DPK_API const char *dpk_version(void);

/* ==== Models ================================================================================== */

/* A packed model: a mapped file and the tables made from it. */
typedef struct dpk_model dpk_model;

/* Open a .dpk file and check everything but the bytes of the weights.
 * Returns DPK_OK, DPK_EIO, DPK_ENOMEM, DPK_EFORMAT, DPK_EUNSUPPORTED. */
DPK_API int dpk_model_open(dpk_model **model, const char *path, dpk_error *err);

typedef struct dpk_model_options {
    size_t struct_size; /* sizeof of this struct; dpk_model_options_default sets it */
    int in_memory;      /* non-zero: read the weights into memory instead of mapping the file */
    /* Non-zero: a mapped file that becomes shorter, or cannot be read, while it is in use makes a
     * run fail with DPK_EIO. Without, the system ends the process with SIGBUS. This installs a
     * handler of SIGBUS, for the pages of such models alone, and keeps it. */
    int guard;
} dpk_model_options;

static inline dpk_model_options dpk_model_options_default(void) {
    dpk_model_options o = {sizeof(dpk_model_options), 0, 0};
    return o;
}

/* As dpk_model_open; options may be NULL. */
DPK_API int dpk_model_open_with(dpk_model **model, const char *path,
                                const dpk_model_options *options, dpk_error *err);

/* Every session of the model must be freed before. */
DPK_API void dpk_model_free(dpk_model *model);

/* Compare every byte of the weights with its sum. progress may be NULL; it gets bytes, and stops
 * the check by returning non-zero.
 * Returns DPK_OK, DPK_EFORMAT (names the tensor), DPK_EIO, DPK_ECANCELLED. */
DPK_API int dpk_model_verify(const dpk_model *model,
                             int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                             dpk_error *err);

/* Metadata: a value by its key, or NULL; and pair number i (sorted by key), or NULL past the end.
 * The strings live as long as the model. */
DPK_API const char *dpk_model_meta(const dpk_model *model, const char *key);
DPK_API const char *dpk_model_meta_at(const dpk_model *model, size_t i, const char **value);

/* A number that identifies the file's content. */
DPK_API uint64_t dpk_model_sum(const dpk_model *model);

/* ==== Sessions ================================================================================ */

/* A backend with a model attached, and the memory that runs use. */
typedef struct dpk_session dpk_session;

typedef struct dpk_session_options {
    size_t struct_size;  /* sizeof of this struct; dpk_session_options_default sets it */
    const char *backend; /* "cpu" (also NULL) or "cuda" */
    const char *isa; /* CPU: "ref", "avx2", ...; NULL: DPK_ISA in the environment, or the best */
    int threads;     /* CPU: 0 is one a core that the process may use */
    int act_dtype;   /* 0: the backend's choice; DPK_ARRAY_F32 or DPK_ARRAY_BF16 to force one */
    /* Bytes for arena and host buffers, without the weights; 0: none. With a limit, the CPU runs
     * operators on large maps a few rows at a time, and makes some rows again, as far as it takes;
     * pictures stay the same bit by bit. It also lets go of the pages of weights that are used once
     * an image (text encoders, autoencoder) as soon as their operator is done, and asks for the
     * next operator's ahead: of these, little more than the largest weight is resident at a
     * time. */
    uint64_t memory_limit;
} dpk_session_options;

static inline dpk_session_options dpk_session_options_default(void) {
    dpk_session_options o = {sizeof(dpk_session_options), NULL, NULL, 0, 0, 0};
    return o;
}

/* options may be NULL. The model is borrowed and must outlive the session.
 * Returns DPK_OK, DPK_ENOMEM, DPK_EARG, DPK_EUNSUPPORTED, DPK_EBACKEND. */
DPK_API int dpk_session_create(dpk_session **session, const dpk_model *model,
                               const dpk_session_options *options, dpk_error *err);
DPK_API void dpk_session_free(dpk_session *session);

/* What computes, for people: "cpu, avx512bf16, 8 threads". Lives with the session. */
DPK_API const char *dpk_session_describe(const dpk_session *session);

/* ==== Arrays ================================================================================== */

enum dpk_array_type { DPK_ARRAY_F32 = 1, DPK_ARRAY_BF16 = 2, DPK_ARRAY_F16 = 3, DPK_ARRAY_I32 = 6 };

/* A dense array in the caller's memory, float32 or int32. */
typedef struct dpk_array {
    const char *name;
    int type; /* DPK_ARRAY_F32 or DPK_ARRAY_I32 */
    int rank; /* 1 .. 4 */
    int32_t dim[4];
    void *data; /* read only where it is an input */
} dpk_array;

typedef struct dpk_arrays {
    size_t n;
    dpk_array *at; /* [n] */
} dpk_arrays;

DPK_API void dpk_arrays_free(dpk_arrays *arrays);

/* ==== Text to image =========================================================================== */

typedef struct dpk_progress {
    const char *stage; /* "encode", "text", "setup", "step", "decode" */
    uint32_t step;     /* sampler steps (calls of the network) done */
    uint32_t n_steps;  /* of this many */
    double fraction;   /* of all work, 0 .. 1, rising */
} dpk_progress;

enum dpk_rng {
    DPK_RNG_CPU = 0,
    DPK_RNG_CUDA = 1
}; /* whose generator the noise equals: PyTorch's */

/* What becomes of a prompt of more tokens than a text encoder takes (CLIP: 75 between start and
 * end). */
enum dpk_long_prompt {
    DPK_LONG_TRUNCATE = 0, /* the rest is ignored, as diffusers does; `notice` says so */
    /* CLIP: cut into chunks of 75 tokens, each encoded alone between start and end tokens, their
     * contexts joined token after token; shorter prompts of the run, the negative one too, are
     * filled up with empty chunks; the pooled vector is the first chunk's. T5: truncated. */
    DPK_LONG_CHUNKS = 1
};

/* What to paint. Begin with dpk_params_default(): then only prompts must be set. */
typedef struct dpk_params {
    size_t struct_size;
    const char *const *prompts; /* [n_prompts] UTF-8 */
    uint32_t n_prompts;         /* default 1; several make one batch */
    uint32_t images_per_prompt; /* default 1 */
    const char *negative;       /* NULL: as the model family does without one; "" is encoded */
    uint32_t steps;             /* 0: the model's default */
    float guidance;             /* negative: the model's default; guidance acts when above 1 */
    float guidance_rescale;     /* 0: off */
    const uint64_t *seeds;      /* [n_seeds] */
    uint32_t n_seeds;           /* 0: seed 0; 1: one generator draws the noise of the batch at once;
                                   one an image: each draws the noise of its own image */
    uint32_t width, height;     /* pixels; 0: the model's default; with init, the size of that,
                                   rounded down to what the model can paint */
    const char *scheduler; /* euler, euler-a, ddim, pndm, dpm++2m, ...; NULL: the model's own */
    int rng;               /* enum dpk_rng */
    const float *latents;  /* NULL, or the noise to use instead of a drawn one, before it is
                                   multiplied by a sigma: [images,h,w,C] (dpk_info) */
    /* Called often, from the calling thread. Non-zero stops the run: DPK_ECANCELLED. */
    int (*progress)(void *arg, const dpk_progress *p);
    void *progress_arg;
    /* Receives "context", "pooled" (of the prompts), "negative_context", "latent_000" (what the
     * sampler starts from), "latent_001" ... (after each step) [images,h,w,C], and "image"
     * [images,H,W,3], nominally -1 .. 1. The array is valid during the call. Non-zero stops the
     * run. */
    int (*trace)(void *arg, const dpk_array *array);
    void *trace_arg;

    /* Image to image: begin with this picture, [init_height,init_width,3], 8 bits, instead of
     * noise. It is resized to the size to paint (Lanczos, as Pillow does it), encoded (drawing
     * from the generator before the noise), and noise is added for the last strength * steps
     * (rounded down) of the steps, which alone are run. */
    const uint8_t *init;
    uint32_t init_width, init_height;
    double strength; /* above 0, up to 1; default 0.8 */
    /* With init: what to repaint, [mask_height,mask_width], of the same size as init; 128 and above
     * is painted, below is kept. Resized as init is, then to the latent's size (nearest). After
     * each step, what is kept becomes the picture's latent again with that step's noise. For
     * models whose network takes a latent only. With strength 1 the start is noise alone. */
    const uint8_t *mask;
    uint32_t mask_width, mask_height;

    /* Some models (PixArt) paint sizes of a table in the file only: of it, the one with the nearest
     * ratio of height to width is painted, then resized (bilinear) until it covers width x height
     * and cropped to its middle. Non-zero: paint width x height as it is. */
    int no_binning;

    int long_prompt; /* enum dpk_long_prompt */
    /* Non-zero: `(word)` in a prompt is 1.1 times as strong, `[word]` 1/1.1 times, `(word:1.3)` 1.3
     * times; brackets nest; \( \) \[ \] \\ are the characters themselves. Each token's context
     * vector is multiplied by its weight, then all of its chunk are scaled so that their mean
     * stays. CLIP only: DPK_EUNSUPPORTED with T5. */
    int prompt_weights;
    /* Gets one line about something that the caller may want to know and that is no error: a
     * prompt was cut. May be NULL. */
    void (*notice)(void *arg, const char *line);
    void *notice_arg;
} dpk_params;

DPK_API dpk_params dpk_params_default(void);

/* What a run would be, and what it takes. */
typedef struct dpk_info {
    uint32_t n_images, width, height; /* pixels */
    uint32_t paint_width, paint_height; /* what the model paints: differs with a table of sizes */
    uint32_t n_chunks;                  /* of each prompt */
    uint32_t latent_width, latent_height, latent_channels;
    uint32_t steps, n_calls; /* calls of the network: fewer than steps with init */
    float guidance;
    const char *scheduler; /* class name; lives with the session */
    uint64_t arena_bytes, host_bytes,
        peak_bytes; /* arena, host buffers and their sum; no weights */
} dpk_info;

/* Plan a run without running it; no memory is taken for it. prompts may be NULL: then n_prompts of
 * any text. With a memory limit, this is the plan that the limit makes, or, where it cannot be met,
 * the least that a run takes. Returns as dpk_generate. */
DPK_API int dpk_session_plan(dpk_session *session, const dpk_params *params, dpk_info *info,
                             dpk_error *err);

typedef struct dpk_images {
    uint32_t n, width, height;
    uint8_t *rgb; /* [n,height,width,3] */
} dpk_images;

/* Paint n_prompts * images_per_prompt pictures; prompt i makes images_per_prompt of them in a row.
 * All memory is taken before the first call of `progress`; none is taken after it.
 * Returns DPK_OK, DPK_EARG (sizes, prompt not UTF-8, unknown scheduler), DPK_ENOMEM (over the
 * memory limit: says needed and limit), DPK_EFORMAT (the programs do not fit each other),
 * DPK_EUNSUPPORTED, DPK_ECANCELLED, DPK_EBACKEND. */
DPK_API int dpk_generate(dpk_session *session, const dpk_params *params, dpk_images **images,
                         dpk_error *err);
DPK_API void dpk_images_free(dpk_images *images);

/* ==== One component on given arrays =========================================================== */

/* Run "text", "denoise", "decode" or "encode":
 *   text     ids [B,L] (ids_2; mask)                      to context [B,L,D], pooled [B,P]
 *   denoise  latent [B,h,w,C], timestep [1] or [B], context [B,L,D], and where the model takes them
 *            pooled [B,P], time_ids [B,6], mask [B,L], resolution [B,2], aspect_ratio [B,1]
 *                                                         to noise [B,h,w,C]
 *   decode   latent [B,h,w,C]                             to image [B,H,W,3]
 *   encode   image [B,H,W,3]                              to mean, logvar [B,h,w,C]
 * ids and mask are int32, all else float32. Every input that the model takes must be given, and no
 * other. *out is made by the call; free it with dpk_arrays_free. Errors as dpk_generate. */
DPK_API int dpk_session_run(dpk_session *session, const char *component, const dpk_array *in,
                            size_t n_in, dpk_arrays **out, dpk_error *err);

/* ==== Parts of a run ========================================================================== */

/* Tokenizers of the model: how many, name and number of ids of each. NULL and 0 past the end. */
DPK_API size_t dpk_model_n_tokenizers(const dpk_model *model);
DPK_API const char *dpk_model_tokenizer_name(const dpk_model *model, size_t tokenizer);
DPK_API size_t dpk_model_n_ids(const dpk_model *model, size_t tokenizer);

/* Ids of a prompt (UTF-8, NUL-terminated), padded as the model takes them: ids [dpk_model_n_ids].
 * n_tokens or NULL: how many the whole prompt has; more than n_ids means that it was cut.
 * Returns DPK_OK, DPK_EARG (not UTF-8, no such tokenizer), DPK_ENOMEM. */
DPK_API int dpk_model_tokens(const dpk_model *model, size_t tokenizer, const char *prompt,
                             int32_t *ids, size_t *n_tokens, dpk_error *err);

/* The timesteps that the network is called with, and the sigmas of samplers that have them. */
typedef struct dpk_timetable {
    size_t n_timesteps, n_sigmas;
    double *timesteps, *sigmas;
    double init_noise_sigma;
} dpk_timetable;

/* steps 0 and scheduler NULL: the model's own.
 * Returns DPK_OK, DPK_EARG, DPK_EUNSUPPORTED, DPK_EFORMAT, DPK_ENOMEM. */
DPK_API int dpk_model_timetable(const dpk_model *model, const char *scheduler, uint32_t steps,
                                dpk_timetable **table, dpk_error *err);
DPK_API void dpk_timetable_free(dpk_timetable *table);

/* Normal noise as PyTorch draws it: out[i] = torch.randn(n, dtype, generator(seed))[i], widened to
 * float32. dtype: DPK_ARRAY_F32, DPK_ARRAY_BF16 or DPK_ARRAY_F16. Returns DPK_OK or DPK_EARG. */
DPK_API int dpk_noise(uint64_t seed, int rng, int dtype, size_t n, float *out, dpk_error *err);

#ifdef __cplusplus
}
#endif
#endif
