/* `diffpak`: paint pictures with packed models, and look into them. */
#include "cli.h"

#include "../formats/fail.h"

#include <string.h>

static const char help[] =
    "diffpak: paint pictures with packed text-to-image models\n"
    "\n"
    "  diffpak generate MODEL.dpk -p PROMPT... -o OUT.png     (also --prompt, --output, --quiet: "
    "-q)\n"
    "      -n, --negative TEXT     what not to paint; \"\" is encoded, none is the model's rule\n"
    "      --steps N  --guidance G  --guidance-rescale R  --scheduler NAME\n"
    "      --seed S                one for the batch, or repeated: one for each picture\n"
    "      --width W  --height H   pixels\n"
    "      --batch N               pictures of each prompt: OUT_0.png, OUT_1.png, ...\n"
    "      --rng cpu|cuda          whose noise of PyTorch to draw\n"
    "      --latents IN.npy        noise to start from, [N,h,w,C] (or [N,C,h,w])\n"
    "      --init IN.png           picture to start from; --strength S (0.8): the part of the\n"
    "                              steps that are run; size: the picture's, or as given\n"
    "      --mask MASK.png         of the same size: white is repainted, black is kept\n"
    "      --no-binning            PixArt: paint this very size, not the nearest one it knows\n"
    "      --long-prompt truncate|chunks    more than 77 tokens (T5: 120): ignored, or encoded in\n"
    "                              chunks\n"
    "      --prompt-weights        (word) is 1.1 times as strong, [word] 1/1.1, (word:1.3) 1.3\n"
    "      --trace DIR             latents after each step, context and image as NPY\n"
    "      --threads N  --backend cpu|cuda  -q\n"
    "      --no-mmap               read the model into memory instead of mapping it\n"
    "      --memory-limit BYTES[K|M|G]      of activations; encoders' weights leave memory when "
    "used\n"
    "      --prompts FILE          instead of -p: a picture for each line, into the folder -o; a "
    "line\n"
    "                              is a prompt, or JSON: {\"prompt\": \"a cat\", \"seed\": 3, "
    "...}\n"
    "      --shard I/N             of --prompts, the I-th of N parts (a Slurm array: by itself)\n"
    "      Schedulers: euler euler-a ddim pndm dpm++2m dpm++2m-karras dpm++2m-sde unipc lcm\n"
    "      heun lms\n"
    "  diffpak inspect  MODEL.dpk [--tensors] [--program NAME] [--width W --height H --batch N]\n"
    "                   [--memory-limit BYTES[K|M|G]] [--backend cpu|cuda] [--json]\n"
    "      metadata, sizes, layers, operators, cost, planned memory, least memory\n"
    "  diffpak verify   MODEL.dpk|BUNDLE.tar.zst [-q]\n"
    "      every checksum and rule\n"
    "  diffpak run      MODEL.dpk text|denoise|decode|encode --in NAME=FILE.npy ...\n"
    "                   --out NAME=FILE.npy ... [--threads N] [--backend cpu|cuda]\n"
    "                   [--memory-limit BYTES[K|M|G]] [--no-mmap]\n"
    "      one component on given arrays (images and latents NHWC)\n"
    "  diffpak tokens   MODEL.dpk PROMPT [--json]\n"
    "      ids of each tokenizer, padded as the model takes them\n"
    "  diffpak schedule MODEL.dpk [--steps N] [--scheduler NAME] [--json]\n"
    "  diffpak noise    --seed S --shape N,C,H,W [--rng cpu|cuda] [--dtype f32|f16|bf16]\n"
    "                   -o FILE.npy\n"
    "  diffpak bench    MODEL.dpk [--program P] [--width W] [--height H] [--batch N]\n"
    "                   [--threads N] [--repeat N] [--profile] [--chrome-trace FILE] [--json]\n"
    "                   [--guidance G] [--backend cpu|cuda]\n"
    "  diffpak bundle   MODEL.dpk [FILE...] -o BUNDLE.tar.zst\n"
    "      a model with its licence, quality card, sample pictures\n"
    "  diffpak unbundle BUNDLE.tar.zst -o FOLDER\n"
    "\n"
    "diffpak --version, diffpak --help. Exit status: 0 good, 1 failed, 2 wrong usage. "
    "DPK_ISA=ref|avx2|avx512|avx512bf16|neon|\n"
    "neonbf16 forces an instruction set.\n";

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"generate", dpk_cli_generate}, {"inspect", dpk_cli_inspect},   {"verify", dpk_cli_verify},
    {"run", dpk_cli_run},           {"tokens", dpk_cli_tokens},     {"schedule", dpk_cli_schedule},
    {"noise", dpk_cli_noise},       {"bench", dpk_cli_bench},
#if DPK_HAS_archive
    {"bundle", dpk_cli_bundle},     {"unbundle", dpk_cli_unbundle},
#endif
};

static bool asks_for_help(const char *arg) { return !strcmp(arg, "--help") || !strcmp(arg, "-h"); }

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "diffpak: a command is missing: generate, inspect, verify, run, tokens, "
                        "schedule, noise, bench, bundle, unbundle (see diffpak --help)\n");
        return CLI_USAGE;
    }
    bool wants_help = asks_for_help(argv[1]) || (argc > 2 && asks_for_help(argv[2]));
    for (int i = 3; i < argc && strcmp(argv[i], "--"); i++)
        wants_help |= !strcmp(argv[i], "--help");
    if (wants_help || !strcmp(argv[1], "help")) {
        fputs(help, stdout);
        return dpk_cli_flush();
    }
    if (!strcmp(argv[1], "--version")) {
        printf("diffpak %s\n", dpk_version());
        return dpk_cli_flush();
    }
    for (size_t i = 0; i < CLI_N(commands); i++)
        if (!strcmp(argv[1], commands[i].name)) return commands[i].run(argc - 1, argv + 1);
    dpk_error err; /* makes one clean line of it */
    dpk_error_set(&err, DPK_EARG, "unknown command %s", argv[1]);
    fprintf(stderr, "diffpak: %s (see diffpak --help)\n", err.msg);
    return CLI_USAGE;
}
