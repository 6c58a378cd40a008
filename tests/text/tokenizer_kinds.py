"""Small tokenizers of every kind that MoE checkpoints are published with, trained here with the PyPI package `tokenizers`.

The patterns, pipelines and marker names are those of the published files; vocabularies are small and learned from this
repository's own text and some sentences in other scripts.
"""
import base64
import functools
import json
import pathlib
import random
import unicodedata

import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = (CONTRACTIONS +
          r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")  # GLM-4, Llama 3
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = "|".join([  # gpt-oss, Llama 4, MiniMax-M2
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
SEED = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}" + "\r\n" + r"]+|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+"
DEEPSEEK = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",  # V3, Hunyuan's dense models
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^" + "\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
            + "\r\n" + r"]*|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+"]
NO_HAN = r"&&[^\p{Han}]]"
KIMI = "|".join([
    r"[\p{Han}]+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER[:-1]}{NO_HAN}*{LOWER[:-1]}{NO_HAN}+{CONTRACTIONS}?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER[:-1]}{NO_HAN}+{LOWER[:-1]}{NO_HAN}*{CONTRACTIONS}?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])

SENTENCES = [
    "\u4eba\u5de5\u667a\u80fd\u6b63\u5728\u6539\u53d8\u6211\u4eec\u7684\u751f\u6d3b\uff0c\u6a21\u578b\u7684\u63a8\u7406\u901f\u5ea6\u5f88\u91cd\u8981\u3002", "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u4e00\u8d77\u53bb\u516c\u56ed\u6563\u6b65\u5427\uff01",
    "\u4e13\u5bb6\u6df7\u5408\u6a21\u578b\u628a\u6bcf\u4e2a\u8bcd\u5143\u4ea4\u7ed9\u5c11\u6570\u51e0\u4e2a\u4e13\u5bb6\u5904\u7406\uff0c2024\u5e7412\u670831\u65e5\u3002", "\u81ea\u7136\u8a00\u8a9e\u51e6\u7406\u306f\u9762\u767d\u3044\u3067\u3059\u3002\u30c6\u30b9\u30c8\u3092\u66f8\u304d\u307e\u3057\u3087\u3046\u3002",
    "\uc548\ub155\ud558\uc138\uc694, \uc138\uacc4! \ubaa8\ub378\uc744 \uc2dc\ud5d8\ud569\ub2c8\ub2e4.", "\u0411\u044b\u0441\u0442\u0440\u0430\u044f \u043a\u043e\u0440\u0438\u0447\u043d\u0435\u0432\u0430\u044f \u043b\u0438\u0441\u0430 \u043f\u0440\u044b\u0433\u0430\u0435\u0442 \u0447\u0435\u0440\u0435\u0437 \u043b\u0435\u043d\u0438\u0432\u0443\u044e \u0441\u043e\u0431\u0430\u043a\u0443.",
    "Der schnelle F\u00fcchs springt \u00fcber den faulen Hund, na\u00efve caf\u00e9 d\u00e9j\u00e0 vu.", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0647\u0630\u0627 \u0627\u062e\u062a\u0628\u0627\u0631.", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, \u092f\u0939 \u090f\u0915 \u092a\u0930\u0940\u0915\u094d\u0937\u093e \u0939\u0948\u0964",
    "It's 3.14159 or 1,234,567 and we'll see what they've done; I'd say 100%.", "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f44d\U0001f3fd"]


@functools.lru_cache
def english():
    files = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return "\n".join(f.read_text(encoding="utf-8") for f in files)


@functools.lru_cache
def code():
    files = [*sorted(ROOT.glob("core/text/*.cpp")), *sorted(ROOT.glob("scripts/*.py"))]
    return "\n".join(f.read_text(encoding="utf-8") for f in files)


@functools.lru_cache
def corpus():
    """Lines of English, code and other scripts."""
    return (english() + code()).splitlines(keepends=True) + SENTENCES * 40


def mixed_text(num_bytes, seed=1):
    """English, code, CJK and numbers in paragraphs, as prompts have them; the same for the same arguments."""
    rng = random.Random(seed)
    english_lines, code_lines = english().splitlines(keepends=True), code().splitlines(keepends=True)
    parts, size = [], 0
    while size < num_bytes:
        kind = rng.randrange(10)
        if kind < 5:
            lines, count = english_lines, 12
        elif kind < 8:
            lines, count = code_lines, 20
        else:
            lines, count = None, 0
        if lines:
            start = rng.randrange(len(lines) - count)
            part = "".join(lines[start:start + count])
        elif kind == 8:
            part = "".join(rng.choice(SENTENCES) for _ in range(8)) + "\n"
        else:
            part = " ".join(f"{rng.random() * 10 ** rng.randrange(9):.{rng.randrange(5)}f}" for _ in range(40)) + "\n"
        parts.append(part)
        size += len(part.encode())
    return "".join(parts)


def added(token_id, content, **flags):
    entry = {"id": token_id, "content": content, "special": False, "normalized": False, "lstrip": False, "rstrip": False,
             "single_word": False}
    entry.update(flags)
    return entry


def add_tokens(doc, special=(), plain=(), **flags):
    """Appends added tokens after all ids there are."""
    for content in [*special, *plain]:
        next_id = 1 + max([*doc["model"]["vocab"].values(), *(t["id"] for t in doc["added_tokens"])])
        doc["added_tokens"].append(added(next_id, content, special=content in special, **flags))
    return doc


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def train_byte_level(patterns, vocab_size, normalizer=None):
    """A byte-level BPE with these Splits (none: ByteLevel's own pattern), as a dict."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *map(split, patterns), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return json.loads(tokenizer.to_str())


BYTE_TOKENS = [f"<0x{b:02X}>" for b in range(256)]


@functools.lru_cache
def sentencepiece_json(vocab_size, byte_fallback):
    """A BPE over characters with \u2581 for spaces, without normalizer and pre-tokenizer, as JSON."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=vocab_size, limit_alphabet=250, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *(BYTE_TOKENS if byte_fallback else [])]))
    doc = json.loads(tokenizer.to_str())
    doc["added_tokens"] = [t for t in doc["added_tokens"] if t["content"] not in BYTE_TOKENS]
    doc["pre_tokenizer"] = None
    # Runs of spaces are tokens in published vocabularies, merged pairwise.
    vocab, run = doc["model"]["vocab"], "\u2581"
    while len(run) < 16:
        vocab.setdefault(run + run, len(vocab))
        doc["model"]["merges"].append([run, run])
        run += run
    return json.dumps(doc)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
SP_DECODER = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
              {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
BOS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
       "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
       "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}


def sentencepiece(vocab_size, byte_fallback=True, **changes):
    doc = json.loads(sentencepiece_json(vocab_size, byte_fallback))
    doc["decoder"] = {"type": "Sequence", "decoders": SP_DECODER}
    doc["post_processor"] = BOS
    for key, value in changes.items():
        (doc["model"] if key in doc["model"] else doc)[key] = value
    return doc


def metaspace(scheme, do_split):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": do_split}


def template(doc, before, after=()):
    ids = {t["content"]: t["id"] for t in doc["added_tokens"]}
    entries = [{"SpecialToken": {"id": t, "type_id": 0}} for t in before] + [{"Sequence": {"id": "A", "type_id": 0}}] + [
        {"SpecialToken": {"id": t, "type_id": 0}} for t in after]
    return {"type": "TemplateProcessing", "single": entries, "pair": entries + [{"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in [*before, *after]}}


BYTE_LEVEL_POST = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def qwen(vocab_size):
    doc = train_byte_level([QWEN], vocab_size, normalizers.NFC())
    doc["post_processor"] = BYTE_LEVEL_POST
    return add_tokens(doc, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>", "<think>", "</think>"])


def qwen35(vocab_size):
    return add_tokens(train_byte_level([QWEN35], vocab_size, normalizers.NFC()), ["<|im_start|>", "<|im_end|>"], ["<think>"])


def gpt_oss(vocab_size):
    doc = train_byte_level([O200K], vocab_size)
    doc["post_processor"] = BYTE_LEVEL_POST
    return add_tokens(doc, ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"])


def glm4(vocab_size):
    doc = train_byte_level([CL100K], vocab_size)
    add_tokens(doc, ["<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"],
               ["<think>", "</think>", "<tool_call>", "<arg_key>", "/nothink"])
    doc["post_processor"] = {"type": "Sequence", "processors": [BYTE_LEVEL_POST, template(doc, ["[gMASK]", "<sop>"])]}
    return doc


def llama4(vocab_size):
    doc = train_byte_level([O200K], vocab_size)
    add_tokens(doc, ["<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>"])
    doc["model"]["ignore_merges"] = True
    doc["post_processor"] = {"type": "Sequence", "processors": [BYTE_LEVEL_POST, template(doc, ["<|begin_of_text|>"])]}
    return doc


def deepseek(vocab_size):
    doc = train_byte_level(DEEPSEEK, vocab_size)
    doc["normalizer"] = {"type": "Sequence", "normalizers": []}
    return add_tokens(doc, ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"],
                      ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>", "</think>"])


def olmoe(vocab_size):
    doc = train_byte_level([], vocab_size, normalizers.NFC())
    add_tokens(doc, ["<|endoftext|>", "<|padding|>"])
    add_tokens(doc, [], [" " * n for n in range(24, 1, -1)], normalized=True)
    add_tokens(doc, [], ["|||EMAIL_ADDRESS|||"])
    doc["post_processor"] = template(doc, [], ["<|endoftext|>"])
    return doc


def bailing(vocab_size):
    return add_tokens(train_byte_level([BAILING], vocab_size), ["<|startoftext|>", "<|endoftext|>"], ["<role>", "</role>"])


def seed(vocab_size):
    return add_tokens(train_byte_level([SEED], vocab_size), ["<seed:bos>", "<seed:eos>"])


SENTENCEPIECE = {
    # Mixtral as published first (spaces by the normalizer), and as saved anew (spaces by the pre-tokenizer).
    "mixtral": lambda n: sentencepiece(n, normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, REPLACE]}),
    "mixtral-first": lambda n: sentencepiece(n, pre_tokenizer=metaspace("first", False)),
    "ernie": lambda n: sentencepiece(n, normalizer=REPLACE, post_processor=None,
                                     decoder={"type": "Sequence", "decoders": SP_DECODER[:3]}),
}
# Options that published files of this kind have, beyond the families above.
SENTENCEPIECE_OPTIONS = {
    "sp-always-split": lambda n: sentencepiece(n, pre_tokenizer=metaspace("always", True)),
    "sp-first-split": lambda n: sentencepiece(n, pre_tokenizer=metaspace("first", True)),
    "sp-never": lambda n: sentencepiece(n, pre_tokenizer=metaspace("never", False)),
    "sp-ignore-merges": lambda n: sentencepiece(n, pre_tokenizer=metaspace("always", True), ignore_merges=True),
    "sp-unk-fused": lambda n: sentencepiece(n, byte_fallback=False, pre_tokenizer=metaspace("always", False)),
    "sp-unk": lambda n: sentencepiece(n, byte_fallback=False, fuse_unk=False, pre_tokenizer=metaspace("first", True)),
    "sp-no-unk": lambda n: sentencepiece(n, byte_fallback=False, unk_token=None, pre_tokenizer=metaspace("never", True)),
    # A merge that joins two words, so words do not merge apart.
    "sp-across-words": lambda n: across_words(sentencepiece(n, normalizer=REPLACE)),
    # Added tokens that are looked for in normalised text, where a space is a \u2581.
    "sp-normalized-tokens": lambda n: add_tokens(
        sentencepiece(n, normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, REPLACE]}),
        [], ["<tool>", " the model", "caf\u00e9"], normalized=True),
}


def across_words(doc):
    vocab = doc["model"]["vocab"]
    for left, right in [("e", "\u2581"), ("e\u2581", "t"), ("s", "\u2581a")]:
        if left in vocab and right in vocab:
            vocab.setdefault(left + right, len(vocab))
            doc["model"]["merges"].insert(0, [left, right])
    return doc


# name: vocabulary size -> tokenizer.json as a dict
FAMILIES = {"qwen": qwen, "qwen3.5": qwen35, "gpt-oss": gpt_oss, "glm4": glm4, "llama4": llama4, "deepseek-v3": deepseek,
            "olmoe": olmoe, "bailing": bailing, "seed-oss": seed, **SENTENCEPIECE}


def long_run_parts(text):
    """The parts that Kimi's published code encodes one by one: of 400,000 characters at most, and cut where more than 25,000
    in a row are all white space or all not."""
    for start in range(0, len(text), 400_000):
        block, begin, run = text[start:start + 400_000], 0, 0
        for i, c in enumerate(block):
            run = run + 1 if i > 0 and c.isspace() == block[i - 1].isspace() else 1
            if run > 25_000:
                yield block[begin:i]
                begin, run = i, 1
        yield block[begin:]


class RankFile:
    """A tiktoken tokenizer: its files as published, and the package's encoding of them."""

    def __init__(self, pattern, vocab_size, special, num_special, nfc):
        doc = train_byte_level([pattern], vocab_size)
        # GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for U+0100 and on.
        alphabet = {}
        for b in range(256):
            printable = 0x21 <= b <= 0x7e or 0xa1 <= b <= 0xac or b >= 0xae
            alphabet[chr(b) if printable else chr(0x100 + sum(1 for c in alphabet if ord(c) >= 0x100))] = b
        if nfc:
            doc["normalizer"] = {"type": "NFC"}
        self.doc = doc  # the same vocabulary and pattern as a tokenizer.json
        by_id = sorted(doc["model"]["vocab"].items(), key=lambda entry: entry[1])
        self.ranks = {bytes(alphabet[c] for c in token): rank for token, rank in by_id}
        first = len(self.ranks)
        self.nfc, self.cuts_runs = nfc, not nfc
        self.special = {first + i: name for i, name in special.items()}
        names = {self.special.get(i, f"<|reserved_token_{i}|>"): i for i in range(first, first + num_special)}
        self.encoding = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=names)

    def rank_lines(self):
        return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in self.ranks.items())

    def config(self):
        """tokenizer_config.json, for those that name their special tokens there."""
        return {"added_tokens_decoder": {str(i): {"content": name, "lstrip": False, "rstrip": False, "normalized": False,
                                                  "single_word": False, "special": "tool" not in name}
                                         for i, name in self.special.items()}}

    def encode(self, text):
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        parts = long_run_parts(text) if self.cuts_runs else [text]
        return [i for part in parts for i in self.encoding.encode(part, allowed_special="all")]


def kimi(vocab_size):
    special = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 10: "<|im_system|>",
               11: "<|tool_calls_section_begin|>", 13: "<|tool_call_begin|>", 17: "<|im_middle|>", 254: "[UNK]", 255: "[PAD]"}
    return RankFile(KIMI, vocab_size, special, 258, nfc=False)


def hunyuan(vocab_size):
    names = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *(f"<|extra_{i}|>" for i in range(205))]
    return RankFile(QWEN, vocab_size, dict(enumerate(names)), len(names), nfc=True)


# name: (vocabulary size -> RankFile, file name)
RANK_FILES = {"kimi": (kimi, "tiktoken.model"), "hunyuan": (hunyuan, "hy.tiktoken")}
