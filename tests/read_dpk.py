#!/usr/bin/env python3
"""A second reader of .dpk files, written from FORMAT.md alone: strict, slow, shares no code with C.

read_dpk.py FILE                    print header, metadata, tokenizers, programs and tensors as JSON
read_dpk.py FILE --verify           also check the sums of the tensors and the zeros between them
read_dpk.py FILE --unpack NAME      print tensor NAME as logical rows: one row of numbers a line
read_dpk.py --batch FILE            FILE holds many files, each after its size as u64: a line each

The operands of the operators are read from the tables of FORMAT.md. Exit status 0: the file is
valid, 1: it is not. Sums need the module xxhash or the library libxxhash; without them they are not
checked, and a line on stderr says so.
"""
import ctypes
import ctypes.util
import json
import math
import os
import re
import struct
import sys

NONE = 0xFFFFFFFF
SECTIONS = ["strings", "metadata", "tokenizers", "programs", "tensors", "weights"]
DTYPES = {1: "f32", 2: "bf16", 3: "f16", 4: "s8", 5: "s4", 6: "i32"}
BITS = {"f32": 32, "bf16": 16, "f16": 16, "s8": 8, "s4": 4, "i32": 32}
GROUP = {"f32": 1, "bf16": 2, "f16": 2, "s8": 4, "s4": 8}
VALUE_TYPES = {1: "ACT", 2: "F32", 3: "I32"}


class Refused(Exception):
    pass


def want(condition, *what):
    if not condition:
        raise Refused(" ".join(str(w) for w in what))


def find_xxh3():
    """A function from bytes to XXH3-64, or None."""
    try:
        import xxhash
        return lambda data: xxhash.xxh3_64_intdigest(bytes(data))
    except ImportError:
        pass
    try:
        library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
        function = library.XXH3_64bits
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return lambda data: function(bytes(data), len(data))


XXH3 = find_xxh3()


def want_sum(data, expected, what):
    if XXH3:
        got = XXH3(data)
        want(got == expected, f"{what}: sum {expected:016x}, bytes give {got:016x}")


def roundup(n, align):
    return -(-n // align) * align


def read_operators():
    """{opcode: (name, inputs, weights, attributes)} from the tables of FORMAT.md."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "FORMAT.md")
    with open(path, encoding="utf-8") as f:
        chapter = f.read().split("<!-- operators: begin")[1].split("<!-- operators: end")[0]
    operators = {}
    for part in re.split(r"^### ", chapter, flags=re.M)[1:]:
        number, name = part.split("\n", 1)[0].split()
        lists = {"in": [], "wt": [], "attr": []}
        row = r"^\| (in|wt|attr)\[\d+\] \| (\w+) \| ([\w, ]+) \|"
        for field, operand, rule in re.findall(row, part, re.M):
            kind, _, need = rule.partition(", ")
            lists[field].append((operand, kind, need == "required"))
        operators[int(number)] = (name, lists["in"], lists["wt"], lists["attr"])
    return operators


OPERATORS = read_operators()


# ---- What the operators say about attributes and shapes of weights ----

def positive(x):
    return math.isfinite(x) and x > 0


def rule_linear(a, w, given):
    want(len(w["w"]) == 2, "w has rank", len(w["w"]))
    want("b" not in w or w["b"] == w["w"][:1], "b is", w.get("b"))
    want(not a["glu"] or w["w"][0] % 2 == 0, "glu with an odd number of rows")
    want(a["gate_off"] >= 0 and ("gate" in given or a["gate_off"] == 0), "gate_off", a["gate_off"])


def rule_conv2d(a, w, given):
    want(len(w["w"]) == 4, "w has rank", len(w["w"]))
    want("b" not in w or w["b"] == w["w"][:1], "b is", w.get("b"))
    want(a["stride"] >= 1, "stride", a["stride"])
    for side, size in (("top", 1), ("bottom", 1), ("left", 2), ("right", 2)):
        want(0 <= a["pad_" + side] < w["w"][size], "pad_" + side, a["pad_" + side])
    want("like" not in given or a["upsample"], "like without upsample")


def rule_group_norm(a, w, given):
    want(w["gamma"] == w["beta"], "gamma", w["gamma"], "beta", w["beta"])
    want(positive(a["eps"]), "eps", a["eps"])
    want(a["groups"] >= 1 and w["gamma"][0] % a["groups"] == 0, "groups", a["groups"])


def rule_layer_norm(a, w, given):
    want("gamma" not in w or "beta" not in w or w["gamma"] == w["beta"], "gamma", w)
    want(positive(a["eps"]), "eps", a["eps"])
    want(not a["rms"] or "beta" not in w, "beta with rms")
    for name in ("shift_off", "scale_off"):
        want(a[name] >= 0 and ("mod" in given or a[name] == 0), name, a[name])


def rule_attention(a, w, given):
    want(a["heads"] >= 1 and a["head_dim"] >= 1, "heads", a["heads"])
    want(a["heads"] * a["head_dim"] < 2**31, "heads", a["heads"])
    want(min(a["q_off"], a["k_off"], a["v_off"]) >= 0, "offsets")
    want(math.isfinite(a["scale"]) and a["scale"] >= 0, "scale", a["scale"])


def rule_embedding(a, w, given):
    want(len(w["table"]) == 2, "table has rank", len(w["table"]))
    if "pos" in w:
        want(len(w["pos"]) == 2 and w["pos"][1] == w["table"][1], "pos", w["pos"])


def rule_eos_pool(a, w, given):
    want(a["eos_id"] >= -1, "eos_id", a["eos_id"])


def rule_sinusoid(a, w, given):
    want(a["dim"] >= 2 and a["dim"] % 2 == 0, "dim", a["dim"])
    want(0 <= a["freq_shift"] < a["dim"] // 2, "freq_shift", a["freq_shift"])
    want(positive(a["max_period"]), "max_period", a["max_period"])


def rule_slice(a, w, given):
    want(a["off"] >= 0 and a["count"] >= 0, "off", a["off"], "count", a["count"])
    want(math.isfinite(a["mul"]) and math.isfinite(a["add"]), "mul", a["mul"], "add", a["add"])
    want(a["lo"] <= a["hi"], "lo", a["lo"], "hi", a["hi"])


def rule_add(a, w, given):
    want(("c" in given) != ("table" in w), "exactly one of c and table")


def rule_pos_embed_2d(a, w, given):
    want(a["base"] >= 1 and positive(a["interpolation"]), "base", a["base"])


def rule_unpatchify(a, w, given):
    want(a["patch"] >= 1, "patch", a["patch"])


def rule_relative_bias(a, w, given):
    want(len(w["table"]) == 2 and w["table"][0] == a["buckets"], "table", w["table"])
    want(a["buckets"] >= 4 and a["buckets"] % 2 == 0, "buckets", a["buckets"])
    want(a["max_distance"] > a["buckets"] // 4, "max_distance", a["max_distance"])


RULES = {name[5:]: function for name, function in globals().items() if name.startswith("rule_")}


# ---- Tensors ----

def panel_size(dtype, layout, shape):
    """(panels, K', C') of a panel layout, or None if there is no such one."""
    if dtype not in GROUP or len(shape) not in (2, 4):
        return None
    if layout == 2 and (len(shape) != 2 or shape[0] % 2):
        return None
    channels = roundup(shape[-1], GROUP[dtype])
    taps = shape[1] * shape[2] if len(shape) == 4 else 1
    panels = -(-shape[0] // 16) if layout == 1 else -(-(shape[0] // 2) // 8)
    return panels, taps * channels, channels


def weight_bytes(dtype, layout, shape):
    if layout == 0:
        return None if dtype == "s4" else math.prod(shape) * BITS[dtype] // 8
    size = panel_size(dtype, layout, shape)
    return size and size[0] * 16 * size[1] * BITS[dtype] // 8


def element_index(dtype, layout, shape, n, tap, c):
    """Index of logical element [n, tap, c] in a tensor's bytes."""
    if layout == 0:
        return (n * (math.prod(shape[1:-1]) if len(shape) > 1 else 1) + tap) * shape[-1] + c
    g = GROUP[dtype]
    _, k_all, channels = panel_size(dtype, layout, shape)
    k = tap * channels + c
    if layout == 1:
        panel, slot = n // 16, n % 16
    else:
        half = shape[0] // 2
        f = n if n < half else n - half
        panel, slot = f // 8, f % 8 + (0 if n < half else 8)
    return ((panel * (k_all // g) + k // g) * 16 + slot) * g + k % g


def element(data, dtype, index):
    if dtype == "f32":
        return struct.unpack_from("<f", data, 4 * index)[0]
    if dtype == "i32":
        return struct.unpack_from("<i", data, 4 * index)[0]
    if dtype == "f16":
        return struct.unpack_from("<e", data, 2 * index)[0]
    if dtype == "bf16":
        return struct.unpack("<f", b"\0\0" + bytes(data[2 * index:2 * index + 2]))[0]
    if dtype == "s8":
        return struct.unpack_from("<b", data, index)[0]
    nibble = data[index // 2] >> 4 if index % 2 else data[index // 2] & 15
    return nibble - 16 if nibble > 7 else nibble


def unpack(data, tensor):
    """Logical rows [first dimension][the rest] of a tensor."""
    shape, dtype, layout = tensor["shape"], tensor["dtype"], tensor["layout"]
    if len(shape) == 1:
        return [[element(data, dtype, i)] for i in range(shape[0])]
    taps = math.prod(shape[1:-1])
    return [[element(data, dtype, element_index(dtype, layout, shape, n, tap, c))
             for tap in range(taps) for c in range(shape[-1])] for n in range(shape[0])]


# ---- The file ----

class File:
    def __init__(self, data):
        self.data = data
        self.read_frame()
        self.read_strings()
        self.read_metadata()
        self.read_tokenizers()
        self.read_tensors()
        self.read_programs()

    def zero(self, start, end, what):
        want(not any(self.data[start:end]), what, "is not zero")

    def read_frame(self):
        data = self.data
        want(len(data) >= 256, "only", len(data), "bytes")
        want(data[:8] == b"\x89DPK\r\n\x1a\n", "magic")
        version, n_sections, file_bytes, self.sum = struct.unpack_from("<IIQQ", data, 8)
        want(version == 1, "version", version)
        want(n_sections == 6, n_sections, "sections")
        want_sum(data[:24] + b"\0" * 8 + data[32:256], self.sum, "header")
        self.zero(32, 64, "reserved part of the header")
        want(file_bytes == len(data), "file_bytes", file_bytes, "of", len(data))
        self.section, end = {}, 256
        for i, name in enumerate(SECTIONS):
            ident, count, offset, size, total = struct.unpack_from("<IIQQQ", data, 64 + 32 * i)
            weights = name == "weights"
            want(ident == i + 1, "id", ident)
            want(offset == roundup(end, 4096 if weights else 64), name, "at", offset)
            want(weights or offset + size <= 2**30, name, "too large")
            want(offset + size <= len(data), name, "ends after the file")
            self.zero(end, offset, f"padding before {name}")
            if not weights:
                want_sum(data[offset:offset + size], total, name)
            self.section[name] = (count, offset, size, total)
            end = offset + size
        want(end == len(data), "sections end at", end)
        for name, record in (("metadata", 8), ("tensors", 128)):
            want(self.section[name][0] * record == self.section[name][2], name, "count")
        for name in ("tokenizers", "programs"):
            want(self.section[name][0] * 32 <= self.section[name][2], name, "count")
        want(self.section["weights"][0] == 0, "weights: count")

    def read_strings(self):
        count, offset, size, _ = self.section["strings"]
        data = bytes(self.data[offset:offset + size])
        want(size > 0 and data[0] == 0 and data[-1] == 0, "strings: first or last byte")
        want(b"\0\0" not in data, "strings: a second empty string")
        want(data.count(0) == count, "strings: count")
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"strings: {error}") from error
        self.strings, at = {}, 0
        for s in data[:-1].split(b"\0"):
            self.strings[at] = s.decode("utf-8")
            at += len(s) + 1

    def string(self, offset, what):
        want(offset in self.strings, what, "no string begins at", offset)
        return self.strings[offset]

    def name(self, offset, what):
        s = self.string(offset, what)
        want(1 <= len(s.encode()) <= 511, what, "name of", len(s), "characters")
        want(not any(ord(c) < 32 or ord(c) == 127 for c in s), what, "control character")
        return s

    def read_metadata(self):
        count, offset, _, _ = self.section["metadata"]
        self.metadata, last = {}, None
        for i in range(count):
            key, value = struct.unpack_from("<II", self.data, offset + 8 * i)
            key = self.name(key, "metadata key")
            want(last is None or key.encode() > last, "metadata:", key, "is out of order")
            last = key.encode()
            self.metadata[key] = self.string(value, "metadata value")

    def read_tokenizers(self):
        count, base, size, _ = self.section["tokenizers"]
        self.tokenizers, end = {}, 32 * count
        for i in range(count):
            name, kind, offset, n, zero = struct.unpack_from("<IIQQQ", self.data, base + 32 * i)
            name = self.name(name, "tokenizer")
            want(name not in self.tokenizers, "two tokenizers", name)
            want(kind in (1, 2), "tokenizer kind", kind)
            want(offset == roundup(end, 64), "tokenizer", name, "at", offset)
            want(n > 0 and offset + n <= size, "tokenizer", name, "size", n)
            want(zero == 0, "tokenizer", name, "reserved")
            self.zero(base + end, base + offset, "padding of tokenizers")
            self.tokenizers[name] = {"kind": kind, "offset": offset, "bytes": n}
            end = offset + n
        want(end == size, "tokenizers end at", end)

    def read_tensors(self):
        count, base, _, _ = self.section["tensors"]
        weights = self.section["weights"]
        self.tensors, names, end, sums = [], set(), 0, []
        for i in range(count):
            fields = struct.unpack_from("<5I4i3I3QI", self.data, base + 128 * i)
            name, source, dtype, layout, rank = fields[:5]
            dim, (scale, colsum, group) = fields[5:9], fields[9:12]
            offset, n, total, flags = fields[12:]
            name = self.name(name, "tensor")
            want(name not in names, "two tensors", name)
            names.add(name)
            source = self.string(source, name)
            want(dtype in DTYPES and layout <= 2, name, "type or layout")
            want(1 <= rank <= 4, name, "rank", rank)
            shape = list(dim[:rank])
            want(min(shape) >= 1 and math.prod(shape) < 2**40, name, "shape", dim)
            want(not any(dim[rank:]), name, "shape", dim)
            size = weight_bytes(DTYPES[dtype], layout, shape)
            want(size and n == size, name, "size", n, "want", size)
            want(offset == roundup(end, 64) and offset + n <= weights[2], name, "at", offset)
            want(flags < 8, name, "flags", flags)
            self.zero(base + 128 * i + 76, base + 128 * i + 128, f"reserved part of {name}")
            end = offset + n
            sums.append(struct.pack("<Q", total))
            self.tensors.append({
                "name": name, "source": source, "dtype": DTYPES[dtype], "layout": layout,
                "shape": shape, "scale": scale, "colsum": colsum, "group": group,
                "offset": offset, "bytes": n, "sum": total, "flags": flags})
        want(end == weights[2], "tensors end at", end)
        want_sum(b"".join(sums), weights[3], "weights")
        for t in self.tensors:
            self.check_quantization(t)

    def check_quantization(self, t):
        name, dtype, shape = t["name"], t["dtype"], t["shape"]
        if dtype in ("s8", "s4"):
            want(t["layout"] != 0, name, "raw", dtype)
        columns = []
        if dtype == "s4":
            group = t["group"]
            want(group and group % 8 == 0 and shape[-1] % group == 0, name, "group", group)
            columns = [math.prod(shape[1:]) // group]
        else:
            want(t["group"] == 0, name, "group", t["group"])
        for role, users, kind in (("scale", ("s8", "s4"), "f32"), ("colsum", ("s8",), "i32")):
            if dtype not in users:
                want(t[role] == NONE, name, role)
                continue
            want(t[role] < len(self.tensors), name, role, t[role])
            other = self.tensors[t[role]]
            want(other["dtype"] == kind and other["layout"] == 0, name, role, other["name"])
            want(other["shape"] == shape[:1] + columns, name, role, other["name"])
        want(not t["flags"] & 1 or (t["layout"] == 1 and len(shape) == 2), name, "CONV1X1")
        want(not t["flags"] & 2 or dtype == "s8", name, "DYNAMIC")
        want(not t["flags"] & 4 or t["flags"] & 2, name, "TORCHAO")

    def read_programs(self):
        count, base, size, _ = self.section["programs"]
        self.programs, end = {}, 32 * count
        for i in range(count):
            entry = struct.unpack_from("<IIIIQQ", self.data, base + 32 * i)
            name, n_in, n_ops, n_out, offset, n = entry
            name = self.name(name, "program")
            want(name not in self.programs, "two programs", name)
            want(n_in and n_ops, name, "inputs or operators")
            values_end = offset + 32 * (n_in + n_ops)
            ops_at = roundup(values_end, 64)
            want(offset == roundup(end, 64), name, "at", offset)
            want(n == ops_at - offset + 128 * n_ops and offset + n <= size, name, "size", n)
            self.zero(base + end, base + offset, "padding of programs")
            self.zero(base + values_end, base + ops_at, "padding of values")
            values = [self.read_value(name, base + offset + 32 * v, v < n_in)
                      for v in range(n_in + n_ops)]
            names = [v["name"] for v in values if v["name"]]
            want(len(set(names)) == len(names), name, "two values of one name")
            outputs = [v["name"] for v in values if v["output"]]
            want(len(outputs) == n_out and n_out > 0, name, "outputs", n_out)
            operators = [self.read_operator(values, base + ops_at + 128 * j, n_in + j)
                         for j in range(n_ops)]
            self.programs[name] = {"inputs": values[:n_in], "outputs": outputs,
                                   "operators": operators}
            end = offset + n
        want(end == size, "programs end at", end)

    def read_value(self, program, at, is_input):
        name, kind, rank, flags, *rest = struct.unpack_from("<IBBH4i2I", self.data, at)
        dim = rest[:4]
        want(kind in VALUE_TYPES and (is_input or kind != 3), program, "type of a value", kind)
        want(flags == 0 or (flags == 1 and not is_input), program, "flags of a value", flags)
        want(rest[4:] == [0, 0], program, "reserved part of a value")
        want(1 <= rank <= 4 if is_input else rank == 0, program, "rank of a value", rank)
        want(min(dim) >= 0 and not any(dim[rank:]), program, "dimensions of a value", dim)
        if is_input or flags:
            name = self.name(name, program)
        else:
            want(name == 0, program, "a name of a value that has none")
            name = ""
        return {"name": name, "type": VALUE_TYPES[kind], "shape": dim[:rank], "output": bool(flags)}

    def read_operator(self, values, at, own):
        opcode, name = struct.unpack_from("<II", self.data, at)
        operands = struct.unpack_from("<6I", self.data, at + 8)
        tensors = struct.unpack_from("<4I", self.data, at + 32)
        self.zero(at + 48, at + 64, "reserved part of an operator")
        want(opcode in OPERATORS, "opcode", opcode)
        kind, ins, wts, attrs = OPERATORS[opcode]
        layer = self.name(name, kind) if name else ""
        self.zero(at + 64 + 4 * len(attrs), at + 128, "unused attributes")
        a = {}
        for i, (attribute, rule, _) in enumerate(attrs):
            word = "<f" if rule == "float" else "<i"
            a[attribute], = struct.unpack_from(word, self.data, at + 64 + 4 * i)
            limit = {"bool": 1, "act": 4}.get(rule)
            want(limit is None or 0 <= a[attribute] <= limit, kind, attribute, a[attribute])
            want(a[attribute] == a[attribute], kind, attribute, "is NaN")
        given = {}
        for i, value in enumerate(operands):
            if value == NONE:
                want(i >= len(ins) or not ins[i][2], kind, "an input is missing")
                continue
            want(i < len(ins), kind, "has no input", i)
            want(value < own, kind, ins[i][0], "is value", value)
            fits = ("ACT", "F32") if ins[i][1] == "FLT" else (ins[i][1],)
            want(values[value]["type"] in fits, kind, ins[i][0], values[value]["type"])
            given[ins[i][0]] = value
        want(values[own]["type"] == "ACT" or kind == "slice", kind, "result", values[own]["type"])
        shapes = {}
        for i, index in enumerate(tensors):
            if index == NONE:
                want(i >= len(wts) or not wts[i][2], kind, "a weight is missing")
                continue
            want(i < len(wts) and index < len(self.tensors), kind, "weight", i, index)
            t, (operand, rule, _) = self.tensors[index], wts[i]
            panel = 2 if kind == "linear" and a["glu"] else 1
            fits = {"PANEL": t["layout"] == panel and t["dtype"] != "i32",
                    "RAW": t["layout"] == 0 and t["dtype"] in ("f32", "bf16", "f16"),
                    "VEC": t["layout"] == 0 and t["dtype"] == "f32" and len(t["shape"]) == 1}[rule]
            want(fits, kind, operand, "is", t["name"])
            shapes[operand] = t["shape"]
        if kind in RULES:
            RULES[kind](a, shapes, given)
        return {"operator": kind, "layer": layer, "inputs": given, "attributes": a,
                "weights": [i for i in tensors if i != NONE]}

    def tensor_bytes(self, t):
        start = self.section["weights"][1] + t["offset"]
        return self.data[start:start + t["bytes"]]

    def verify(self):
        start = end = self.section["weights"][1]
        for t in self.tensors:
            self.zero(end, start + t["offset"], f"padding before {t['name']}")
            want_sum(self.tensor_bytes(t), t["sum"], t["name"])
            end = start + t["offset"] + t["bytes"]

    def summary(self):
        return {"sum": f"{self.sum:016x}", "metadata": self.metadata, "tokenizers": self.tokenizers,
                "programs": self.programs, "tensors": self.tensors}


def batch(path):
    with open(path, "rb") as f:
        while size := f.read(8):
            try:
                File(f.read(*struct.unpack("<Q", size)))
                print("accepted")
            except Refused as error:
                print("refused:", str(error).replace("\n", " "))


def main(arguments):
    if not XXH3:
        print("read_dpk.py: no module xxhash, no libxxhash: sums are not checked", file=sys.stderr)
    if len(arguments) == 2 and arguments[0] == "--batch":
        batch(arguments[1])
        return 0
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with open(arguments[0], "rb") as f:
            file = File(f.read())
        if arguments[1:] == ["--verify"]:
            file.verify()
    except Refused as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    if arguments[1:2] == ["--unpack"]:
        t = next(t for t in file.tensors if t["name"] == arguments[2])
        for row in unpack(file.tensor_bytes(t), t):
            print(*(repr(x) for x in row))
    else:
        json.dump(file.summary(), sys.stdout, indent=1)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
