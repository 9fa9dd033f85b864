"""bench_peers_run.py ROW PEER MODELS THREADS REPEAT: one timed process of bench_peers.py. Prints a
line RESULT {...}.

cpu and wall are lists of seconds, one a call; load_s is reading, converting and compiling; first_at
is time.monotonic() when the first result was there. Imports are not part of load_s, but of what the
caller makes of first_at.
"""
import json
import os
import re
import sys
import time

import bench_peers_models as models


def report(**values):
    print("RESULT " + json.dumps(values), flush=True)


def time_calls(call, load_s, repeat, **more):
    cpu, wall, first_at = [], [], None
    for _ in range(repeat + 1):
        c, w = time.process_time(), time.monotonic()
        call()
        cpu.append(round(time.process_time() - c, 4))
        wall.append(round(time.monotonic() - w, 4))
        first_at = first_at or time.monotonic()
    report(load_s=round(load_s, 3), first_at=first_at, cpu=cpu, wall=wall, **more)


def run_torch(row, variant, where, threads, repeat):
    """diffusers' module, eager, bf16, channels last. The caller sets the allocator's tuning."""
    import torch
    from safetensors.torch import load_file
    r = models.ROWS[row]
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    begin = time.monotonic()
    module = models.empty_module(r["model"], r["part"])
    module.load_state_dict(load_file(models.weights_path(where, r["model"], r["part"])),
                           strict=False, assign=True)
    module = models.wrap(r["part"], module).to(torch.bfloat16, memory_format=torch.channels_last)
    inputs = [x.to(torch.bfloat16) if x.dim() else x for x in models.inputs(row)]
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    time_calls(lambda: module(*inputs), time.monotonic() - begin, repeat, version=torch.__version__)


def run_openvino(row, variant, where, threads, repeat):
    """Static shapes, one stream. int8 has bf16 for what is not quantized, as bf16 has for all."""
    import openvino as ov
    precision = "f32" if variant.startswith("f32") else "bf16"
    inputs = [x.numpy() for x in models.inputs(row)]
    begin = time.monotonic()
    core = ov.Core()
    model = core.read_model(models.openvino_path(where, row,
                                                 "int8" if variant == "int8" else "f16"))
    model.reshape({p: list(x.shape) for p, x in zip(model.inputs, inputs)})
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision})
    request = compiled.create_infer_request()
    time_calls(lambda: request.infer(inputs), time.monotonic() - begin, repeat,
               version=ov.__version__)


def run_sdcpp(row, variant, where, threads, repeat):
    """A picture of `repeat` + 1 steps, its two halves of guidance one after the other; for a decode
    row what comes after the steps, once. Times are those between its own reports."""
    import ctypes
    import stable_diffusion_cpp as sd
    r, marks, steps = models.ROWS[row], [], []
    size, decode = 8 * r["lat"], r["program"] == "decode"
    begin = time.monotonic()
    model = sd.StableDiffusion(model_path=os.path.join(where, r["model"]), n_threads=threads,
                               wtype="f16", vae_decode_only=True, verbose=True)
    load_s = time.monotonic() - begin

    def now():
        return time.process_time(), time.monotonic()

    @sd.sd_log_callback
    def log(level, text, data):
        marks.append((now(), text.decode("utf-8", "replace")))

    def spans(points):
        cpu = [round(b[0] - a[0], 4) for a, b in zip(points, points[1:])]
        return dict(cpu=cpu, wall=[round(b[1] - a[1], 4) for a, b in zip(points, points[1:])])

    def progress(step, n, seconds):
        steps.append(now())
        if step == repeat + 1 and not decode:
            report(load_s=round(load_s, 3), first_at=steps[1][1], **spans(steps))
            os._exit(0)
    sd.sd_set_log_callback(log, ctypes.c_void_p(0))
    model.generate_image(prompt="a cat", negative_prompt="a dog", width=size, height=size,
                         sample_steps=1 if decode else repeat + 1, cfg_scale=7.0,
                         sample_method="euler", seed=1, vae_tiling=False,
                         progress_callback=progress)

    def mark(pattern):
        return [at for at, text in marks if re.search(pattern, text)][-1]
    first, last = mark(r"decoding \d+ latents"), mark(r"decode_first_stage completed")
    report(load_s=round(load_s, 3), first_at=last[1], **spans([first, last]))


def main():
    row, peer, where, threads, repeat = sys.argv[1:6]
    name, variant = peer.split(":")
    run = {"torch": run_torch, "openvino": run_openvino, "sdcpp": run_sdcpp}[name]
    run(row, variant, where, int(threads), int(repeat))


if __name__ == "__main__":
    main()
