"""Image to image and inpainting as diffusers does them (developer script).

    python tests/oracle_img2img.py

Writes tests/data/img2img.safetensors, which tests/test_img2img.c compares with. Needs torch, diffusers, transformers,
safetensors, pillow. Latents are NCHW float32; pictures and masks are bytes, NHWC. Per case: `<case>.latents`
[1 + steps, images, 4, h, w] (first what the sampler starts from), and `<case>.image` where there is one.
"""
import numpy as np
import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       HeunDiscreteScheduler, LCMScheduler, StableDiffusionImg2ImgPipeline,
                       StableDiffusionInpaintPipeline, StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline,
                       StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline, UniPCMultistepScheduler)
from PIL import Image
from safetensors.torch import save_file

OUT = "tests/data/img2img.safetensors"


def picture(width, height, seed):
    """Smooth shapes with some noise: nothing that an encoder could call empty."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [127 + 100 * np.sin(x / (7 + 3 * c) + c) * np.cos(y / (11 - 2 * c)) for c in range(3)]
    channels = np.stack(channels, -1) + rng.normal(0, 12, (height, width, 3))
    disc = (x - width * 0.6) ** 2 + (y - height * 0.4) ** 2 < (min(width, height) * 0.25) ** 2
    channels[disc] = [220, 40, 30]
    return Image.fromarray(np.clip(channels, 0, 255).astype(np.uint8))


def mask(width, height):
    """White where to repaint, with a soft edge, so that the threshold matters."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    distance = np.hypot(x - width * 0.55, y - height * 0.5)
    return Image.fromarray(np.clip((min(width, height) * 0.35 - distance) * 24 + 128, 0, 255).astype(np.uint8))


# name, model, scheduler, prompts, seeds, images, init size, paint size, strength, steps, guidance, mask
CASES = [
    ("xl", "xl", None, 1, [11], 1, (128, 128), (128, 128), 0.6, 10, 5.0, False),
    ("xl_resized", "xl", (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}), 1, [12], 2, (150, 100), (96, 128),
     0.5, 12, 5.0, False),
    ("xl_ancestral", "xl", (EulerAncestralDiscreteScheduler, {}), 2, [5, 6], 1, (128, 96), (128, 96), 0.75, 8, 4.0,
     False),
    ("xl_heun", "xl", (HeunDiscreteScheduler, {}), 1, [3], 1, (96, 96), (96, 96), 0.7, 10, 5.0, False),
    ("sd", "sd", None, 1, [21], 1, (64, 48), (64, 48), 0.55, 10, 7.5, False),
    ("sd_full", "sd", (DDIMScheduler, {}), 1, [22], 2, (48, 64), (48, 64), 1.0, 5, 7.5, False),
    ("sd_unipc", "sd", (UniPCMultistepScheduler, {}), 1, [23], 1, (64, 64), (64, 64), 0.8, 10, 1.0, False),
    ("mask_xl", "xl", None, 1, [31], 1, (128, 128), (128, 128), 0.7, 10, 5.0, True),
    ("mask_xl_full", "xl", (EulerAncestralDiscreteScheduler, {}), 1, [32, 33], 2, (100, 140), (96, 128), 1.0, 6, 5.0,
     True),
    ("mask_sd", "sd", (EulerAncestralDiscreteScheduler, {}), 1, [34], 2, (64, 64), (64, 64), 0.6, 10, 7.5, True),
    ("mask_sd_pndm", "sd", None, 1, [35], 1, (64, 64), (64, 64), 0.9, 10, 7.5, True),
    ("mask_sd_unipc", "sd", (UniPCMultistepScheduler, {}), 1, [36], 1, (64, 64), (64, 64), 0.7, 10, 7.5, True),
    ("mask_sd_heun", "sd", (HeunDiscreteScheduler, {}), 1, [37], 1, (64, 64), (64, 64), 0.7, 10, 7.5, True),
    ("mask_sd_lcm", "sd", (LCMScheduler, {}), 1, [38], 1, (64, 64), (64, 64), 0.8, 5, 7.5, True),
]
PROMPTS = ["a large red circle on a blue background", "a small yellow star on a black background"]


def pipelines():
    xl = StableDiffusionXLPipeline.from_pretrained("models/shapes-xl", torch_dtype=torch.float32)
    sd = StableDiffusionPipeline.from_pretrained("tests/data/tiny-sd15", variant="fp16", torch_dtype=torch.float32,
                                                 safety_checker=None, feature_extractor=None)
    return {"xl": (xl, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline),
            "sd": (sd, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)}


def run(pipes, case, out):
    name, model, scheduler, n_prompts, seeds, images, init_size, size, strength, steps, guidance, masked = case
    base, img2img, inpaint = pipes[model]
    pipe = (inpaint if masked else img2img).from_pipe(base)
    pipe.scheduler = base.scheduler if scheduler is None else scheduler[0].from_config(base.scheduler.config,
                                                                                      **scheduler[1])
    pipe.set_progress_bar_config(disable=True)
    init = picture(*init_size, seed=sum(seeds))
    generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    call = {"prompt": PROMPTS[:n_prompts], "image": init, "strength": strength, "num_inference_steps": steps,
            "guidance_scale": guidance, "num_images_per_prompt": images, "output_type": "np",
            "generator": generators if len(generators) > 1 else generators[0]}
    out[f"{name}.init"] = torch.from_numpy(np.array(init))
    if masked:
        call["mask_image"] = mask(*init_size)
        call["width"], call["height"] = size
        out[f"{name}.mask"] = torch.from_numpy(np.array(call["mask_image"]))
    else:
        call["image"] = init.resize(size, resample=Image.LANCZOS)
    latents = []
    prepare = pipe.prepare_latents

    def prepare_and_keep(*args, **kwargs):
        made = prepare(*args, **kwargs)
        latents.append((made[0] if isinstance(made, tuple) else made).clone())
        return made

    def keep(_pipe, _i, _t, values):
        latents.append(values["latents"].clone())
        return values

    pipe.prepare_latents = prepare_and_keep
    call["callback_on_step_end"] = keep
    image = pipe(**call).images
    if pipe.scheduler.order == 2:  # two calls a step but for the last: only what ends a step
        latents = latents[:1] + latents[2:-1:2] + latents[-1:]
    out[f"{name}.latents"] = torch.stack(latents)
    if name in ("xl_resized", "mask_sd"):
        out[f"{name}.image"] = torch.from_numpy(np.rint(image * 255).astype(np.uint8))
    print(name, tuple(out[f"{name}.latents"].shape))


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    out = {}
    # Resizing alone: smaller, larger, one direction, one pixel.
    for i, (a, b) in enumerate([((37, 53), (64, 24)), ((80, 61), (17, 200)), ((40, 30), (40, 7)), ((1, 9), (5, 9))]):
        image = picture(*a, seed=i)
        out[f"resize.{i}.in"] = torch.from_numpy(np.array(image))
        out[f"resize.{i}.out"] = torch.from_numpy(np.array(image.resize(b, resample=Image.LANCZOS)))
        grey = image.convert("L")
        out[f"resize.{i}.grey"] = torch.from_numpy(np.array(grey))
        out[f"resize.{i}.grey_out"] = torch.from_numpy(np.array(grey.resize(b, resample=Image.LANCZOS)))
    pipes = pipelines()
    for case in CASES:
        run(pipes, case, out)
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, OUT)


if __name__ == "__main__":
    main()
