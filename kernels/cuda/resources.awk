# What ptxas says of each kernel (-Xptxas -v), against the limits in resources.txt.
# usage: awk -f resources.awk resources.txt LOG...
FILENAME == ARGV[1] {
    if ($1 == "spills") allowed[$2] = $3
    if ($1 == "registers") most = $2
    next
}
/Compiling entry function/ {
    match($0, /'[^']*'/)
    name = substr($0, RSTART + 1, RLENGTH - 2)
    match($0, /sm_[0-9]+/)
    arch = substr($0, RSTART, RLENGTH)
}
/bytes spill stores/ {
    match($0, /[0-9]+ bytes spill stores/)
    spill = substr($0, RSTART) + 0
}
/Used [0-9]+ registers/ && name != "" {
    match($0, /Used [0-9]+/)
    registers = substr($0, RSTART + 5, RLENGTH - 5) + 0
    shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART) + 0
    printf "%-7s %4d registers %6d shared %5d spilled  %s\n", arch, registers, shared, spill, name
    n++
    limit = 0
    for (part in allowed) if (index(name, part)) limit = allowed[part]
    if (spill > limit) {
        printf "%s %s: spills %d bytes, at most %d are allowed\n", arch, name, spill, limit >"/dev/stderr"
        bad = 1
    }
    if (registers > most) {
        printf "%s %s: %d registers, at most %d\n", arch, name, registers, most >"/dev/stderr"
        bad = 1
    }
    name = ""
}
END {
    if (!n) {
        print "no kernel in the compiler's reports" >"/dev/stderr"
        exit 1
    }
    printf "%d kernels\n", n
    exit bad
}
