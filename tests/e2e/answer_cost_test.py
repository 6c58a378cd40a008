"""What one answer may cost, and whose error a bad request is: sampling ranges, the bound on logprobs, answers in pieces, clients
that do not read, and bodies that only look like JSON. Standard library."""
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

from harness import DEMO, JSON, MOECTL, ROOT, Server, environment, events

HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
KV_PAGES = "moectl_kv_cache_pages_used"


def resident_bytes(server):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


class Watch:
    """While the block runs, asks /health over and over on a connection of its own: the longest answer in seconds, and the most
    memory that was seen meanwhile."""

    def __init__(self, server):
        self.server, self.stop, self.longest = server, threading.Event(), 0.0
        self.before = self.peak = resident_bytes(server)

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self):
        connection = self.server.connect()
        while not self.stop.is_set():
            start = time.monotonic()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.longest = max(self.longest, time.monotonic() - start)
            self.peak = max(self.peak, resident_bytes(self.server))
        connection.close()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


class AnswerCost(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-num-seqs", "32")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_values_that_the_sampler_cannot_use_are_the_requests_error(self):
        for name, value in (("repetition_penalty", 1e-40), ("repetition_penalty", 1e-3), ("repetition_penalty", 1e38),
                            ("temperature", 1e-40), ("top_p", 1e-50), ("min_p", 1e-42), ("presence_penalty", 1e-40),
                            ("frequency_penalty", 1e38), ("logit_bias.5", 1e38)):
            body = HELLO | ({"logit_bias": {"5": value}} if "." in name else {name: value})
            for stream in (False, True):
                reply = self.server.post(CHAT, body | {"stream": stream})
                self.assertEqual((reply.status, reply.error()["param"]), (400, name), (value, reply.body))
                self.assertEqual(reply.error()["type"], "invalid_request_error")
        body = HELLO | {"repetition_penalty": 0.01, "presence_penalty": -2, "frequency_penalty": 2, "max_tokens": 30,
                        "logit_bias": {str(i): -100 for i in range(300)}}
        self.assertEqual(self.server.post(CHAT, body).status, 200, "the ends of the ranges overflow nothing")

    def test_logprobs_of_an_answer_are_bounded_before_they_are_paid(self):
        prompt = [5 + i % 200 for i in range(2000)]
        before = resident_bytes(self.server)
        start = time.monotonic()
        for more, param in (({"echo": True, "logprobs": 20, "prompt_logprobs": 20}, "logprobs"),
                            ({"logprobs": 1, "prompt_logprobs": 20}, "prompt_logprobs"),
                            ({"echo": True, "logprobs": 20, "stream": True}, "logprobs")):
            reply = self.server.post(COMPLETIONS, {"prompt": [prompt] * 4, "n": 16, "max_tokens": 1} | more)
            self.assertEqual((reply.status, reply.error()["param"]), (400, param), reply.body[:300])
        reply = self.server.post(COMPLETIONS, {"prompt": [[5]] * 8, "n": 16, "logprobs": 20, "max_tokens": 1900})
        self.assertEqual((reply.status, reply.error()["param"]), (400, "logprobs"), "max_tokens that are given count")
        self.assertLess(time.monotonic() - start, 10)
        self.assertLess(resident_bytes(self.server) - before, 100 << 20)
        # What is only possible refuses nobody: the answers end by themselves.
        body = HELLO | {"n": 4, "logprobs": True, "top_logprobs": 5}
        choices = self.server.post(CHAT, body).json()["choices"]
        self.assertEqual([c["finish_reason"] for c in choices], ["stop"] * 4)

    # The largest answer there may be, 50 MB: the I/O thread serves others while it is made and sent.
    def test_a_large_answer_keeps_nobody_waiting(self):
        prompt = [5 + (i * 7) % 200 for i in range(1540)]
        self.server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 1})  # cached, but for the choice that scores it
        body = {"prompt": prompt, "n": 16, "echo": True, "logprobs": 20, "prompt_logprobs": 20, "max_tokens": 1}
        with Watch(self.server) as watch:
            reply = self.server.post(COMPLETIONS, body)
        self.assertEqual(reply.status, 200, reply.body[:300])
        answer = reply.json()
        self.assertEqual(len(answer["choices"]), 16)
        first = answer["choices"][0]
        for choice in answer["choices"]:
            self.assertEqual(choice["prompt_logprobs"], first["prompt_logprobs"])
            self.assertEqual(choice["logprobs"]["top_logprobs"][:1540], first["logprobs"]["top_logprobs"][:1540])
            self.assertEqual(len(choice["prompt_logprobs"]), 1540)
            self.assertEqual(len(choice["logprobs"]["tokens"]), 1541)
        self.assertGreater(len(reply.body), 20 << 20)
        self.assertLess(watch.longest, 1.0)
        self.assertLess(watch.peak - watch.before, len(reply.body))

    def test_a_stream_with_large_events(self):
        prompt = [5 + i % 200 for i in range(500)]
        body = {"prompt": prompt, "echo": True, "logprobs": 20, "max_tokens": 3, "ignore_eos": True}
        whole = self.server.post(COMPLETIONS, body).json()["choices"][0]
        connection = self.server.connect()
        connection.request("POST", COMPLETIONS, json.dumps(body | {"stream": True, "n": 2}), JSON)
        tops = {0: [], 1: []}
        for data in events(connection.getresponse()):
            for choice in json.loads(data)["choices"] if data != "[DONE]" else []:
                if choice["logprobs"]:
                    tops[choice["index"]] += choice["logprobs"]["top_logprobs"]
        connection.close()
        self.assertEqual(len(whole["logprobs"]["top_logprobs"]), 503)
        self.assertEqual(tops[0][:500], whole["logprobs"]["top_logprobs"][:500])
        self.assertEqual(tops[1][:500], whole["logprobs"]["top_logprobs"][:500])

    def test_a_client_that_reads_nothing_is_cancelled(self):
        body = json.dumps(HELLO | {"n": 16, "stream": True, "ignore_eos": True, "max_tokens": 1900, "logprobs": True,
                                   "top_logprobs": 20}).encode()
        made = self.server.metric("moectl_generation_tokens_total")
        host, port = self.server.url.removeprefix("http://").split(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            start = time.monotonic()
            client.sendall(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(body) + body)
            self.server.wait_until(lambda: "reads its stream too slowly" in self.server.logged(), "the log says why", 25)
            self.server.wait_until(lambda: self.server.metric(KV_PAGES) == 0, "its pages are free", 5)
            self.assertLess(time.monotonic() - start, 25)
        self.assertLess(self.server.metric("moectl_generation_tokens_total") - made, 16 * 1900 / 2)

    def test_a_slow_but_steady_reader_gets_all(self):
        body = HELLO | {"n": 4, "stream": True, "ignore_eos": True, "max_tokens": 150, "logprobs": True, "top_logprobs": 20}
        connection = self.server.connect()
        connection.sock = socket.create_connection((connection.host, connection.port))
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.request("POST", CHAT, json.dumps(body), JSON)
        response, text, pause = connection.getresponse(), b"", threading.Event()
        while piece := response.read1(16 << 10):
            text += piece
            pause.wait(0.01)  # a slow network
        connection.close()
        self.assertTrue(text.endswith(b"data: [DONE]\n\n"), text[-300:])
        self.assertEqual(text.count(b'"finish_reason":"length"'), 4)

    def test_bodies_that_only_begin_as_json(self):
        body = json.dumps(HELLO).encode()
        for path, good in ((CHAT, body), ("/tokenize", b'{"prompt": "Hi"}')):
            for tail in (b"\0", b"\0{}", b"\0" + b"x" * 100):
                reply = self.server.post(path, good + tail)
                self.assertEqual(reply.status, 400, reply.body)
                self.assertIn("NUL", reply.error()["message"])
            self.assertEqual(self.server.post(path, good + b" \r\n\t").status, 200)

    def test_content_encoding(self):
        for coding, status in (("gzip", 415), ("br", 415), ("identity", 200)):
            reply = self.server.post(CHAT, HELLO, JSON | {"Content-Encoding": coding})
            self.assertEqual(reply.status, status, reply.body)
            if status == 415:
                self.assertIn(f"Content-Encoding `{coding}`", reply.error()["message"])

    def test_an_empty_line_before_the_request_line(self):
        host, port = self.server.url.removeprefix("http://").split(":")
        request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for before, status in ((b"\r\n", b"200"), (b"\r\n\r\n", b"400")):
            with socket.create_connection((host, int(port)), 30) as client:
                client.sendall(before + request)
                self.assertEqual(client.recv(12)[9:], status)


class Router(unittest.TestCase):
    def test_content_encoding(self):
        with tempfile.NamedTemporaryFile("w", suffix=".secret") as secret:
            secret.write("an answer's cost, and the secret of it\n")
            secret.flush()
            with Server("--cluster-secret-file", secret.name, "--decode", "http://127.0.0.1:1", command="serve-router") as router:
                reply = router.post(CHAT, HELLO, JSON | {"Content-Encoding": "gzip"})
                self.assertEqual(reply.status, 415, reply.body)
                self.assertIn("Content-Encoding `gzip`", reply.error()["message"])


class Checkpoint(unittest.TestCase):
    def test_sampling_defaults_are_checked_like_requests(self):
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "demo"
            shutil.copytree(DEMO, model)
            config = model / "generation_config.json"
            for name, value in (("top_p", 0), ("temperature", 3), ("repetition_penalty", 1e-40), ("min_p", -1)):
                config.write_text(json.dumps({name: value}))
                ended = subprocess.run([MOECTL, "serve-decode", str(model), "--port", "0", "--ops-port", "0"], text=True,
                                       capture_output=True, timeout=60, env=environment(), cwd=ROOT)
                self.assertEqual(ended.returncode, 65, ended.stderr)
                self.assertIn("generation_config.json", ended.stderr)
                self.assertIn(f"`{name}`", ended.stderr)


if __name__ == "__main__":
    unittest.main()
