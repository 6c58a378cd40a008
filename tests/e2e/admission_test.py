"""What one request, one client or one silent connection may cost: others are served meanwhile. Standard library."""
import concurrent.futures
import http.client
import json
import socket
import threading
import time
import unittest
from pathlib import Path

import pd_test as pd
from harness import GOLDEN, JSON, Server, events

IDS = GOLDEN[0]["prompt_ids"]
SHORT = {"prompt": IDS, "max_tokens": 4, "temperature": 0}


def many(num_prompts, n, **more):
    """num_prompts x n long answers; different prompts, so that nothing is shared."""
    prompts = [[5 + i] + IDS for i in range(num_prompts)]
    return {"prompt": prompts, "n": n, "max_tokens": 1500, "ignore_eos": True, "temperature": 1, "seed": 1, **more}


def idle(server):
    names = ["moectl_kv_cache_pages_used", "moectl_num_requests_running", "moectl_num_requests_waiting", "moectl_requests_in_flight"]
    return all(server.metric(name) == 0 for name in names)


def rss_mb(server, field="VmHWM"):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 1024


def reset_peak(server):
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


class Stream:
    """A stream that is read in a thread, with the number of its choices that have ended."""

    def __init__(self, server, body, headers=JSON):
        self.connection = server.connect()
        self.connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), dict(headers))
        self.socket = self.connection.sock
        self.response = self.connection.getresponse()
        self.status, self.num_ended = self.response.status, 0
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        try:
            for event in events(self.response):
                self.num_ended += '"finish_reason":"length"' in event
        except (OSError, ValueError, http.client.HTTPException):  # left
            pass

    def leave(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the server was faster
            pass
        self.thread.join()
        self.connection.close()


class Choices(unittest.TestCase):
    def test_prompts_times_n_is_bounded(self):
        with Server() as server:
            reply = server.post("/v1/completions", many(64, 16))
            self.assertEqual((reply.status, reply.error()["param"]), (400, "n"), reply.body)
            self.assertIn("128", reply.error()["message"])
            reply = server.post("/v1/completions", many(64, 2, max_tokens=1))
            self.assertEqual((reply.status, len(reply.json()["choices"])), (200, 128), reply.body[:200])

    def test_a_second_client_does_not_wait_for_the_first(self):
        with Server() as server:
            expected = server.post("/v1/completions", SHORT).json()["choices"]
            first = Stream(server, many(64, 2))
            self.addCleanup(first.leave)
            server.wait_until(lambda: server.metric("moectl_num_requests_running") >= 50, "the batch is full")
            self.assertGreater(server.metric("moectl_num_requests_waiting"), 30)
            self.assertEqual(json.loads(server.get("/load").body)["num_waiting"], server.metric("moectl_num_requests_waiting"))
            for _ in range(3):
                reply = server.post("/v1/completions", SHORT)
                self.assertEqual((reply.status, reply.json()["choices"]), (200, expected))
            self.assertEqual(first.num_ended, 0, "the short answers waited for places of the long ones")
            first.leave()
            server.wait_until(lambda: idle(server), "nothing is left of it")

    def test_one_key_cannot_fill_the_queue(self):
        keys = [{**JSON, "Authorization": f"Bearer key-{name}"} for name in "ab"]
        with Server("--api-key", "key-a", "--api-key", "key-b") as server:
            streams = []
            try:
                for _ in range(10):
                    streams.append(Stream(server, many(64, 2), keys[0]))
                self.assertEqual([s.status for s in streams].count(429), 2)
                reply = server.post("/v1/completions", many(64, 1), keys[0])
                self.assertEqual((reply.status, reply.error()["type"]), (429, "rate_limit_error"), reply.body)
                self.assertIn("retry-after", reply.headers)
                reply = server.post("/v1/completions", SHORT, keys[1])
                self.assertEqual(reply.status, 200, reply.body)
                self.assertEqual(sum(s.num_ended for s in streams), 0)
            finally:
                for stream in streams:
                    stream.leave()
            server.wait_until(lambda: idle(server), "nothing is left")
            self.assertEqual(server.post("/v1/completions", SHORT, keys[0]).status, 200)

    def test_deadlines_pass_before_admission_too(self):
        with pd.decode_worker("--max-num-seqs", "1") as server:
            streams = [Stream(server, {**SHORT, "max_tokens": 1500, "ignore_eos": True}) for _ in range(3)]
            try:
                body = json.dumps(SHORT).encode()
                signed = pd.sign(body, deadline=str(int(time.time() * 1000) + 300))
                reply = server.post("/v1/completions", body, {**JSON, **signed})
                self.assertEqual((reply.status, reply.headers["x-should-retry"]), (504, "false"), reply.body)
            finally:
                for stream in streams:
                    stream.leave()
            server.wait_until(lambda: idle(server), "nothing is left")


class Bytes(unittest.TestCase):
    TEXT = b"a b c d e f g h " * (30 << 16)  # 30 MB

    def test_prompts_that_cannot_fit_are_refused_before_they_are_tokenized(self):
        with Server() as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
            server.post("/v1/completions", SHORT)
            before = rss_mb(server, "VmRSS")
            reset_peak(server)
            bodies = [b'{"prompt":"' + self.TEXT + b'"}'] * 3 + [b'{"messages":[{"role":"user","content":"' + self.TEXT + b'"}]}']
            paths = ["/v1/completions"] * 3 + ["/v1/chat/completions"]
            start = time.monotonic()
            large = [pool.submit(server.post, path, body) for path, body in zip(paths, bodies)]
            slowest = 0.0
            while not all(reply.done() for reply in large):
                asked = time.monotonic()
                self.assertEqual(server.post("/v1/completions", SHORT).status, 200)
                slowest = max(slowest, time.monotonic() - asked)
            took = time.monotonic() - start
            for reply, param in zip(large, ["prompt"] * 3 + ["messages"]):
                error = reply.result().error()
                self.assertEqual((reply.result().status, error["param"]), (400, param), error)
                if param == "prompt":  # the template has a limit of its own for what it writes
                    self.assertEqual(error["code"], "context_length_exceeded")
            grown = rss_mb(server) - before
            print(f"four 30 MB prompts: {took:.2f} s, slowest short answer {slowest:.2f} s, RSS +{grown:.0f} MB")
            self.assertLess(slowest, 4)
            self.assertLess(grown, 800)

    def test_tokenize_is_bounded_in_bytes_and_memory(self):
        with Server() as server:
            before = rss_mb(server, "VmRSS")
            text = self.TEXT[:8 << 20]
            reset_peak(server)
            start = time.monotonic()
            reply = server.post("/tokenize", b'{"prompt":"' + text + b'"}')
            took, grown = time.monotonic() - start, (rss_mb(server) - before) / 8
            self.assertEqual(reply.status, 200)
            self.assertGreaterEqual(reply.json()["count"], 1 << 20)
            print(f"/tokenize of 8 MB: {took:.2f} s, {grown:.0f} MB per MB")
            self.assertLess(grown, 20)
            reply = server.post("/tokenize", b'{"prompt":"' + self.TEXT[:17 << 20] + b'"}')
            self.assertEqual((reply.status, reply.error()["param"]), (400, "prompt"), reply.body[:300])


class KvPort(unittest.TestCase):
    def test_silent_connections_lock_no_decode_worker_out(self):
        with pd.prefill_worker() as prefill, pd.decode_worker("--local-prefill-tokens", "0") as decode:
            host, port = prefill.kv.rsplit(":", 1)
            silent = [socket.create_connection((host, int(port)), 60) for _ in range(64)]
            try:
                reply = pd.ask(decode, pd.completion(pd.prompt(200)), [prefill.kv])
                self.assertEqual(reply.status, 200, reply.body)
                self.assertEqual(decode.metric('moectl_prefills_total{where="remote"}'), 1, pd.timeline(reply))
                for _ in range(2):  # and the connection stays
                    silent.append(socket.create_connection((host, int(port)), 60))
                    pd.ask(decode, pd.completion(pd.prompt(200, 1)), [prefill.kv])
                self.assertGreaterEqual(decode.metric('moectl_prefills_total{where="remote"}'), 2)
                closed = silent[0].makefile("rb").read()  # its hello, and the end
                self.assertLess(len(closed), 4096)
            finally:
                for connection in silent:
                    connection.close()


if __name__ == "__main__":
    unittest.main()
