#!/usr/bin/env python3
"""check_bench.py BENCH.json TRACE.json THREADS

The two outputs of one `diffpak bench --profile --json --chrome-trace` of a step on so many threads
(0: a device), twice, agree with themselves and with each other."""
import json
import sys

bench, trace = (json.load(open(p)) for p in sys.argv[1:3])
(program,) = bench["programs"]
operators = program["operators"]
names = [o["name"] for o in operators]
assert program["name"] == "step" and program["calls"] == len(operators)
assert program["first_ms"] >= program["ms"] > 0 and program["cpu_ms"] > 0 and bench["load_ms"] > 0

# Totals by operator and by kernel are sums over the layers.
for rows in (program["kinds"], program["kernels"]):
    assert sum(r["calls"] for r in rows) == len(operators)
    assert abs(sum(r["ms"] for r in rows) - sum(o["ms"] for o in operators)) < 1e-6
    assert rows == sorted(rows, key=lambda r: -r["ms"])
for kind in program["kinds"]:
    mine = [o for o in operators if o["name"] == kind["name"]]
    work = sum(o["gflops"] * o["ms"] for o in mine)
    assert kind["calls"] == len(mine) and kind["gbps"] > 0
    assert abs(work - kind["gflops"] * kind["ms"]) < 1e-6 * (1 + work)
    shares = [k.get("of_peak", 0) for k in program["kernels"]
              if k["name"].split()[0] == kind["name"]]
    assert min(shares) * 0.999 <= kind.get("of_peak", 0) <= max(shares) * 1.001

# A device knows the floor of every operator that moves anything.
if int(sys.argv[3]) == 0:
    assert all(o["of_peak"] > 0 for o in operators)

# Two runs; each holds its operators, in order, and these what the threads did.
events = trace["traceEvents"]
lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
threads = int(sys.argv[3])
assert lanes == {0: "programs, operators", **{i: "thread %d" % i for i in range(1, threads + 1)}}, lanes
spans = [e for e in events if e["ph"] == "X"]
slack = 0.01  # microseconds, for numbers that were printed


def inside(e, outer):
    end = outer["ts"] + outer["dur"]
    return outer["ts"] <= e["ts"] + slack and e["ts"] + e["dur"] <= end + slack


runs = [e for e in spans if e["tid"] == 0 and e["name"] == "step"]
assert len(runs) == 2
for run in runs:
    ops = [e for e in spans if e["tid"] == 0 and e is not run and inside(e, run)]
    ops.sort(key=lambda e: e["ts"])
    assert [e["name"] for e in ops] == names
    assert [e["args"]["layer"] for e in ops] == [o["layer"] for o in operators]
    assert all(a["ts"] + a["dur"] <= b["ts"] + slack for a, b in zip(ops, ops[1:]))
    shares = [e for e in spans if e["tid"] and inside(e, run)]
    assert (1 in {e["tid"] for e in shares}) == (threads > 0)
    for e in shares:
        assert any(o["name"] == e["name"] and inside(e, o) for o in ops), e
