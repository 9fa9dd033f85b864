#include "ldm.h"

#include "../formats/fail.h"

#include <stdio.h>
#include <string.h>

/* ---- Families -------------------------------------------------------------------------------- */

#define UNET_PREFIX "model.diffusion_model."
#define SDXL_PARTS                                                                                 \
    {                                                                                              \
        {"unet", UNET_PREFIX, dpk_ldm_unet}, {"vae", "first_stage_model.", dpk_ldm_vae},           \
            {"text_encoder", "conditioner.embedders.0.transformer.", dpk_ldm_clip}, {              \
            "text_encoder_2", "conditioner.embedders.1.model.", dpk_ldm_open_clip                  \
        }                                                                                          \
    }

static const struct dpk_ldm_family sd15 = {
    .name = "Stable Diffusion 1.x",
    .class_name = "StableDiffusionPipeline",
    .parts = {{"unet", UNET_PREFIX, dpk_ldm_unet},
              {"vae", "first_stage_model.", dpk_ldm_vae},
              {"text_encoder", "cond_stage_model.transformer.", dpk_ldm_clip}},
    .files = dpk_ldm_files_sd15,
};
static const struct dpk_ldm_family sdxl = {
    .name = "SDXL",
    .class_name = "StableDiffusionXLPipeline",
    .parts = SDXL_PARTS,
    .files = dpk_ldm_files_sdxl,
};
static const struct dpk_ldm_family ssd1b = {
    .name = "SSD-1B",
    .class_name = "StableDiffusionXLPipeline",
    .parts = SDXL_PARTS,
    .files = dpk_ldm_files_ssd1b,
};
static const struct dpk_ldm_family pixart = {
    .name = "PixArt-alpha",
    .class_name = "PixArtAlphaPipeline",
    .parts = {{"transformer", "", dpk_ldm_pixart}},
    .files = dpk_ldm_files_pixart,
};

const char *dpk_ldm_file(const struct dpk_ldm_family *family, const char *path) {
    for (const char *const(*f)[2] = family->files; (*f)[0]; f++)
        if (strcmp((*f)[0], path) == 0) return (*f)[1];
    return NULL;
}

/* ---- Recognition ----------------------------------------------------------------------------- */

static bool has_prefix(struct dpk_tensors *t, const char *prefix) {
    size_t low = 0, high = dpk_tensors_count(t);
    while (low < high) { /* the tensors are sorted */
        const size_t mid = low + (high - low) / 2;
        if (strcmp(dpk_tensors_get(t, mid)->name, prefix) < 0) low = mid + 1;
        else high = mid;
    }
    return low < dpk_tensors_count(t) &&
           strncmp(dpk_tensors_get(t, low)->name, prefix, strlen(prefix)) == 0;
}

/* Models that are known by their tensors and not supported, and files that are something else. */
static int refuse(struct dpk_tensors *t, const char *path, dpk_error *err) {
    static const struct {
        const char *prefix, *what;
    } known[] = {
        {"edm_", "a checkpoint for the EDM noise schedule (Playground v2.5, CosXL)"},
        {"cond_stage_model.model.", "a Stable Diffusion 2.x checkpoint"},
        {"conditioner.embedders.0.model.", "an SDXL refiner checkpoint"},
        {"model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 checkpoint"},
        {"model.diffusion_model.double_blocks.", "a Flux checkpoint"},
        {"lora_", "a LoRA (give it with --lora)"},
        {"unet.", "a LoRA (give it with --lora)"},
        {"text_model.", "a text encoder alone"},
        {"down_blocks.", "a UNet alone, in diffusers' names"},
        {"encoder.", "an autoencoder alone (give it with --vae)"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (has_prefix(t, known[i].prefix))
            return dpk_error_set(err, DPK_EUNSUPPORTED,
                                 "%s: %s, supported: checkpoints of Stable Diffusion 1.x, SDXL, "
                                 "SSD-1B, PixArt-alpha",
                                 path, known[i].what);
    return dpk_error_set(err, DPK_EUNSUPPORTED,
                         "%s: the names of its %zu tensors are those of no model that is known "
                         "(Stable Diffusion 1.x, SDXL, SSD-1B, PixArt-alpha), the first is %.100s",
                         path, dpk_tensors_count(t),
                         dpk_tensors_count(t) ? dpk_tensors_get(t, 0)->name : "none");
}

int dpk_ldm_recognise(struct dpk_tensors *t, const char *path, const struct dpk_ldm_family **family,
                      dpk_error *err) {
    *family = NULL;
    if (has_prefix(t, "edm_")) return refuse(t, path, err); /* otherwise just like SDXL */
    if (has_prefix(t, "x_embedder.proj.") && has_prefix(t, "t_block.1.")) {
        *family = &pixart;
    } else if (has_prefix(t, UNET_PREFIX "input_blocks.0.0.")) {
        if (has_prefix(t, "cond_stage_model.transformer.")) *family = &sd15;
        else if (has_prefix(t, "conditioner.embedders.0.transformer.") &&
                 has_prefix(t, UNET_PREFIX "label_emb."))
            *family = has_prefix(t, UNET_PREFIX "middle_block.1.") ? &sdxl : &ssd1b;
    }
    return *family ? DPK_OK : refuse(t, path, err);
}

/* ---- Components ------------------------------------------------------------------------------ */

static int count_vae_levels(struct dpk_tensors *t, const char *prefix) {
    int n = 0;
    char name[160];
    do snprintf(name, sizeof name, "%sdecoder.up.%d.", prefix, n++);
    while (n < 64 && has_prefix(t, name));
    return n - 1;
}

bool dpk_ldm_names(const struct dpk_ldm_family *family, struct dpk_tensors *checkpoint,
                   const char *component, struct dpk_names *names) {
    const size_t n = sizeof family->parts / sizeof *family->parts;
    for (size_t i = 0; i < n && family->parts[i].component; i++) {
        if (strcmp(component, family->parts[i].component) != 0) continue;
        *names = (struct dpk_names){.place = family->parts[i].place};
        snprintf(names->prefix, sizeof names->prefix, "%s", family->parts[i].prefix);
        if (names->place == dpk_ldm_vae)
            names->vae_levels = count_vae_levels(checkpoint, names->prefix);
        return has_prefix(checkpoint, names->prefix);
    }
    return false;
}

bool dpk_ldm_vae_names(struct dpk_tensors *checkpoint, struct dpk_names *names) {
    static const char *const prefixes[] = {"first_stage_model.", ""};
    for (int i = 0; i < 2; i++) {
        const int levels = count_vae_levels(checkpoint, prefixes[i]);
        if (levels == 0) continue;
        *names = (struct dpk_names){.place = dpk_ldm_vae, .vae_levels = levels};
        snprintf(names->prefix, sizeof names->prefix, "%s", prefixes[i]);
        return true;
    }
    return false;
}
