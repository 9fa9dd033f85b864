"""Do quantized files still paint what the prompt asks? (developer script; needs NumPy)

    make bench-quality        or: python tests/bench_quality.py [--n 64] [--build build]

Converts models/shapes-xl to float32 and bfloat16, quantizes every layer of the latter by each
scheme, paints the same N scenes with each file, and lets tests/judge read the pictures: the shares
of shapes, colours, sizes and places that are as asked, and PSNR against the bfloat16 pictures. Fails
if a file of 8 bits has a share more than two points below the bfloat16 file's.
"""
import argparse
import math
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    sys.exit("bench_quality needs NumPy: apt-get install python3-numpy, or make bench-quality PYTHON=...")

sys.path.insert(0, str(pathlib.Path(__file__).parent / "judge"))
from judge import judge, read_png
from shapes_data import COLOURS, POSITIONS, SHAPES, SIZES, caption_and_labels, random_scene

FILES = [("f32", None), ("bf16", None), ("int8-dynamic", "int8-dynamic"), ("int8-weight", "int8-weight"),
         ("int4-weight:32", "int4-weight:32")]


def scenes(n):
    """Prompts of one object each, with what a judge should find where the prompt says it."""
    rng = np.random.default_rng(1)
    out = []
    for i in range(n):
        text, (shape, colour, _, _, ground, size, place) = caption_and_labels(random_scene(rng, two=False), rng)
        say = lambda names, k: names[k - 1] if k else ""
        out.append({"file": f"{i:03d}.png", "prompt": text, "seed": i, "shape": say(SHAPES, shape),
                    "colour": say(COLOURS, colour), "background": say(COLOURS, ground), "size": say(SIZES, size),
                    "position": say(POSITIONS, place)})
    return out


def psnr(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 99.0 if error == 0 else 10 * math.log10(255 ** 2 / error)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--n", type=int, default=64)
    args.add_argument("--build", default="build")
    opt = args.parse_args()
    run = lambda program, *a: subprocess.run([f"{opt.build}/bin/{program}", *map(str, a)], check=True,
                                             stdout=subprocess.DEVNULL)
    items = scenes(opt.n)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        pictures = {}
        for name, scheme in FILES:
            model = tmp / f"{name}.dpk"
            if scheme:
                run("diffpak-quantize", tmp / "bf16.dpk", "-o", model, "--scheme", scheme, "--filter", "all")
            else:
                run("diffpak-convert", "models/shapes-xl", "-o", model, "--dtype", name, "-q")
            pictures[name] = {}
            for it in items:
                run("diffpak", "generate", model, "-p", it["prompt"], "--seed", it["seed"], "--steps", 20, "-q",
                    "-o", tmp / it["file"])
                pictures[name][it["file"]] = read_png(str(tmp / it["file"]))
        shares, worse = {}, []
        for name, _ in FILES:
            found = judge(items, lambda it: pictures[name][it["file"]])
            shares[name] = {k: v for k, (v, _) in found.items()}
            if name.startswith("int8"):
                worse += [f"{name}: {k} {100 * v:.1f} %, bf16 {100 * shares['bf16'][k]:.1f} %"
                          for k, v in shares[name].items() if v < shares["bf16"][k] - 0.02]
            close = [psnr(pictures[name][f], pictures["bf16"][f]) for f in pictures[name]]
            print(f"{name:15}", "  ".join(f"{k} {100 * v:.1f} %" for k, (v, _) in found.items()),
                  f"  PSNR to bf16: least {min(close):.1f}, median {np.median(close):.1f} dB")
    if worse:
        sys.exit("below bf16 by more than two points: " + "; ".join(worse))


main()
