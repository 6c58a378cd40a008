#!/usr/bin/env python3
"""Reads what compute-sanitizer's racecheck printed: scripts/racecheck_report.py LOG...

racecheck follows __syncthreads and __syncwarp. It does not follow the mbarriers that TMA's copies complete, nor named
barriers between some of a block's warps, and reports what these order as races. Each such pair of accesses was read in
the source and stands below with what orders it. The kernels of cuBLASLt are not ours, and are counted only. Exit status 1
when there is any other pair, or a log without the end of a run; the tests that were cut off are named. Needs a build with
-lineinfo, which tells the names of functions that were inlined.
"""
import collections
import re
import sys

# (who writes, who reads, what orders the two): function names, without namespaces, templates and arguments
ORDERED = [
    ("bulk_load", "Scales::load", "a stage's `full` mbarrier (the copied bytes complete the phase that readers wait for), "
     "then its `empty` one (a warp's lane 0 arrives after its lanes' reads and __syncwarp; the producer waits)"),
    ("bulk_load", "Scales::of", "as Scales::load; the stage is released after the sums"),
    ("run_left", "load_rows", "m[0]: named barrier kP0Ready before the read; before the next write kP1Ready or kItemEnd, "
     "at which the reader arrives after reading"),
    ("run_right", "load_rows", "m[1]: named barrier kP1Ready before the read; before the next write kP0Ready, at which "
     "the reader arrives after reading"),
    ("exchange_sums", "load_rows", "l: named barrier kItemEnd of both warpgroups before the read, and again in "
     "begin_item before the next write"),
]
LIBRARY = re.compile(r"nvjet_|cublasLt")  # kernels of cuBLASLt
ACCESS = re.compile(r"(Read|Write|Atomic)[^:]* access at (.*)\+0x[0-9a-f]+(?: in (\S+:\d+))?(?: \[(\d+) hazards?\])?$")


def function_name(signature):
    text = re.sub(r"\([a-z ]+\)(?=[-\w])", "", signature.replace("<unnamed>::", "").replace("(anonymous namespace)::", ""))
    while "<" in (text := re.sub(r"<[^<>]*>", "", text)) and ">" in text:
        pass
    text = re.sub(r"\(.*", "", text).split()[-1]
    return re.sub(r"^.*::(?=\w+::\w+$)(?!Scales)|^.*::(?=Scales::)", "", text)


def plain(name):
    """Scales::load, but run_left: a method keeps its class."""
    parts = name.split("::")
    return "::".join(parts[-2:]) if len(parts) > 1 and parts[-2][:1].isupper() else parts[-1]


def pairs_of(text):
    """Counter of (kind, function, place, kind, function, place)."""
    pairs, first = collections.Counter(), None
    for line in text.splitlines():
        match = ACCESS.search(line)
        if not match:
            continue
        kind, signature, place, count = match.groups()
        access = (kind, plain(function_name(signature)), place or "?")
        if "Race reported" in line or first is None:
            first = access
        else:
            pairs[(*first, *access)] += int(count or 1)
    return pairs


def order_of(pair):
    """What orders a pair; None: nobody has found it yet."""
    (kind, name), (other_kind, other) = (pair[0], pair[1]), (pair[3], pair[4])
    if kind == "Read":
        kind, name, other_kind, other = other_kind, other, kind, name
    if (kind, other_kind) != ("Write", "Read"):
        return None
    return next((why for writer, reader, why in ORDERED if (writer, reader) == (name, other)), None)


def main(paths):
    pairs, unfinished, cut_off = collections.Counter(), 0, []
    for path in paths:
        with open(path, errors="replace") as file:
            text = file.read()
        pairs += pairs_of(text)
        begun, ended = (re.findall(rf"\[ {word} \] (\S+)", text) for word in ("RUN     ", "(?:      OK| FAILED )"))
        cut_off += sorted(set(begun) - set(ended))
        unfinished += max(text.count("= COMPUTE-SANITIZER"), 1) - text.count("RACECHECK SUMMARY")  # of several processes
    unknown = library = 0
    for pair, count in sorted(pairs.items()):
        if LIBRARY.search(pair[1]) and LIBRARY.search(pair[4]):
            library += 1
            continue
        why = order_of(pair)
        unknown += why is None
        print(f"{'ordered' if why else 'RACE?  '} {count:8d}  {pair[0]} {pair[1]} ({pair[2]}), {pair[3]} {pair[4]} ({pair[5]})")
    for why in sorted({order_of(pair) or "" for pair in pairs} - {""}):
        print(f"  {why}")
    for test in cut_off:
        print(f"cut off in {test}")
    print(f"races: {unknown} unexplained, {len(pairs) - unknown - library} pairs that barriers order, {library} in cuBLASLt, "
          f"{unfinished} runs cut off")
    return 1 if unknown or unfinished else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
