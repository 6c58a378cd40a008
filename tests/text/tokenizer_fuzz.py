#!/usr/bin/env python3
"""Compares our tokenizer with the PyPI package `tokenizers` on generated nasty texts.

usage: tokenizer_fuzz.py TEST_TEXT_BINARY [--count N] [--seed S] [--tokenizer DIR] [--only NAME]

Writes lines of a text, its ids and decoded ids, and lets the test binary (MOECTL_TOKENIZER_FUZZ) check them: the checkpoint's
own tokenizer first, then variants of it with other pre-tokenizers, normalizers and added tokens, then small tokenizers of
every kind in tokenizer_kinds.py. Rank files are compared with the PyPI package `tiktoken`.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import tokenizer_kinds as kinds
from tokenizers import Tokenizer

DEMO = pathlib.Path(__file__).resolve().parents[2] / "models" / "demo"

WHITESPACE = [" ", "  ", "\t", "\n", "\r", "\r\n", "\n\n", "\v", "\f", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028",
              "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\0"]
# One or more characters of every script and class that a pattern may treat apart; the last line is newer than Unicode 14.
RANGES = [(0x20, 0x7e), (0x20, 0x7e), (0x20, 0x7e), (0, 0x1f), (0x7f, 0xff), (0x100, 0x24f), (0x300, 0x36f), (0x370, 0x3ff),
          (0x400, 0x52f), (0x590, 0x6ff), (0x900, 0x97f), (0xe00, 0xe7f), (0x1100, 0x11ff), (0x1e00, 0x1fff), (0x2000, 0x2bff),
          (0x2e80, 0x303f), (0x3040, 0x30ff), (0x3400, 0x4dbf), (0x4e00, 0x9fff), (0xa000, 0xabff), (0xac00, 0xd7a3),
          (0xe000, 0xf8ff), (0xf900, 0xfaff), (0xfb00, 0xfdff), (0xfe00, 0xffff), (0x10000, 0x1ffff), (0x20000, 0x323af),
          (0xe0000, 0xe01ef), (0x10ff00, 0x10ffff), (0x897, 0x8ff), (0x1ab0, 0x1aff), (0x1df0, 0x1dff), (0x11930, 0x11943),
          (0x897, 0x897), (0x1fa75, 0x1faff), (0x31350, 0x323af), (0x2ebf0, 0x2ee5d), (0x1c89, 0x1c8a), (0x2427, 0x2429)]
WORDS = ["the", "The", "don't", "I'LL", "we've", "'S", "'\u017f", "don\u2019t", "hello", "world", "caf\u00e9", "cafe\u0301", "na\u00efve", "x_y", "fooBar",
         "HTTPServer", "1234567", "3.14", "1,000", "\u0661\u0662\u0663", "\u00b2\u00b3", "\u2167", "\u00bd", "def f(x):", "#include <a>", "://", "/* */",
         "</a>", "\u4f60\u597d", "\u4e16\u754c", "\u65e5\u672c\u8a9e\u306e", "\u30c6\u30b9\u30c8", "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab", "\u0928\u092e\u0938\u094d\u0924\u0947",
         "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "\U0001fae8", "a\u0338\u0300\u0327", "=\u0338", "\u0345\u0898\u0334", "a\u08cf\u0301", "\U00011935\U00011930", "\ufb01", "\u212b", "\u0344",
         "----", "....", "!!!", "\u3002\u3002", "((((", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]


def pieces_of(token):
    return [token, token, token[:-1], token[1:], token[: len(token) // 2], token.upper(), " " + token + " ", token + token]


def make_text(rng, control):
    out = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 20, 60])):
        kind = rng.randrange(8)
        if kind == 0:
            out.append("".join(rng.choice(WHITESPACE) for _ in range(rng.choice([1, 1, 2, 3, 9]))))
        elif kind == 1:
            out.append(rng.choice(pieces_of(rng.choice(control))))
        elif kind in (2, 3):
            low, high = rng.choice(RANGES)
            chars = (rng.randint(low, high) for _ in range(rng.choice([1, 2, 4, 10])))
            out.append("".join(chr(c) for c in chars if not 0xD800 <= c <= 0xDFFF))
        elif kind == 4:
            out.append(rng.choice(WORDS) * rng.choice([1, 1, 1, 2, 5]))
        elif kind == 5:
            out.append(rng.choice([" ", "\n", "0", "a", "\u0301", "\u4e00", "."]) * rng.choice([1, 2, 3, 7, 40, 200]))
        else:
            out.append(rng.choice([" ", "", "\n"]) + rng.choice(WORDS))
    return "".join(out)


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DEEPSEEK_V2 = [split(r"[\r\n]"), split(r"\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba]+"),
               split(r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"), split(r"\s+$"),
               split(r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+".replace("\\ud7ff", "\\ud7a3")),
               {"type": "Digits", "individual_digits": True}]


def variants(base):
    """(name, tokenizer.json as a dict): the same vocabulary under other rules."""
    def variant(name, **changes):
        doc = json.loads(json.dumps(base))
        doc.update(changes)
        return name, doc

    def sequence(*steps, byte_level=None):
        return {"type": "Sequence", "pretokenizers": [*steps, byte_level or BYTE_LEVEL]}

    yield "checkpoint", base
    yield variant("nfc-gpt4", normalizer={"type": "NFC"}, pre_tokenizer=sequence(split(kinds.QWEN)))
    yield variant("o200k", pre_tokenizer=sequence(split(kinds.O200K)))
    yield variant("gpt2", pre_tokenizer={**BYTE_LEVEL, "use_regex": True, "add_prefix_space": True})
    yield variant("deepseek-v2", pre_tokenizer=sequence(*DEEPSEEK_V2))
    yield variant("han", pre_tokenizer=sequence(split(r"\p{Han}+"), split(r"^.+$|\S+\s{2,}?|\P{L}\d{,2}")))
    yield variant("digits", pre_tokenizer=sequence({"type": "Digits", "individual_digits": False}, split(r"\S*")))
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            yield variant(f"{behavior}-{invert}", pre_tokenizer=sequence(
                split(r"[\s\p{P}]", behavior, invert), split("a", behavior, invert, "String"),
                byte_level={**BYTE_LEVEL, "add_prefix_space": invert}))
    name, doc = variant("ignore-merges")
    doc["model"]["ignore_merges"] = True
    doc["model"]["merges"] = doc["model"]["merges"][: len(doc["model"]["merges"]) // 2]
    yield name, doc
    size = 1 + max(max(base["model"]["vocab"].values()), max(t["id"] for t in base["added_tokens"]))
    yield variant("added-tokens", normalizer={"type": "NFC"}, added_tokens=base["added_tokens"] + [
        kinds.added(size, "<left>", lstrip=True), kinds.added(size + 1, "<right>", rstrip=True, special=True),
        kinds.added(size + 2, "<both>", lstrip=True, rstrip=True), kinds.added(size + 3, "hello", single_word=True),
        kinds.added(size + 4, "<norm>", normalized=True, lstrip=True), kinds.added(size + 5, "caf\u00e9", normalized=True, single_word=True),
        kinds.added(size + 6, "<<left"), kinds.added(size + 7, "  ", normalized=True), kinds.added(size + 8, "<le")])


def some_ids(rng, ids, vocab_size, byte_ids):
    """Ids to decode: of any kind, or as a text has them, or bytes that may or may not make characters."""
    kind = rng.randrange(3)
    if kind == 0:
        return [rng.randrange(vocab_size) for _ in range(rng.randrange(12))]
    start = rng.randrange(len(ids) + 1)
    part = ids[start:start + 12]
    if kind == 1 or not byte_ids:
        return part
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(part) + 1)
        character = chr(rng.choice([0xe9, 0x4f60, 0x1f600, 0x41])).encode()[:rng.choice([1, 2, 3, 4])]
        part[at:at] = [byte_ids[b] for b in character]
    return part


class Library:
    """A tokenizer.json under the package `tokenizers`."""

    def __init__(self, doc):
        self.doc = doc
        self.tokenizer = Tokenizer.from_str(json.dumps(doc))
        self.vocab_size = max([*doc["model"]["vocab"].values(), *(t["id"] for t in doc["added_tokens"])]) + 1
        self.control = [t["content"] for t in doc["added_tokens"]]
        self.byte_ids = [doc["model"]["vocab"].get(t) for t in kinds.BYTE_TOKENS]
        if None in self.byte_ids:
            self.byte_ids = None

    def write(self, folder):
        (folder / "tokenizer.json").write_text(json.dumps(self.doc), encoding="utf-8")

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_special(self, text):
        return self.tokenizer.encode(text, add_special_tokens=True).ids

    def decode(self, ids, skip_special):
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special)


class Tiktoken:
    """A rank file under the package `tiktoken`."""
    byte_ids = None

    def __init__(self, make, file_name):
        self.ranks, self.file_name = make(2000), file_name
        self.vocab_size = self.ranks.encoding.n_vocab
        self.control = list(self.ranks.special.values())[:20]
        self.special = {int(i) for i, t in self.ranks.config()["added_tokens_decoder"].items() if t["special"]}

    def write(self, folder):
        (folder / self.file_name).write_text(self.ranks.rank_lines())
        (folder / "tokenizer_config.json").write_text(json.dumps(self.ranks.config()))

    def encode(self, text):
        return self.ranks.encode(text)

    encode_special = encode

    def decode(self, ids, skip_special):
        return self.ranks.encoding.decode([i for i in ids if not (skip_special and i in self.special)])


def compare(binary, name, reference, count, seed):
    rng = random.Random(f"{seed} {name}")
    with tempfile.TemporaryDirectory() as folder:
        reference.write(pathlib.Path(folder))
        lines = pathlib.Path(folder) / "cases.jsonl"
        with lines.open("w", encoding="utf-8") as out:
            for number in range(count):
                text = make_text(rng, reference.control)
                if number % 1000 == 999:  # where a tokenizer may cut long runs
                    text += rng.choice(["ab", " ", "\u4f60", "1 "]) * rng.choice([9_000, 30_000, 210_000])
                ids = reference.encode(text)
                decode_ids = some_ids(rng, ids, reference.vocab_size, reference.byte_ids)
                out.write(json.dumps({
                    "text": text, "ids": ids, "ids_special": reference.encode_special(text), "decode_ids": decode_ids,
                    "decoded": reference.decode(decode_ids, False),
                    "decoded_skip_special": reference.decode(decode_ids, True)}) + "\n")
        environment = {**os.environ, "MOECTL_TOKENIZER_FUZZ": str(lines), "MOECTL_TOKENIZER_DIR": folder}
        result = subprocess.run([binary, "--gtest_filter=TokenizerFuzz.*", "--gtest_brief=1"], env=environment,
                                capture_output=True, text=True)
        ok = result.returncode == 0 and "compared" in result.stdout
        print(f"{name:28} {count:6} texts  {'ok' if ok else 'FAILED'}")
        if not ok:
            print(result.stdout[-3000:] + result.stderr[-2000:])
        return ok


def references(args):
    """(name, reference, number of texts), made when asked for."""
    base = json.loads((args.tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    for name, doc in variants(base):
        yield name, lambda doc=doc: Library(doc), args.count if name == "checkpoint" else args.count // 4
    for name, make in {**kinds.FAMILIES, **kinds.SENTENCEPIECE_OPTIONS}.items():
        yield name, lambda make=make: Library(make(2000)), args.count // 2
    for name, (make, file_name) in kinds.RANK_FILES.items():
        yield name, lambda make=make, file_name=file_name: Tiktoken(make, file_name), args.count // 2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--count", type=int, default=4000,
                        help="texts for the checkpoint's tokenizer; kinds get half, variants a quarter")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", type=pathlib.Path, default=DEMO)
    parser.add_argument("--only", default="", help="names that contain this")
    args = parser.parse_args()
    failed = [name for name, make, count in references(args)
              if args.only in name and not compare(args.binary, name, make(), count, args.seed)]
    sys.exit(f"different from the library: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
