"""Table, CSV and plot of what bench_peers.py measured."""
import csv
import json
import os
import platform

import bench_peers_models as models

# At most this much of the other's CPU time: row, ours, theirs (the best of them), share.
TARGETS = [
    ("sd15-decode", ["diffpak:bf16"], ["openvino:bf16", "torch:bf16", "sdcpp:f16"], 0.45),
    ("sd15-decode", ["diffpak:bf16"], ["openvino:int8"], 0.70),
    ("sdxl-decode", ["diffpak:bf16"], ["openvino:bf16", "torch:bf16"], 0.45),
    ("sdxl-decode", ["diffpak:bf16"], ["openvino:int8"], 0.70),
    ("sd15-step", ["diffpak:bf16"], ["openvino:bf16"], 0.70),
    ("sd15-step", ["diffpak:int8-all", "diffpak:int8-convs"], ["openvino:int8"], 0.80),
    ("sdxl-step", ["diffpak:bf16"], ["openvino:bf16"], 0.80),
    ("sdxl-step", ["diffpak:int8-fast"], ["openvino:bf16"], 0.65),
    ("sdxl-step", ["diffpak:int8-all"], ["openvino:bf16"], 0.58),
    ("pixart-step", ["diffpak:bf16"], ["openvino:bf16"], 0.90),
    ("pixart-step", ["diffpak:int8-fast", "diffpak:int8-all"], ["openvino:bf16"], 0.65),
] + [(row, ["diffpak:bf16-avx2"], ["openvino:f32-avx2"], 0.80) for row in models.ROWS]

# What a peer multiplies with, for its share of the peak.
UNITS = {"bf16": "bf16", "int8": "int8", "int8-fast": "int8", "int8-all": "int8",
         "int8-convs": "int8", "f32": "f32", "f16": "f32", "bf16-avx2": "f32", "f32-avx2": "f32"}


def load_peaks(folder):
    with open(os.path.join(folder, "peaks.json")) as f:
        return json.load(f)


def peak_of(peaks, peer, threads):
    """G operations a second of all threads, at the highest level that the peer may use."""
    kind = peer.split(":")[1]
    levels = ["avx2"] if kind.endswith("-avx2") else ["avx512bf16", "avx512", "avx2"]
    for level in levels:
        rate = peaks.get("%s %s %d" % (level, UNITS[kind], threads))
        if rate:
            return rate * threads
    return 0


def summary(lines, peaks):
    """One entry for each row, number of threads and peer: the best of its runs, or why there are
    none."""
    cases = {}
    for x in lines:
        cases.setdefault((x["row"], x["threads"], x["peer"]), []).append(x)
    entries = []
    for (row, threads, peer), runs in cases.items():
        good = [x for x in runs if "cpu" in x]
        entry = dict(row=row, threads=threads, peer=peer)
        entries.append(entry)
        if not good:
            entry["error"] = runs[-1]["error"]
            continue
        flops = [x["flops"] for x in lines if x["row"] == row and "flops" in x]
        entry.update(cpu_s=min(min(x["cpu"]) for x in good), runs=len(good),
                     wall_s=min(min(x["wall"]) for x in good),
                     version=good[-1].get("version", ""))
        for key, best in (("load_s", min), ("start_s", min), ("peak_mb", max),
                          ("private_mb", max)):
            entry[key] = best(x[key] for x in good if key in x)
        if flops:
            entry["gflops"] = flops[0] / entry["cpu_s"] * 1e-9
            peak = peak_of(peaks, peer, threads)
            # CPU seconds of all threads are held against one core's peak.
            entry["of_peak"] = entry["gflops"] / (peak / threads) if peak else 0
    order = {row: i for i, row in enumerate(models.ROWS)}
    entries.sort(key=lambda e: (e["threads"], order[e["row"]], e.get("cpu_s", 1e9), e["peer"]))
    return entries


def check_targets(entries):
    cpu = {(e["threads"], e["row"], e["peer"]): e["cpu_s"] for e in entries if "cpu_s" in e}
    found = []
    for threads in sorted({e["threads"] for e in entries}):
        for row, ours, theirs, share in TARGETS:
            mine = [(cpu[threads, row, p], p) for p in ours if (threads, row, p) in cpu]
            other = [(cpu[threads, row, p], p) for p in theirs if (threads, row, p) in cpu]
            if mine and other:
                found.append(dict(row=row, threads=threads, ours=min(mine)[1],
                                  theirs=min(other)[1], ratio=min(mine)[0] / min(other)[0],
                                  target=share))
    return found


def machine():
    with open("/proc/cpuinfo") as f:
        lines = [x.split(":", 1) for x in f if ":" in x]
    info = {k.strip(): v.strip() for k, v in reversed(lines)}
    return "%s, family %s model %s; Linux %s" % (info.get("model name", platform.machine()),
                                                info.get("cpu family", "?"),
                                                info.get("model", "?"), platform.release())


def write_text(path, entries, targets, peaks):
    out = ["CPU seconds of a call, the least of interleaved runs; work counted as direct "
           "convolution.", machine(),
           "peaks of a core, G/s: " + ", ".join("%s %.0f" % (k.rsplit(" ", 1)[0], v)
                                               for k, v in sorted(peaks.items())
                                               if k.endswith(" 1")),
           "memory: most resident (pages of mapped files included), and of that private.", ""]
    seen = None
    for e in entries:
        if (e["row"], e["threads"]) != seen:
            seen = e["row"], e["threads"]
            out += ["", "%s, %d thread%s" % (models.ROWS[e["row"]]["what"], e["threads"],
                                            "" if e["threads"] == 1 else "s"),
                    "  %-18s %9s %9s %8s %8s %8s %9s %9s %9s" % (
                        "", "CPU s", "clock s", "GFLOP/s", "of peak", "load s", "to 1st s",
                        "most MB", "private")]
        if "error" in e:
            out.append("  %-18s not run: %s" % (e["peer"], e["error"]))
            continue
        out.append("  %-18s %9.3f %9.3f %8.0f %8.2f %8.2f %9.2f %9d %9d" % (
            e["peer"], e["cpu_s"], e["wall_s"], e.get("gflops", 0), e.get("of_peak", 0),
            e["load_s"], e["start_s"], e["peak_mb"], e["private_mb"]))
    if targets:
        out += ["", "", "Ratios of CPU time, and what was aimed at"]
    for t in targets:
        out.append("  %-12s %-18s to %-18s %5.2f  (%.2f)%s%s" % (
            t["row"], t["ours"], t["theirs"], t["ratio"], t["target"],
            "" if t["threads"] == 1 else ", %d threads" % t["threads"],
            "" if t["ratio"] <= t["target"] else "  missed"))
    text = "\n".join(out) + "\n"
    with open(path, "w") as f:
        f.write(text)
    return text


COLUMNS = ("row", "threads", "peer", "cpu_s", "wall_s", "gflops", "of_peak", "load_s", "start_s",
           "peak_mb", "private_mb", "runs", "version", "error")


def write_csv(path, entries):
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, COLUMNS)
        out.writeheader()
        out.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in e.items()}
                      for e in entries)


def write_plot(path, entries):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    threads = min(e["threads"] for e in entries)
    entries = [e for e in entries if "cpu_s" in e and e["threads"] == threads]
    rows = [r for r in models.ROWS if any(e["row"] == r for e in entries)]
    fig, axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 4), squeeze=False)
    for axis, row in zip(axes[0], rows):
        mine = [e for e in entries if e["row"] == row][::-1]
        colors = ["#c0392b" if e["peer"].startswith("diffpak") else "#7f8c8d" for e in mine]
        bars = axis.barh([e["peer"] for e in mine], [e["cpu_s"] for e in mine], color=colors)
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axis.set_title(models.ROWS[row]["what"], fontsize=9)
        axis.margins(x=0.15)
        axis.set_xlabel("CPU seconds", fontsize=8)
        axis.tick_params(labelsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=120)


def write(folder, lines):
    peaks = load_peaks(folder)
    entries = summary(lines, peaks)
    targets = check_targets(entries)
    print(write_text(os.path.join(folder, "table.txt"), entries, targets, peaks))
    write_csv(os.path.join(folder, "table.csv"), entries)
    try:
        write_plot(os.path.join(folder, "plot.png"), entries)
    except ImportError as e:
        print("no plot: %s" % e)
