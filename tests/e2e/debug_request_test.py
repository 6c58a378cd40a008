"""`moectl debug-request` against a server of fixed bytes, and against the real one. Standard library."""
import json
import os
import pty
import signal
import socket
import subprocess
import threading
import unittest

from harness import MOECTL, Server, environment

TIMELINE = {"role": "router", "worker": "http://127.0.0.1:8080", "request_id": "req-7",
            "stages": [{"name": "queue", "start_ms": 0, "duration_ms": 2, "detail": ""},
                       {"name": "route", "start_ms": 2, "duration_ms": 1, "detail": ""}],
            "prefill_candidates": [{"worker": "http://127.0.0.1:8100", "load": 1, "cached_blocks": 3, "chosen": True, "why": "longest prefix"}],
            "decode_candidates": [],
            "inner": {"role": "decode", "worker": "http://127.0.0.1:8000", "request_id": "req-7", "prefill_worker": "127.0.0.1:9100",
                      "stages": [{"name": "kv.transfer", "start_ms": 4, "duration_ms": 5, "detail": "12 pages"}],
                      "kv_bytes": 1900000, "prompt_tokens": 40, "output_tokens": 2, "ttft_ms": 11, "tokens_per_second": 80}}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: req-7\r\nConnection: close\r\n\r\n"


def event(**delta):
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


class Fixed:
    """Gives one answer to whoever connects, then closes, or holds the connection open."""

    def __init__(self, answer, hold=False):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.answer, self.hold, self.asked, self.gone = answer, hold, threading.Event(), threading.Event()
        self.request = b""
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        connection, _ = self.socket.accept()
        with connection:
            while b"\r\n\r\n" not in self.request:
                self.request += connection.recv(65536)
            length = [int(line.split(b":")[1]) for line in self.request.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            while length and len(self.request.split(b"\r\n\r\n", 1)[1]) < length[0]:
                self.request += connection.recv(65536)
            connection.sendall(self.answer)
            self.asked.set()
            if self.hold and not connection.recv(1):
                self.gone.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thread.join(60)
        self.socket.close()


def debug(url, *flags, stdin=""):
    return subprocess.run([MOECTL, "debug-request", "--url", url, *flags], capture_output=True, text=True, timeout=300,
                          env=environment(), input=stdin)


GOOD = HEAD + event(reasoning="because") + event(content="Hello") + event(content=" you") + \
    b": moectl-timeline " + json.dumps(TIMELINE).encode() + b"\n\ndata: [DONE]\n\n"


class FixedBytes(unittest.TestCase):
    def test_answer_and_timeline(self):
        with Fixed(GOOD) as server:
            done = debug(server.url, "--message", "hi", "--header", "X-Session-Id: 9", "--api-key", "secret")
            self.assertEqual(done.returncode, 0, done.stderr)
        head, body = server.request.split(b"\r\n\r\n", 1)
        for line in (b"POST /v1/chat/completions HTTP/1.1", b"x-session-id: 9", b"x-moectl-debug: 1", b"authorization: bearer secret"):
            self.assertIn(line.lower(), head.lower())
        self.assertEqual(json.loads(body)["messages"], [{"role": "user", "content": "hi"}])
        for part in ("HTTP 200 OK", "x-request-id: req-7", "--- reasoning\nbecause\n--- answer\nHello you\n", "longest prefix",
                     "kv.transfer", "12 pages", "127.0.0.1:9100", "1.9 MB", "80.0 tokens/s"):
            self.assertIn(part, done.stdout)
        self.assertNotIn("secret", done.stdout + done.stderr)
        self.assertNotIn("\033", done.stdout)

    def test_json(self):
        with Fixed(GOOD) as server:
            done = debug(server.url, "--message", "hi", "--json")
        self.assertEqual(done.returncode, 0)
        result = json.loads(done.stdout)
        self.assertEqual(result["timeline"], TIMELINE)
        self.assertEqual(result["choices"], [{"index": 0, "content": "Hello you", "reasoning": "because", "tool_calls": "",
                                              "finish_reason": None}])
        self.assertEqual((result["ok"], result["status"], result["complete"], result["id"]), (True, 200, True, "chatcmpl-1"))
        self.assertGreater(result["client"]["total_ms"], 0)

    def test_what_is_not_complete_fails(self):
        dead = b'data: {"error":{"message":"decode worker http://127.0.0.1:8000 went away"}}\n\n'
        for answer, said in ((HEAD + event(content="Hal"), "ended without [DONE]"),
                             (HEAD + event(content="Hal") + dead, "decode worker http://127.0.0.1:8000 went away"),
                             (HEAD + event(content="Hal") + dead + b"data: [DONE]\n\n", "went away"),
                             (HEAD + b"data: {nonsense\n\ndata: [DONE]\n\n", "not a JSON object"),
                             (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "ended early"),
                             (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 9\r\n\r\nno worker",
                              "retry-after: 3\n\nno worker\n")):
            with Fixed(answer) as server:
                done = debug(server.url, "--message", "hi")
            self.assertEqual(done.returncode, 1, answer)
            self.assertIn(said, done.stdout, answer)

    def test_hostile_text_does_not_reach_the_terminal(self):
        answer = HEAD + event(content="\033]0;title\a\u009b31m") + b": moectl-timeline {\"role\":\"\\u001b[2J\"}\n\ndata: [DONE]\n\n"
        try:
            reader, writer = pty.openpty()  # a terminal, where colours are on
        except OSError as error:
            self.skipTest(f"this system has no pseudo-terminals: {error}")
        with Fixed(answer) as server:
            done = subprocess.run([MOECTL, "debug-request", "--url", server.url, "--message", "x", "--no-color"], stdout=writer,
                                  stderr=writer, timeout=300, env=environment())
            os.close(writer)
            shown = os.read(reader, 65536)
            os.close(reader)
        self.assertEqual(done.returncode, 0, shown)
        self.assertNotIn(b"\033", shown)
        self.assertNotIn(b"\xc2\x9b", shown)

    def test_ctrl_c(self):
        with Fixed(HEAD + event(content="Hal"), hold=True) as server:
            process = subprocess.Popen([MOECTL, "debug-request", "--url", server.url, "--message", "x"], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True, env=environment())
            shown = ""
            while "Hal" not in shown:
                shown += process.stdout.readline() if "answer" not in shown else process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            self.assertEqual(process.returncode, 130)
            self.assertTrue(server.gone.wait(60), "the server sees the client gone")

    def test_nobody_there(self):
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        done = debug(f"http://127.0.0.1:{port}", "--message", "x")
        self.assertEqual(done.returncode, 69)
        self.assertIn(f"127.0.0.1:{port}: refused", done.stderr)
        self.assertIn("--url", done.stderr)
        done = debug(f"http://127.0.0.1:{port}", "--message", "x", "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout)["ok"]), (69, False))
        self.assertEqual(debug("http://127.0.0.1:1").returncode, 2, "nothing to send")
        self.assertEqual(debug("ftp://127.0.0.1", "--message", "x").returncode, 1)


class RealServer(unittest.TestCase):
    def test_paths_bodies_and_statuses(self):
        with Server() as server:
            body = {"messages": [{"role": "user", "content": "What is 384 + 157?"}], "temperature": 0}
            whole = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]
            for flags, stdin in ((("--body", json.dumps({**body, "stream": True})), ""), (("--body", "-"), json.dumps(body))):
                done = debug(server.url, *flags, "--json", stdin=stdin)
                self.assertEqual(done.returncode, 0, done.stderr)
                choice = json.loads(done.stdout)["choices"][0]
                self.assertEqual((choice["content"], choice["reasoning"]), (whole["content"], whole["reasoning"]))
            done = debug(server.url, "--path", "/nothing")
            self.assertEqual(done.returncode, 1)
            self.assertIn("HTTP 404 Not Found", done.stdout)
            self.assertIn("nothing is served at /nothing", done.stdout)
            done = debug(server.url, "--path", "/metrics")
            self.assertEqual(done.returncode, 0)
            self.assertIn("# TYPE moectl_", done.stdout)
            self.assertEqual(debug(server.url, "--body", "[1]").returncode, 1)
            self.assertEqual(debug(server.url, "--path", "/readiness", "--method", "DELETE").returncode, 1)


if __name__ == "__main__":
    unittest.main()
