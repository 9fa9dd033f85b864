"""Models for bench_peers.py: real architectures from tests/data/configs with drawn weights, as
safetensors files, as diffusers modules and as OpenVINO models; only what the timed rows need.

Weights are a block of noise that each tensor begins elsewhere, repeated: real sizes, nothing to
download, no two tensors alike (equal ones would be kept once), no value that a kernel would treat
apart. Large files are mapped, not read, so that making an OpenVINO model of 2.6 G parameters takes
a few GB of memory.
"""
import gc
import json
import os

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIGS = os.path.join(HERE, "data", "configs")

# What is timed. A step is the network with guidance: two rows. `lat` is the side of the latent.
ROWS = {
    "sd15-decode": dict(model="sd-v1-5", part="vae", program="decode", lat=64,
                        what="SD 1.5 VAE decode, 512x512"),
    "sd15-step": dict(model="sd-v1-5", part="unet", program="step", lat=64,
                      what="SD 1.5 step, 512x512, 2 rows"),
    "sdxl-decode": dict(model="sdxl-base-1.0", part="vae", program="decode", lat=128,
                        what="SDXL VAE decode, 1024x1024"),
    "sdxl-step": dict(model="sdxl-base-1.0", part="unet", program="step", lat=128,
                      what="SDXL step, 1024x1024, 2 rows"),
    "pixart-step": dict(model="pixart-xl-2-1024-ms", part="transformer", program="step", lat=128,
                        what="PixArt step, 1024x1024, 2 rows"),
}
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL",
           "transformer": "PixArtTransformer2DModel"}
MEMBERS = {"F32": (np.float32, 4), "BF16": (np.uint16, 2)}


def config(model, part):
    with open(os.path.join(CONFIGS, model, part, "config.json")) as f:
        return {k: v for k, v in json.load(f).items() if not k.startswith("_")}


def empty_module(model, part):
    """The module without memory for its weights (buffers have their values)."""
    from accelerate import init_empty_weights
    if part.startswith("text_encoder"):
        import transformers
        c = transformers.CLIPTextConfig.from_pretrained(os.path.join(CONFIGS, model, part))
        with init_empty_weights(include_buffers=False):
            return transformers.CLIPTextModel(c).eval()
    import diffusers
    with init_empty_weights(include_buffers=False):
        m = getattr(diffusers, CLASSES[part]).from_config(config(model, part))
    return m.eval()


def is_norm(name, module):
    owner = module.get_submodule(name.rpartition(".")[0])
    return "Norm" in type(owner).__name__


# ---- Weight files --------------------------------------------------------------------------------

def to_bf16(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def write_weights(path, model, part, dtype):
    """A safetensors file of drawn weights, written piece by piece; norms are one and zero. A text
    encoder's names are those of published files, which recent modules no longer have."""
    module = empty_module(model, part)
    tensors = {k: tuple(v.shape) for k, v in module.state_dict().items() if "position_ids" not in k}
    kind, size = MEMBERS[dtype]
    header, at = {}, 0
    for name, shape in tensors.items():
        n = int(np.prod(shape)) * size
        bare = part == "text_encoder" and not name.startswith("text_model.")
        header["text_model." * bare + name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    random = np.random.default_rng(1)
    block = random.standard_normal((1 << 20) + 77, np.float32) * np.float32(0.02)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors.items():
            n, at = int(np.prod(shape)), int(random.integers(block.size))
            same = None
            if is_norm(name, module):
                same = np.float32(1.0 if name.endswith("weight") else 0.0)
            while n > 0:
                piece = block[at:at + n]
                if same is not None:
                    piece = np.full(piece.size, same, np.float32)
                (to_bf16(piece) if dtype == "BF16" else piece).tofile(f)
                n, at = n - piece.size, 0
    os.replace(path + ".tmp", path)


def weights_path(models, model, part):
    """bf16 weights in the place where diffusers keeps them; made if need be."""
    name = "model" if part.startswith("text") else "diffusion_pytorch_model"
    path = os.path.join(models, model, part, name + ".safetensors")
    if not os.path.exists(path):
        write_weights(path, model, part, "BF16")
    return path


def map_weights(path, module):
    """Give a module without memory the mapped bytes of an F32 file."""
    import torch
    with open(path, "rb") as f:
        n = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(n))
    whole = np.memmap(path, np.uint8, "c", 8 + n)
    state = {}
    for name, h in header.items():
        a, b = h["data_offsets"]
        state[name] = torch.from_numpy(whole[a:b].view(np.float32).reshape(h["shape"]))
    module.load_state_dict(state, assign=True, strict=False)


# ---- Modules that take plain tensors -------------------------------------------------------------

def wrap(part, module):
    import torch

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = module

    class UNet(Step):
        def forward(self, x, t, context, pooled=None, ids=None):
            extra = {}
            if pooled is not None:
                extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
            return self.m(x, t, context, return_dict=False, **extra)[0]

    class Transformer(Step):
        def forward(self, x, t, context, mask, resolution, aspect):
            extra = {"resolution": resolution, "aspect_ratio": aspect}
            return self.m(x, encoder_hidden_states=context, timestep=t, added_cond_kwargs=extra,
                          encoder_attention_mask=mask, return_dict=False)[0]

    class Decoder(Step):
        def forward(self, z):
            return self.m.decode(z, return_dict=False)[0]

    if part == "vae":
        module.encoder = module.quant_conv = None
    return {"unet": UNet, "transformer": Transformer, "vae": Decoder}[part]().eval()


def inputs(row, lat=None):
    """float32 tensors for one call, the latent first."""
    import torch
    r = ROWS[row]
    c, n, g = config(r["model"], r["part"]), lat or r["lat"], torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.empty(*shape).normal_(0, 1, generator=g)
    if r["part"] == "vae":
        return [draw(1, c["latent_channels"], n, n)]
    x = [draw(2, 4, n, n)]
    if r["part"] == "transformer":
        return x + [torch.full((2,), 500.0), draw(2, 120, c["caption_channels"]),
                    torch.ones(2, 120), torch.full((2, 2), 8.0 * n), torch.ones(2, 1)]
    x += [torch.tensor(500.0), draw(2, 77, c["cross_attention_dim"])]
    if c.get("addition_embed_type") == "text_time":
        x += [draw(2, 1280), torch.tensor([[8.0 * n, 8 * n, 0, 0, 8 * n, 8 * n]] * 2)]
    return x


# ---- OpenVINO ------------------------------------------------------------------------------------

def openvino_path(models, row, kind):
    r = ROWS[row]
    return os.path.join(models, "openvino", "%s-%s-%s.xml" % (r["model"], r["part"], kind))


def trace_side(row):
    """Latent side to trace at: small, but the real one where Python computes the positions."""
    return None if ROWS[row]["part"] == "transformer" else 16


def make_openvino(models, row):
    """The model with f16 weights and free sizes; quantized ones are made from it."""
    import openvino as ov
    import torch
    path, r = openvino_path(models, row, "f16"), ROWS[row]
    if os.path.exists(path):
        return path
    torch.set_grad_enabled(False)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    f32 = path[:-4] + ".f32.safetensors"
    write_weights(f32, r["model"], r["part"], "F32")
    module = empty_module(r["model"], r["part"])
    map_weights(f32, module)
    small = inputs(row, trace_side(row))
    traced = torch.jit.trace(wrap(r["part"], module), tuple(small), check_trace=False,
                             strict=False)
    made = ov.convert_model(traced, example_input=tuple(small))
    made.reshape({p: list(x.shape) for p, x in zip(made.inputs, small)})
    tmp = path[:-4] + ".tmp.xml"
    ov.save_model(made, tmp, compress_to_fp16=True)
    del made, module, traced
    gc.collect()
    os.unlink(f32)
    os.replace(tmp[:-4] + ".bin", path[:-4] + ".bin")
    os.replace(tmp, path)
    return path


def make_openvino_int8(models, row):
    """8-bit weights and activations of convolutions and linears by nncf, scales from one drawn
    input: quality is not looked at, only speed."""
    import nncf
    import openvino as ov
    path = openvino_path(models, row, "int8")
    if os.path.exists(path):
        return path
    base = ov.Core().read_model(make_openvino(models, row))
    sample = {i: x.float().numpy() for i, x in enumerate(inputs(row, trace_side(row)))}
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1))
    made = nncf.quantize(
        base, nncf.Dataset([sample]), subset_size=1, preset=nncf.QuantizationPreset.MIXED,
        model_type=None if ROWS[row]["part"] == "vae" else nncf.ModelType.TRANSFORMER,
        advanced_parameters=advanced)
    tmp = path[:-4] + ".tmp.xml"
    ov.save_model(made, tmp)
    os.replace(tmp[:-4] + ".bin", path[:-4] + ".bin")
    os.replace(tmp, path)
    return path
