"""The server on a GPU: the CPU's answers, many different requests at once, clients that leave, signals under load, and
what does not fit. Standard library. Skips, with the reason, where no GPU serves."""
import concurrent.futures
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from harness import DEMO, GOLDEN, JSON, MOECTL, ROOT, Server, environment, events

CUDA = ("--device", "cuda")
SERVED = (*CUDA, "--kv-cache-memory-bytes", "1G")  # leaves the card to others, and starts sooner
HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
ENDLESS = {"messages": HELLO["messages"], "temperature": 1, "seed": 7, "max_tokens": 1900, "ignore_eos": True}


def run(*arguments, timeout=120):
    return subprocess.run([MOECTL, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True,
                          timeout=timeout, stdin=subprocess.DEVNULL)


def why_no_gpu():
    """What the binary says is missing; None when it serves on a GPU. A GPU that nvidia-smi lists must serve."""
    result = run("serve-decode", str(DEMO), *CUDA, "--port", "0", "--gpu-memory-utilization", "0.001")  # loads nothing
    if result.returncode != 78 or "the GPU's memory does not suffice" in result.stderr:
        return None
    try:
        listed = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True).stdout
    except OSError:
        listed = ""
    reason = result.stderr.strip().splitlines()[-1]
    if listed.strip() and "built without CUDA" not in reason:
        raise SystemExit(f"{listed.strip()} is here and does not serve: {reason}")
    return reason


def mixed_request(i):
    """A request unlike its neighbours: sampling, penalties, logprobs, stop strings, several choices, streamed or not."""
    case = GOLDEN[i % len(GOLDEN)]
    body = {"messages": case["messages"], "max_tokens": 24 + i % 40, "seed": i, "stream": i % 2 == 1}
    body |= ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 1, "top_k": 20, "presence_penalty": 0.5},
             {"temperature": 0.7, "min_p": 0.05, "frequency_penalty": 0.3, "repetition_penalty": 1.1})[i % 4]
    if i % 3 == 0:
        body |= {"logprobs": True, "top_logprobs": i % 6}
    if i % 5 == 0:
        body["stop"] = [" e", "="]
    if i % 8 == 3:
        body["n"] = 3
    if i % 7 == 0:
        body |= {"ignore_eos": True}
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    return body


def answer(server, body):
    """[(text, finish reason, logprobs)] of each choice, and the number of tokens that the server counted."""
    reply = None
    if not body["stream"]:
        reply = server.post("/v1/chat/completions", body)
        assert reply.status == 200, (body, reply.body)
        data = reply.json()
        choices = [((c["message"].get("reasoning_content") or "") + (c["message"]["content"] or ""), c["finish_reason"],
                    [t for t in (c["logprobs"] or {}).get("content") or []]) for c in data["choices"]]
        return choices, data["usage"]["completion_tokens"]
    connection = server.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), JSON)
    response = connection.getresponse()
    assert response.status == 200, (body, response.read())
    lines = [line for line in events(response) if not line.startswith(":")]
    connection.close()
    assert lines[-1] == "[DONE]", lines[-1]
    texts, ends, logprobs, count = {}, {}, {}, None
    for line in lines[:-1]:
        data = json.loads(line)
        assert "error" not in data, data
        if data.get("usage"):
            count = data["usage"]["completion_tokens"]
        for c in data["choices"]:
            i = c["index"]
            assert i not in ends, "words after the end"
            delta = c["delta"]
            texts[i] = texts.get(i, "") + (delta.get("reasoning_content") or "") + (delta.get("content") or "")
            logprobs.setdefault(i, []).extend((c.get("logprobs") or {}).get("content") or [])
            if c["finish_reason"]:
                ends[i] = c["finish_reason"]
    return [(texts[i], ends[i], logprobs[i]) for i in sorted(texts)], count


class Answers(unittest.TestCase):
    def test_greedy_answers_are_the_cpus(self):
        """All of them with --precise. The fast kernels round operands, which parts few answers from the CPU's (golden tests
        judge the logits): here, of 13, the one to a prompt that is gibberish to the demo model."""
        bodies = [{"messages": c["messages"], "temperature": 0, "max_tokens": 200} for c in GOLDEN]

        def answers(*flags):
            with Server(*flags) as server, concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
                replies = pool.map(lambda body: server.post("/v1/chat/completions", body).json(), bodies)
                return [(r["choices"][0]["message"], r["usage"]["completion_tokens"]) for r in replies]

        cpu = answers("--device", "cpu")
        self.assertEqual(answers(*SERVED, "--precise"), cpu)
        for flags in ((), ("--deterministic", "--no-enable-prefix-caching")):
            parted = [(ours, theirs) for ours, theirs in zip(answers(*SERVED, *flags), cpu) if ours != theirs]
            self.assertLessEqual(len(parted), 1, parted)

    def test_64_different_requests_at_once(self):
        bodies = [mixed_request(i) for i in range(64)]
        # Seeded, and bits that do not depend on company: what each gets alone.
        with Server(*SERVED, "--deterministic", "--no-enable-prefix-caching") as server:
            alone = [answer(server, body) for body in bodies[:16]]
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                together = list(pool.map(lambda body: answer(server, body), bodies))
            self.assertEqual(together[:16], alone)
            for body, (choices, count) in zip(bodies, together):
                self.assertEqual(len(choices), body.get("n", 1), body)
                self.assertGreater(count, 0)
                self.assertLessEqual(count, body["max_tokens"] * body.get("n", 1))
                for text, end, logprobs in choices:
                    self.assertIn(end, ("stop", "length"), body)
                    if end == "length" and body.get("n", 1) == 1:
                        self.assertEqual(count, body["max_tokens"], body)
                    for stop in body.get("stop", ()):
                        self.assertNotIn(stop, text, body)
                    self.assertEqual(bool(logprobs), bool(body.get("logprobs")), body)
                    for token in logprobs:
                        self.assertLessEqual(token["logprob"], 0)
                        self.assertEqual(len(token["top_logprobs"]), body["top_logprobs"])
            server.wait_until(lambda: server.metric("moectl_requests_in_flight") == 0, "no request is left")
            self.assertEqual(server.metric("moectl_kv_cache_pages_used"), 0)
            self.assertEqual(server.metric('moectl_requests_total{outcome="success"}'), 64 + 16)
            self.assertEqual(server.terminate(), 0)

    def test_clients_that_leave_return_their_pages(self):
        with Server(*SERVED, "--no-enable-prefix-caching") as server:
            self.assertEqual(server.metric("moectl_kv_cache_pages_used"), 0)
            case = GOLDEN[2]

            def leaver(i):
                connection = server.connect()
                connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, "stream": True, "n": 1 + i % 3}), JSON)
                response = connection.getresponse()
                for _ in range(10 + i):
                    response.readline()
                connection.sock.shutdown(socket.SHUT_RDWR)
                connection.close()

            def stayer(_):
                reply = server.post("/v1/chat/completions", {"messages": case["messages"], "temperature": 0})
                return reply.json()["choices"][0]["message"]["content"]

            with concurrent.futures.ThreadPoolExecutor(32) as pool:
                left, answers = pool.map(leaver, range(24)), pool.map(stayer, range(24))
                self.assertEqual(set(answers), {"384 + 157 = 541"})
                list(left)
            server.wait_until(lambda: server.metric("moectl_requests_in_flight") == 0, "every request ends")
            server.wait_until(lambda: server.metric("moectl_kv_cache_pages_used") == 0, "every page returns")
            outcome = lambda name: server.metric(f'moectl_requests_total{{outcome="{name}"}}')
            self.assertEqual([outcome(o) for o in ("success", "cancelled", "failed")], [24, 24, 0])
            self.assertEqual(server.terminate(), 0)


class Signals(unittest.TestCase):
    def load(self, server, number, max_tokens):
        """Starts `number` endless streams; returns what each got, filled when its connection ends."""
        ends, started = [], threading.Semaphore(0)
        body = {**ENDLESS, "stream": True, "max_tokens": max_tokens}

        def stream():
            connection = server.connect()
            data = []
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(body), JSON)
                response = connection.getresponse()
                for line in events(response):
                    data.append(line)
                    if len(data) == 3:
                        started.release()
            except (OSError, ValueError, http.client.HTTPException):
                pass
            ends.append(data)
            connection.close()

        threads = [threading.Thread(target=stream, daemon=True) for _ in range(number)]
        for thread in threads:
            thread.start()
        for _ in range(number):
            self.assertTrue(started.acquire(timeout=60), "streams run")
        return threads, ends

    def ends_in_time(self, how, status, *flags, seconds, max_tokens=1900):
        with Server(*SERVED, *flags) as server:
            threads, ends = self.load(server, 48, max_tokens)
            begin = time.monotonic()
            self.assertEqual(server.terminate(how), status, server.logged())
            took = time.monotonic() - begin
            for thread in threads:
                thread.join(60)
            self.assertEqual(len(ends), 48)
            self.assertLess(took, seconds, server.logged())
            self.assertNotIn("error", server.logged())
            print(f"  {signal.Signals(how).name} {flags}: {took:.2f} s, {sum('[DONE]' in d for d in ends)} of 48 streams complete",
                  file=sys.stderr)
            return ends

    def test_sigterm_lets_answers_finish(self):
        for data in self.ends_in_time(signal.SIGTERM, 0, seconds=30, max_tokens=400):
            self.assertEqual(data[-1], "[DONE]")

    def test_sigterm_and_sigint_cut_after_the_timeout(self):
        for how, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            self.ends_in_time(how, status, "--shutdown-timeout", "0", "--max-num-seqs", "48", seconds=8)

    def test_a_signal_while_loading_ends_at_once(self):
        for how, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            with Server(*SERVED, wait=False) as server:
                server.wait_until(lambda: "listening on" in server.logged(), "the process has begun")
                begin = time.monotonic()
                self.assertEqual(server.terminate(how), status, server.logged())
                self.assertLess(time.monotonic() - begin, 8)


class NotStarting(unittest.TestCase):
    def refused(self, status, *arguments, command="serve-decode"):
        result = run(command, str(DEMO), *CUDA, "--port", "0", *arguments)
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stdout, "")
        errors = [line for line in result.stderr.splitlines() if "moectl: error: " in line]
        self.assertEqual(len(errors), 1, result.stderr)
        self.assertEqual(result.stderr.splitlines()[-1], errors[0], "one line, the last")
        return errors[0]

    def test_memory_that_is_not_there(self):
        too_much = self.refused(78, "--kv-cache-memory-bytes", "2000G")
        for part in ("--kv-cache-memory-bytes", "weights ", "activations ", "KV cache 2", "free; give at most "):
            self.assertIn(part, too_much)
        too_little = self.refused(78, "--gpu-memory-utilization", "0.001")
        for part in ("--gpu-memory-utilization", "weights ", "KV cache 0.00 GB", "--max-model-len"):
            self.assertIn(part, too_little)
        self.assertIn("less than one sequence", self.refused(78, "--kv-cache-memory-bytes", "1M"))

    def test_weights_that_do_not_fit(self):
        result = run("serve-decode", "--shape", "deepseek-r1", *CUDA, "--port", "0")
        self.assertEqual(result.returncode, 78, result.stderr)
        self.assertRegex(result.stderr.splitlines()[-1], r"moectl: error: the GPU's memory does not suffice: weights 6[0-9]{2}\.")

    def test_what_a_gpu_cannot_do_yet(self):
        self.assertIn("there is no GPU 63", self.refused(78, "--ep-size", "2", "--devices", "0,63"))
        self.assertIn("--devices names 2 GPU(s) for 1 rank(s)", self.refused(78, "--devices", "0,1"))
        with tempfile.NamedTemporaryFile("w") as secret:
            secret.write("s" * 32)
            secret.flush()
            self.assertIn("KV transfer between GPU workers", self.refused(78, "--cluster-secret-file", secret.name, command="serve-prefill"))

    def test_a_shape_that_is_not_there(self):
        result = run("serve-decode", "--shape", "qwen3-30b", *CUDA, "--port", "0")
        self.assertEqual(result.returncode, 2)
        self.assertIn("qwen3-30b-a3b", result.stderr)

    def test_inspect_needs_no_gpu(self):
        result = run("inspect", str(DEMO), "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertGreater(json.loads(result.stdout)["parameters"]["total"], 0)


if __name__ == "__main__":
    if reason := why_no_gpu():
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main(verbosity=2)
