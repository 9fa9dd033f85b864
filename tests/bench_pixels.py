#!/usr/bin/env python3
"""bench_pixels.py MODEL.dpk [--build BUILD] [--out PREFIX] [--sizes A,B] [--threads N] [--repeat N]

Time of a step with guidance over the size of the picture, against the model's own count of
operations: attention grows with the square of the pixels, all else with the pixels. Writes
PREFIX.txt, PREFIX.csv and PREFIX.png. CPU seconds of all threads.
"""
import argparse
import csv
import json
import os
import subprocess
import sys


def measure(a, size):
    done = subprocess.run(
        [os.path.join(a.build, "bin", "diffpak"), "bench", a.model, "--program", "step", "--width",
         str(size), "--height", str(size), "--threads", str(a.threads), "--repeat", str(a.repeat),
         "--profile", "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    p = json.loads(done.stdout)["programs"][0]
    kinds = p["kinds"]
    work = {k["name"]: k["gflops"] * k["ms"] * 1e-6 for k in kinds}
    time = {k["name"]: k["ms"] for k in kinds}
    # An operator's share of the CPU time is its share of the operators' time.
    share = time.get("attention", 0) / sum(time.values())
    return dict(size=size, pixels=size * size, tflop=p["flops"] * 1e-12, cpu_s=p["cpu_ms"] / 1e3,
                attention_tflop=work.get("attention", 0),
                attention_s=share * p["cpu_ms"] / 1e3)


def report(a, rows):
    first = rows[0]
    rest = (first["cpu_s"] - first["attention_s"]) / first["pixels"]
    lines = ["%s: a step with guidance, CPU seconds; rest: all but attention, and its time per"
             " pixel against that at %d" % (os.path.basename(a.model), first["size"]),
             "%6s %9s %9s %9s %11s %12s %9s %9s" % (
                 "size", "TFLOP", "CPU s", "TFLOP/s", "attention s", "its TFLOP/s", "rest s",
                 "per pixel")]
    for r in rows:
        other = r["cpu_s"] - r["attention_s"]
        lines.append("%6d %9.2f %9.2f %9.3f %11.2f %12.3f %9.2f %9.2f" % (
            r["size"], r["tflop"], r["cpu_s"], r["tflop"] / r["cpu_s"], r["attention_s"],
            r["attention_tflop"] / max(r["attention_s"], 1e-9), other, other / r["pixels"] / rest))
    text = "\n".join(lines) + "\n"
    with open(a.out + ".txt", "w") as f:
        f.write(text)
    with open(a.out + ".csv", "w", newline="") as f:
        out = csv.DictWriter(f, list(first))
        out.writeheader()
        out.writerows(rows)
    print(text)


def plot(a, rows):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axis = plt.subplots(figsize=(7, 4.5))
    x = [r["pixels"] * 1e-6 for r in rows]
    axis.plot(x, [r["cpu_s"] for r in rows], "o-", color="#c0392b", label="step")
    axis.plot(x, [r["cpu_s"] - r["attention_s"] for r in rows], "o-", color="#2980b9",
              label="all but attention")
    axis.set_xlabel("megapixels")
    axis.set_ylabel("CPU seconds")
    right = axis.twinx()
    # Both scales begin at nothing and meet at the first size.
    scale = rows[0]["tflop"] / rows[0]["cpu_s"]
    right.plot(x, [r["tflop"] for r in rows], "--", color="#e6a49c", label="its TFLOP")
    right.plot(x, [r["tflop"] - r["attention_tflop"] for r in rows], "--", color="#9cc4e0",
               label="TFLOP but attention's")
    right.set_ylabel("TFLOP (scale: as at the first size)")
    top = max(max(r["cpu_s"] for r in rows), max(r["tflop"] for r in rows) / scale) * 1.05
    axis.set_ylim(0, top), right.set_ylim(0, top * scale)
    axis.legend(loc="upper left"), right.legend(loc="lower right")
    fig.tight_layout()
    fig.savefig(a.out + ".png", dpi=120)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--build", default="build"), p.add_argument("--out", default="pixels")
    p.add_argument("--sizes", default="512,768,1024,1280,1536,2048")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeat", type=int, default=2)
    a = p.parse_args()
    rows = []
    for size in a.sizes.split(","):
        rows.append(measure(a, int(size)))
        print("%s: %.2f CPU s" % (size, rows[-1]["cpu_s"]), flush=True)
    report(a, rows)
    try:
        plot(a, rows)
    except ImportError as e:
        print("no plot: %s" % e)


if __name__ == "__main__":
    main()
