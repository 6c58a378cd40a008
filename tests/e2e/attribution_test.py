"""Who is to blame: a request's own error, one event, another secret or a stopped process costs only whom it should. Real
processes behind a real router; each rule stands in docs/faults.md."""
import concurrent.futures
import json
import resource
import signal
import re
import time
import unittest
import urllib.parse

from harness import JSON, Server
from operations_test import Frozen
from pd_test import SECRETS, ask, completion, decode_worker, prompt, secret_file, sign
from router_test import RouterCase, Stream, long_answer, router


def decode_worker_at(port):
    return Server("--cluster-secret-file", SECRETS.name, port=port)


def port_of(server):
    return urllib.parse.urlsplit(server.url).port


class Attribution(RouterCase):
    def breaker(self, entry, worker):
        return entry.metric(f'moectl_router_breaker_open{{role="decode",worker="{worker.url}"}}')

    def retries(self, entry):
        text = entry.get("/metrics", base=entry.ops).body.decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("moectl_router_retries_total"))

    def test_a_requests_own_error(self):
        """Point 1: range errors, and logits that nothing is left of, are the request's."""
        workers = [self.start(decode_worker()) for _ in range(2)]
        entry = self.router(*workers)
        for fields in ({"repetition_penalty": 1e-40}, {"repetition_penalty": 1e39}, {"temperature": 1e-300}, {"min_p": 2},
                       {"top_p": 0}):
            for stream in (False, True):
                reply = entry.post("/v1/completions", completion(prompt(20), stream=stream, **fields))
                self.assertEqual((reply.status, reply.error()["param"]), (400, next(iter(fields))), reply.body)
        for _ in range(12):
            entry.post("/v1/completions", completion(prompt(20), stream=True, repetition_penalty=1e-40))
        self.assertEqual((self.retries(entry), [self.breaker(entry, w) for w in workers]), (0, [0, 0]))
        self.assertEqual(ask(entry, completion(prompt(20))).status, 200)

    def test_one_kill_counts_once(self):
        """Point 2: a worker killed under 12 streams is used again as soon as it is back."""
        worker = self.start(decode_worker())
        entry = self.router(worker)
        streams = [Stream(entry, {**long_answer(start), "stream": True}) for start in range(12)]
        for stream in streams:
            stream.first.wait(60)
        worker.terminate(signal.SIGKILL)
        for stream in streams:
            self.assertFalse(stream.end().complete)
        again = self.start(decode_worker_at(port_of(worker)))
        self.sees(entry, decode=1)
        self.assertEqual(self.breaker(entry, again), 0)
        for start in range(3):
            self.assertEqual(ask(entry, completion(prompt(30, start))).status, 200)

    def test_neighbors_of_a_killed_worker_are_not_poison(self):
        """Point 3: a body whose workers were killed twice is not to blame when it has worked before."""
        body = long_answer(3, 500)
        first, second = (self.start(decode_worker()) for _ in range(2))
        entry = self.router(first, second)
        self.assertTrue(Stream(entry, body).end().complete)
        for victim in (first, second):
            streams = [Stream(entry, body) for _ in range(4)]
            for stream in streams:
                stream.first.wait(60)
            victim.terminate(signal.SIGKILL)
            for stream in streams:
                stream.leave()
            self.start(decode_worker_at(port_of(victim)))
            self.sees(entry, decode=2)
        last = Stream(entry, body).end()
        self.assertTrue(last.complete, last.data)
        self.assertNotIn("worker_died", entry.logged())

    def test_large_bodies_pass_through(self):
        """Point 4: what is large is neither computed twice nor taken for a worker's end."""
        workers = [self.start(decode_worker()) for _ in range(2)]
        entry = self.router(*workers)
        body = {"prompt": "word " * 150_000}
        whole = workers[0].post("/tokenize", body)
        reply = entry.post("/tokenize", body)
        self.assertEqual((reply.status, reply.body == whole.body), (whole.status, True))
        self.assertEqual((self.retries(entry), [self.breaker(entry, w) for w in workers]), (0, [0, 0]))

    def test_the_routers_own_descriptors(self):
        """Point 5: a router out of file descriptors blames no worker, and its operations port answers."""
        worker = self.start(decode_worker())
        limits = (256, 256)  # the hard limit, too: the router cannot raise it
        entry = self.start(Server("--cluster-secret-file", SECRETS.name, "--decode", worker.url, command="serve-router",
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits)))
        self.sees(entry, decode=1)
        connections = []
        for start in range(180):
            connection = entry.connect(timeout=60)
            connection.request("POST", "/v1/completions", json.dumps({**long_answer(start, 1900), "stream": True}), JSON)
            connections.append(connection)
        entry.wait_until(lambda: entry.metric("moectl_router_requests_in_flight") >= 90, "it is full")
        for _ in range(3):
            self.assertEqual(entry.get("/readiness", base=entry.ops).status, 200)
        workers = entry.get("/workers", base=entry.ops).json()["workers"]
        self.assertEqual([(w["state"], w["breaker_open"]) for w in workers], [("ready", False)])
        for connection in connections:
            connection.close()
        entry.wait_until(lambda: entry.metric("moectl_router_requests_in_flight") == 0, "all have left")
        self.assertEqual(ask(entry, completion(prompt(30))).status, 200)
        self.assertNotIn("unhealthy", entry.logged())

    def test_a_stopped_worker(self):
        """Points 6 and 7: what waits for a stopped worker goes elsewhere within seconds, what had text ends with an error."""
        stopped, other = (self.start(decode_worker()) for _ in range(2))
        entry = self.router(stopped, other, flags=["--policy", "round-robin"])
        started = [Stream(entry, long_answer(start)) for start in range(2)]
        for stream in started:
            stream.first.wait(60)
        self.addCleanup(stopped.process.send_signal, signal.SIGCONT)
        stopped.process.send_signal(signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            whole = [pool.submit(ask, entry, completion(prompt(40, start))) for start in range(4)]
            streams = [Stream(entry, {**completion(prompt(50, start)), "logprobs": None}) for start in range(4)]
            entry.wait_until(lambda: any(w["state"] == "unhealthy" for w in entry.get("/workers", base=entry.ops).json()["workers"]),
                             "the stopped worker is found", seconds=20)
            for reply in whole:
                self.assertEqual(reply.result(20).status, 200)
            for stream in streams:
                stream.join(20)
                self.assertTrue(stream.complete, stream.data)
        for stream in started:
            stream.join(60)
        broken = [stream for stream in started if not stream.complete]
        self.assertEqual(len(broken), 1)
        self.assertIn("became unhealthy", broken[0].data[-1])
        self.assertEqual(ask(entry, completion(prompt(60))).status, 200)

    def test_a_hung_engine(self):
        """Point 6: a worker whose engine computes nothing is stalled everywhere, and the router goes to another one."""
        hung, other = (self.start(decode_worker("--stall-timeout", "1")) for _ in range(2))
        entry = self.router(hung, other)
        frozen = Frozen(hung, self)
        entry.wait_until(lambda: "is unhealthy: stalled: nothing computed for" in entry.logged(), "it is found", seconds=20)
        self.assertEqual([hung.get(path).status for path in ("/health", "/readiness", "/liveness")], [503, 503, 200])
        self.assertEqual(hung.get("/load").json()["state"], "stalled")
        for start in range(4):
            self.assertEqual(ask(entry, completion(prompt(20, start))).status, 200)
        frozen.kill()

    def test_another_clock(self):
        """Point 8: a worker says by how much its clock differs from that of the router that asks."""
        worker = self.start(decode_worker())
        for ahead in (0, 3600, -7200):
            signed = sign(b"", time=str(int((time.time() + ahead) * 1000)))
            told = worker.request("GET", "/load", headers=signed).json()["cluster_problem"]
            if not ahead:
                self.assertEqual(told, "")
                continue
            differs = re.match(r"clock differs by (-?\d+) s", told)
            self.assertIsNotNone(differs, told)
            self.assertAlmostEqual(int(differs[1]), -ahead, delta=60)  # the request itself takes time

    def test_another_secret(self):
        """Point 8: readiness does not lie about a worker that refuses this router, and clients get no 400 for it."""
        with secret_file("another cluster's secret") as other:
            worker = self.start(Server("--cluster-secret-file", other.name))
        entry = self.start(router(worker))
        entry.wait_until(lambda: "unhealthy: other secret" in entry.logged(), "it is named")
        self.assertEqual(entry.get("/readiness").status, 503)
        reply = entry.post("/v1/completions", completion(prompt(20)))
        self.assertEqual(reply.status, 503)
        self.assertIn("other secret", reply.error()["message"])

    def test_content_types(self):
        """Point 10: router and worker take the same."""
        worker = self.start(decode_worker())
        entry = self.router(worker)
        for content_type, status in (("application/json; charset=utf-8", 200), ("Application/JSON", 200),
                                     ("application/vnd.api+json", 200), ("text/plain", 415), ("application/jsonx", 415)):
            for server in (worker, entry):
                reply = server.post("/v1/completions", completion(prompt(10)), {"Content-Type": content_type})
                self.assertEqual(reply.status, status, (content_type, server.role))


class Cost(RouterCase):
    def test_requests_of_many_choices_leave_room(self):
        """Point 12: requests of 128 long choices each keep nobody waiting, behind a router either."""
        worker = self.start(decode_worker("--max-num-seqs", "16"))
        entry = self.router(worker)
        body = {"prompt": [prompt(20, i) for i in range(32)], "n": 4, "max_tokens": 1500, "ignore_eos": True}
        greedy = [Stream(entry, body) for _ in range(3)]
        greedy[0].first.wait(60)
        entry.wait_until(lambda: entry.metric("moectl_router_queue_depth") == 2, "two wait")
        for start in range(5):
            self.assertEqual(ask(entry, completion(prompt(20, start))).status, 200)
        self.assertEqual(entry.metric("moectl_router_queue_depth"), 2)
        self.assertFalse(any(stream.complete for stream in greedy))
        for stream in greedy:
            stream.leave()


if __name__ == "__main__":
    unittest.main(verbosity=2)
