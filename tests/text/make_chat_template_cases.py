#!/usr/bin/env python3
"""Writes chat_template_cases.json: what jinja2, set up as transformers does, renders for the templates in templates/*.jinja,
the demo model's template and the snippets below. chat_template_test.cpp compares our interpreter with it byte for byte.

    python3 tests/text/make_chat_template_cases.py            # writes the file; needs the PyPI package jinja2
    python3 tests/text/make_chat_template_cases.py --check    # recomputes and compares; status 1 when it differs
"""
import copy
import json
import pathlib
import re
import sys

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

OBJECT_TEXT = re.compile(r" at 0x[0-9a-f]+>|<LoopContext |<Macro |dict_(keys|values|items)\(|^range\(", re.I)
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CASES = HERE / "chat_template_cases.json"


class GenerationTag(Extension):
    """{% generation %}: transformers marks an assistant's answer with it; the text inside is output as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(form):
    from datetime import datetime

    return datetime.now().strftime(form)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


# ------------------------------------------------------------------------------------------------ conversations
def msg(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="call_1"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a \"city\" <now> & later",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city, e.g. Zürich 🌧"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"], "description": "How many days\nahead"},
                "where": {"oneOf": [{"type": "string"}, {"type": "number", "default": 0.5}]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "deep": {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "array"}}, "required": ["a"]},
            },
            "required": ["city"],
        },
    },
}
EMPTY_TOOL = {"type": "function", "function": {"name": "ping", "description": "Nothing", "parameters": {}}}

USER = [msg("user", "What is 384 + 157?")]
CONVERSATIONS = {
    "user": {"messages": USER},
    "no_prompt": {"messages": USER, "add_generation_prompt": False},
    "system": {"messages": [msg("system", "Be brief.")] + USER},
    "two_systems": {"messages": [msg("system", "One."), msg("system", "Two.")] + USER},
    "late_system": {"messages": USER + [msg("assistant", "541"), msg("system", "Now in French."), msg("user", "Again?")]},
    "turns": {"messages": USER + [msg("assistant", "541"), msg("user", "And 1 + 1?"), msg("assistant", "2"), msg("user", "Ok")]},
    "ends_with_assistant": {"messages": USER + [msg("assistant", "541")], "add_generation_prompt": False},
    "thinking": {"messages": USER + [msg("assistant", "<think>\n384+157\n</think>\n\n  541  "), msg("user", "Sure?")]},
    "reasoning_field": {"messages": USER + [msg("assistant", "541", reasoning_content="\nadd them\n"), msg("user", "Sure?")]},
    "unicode": {"messages": [msg("system", "Ünïcödé 中文 العربية"), msg("user", "🎉 e\u0301 \u200b\u00a0 ß İ\u2028end")]},
    "control_text": {"messages": [msg("user", "<|im_end|>\n<|im_start|>system\n<｜User｜>[INST] </s> {{ 7*7 }} {% raw %}")]},
    "empty": {"messages": [msg("system", ""), msg("user", ""), msg("assistant", ""), msg("user", " \n\t ")]},
    "no_messages": {"messages": []},
    "null_content": {"messages": USER + [msg("assistant", None, tool_calls=[call("ping", {})]), msg("tool", "pong")]},
    "tools": {"messages": USER, "tools": [WEATHER, EMPTY_TOOL]},
    "tools_and_system": {"messages": [msg("system", "Be brief.")] + USER, "tools": [WEATHER]},
    "tool_calls": {
        "messages": USER
        + [
            msg("assistant", "", tool_calls=[call("get_weather", {"city": "Zürich", "days": 3, "x": 1.5, "deep": {"a": [True, None, "<q>\"'"]}})]),
            msg("tool", '{"t": 21}', name="get_weather", tool_call_id="call_1"),
            msg("assistant", "21 degrees"),
            msg("user", "Thanks"),
        ],
        "tools": [WEATHER],
    },
    "tool_call_strings": {
        "messages": USER
        + [
            msg("assistant", "", tool_calls=[call("get_weather", '{"city": "Bern"}'), call("ping", "{}", "call_2")]),
            msg("tool", "21", tool_call_id="call_1"),
            msg("tool", "pong", tool_call_id="call_2"),
        ],
        "tools": [WEATHER, EMPTY_TOOL],
    },
    "tool_call_with_text": {
        "messages": USER + [msg("assistant", "Let me see.", tool_calls=[call("ping", {})]), msg("tool", "pong"), msg("tool", "ping")]
    },
    "parts": {"messages": [msg("user", [{"type": "text", "text": "Part one, "}, {"type": "text", "text": "part two"}])]},
    "thinking_on": {"messages": USER, "enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    "thinking_off": {"messages": USER, "enable_thinking": False, "thinking": False, "reasoning_effort": "low"},
    "nested_kwargs": {"messages": USER, "options": {"thinking": {"enabled": True, "budget": 512}}, "builtin_tools": ["python"]},
    "reasoning_and_calls": {
        "messages": USER
        + [
            msg("assistant", "First answer", reasoning_content="old thought"),
            msg("user", "And the weather?"),
            msg("assistant", "Looking.", reasoning_content="it asks for weather", thinking="it asks",
                tool_calls=[call("get_weather", {"city": "Bern", "tags": ["a", 1], "deep": {"a": False}}, "call_000000001"), call("ping", {}, "call_000000002")]),
            msg("tool", "12", tool_call_id="call_000000001", name="get_weather"),
            msg("tool", {"ok": True}, tool_call_id="call_000000002", name="ping"),
            msg("assistant", "It is 12.", reasoning_content="done"),
        ],
        "tools": [WEATHER, EMPTY_TOOL], "add_generation_prompt": False, "reasoning_effort": "medium",
    },
    "parts_of_many_kinds": {
        "messages": [msg("system", [{"type": "text", "text": " Be kind. "}]),
                     msg("user", [{"type": "text", "text": "What is "}, {"type": "image", "url": "x"}, {"type": "image_url", "image_url": {"url": "y"}}, {"type": "text", "text": " this?"}]),
                     msg("assistant", [{"type": "text", "text": "A cat"}]), msg("user", ["plain", {"type": "video"}])],
    },
    "control_text_everywhere": {
        "messages": [msg("system", "<|im_end|><｜User｜>"), msg("user", "</think><|eot|>[/INST]<|endofuserprompt|>[e~[", name="<|im_user|>"),
                     msg("assistant", "<|end_of_sentence|>", reasoning_content="</think><|end|>",
                         tool_calls=[call("<|call|>", {"<|im_start|>": "</parameter><|eot_id|>", "[ARGS]": ["<|extra_0|>"]}, "<|tool_call_end|>")]),
                     msg("tool", "<|observation|></tool_response>", name="<|start|>", tool_call_id="<|tool_call_begin|>")],
        "tools": [{"type": "function", "function": {"name": "<|call|>", "description": "<｜tool▁calls▁end｜>", "parameters": {"type": "object", "properties": {"<|im_start|>": {"type": "string", "description": "</tools>"}}}}}],
    },
    "custom_tools": {"messages": USER, "custom_tools": [EMPTY_TOOL], "tools_in_user_message": True, "builtin_tools": ["search", "code_interpreter"], "model_identity": "I am M."},
    "documents": {"messages": USER, "tools": None, "documents": [{"title": "One", "text": "Body"}], "add_generation_prompt": True},
    "only_system": {"messages": [msg("system", "Alone.")]},
    "wrong_order": {"messages": [msg("assistant", "Hello"), msg("user", "Hi"), msg("user", "Twice")]},
    "unknown_role": {"messages": [msg("narrator", "Once upon a time")]},
    "no_content": {"messages": [{"role": "user"}]},
}
DEFAULTS = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", "today": "2025-01-31"}

VALUES = {
    "s": "Hello, wörld", "pad": "  x \n", "empty": "", "n": 7, "neg": -3, "f": 2.5, "t": True, "no": False, "nil": None,
    "list": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], ["x", None]],
    "d": {"b": 1, "a": [1.0, "two"], "items_": "i", "get": "shadow", "Z": None},
    "people": [{"name": "Ann", "age": 31, "tags": {"x": 1}}, {"name": "bob", "age": 9}, {"name": "Cyd", "age": 31, "vip": True}],
    "quote": "it's \"q\" \\ \n\t\x01 é \u200b",
}
BRACES = "{{ %s }}"


def snippets():
    """One expression or short template each; every line is a case of its own."""
    for line in (HERE / "templates" / "expressions.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("##"):
            yield line.replace("␤", "\n") if line.startswith(("{", "␤", "text:")) else BRACES % line


def attempt(env, source, variables):
    """(output, None), or (None, the stage that failed)."""
    try:
        template = env.from_string(source)
    except Exception:  # jinja2 also lets RecursionError and others out
        return {"error": "compile"}
    try:
        output = template.render(**copy.deepcopy(variables))  # `list|indent` appends to the list before it fails
        # Objects whose text is an address or a class name: our interpreter refuses to print them.
        return {"error": "render"} if OBJECT_TEXT.search(output) else {"output": output}
    except Exception as error:
        out = {"error": "render"}
        if type(error) is jinja2.exceptions.TemplateError:
            out["message"] = str(error)
        return out


def cases():
    env = environment()
    out = {"snippets": [], "templates": []}
    for source in snippets():
        out["snippets"].append({"source": source, **attempt(env, source, VALUES)})
    templates = {path.name: path.read_text(encoding="utf-8") for path in sorted((HERE / "templates").glob("*.jinja"))}
    templates["demo"] = json.loads((ROOT / "models/demo/tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    for name, source in templates.items():
        for title, variables in CONVERSATIONS.items():
            out["templates"].append({"template": name, "conversation": title, **attempt(env, source, {**DEFAULTS, **variables})})
    return {"values": VALUES, "defaults": DEFAULTS, "conversations": CONVERSATIONS, **out}


def main():
    text = json.dumps(cases(), ensure_ascii=False, indent=1) + "\n"
    if "--check" not in sys.argv[1:]:
        CASES.write_text(text, encoding="utf-8")
        return 0
    if CASES.read_text(encoding="utf-8") == text:
        return 0
    print(f"{CASES.name} differs from what jinja2 {jinja2.__version__} renders; run {pathlib.Path(__file__).name} and look at the change")
    return 1


if __name__ == "__main__":
    sys.exit(main())
