#!/usr/bin/env python3
"""Do the C reader and the second reader (read_dpk.py) give one verdict, for one reason?

conformance.py FILES VERDICTS        FILES as of read_dpk.py --batch; VERDICTS has a line for each:
                                     "accepted" or the C reader's message

Every message of the C reader belongs to one rule of FORMAT.md (a few to one of two, which it checks
together). Prints each disagreement, the rules that were broken and how often, and totals. Exit
status 1: a disagreement, or a message of no rule.
"""
import collections
import os
import re
import subprocess
import sys

# Message of the C reader: the rules it may stand for. \1 and \2 are taken from the message.
MESSAGES = [
    (r"\d+ bytes, want at least 256", "header.bytes"),
    (r"not a \.dpk file", "header.magic"),
    (r"format version \d+", "header.version"),
    (r"header: \d+ sections", "header.n_sections"),
    (r"header: the sum is", "header.hash"),
    (r"header: reserved", "header.zero"),
    (r"its header says", "header.file_bytes"),
    (r"section \d+ has the id", "section.id"),
    (r"section \w+: offset", "section.offset"),
    (r"section \w+: \d+ bytes at offset|section \w+: ends at|the sections end at", "section.bytes"),
    (r"section strings: \d+ bytes for a count", "strings.count"),
    (r"section \w+: \d+ bytes for a count|section weights: count", "section.count"),
    (r"the padding before section", "section.padding"),
    (r"section \w+: the sum is", "section.hash"),
    (r"section strings: want an empty string first", "strings.ends"),
    (r"section strings: no UTF-8", "strings.utf8"),
    (r"section strings: a second empty", "strings.empty"),
    (r"section strings: \d+ strings, count says", "strings.count"),
    (r"metadata key \d+: |want rising keys", "metadata.key"),
    (r"metadata .*: value at", "metadata.value"),
    (r"two (tokenizer|tensor|program)s are called", r"\1.name"),
    (r"two inputs or outputs of one program", "value.name"),
    (r"(tokenizer|tensor|program|value|operator) \d+: (?:name at|control char|its name)", r"\1.name"),
    (r"tokenizer \S+: kind \d+ is unknown", "tokenizer.kind"),
    (r"tokenizer \S+: \d+ bytes at", "tokenizer.offset tokenizer.bytes"),
    (r"tokenizer \S+: reserved", "tokenizer.zero tokenizer.padding"),
    (r"section (tokenizer|program)s: \d+ bytes, the last", r"\1.end"),
    (r"section weights: \d+ bytes, the tensors end", "tensor.end"),
    (r"tensor \S+: source at", "tensor.source"),
    (r"tensor \S+: type \d+", "tensor.dtype"),
    (r"tensor \S+: layout \d+|tensor \S+: no \w+ of \w+|for panels only", "tensor.layout"),
    (r"tensor \S+: rank", "tensor.rank tensor.dim"),
    (r"tensor \S+: \d+ bytes, want", "tensor.bytes"),
    (r"tensor \S+: \d+ bytes at", "tensor.offset"),
    (r"tensor \S+: (?:flags|\w+ of rank \d+ as a 1x1|dynamic quant|a rule of)", "tensor.flags"),
    (r"tensor \S+: reserved", "tensor.zero"),
    (r"tensor \S+: (?:a )?(scale|colsum|group) ", r"tensor.\1"),
    (r"the padding before tensor", "tensor.padding"),
    (r"tensor \S+: the sum is", "tensor.hash"),
    (r"program \S+: \d+ inputs and", "program.n_inputs program.n_ops"),
    (r"program \S+: \d+ bytes, want", "program.bytes"),
    (r"program \S+: \d+ bytes at", "program.offset"),
    (r"program \S+: its padding", "program.padding"),
    (r"program \S+: \d+ values are marked", "program.n_outputs"),
    (r"value \d+: (flags|type|name)", r"value.\1"),
    (r"value \d+: reserved", "value.zero"),
    (r"value \d+: rank", "value.rank value.dim"),
    (r"opcode \d+ is unknown", "operator.opcode"),
    (r"operator \d+ \([^)]*\): reserved", "operator.zero"),
    (r"operator \d+ \([^)]*\): attribute word", "operator.attr"),
    (r"operator \d+ \([^)]*\): input ", "operator.in"),
    (r"operator \d+ \([^)]*\): weight ", "operator.wt"),
    (r"operator \d+ \([^)]*\): the result is", "operator.result"),
    (r"operator \d+: [^:]*: (input|weight) \w+ is missing", "operator.in operator.wt"),
    (r"operator \d+: (group_norm)[^:]*: \d+ groups", r"\1.groups"),
    (r"operator \d+: (attention)[^:]*: \d+ heads", r"\1.heads"),
    (r"operator \d+: (add)[^:]*: want either c or table", r"\1.c"),
    (r"operator \d+: (layer_norm)[^:]*: shift_off \S+ and", r"\1.shift_off \1.scale_off"),
    (r"operator \d+: (slice)[^:]*: mul is", r"\1.mul \1.add"),
    (r"operator \d+: (\w+)[^:]*: (\w+) ", r"\1.\2"),
    (r"tokenizer: \d+ bytes, the header", "blob.bytes"),
    (r"tokenizer: magic", "blob.magic"),
    (r"tokenizer: (version|kind|flags) ", r"blob.\1"),
    (r"tokenizer: maximum length", "blob.max_length"),
    (r"tokenizer: start id", "blob.start_id blob.end_id blob.pad_id blob.unknown_id"),
    (r"tokenizer: \d+ entries, charsmap", "blob.n_entries blob.charsmap_bytes"),
    (r"tokenizer: .* are left|tokenizer: .* after the last table", "blob.sections"),
    (r"tokenizer: padding", "blob.padding"),
    (r"tokenizer: \d+ of \d+ bytes of text", "blob.text_bytes"),
    (r"tokenizer: no character classes", "blob.n_runs"),
    (r"tokenizer: bad run", "runs.start runs.flags runs.cluster runs.zero"),
    (r"tokenizer: bad lower case", "lower.code"),
    (r"tokenizer: bad decomposition",
     "decompositions.code decompositions.first decompositions.second"),
    (r"tokenizer: composition \d+", "compositions"),
    (r"tokenizer: special token \d+ has flags", "specials.flags"),
    (r"tokenizer: (?:normalised )?special token", "specials.content"),
    (r"tokenizer: piece ", "pieces.content"),
    (r"tokenizer: score", "pieces.score"),
    (r"tokenizer: byte \d+", "byte_ids"),
    (r"tokenizer: merge \d+ has id", "merges.result"),
    (r"tokenizer: merge \d+ repeats", "merges.pair"),
    (r"tokenizer: charsmap of", "charsmap.trie"),
    (r"tokenizer: charsmap's strings", "charsmap.strings"),
]


def rules_of(message):
    for pattern, rules in MESSAGES:
        match = re.search(pattern, message)
        if match:
            return match.expand(rules).split()
    return []


def main(files, verdicts):
    reader = os.path.join(os.path.dirname(os.path.abspath(__file__)), "read_dpk.py")
    second = subprocess.run([sys.executable, reader, "--batch", files, "--verify"], check=True,
                            stdout=subprocess.PIPE, text=True, errors="replace").stdout
    second = second.splitlines()
    with open(verdicts, encoding="utf-8", errors="replace") as f:
        first = f.read().splitlines()
    broken, n_wrong = collections.Counter(), int(len(first) != len(second))
    for i, (c, python) in enumerate(zip(first, second)):
        if c == "accepted":
            good = python == "accepted"
        else:
            rule = python.split()[1].rstrip(":") if python.startswith("refused ") else "accepted"
            good = rule in rules_of(c)
            broken[rule] += 1
        if not good:
            n_wrong += 1
            print(f"file {i}: C: {c} {rules_of(c)}\n    Python: {python}")
    print(*(f"{rule} {n}" for rule, n in sorted(broken.items())), sep="\n")
    print(f"{len(first)} files, {first.count('accepted')} accepted, {len(broken)} rules broken, "
          f"{n_wrong} disagreements")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
