"""A router with prefill and decode workers, all as processes, while parts of it die, hang, leave or lie: every request ends in
the right answer or in one clear error, and what it held comes back. Standard library, and the openai package for one test."""
import concurrent.futures
import http.client
import http.server
import json
import signal
import socket
import tempfile
import threading
import unittest
from pathlib import Path

import openai

from harness import GOLDEN, JSON, ROOT, Server, events
from pd_test import PREFIX, SECRETS, SLOW, Case, ask, completion, decode_worker, idle, prefill_worker, prompt, secret_file, timeline

DEAD = "http://127.0.0.1:9"  # the discard service: nobody listens


def setUpModule():
    global aggregated
    aggregated = Server()


def tearDownModule():
    aggregated.__exit__()
    SECRETS.close()


def router(*workers, flags=(), **options):
    """A router over workers: servers, or (role, url)."""
    named = [(w.role, w.url) if isinstance(w, Server) else w for w in workers]
    given = [text for role, url in named for text in ("--" + role, url)]
    return Server("--cluster-secret-file", SECRETS.name, *given, *flags, command="serve-router", **options)


def leave(connection):
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


class Stream(threading.Thread):
    """A client that reads a stream to its end. `first` is set with the first text."""

    def __init__(self, server, body):
        super().__init__(daemon=True)
        self.data, self.text, self.cut = [], "", False
        self.first = threading.Event()
        self.connection = server.connect()
        self.connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), JSON)
        self.start()

    def run(self):
        try:
            response = self.connection.getresponse()
            self.status = response.status
            for data in events(response):
                self.data.append(data)
                if data.startswith("{") and "choices" in (event := json.loads(data)):
                    self.text += "".join(choice.get("text", "") for choice in event["choices"])
                if self.text:
                    self.first.set()
        except (http.client.HTTPException, OSError):
            self.cut = True
        finally:
            self.first.set()

    def end(self):
        self.join(120)
        self.connection.close()
        return self

    def leave(self):
        try:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass  # it has ended by itself
        self.end()

    @property
    def complete(self):
        return bool(self.data) and self.data[-1] == "[DONE]" and not self.cut


def text_of(body):
    return ask(aggregated, body).json()["choices"][0]["text"]


def long_answer(start, tokens=1900):
    return {"prompt": prompt(40, start), "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "seed": start}


class RouterCase(Case):
    def workers(self, *decode_flags, prefill_flags=(), num_decode=1):
        prefill = self.start(prefill_worker(*prefill_flags))
        return prefill, *[self.start(decode_worker(*decode_flags)) for _ in range(num_decode)]

    def router(self, *workers, **options):
        server = self.start(router(*workers, **options))
        self.sees(server, prefill=sum(w.role == "prefill" for w in workers if isinstance(w, Server)),
                  decode=sum(w.role == "decode" for w in workers if isinstance(w, Server)))
        return server

    def sees(self, server, **ready):
        for role, count in ready.items():
            server.wait_until(lambda: server.metric(f'moectl_router_workers_ready{{role="{role}"}}') == count, f"{count} {role}")

    def all_right(self, server, bodies, meanwhile=lambda: None):
        """Asks for all at once; `meanwhile` runs while they are under way."""
        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            replies = [pool.submit(ask, server, body) for body in bodies]
            meanwhile()
            for body, reply in zip(bodies, replies):
                self.right(reply.result(), body, aggregated)
        return [reply.result() for reply in replies]

    def outcome(self, server, name):
        return server.metric(f'moectl_router_requests_total{{outcome="{name}"}}')

    def cancelled(self, server, count):
        server.wait_until(lambda: self.outcome(server, "cancelled") == count, f"{count} cancelled")
        server.wait_until(lambda: server.metric("moectl_router_requests_in_flight") == 0, "nothing in flight")


class SameAnswers(RouterCase):
    @classmethod
    def setUpClass(cls):
        cls.prefill = prefill_worker()
        cls.addClassCleanup(cls.prefill.__exit__)
        cls.decode = decode_worker()
        cls.addClassCleanup(cls.decode.__exit__)
        cls.entry = router(cls.prefill, cls.decode)
        cls.addClassCleanup(cls.entry.__exit__)

    def setUp(self):
        self.sees(self.entry, prefill=1, decode=1)

    def tearDown(self):
        self.returns_to_baseline(self.prefill, self.decode)

    def test_whole_answers(self):
        bodies = [completion(prompt(1500)), completion(prompt(700, 1), temperature=1.2, seed=7, top_p=0.9),
                  completion(prompt(300, 2), n=2, temperature=0.8, seed=3), completion(prompt(5, 3))]
        before = self.decode.metric('moectl_prefills_total{where="remote"}')
        replies = self.all_right(self.entry, bodies)
        self.assertGreaterEqual(self.decode.metric('moectl_prefills_total{where="remote"}'), before + 3)
        told = timeline(replies[0])
        self.assertEqual((told["role"], told["inner"]["worker"]), ("router", self.decode.url))
        self.assertEqual(told["inner"]["prefill_worker"], self.prefill.kv)

    def test_streams_without_the_workers_comments(self):
        for start, more in enumerate([{}, {"temperature": 1.1, "seed": 5}]):
            body = completion(prompt(900, 20 + start), max_tokens=40, stream=True, stream_options={"include_usage": True}, **more)

            def told(server):
                reply = server.post("/v1/completions", body)
                self.assertEqual(reply.status, 200)
                lines = reply.body.decode().split("\n\n")
                self.assertEqual(lines[-2:], ["data: [DONE]", ""])
                data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
                choices = [choice for event in data for choice in event["choices"]]
                return (lines, "".join(choice["text"] for choice in choices), sum((c.get("token_ids") or [] for c in choices), []),
                        choices[-1]["finish_reason"], data[-1]["usage"]["completion_tokens"])

            lines, *answer = told(self.entry)
            self.assertEqual(answer, list(told(aggregated)[1:]))
            self.assertEqual(len(answer[1]), answer[3])
            self.assertFalse([line for line in lines if line.startswith(": moectl")])

    def test_openai_package(self):
        with openai.OpenAI(base_url=self.entry.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
            for case in GOLDEN[:4]:
                options = dict(model="demo", messages=case["messages"], temperature=0, max_tokens=len(case["output_ids"]))
                whole = client.chat.completions.create(**options, extra_body={"return_token_ids": True}).choices[0]
                self.assertEqual(whole.token_ids, case["output_ids"])
                pieces = [c.delta.content or "" for event in client.chat.completions.create(**options, stream=True) for c in event.choices]
                self.assertEqual("".join(pieces), whole.message.content)
            self.assertEqual([model.id for model in client.models.list()], ["demo"])


class Refusing(RouterCase):
    def test_bad_requests_and_full_queue(self):
        decode = self.start(decode_worker())
        entry = self.router(decode, flags=["--max-requests-per-worker", "1", "--max-queue-size", "1"])
        for headers in ({PREFIX + "prefill": "127.0.0.1:9"}, {PREFIX + "signature": "0"}, {PREFIX.upper() + "Other": "x"}):
            self.assertEqual(entry.post("/v1/completions", completion([5]), {**JSON, **headers}).status, 400, headers)
        for body in (b"", b"{", b"[]", b"nothing", b'{"prompt":"\xff"}', b'{"a":' * 5000):
            for path in ("/v1/completions", "/v1/chat/completions"):
                reply = entry.post(path, body)
                self.assertEqual((reply.status, reply.error()["type"]), (400, "invalid_request_error"), body[:20])
        reply = entry.post("/v1/completions", completion([5], model="other"))
        self.assertEqual((reply.status, reply.error()["code"]), (404, "model_not_found"))

        running = Stream(entry, {**long_answer(0), "n": 8})
        running.first.wait(60)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            queued = pool.submit(ask, entry, completion([5, 6, 7]))
            entry.wait_until(lambda: entry.metric("moectl_router_queue_depth") == 1, "one waits")
            full = entry.post("/v1/completions", completion([5]))
            self.assertEqual(full.status, 429, full.body)
            self.assertIn("retry-after", full.headers)
            self.assertFalse(running.complete)
            running.leave()
            self.right(queued.result(), completion([5, 6, 7]), aggregated)
        self.returns_to_baseline(decode)

    def test_no_worker_then_one(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            def give(url):
                Path(file.name).write_text(json.dumps([{"role": "decode", "url": url}]))

            give(DEAD)
            entry = self.start(router(flags=["--workers-file", file.name]))
            self.assertEqual(entry.get("/readiness").status, 503)
            reply = entry.post("/v1/completions", completion([5]))
            self.assertEqual(reply.status, 503, reply.body)
            self.assertIn("retry-after", reply.headers)
            self.assertEqual((entry.get("/health").status, entry.get("/liveness").status), (200, 200))
            give(self.start(decode_worker()).url)
            entry.wait_until(lambda: entry.get("/readiness").status == 200, "the new worker is found")

    def test_prefill_workers_of_another_secret_or_model(self):
        decode = self.start(decode_worker())
        with secret_file("the secret of some other cluster") as other:
            stranger = self.start(prefill_worker(secrets=other))
        other_model = self.start(prefill_worker("--skip-tokenizer-init", model=ROOT / "tests/golden/deepseek_v3_a"))
        entry = self.start(router(decode, stranger, other_model))
        self.sees(entry, prefill=1, decode=1)
        entry.wait_until(lambda: "unhealthy: other secret" in entry.logged(), "the other secret is named")
        for reply in self.all_right(entry, [completion(prompt(400, start)) for start in range(4)]):
            told = timeline(reply)
            self.assertEqual(told["inner"]["prefill_worker"], "")
            reasons = {c["worker"]: c["why"] for c in told["prefill_candidates"]}
            self.assertEqual(reasons[stranger.url], "unhealthy: other secret")
            self.assertIn("another model", reasons[other_model.url])
        self.assertIn(f"prefill worker {other_model.url} cannot serve decode worker {decode.url}", entry.logged())
        self.assertEqual([w.metric("moectl_kv_transfer_bytes_total") for w in (stranger, other_model)], [0, 0])
        self.returns_to_baseline(decode, stranger, other_model)


class PrefillFails(RouterCase):
    def test_killed_during_and_before_the_transfer(self):
        prefill, decode = self.workers(prefill_flags=SLOW)
        entry = self.router(prefill, decode)
        bystander = Stream(entry, long_answer(0))
        bystander.first.wait(60)

        def kill():
            self.transfers_under_way(prefill, decode, 4)
            prefill.terminate(signal.SIGKILL)

        self.all_right(entry, [completion(prompt(1700, start)) for start in range(8)], kill)
        self.assertGreater(decode.metric('moectl_pd_leg_failures_total{leg="transfer"}'), 0)
        self.all_right(entry, [completion(prompt(500, 30 + start)) for start in range(2)])
        bystander.end()
        self.assertTrue(bystander.complete)
        self.assertEqual(bystander.text, text_of(long_answer(0)))
        self.returns_to_baseline(decode)

    def test_killed_after_the_transfer(self):
        prefill, decode = self.workers()
        entry = self.router(prefill, decode)
        body = {**long_answer(1, 1400), "prompt": prompt(600)}
        stream = Stream(entry, body)
        stream.first.wait(60)
        self.assertEqual(decode.metric('moectl_prefills_total{where="remote"}'), 1)
        prefill.terminate(signal.SIGKILL)
        self.assertTrue(stream.end().complete)
        self.assertEqual(stream.text, text_of(body))
        self.returns_to_baseline(decode)

    def test_stopped_and_continued(self):
        prefill, decode = self.workers(prefill_flags=SLOW)
        entry = self.router(prefill, decode)
        self.addCleanup(prefill.process.send_signal, signal.SIGCONT)

        def stop():
            self.transfers_under_way(prefill, decode, 2)
            prefill.process.send_signal(signal.SIGSTOP)
            # The router does not know yet, and those under way may have had their last page: this one meets it stopped.
            self.all_right(entry, [completion(prompt(1100, 60))])

        self.all_right(entry, [completion(prompt(1100, start)) for start in range(6)], stop)
        failures = [decode.metric(f'moectl_pd_leg_failures_total{{leg="{leg}"}}') for leg in ("prefill", "transfer")]
        self.assertGreater(sum(failures), 0, decode.logged())
        prefill.process.send_signal(signal.SIGCONT)
        self.sees(entry, prefill=1)
        self.all_right(entry, [completion(prompt(200, 40))])
        self.returns_to_baseline(prefill, decode)


class DecodeFails(RouterCase):
    def test_one_of_two_is_killed_under_streams(self):
        prefill, killed, left = self.workers(num_decode=2)
        entry = self.router(prefill, killed, left)
        bodies = [long_answer(start) for start in range(6)]
        streams = [Stream(entry, body) for body in bodies]
        for stream in streams:
            stream.first.wait(60)
        lost = entry.metric(f'moectl_router_worker_requests{{role="decode",worker="{killed.url}"}}')
        killed.terminate(signal.SIGKILL)
        for stream in streams:
            stream.end()
        broken = [stream for stream in streams if not stream.complete]
        self.assertTrue(0 < len(broken) <= lost < len(streams), (len(broken), lost))
        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            texts = list(pool.map(text_of, bodies))
        for stream, expected in zip(streams, texts):
            if stream in broken:
                self.assertNotIn("[DONE]", stream.data)
                self.assertIn("error", json.loads(stream.data[-1]))
                self.assertTrue(stream.text and expected.startswith(stream.text))
            else:
                self.assertEqual(stream.text, expected)
        self.all_right(entry, [completion(prompt(300, 50 + start)) for start in range(4)])
        self.returns_to_baseline(prefill, left)

    def test_killed_before_the_first_text(self):
        prefill, killed, left = self.workers(num_decode=2, prefill_flags=SLOW)
        entry = self.router(prefill, killed, left)
        bodies = [completion(prompt(1500, start), logprobs=None) for start in range(4)]
        streams = [Stream(entry, body) for body in bodies]

        def held():  # with the prefill worker stopped no prompt ends, so no text comes before the kill
            if killed.metric("moectl_num_remote_prefills") != 2:
                return False
            prefill.process.send_signal(signal.SIGSTOP)
            if killed.metric("moectl_num_remote_prefills") == 2:
                return True
            prefill.process.send_signal(signal.SIGCONT)
            return False

        killed.wait_until(held, "two prompts are computed elsewhere")
        killed.terminate(signal.SIGKILL)
        prefill.process.send_signal(signal.SIGCONT)
        for stream, body in zip(streams, bodies):
            self.assertTrue(stream.end().complete, stream.data)
            self.assertEqual(stream.text, text_of(body))
        self.assertGreaterEqual(entry.metric('moectl_router_retries_total{cause="died"}'), 1)
        self.returns_to_baseline(prefill, left)

    def test_pool_full(self):
        prefill, decode = self.workers("--kv-cache-memory-bytes", "12M")
        entry = self.router(prefill, decode)
        self.assertLess(decode.metric("moectl_kv_cache_pages"), 50)
        self.all_right(entry, [completion(prompt(900, start), max_tokens=150, ignore_eos=True, logprobs=None) for start in range(8)])
        self.returns_to_baseline(prefill, decode)


class ClientLeaves(RouterCase):
    def send(self, server, body):
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps(body), JSON)
        return connection

    def test_in_each_phase(self):
        prefill, decode = self.workers(prefill_flags=SLOW)
        entry = self.router(prefill, decode, flags=["--max-requests-per-worker", "1"])
        decoding = self.send(entry, {**long_answer(0), "n": 8, "stream": True})
        decoding.getresponse().readline()
        queued = self.send(entry, completion(prompt(300)))
        entry.wait_until(lambda: entry.metric("moectl_router_queue_depth") == 1, "one waits")
        leave(queued)
        entry.wait_until(lambda: self.outcome(entry, "cancelled") == 1, "the one that waited is gone")
        self.assertEqual(entry.metric("moectl_router_queue_depth"), 0)
        leave(decoding)
        self.cancelled(entry, 2)
        self.returns_to_baseline(decode, prefill)
        for count, stream in ((3, True), (4, False)):
            prefilling = self.send(entry, completion(prompt(1900, count), max_tokens=140, ignore_eos=True, stream=stream))
            decode.wait_until(lambda: decode.metric("moectl_num_remote_prefills") == 1, "the prompt is computed elsewhere")
            leave(prefilling)
            self.cancelled(entry, count)
            self.returns_to_baseline(decode, prefill)
        self.assertEqual(decode.metric('moectl_requests_total{outcome="cancelled"}'), 3)
        self.all_right(entry, [completion(prompt(300))])
        self.assertEqual([self.outcome(entry, name) for name in ("success", "refused", "cancelled", "failed")], [1, 0, 4, 0])


class RouterEnds(RouterCase):
    def test_terminated_and_killed(self):
        prefill, decode = self.workers()
        first = self.router(prefill, decode)
        port = first.url.rsplit(":", 1)[1]
        body = long_answer(0)
        stream = Stream(first, body)
        stream.first.wait(60)
        self.assertEqual(first.terminate(), 0)
        self.assertTrue(stream.end().complete)
        self.assertEqual(stream.text, text_of(body))

        second = self.router(prefill, decode, port=port)
        stream = Stream(second, long_answer(1))
        stream.first.wait(60)
        second.terminate(signal.SIGKILL)
        self.assertFalse(stream.end().complete)
        self.returns_to_baseline(prefill, decode)
        self.assertEqual(decode.metric('moectl_requests_total{outcome="cancelled"}'), 1)

        third = self.router(prefill, decode, port=port)
        self.all_right(third, [completion(prompt(400))])


class FlippingProxy:
    """Stands before a prefill worker's KV port and flips one bit of what it sends on each connection, far behind the handshake. Says
    over HTTP what the worker says of itself, with its own KV endpoint."""
    AT = 150_000

    def __init__(self, worker):
        self.worker, self.flipped, self.connections = worker, 0, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        kv = "127.0.0.1:%d" % self.listener.getsockname()[1]

        class Load(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps({**worker.get("/load").json(), "kv_endpoint": kv}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Load)
        self.url, self.kv = "http://127.0.0.1:%d" % self.http.server_address[1], kv
        for run in (self.http.serve_forever, self.accept):
            threading.Thread(target=run, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            host, port = self.worker.kv.split(":")
            worker = socket.create_connection((host, int(port)))
            self.connections += [client, worker]
            threading.Thread(target=self.pump, args=(client, worker, None), daemon=True).start()
            threading.Thread(target=self.pump, args=(worker, client, self.AT), daemon=True).start()

    def pump(self, source, sink, at):
        passed = 0
        try:
            while data := bytearray(source.recv(1 << 16)):
                if at is not None and passed <= at < passed + len(data):
                    data[at - passed] ^= 1
                    self.flipped += 1
                passed += len(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.listener.shutdown(socket.SHUT_RDWR)
        for connection in [self.listener, *self.connections]:
            connection.close()


class CorruptedBytes(RouterCase):
    def test_one_bit(self):
        prefill, decode = self.workers()
        proxy = FlippingProxy(prefill)
        self.addCleanup(proxy.close)
        entry = self.router(decode, ("prefill", proxy.url))
        self.sees(entry, prefill=1)
        for start in range(3):
            self.all_right(entry, [completion(prompt(900, start))])
        self.assertGreater(proxy.flipped, 0)
        self.assertGreaterEqual(decode.metric('moectl_kv_transfer_failures_total{cause="protocol"}'), 1)
        self.assertIn("checksum", decode.logged())
        self.returns_to_baseline(prefill, decode)


if __name__ == "__main__":
    unittest.main(verbosity=2)
