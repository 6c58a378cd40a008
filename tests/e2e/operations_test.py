"""What operators rely on: a server that goes on when nobody reads its log, that always ends when it is told to, that spares
descriptors for its operations port, and whose state only those change who may. Standard library only."""
import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import re
import resource
import signal
import socket
import threading
import time
import unittest
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from harness import JSON, Server, events
from pd_test import SECRET, SECRETS, Case, secret_file

SHORT = {"prompt": [5, 6, 7], "max_tokens": 1}
LONG = {"prompt": [5, 6, 7], "max_tokens": 3000, "ignore_eos": True, "stream": True}
WITH_SECRET = ("--cluster-secret-file", SECRETS.name)
WALL = 0x40000000  # __WALL: waitpid() for threads too


def tearDownModule():
    SECRETS.close()


def router(worker, *flags, **options):
    return Server(*WITH_SECRET, "--decode", worker.url, *flags, command="serve-router", **options)


def bearer(key):
    return {"Authorization": "Bearer " + key}


def wait_ready(server):
    server.wait_until(lambda: server.get("/readiness", base=server.ops).status == 200, "ready")


def start_stream(server, body=LONG):
    connection = server.connect()
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    response = connection.getresponse()
    response.readline()
    return connection, response


@contextlib.contextmanager
def full_pipe():
    """(reading end, writing end) of a pipe that takes not one byte more."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"-\n")
    os.set_blocking(writing, True)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


class LogThatNobodyReads(Case):
    def test_requests_are_served_and_sigterm_ends_it(self):
        with full_pipe() as (_, of_worker), full_pipe() as (_, of_router):
            worker = self.start(Server(*WITH_SECRET, stderr=of_worker))
            entry = self.start(router(worker, stderr=of_router))
            wait_ready(entry)

            def ask(count):
                connection = entry.connect(timeout=60)
                for _ in range(count):
                    connection.request("POST", "/v1/completions", json.dumps(SHORT), JSON)
                    response = connection.getresponse()
                    response.read()
                    self.assertEqual(response.status, 200)
                connection.close()

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(ask, [250] * 8))
            self.assertEqual(worker.metric('moectl_requests_total{outcome="success"}'), 2000)
            for server in (entry, worker):
                server.process.send_signal(signal.SIGTERM)
            for server in (entry, worker):
                self.assertEqual(server.process.wait(60), 0)

    def test_dropped_lines_are_counted_and_reported(self):
        with full_pipe() as (reading, writing):
            worker = self.start(Server("--log-level", "debug", stderr=writing))
            address = urllib.parse.urlsplit(worker.url)

            def be_refused(count):  # one line of the log each
                for _ in range(count):
                    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
                        connection.sendall(b"no HTTP\r\n\r\n")
                        while connection.recv(4096):
                            pass

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(be_refused, [1250] * 4))
            dropped = int(worker.metric("moectl_log_lines_dropped_total"))
            self.assertGreater(dropped, 0)
            reported = None
            with os.fdopen(os.dup(reading)) as lines:
                for line in lines:
                    if reported := re.search(r"(\d+) log lines were dropped", line):
                        break
            self.assertEqual(int(reported[1]), dropped)


def cpu_times(pid):
    """{thread: nanoseconds on a processor}."""
    times = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{tid}/schedstat") as file:
            times[int(tid)] = int(file.read().split()[0])
    return times


class Frozen:
    """The threads of a server that compute, stopped one by one as a hung engine is (SIGSTOP stops whole processes only)."""

    def __init__(self, server, test):
        self.process = server.process
        before = cpu_times(server.process.pid)
        self.connection, response = start_stream(server)
        for _, _ in zip(range(40), events(response)):
            pass
        spent = {tid: after - before.get(tid, 0) for tid, after in cpu_times(server.process.pid).items()}
        self.threads = [tid for tid, time in spent.items() if time > max(spent.values()) / 5 and tid != server.process.pid]
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        for tid in self.threads:
            if libc.ptrace(0x4206, tid, None, None) != 0:  # PTRACE_SEIZE
                test.skipTest(f"ptrace is not permitted here: {os.strerror(ctypes.get_errno())}")
            libc.ptrace(0x4207, tid, None, None)  # PTRACE_INTERRUPT
            os.waitpid(tid, WALL)
        test.addCleanup(self.kill)

    def kill(self):  # of a test that failed
        if self.process.poll() is None:
            self.process.kill()
            self.wait(30)

    def wait(self, seconds):
        """The exit status. Who traces a thread must wait for it too, or the process never counts as ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            for tid in self.threads:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(tid, WALL | os.WNOHANG)
            with contextlib.suppress(Exception):
                self.process.wait(0.01)
        self.connection.close()
        return self.process.returncode


class HungEngine(Case):
    def test_the_second_signal_ends_it_and_so_does_the_grace(self):
        hung, left_alone = (self.start(Server("--shutdown-timeout", "0")) for _ in range(2))
        frozen, frozen_too = Frozen(hung, self), Frozen(left_alone, self)
        for server in (left_alone, hung):
            server.process.send_signal(signal.SIGTERM)
        hung.wait_until(lambda: "are cut (--shutdown-timeout)" in hung.logged(), "stopping")
        hung.process.send_signal(signal.SIGTERM)
        self.assertEqual(frozen.wait(8), 1, hung.logged())
        self.assertIn("second signal: the process ends at once, while ", hung.logged())

        self.assertEqual(frozen_too.wait(60), 1, left_alone.logged())
        self.assertIn("it hung while stopping servers and engine", left_alone.logged())


class Hangup(Case):
    def test_sighup_ends_in_order(self):
        server = self.start(Server())
        connection, response = start_stream(server, {**LONG, "max_tokens": 300})
        server.process.send_signal(signal.SIGHUP)
        self.assertEqual(list(events(response))[-1], "[DONE]")
        connection.close()
        self.assertEqual(server.process.wait(60), 0)

    def test_nohup(self):
        server = self.start(Server(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)))
        server.process.send_signal(signal.SIGHUP)
        self.assertEqual(server.post("/v1/completions", SHORT).status, 200)
        self.assertEqual(server.get("/readiness").status, 200)
        self.assertEqual(server.terminate(), 0)


class Descriptors(Case):
    def test_a_router_with_few_keeps_its_ops_port_and_blames_no_worker(self):
        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

        worker = self.start(Server(*WITH_SECRET))
        entry = self.start(router(worker, preexec_fn=few))
        wait_ready(entry)
        ends, some_text = [], threading.Semaphore(0)

        def stream():
            connection, response = start_stream(entry, {**LONG, "max_tokens": 12})
            some_text.release()
            ends.append(list(events(response))[-1])
            connection.close()

        threads = [threading.Thread(target=stream, daemon=True) for _ in range(180)]
        for thread in threads:
            thread.start()
        self.assertTrue(some_text.acquire(timeout=60))
        looks = 0
        deadline = time.monotonic() + 120
        while any(thread.is_alive() for thread in threads):
            self.assertLess(time.monotonic(), deadline)
            self.assertEqual(entry.get("/health", base=entry.ops).status, 200)
            found = entry.get("/workers", base=entry.ops).json()["workers"]
            self.assertEqual([(w["state"], w["breaker_open"]) for w in found], [("ready", False)], found)
            looks += 1
        self.assertGreater(looks, 2)
        self.assertEqual(ends, ["[DONE]"] * 180)
        self.assertRegex(entry.logged(), r"at most \d+ connections .* may open 256 files")

    def test_the_soft_limit_is_raised(self):
        hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        server = self.start(Server(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))))
        self.assertEqual(resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE), (hard, hard))


class Administration(Case):
    def changes(self, server, path, headers=None):
        return server.post(path, b"", headers or {}, base=server.ops).status

    def test_of_a_worker_and_of_a_router(self):
        worker = self.start(Server(*WITH_SECRET))
        entry = self.start(router(worker, "--api-key", "front-door"))
        wait_ready(entry)
        for server in (worker, entry):
            own = {"Origin": server.ops}
            for path in ("/drain", "/undrain", "/flush_cache") if server is worker else ("/drain", "/undrain"):
                for refused in ({}, bearer("wrong"), own):
                    self.assertEqual(self.changes(server, path, refused), 401, (path, refused))
                for origin in ("http://evil.example", "null", worker.url):
                    self.assertEqual(self.changes(server, path, {**bearer(SECRET), "Origin": origin}), 403, (path, origin))
            self.assertEqual(server.get("/readiness", base=server.ops).status, 200)
            self.assertEqual(self.changes(server, "/drain", bearer(SECRET)), 200)
            self.assertEqual(server.get("/readiness", base=server.ops).status, 503)
            self.assertEqual(self.changes(server, "/undrain", {**bearer(SECRET), **own}), 200)
            wait_ready(server)
        self.assertEqual(self.changes(entry, "/undrain", bearer("front-door")), 200)
        self.assertEqual(entry.get("/workers", base=entry.ops).status, 200)
        entry.wait_until(lambda: entry.post("/v1/completions", SHORT, {**JSON, **bearer("front-door")}).status == 200, "an answer")

    def test_undrain_does_not_undo_a_shutdown(self):
        server = self.start(Server("--shutdown-timeout", "60"))
        connection, response = start_stream(server)
        server.process.send_signal(signal.SIGTERM)
        server.wait_until(lambda: server.get("/readiness", base=server.ops).status == 503, "draining")
        self.assertEqual(self.changes(server, "/undrain"), 409)
        self.assertEqual(server.get("/readiness", base=server.ops).status, 503)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        self.assertEqual(server.process.wait(60), 0)

    def test_without_key_and_secret_this_machine_may_but_no_page_from_elsewhere(self):
        server = self.start(Server("--ops-host", "127.0.0.2"))
        self.assertTrue(server.ops.startswith("http://127.0.0.2:"), server.ops)
        self.assertEqual(self.changes(server, "/drain", {"Origin": "http://evil.example"}), 403)
        self.assertEqual(server.get("/readiness").status, 200)
        self.assertEqual(self.changes(server, "/drain"), 200)
        self.assertEqual(server.get("/readiness").status, 503)
        self.assertEqual(self.changes(server, "/undrain", {"Origin": server.ops}), 200)
        self.assertEqual(server.get("/readiness").status, 200)


class KeysAndHeaders(Case):
    def timeline(self, server, headers=None):
        reply = server.post("/v1/completions", SHORT, {**JSON, "x-moectl-debug": "1", **(headers or {})})
        self.assertEqual(reply.status, 200)
        return reply.headers.get("x-moectl-timeline")

    def test_probes_need_no_key(self):
        worker = self.start(Server(*WITH_SECRET, "--api-key", "k", "--metrics-without-key"))
        entry = self.start(router(worker, "--api-key", "k"))
        wait_ready(entry)
        for server in (worker, entry):
            for path in ("/health", "/liveness", "/readiness", "/api/predict/name/health"):
                self.assertEqual(server.get(path).status, 200, path)
            for path in ("/load", "/version", "/v1/models", "/api/predict/name/v1/models", "/health/x"):
                self.assertEqual(server.get(path).status, 401, path)
        self.assertEqual((worker.get("/metrics").status, entry.get("/metrics").status), (200, 401))

    def test_debug_header(self):
        worker = self.start(Server(*WITH_SECRET, "--no-allow-debug-header"))
        closed, open_one = self.start(router(worker, "--no-allow-debug-header")), self.start(router(worker))
        for server in (closed, open_one):
            wait_ready(server)
            self.assertIsNone(self.timeline(worker))
        self.assertIsNone(self.timeline(closed))
        shown = self.timeline(open_one)
        self.assertIn(worker.url, shown)
        self.assertIn('"role":"decode"', shown.replace(" ", ""), "a worker obeys its router")


if __name__ == "__main__":
    unittest.main()
