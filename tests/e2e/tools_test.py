"""Tool calls and reasoning through the real server, with checkpoints that write chosen answers (scripted.py), read by the
openai package: the stream that its helper accumulates is the object of the whole response."""
import json
import tempfile
import unittest

import openai

from harness import DEMO, Server
from scripted import cut, write_checkpoint

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city", "strict": True, "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"],
        "additionalProperties": False}}}
NOW = {"type": "function", "function": {"name": "now", "strict": True, "parameters": {
    "type": "object", "properties": {}, "additionalProperties": False}}}
ARGUMENTS = {"city": "Zürich, 北京 \"X\"", "days": 3}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
TEMPLATE = """{%- for m in messages -%}
{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}[call {{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}]{%- endfor -%}
{%- else -%}[{{ m.role }} {{ m.content }} {{ m.tool_call_id }}]{%- endif -%}
{%- endfor -%}
{%- if tools -%}[tools {{ tools | tojson }}]{%- endif -%}{#- HINTS -#}"""


def template(hints, names):
    """Ends with the start token of the script that the request names; `hints` are what the family's template writes."""
    start = "".join("{%- if script == '" + n + "' -%}<|script " + n + "|>{%- endif -%}" for n in names)
    return TEMPLATE.replace("HINTS", hints) + start


TEXT = "No < tool [needed] here.\n"


class Format:
    """A family: what it writes for a call, and which of its markers are tokens."""

    def __init__(self, name, hints, call, two=None, tokens=(), special=(), thinks=True, reasoning=None):
        self.name, self.hints, self.reasoning = name, hints, reasoning
        self.tokens, self.special = [*tokens, *special], special
        self.thinks = thinks
        if thinks:
            self.tokens += ["<think>", "</think>"]
            call = "<think>\nWhich city?\n</think>\n\n" + call
        self.scripts = {"call": call, "text": TEXT}
        if two:
            self.scripts["two"] = "Both:\n\n" + two


FORMATS = [
    Format("hermes", "<think> <tool_call>", '<tool_call>\n{"name": "get_weather", "arguments": ' + JSON + "}\n</tool_call>",
           '<tool_call>{"name":"now","arguments":{}}</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments" : ' + JSON
           + " }\n</tool_call>", reasoning="qwen3"),
    Format("qwen3_coder", "<think> <tool_call> <function= <parameter=",
           '<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich, 北京 "X"\n</parameter>\n<parameter=days>\n3\n</parameter>\n'
           "</function>\n</tool_call>", reasoning="qwen3"),
    Format("glm45", "<think> <tool_call> <arg_key>",
           '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich, 北京 "X"</arg_value>\n<arg_key>days</arg_key>\n'
           "<arg_value>3</arg_value>\n</tool_call>", reasoning="glm45"),
    Format("deepseek_v3", "<｜tool▁calls▁begin｜> ```json",
           "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n" + JSON
           + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
           tokens=["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
           reasoning="deepseek_r1"),
    Format("kimi_k2", "<think> <|tool_calls_section_begin|> <|tool_call_begin|>",
           "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>" + JSON
           + "<|tool_call_end|><|tool_calls_section_end|>",
           special=["<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
                    "<|tool_calls_section_end|>"], reasoning="kimi_k2"),
    Format("harmony", "<|channel|> <|message|>",
           " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>" + JSON + "<|call|>",
           special=["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"], thinks=False,
           reasoning="gpt_oss"),
]
del FORMATS[-1].scripts["text"]  # harmony has no text without markers, and each can stand in one script only


def plain(message):
    """A message as data; ids of calls are drawn anew for each answer."""
    data = message.model_dump(exclude_none=True)
    data.pop("parsed", None)
    for call in data.get("tool_calls", []):
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
        assert call.pop("id")
    return data


class Tools(unittest.TestCase):
    def serve(self, format_, *flags):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        scripts = cut(format_.scripts, format_.tokens)
        write_checkpoint(folder.name, scripts, template(format_.hints, scripts), format_.tokens, format_.special)
        server = Server(*flags, model=folder.name)
        self.addCleanup(server.__exit__)
        return server, openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)

    def ask(self, client, script, **options):
        body = {"chat_template_kwargs": {"script": script}, **options.pop("extra_body", {})}
        return dict(model="demo", messages=[{"role": "user", "content": "Weather?"}], extra_body=body, **options)

    def test_every_format(self):
        for format_ in FORMATS:
            with self.subTest(format_.name):
                server, client = self.serve(format_)
                info = server.get("/server_info", base=server.ops).json()
                self.assertEqual((info["reasoning_parser"], info["tool_call_parser"]), (format_.reasoning, format_.name))
                self.assertIn(f"tool-call parser {format_.name} (by the checkpoint)", server.logged())
                self.check_call(client, format_)
                if "text" in format_.scripts:
                    self.check_text(client, format_)
                if "two" in format_.scripts:
                    self.check_two_calls(client)

    def check_call(self, client, format_):
        request = self.ask(client, "call", tools=[WEATHER, NOW])
        whole = client.chat.completions.create(**request)
        choice = whole.choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertIsNone(choice.message.content)
        call, = choice.message.tool_calls
        self.assertEqual((call.type, call.function.name), ("function", "get_weather"))
        self.assertEqual(json.loads(call.function.arguments), ARGUMENTS)
        self.assertEqual(call.id == "functions.get_weather:0", format_.name == "kimi_k2")
        if format_.thinks:
            self.assertEqual(choice.message.reasoning_content, "Which city?")
            self.assertGreater(whole.usage.completion_tokens_details.reasoning_tokens, 0)
        with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
            events = [e.type for e in stream]
            final = stream.get_final_completion()
        self.assertIn("tool_calls.function.arguments.delta", events)
        self.assertIn("tool_calls.function.arguments.done", events)
        self.assertEqual(plain(final.choices[0].message), plain(choice.message))
        self.assertEqual(final.choices[0].finish_reason, "tool_calls")
        self.assertEqual(final.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(final.usage.completion_tokens_details, whole.usage.completion_tokens_details)
        self.assertEqual(final.choices[0].message.tool_calls[0].function.parsed_arguments, ARGUMENTS)
        # The name comes first and once; in how many parts the arguments come depends on how fast they are consumed.
        chunks = [e.choices[0] for e in client.chat.completions.create(**request, stream=True)]
        self.assertFalse([c for c in chunks if c.delta.tool_calls and c.finish_reason], "clients end a call at a later chunk")
        parts = [c for chunk in chunks for c in chunk.delta.tool_calls or []]
        self.assertEqual([bool(p.function.name) for p in parts], [True] + [False] * (len(parts) - 1))
        self.assertEqual([bool(p.id) for p in parts], [bool(p.function.name) for p in parts])
        self.assertEqual("".join(p.function.arguments or "" for p in parts), call.function.arguments)
        # Cut by max_tokens: arguments as far as they came.
        for limit in range(1, whole.usage.completion_tokens):
            cut_choice = client.chat.completions.create(**request, max_tokens=limit).choices[0]
            self.assertEqual(cut_choice.finish_reason, "length")
            for partial in cut_choice.message.tool_calls or []:
                self.assertEqual(partial.function.name, "get_weather")
                self.assertTrue(call.function.arguments.startswith(partial.function.arguments), partial.function.arguments)

    def check_text(self, client, format_):
        """An answer without calls is the same with tools and without."""
        answers = [client.chat.completions.create(**self.ask(client, "text", **options)).choices[0]
                   for options in ({}, {"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"})]
        for answer in answers:
            self.assertEqual(answer.finish_reason, "stop")
            self.assertIsNone(answer.message.tool_calls)
            self.assertEqual(answer.message.content, TEXT)
        raw = client.chat.completions.create(**self.ask(client, "call", tools=[WEATHER], tool_choice="none")).choices[0]
        self.assertEqual(raw.finish_reason, "stop")
        self.assertIsNone(raw.message.tool_calls)
        self.assertIn("get_weather", raw.message.content)

    def check_two_calls(self, client):
        request = self.ask(client, "two", tools=[WEATHER, NOW])
        choice = client.chat.completions.create(**request).choices[0]
        self.assertEqual(choice.message.content, "Both:")
        self.assertEqual([c.function.name for c in choice.message.tool_calls], ["now", "get_weather"])
        self.assertEqual([json.loads(c.function.arguments) for c in choice.message.tool_calls], [{}, ARGUMENTS])
        self.assertEqual(len({c.id for c in choice.message.tool_calls}), 2)
        with client.chat.completions.stream(**request) as stream:
            final = stream.get_final_completion().choices[0]
        self.assertEqual(plain(final.message), plain(choice.message))
        one = client.chat.completions.create(**request, parallel_tool_calls=False).choices[0]
        self.assertEqual([c.function.name for c in one.message.tool_calls], ["now"])
        # The conversation goes on: the call and its result come back.
        history = [*request["messages"], choice.message.model_dump(exclude_none=True),
                   *({"role": "tool", "tool_call_id": c.id, "content": "21"} for c in choice.message.tool_calls)]
        again = client.chat.completions.create(**{**request, "messages": history}).choices[0]
        self.assertEqual(len(again.message.tool_calls), 2)

    def test_through_the_router(self):
        secret = tempfile.NamedTemporaryFile("w")
        secret.write("5ec2e7" * 8)
        secret.flush()
        self.addCleanup(secret.close)
        server, direct = self.serve(FORMATS[0], "--cluster-secret-file", secret.name)
        with Server("--decode", server.url, "--cluster-secret-file", secret.name, command="serve-router") as router:
            client = openai.OpenAI(base_url=router.url + "/v1", api_key="none", max_retries=0, timeout=60)
            request = self.ask(client, "two", tools=[WEATHER, NOW])
            expected = plain(direct.chat.completions.create(**request).choices[0].message)
            self.assertEqual(plain(client.chat.completions.create(**request).choices[0].message), expected)
            with client.chat.completions.stream(**request) as stream:
                self.assertEqual(plain(stream.get_final_completion().choices[0].message), expected)
            with self.assertRaises(openai.BadRequestError) as caught:
                client.chat.completions.create(**request, tool_choice="required")
            self.assertEqual(caught.exception.param, "tool_choice")

    def test_refusals(self):
        server, client = self.serve(FORMATS[0], "--tool-call-parser", "none")
        with self.assertRaises(openai.BadRequestError) as caught:
            client.chat.completions.create(**self.ask(client, "call", tools=[WEATHER]))
        self.assertEqual(caught.exception.param, "tools")
        self.assertIn("--tool-call-parser", caught.exception.message)
        with Server("--tool-call-parser", "qwen3") as demo:  # the operator insists, though the template shows no tools
            self.assertIn("shows no tools", demo.logged())
            client = openai.OpenAI(base_url=demo.url + "/v1", api_key="none", max_retries=0, timeout=60)
            answer = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello!"}], tools=[NOW],
                                                    temperature=0)
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            for options, param in (({"tool_choice": "required"}, "tool_choice"),
                                   ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, "tool_choice"),
                                   ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
                                   ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id")):
                with self.assertRaises(openai.BadRequestError) as caught:
                    client.chat.completions.create(**{"model": "demo", "messages": [{"role": "user", "content": "Hello!"}],
                                                      "tools": [NOW], **options})
                self.assertEqual(caught.exception.param, param)


if __name__ == "__main__":
    unittest.main(verbosity=2)
