"""Finds what g++ 12 miscompiles in coroutines: a co_await expression that holds an aggregate temporary, as in
`co_await f({.name = x})`, or a temporary lambda with captures. Name them first and move them in.

    check_coroutines.py [FILE ...]    default: every source file. Prints FILE:LINE; exit status 1 when there is any.
"""
import re
import sys
from pathlib import Path

from source_files import ROOT, source_files

# Comments, raw strings, strings and characters are blanked; line breaks stay, so that lines keep their numbers.
SKIPPED = re.compile(r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^()\s\\]{0,16})\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\'',
                     re.DOTALL)


def blanked(text):
    return SKIPPED.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def matching(text, at):
    """Position behind the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    return len(text)


def hazard(text, at):
    """What is wrong in the co_await expression that starts at `at`, or None."""
    i = at
    while i < len(text) and text[i] not in ";)]},":
        if text[i] == "(":
            if (fault := hazard_inside(text, i + 1, matching(text, i) - 1)) is not None:
                return fault
            i = matching(text, i)
        elif text[i] == "{":
            # `co_await T{...}` is such a temporary; `if (...) co_await x; {` cannot get here.
            return "an aggregate temporary"
        elif text[i] == "[":
            i = matching(text, i)
        else:
            i += 1
    return None


def hazard_inside(text, begin, end):
    i = begin
    while i < end:
        if text[i] == "[":
            before = text[:i].rstrip()[-1]
            close = matching(text, i)
            if before in "(,=?:&|{" or text[:i].rstrip().endswith("return"):
                if text[i + 1:close - 1].strip():
                    return "a temporary lambda with captures"
                body = text.find("{", close)
                i = matching(text, body) if body != -1 else end
                continue
            i = close
        elif text[i] == "{":
            return "an aggregate temporary"
        else:
            i += 1
    return None


def faults_of(text):
    text = blanked(text)
    for found in re.finditer(r"\bco_await\b", text):
        if fault := hazard(text, found.end()):
            yield text.count("\n", 0, found.start()) + 1, fault


def main():
    faults = 0
    for path in sys.argv[1:] or source_files(".h", ".cpp"):
        for number, fault in faults_of((ROOT / Path(path)).read_text()):
            print(f"{path}:{number}: {fault} in a co_await expression; g++ 12 destroys it twice. Name it first, move it in")
            faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
