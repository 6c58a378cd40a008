"""The line that a worker logs for each request: fields for programs, why a request was refused, never what it said."""
import json
import unittest

from harness import Server

SECRET = "open sesame"
CHAT = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": SECRET}]}


class Lines:
    """The lines about requests, by their ids."""

    def __init__(self, server):
        self.server, self.num = server, 0

    def send(self, path, body):
        """The reply and the log line of one request."""
        self.num += 1
        id = f"log-test-{self.num}"
        reply = self.server.post(path, body, {"Content-Type": "application/json", "X-Request-Id": id})
        found = []

        def logged():
            whole = self.server.logged().split("\n")[:-1]
            found[:] = [line for line in whole if id in line and path in line]
            return found
        self.server.wait_until(logged, f"{id} is logged")
        return reply, found[0]


class JsonLog(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server("--log-format", "json"))
        cls.lines = Lines(cls.server)

    def test_an_answer(self):
        reply, line = self.lines.send("/v1/chat/completions", CHAT)
        self.assertEqual(reply.status, 200, reply.body)
        usage, logged = reply.json()["usage"], json.loads(line)
        self.assertEqual([logged[key] for key in ("status", "prompt_tokens", "completion_tokens", "path", "level")],
                         [200, usage["prompt_tokens"], usage["completion_tokens"], "/v1/chat/completions", "info"])
        self.assertLessEqual(0 < logged["prepare_seconds"] and logged["ttft_seconds"], logged["total_seconds"])
        self.assertNotIn("error", logged)
        self.assertIn("completion=3", logged["message"])

    def test_a_refusal(self):
        reply, line = self.lines.send("/v1/chat/completions", {**CHAT, "top_p": 3})
        self.assertEqual(reply.status, 400)
        logged = json.loads(line)
        self.assertEqual((logged["status"], logged["param"]), (400, "top_p"))
        self.assertEqual(logged["error"], reply.error()["message"])
        self.assertIn("param=top_p: `top_p` must be", logged["message"])

    def test_the_reason_is_there_and_the_text_is_not(self):
        for path, body in (
                ("/v1/chat/completions", {**CHAT, "model": SECRET}),
                ("/v1/chat/completions", {**CHAT, "temperature": SECRET}),
                ("/v1/chat/completions", {**CHAT, "messages": SECRET}),
                ("/v1/chat/completions", {**CHAT, "messages": [{"role": SECRET, "content": "x"}]}),
                ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [{"type": SECRET}]}]}),
                ("/v1/chat/completions", {**CHAT, "logit_bias": {SECRET: 1}}),
                ("/v1/chat/completions", {**CHAT, "logit_bias": {"` " + SECRET + " `": 1}}),
                ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"` " + SECRET + " `": {}}}),
                ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": {"name": SECRET}}]}),
                ("/v1/chat/completions", {**CHAT, "tool_choice": {"type": "function", "function": {"name": SECRET}}}),
                ("/v1/chat/completions", json.dumps(CHAT)[:-2]),
                ("/v1/chat/completions", json.dumps(CHAT)[:-2] + SECRET),
                ("/v1/chat/completions", '{"' + SECRET + '": 1, "' + SECRET + '": 2}'),
                ("/v1/chat/completions", '"' + SECRET + '"'),
                ("/v1/completions", {"model": "demo", "prompt": {SECRET: SECRET}}),
                ("/v1/completions", {"model": "demo", "prompt": [SECRET, 1]}),
                ("/tokenize", {"model": "demo", "prompt": [SECRET]}),
                ("/tokenize", json.dumps({"prompt": SECRET})[:-1]),
                ("/detokenize", {"model": "demo", "tokens": SECRET})):
            with self.subTest(path=path, body=body):
                reply, line = self.lines.send(path, body)
                self.assertIn(reply.status, (400, 404), reply.body)
                logged = json.loads(line)
                self.assertEqual(logged["status"], reply.status)
                self.assertGreater(len(logged["error"]), 10)
                self.assertLessEqual(len(logged["error"]), 200)
        self.assertNotIn("sesame", self.server.logged())


class TextLog(unittest.TestCase):
    def test_a_sentence(self):
        with Server() as server:
            lines = Lines(server)
            _, line = lines.send("/v1/chat/completions", CHAT)
            self.assertRegex(line, r"info +log-test-1 /v1/chat/completions 200 prompt=\d+ completion=3 ttft=[\d.]+ms total=[\d.]+ms$")
            _, line = lines.send("/v1/chat/completions", {**CHAT, "top_p": 3})
            self.assertRegex(line, r" 400 prompt=0 .* total=[\d.]+ms param=top_p: `top_p` must be a number .*, not the number 3$")


if __name__ == "__main__":
    unittest.main()
