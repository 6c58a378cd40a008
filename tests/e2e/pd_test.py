"""Prefill and decode as processes of their own: same answers as one server, whatever happens to prefill. Standard library."""
import concurrent.futures
import hashlib
import hmac
import json
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from harness import DEMO, GOLDEN, JSON, MOECTL, ROOT, Server, environment, events

SECRET = "a secret that only this test knows"
PREFIX = "x-moectl-cluster-"
IDS = [i for case in GOLDEN for i in case["prompt_ids"] + case["output_ids"]]


def sign(body, prefill=(), secret=SECRET, **changed):
    """The router's headers, written from the description in core/api/cluster.h."""
    fields = {"version": "1", "request-id": "router-1", "attempt": "1", "deadline": "0", "prefill": ",".join(prefill),
              "time": str(int(time.time() * 1000)), **changed}
    text = "moectl-cluster\n" + "".join(f"{name}:{fields[name]}\n" for name in sorted(fields)) + hashlib.sha256(body).hexdigest()
    fields["signature"] = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return {PREFIX + name: value for name, value in fields.items()}


def secret_file(text=SECRET):
    file = tempfile.NamedTemporaryFile("w", suffix=".secret")
    file.write(text + "\n")
    file.flush()
    return file


SECRETS = secret_file()


def tearDownModule():
    SECRETS.close()


def prefill_worker(*flags, secrets=SECRETS, **options):
    return Server("--kv-port", "0", "--cluster-secret-file", secrets.name, *flags, command="serve-prefill", **options)


def decode_worker(*flags):
    return Server("--cluster-secret-file", SECRETS.name, *flags)


def prompt(length, start=0):
    """Token ids; prompts with different `start` share no page."""
    return [IDS[(start * 37 + i * (start + 1)) % len(IDS)] for i in range(length)]


def completion(ids, **more):
    return {"prompt": ids, "max_tokens": 12, "temperature": 0, "logprobs": 3, "return_token_ids": True, **more}


def ask(server, body, prefill=None, headers=()):
    """The whole answer to a request that comes from the router when `prefill` is a list."""
    data = json.dumps(body).encode()
    signed = sign(data, prefill) if prefill is not None else {}
    return server.post("/v1/completions", data, {**JSON, **signed, "x-moectl-debug": "1", **dict(headers)})


def timeline(reply):
    return json.loads(reply.headers["x-moectl-timeline"])


def idle(server):
    names = ["moectl_kv_cache_pages_used", "moectl_num_requests_running", "moectl_num_requests_waiting",
             "moectl_requests_in_flight", "moectl_kv_transfers_active"]
    return all(server.metric(name) == 0 for name in names)


# A worker that takes its time: one can look while it computes.
SLOW = ["--max-num-batched-tokens", "16", "--max-num-seqs", "16"]


class Case(unittest.TestCase):
    def start(self, server):
        self.addCleanup(server.__exit__)
        return server

    def cluster(self, *decode_flags, prefill_flags=()):
        """(prefill, decode, aggregated), ended with the test."""
        return self.start(prefill_worker(*prefill_flags)), self.start(decode_worker(*decode_flags)), self.start(Server())

    def transfers_under_way(self, prefill, decode, num):
        """Waits until the decode worker has asked for so many prompts and the prefill worker has heard of one: whoever
        kills it now cuts a transfer, not the connection's making."""
        decode.wait_until(lambda: decode.metric("moectl_num_remote_prefills") >= num, "prompts are computed elsewhere")
        prefill.wait_until(lambda: prefill.metric("moectl_kv_transfers_active") >= 1, "transfers are under way")

    def right(self, reply, body, aggregated):
        self.assertEqual(reply.status, 200, reply.body)
        expected = ask(aggregated, body)
        self.assertEqual(reply.json()["choices"], expected.json()["choices"])

    def returns_to_baseline(self, *servers):
        for server in servers:
            server.wait_until(lambda: idle(server), "pages, requests and transfers return to none")


class SameAnswers(Case):
    BODIES = [completion(prompt(length, start), **more) for start, (length, more) in enumerate([
        (2, {}), (63, {}), (64, {}), (65, {}), (66, {}), (129, {}), (700, {}), (1500, {}),
        (200, {"temperature": 1.3, "seed": 7, "top_p": 0.9}), (300, {"n": 3, "temperature": 0.8, "seed": 1}),
        (90, {"presence_penalty": 0.5, "logit_bias": {"7": 3}}), (150, {"echo": True, "prompt_logprobs": 2})])]

    def same(self, *decode_flags):
        prefill, decode, aggregated = self.cluster("--local-prefill-tokens", "0", *decode_flags)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for _ in range(2):  # the second time from the caches
                for body, reply in zip(self.BODIES, pool.map(lambda b: ask(decode, b, [prefill.kv]), self.BODIES)):
                    self.right(reply, body, aggregated)
        self.assertGreaterEqual(decode.metric('moectl_prefills_total{where="remote"}'), 10)
        self.assertEqual(decode.metric("moectl_kv_transfer_bytes_total"), prefill.metric("moectl_kv_transfer_bytes_total"))
        self.assertGreater(prefill.metric("moectl_kv_transfer_bytes_total"), 0)
        self.assertEqual(decode.metric('moectl_pd_leg_failures_total{leg="prefill"}'), 0)
        self.assertEqual(decode.metric('moectl_pd_leg_failures_total{leg="transfer"}'), 0)
        self.returns_to_baseline(prefill, decode)

    def test_one_rank_each(self):
        self.same()

    def test_two_ranks_on_decode_one_on_prefill(self):
        self.same("--ep-size", "2")

    def test_tp_sizes_may_differ(self):
        """Two ranks that split each layer compute the prompts of one that does not: pages fit, sums have another order."""
        prefill, decode, aggregated = self.cluster("--local-prefill-tokens", "0", prefill_flags=("--tp-size", "2"))
        infos = [server.get("/server_info", base=server.ops).json() for server in (prefill, decode)]
        self.assertEqual(infos[0]["exactness"], infos[1]["exactness"] + "-tp2")
        self.assertEqual(infos[0]["kv_format"], infos[1]["kv_format"])
        for case in GOLDEN:
            body = json.dumps({"messages": case["messages"], "temperature": 0, "logprobs": True, "return_token_ids": True}).encode()
            choice = decode.post("/v1/chat/completions", body, {**JSON, **sign(body, [prefill.kv])}).json()["choices"][0]
            self.assertEqual(choice["token_ids"], case["output_ids"])
            alone = aggregated.post("/v1/chat/completions", body).json()["choices"][0]
            for here, there in zip(choice["logprobs"]["content"], alone["logprobs"]["content"], strict=True):
                self.assertAlmostEqual(here["logprob"], there["logprob"], delta=1e-3)
        self.assertGreater(decode.metric('moectl_prefills_total{where="remote"}'), 0)
        self.assertEqual(decode.metric('moectl_pd_leg_failures_total{leg="transfer"}'), 0)
        self.returns_to_baseline(prefill, decode)

    def test_chats(self):
        prefill, decode, aggregated = self.cluster("--local-prefill-tokens", "0")
        for case in GOLDEN:
            body = json.dumps({"messages": case["messages"], "temperature": 0, "logprobs": True, "return_token_ids": True}).encode()
            reply = decode.post("/v1/chat/completions", body, {**JSON, **sign(body, [prefill.kv])})
            self.assertEqual(reply.json()["choices"], aggregated.post("/v1/chat/completions", body).json()["choices"])
            self.assertEqual(reply.json()["choices"][0]["token_ids"], case["output_ids"])
        self.assertGreater(decode.metric('moectl_prefills_total{where="remote"}'), 0)


class Following(Case):
    """What the router hears from a decode worker, and what a person who debugs sees."""

    def test_timeline_tells_where_the_prompt_was_computed_and_why(self):
        prefill, decode, _ = self.cluster()
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        reply = ask(decode, completion(prompt(300)), [prefill.kv],
                    {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Id": "mine"}.items())
        told = timeline(reply)
        self.assertEqual((told["role"], told["worker"], told["request_id"]), ("decode", decode.url, "router-1"))
        self.assertEqual((told["prefill_worker"], told["prefill_reason"]), (prefill.kv, ""))
        self.assertEqual([s["name"] for s in told["stages"]],
                         ["prepare", "queue", "prefill.queue", "prefill.compute", "kv.transfer", "first_token", "decode"])
        self.assertEqual((told["prompt_tokens"], told["output_tokens"]), (300, 12))
        self.assertEqual(told["kv_bytes"], prefill.metric("moectl_kv_transfer_bytes_total"))
        self.assertEqual(reply.headers["x-request-id"], "mine")
        self.assertIn(f"trace={trace}", decode.logged())
        self.assertIn("router-1 /v1/completions 200", decode.logged())

        again = timeline(ask(decode, completion(prompt(300)), [prefill.kv]))
        self.assertEqual((again["prefill_worker"], again["prefill_reason"], again["cached_tokens"]), ("", "short prompt", 256))
        balance = again["expert_balance"]
        self.assertTrue(0 < balance["lowest"] <= balance["mean"] <= 1 and 1 <= balance["lowest_layer"] <= 5, balance)
        self.assertEqual(timeline(ask(decode, completion(prompt(300, 1)), []))["prefill_reason"], "no prefill worker")
        for server in (prefill, decode):
            self.assertNotIn(SECRET, server.logged())

    def test_token_comments_go_to_the_router_alone(self):
        prefill, decode, aggregated = self.cluster()
        body = completion(prompt(200), n=2, temperature=0.7, seed=3, stream=True, max_tokens=30, stop=["0"])
        expected = {c["index"]: c["token_ids"] for c in ask(aggregated, {**body, "stream": False}).json()["choices"]}
        reply = ask(decode, body, [prefill.kv])
        lines = reply.body.decode().split("\n\n")
        ids, text_events = {}, 0
        for before, line in zip(lines, lines[1:]):
            if before.startswith(": moectl {"):
                told = json.loads(before[len(": moectl "):])
                self.assertEqual(json.loads(line[len("data: "):])["choices"][0]["index"], told["choice"])
                ids.setdefault(told["choice"], []).extend(told["ids"])
                self.assertEqual(told["pos"], len(ids[told["choice"]]))
            text_events += line.startswith("data: {")
        self.assertEqual(ids, expected)
        self.assertGreater(text_events, 0)
        self.assertTrue(lines[-3].startswith(": moectl-timeline {"), lines[-3:])
        self.assertEqual(lines[-2:], ["data: [DONE]", ""])
        plain = decode.post("/v1/completions", body)
        self.assertNotIn(b"moectl", plain.body.replace(b'"model":"demo"', b""))

    def test_deadlines(self):
        decode = self.start(decode_worker("--max-num-seqs", "1"))

        def late(milliseconds):
            body = json.dumps(completion([5, 6, 7])).encode()
            reply = decode.post("/v1/completions", body, {**JSON, **sign(body, deadline=str(int(time.time() * 1000) + milliseconds))})
            self.assertEqual((reply.status, reply.headers["x-should-retry"]), (504, "false"), reply.body)
            self.assertIn("deadline", reply.error()["message"])

        late(-1)
        connection = decode.connect()
        connection.request("POST", "/v1/completions", json.dumps(completion([5], max_tokens=2000, ignore_eos=True, stream=True)), JSON)
        connection.getresponse().readline()
        late(100)  # the only place is taken for longer: it passes in the queue
        connection.close()
        self.returns_to_baseline(decode)

    def test_load_reports(self):
        prefill, decode, _ = self.cluster()
        fields = {"role", "model", "state", "kv_endpoint", "exactness", "kv_format", "model_hash", "num_running", "num_waiting",
                  "num_tokens_in_flight", "kv_pages_total", "kv_pages_used", "max_model_len", "server_load",
                  "instance_id", "seconds_since_progress", "cluster_problem"}
        p, d = prefill.get("/load").json(), decode.get("/load").json()
        self.assertEqual((set(p), set(d)), (fields, fields))
        self.assertEqual((p["role"], p["state"], p["kv_endpoint"]), ("prefill", "ready", prefill.kv))
        self.assertEqual((d["role"], d["state"], d["kv_endpoint"]), ("decode", "ready", ""))
        self.assertTrue(p["model_hash"] and p["exactness"])
        self.assertEqual((p["model_hash"], p["exactness"]), (d["model_hash"], d["exactness"]))
        self.assertEqual(prefill.metric('moectl_worker_state{role="prefill",state="ready"}'), 1)
        prefill.post("/drain", b"", {"Authorization": "Bearer " + SECRET}, base=prefill.ops)
        self.assertEqual(prefill.get("/load").json()["state"], "draining")
        self.assertEqual(prefill.get("/readiness").status, 503)
        reply = ask(decode, completion(prompt(300)), [prefill.kv])
        self.assertEqual(reply.status, 200)
        self.assertIn("draining", timeline(reply)["prefill_reason"])


class Refusing(Case):
    def test_cluster_headers_of_strangers(self):
        decode, aggregated = self.start(decode_worker()), self.start(Server())
        body = json.dumps(completion([5, 6, 7])).encode()
        good = sign(body)
        now = int(time.time() * 1000)
        forged = {
            "unsigned": {k: v for k, v in good.items() if not k.endswith("signature")},
            "wrong secret": sign(body, secret="another secret of some length"),
            "another body": sign(body + b" "),
            "changed field": {**good, PREFIX + "prefill": "127.0.0.1:9"},
            "added field": {**good, PREFIX + "extra": "1"},
            "old": sign(body, time=str(now - 3600_000)),
            "from the future": sign(body, time=str(now + 3600_000)),
            "another version": sign(body, version="2"),
            "four workers": sign(body, ["127.0.0.1:1"] * 4),
            "no endpoint": sign(body, ["http://127.0.0.1:1/"]),
            "bad id": sign(body, **{"request-id": "a b"}),
            "one field": {PREFIX + "prefill": "127.0.0.1:9"},
        }
        for what, headers in forged.items():
            for path in ("/v1/completions", "/v1/chat/completions", "/api/predict/x/v1/completions"):
                reply = decode.post(path, body, {**JSON, **headers})
                self.assertEqual(reply.status, 400, what)
                self.assertTrue(reply.error()["param"].startswith(PREFIX), reply.body)
                self.assertNotIn(b"data:", reply.body)
        self.assertEqual(decode.post("/v1/completions", body, {**JSON, **good}).status, 200)
        reply = aggregated.post("/v1/completions", body, {**JSON, **good})
        self.assertEqual(reply.status, 400)
        self.assertIn("--cluster-secret-file", reply.error()["message"])

    def test_prefill_workers_answer_no_clients(self):
        prefill = self.start(prefill_worker())
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/api/predict/x/v1/completions"):
            reply = prefill.post(path, completion([5]))
            self.assertEqual(reply.status, 404)
            self.assertIn("router", reply.error()["message"])
        for path in ("/health", "/liveness", "/readiness", "/metrics", "/version", "/load", "/v1/models", "/v1/models/demo"):
            self.assertEqual(prefill.get(path).status, 200, path)
        # Strangers at the KV port: what is no handshake ends the connection and nothing else.
        host, port = prefill.kv.split(":")
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096, b"\xff" * 4096):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(rubbish)
                try:
                    while connection.recv(4096):
                        pass
                except ConnectionError:
                    pass
        prefill.wait_until(lambda: prefill.metric('moectl_kv_transfer_failures_total{cause="handshake"}') >= 3, "refused")
        self.assertEqual(prefill.get("/health").status, 200)

    def test_the_secret_is_needed(self):
        def fails(*flags):
            result = subprocess.run([MOECTL, "serve-prefill", str(DEMO), "--port", "0", "--kv-port", "0", *flags], cwd=ROOT,
                                    env=environment(), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
            self.assertEqual((result.returncode, result.stdout), (78, ""), result.stderr)
            self.assertIn("--cluster-secret-file", result.stderr)

        fails()
        fails("--cluster-secret-file", "no/such/file")
        with secret_file("short") as short:
            fails("--cluster-secret-file", short.name)


class Failing(Case):
    def test_another_secret_or_another_model(self):
        prefill, decode, aggregated = self.cluster()
        with secret_file("the secret of some other cluster") as other:
            stranger = self.start(prefill_worker(secrets=other))
        other_model = self.start(prefill_worker("--skip-tokenizer-init", model=ROOT / "tests/golden/deepseek_v3_a"))
        for start, (worker, why) in enumerate([(stranger, "secret"), (other_model, "model hash")]):
            body = completion(prompt(300, start))
            reply = ask(decode, body, [worker.kv])
            self.right(reply, body, aggregated)
            told = timeline(reply)
            self.assertEqual(told["prefill_worker"], "")
            self.assertIn(why, told["prefill_reason"])
            self.assertGreaterEqual(decode.metric('moectl_kv_transfer_failures_total{cause="handshake"}'), start + 1)
            # The next of the list helps.
            body = completion(prompt(300, start + 10))
            reply = ask(decode, body, [worker.kv, prefill.kv])
            self.right(reply, body, aggregated)
            self.assertEqual(timeline(reply)["prefill_worker"], prefill.kv)
        self.assertEqual(stranger.metric("moectl_kv_transfer_bytes_total"), 0)
        self.assertEqual(other_model.metric("moectl_kv_transfer_bytes_total"), 0)
        self.returns_to_baseline(prefill, decode, stranger, other_model)

    def test_prefill_is_dead(self):
        prefill, decode, aggregated = self.cluster()
        prefill.process.kill()
        prefill.process.wait()
        body = completion(prompt(300))
        reply = ask(decode, body, [prefill.kv])
        self.right(reply, body, aggregated)
        self.assertIn(prefill.kv, timeline(reply)["prefill_reason"])
        self.assertGreaterEqual(decode.metric('moectl_pd_leg_failures_total{leg="prefill"}'), 1)
        self.returns_to_baseline(decode)

    def test_prefill_dies_under_load(self):
        prefill, decode, aggregated = self.cluster(prefill_flags=SLOW)
        spare = self.start(prefill_worker())
        bodies = [completion(prompt(1200, start)) for start in range(12)]
        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            replies = [pool.submit(ask, decode, body, [prefill.kv] + [spare.kv] * (i % 2)) for i, body in enumerate(bodies)]
            self.transfers_under_way(prefill, decode, 4)
            prefill.process.kill()
            for body, reply in zip(bodies, replies):
                self.right(reply.result(), body, aggregated)
        self.assertGreater(decode.metric('moectl_pd_leg_failures_total{leg="transfer"}'), 0)
        self.returns_to_baseline(decode, spare)

    def test_prefill_hangs_and_comes_back(self):
        prefill, decode, aggregated = self.cluster()
        first = ask(decode, completion(prompt(300)), [prefill.kv])
        self.assertEqual(timeline(first)["prefill_worker"], prefill.kv)
        prefill.process.send_signal(signal.SIGSTOP)
        try:
            body = completion(prompt(300, 1))
            reply = ask(decode, body, [prefill.kv])
            self.right(reply, body, aggregated)
            self.assertEqual(timeline(reply)["prefill_worker"], "")
            self.assertIn(prefill.kv, timeline(reply)["prefill_reason"])
        finally:
            prefill.process.send_signal(signal.SIGCONT)
        # What it still had for us is refused, and it helps again.
        def helps(start=iter(range(2, 1000))):
            body = completion(prompt(300, next(start)))
            reply = ask(decode, body, [prefill.kv])
            self.right(reply, body, aggregated)
            return timeline(reply)["prefill_worker"] == prefill.kv

        decode.wait_until(helps, "the worker helps again")
        self.returns_to_baseline(prefill, decode)

    def test_client_leaves_during_prefill(self):
        prefill, decode, _ = self.cluster(prefill_flags=SLOW)
        for start in range(3):
            # The answer is long: a client that leaves late, because this process had to wait for its turn, still leaves.
            body = json.dumps(completion(prompt(1900, start), max_tokens=140, ignore_eos=True, stream=start % 2 == 0)).encode()
            connection = decode.connect()
            connection.request("POST", "/v1/completions", body, {**JSON, **sign(body, [prefill.kv])})
            decode.wait_until(lambda: decode.metric("moectl_num_remote_prefills") == 1, "the prompt is computed elsewhere")
            connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
            self.returns_to_baseline(decode, prefill)
        self.assertEqual(decode.metric('moectl_requests_total{outcome="cancelled"}'), 3)

    def test_decode_dies_during_prefill(self):
        prefill, decode, _ = self.cluster(prefill_flags=SLOW)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            lost = pool.submit(ask, decode, completion(prompt(1900), max_tokens=140, ignore_eos=True), [prefill.kv])
            decode.wait_until(lambda: decode.metric("moectl_num_remote_prefills") == 1, "the prompt is computed elsewhere")
            decode.process.kill()
            self.assertIsInstance(lost.exception(), (ConnectionError, OSError))
        self.returns_to_baseline(prefill)

    def test_sigterm_lets_transfers_finish(self):
        prefill, decode, aggregated = self.cluster(prefill_flags=SLOW)
        body = completion(prompt(1900))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reply = pool.submit(ask, decode, body, [prefill.kv])
            # A request counts as soon as it is read, and may still be refused then: blocks travel once it was taken.
            prefill.wait_until(lambda: prefill.metric("moectl_kv_transfer_bytes_total") > 0, "a transfer is under way")
            self.assertEqual(prefill.terminate(), 0)
            self.right(reply.result(), body, aggregated)
        told = timeline(reply.result())
        self.assertEqual((told["prefill_worker"], told["prefill_reason"]), (prefill.kv, ""))
        self.returns_to_baseline(decode)


if __name__ == "__main__":
    unittest.main(verbosity=2)
