"""A CUDA error amid serving: tests/faults/cuda_driver.cpp stands before NVIDIA's driver and breaks it at a chosen moment.
Every open request ends with an error and never with a wrong or silently cut answer, health says so, the process ends with
the operation's name and exit code 1, and a router goes on with the other workers. Standard library. Skips, with the reason,
where no GPU serves."""
import ctypes
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

from cuda_test import ENDLESS, SERVED, why_no_gpu
from harness import JSON, MOECTL, ROOT, Server, events

STAND_IN = Path(MOECTL).parent / "fault_driver"
# Bits do not depend on company: what a request gets before the fault is the beginning of what it gets without one.
EXACT = (*SERVED, "--deterministic", "--no-enable-prefix-caching")
ENDS_WITHIN = 20  # seconds; much less is usual
OPERATIONS = {"copy", "a CUDA graph", *re.findall(r"virtual \w+ (\w+)\(const \w+Args", (ROOT / "kernels/ops.h").read_text())}
SECRET = tempfile.NamedTemporaryFile("w", suffix=".secret")
SECRET.write("f" * 32)
SECRET.flush()


def real_driver():
    ctypes.CDLL("libcuda.so.1")
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in lines if "/libcuda.so" in line)


class FragileServer(Server):
    """On a GPU whose driver breaks when told to."""

    def __init__(self, *flags, env=None):
        self.folder = tempfile.TemporaryDirectory()
        self.trigger = Path(self.folder.name) / "trigger"
        folders = [str(STAND_IN), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        super().__init__(*flags, env={"LD_LIBRARY_PATH": ":".join(folders), "FAULT_DRIVER": real_driver(),
                                      "FAULT_TRIGGER": str(self.trigger), **(env or {})})

    def break_driver(self, how):
        written = self.trigger.with_suffix(".new")
        written.write_text(how)
        written.rename(self.trigger)

    def __exit__(self, *_):
        super().__exit__()
        self.folder.cleanup()


class Client(threading.Thread):
    """One request, read to its end whatever that is."""

    def __init__(self, server, body):
        super().__init__(daemon=True)
        self.server, self.body = server, body
        self.status, self.error, self.cut, self.ended = None, None, False, None
        self.texts, self.ends, self.done = {}, {}, False
        self.has_text = threading.Event()  # or has ended
        self.start()

    def run(self):
        connection = self.server.connect()
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(self.body), JSON)
            response = connection.getresponse()
            self.status = response.status
            if self.body.get("stream") and self.status == 200:
                for line in events(response):
                    if line.startswith("{"):
                        self.take(json.loads(line), "delta")
                    self.done |= line == "[DONE]"
            else:
                self.take(json.loads(response.read()), "message")
                self.done = self.status == 200
        except (OSError, ValueError, http.client.HTTPException):
            self.cut = True
        finally:
            self.ended = time.monotonic()
            self.has_text.set()
            connection.close()

    def take(self, data, part):
        self.error = data.get("error", self.error)
        for choice in data.get("choices", ()):
            i, words = choice["index"], choice[part]
            self.texts[i] = self.texts.get(i, "") + (words.get("reasoning_content") or "") + (words.get("content") or "")
            self.ends[i] = choice["finish_reason"] or self.ends.get(i)
        if self.body.get("stream") and len(self.texts) == self.body.get("n", 1) and min(map(len, self.texts.values())) > 20:
            self.has_text.set()


class Health(threading.Thread):
    """Asks for /health again and again, until nobody answers."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.seen = server, []  # (when asked, status)
        self.start()

    def run(self):
        while True:
            asked = time.monotonic()
            try:
                self.seen.append((asked, self.server.get("/health", base=self.server.ops).status))
            except (OSError, http.client.HTTPException):
                return


def requests(number):
    """Long answers: streams, some of two choices, and every third in one piece."""
    return [{**ENDLESS, "seed": i, "n": 1 + (i % 5 == 0), "stream": i % 3 != 2} for i in range(number)]


class FaultCase(unittest.TestCase):
    def start(self, server, bodies):
        clients = [Client(server, body) for body in bodies]
        for client in clients:
            if client.body["stream"]:
                self.assertTrue(client.has_text.wait(60), "streams run")
        return clients

    def end(self, clients):
        for client in clients:
            client.join(ENDS_WITHIN)
            self.assertFalse(client.is_alive(), "an answer without an end")

    def broken_off(self, client, reason, whole=None):
        """Ended with an error; what it got before is the beginning of the whole answer."""
        self.assertIsNotNone(client.error, "an error, not only a cut")
        self.assertIn(reason, client.error["message"])
        self.assertEqual(client.error["code"], "engine_failed")
        self.assertFalse(client.done)
        self.assertEqual(set(client.ends.values()) - {None}, set(), "no finish_reason")
        self.assertEqual(client.status, 200 if client.body["stream"] else 503)
        for i, text in client.texts.items() if whole else ():
            self.assertTrue(whole.texts[i].startswith(text), (whole.texts[i], text))
            self.assertLess(len(text), len(whole.texts[i]))

    def whole(self, client, expected):
        self.assertTrue(client.done, client.error)
        self.assertEqual((client.status, client.texts, client.ends), (200, expected.texts, expected.ends))

    def instance_ends(self, server, reason):
        try:
            status = server.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.fail("the instance goes on:\n" + server.logged())
        self.assertEqual(status, 1, server.logged())
        lines = server.logged().splitlines()
        self.assertIn("fault driver: ", server.logged(), "the stand-in was loaded")
        failed = [line for line in lines if "the engine failed: GPU 0: " in line and " error " in line]
        self.assertEqual(len(failed), 1, server.logged())
        self.assertTrue(lines[-1].startswith("moectl: error: the engine failed, the instance ends: GPU 0: "), lines[-1])
        self.assertIn(reason, lines[-1])
        return lines[-1]


class OneInstance(FaultCase):
    def fault(self, how, reason, *flags, number=24, env=None, compare=True):
        with FragileServer(*(flags or EXACT), env=env) as server:
            bodies = requests(number)
            expected = self.start(server, bodies) if compare else []
            for client in expected:
                client.join(60)
                self.assertTrue(client.done, client.error)
            clients = self.start(server, bodies)
            server.wait_until(lambda: server.metric("moectl_requests_in_flight") == number, "all are in flight")
            health = Health(server)
            told = time.monotonic()
            server.break_driver(how)
            last = self.instance_ends(server, reason)
            took = time.monotonic() - told
            self.end([*clients, health])
            for i, client in enumerate(clients):
                self.broken_off(client, reason, expected[i] if compare else None)
            first_error = min(client.ended for client in clients)
            after = {status for asked, status in health.seen if asked > first_error}
            self.assertLessEqual(after, {503}, "healthy after the failure")
            print(f"  {how} {env or ''}: over {took:.2f} s after; health afterwards {after or 'refused'}\n    {last}", file=sys.stderr)
            return last

    def test_a_wild_pointer(self):
        last = self.fault("wild", "an illegal memory access was encountered")
        named = re.search(r", in ([\w ]+) or an operation before it", last)
        self.assertIn(named and named[1], OPERATIONS, last)
        self.assertIn("CUDA_LAUNCH_BLOCKING=1", last)

    def test_with_blocking_launches_the_operation_is_certain(self):
        last = self.fault("wild", "an illegal memory access was encountered", *SERVED, number=8, compare=False,
                          env={"CUDA_LAUNCH_BLOCKING": "1"})
        named = re.search(r", in ([\w ]+); nothing runs on the GPU any more: restart this instance", last)
        self.assertIn(named and named[1], OPERATIONS, last)

    def test_a_launch_that_is_refused(self):
        last = self.fault("refuse", "too many resources requested for launch", *SERVED, number=8, compare=False)
        named = re.search(r"GPU 0: ([\w ]+): ", last)
        self.assertIn(named and named[1], OPERATIONS, last)


class BehindARouter(FaultCase):
    def test_the_others_go_on(self):
        secret = ("--cluster-secret-file", SECRET.name)
        bodies = requests(16)
        with FragileServer(*EXACT, *secret) as fragile, Server(*EXACT, *secret) as sound, \
                Server(*secret, "--decode", fragile.url, "--decode", sound.url, "--decode-policy", "round-robin",
                       command="serve-router") as router:
            state = lambda: {w["url"]: w["state"] for w in router.get("/workers", base=router.ops).json()["workers"]}
            router.wait_until(lambda: set(state().values()) == {"ready"}, "both are ready")
            expected = [Client(sound, body) for body in bodies]
            for client in expected:
                client.join(60)
                self.assertTrue(client.done, client.error)
            clients = self.start(router, bodies)
            router.wait_until(lambda: fragile.metric("moectl_requests_in_flight") + sound.metric("moectl_requests_in_flight") == 16,
                              "all are in flight")
            self.assertEqual(fragile.metric("moectl_requests_in_flight"), 8)
            fragile.break_driver("wild")
            self.instance_ends(fragile, "an illegal memory access was encountered")
            for client in clients:
                client.join(60)
            broken = [i for i, client in enumerate(clients) if not client.done]
            self.assertGreater(len(broken), 0)
            for i, client in enumerate(clients):
                if i in broken:
                    self.assertTrue(client.body["stream"], "an answer in one piece is begun again elsewhere")
                    self.broken_off(client, "an illegal memory access was encountered", expected[i])
                else:
                    self.whole(client, expected[i])
            self.assertGreaterEqual(router.metric('moectl_router_retries_total{cause="died"}'), 1)
            router.wait_until(lambda: state()[fragile.url] == "unhealthy", "the worker is out")
            self.assertEqual(state()[sound.url], "ready")
            again = [Client(router, body) for body in bodies]
            for client, whole in zip(again, expected):
                client.join(60)
                self.whole(client, whole)
            self.assertEqual(sound.terminate(), 0)
            router.wait_until(lambda: router.get("/readiness").status == 503, "no worker is left")
            reply = router.post("/v1/chat/completions", bodies[2])
            self.assertEqual(reply.status, 503, reply.body)
            self.assertIn("retry-after", reply.headers)
            print(f"  behind a router: {len(broken)} of 16 broken off, the others whole", file=sys.stderr)


if __name__ == "__main__":
    if reason := why_no_gpu():
        print(f"skipped: {reason}")
        sys.exit(77)
    if not STAND_IN.is_dir():
        sys.exit(f"{STAND_IN} is not there: build the target cuda_fault_driver")
    unittest.main(verbosity=2)
