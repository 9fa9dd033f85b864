#!/usr/bin/env python3
"""A second reader of .dpk files, written from FORMAT.md alone: strict, slow, shares no code with C.

read_dpk.py FILE                    print header, metadata, tokenizers, programs and tensors as JSON
read_dpk.py FILE --verify           also check the sums of the tensors and the zeros between them
read_dpk.py FILE --unpack NAME      print tensor NAME as logical rows: one row of numbers a line
read_dpk.py --batch FILE [--verify] FILE holds many files, each after its size as u64: a line each,
                                    "accepted" or "refused RULE: what", RULE a name as tensor.offset

The operands of the operators are read from the tables of FORMAT.md. Exit status 0: the file is
valid, 1: it is not. Sums need the module xxhash or the library libxxhash; without them they are not
checked, and a line on stderr says so.
"""
import ctypes
import ctypes.util
import itertools
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
    """A broken rule, named by the structure and the field of FORMAT.md's tables: tensor.offset."""

    def __init__(self, rule, text):
        super().__init__(f"{rule}: {text}")
        self.rule, self.text = rule, text


def want(condition, rule, *what):
    if not condition:
        raise Refused(rule, " ".join(str(w) for w in what))


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


def want_sum(data, expected, rule, what):
    if XXH3:
        got = XXH3(data)
        want(got == expected, rule, f"{what}: sum {expected:016x}, bytes give {got:016x}")


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
    want(len(w["w"]) == 2, "w", "rank", len(w["w"]))
    want("b" not in w or w["b"] == w["w"][:1], "b", "is", w.get("b"))
    want(not a["glu"] or w["w"][0] % 2 == 0, "glu", "with an odd number of rows")
    want(a["gate_off"] >= 0 and ("gate" in given or a["gate_off"] == 0), "gate_off", a["gate_off"])


def rule_conv2d(a, w, given):
    want(len(w["w"]) == 4, "w", "rank", len(w["w"]))
    want("b" not in w or w["b"] == w["w"][:1], "b", "is", w.get("b"))
    want(a["stride"] >= 1, "stride", a["stride"])
    for side, size in (("top", 1), ("bottom", 1), ("left", 2), ("right", 2)):
        want(0 <= a["pad_" + side] < w["w"][size], "pad_" + side, a["pad_" + side])
    want("like" not in given or a["upsample"], "like", "without upsample")


def rule_group_norm(a, w, given):
    want(w["gamma"] == w["beta"], "beta", w["beta"], "gamma", w["gamma"])
    want(positive(a["eps"]), "eps", a["eps"])
    want(a["groups"] >= 1 and w["gamma"][0] % a["groups"] == 0, "groups", a["groups"])


def rule_layer_norm(a, w, given):
    want("gamma" not in w or "beta" not in w or w["gamma"] == w["beta"], "beta", w)
    want(positive(a["eps"]), "eps", a["eps"])
    want(not a["rms"] or "beta" not in w, "beta", "with rms")
    for name in ("shift_off", "scale_off"):
        want(a[name] >= 0 and ("mod" in given or a[name] == 0), name, a[name])


def rule_attention(a, w, given):
    want(a["heads"] >= 1, "heads", a["heads"])
    want(a["head_dim"] >= 1, "head_dim", a["head_dim"])
    for name in ("q_off", "k_off", "v_off"):
        want(a[name] >= 0, name, a[name])
    want(a["heads"] * a["head_dim"] < 2**31, "heads", a["heads"])
    want(math.isfinite(a["scale"]) and a["scale"] >= 0, "scale", a["scale"])


def rule_embedding(a, w, given):
    want(len(w["table"]) == 2, "table", "rank", len(w["table"]))
    if "pos" in w:
        want(len(w["pos"]) == 2 and w["pos"][1] == w["table"][1], "pos", w["pos"])


def rule_eos_pool(a, w, given):
    want(a["eos_id"] >= -1, "eos_id", a["eos_id"])


def rule_sinusoid(a, w, given):
    want(a["dim"] >= 2 and a["dim"] % 2 == 0, "dim", a["dim"])
    want(0 <= a["freq_shift"] < a["dim"] // 2, "freq_shift", a["freq_shift"])
    want(positive(a["max_period"]), "max_period", a["max_period"])


def rule_slice(a, w, given):
    want(a["off"] >= 0, "off", a["off"])
    want(a["count"] >= 0, "count", a["count"])
    want(math.isfinite(a["mul"]) and math.isfinite(a["add"]), "mul", a["mul"], "add", a["add"])
    want(a["lo"] <= a["hi"], "lo", a["lo"], "hi", a["hi"])


def rule_add(a, w, given):
    want(("c" in given) != ("table" in w), "c", "exactly one of c and table")


def rule_pos_embed_2d(a, w, given):
    want(a["base"] >= 1, "base", a["base"])
    want(positive(a["interpolation"]), "interpolation", a["interpolation"])


def rule_unpatchify(a, w, given):
    want(a["patch"] >= 1, "patch", a["patch"])


def rule_relative_bias(a, w, given):
    want(len(w["table"]) == 2, "table", w["table"])
    want(a["buckets"] >= 4 and a["buckets"] % 2 == 0, "buckets", a["buckets"])
    want(w["table"][0] == a["buckets"], "buckets", a["buckets"], "table", w["table"])
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


# ---- Tokenizer blobs ----

MAX_ID, MAX_CODE = 2**24 - 1, 0x10ffff


def split_words(records, texts):
    ends = list(itertools.accumulate(first >> 24 for first, _ in records))
    return [texts[a:b] for a, b in zip([0] + ends, ends)]


def read_words(records, texts, at, rule):
    """The contents of special tokens or pieces, which begin at texts[at]; where they end."""
    last = None
    for first, _ in records:
        n = first >> 24
        word = texts[at:at + n]
        want(len(word) == n, rule, "ends outside the texts")
        want(n > 0, rule, "an empty one")
        try:
            word.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(rule, str(error)) from error
        want(last is None or word > last, rule, "out of order")
        last, at = word, at + n
    return at


def check_unicode(runs, lower, steps, compositions):
    last = -1
    for start, flags, cluster, _, zero in runs:
        want((last >= 0 or start == 0) and last < start <= MAX_CODE, "runs.start", start)
        want(flags < 128, "runs.flags", flags)
        want(cluster <= 13, "runs.cluster", cluster)
        want(zero == 0, "runs.zero", zero)
        last = start
    last = -1
    for pair in lower:
        want(last < pair[0], "lower.code", pair[0])
        want(all(c <= MAX_CODE and not 0xd800 <= c <= 0xdfff for c in pair), "lower.code", pair)
        last = pair[0]
    first_of, last = {code & ~2**31: first for code, first, _ in steps}, 0
    for code, first, second in steps:
        plain = code & ~2**31
        want(last < plain <= MAX_CODE, "decompositions.code", plain)
        want(0 < first <= MAX_CODE, "decompositions.first", first)
        want(second <= MAX_CODE and second not in first_of, "decompositions.second", second)
        want(second or code == plain, "decompositions.second", "composes and has none")
        n, at = 1, first
        while at in first_of and n <= 4:
            n, at = n + 1, first_of[at]
        want(n <= 4, "decompositions.first", "a chain of more than 4")
        last = plain
    last = (0, 0)
    for number in compositions:
        want(number < len(steps) and steps[number][0] >> 31, "compositions", number)
        want(last < steps[number][1:], "compositions", "out of order")
        last = steps[number][1:]


def check_charsmap(data):
    n = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    want(n >= 4 and n % 4 == 0 and 4 + n < len(data), "charsmap.trie", n, "of", len(data))
    try:
        data[4 + n:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("charsmap.strings", str(error)) from error
    want(data[-1] == 0, "charsmap.strings", "no NUL at the end")


def check_header(h, kind):
    magic, version, own_kind, flags, max_length, start, end, pad, unknown = h[:9]
    n_runs, n_entries, charsmap_bytes = h[9], h[13], h[15]
    want(magic == 0x4b4f5444, "blob.magic", magic)
    want(version == 1, "blob.version", version)
    want(own_kind == kind, "blob.kind", own_kind)
    want(flags <= 1, "blob.flags", flags)
    want(2 <= max_length <= 65536, "blob.max_length", max_length)
    want(start <= MAX_ID or start == NONE, "blob.start_id", start)
    want(end <= MAX_ID, "blob.end_id", end)
    want(pad <= MAX_ID, "blob.pad_id", pad)
    want(unknown == NONE if kind == 1 else unknown <= MAX_ID, "blob.unknown_id", unknown)
    want(kind == 1 or n_entries, "blob.n_entries", n_entries)
    want((charsmap_bytes == 0) == (kind == 1), "blob.charsmap_bytes", charsmap_bytes)
    return n_runs


def read_blob(data, kind):
    want(len(data) >= 64, "blob.bytes", len(data))
    h, at = struct.unpack_from("<16I", data), 64
    n_runs = check_header(h, kind)
    n_lower, n_steps, n_specials, n_entries, text_bytes, charsmap_bytes = h[10:16]

    def take(n, record):
        nonlocal at
        size = n * struct.calcsize(record)
        want(at + roundup(size, 4) <= len(data), "blob.sections", n, "records at", at)
        want(not any(data[at + size:at + roundup(size, 4)]), "blob.padding", at)
        part, at = data[at:at + size], at + roundup(size, 4)
        return part if record == "<B" else list(struct.iter_unpack(record, part))

    runs, lower, steps = take(n_runs, "<I4B"), take(n_lower, "<II"), take(n_steps, "<III")
    compositions = [n for n, in take(sum(code >> 31 for code, _, _ in steps), "<I")]
    want(n_runs, "blob.n_runs", n_runs)
    check_unicode(runs, lower, steps, compositions)
    specials = take(n_specials, "<II")
    byte_ids = take(512, "<I") if kind == 1 else []
    entries = take(n_entries, "<III" if kind == 1 else "<If")
    texts, charsmap = take(text_bytes, "<B"), take(charsmap_bytes, "<B")
    want(at == len(data), "blob.sections", "end at", at, "of", len(data))
    plain = [s for s in specials if not s[1] & 8]
    want(plain == specials[:len(plain)] and all(f < 16 for _, f in specials), "specials.flags")
    used = read_words(plain, texts, 0, "specials.content")
    used = read_words(specials[len(plain):], texts, used, "specials.content")
    words = split_words(specials, texts)
    want(len(set(words)) == len(words), "specials.content", "one comes twice")
    if kind == 1:
        want(all(i <= MAX_ID for i, in byte_ids), "byte_ids")
        want(all(m[2] <= MAX_ID for m in entries), "merges.result")
        want(len({m[:2] for m in entries}) == n_entries, "merges.pair")
    else:
        used = read_words(entries, texts, used, "pieces.content")
        want(all(math.isfinite(score) for _, score in entries), "pieces.score")
        check_charsmap(charsmap)
    want(used == text_bytes, "blob.text_bytes", used, "of", text_bytes)


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
        self.read_blobs()

    def zero(self, start, end, rule, what):
        want(not any(self.data[start:end]), rule, what, "is not zero")

    def read_frame(self):
        data = self.data
        want(len(data) >= 256, "header.bytes", "only", len(data), "bytes")
        want(data[:8] == b"\x89DPK\r\n\x1a\n", "header.magic", data[:8])
        version, n_sections, file_bytes, self.sum = struct.unpack_from("<IIQQ", data, 8)
        want(version == 1, "header.version", version)
        want(n_sections == 6, "header.n_sections", n_sections)
        want_sum(data[:24] + b"\0" * 8 + data[32:256], self.sum, "header.hash", "header")
        self.zero(32, 64, "header.zero", "reserved part of the header")
        want(file_bytes == len(data), "header.file_bytes", file_bytes, "of", len(data))
        self.section, end = {}, 256
        for i, name in enumerate(SECTIONS):
            ident, count, offset, size, total = struct.unpack_from("<IIQQQ", data, 64 + 32 * i)
            weights = name == "weights"
            want(ident == i + 1, "section.id", ident)
            want(offset == roundup(end, 4096 if weights else 64), "section.offset", name, offset)
            want(offset + size < 2**63, "section.bytes", name, size)
            want(weights or offset + size <= 2**30, "section.bytes", name, "too large")
            self.check_count(name, count, size)
            self.section[name] = (count, offset, size, total)
            end = offset + size
        want(end == len(data), "section.bytes", "sections end at", end)
        end = 256
        for name, (count, offset, size, total) in self.section.items():
            self.zero(end, offset, "section.padding", f"padding before {name}")
            if name != "weights":
                want_sum(data[offset:offset + size], total, "section.hash", name)
            end = offset + size

    def check_count(self, name, count, size):
        fits = {"strings": count <= size, "metadata": count * 8 == size,
                "tokenizers": count * 32 <= size, "programs": count * 32 <= size,
                "tensors": count * 128 == size, "weights": count == 0}
        rule = "strings.count" if name == "strings" else "section.count"
        want(fits[name], rule, name, count, "in", size, "bytes")

    def read_strings(self):
        count, offset, size, _ = self.section["strings"]
        data = bytes(self.data[offset:offset + size])
        want(size > 0 and data[0] == 0 and data[-1] == 0, "strings.ends", "first or last byte")
        empty = data.find(b"\0\0")
        try:  # what comes first
            data[:empty if empty >= 0 else size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused("strings.utf8", str(error)) from error
        want(empty < 0, "strings.empty", "a second empty string at", empty)
        want(data.count(0) == count, "strings.count", count, "of", data.count(0))
        self.strings, at = {}, 0
        for s in data[:-1].split(b"\0"):
            self.strings[at] = s.decode("utf-8")
            at += len(s) + 1

    def string(self, offset, rule):
        want(offset in self.strings, rule, "no string begins at", offset)
        return self.strings[offset]

    def name(self, offset, rule):
        s = self.string(offset, rule)
        want(1 <= len(s.encode()) <= 511, rule, "a name of", len(s), "characters")
        want(not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029" for c in s), rule,
             "control character")
        return s

    def read_metadata(self):
        count, offset, _, _ = self.section["metadata"]
        self.metadata, last = {}, None
        for i in range(count):
            key, value = struct.unpack_from("<II", self.data, offset + 8 * i)
            key = self.name(key, "metadata.key")
            value = self.string(value, "metadata.value")
            want(last is None or key.encode() > last, "metadata.key", key, "is out of order")
            last = key.encode()
            self.metadata[key] = value

    def read_tokenizers(self):
        count, base, size, _ = self.section["tokenizers"]
        self.tokenizers, end, names = {}, 32 * count, []
        for i in range(count):
            name, kind, offset, n, zero = struct.unpack_from("<IIQQQ", self.data, base + 32 * i)
            name = self.name(name, "tokenizer.name")
            names.append(name)
            want(kind in (1, 2), "tokenizer.kind", name, kind)
            want(offset == roundup(end, 64), "tokenizer.offset", name, "at", offset)
            want(n > 0 and offset + n <= size, "tokenizer.bytes", name, n)
            want(zero == 0, "tokenizer.zero", name)
            self.zero(base + end, base + offset, "tokenizer.padding", f"padding before {name}")
            self.tokenizers[name] = {"kind": kind, "offset": offset, "bytes": n}
            end = offset + n
        want(end == size, "tokenizer.end", "the last one ends at", end)
        want(len(set(names)) == len(names), "tokenizer.name", "two of one name")

    def read_blobs(self):
        base = self.section["tokenizers"][1]
        for t in self.tokenizers.values():
            read_blob(bytes(self.data[base + t["offset"]:base + t["offset"] + t["bytes"]]),
                      t["kind"])

    def read_tensors(self):
        count, base, _, _ = self.section["tensors"]
        weights = self.section["weights"]
        self.tensors, end = [], 0
        for i in range(count):
            fields = struct.unpack_from("<5I4i3I3QI", self.data, base + 128 * i)
            name, source, dtype, layout, rank = fields[:5]
            dim, (scale, colsum, group) = fields[5:9], fields[9:12]
            offset, n, total, flags = fields[12:]
            name = self.name(name, "tensor.name")
            source = self.string(source, "tensor.source")
            want(dtype in DTYPES, "tensor.dtype", name, dtype)
            want(layout <= 2, "tensor.layout", name, layout)
            want(1 <= rank <= 4, "tensor.rank", name, rank)
            shape = list(dim[:rank])
            want(min(shape) >= 1 and math.prod(shape) < 2**40, "tensor.dim", name, dim)
            want(not any(dim[rank:]), "tensor.dim", name, dim)
            dtype = DTYPES[dtype]
            size = weight_bytes(dtype, layout, shape)
            want(size, "tensor.layout", name, "has no layout", layout)
            want(n == size, "tensor.bytes", name, n, "want", size)
            want(offset == roundup(end, 64) and offset + n <= weights[2], "tensor.offset", name,
                 offset)
            want(flags < 8, "tensor.flags", name, flags)
            want(not flags & 1 or (layout == 1 and rank == 2), "tensor.flags", name, "CONV1X1")
            want(not flags & 2 or dtype == "s8", "tensor.flags", name, "DYNAMIC")
            want(not flags & 4 or flags & 2, "tensor.flags", name, "TORCHAO")
            self.zero(base + 128 * i + 76, base + 128 * i + 128, "tensor.zero", name)
            end = offset + n
            self.tensors.append({
                "name": name, "source": source, "dtype": dtype, "layout": layout,
                "shape": shape, "scale": scale, "colsum": colsum, "group": group,
                "offset": offset, "bytes": n, "sum": total, "flags": flags})
        want(end == weights[2], "tensor.end", "the last one ends at", end)
        for t in self.tensors:
            self.check_quantization(t)
        want_sum(b"".join(struct.pack("<Q", t["sum"]) for t in self.tensors), weights[3],
                 "section.hash", "weights")
        want(len({t["name"] for t in self.tensors}) == count, "tensor.name", "two of one name")

    def check_quantization(self, t):
        name, dtype, shape = t["name"], t["dtype"], t["shape"]
        want(dtype not in ("s8", "s4") or t["layout"] != 0, "tensor.layout", name, "raw", dtype)
        users = {"scale": ("s8", "s4"), "colsum": ("s8",)}
        for role in ("scale", "colsum"):
            want(dtype in users[role] or t[role] == NONE, f"tensor.{role}", name, t[role])
        columns, group = [], t["group"]
        if dtype == "s4":
            want(group and group % 8 == 0 and shape[-1] % group == 0, "tensor.group", name, group)
            columns = [math.prod(shape[1:]) // group]
        else:
            want(group == 0, "tensor.group", name, group)
        for role, kind in (("scale", "f32"), ("colsum", "i32")):
            if dtype not in users[role]:
                continue
            want(t[role] < len(self.tensors), f"tensor.{role}", name, t[role])
            other = self.tensors[t[role]]
            want(other["dtype"] == kind and other["layout"] == 0 and
                 other["shape"] == shape[:1] + columns, f"tensor.{role}", name, other["name"])

    def read_programs(self):
        count, base, size, _ = self.section["programs"]
        self.programs, end, names = {}, 32 * count, []
        for i in range(count):
            entry = struct.unpack_from("<IIIIQQ", self.data, base + 32 * i)
            name, n_in, n_ops, n_out, offset, n = entry
            name = self.name(name, "program.name")
            names.append(name)
            want(0 < n_in <= 4096, "program.n_inputs", name)
            want(n_ops, "program.n_ops", name)
            want(n == roundup(32 * (n_in + n_ops), 64) + 128 * n_ops, "program.bytes", name, n)
            want(offset == roundup(end, 64) and offset + n <= size, "program.offset", name, offset)
            values_end = offset + 32 * (n_in + n_ops)
            ops_at = roundup(values_end, 64)
            self.zero(base + end, base + offset, "program.padding", name)
            self.zero(base + values_end, base + ops_at, "program.padding", name)
            values = [self.read_value(name, base + offset + 32 * v, v < n_in)
                      for v in range(n_in + n_ops)]
            outputs = [v["name"] for v in values if v["output"]]
            want(len(outputs) == n_out and 0 < n_out <= 4096, "program.n_outputs", name, n_out)
            named = [v["name"] for v in values if v["name"]]
            want(len(set(named)) == len(named), "value.name", name, "two values of one name")
            operators = [self.read_operator(values, base + ops_at + 128 * j, n_in + j)
                         for j in range(n_ops)]
            self.programs[name] = {"inputs": values[:n_in], "outputs": outputs,
                                   "operators": operators}
            end = offset + n
        want(end == size, "program.end", "the last one ends at", end)
        want(len(set(names)) == len(names), "program.name", "two of one name")

    def read_value(self, program, at, is_input):
        name, kind, rank, flags, *rest = struct.unpack_from("<IBBH4i2I", self.data, at)
        dim = rest[:4]
        want(flags == 0 or (flags == 1 and not is_input), "value.flags", program, flags)
        want(rest[4:] == [0, 0], "value.zero", program)
        want(kind in VALUE_TYPES and (is_input or kind != 3), "value.type", program, kind)
        if is_input or flags:
            name = self.name(name, "value.name")
        else:
            want(name == 0, "value.name", program, "a value that has none")
            name = ""
        want(1 <= rank <= 4 if is_input else rank == 0, "value.rank", program, rank)
        want(min(dim) >= 0 and not any(dim[rank:]), "value.dim", program, dim)
        return {"name": name, "type": VALUE_TYPES[kind], "shape": dim[:rank], "output": bool(flags)}

    def read_operands(self, opcode, values, own, operands):
        (kind, ins, _, _), given = OPERATORS[opcode], {}
        for i, value in enumerate(operands):
            if value == NONE:
                continue
            want(i < len(ins), "operator.in", kind, "has no input", i)
            want(value < own, "operator.in", kind, ins[i][0], "is value", value)
            fits = ("ACT", "F32") if ins[i][1] == "FLT" else (ins[i][1],)
            want(values[value]["type"] in fits, "operator.in", kind, ins[i][0],
                 values[value]["type"])
            given[ins[i][0]] = value
        return given

    def read_weights(self, opcode, tensors, glu):
        (kind, _, wts, _), shapes = OPERATORS[opcode], {}
        for i, index in enumerate(tensors):
            if index == NONE:
                continue
            want(i < len(wts) and index < len(self.tensors), "operator.wt", kind, i, index)
            t, (operand, rule, _) = self.tensors[index], wts[i]
            panel = 2 if glu == 1 else 1
            fits = {"PANEL": t["layout"] == panel and t["dtype"] != "i32",
                    "RAW": t["layout"] == 0 and t["dtype"] in ("f32", "bf16", "f16"),
                    "VEC": t["layout"] == 0 and t["dtype"] == "f32" and len(t["shape"]) == 1}[rule]
            want(fits, "operator.wt", kind, operand, "is", t["name"])
            shapes[operand] = t["shape"]
        return shapes

    def read_operator(self, values, at, own):
        opcode, name = struct.unpack_from("<II", self.data, at)
        operands = struct.unpack_from("<6I", self.data, at + 8)
        tensors = struct.unpack_from("<4I", self.data, at + 32)
        want(opcode in OPERATORS, "operator.opcode", opcode)
        kind, ins, wts, attrs = OPERATORS[opcode]
        layer = self.name(name, "operator.name") if name else ""
        self.zero(at + 48, at + 64, "operator.zero", kind)
        self.zero(at + 64 + 4 * len(attrs), at + 128, "operator.attr", f"an attribute beyond {kind}'s")
        a = {attribute: struct.unpack_from("<f" if rule == "float" else "<i", self.data,
                                           at + 64 + 4 * i)[0]
             for i, (attribute, rule, _) in enumerate(attrs)}
        given = self.read_operands(opcode, values, own, operands)
        want(values[own]["type"] == "ACT" or kind == "slice", "operator.result", kind,
             values[own]["type"])
        shapes = self.read_weights(opcode, tensors, a.get("glu"))
        for operand, _, required in ins:
            want(operand in given or not required, "operator.in", kind, operand, "is missing")
        for operand, _, required in wts:
            want(operand in shapes or not required, "operator.wt", kind, operand, "is missing")
        for attribute, rule, _ in attrs:
            limit = {"bool": 1, "act": 4}.get(rule)
            want((limit is None or 0 <= a[attribute] <= limit) and a[attribute] == a[attribute],
                 f"{kind}.{attribute}", a[attribute])
        if kind in RULES:
            try:
                RULES[kind](a, shapes, given)
            except Refused as broken:
                raise Refused(f"{kind}.{broken.rule}", broken.text) from None
        return {"operator": kind, "layer": layer, "inputs": given, "attributes": a,
                "weights": [i for i in tensors if i != NONE]}

    def tensor_bytes(self, t):
        start = self.section["weights"][1] + t["offset"]
        return self.data[start:start + t["bytes"]]

    def verify(self):
        start = end = self.section["weights"][1]
        for t in self.tensors:
            self.zero(end, start + t["offset"], "tensor.padding", f"before {t['name']}")
            want_sum(self.tensor_bytes(t), t["sum"], "tensor.hash", t["name"])
            end = start + t["offset"] + t["bytes"]

    def summary(self):
        return {"sum": f"{self.sum:016x}", "metadata": self.metadata, "tokenizers": self.tokenizers,
                "programs": self.programs, "tensors": self.tensors}


def batch(path, verify):
    with open(path, "rb") as f:
        while size := f.read(8):
            try:
                file = File(f.read(*struct.unpack("<Q", size)))
                if verify:
                    file.verify()
                print("accepted")
            except Refused as error:
                print("refused", str(error).replace("\n", " "))


def main(arguments):
    if not XXH3:
        print("read_dpk.py: no module xxhash, no libxxhash: sums are not checked", file=sys.stderr)
    if len(arguments) > 1 and arguments[0] == "--batch":
        batch(arguments[1], arguments[2:] == ["--verify"])
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
