"""`moectl deploy` with real processes: what its tests share. Standard library."""
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

from harness import MOECTL, ROOT, environment

DEADLINE = 120  # seconds; on what ends much sooner
QUESTION = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": "What is 384 + 157?"}]}


def alive(process):
    """Whether the process of a state file still runs, and is that one."""
    try:
        fields = Path(f"/proc/{process['pid']}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[19] == str(process["start_ticks"]) and fields[0] not in "ZX"


class DeployCase(unittest.TestCase):
    """Each test has a state folder of its own; every process that a state named is gone at its end."""

    def setUp(self):
        self.home = self.enterContext(tempfile.TemporaryDirectory())
        self.folder = Path(self.home, "moectl/demo")
        self.env = {**environment(), "XDG_STATE_HOME": self.home}
        self.seen = {}  # every process that a state named
        self.addCleanup(self.end)

    def end(self):
        self.moectl("down", "--timeout", "0")
        for process in self.seen.values():
            self.until(lambda: not alive(process), f"process {process} is gone")

    def moectl(self, command, *flags, code=None, env=None):
        done = subprocess.run([MOECTL, "deploy", command, *flags], capture_output=True, text=True, timeout=DEADLINE,
                              env={**self.env, **(env or {})}, cwd=ROOT, stdin=subprocess.DEVNULL)
        if code is not None:
            self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def up(self, *flags, code=0, **kwargs):
        done = self.moectl("up", "--port", "0", *flags, code=code, **kwargs)
        if code == 0:
            self.remember()
        return done

    def state(self, name="demo"):
        return json.loads(Path(self.home, "moectl", name, "state.json").read_text())

    def remember(self):
        state = self.state()
        for process in [state["supervisor"], *(i["process"] for i in state["instances"])]:
            if process["pid"]:
                self.seen[process["pid"]] = process
        return state

    def instance(self, name):
        return next(i for i in self.state()["instances"] if i["id"] == name)

    def until(self, condition, what):
        deadline = time.monotonic() + DEADLINE
        nobody, other = socket.socketpair()
        with nobody, other:
            nobody.settimeout(0.02)
            while not condition():
                if time.monotonic() > deadline:
                    self.fail(f"not in time: {what}\n{self.moectl('logs').stdout}")
                try:
                    nobody.recv(1)  # between two looks
                except TimeoutError:
                    pass

    def ready(self):
        return self.moectl("status").returncode == 0

    def chat(self, url=None, headers=()):
        request = urllib.request.Request((url or self.state()["url"]) + "/v1/chat/completions", json.dumps(QUESTION).encode(),
                                         {"Content-Type": "application/json", **dict(headers)})
        with urllib.request.urlopen(request, timeout=DEADLINE) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

    def kill(self, name, how=signal.SIGKILL):
        before = self.remember()
        process = next(i for i in before["instances"] if i["id"] == name)["process"]
        self.assertTrue(alive(process))
        os.kill(process["pid"], how)
        self.until(lambda: self.instance(name)["process"]["pid"] not in (0, process["pid"]), f"{name} is started again")
        self.until(self.ready, "all are ready again")
        self.remember()

    def assert_nothing_left(self):
        for process in self.seen.values():
            self.assertFalse(alive(process), process)
