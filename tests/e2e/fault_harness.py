"""What tests of an engine that fails amid serving share: clients that read an answer to whatever end it has, and what every
end must be."""
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

from harness import JSON, Server, events

# Seconds from a fault to the end of the process: waits on devices end after 15, the watchdog after 20, and open requests
# get their errors before the end.
ENDS_WITHIN = 30
ENDS = "moectl: error: the engine failed, the instance ends: "

class FragileServer(Server):
    """Breaks when told to: what computes looks for a file, whose first word says how."""

    def __init__(self, *flags, env=None, **server):
        self.folder = tempfile.TemporaryDirectory()
        self.trigger = Path(self.folder.name) / "trigger"
        super().__init__(*flags, env={"FAULT_TRIGGER": str(self.trigger), **(env or {})}, **server)

    def break_it(self, how):
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


class FaultCase(unittest.TestCase):
    def start(self, server, bodies):
        clients = [Client(server, body) for body in bodies]
        for client in clients:
            if client.body["stream"]:
                self.assertTrue(client.has_text.wait(120), "streams run")
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

    def instance_ends(self, server):
        """Its exit status is 1, the last line of its log says why, and the failure was logged once. The reason."""
        try:
            status = server.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.fail("the instance goes on:\n" + server.logged())
        self.assertEqual(status, 1, server.logged())
        lines = server.logged().splitlines()
        failed = [line for line in lines if re.search(r" error +the engine failed: ", line)]
        self.assertEqual(len(failed), 1, server.logged())
        self.assertTrue(lines[-1].startswith(ENDS), lines[-1])
        return lines[-1].removeprefix(ENDS)

    def others_go_on(self, fragile, sound, bodies, secret, how, reason):
        """Behind a router, one of two workers breaks: what it has said no text of is begun again on the other, its streams
        with text end with the error, and all later requests go to the other."""
        workers = ("--decode", fragile.url, "--decode", sound.url, "--decode-policy", "round-robin")
        with Server(*secret, *workers, command="serve-router") as router:
            state = lambda: {w["url"]: w["state"] for w in router.get("/workers", base=router.ops).json()["workers"]}
            router.wait_until(lambda: set(state().values()) == {"ready"}, "both are ready")
            expected = [Client(sound, body) for body in bodies]
            for client in expected:
                client.join(120)
                self.assertTrue(client.done, client.error)
            clients = self.start(router, bodies)
            in_flight = lambda server: server.metric("moectl_requests_in_flight")
            router.wait_until(lambda: in_flight(fragile) + in_flight(sound) == len(bodies), "all are in flight")
            self.assertEqual(in_flight(fragile), len(bodies) // 2)
            fragile.break_it(how)
            self.assertIn(reason, self.instance_ends(fragile))
            for client in clients:
                client.join(120)
            broken = [i for i, client in enumerate(clients) if not client.done]
            self.assertGreater(len(broken), 0)
            for i, client in enumerate(clients):
                if i in broken:
                    self.assertTrue(client.body["stream"], "an answer in one piece is begun again elsewhere")
                    self.broken_off(client, reason, expected[i])
                else:
                    self.whole(client, expected[i])
            retries = [router.metric(f'moectl_router_retries_total{{cause="{cause}"}}') for cause in ("died", "unhealthy")]
            self.assertGreaterEqual(sum(retries), len(bodies) // 2 - len(broken), "what was there and is whole was begun again")
            router.wait_until(lambda: state()[fragile.url] == "unhealthy", "the worker is out")
            self.assertEqual(state()[sound.url], "ready")
            again = [Client(router, body) for body in bodies]
            for client, whole in zip(again, expected):
                client.join(120)
                self.whole(client, whole)
            self.assertEqual(sound.terminate(), 0)
            router.wait_until(lambda: router.get("/readiness").status == 503, "no worker is left")
            reply = router.post("/v1/chat/completions", bodies[2])
            self.assertEqual(reply.status, 503, reply.body)
            self.assertIn("retry-after", reply.headers)
            print(f"  behind a router: {len(broken)} of {len(bodies)} broken off, the others whole", file=sys.stderr)
