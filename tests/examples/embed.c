/* Paints a picture as a PPM file on standard output: embed MODEL.dpk PROMPT [STOP-AFTER-STEPS].
 * cc embed.c $(pkg-config --cflags --libs diffpak) */
#include <diffpak/diffpak.h>
#include <stdio.h>
#include <stdlib.h>

static int progress(void *arg, const dpk_progress *p) {
    const uint32_t *stop = arg;
    fprintf(stderr, "%3.0f %% %s, step %u of %u\n", p->fraction * 100, p->stage, p->step,
            p->n_steps);
    return *stop && p->step >= *stop; /* not 0: cancel */
}

int main(int argc, char **argv) {
    dpk_error err;
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    dpk_images *pictures = NULL;
    uint32_t stop = argc > 3 ? (uint32_t)atoi(argv[3]) : 0;
    dpk_params params = dpk_params_default();
    params.prompts = (const char *const *)&argv[2];
    params.steps = 4;
    params.progress = progress;
    params.progress_arg = &stop;
    if (argc < 3) return 2;
    int rc = dpk_model_open(&model, argv[1], &err);
    if (!rc) rc = dpk_session_create(&session, model, NULL, &err);
    if (!rc) rc = dpk_generate(session, &params, &pictures, &err);
    if (rc) fprintf(stderr, "%s\n", err.msg);
    else {
        printf("P6 %u %u 255\n", pictures->width, pictures->height);
        fwrite(pictures->rgb, 3, (size_t)pictures->width * pictures->height, stdout);
    }
    dpk_images_free(pictures), dpk_session_free(session), dpk_model_free(model);
    return rc;
}
