"""Writes output_cases.json: answers with reasoning and tool calls in the formats that models write, and what two programs
that others wrote make of them: SGLang's detectors (whole text at once) and OpenAI's harmony library (token by token).

    pip install --no-deps --target FOLDER sglang==0.5.23
    pip install openai-harmony==0.0.8 orjson partial-json-parser pydantic
    TIKTOKEN_ENCODINGS_BASE=<folder with o200k_base.tiktoken> make_output_cases.py FOLDER

Not run by the tests. Only the modules that parse are loaded; what they import beside them is replaced by empty names.
"""
import json
import random
import sys
import types
from pathlib import Path
from typing import Optional

from pydantic import BaseModel


class Function(BaseModel):
    name: str
    description: Optional[str] = None
    parameters: Optional[dict] = None


class Tool(BaseModel):
    type: str = "function"
    function: Function


def load_sglang(folder):
    def package(name, path=None, **names):
        module = types.ModuleType(name)
        if path is not None:
            module.__path__ = [str(path)]
        for key, value in names.items():
            setattr(module, key, value)
        sys.modules[name] = module

    root = Path(folder, "sglang")
    package("sglang", root)
    package("sglang.srt", root / "srt")
    package("sglang.srt.entrypoints", root / "srt/entrypoints")
    package("sglang.srt.entrypoints.openai", root / "srt/entrypoints/openai")
    empty = type("Empty", (), {})
    names = {n: empty for n in ("ToolChoice", "ChatCompletionRequest", "ResponsesRequest", "ToolCallConstraint",
                                "LegacyStructuralTagResponseFormat", "StructuralTagResponseFormat",
                                "StructuresResponseFormat")}
    package("sglang.srt.entrypoints.openai.protocol", Tool=Tool, **names)
    if "transformers" not in sys.modules:
        package("transformers", PreTrainedTokenizerBase=empty)


STRING = {"type": "string"}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather now", "parameters": {
        "type": "object", "properties": {"city": STRING, "unit": {"type": "string", "enum": ["C", "F"]},
                                         "days": {"type": "integer"}, "hourly": {"type": "boolean"}}}}},
    {"type": "function", "function": {"name": "search-docs", "parameters": {
        "type": "object", "properties": {"query": STRING, "filters": {"type": "object"},
                                         "tags": {"type": "array", "items": STRING}, "score": {"type": "number"}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
WORDS = ["Paris", "São Paulo", "北京", "a\"b", "back\\slash", "two\nlines", "tab\there", "🙂", "1 < 2", "{x}", "[y]", "3", "true",
         "null ", " padded ", "C:\\dir", "<b>bold</b>", "it's", "</", "<|", "`code`", "é"]


def arguments_of(rng, name):
    words = lambda n: " ".join(rng.choice(WORDS) for _ in range(n)).strip()
    if name == "get_weather":
        made = {"city": words(rng.randint(1, 3)), "unit": rng.choice("CF"), "days": rng.randint(-3, 400),
                "hourly": rng.random() < 0.5}
    elif name == "search-docs":
        made = {"query": words(4), "filters": {"lang": words(1), "deep": {"n": [1, 2.5, None, True]}},
                "tags": [words(1), words(1)], "score": rng.choice([0.5, 2, -1.25])}
    else:
        made = {}
    keys = [k for k in made if rng.random() < 0.8]
    rng.shuffle(keys)
    return {k: made[k] for k in keys}


def dump(value, rng=None):
    indent = 2 if rng and rng.random() < 0.3 else None
    return json.dumps(value, ensure_ascii=False, indent=indent)


# How each family writes calls: the format that its chat template shows the model.
def hermes(calls, rng):
    return "\n".join("<tool_call>\n" + dump({"name": n, "arguments": a}) + "\n</tool_call>" for n, a in calls)


def tagged(open_, close, call, end, key_open, key_close):
    def write(calls, rng):
        text = ""
        for name, arguments in calls:
            parts = "".join(f"{key_open}{k}{key_close}\n{v if isinstance(v, str) else dump(v)}\n</parameter>\n"
                            for k, v in arguments.items())
            text += ("\n" if text else "") + open_ + "\n" + call.format(name) + "\n" + parts + end + "\n" + close
        return text
    return write


def minimax(calls, rng):
    text = "<minimax:tool_call>\n"
    for name, arguments in calls:
        parts = "".join(f'<parameter name="{k}">{v if isinstance(v, str) else dump(v)}</parameter>\n'
                        for k, v in arguments.items())
        text += f'<invoke name="{name}">\n{parts}</invoke>\n'
    return text + "</minimax:tool_call>"


def glm(calls, rng):
    return "\n".join(f"<tool_call>{n}\n" + "".join(
        f"<arg_key>{k}</arg_key>\n<arg_value>{v if isinstance(v, str) else dump(v)}</arg_value>\n"
        for k, v in a.items()) + "</tool_call>" for n, a in calls)


def deepseek_v3(calls, rng):
    return "<｜tool▁calls▁begin｜>" + "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{dump(a, rng)}\n```<｜tool▁call▁end｜>"
        for n, a in calls) + "<｜tool▁calls▁end｜>"


def deepseek_v31(calls, rng):
    return "<｜tool▁calls▁begin｜>" + "".join(
        f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{dump(a, rng)}<｜tool▁call▁end｜>" for n, a in calls) + "<｜tool▁calls▁end｜>"


def kimi(calls, rng):
    return "<|tool_calls_section_begin|>" + "".join(
        f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{dump(a, rng)}<|tool_call_end|>"
        for i, (n, a) in enumerate(calls)) + "<|tool_calls_section_end|>"


def mistral(calls, rng):
    return "[TOOL_CALLS] " + dump([{"name": n, "arguments": a} for n, a in calls])


def mistral_args(calls, rng):
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{dump(a, rng)}" for n, a in calls)


FORMATS = {
    "hermes": ("qwen", hermes), "qwen3_coder": ("qwen3_coder", tagged(
        "<tool_call>", "</tool_call>", "<function={}>", "</function>", "<parameter=", ">")),
    "minimax_m2": ("minimax-m2", minimax), "glm45": ("glm45", glm), "deepseek_v3": ("deepseekv3", deepseek_v3),
    "deepseek_v31": ("deepseekv31", deepseek_v31), "kimi_k2": ("kimi_k2", kimi), "mistral": ("mistral", mistral),
    "mistral/args": ("mistral", mistral_args),
}


def tool_cases(rng):
    import importlib
    detectors = {}
    for name, module, cls in (("qwen", "qwen25_detector", "Qwen25Detector"),
                              ("qwen3_coder", "qwen3_coder_detector", "Qwen3CoderDetector"),
                              ("minimax-m2", "minimax_m2", "MinimaxM2Detector"),
                              ("glm45", "glm4_moe_detector", "Glm4MoeDetector"),
                              ("deepseekv3", "deepseekv3_detector", "DeepSeekV3Detector"),
                              ("deepseekv31", "deepseekv31_detector", "DeepSeekV31Detector"),
                              ("kimi_k2", "kimik2_detector", "KimiK2Detector"),
                              ("mistral", "mistral_detector", "MistralDetector")):
        detectors[name] = getattr(importlib.import_module("sglang.srt.function_call." + module), cls)
    tools = [Tool(**t) for t in TOOLS]
    names = [t["function"]["name"] for t in TOOLS]
    cases = []
    for format_, (detector, write) in FORMATS.items():
        made = 0
        while made < 12:
            called = [(n, arguments_of(rng, n)) for n in rng.choices(names, k=rng.choice([0, 1, 1, 2, 3]))]
            before = rng.choice(["", "", "Let me look.", "First:\n\n- a < b\n- [1]\n\n"])
            text = before + (write(called, rng) if called else "")
            found = detectors[detector]().detect_and_parse(text, tools)
            calls = [{"name": c.name, "arguments": json.loads(c.parameters)} for c in found.calls]
            if [c["name"] for c in calls] != [n for n, _ in called]:
                continue  # the reference stumbles over its own format here
            cases.append({"format": format_.split("/")[0], "text": text, "content": found.normal_text.strip(),
                          "calls": calls})
            made += 1
    return cases


def reasoning_cases(rng):
    from sglang.srt.parser.reasoning_parser import ReasoningParser
    cases = []
    for ours, theirs, open_, close, stop in (
            ("deepseek_r1", "deepseek-r1", "<think>", "</think>", None), ("qwen3", "qwen3", "<think>", "</think>", "<tool_call>"),
            ("glm45", "glm45", "<think>", "</think>", "<tool_call>"),
            ("kimi_k2", "kimi_k2", "<think>", "</think>", "<|tool_calls_section_begin|>"),
            ("mistral", "mistral", "[THINK]", "[/THINK]", None)):
        for _ in range(12):
            words = lambda n: " ".join(rng.choice(WORDS) for _ in range(n))
            thought, answer = words(rng.randint(1, 6)), words(rng.randint(0, 5))
            text = open_ + rng.choice(["", "\n"]) + thought
            kind = rng.random()
            if kind < 0.7:
                text += rng.choice(["", "\n"]) + close + rng.choice(["", "\n\n"]) + answer
            elif kind < 0.85 and stop:
                text += stop + answer
            reasoning, content = ReasoningParser(theirs, stream_reasoning=False).parse_non_stream(text)
            cases.append({"format": ours, "text": text, "reasoning": (reasoning or "").strip(),
                          "content": (content or "").strip()})
    return cases


def harmony_cases(rng):
    from openai_harmony import HarmonyEncodingName, Role, StreamableParser, load_harmony_encoding
    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    special = {encoding.encode(m, allowed_special="all")[0]: m for m in (
        "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")}

    def write():
        words = lambda n: " ".join(rng.choice(WORDS + ["<|end|>", "<|start|>assistant"]) for _ in range(n))
        messages = []  # header (with markers), body
        for _ in range(rng.choice([0, 1, 1, 2])):
            messages.append((["<|channel|>", "analysis"], words(6)))
        if rng.random() < 0.3:
            messages.append((["<|channel|>", "commentary"], words(3)))
        if rng.random() < 0.5:
            for _ in range(rng.choice([1, 1, 2])):
                name = rng.choice(["get_weather", "search-docs", "now"])
                form = [["<|channel|>", f"commentary to=functions.{name} ", "<|constrain|>", "json"],
                        [f" to=functions.{name}", "<|channel|>", "commentary json"],
                        ["<|channel|>", f"commentary to=functions.{name}"],
                        ["<|channel|>", f"analysis to=functions.{name} code"]]
                messages.append((rng.choice(form), dump(arguments_of(rng, name), rng)))
            last = "<|call|>"
        else:
            messages.append((["<|channel|>", "final"], words(5)))
            last = "<|return|>"
        pieces = []  # [text] is text, a marker's name is the token
        for i, (header, body) in enumerate(messages):
            if i:
                pieces += ["<|start|>", "assistant"]
            pieces += header + ["<|message|>", [body], "<|end|>" if i + 1 < len(messages) else last]
        return pieces

    cases = []
    while len(cases) < 40:
        ids = []
        for piece in write():
            if isinstance(piece, list):
                ids += encoding.encode(piece[0], allowed_special=set(), disallowed_special=())
            else:
                ids += encoding.encode(piece, allowed_special="all")
        parser = StreamableParser(encoding, Role.ASSISTANT)
        for id_ in ids:
            parser.process(id_)
        tokens = [special.get(i) or encoding._inner.decode_bytes([i]).hex() for i in ids]  # markers; bytes in hexadecimal
        cases.append({"tokens": tokens, "messages": [
            {"channel": m.channel, "recipient": m.recipient, "text": m.content[0].text} for m in parser.messages]})
    return cases


def main():
    load_sglang(sys.argv[1])
    rng = random.Random(20)
    result = {"tools": TOOLS, "tool_calls": tool_cases(rng), "reasoning": reasoning_cases(rng),
              "harmony": harmony_cases(rng)}
    lines = [f'"{k}": [\n' + ",\n".join(json.dumps(c, ensure_ascii=False) for c in v) + "\n]" for k, v in result.items()]
    Path(__file__).with_name("output_cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
