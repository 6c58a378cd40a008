"""`moectl bench serve` against a server whose every answer is known, and against the real one. Standard library."""
import json
import signal
import subprocess
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness import MOECTL, Server, environment

CHUNK = 'data: {"choices":[{"index":0,"text":"x","token_ids":[%d]}]}\n\n'


class Script(ThreadingHTTPServer):
    """Answers request number i by the i-th of `plan`, and records what it was asked."""
    daemon_threads = True

    def __init__(self, plan, num_tokens=5):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.num_tokens, self.bodies, self.lock = plan, num_tokens, [], threading.Lock()
        self.asked = threading.Event()  # after the first request
        self.release = threading.Event()  # of "hang"
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass  # clients that leave are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200, b'{"data":[{"id":"the-model"}]}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            what = self.server.plan[len(self.server.bodies) % len(self.server.plan)]
            self.server.bodies.append((self.path, body, self.headers.get("Authorization")))
        self.server.asked.set()
        if isinstance(what, int):
            return self.reply(what, b'{"error":{"message":"no room","type":"x"}}')
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for i in range(self.server.num_tokens):
            self.wfile.write((CHUNK % i).encode())
            self.wfile.flush()
            if what == "hang":
                self.server.release.wait()
        if what == "error":
            self.wfile.write(b'data: {"error":{"message":"worker 7 went away"}}\n\n')
        if what in ("good", "no usage"):
            usage = {"prompt_tokens": 11, "completion_tokens": self.server.num_tokens, "prompt_tokens_details": {"cached_tokens": 3}}
            if what == "good":
                self.wfile.write(b'data: {"choices":[],"usage":%s}\n\n' % json.dumps(usage).encode())
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def bench(url, *flags, timeout=300):
    return subprocess.run([MOECTL, "bench", "serve", "--url", url, *flags], capture_output=True, text=True, timeout=timeout,
                          env=environment())


class AgainstAScript(unittest.TestCase):
    def test_counts_are_exact(self):
        with Script(["good", "no usage"]) as server:
            done = bench(server.url, "--concurrency", "1,3", "--num-requests", "8", "--num-warmup", "2", "--input-len", "20",
                         "--output-len", "5", "--api-key", "k", "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            report = json.loads(done.stdout)
            self.assertEqual(report["model"], "the-model")
            self.assertEqual([level["concurrency"] for level in report["levels"]], [1, 3])
            for level in report["levels"]:
                self.assertEqual((level["num_ok"], level["num_failed"], level["output_tokens"]), (8, 0, 40))
                self.assertEqual((level["prompt_tokens"], level["cached_tokens"]), (4 * 11, 4 * 3))
                self.assertEqual([level[name]["count"] for name in ("ttft_seconds", "tpot_seconds", "itl_seconds", "e2e_seconds")],
                                 [8, 8, 32, 8])
                self.assertLessEqual(level["ttft_seconds"]["p50"], level["e2e_seconds"]["p50"])
                self.assertLessEqual(level["max_in_flight"], level["concurrency"])
            self.assertEqual(len(server.bodies), 2 + 8 + 8)
            prompts = {tuple(body["prompt"]) for _, body, _ in server.bodies}
            self.assertEqual(len(prompts), 18, "no prompt twice")
            for path, body, key in server.bodies:
                self.assertEqual((path, len(body["prompt"]), body["max_tokens"], body["model"], key),
                                 ("/v1/completions", 20, 5, "the-model", "Bearer k"))

    def test_every_kind_of_failure_is_counted_and_shown(self):
        with Script(["good", 429, "error", "cut", 503]) as server, tempfile.TemporaryDirectory() as folder:
            html = Path(folder) / "report.html"
            flags = ("--concurrency", "1", "--num-requests", "10", "--num-warmup", "0", "--input-len", "4", "--output-len", "5")
            done = bench(server.url, *flags, "--json", "--html", str(html))
            self.assertEqual(done.returncode, 1)
            level = json.loads(done.stdout)["levels"][0]
            self.assertEqual((level["num_ok"], level["num_failed"]), (2, 8))
            self.assertEqual({e["kind"]: (e["count"], e["example"]) for e in level["errors"]},
                             {"HTTP 429": (2, "no room"), "HTTP 503": (2, "no room"), "error event": (2, "worker 7 went away"),
                              "no [DONE]": (2, "the stream ended before its end mark")})
            self.assertEqual(level["ttft_seconds"]["count"], 2)
            page = html.read_text()
            self.assertIn("worker 7 went away", page)
            self.assertNotIn("<script", page)
            text = bench(server.url, *flags)
            self.assertEqual(text.returncode, 1)
            self.assertIn("REQUESTS FAILED", text.stdout)
            self.assertIn("worker 7 went away", text.stdout)

    def test_rate_and_prompts_of_a_file(self):
        with Script(["good"]) as server, tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write('{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n')
            file.flush()
            done = bench(server.url, "--request-rate", "200", "--num-requests", "6", "--num-warmup", "0", "--prompts", file.name, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            level = json.loads(done.stdout)["levels"][0]
            self.assertEqual((level["concurrency"], level["request_rate"], level["num_ok"]), (None, 200.0, 6))
            self.assertEqual(sorted(path for path, _, _ in server.bodies), ["/v1/chat/completions"] * 3 + ["/v1/completions"] * 3)

    def test_ctrl_c_prints_what_was_measured(self):
        with Script(["good", "hang"]) as server:
            process = subprocess.Popen([MOECTL, "bench", "serve", "--url", server.url, "--concurrency", "1", "--num-requests", "5",
                                        "--num-warmup", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
            server.asked.wait(60)
            while len(server.bodies) < 2:  # the second one hangs
                self.assertIsNone(process.poll())
                try:
                    process.wait(0.01)
                except subprocess.TimeoutExpired:
                    pass
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 130)
            report = json.loads(out)
            self.assertTrue(report["interrupted"])
            self.assertEqual((report["levels"][0]["num_ok"], report["levels"][0]["num_failed"]), (1, 0))

    def test_refusals(self):
        remote = bench("http://192.0.2.1:8000")
        self.assertEqual(remote.returncode, 2)
        self.assertIn("--allow-remote", remote.stderr)
        with Script(["good"]) as server:
            url = server.url
            both = bench(url, "--concurrency", "1", "--request-rate", "1")
            self.assertEqual(both.returncode, 78)
            self.assertEqual(bench(url, "--input-len", "5", "--shared-prefix-len", "6").returncode, 78)
            self.assertEqual(bench(url, "--html", "/nowhere/report.html", "--num-requests", "1", "--concurrency", "1").returncode, 1)
        gone = bench(url)
        self.assertEqual(gone.returncode, 69)
        self.assertIn("refused", gone.stderr)


class AgainstTheServer(unittest.TestCase):
    def test_lengths_are_exact_and_shared_prefixes_are_cached(self):
        with Server() as server:
            done = bench(server.url, "--concurrency", "2", "--num-requests", "6", "--input-len", "200", "--shared-prefix-len", "128",
                         "--output-len", "12", "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            level = json.loads(done.stdout)["levels"][0]
            self.assertEqual((level["num_ok"], level["prompt_tokens"], level["output_tokens"]), (6, 6 * 200, 6 * 12))
            # At least the requests sent after the first two have ended find both pages.
            self.assertGreaterEqual(level["cached_tokens"], 4 * 128)


if __name__ == "__main__":
    unittest.main()
