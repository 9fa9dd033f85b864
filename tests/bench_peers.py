#!/usr/bin/env python3
"""diffpak beside other runtimes on this machine: the same networks at their real sizes, drawn
weights, the same number of threads.

  bench_peers.py --build BUILD --dir DIR [--rows A,B] [--peers A,B] [--threads N] [--rounds N]
                 [--repeat N] [--cpus LIST] [--again A,B] [--table]

Every run is a process of its own: what one leaves in memory is no advantage or burden for the next.
A round runs each peer once, so that the peers of a row are interleaved and share the machine's
better and worse minutes. What counts is CPU seconds, the least of all calls of all rounds.

Each result is a line of DIR/results.jsonl. A run that is there is not done again (--again: those
of these peers are forgotten first), so that one failure, or an interruption, loses nothing. From
the lines come DIR/table.txt, table.csv and plot.png; --table makes only those.

Rows: see bench_peers_models.ROWS. Peers: see PEERS below; "openvino" means all of its kinds.
What could not run is in the table with its reason.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench_peers_models as models
import bench_peers_table as table

STEPS = ("sd15-step", "sdxl-step", "pixart-step")
ALL = tuple(models.ROWS)
# Allocator of eager PyTorch: keep what was freed, in huge pages.
TUNED_MALLOC = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_THRESHOLD_": "100000000000",
                "THP_MEM_ALLOC_ENABLE": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# name: rows, environment. For diffpak the part after the colon is the file, and a level.
PEERS = {
    "diffpak:bf16": (ALL, {}),
    "diffpak:int8-fast": (STEPS, {}),
    "diffpak:int8-all": (STEPS, {}),
    "diffpak:int8-convs": (("sd15-step",), {}),
    "diffpak:bf16-avx2": (ALL, {"DPK_ISA": "avx2"}),
    "openvino:bf16": (ALL, {}),
    "openvino:int8": (ALL, {}),
    "openvino:f32": (ALL, {}),
    "openvino:f32-avx2": (ALL, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "torch:bf16": (ALL, TUNED_MALLOC),
    "sdcpp:f16": (("sd15-step", "sd15-decode"), {}),
}
SKIPPED = {  # rows that a peer does not have, and why
    ("sdcpp:f16", "sdxl-step"): "its Python package reads a diffusers folder of SDXL as SD 1.x",
    ("sdcpp:f16", "sdxl-decode"): "its Python package reads a diffusers folder of SDXL as SD 1.x",
    ("sdcpp:f16", "pixart-step"): "has no PixArt-alpha",
}
QUANTIZE = {  # options of diffpak-quantize
    "int8-fast": ("--filter", "diffusion-fast"),
    "int8-all": ("--filter", "all"),
    "int8-convs": ("--filter", "all", "--convs"),  # what nncf quantizes for OpenVINO
}


# ---- Results -------------------------------------------------------------------------------------

class Results:
    def __init__(self, path):
        self.path, self.lines = path, []
        if os.path.exists(path):
            with open(path) as f:
                self.lines = [json.loads(line) for line in f]

    def find(self, **want):
        return [x for x in self.lines if all(x.get(k) == v for k, v in want.items())]

    def add(self, line):
        self.lines.append(line)
        with open(self.path, "a") as f:
            f.write(json.dumps(line) + "\n")

    def forget(self, drop):
        self.lines = [x for x in self.lines if not drop(x)]
        with open(self.path + ".tmp", "w") as f:
            f.writelines(json.dumps(x) + "\n" for x in self.lines)
        os.replace(self.path + ".tmp", self.path)


# ---- Models --------------------------------------------------------------------------------------

def run_tool(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("%s: %s" % (os.path.basename(command[0]), last_line(done.stderr)))


def small_text(model, folder):
    """A copy of the configs in which a text encoder of billions of parameters has one layer: it is
    not timed, and its weights would fill the disk."""
    source, copy = os.path.join(models.CONFIGS, model), os.path.join(folder, model)
    shutil.copytree(source, copy)
    path = os.path.join(copy, "text_encoder", "config.json")
    with open(path) as f:
        config = json.load(f)
    if config.get("model_type") == "t5":
        config["num_layers"] = 1
    with open(path, "w") as f:
        json.dump(config, f)
    return copy


def diffpak_model(a, model, kind):
    path = os.path.join(a.dir, "%s-%s.dpk" % (model, kind))
    if os.path.exists(path):
        return path
    tool = os.path.join(a.build, "bin", "diffpak-")
    if kind in QUANTIZE:
        run_tool(tool + "quantize", diffpak_model(a, model, "bf16"), "-o", path, "-q", "--scheme",
                 "int8-dynamic", *QUANTIZE[kind])
        return path
    with tempfile.TemporaryDirectory() as folder:
        run_tool(tool + "convert", small_text(model, folder), "-o", path, "-q", "--random-weights",
                 "1")
    return path


def prepare(a, row, peer):
    """What a run reads must be there before: making it is not timed. In a process of its own."""
    name, kind = peer.split(":")
    if name == "diffpak":
        return diffpak_model(a, models.ROWS[row]["model"], kind.replace("-avx2", ""))
    if name == "openvino":
        code = "make_openvino_int8" if kind == "int8" else "make_openvino"
        run_tool(a.python, "-W", "ignore", "-c", "import sys; sys.path.insert(0, sys.argv[1]); "
                 "import bench_peers_models as m; m.%s(*sys.argv[2:])" % code, models.HERE,
                 a.models, row)
        return None
    r = models.ROWS[row]
    for part in [r["part"]] if name == "torch" else ["unet", "vae", "text_encoder"]:
        run_tool(a.python, "-W", "ignore", "-c", "import sys; sys.path.insert(0, sys.argv[1]); "
                 "import bench_peers_models as m; m.weights_path(*sys.argv[2:])", models.HERE,
                 a.models, r["model"], part)
    return None


# ---- One run -------------------------------------------------------------------------------------

def last_line(text):
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    return lines[-1][:300] if lines else "no message"


def watch_memory(process, peak):
    """Peaks in MB: resident, and of that what is no page of a file (sampled)."""
    path = "/proc/%d/status" % process.pid
    while process.poll() is None:
        try:
            with open(path) as f:
                kb = dict(x.split(":", 1) for x in f)
            peak["peak_mb"] = int(kb["VmHWM"].split()[0]) >> 10
            private = int(kb["RssAnon"].split()[0]) + int(kb["RssShmem"].split()[0]) >> 10
            peak["private_mb"] = max(peak.get("private_mb", 0), private)
        except (OSError, KeyError, ValueError):
            pass  # it ended
        time.sleep(0.05)


def command_of(a, row, peer, model):
    name, kind = peer.split(":")
    r = models.ROWS[row]
    if name != "diffpak":
        return [a.python, "-W", "ignore", os.path.join(models.HERE, "bench_peers_run.py"), row,
                peer, a.models, str(a.threads), str(a.repeat)]
    size = str(8 * r["lat"])
    return [os.path.join(a.build, "bin", "diffpak"), "bench", model, "--program", r["program"],
            "--width", size, "--height", size, "--threads", str(a.threads), "--repeat",
            str(a.repeat + 1), "--json"]


def result_of(peer, out, spawned):
    if peer.startswith("diffpak"):
        bench = json.loads(out)
        p = bench["programs"][0]
        return dict(cpu=[p["cpu_ms"] / 1e3], wall=[p["wall_ms"] / 1e3], flops=p["flops"],
                    load_s=bench["load_ms"] / 1e3, start_s=p["since_start_ms"] / 1e3,
                    version=bench["machine"])
    found = [x for x in out.splitlines() if x.startswith("RESULT ")]
    if not found:
        raise RuntimeError("no result")
    result = json.loads(found[-1][7:])
    result["start_s"] = result.pop("first_at") - spawned
    return result


def run(a, row, peer):
    model, peak = prepare(a, row, peer), {}
    env = dict(os.environ, OMP_NUM_THREADS=str(a.threads), MKL_NUM_THREADS=str(a.threads),
               **PEERS[peer][1])
    command = (["taskset", "-c", a.cpus] if a.cpus else []) + command_of(a, row, peer, model)
    spawned = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
        watcher = threading.Thread(target=watch_memory, args=(process, peak))
        watcher.start()
        try:
            status = process.wait(a.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError("over %d s" % a.timeout) from None
        finally:
            process.wait()
            watcher.join()
        out.seek(0), err.seek(0)
        if status:
            raise RuntimeError("exit status %d: %s" % (status, last_line(err.read())))
        return dict(result_of(peer, out.read(), spawned), **peak)


# ---- All runs ------------------------------------------------------------------------------------

def chosen(names, wanted):
    if not wanted:
        return list(names)
    wanted = wanted.split(",")
    for w in wanted:
        if not any(n == w or n.startswith(w + ":") for n in names):
            sys.exit("bench_peers: no %s; there are %s" % (w, ", ".join(names)))
    return [n for n in names if any(n == w or n.startswith(w + ":") for w in wanted)]


def run_case(a, results, row, peer, turn):
    case = dict(row=row, peer=peer, threads=a.threads)
    if row not in PEERS[peer][0]:
        why = SKIPPED.get((peer, row))
        if why and not results.find(**case):
            results.add(dict(case, error=why))
        return
    if any(not x.get("error") for x in results.find(round=turn, **case)):
        return
    if turn and results.find(round=turn - 1, **case)[-1:] == []:
        return  # it failed in the round before
    begin = time.time()
    try:
        got = run(a, row, peer)
    except (RuntimeError, OSError, ValueError, KeyError) as e:
        results.forget(lambda x: x.get("error") and all(x[k] == v for k, v in case.items()))
        results.add(dict(case, error=str(e)[:300]))
        print("%-12s %-18s %s" % (row, peer, e), flush=True)
        return
    results.forget(lambda x: x.get("error") and all(x[k] == v for k, v in case.items()))
    results.add(dict(case, round=turn, date=time.strftime("%F %T", time.gmtime()), **got))
    print("%-12s %-18s round %d: %8.3f CPU s, %5d MB (%.0f s)" % (
        row, peer, turn + 1, min(got["cpu"]), got.get("peak_mb", 0), time.time() - begin),
        flush=True)


def measure_peaks(a):
    """The most of all that was seen: other work slows a core down, nothing speeds it up."""
    path, best = os.path.join(a.dir, "peaks.json"), {}
    done = subprocess.run([os.path.join(a.build, "tests", "bench_peak"), "--json", "--threads",
                           str(a.threads)], capture_output=True, text=True, check=True)
    if os.path.exists(path):
        with open(path) as f:
            best = json.load(f)
    for level in json.loads(done.stdout):
        for kind in ("f32", "bf16", "int8"):
            if kind in level:
                key = "%s %s %d" % (level["isa"], kind, a.threads)
                best[key] = max(best.get(key, 0), level[kind])
    with open(path, "w") as f:
        json.dump(best, f, indent=1)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default="build")
    p.add_argument("--dir", help="models and results; default BUILD/peers")
    p.add_argument("--python", default=sys.executable, help="of the peers")
    p.add_argument("--rows"), p.add_argument("--peers"), p.add_argument("--again")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--cpus", help="pin every run to these, as taskset takes them")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--repeat", type=int, default=2, help="calls after the first, in each round")
    p.add_argument("--timeout", type=int, default=1800, help="seconds of one run")
    p.add_argument("--table", action="store_true")
    a = p.parse_args()
    a.dir = a.dir or os.path.join(a.build, "peers")
    a.models = os.path.join(a.dir, "models")
    os.makedirs(a.models, exist_ok=True)
    rows, peers = chosen(models.ROWS, a.rows), chosen(PEERS, a.peers)
    results = Results(os.path.join(a.dir, "results.jsonl"))
    if a.again:
        again = chosen(PEERS, a.again)
        results.forget(lambda x: x["row"] in rows and x["peer"] in again
                       and x["threads"] == a.threads)
    for row in [] if a.table else rows:
        for turn in range(a.rounds):
            measure_peaks(a)
            for peer in peers:
                run_case(a, results, row, peer, turn)
    table.write(a.dir, results.lines)


if __name__ == "__main__":
    main()
