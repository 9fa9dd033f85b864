"""How far PyTorch's own bfloat16 is from the float32 goldens, component by component (developer script).

    python tests/oracle_bf16.py > tests/data/torch_bf16.json

Needs torch, diffusers, transformers, safetensors. The figures are relative L2 norms; tests/test_parity.c holds
diffpak's bf16 files to them.
"""
import json
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection


class Error:
    """Relative L2 over all the cases of a component together."""

    def __init__(self):
        self.diff = self.want = 0.0

    def add(self, got, want):
        got, want = got.double(), want.double()
        self.diff += float((got - want).square().sum())
        self.want += float(want.square().sum())
        return self

    def value(self):
        return (self.diff / self.want) ** 0.5


def rel(got, want):
    return Error().add(got, want).value()


def denoise(folder, cases):
    net = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").to(torch.bfloat16).eval()
    error = Error()
    for sample, t, context, pooled, time_ids, want in cases:
        got = net(sample.bfloat16(), t, context.bfloat16(),
                  added_cond_kwargs={"text_embeds": pooled.bfloat16(), "time_ids": time_ids.bfloat16()}).sample
        error.add(got.float(), want)
    return error.value()


def text(folder, ids, ids_2, context, pooled):
    one = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").to(torch.bfloat16).eval()
    two = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2").to(torch.bfloat16).eval()
    a = one(ids.long(), output_hidden_states=True).hidden_states[-2]
    b = two(ids_2.long(), output_hidden_states=True)
    return {"context": rel(torch.cat([a, b.hidden_states[-2]], -1).float(), context),
            "pooled": rel(b.text_embeds.float(), pooled)}


@torch.no_grad()
def main():
    out = {}
    g = load_file("tests/data/golden/tiny-sdxl.safetensors")
    folder = "tests/data/tiny-sdxl"
    cases = [(g[f"net.{c}.sample"], t, g[f"net.{c}.context"], g[f"net.{c}.pooled"], g[f"net.{c}.time_ids"],
              g[f"net.{c}.out"][i]) for c in ("a", "b", "c", "odd") for i, t in enumerate(g[f"net.{c}.timesteps"])]
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").to(torch.bfloat16).eval()
    scale = vae.config.scaling_factor
    dec, mean = Error(), Error()
    for c in ("square", "wide"):
        latent = (g[f"vae.decode.{c}.latent"] / scale).bfloat16()
        dec.add(vae.decode(latent).sample.float(), g[f"vae.decode.{c}.image"])
    for c in ("square", "tall"):
        latent = vae.encode(g[f"vae.encode.{c}.image"].bfloat16()).latent_dist
        mean.add(latent.mean.float(), g[f"vae.encode.{c}.mean"])
    out["tiny-sdxl"] = {
        "denoise": denoise(folder, cases), "decode": dec.value(), "encode": mean.value(),
        **text(folder, g["text.ids"], g["text.ids_2"], g["text.embeds"], g["text.pooled"])}

    g = load_file("tests/data/shapes-xl-golden/main.safetensors")
    folder = "models/shapes-xl"
    cases = []
    for i in (0, 10, 19):
        for kind, c, p in (("cond", "prompt_embeds", "pooled_prompt_embeds"),
                           ("uncond", "negative_prompt_embeds", "negative_pooled_prompt_embeds")):
            cases.append((g[f"unet_in.{i}"], g["timesteps"][i], g[c], g[p], g["time_ids"], g[f"unet_out_{kind}.{i}"]))
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").to(torch.bfloat16).eval()
    dec = rel(vae.decode((g["latents_final"] / vae.config.scaling_factor).bfloat16()).sample.float(), g["decoded"])
    out["shapes-xl"] = {"denoise": denoise(folder, cases), "decode": dec,
                        **text(folder, g["input_ids"], g["input_ids_2"], g["prompt_embeds"], g["pooled_prompt_embeds"])}
    json.dump(out, sys.stdout, indent=1)
    print()


main()
