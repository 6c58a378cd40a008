"""A GPU fails amid serving: tests/faults/cuda_driver.cpp stands before NVIDIA's driver and breaks it at a chosen moment.
Every open request ends with an error and never with a wrong or silently cut answer, health says so, the process ends with
the operation's name and exit code 1, and a router goes on with the other workers. Standard library. Skips, with the reason,
where no GPU serves."""
import ctypes
import os
import re
import sys
import tempfile
import time
import unittest
from pathlib import Path

from cuda_test import ENDLESS, SERVED, why_no_gpu
from fault_harness import FaultCase, FragileServer, Health
from harness import MOECTL, ROOT, Server

STAND_IN = Path(MOECTL).parent / "fault_driver"
# Bits do not depend on company: what a request gets before the fault is the beginning of what it gets without one.
EXACT = (*SERVED, "--deterministic", "--no-enable-prefix-caching")
AT_ONCE = 10  # seconds: no wait on a device had to end by itself
OPERATIONS = {"copy", "a CUDA graph", *re.findall(r"virtual \w+ (\w+)\(const \w+Args", (ROOT / "kernels/ops.h").read_text())}
SECRET = tempfile.NamedTemporaryFile("w", suffix=".secret")
SECRET.write("f" * 32)
SECRET.flush()


def real_driver():
    ctypes.CDLL("libcuda.so.1")
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in lines if "/libcuda.so" in line)


class BrokenGpuServer(FragileServer):
    """On a GPU whose driver breaks when told to."""

    def __init__(self, *flags, env=None):
        folders = [str(STAND_IN), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        super().__init__(*flags, env={"LD_LIBRARY_PATH": ":".join(folders), "FAULT_DRIVER": real_driver(), **(env or {})})


def requests(number):
    """Long answers: streams, some of two choices, and every third in one piece."""
    return [{**ENDLESS, "seed": i, "n": 1 + (i % 5 == 0), "stream": i % 3 != 2} for i in range(number)]


class Broken(FaultCase):
    def instance_ends(self, server):
        reason = super().instance_ends(server)
        self.assertIn("fault driver: ", server.logged(), "the stand-in was loaded")
        return reason

    def fault(self, how, *flags, number=24, env=None, compare=True):
        """The reason that the instance ends with, and the seconds until then."""
        with BrokenGpuServer(*(flags or EXACT), env=env) as server:
            bodies = requests(number)
            expected = self.start(server, bodies) if compare else []
            for client in expected:
                client.join(60)
                self.assertTrue(client.done, client.error)
            clients = self.start(server, bodies)
            server.wait_until(lambda: server.metric("moectl_requests_in_flight") == number, "all are in flight")
            health = Health(server)
            told = time.monotonic()
            server.break_it(how)
            reason = self.instance_ends(server)
            took = time.monotonic() - told
            self.end([*clients, health])
            for i, client in enumerate(clients):
                self.broken_off(client, reason, expected[i] if compare else None)
            first_error = min(client.ended for client in clients)
            after = {status for asked, status in health.seen if asked > first_error}
            self.assertLessEqual(after, {503}, "healthy after the failure")
            print(f"  {how} {env or ''}: over {took:.2f} s after; health afterwards {after or 'refused'}\n    {reason}", file=sys.stderr)
            return reason, took


class OneGpu(Broken):
    def test_a_wild_pointer(self):
        reason, took = self.fault("wild")
        self.assertIn("GPU 0: an illegal memory access was encountered", reason)
        named = re.search(r", in ([\w ]+) or an operation before it", reason)
        self.assertIn(named and named[1], OPERATIONS, reason)
        self.assertIn("CUDA_LAUNCH_BLOCKING=1", reason)
        self.assertLess(took, AT_ONCE)

    def test_with_blocking_launches_the_operation_is_certain(self):
        reason, _ = self.fault("wild", *SERVED, number=8, compare=False, env={"CUDA_LAUNCH_BLOCKING": "1"})
        named = re.search(r"GPU 0: an illegal memory access was encountered, in ([\w ]+); nothing runs on the GPU any more", reason)
        self.assertIn(named and named[1], OPERATIONS, reason)

    def test_a_launch_that_is_refused(self):
        reason, _ = self.fault("refuse", *SERVED, number=8, compare=False)
        named = re.match(r"GPU 0: ([\w ]+): .*too many resources requested for launch", reason)
        self.assertIn(named and named[1], OPERATIONS, reason)

    def test_a_kernel_that_never_ends(self):
        reason, took = self.fault("spin", number=8)
        self.assertRegex(reason, r"^GPU 0 did not end its step, no progress within 20 s: .* layers issued$")
        self.assertGreater(took, 19)


class TwoRanks(Broken):
    """That share a GPU; the stand-in breaks one of them. The other waits for it on the device."""
    FLAGS = (*EXACT, "--ep-size", "2", "--devices", "0,0")
    OPERATION = r"(a barrier|(dispatch|combine) of layer \d+)"
    WAITED = rf"^rank (0|1) waited 15 s for rank (?!\1)[01] in {OPERATION}"

    def fault(self, how):
        return super().fault(how, *self.FLAGS, number=12)

    def test_a_launch_that_is_refused(self):
        reason, took = self.fault("refuse")
        named = re.match(rf"rank [01] \(GPU 0\): GPU 0: ([\w ]+): .*too many resources requested for launch.*; its last wait "
                         rf"for peers: {self.OPERATION}$", reason)
        self.assertIn(named and named[1], OPERATIONS, reason)
        self.assertLess(took, AT_ONCE, "the other rank's waits end with the failure")

    def test_a_gpu_that_is_lost(self):
        reason, took = self.fault("lost")
        self.assertRegex(reason, rf"^rank [01] \(GPU 0\): GPU 0: .*unspecified launch failure.*; its last wait for peers: {self.OPERATION}$")
        self.assertLess(took, AT_ONCE)

    def test_a_rank_that_stops_inside_dispatch(self):
        reason, took = self.fault("swallow")
        self.assertRegex(reason, self.WAITED + "$")
        self.assertGreater(took, 14)

    def test_a_kernel_that_never_ends(self):
        reason, took = self.fault("spin")
        self.assertRegex(reason, self.WAITED + rf"; rank [01] \(GPU 0\) did not end its step: .* layers issued; its last wait "
                         rf"for peers: {self.OPERATION}$")
        self.assertGreater(took, 14)


class BehindARouter(Broken):
    def test_the_others_go_on(self):
        secret = ("--cluster-secret-file", SECRET.name)
        bodies = requests(16)
        with BrokenGpuServer(*EXACT, *secret) as fragile, Server(*EXACT, *secret) as sound:
            self.others_go_on(fragile, sound, bodies, secret, "wild", "an illegal memory access was encountered")


if __name__ == "__main__":
    if reason := why_no_gpu():
        print(f"skipped: {reason}")
        sys.exit(77)
    if not STAND_IN.is_dir():
        sys.exit(f"{STAND_IN} is not there: build the target cuda_fault_driver")
    unittest.main(verbosity=2)
