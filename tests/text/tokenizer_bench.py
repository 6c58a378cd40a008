#!/usr/bin/env python3
"""How much faster our tokenizer encodes than the PyPI package `tokenizers` (rank files: than `tiktoken`, too), by family.

usage: tokenizer_bench.py TEST_TEXT_BINARY [--kilobytes N] [--rounds N] [--vocab-size N] [--only NAME] [--json]

One mixed text (English, code, CJK, numbers) as prompts of some KB; small tokenizers of every kind, trained here. Both sides
encode the same prompts on one thread, in turns; the ids must be the same. Times are CPU seconds of the thread, the least of
all rounds after one that does not count. The package is measured as `encode` and as its fastest call, `encode_batch_fast`.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")

import tokenizer_kinds as kinds  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402


def seconds(call):
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


def prompts_of(text, size):
    lines, prompts, current = text.splitlines(keepends=True), [], ""
    for line in lines:
        current += line
        if len(current) >= size:
            prompts.append(current)
            current = ""
    return prompts + [current] * bool(current)


class Ours:
    def __init__(self, binary, folder, prompts):
        file = pathlib.Path(folder) / "prompts.json"
        file.write_text(json.dumps(prompts), encoding="utf-8")
        environment = {**os.environ, "MOECTL_TOKENIZER_BENCH": str(file), "MOECTL_TOKENIZER_DIR": folder}
        self.process = subprocess.Popen([binary, "--gtest_filter=TokenizerBench.*"], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def encode(self, show_ids=False):
        self.process.stdin.write("ids\n" if show_ids else "time\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("{"):
            if not line:
                sys.exit("the test binary ended early")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(binary, write, calls, prompts, rounds):
    """(least seconds by name, ids agree)."""
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder))
        ours = Ours(binary, folder, prompts)
        same = ours.encode(show_ids=True)["ids"] == next(iter(calls.values()))()
        best = {}
        for name, call in calls.items():
            call()
        for _ in range(rounds):
            times = {"ours": ours.encode()["seconds"], **{name: seconds(call)[0] for name, call in calls.items()}}
            best = {name: min(t, best.get(name, t)) for name, t in times.items()}
        ours.close()
        return best, same


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--kilobytes", type=int, default=600)
    parser.add_argument("--prompt-kilobytes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=16000)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    text = kinds.mixed_text(args.kilobytes * 1000)
    prompts = prompts_of(text, args.prompt_kilobytes * 1000)
    size = len(text.encode())
    results = []

    def add(name, write, calls):
        best, same = measure(args.binary, write, calls, prompts, args.rounds)
        ours = best.pop("ours")
        results.append({"family": name, "bytes": size, "ids_equal": same, "megabytes_per_second": size / ours / 1e6,
                        "ratio": {other: t / ours for other, t in best.items()}})
        if not args.json:
            print(f"{name:16} {size / ours / 1e6:8.1f} MB/s   " +
                  "   ".join(f"{other} {size / t / 1e6:6.2f} MB/s = {t / ours:5.1f}x" for other, t in best.items()) +
                  ("" if same else "   IDS DIFFER"), flush=True)

    for name, make in kinds.FAMILIES.items():
        if args.only not in name:
            continue
        doc = json.dumps(make(args.vocab_size))
        library = Tokenizer.from_str(doc)
        add(name, lambda folder: (folder / "tokenizer.json").write_text(doc, encoding="utf-8"), {
            "encode": lambda: [library.encode(p, add_special_tokens=False).ids for p in prompts],
            "encode_batch_fast": lambda: [e.ids for e in library.encode_batch_fast(prompts, add_special_tokens=False)]})
    for name, (make, file_name) in kinds.RANK_FILES.items():
        if args.only not in name:
            continue
        ranks = make(args.vocab_size)
        library = Tokenizer.from_str(json.dumps(ranks.doc))

        def write(folder):
            (folder / file_name).write_text(ranks.rank_lines())
            (folder / "tokenizer_config.json").write_text(json.dumps(ranks.config()))
        add(name, write, {
            "tiktoken": lambda: [ranks.encode(p) for p in prompts],
            "encode": lambda: [library.encode(p, add_special_tokens=False).ids for p in prompts],
            "encode_batch_fast": lambda: [e.ids for e in library.encode_batch_fast(prompts, add_special_tokens=False)]})
    if args.json:
        print(json.dumps(results, indent=2))
    sys.exit(0 if all(r["ids_equal"] for r in results) else "ids differ")


if __name__ == "__main__":
    main()
