"""A server under test: the real binary (MOECTL) on the demo checkpoint, and raw HTTP to it."""
import http.client
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models/demo"
GOLDEN = json.loads((DEMO / "golden.json").read_text())["cases"]
MOECTL = os.environ["MOECTL"]
JSON = {"Content-Type": "application/json"}


def environment(**more):
    return {k: v for k, v in os.environ.items() if not k.startswith("MOECTL_")} | more


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]


class Server:
    """Starts on free ports and waits for the ready line. Use as a context manager; logs are kept in a file."""

    def __init__(self, *flags, model=DEMO, wait=True, command="serve-decode", port=0, env=None, binary=MOECTL, **process):
        """`process`: more for subprocess.Popen, stderr among it."""
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.role = command.removeprefix("serve-")
        checkpoint = [] if command == "serve-router" else [str(model), "--served-model-name", "demo"]
        self.process = subprocess.Popen(
            [str(binary), command, *checkpoint, "--port", str(port), "--ops-port", "0", *flags],
            stdout=subprocess.PIPE, text=True, env=environment(**(env or {})), cwd=ROOT, **{"stderr": self.log, **process})
        self.url = self.ops = self.kv = None
        if wait:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start:\n" + self.logged())
            ready = json.loads(line)
            assert ready["ready"] is True and (ready["kv"] is not None) == (command == "serve-prefill"), ready
            self.url, self.ops, self.kv = ready["url"], ready["ops"], ready["kv"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def logged(self):
        return Path(self.log.name).read_text()

    def connect(self, base=None, timeout=300):
        return http.client.HTTPConnection(urllib.parse.urlsplit(base or self.url).netloc, timeout=timeout)

    def request(self, method, path, body=None, headers=JSON, base=None):
        connection = self.connect(base)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, dict(headers))
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def get(self, path, base=None):
        return self.request("GET", path, base=base, headers={})

    def post(self, path, body, headers=JSON, base=None):
        return self.request("POST", path, body, headers, base)

    def metric(self, name):
        """Value of one sample, labels included in the name."""
        for line in self.get("/metrics", base=self.ops).body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise KeyError(name)

    def wait_until(self, condition, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}\n{self.logged()}")
            try:  # between two looks
                self.process.wait(0.01)
                raise AssertionError(f"the server ended before this: {what}\n{self.logged()}")
            except subprocess.TimeoutExpired:
                pass

    def terminate(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(300)


def events(response):
    """The data of each SSE event, and each comment, of an open http.client response."""
    for raw in response:
        line = raw.decode().rstrip("\n")
        if line.startswith("data: "):
            yield line[6:]
        elif line.startswith(":"):
            yield line
