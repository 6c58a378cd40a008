"""Checks the files of the source tree: their length, that an operation has one stem everywhere, that headers say what they
own, and that nothing names a machine.

Prints FILE[:LINE] and the rule; exit status 1 when a rule is broken.
"""
import re
import sys
from pathlib import Path

from source_files import ROOT, source_files

MAX_LINES = 800
CODE = (".h", ".cpp", ".cu", ".cuh", ".py", ".cmake", ".sh", ".bash", ".zsh", ".fish")
# Written in two pieces so that this file passes its own check.
MACHINE = re.compile(r"(?<![\w./-])/wor" r"k/|\.\./share" r"d\b")
SLEEP = re.compile(r"\b(sleep_for|sleep_until|usleep|nanosleep)\b|\btime\.sleep\b")


def length_faults(path, lines):
    if path.endswith(CODE) and len(lines) > MAX_LINES:
        yield 0, f"{len(lines)} lines; the limit is {MAX_LINES} (aim for 400)"


def head_faults(path, lines):
    if path.endswith(".h") and not (lines and lines[0].startswith("//")):
        yield 0, "a header starts with a comment that says what it owns"


def line_faults(path, lines):
    for number, line in enumerate(lines, 1):
        if MACHINE.search(line):
            yield number, "names a path of one machine"
        if path.startswith("tests/") and path.endswith((".cpp", ".h", ".py")) and SLEEP.search(line):
            yield number, "a test must not sleep: wait for what it needs"


def stem_faults(paths):
    """One stem an operation of kernels/ops.h: kernels/cpu/X.cpp, kernels/cuda/X.cu (and X_sm90.cu), tests/kernels/X_test.cpp.

    A building block that only CUDA has (fp8_quantize) is defined by its test, tests/kernels_cuda/X_test.cpp."""
    present = set(paths)
    operations = set(re.findall(r"virtual void (\w+)\(const \w+Args", (ROOT / "kernels/ops.h").read_text()))
    for path in paths:
        stem = Path(path).stem
        if path.startswith("kernels/cuda/") and "/bench/" not in path and path.endswith(".cu"):
            name = stem.removesuffix("_sm90")
            words = name.split("_")
            names = ["_".join(words[:n]) for n in range(1, len(words) + 1)]  # sample_choose is a part of sample
            if not {f for n in names for f in (f"kernels/cpu/{n}.cpp", f"tests/kernels_cuda/{n}_test.cpp")} & present:
                yield path, f"has neither kernels/cpu/{name}.cpp nor tests/kernels_cuda/{name}_test.cpp, which say what it computes"
        if stem in operations and path == f"kernels/cpu/{stem}.cpp" and f"tests/kernels/{stem}_test.cpp" not in present:
            yield path, f"has no tests/kernels/{stem}_test.cpp"


def main():
    faults = []
    paths = source_files()
    for path in paths:
        if path.startswith("models/") or not path.endswith(CODE + (".md", ".json", ".yaml", ".txt")) and "." in Path(path).name[1:]:
            continue
        try:
            lines = (ROOT / path).read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for check in (length_faults, head_faults, line_faults):
            faults += [f"{path}:{number}: {fault}" if number else f"{path}: {fault}" for number, fault in check(path, lines)]
    faults += [f"{path}: {fault}" for path, fault in stem_faults(paths)]
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
