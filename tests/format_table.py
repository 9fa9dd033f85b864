#!/usr/bin/env python3
"""The operator chapter of FORMAT.md, made from formats/ops.def.

format_table.py --write   put the chapter between its markers in FORMAT.md
format_table.py --check   exit status 1 if FORMAT.md has another one there
Run from the repository root."""
import re
import sys

BEGIN = "<!-- operators: begin (made by tests/format_table.py from formats/ops.def) -->"
END = "<!-- operators: end -->"
ITEM = re.compile(r"(IN|IN_OPT|WT|WT_OPT)\((\w+), (\w+)\)|A_(INT|FLOAT|BOOL|ACT)\((\w+)\)")


def prose(comment):
    """The text of a C comment: the stars and the common indentation removed."""
    lines = [re.sub(r"^ \* ?", "", line) for line in comment.strip("\n").split("\n")]
    return "\n".join(line.rstrip() for line in lines).strip()


def operators(source):
    """[(number, name, text, inputs, weights, attributes)] of ops.def, in file order."""
    rows = []
    body = source[source.index("*/") + 2:]  # after the comment about the file
    for match in re.finditer(r"/\*((?:(?!\*/).)*)\*/\s*DPK_OP\((\d+), (\w+),(.*?)\)\n(?=\n|\Z)",
                             body, re.S):
        comment, number, name, lists = match.groups()
        inputs, weights, attributes = [], [], []
        for kind, operand, rule, attribute, word in ITEM.findall(lists):
            optional = "optional" if kind.endswith("_OPT") else "required"
            if kind.startswith("IN"):
                inputs.append((operand, rule, optional))
            elif kind.startswith("WT"):
                weights.append((operand, rule, optional))
            else:
                attributes.append((word, attribute.lower()))
        rows.append((int(number), name, prose(comment), inputs, weights, attributes))
    if len(rows) != len(re.findall(r"^DPK_OP\(", body, re.M)):
        raise SystemExit("formats/ops.def: a row that this script does not understand")
    return rows


def chapter(rows):
    out = []
    for number, name, text, inputs, weights, attributes in rows:
        out += [f"### {number} {name}", "", "```", text, "```", ""]
        out += ["| field | operand | rule |", "|---|---|---|"]
        out += [f"| in[{i}] | {n} | {t}, {o} |" for i, (n, t, o) in enumerate(inputs)]
        out += [f"| wt[{i}] | {n} | {t}, {o} |" for i, (n, t, o) in enumerate(weights)]
        out += [f"| attr[{i}] | {n} | {t} |" for i, (n, t) in enumerate(attributes)]
        out.append("")
    return "\n".join(out)


def main():
    with open("formats/ops.def", encoding="utf-8") as f:
        table = chapter(operators(f.read()))
    with open("FORMAT.md", encoding="utf-8") as f:
        text = f.read()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit("FORMAT.md: want the operators' two markers once each")
    head, rest = text.split(BEGIN)
    made = head + BEGIN + "\n\n" + table + "\n" + END + rest.split(END)[1]
    if sys.argv[1:] == ["--write"]:
        with open("FORMAT.md", "w", encoding="utf-8") as f:
            f.write(made)
    elif sys.argv[1:] != ["--check"]:
        raise SystemExit(__doc__)
    elif made != text:
        raise SystemExit("FORMAT.md: its operators are not those of formats/ops.def; "
                         "run tests/format_table.py --write")


if __name__ == "__main__":
    main()
