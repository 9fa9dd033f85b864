"""Prompts of several chunks and prompts with weights, computed with transformers and diffusers (developer script).

    python tests/oracle_prompts.py

Writes tests/data/prompts.safetensors, which tests/test_prompts.c compares with. A prompt is a list of (text, weight);
each text is tokenized alone, the tokens are cut into chunks of 75, each chunk is encoded between start and end tokens,
token vectors are multiplied by their weights, the chunk is scaled to its mean from before, chunks are joined along the
tokens. `<case>.context`, `.negative`, `.pooled`, `.latents` (last of the run).
"""
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

LONG = ("a large red circle on a blue background and a small yellow star at the top on the left and a green heart at the "
        "bottom on the right and a purple ring in the middle and a white cross under it and a cyan diamond over it and an "
        "orange triangle beside it and a pink square behind it and a black star in front of it, ") * 2 + "the end"
WEIGHTED = [("a ", 1.0), ("red", 1.5), (" circle on ", 1.0), ("blue", 1 / 1.1), (" (or) ", 1.0), ("sky", 1.1 ** 3)]


def rows(tokenizer, parts, chunks):
    """Ids and weights [chunks, 77]; as many chunks as needed if chunks is 0."""
    tokens, weights = [], []
    for text, weight in parts:
        ids = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
        tokens += ids
        weights += [weight] * len(ids)
    chunks = chunks or max(1, -(-len(tokens) // 75))
    ids, of = [], []
    for c in range(chunks):
        t, w = tokens[75 * c:75 * c + 75], weights[75 * c:75 * c + 75]
        pad = 75 - len(t)
        ids.append([tokenizer.bos_token_id] + t + [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * pad)
        of.append([1.0] + w + [1.0] * (1 + pad))
    return torch.tensor(ids), torch.tensor(of)


def weigh(context, weights):
    out = context * weights[:, :, None]
    return out * (context.mean((1, 2)) / out.mean((1, 2)))[:, None, None]


def encode(pipe, parts, chunks):
    """Context [1, 77 * chunks, D] and pooled vector or None."""
    if not hasattr(pipe, "text_encoder_2"):
        ids, weights = rows(pipe.tokenizer, parts, chunks)
        return weigh(pipe.text_encoder(ids)[0], weights).flatten(0, 1)[None], None
    ids, weights = rows(pipe.tokenizer, parts, chunks)
    ids_2, _ = rows(pipe.tokenizer_2, parts, chunks)
    one = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    two = pipe.text_encoder_2(ids_2, output_hidden_states=True)
    context = torch.cat([one, two.hidden_states[-2]], -1)
    return weigh(context, weights).flatten(0, 1)[None], two[0][:1]


def run(out, name, pipe, parts, negative, chunks, size, guidance):
    context, pooled = encode(pipe, parts, chunks)
    n = context.shape[1] // 77
    bad, bad_pooled = encode(pipe, negative, n)
    call = {"prompt_embeds": context, "negative_prompt_embeds": bad}
    if pooled is not None:
        call |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": bad_pooled}
        out[f"{name}.pooled"] = pooled
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(**call, num_inference_steps=4, guidance_scale=guidance, width=size, height=size, output_type="latent",
                   generator=torch.Generator("cpu").manual_seed(17)).images
    out |= {f"{name}.context": context, f"{name}.negative": bad, f"{name}.latents": latents}
    print(name, tuple(context.shape), float(latents.std()))


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    out = {}
    xl = StableDiffusionXLPipeline.from_pretrained("models/shapes-xl", torch_dtype=torch.float32)
    sd = StableDiffusionPipeline.from_pretrained("tests/data/tiny-sd15", variant="fp16", torch_dtype=torch.float32,
                                                 safety_checker=None, feature_extractor=None)
    run(out, "xl_long", xl, [(LONG, 1.0)], [("a red circle", 1.0)], 0, 64, 5.0)
    run(out, "xl_weighted", xl, WEIGHTED, [("ring", 1.2)], 1, 64, 5.0)
    run(out, "sd_weighted_long", sd, [(LONG, 1.0)] + WEIGHTED, [("", 1.0)], 0, 48, 7.5)
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, "tests/data/prompts.safetensors")


if __name__ == "__main__":
    main()
