"""Faults of ranks amid serving: tests/faults/stream_server.cpp is moectl with ranks on devices that execute by themselves
and break at a chosen moment, as GPUs do. Every open request ends with an error and never with a wrong or silently cut
answer, the process ends within 30 s with the rank, its operation and exit code 1, whatever hangs, and a router goes on
with the other workers. Standard library. The faults run side by side: most of them are waiting for 15 or 20 s."""
import concurrent.futures
import signal
import sys
import tempfile
import time
import unittest
from pathlib import Path

from fault_harness import ENDS_WITHIN, Client, FaultCase, FragileServer, Health
from harness import DEMO, MOECTL, Server

STREAM_SERVER = Path(MOECTL).parent / "stream_server"
ONE_RANK = ("--device", "cpu", "--max-num-seqs", "8", "--max-num-batched-tokens", "64")
TWO_RANKS = (*ONE_RANK, "--ep-size", "2")
AT_ONCE = 10  # seconds: no wait on a device had to end by itself
WAITED = r"^rank 0 waited 15 s for rank 1 in a barrier"
HANGS = WAITED + r"; rank 1 did not end its step: .* layers issued; its last wait for peers: a barrier$"
# The rank may be blocked before its peers wait for it on a device: then no such wait ends, and the watchdog does.
BLOCKED = r"(^|; )rank 1 did not end its step(, no progress within 20 s)?: .* layers issued; its last wait for peers: a barrier$"
FAULTS = {  # (ranks, fault): the reason, at least so many seconds after the fault, at most so many
    (2, "throw"): (r"^rank 1: the launch was refused; its last wait for peers: a barrier$", 0, AT_ONCE),
    (2, "lost"): (r"^rank 1: the device fell off the bus; its last wait for peers: a barrier$", 0, AT_ONCE),
    (2, "drop"): (WAITED + "$", 14, ENDS_WITHIN),
    (2, "hang"): (HANGS, 14, ENDS_WITHIN),
    (2, "block"): (BLOCKED, 14, ENDS_WITHIN),
    (1, "hang"): (r"^rank 0 did not end its step, no progress within 20 s: .* layers issued$", 19, ENDS_WITHIN),
    (1, "block"): (r"^rank 0 did not end its step, no progress within 20 s: \d+ of \d+ layers issued$", 19, ENDS_WITHIN),
    (1, "lost"): (r"^the device fell off the bus$", 0, AT_ONCE),
}


def requests(number):
    """Long answers: streams, some of two choices, and every third in one piece."""
    return [{"messages": [{"role": "user", "content": f"Tell me about {i}"}], "temperature": 0, "max_tokens": 400,
             "ignore_eos": True, "n": 1 + (i % 5 == 0), "stream": i % 3 != 2} for i in range(number)]


def server_of(ranks, *flags):
    return FragileServer(*(ONE_RANK if ranks == 1 else TWO_RANKS), *flags, binary=STREAM_SERVER)


class RankFaults(FaultCase):
    def fault(self, ranks, how, expected):
        reason, at_least, at_most = FAULTS[ranks, how]
        with server_of(ranks) as server:
            clients = self.start(server, requests(len(expected)))
            health = Health(server)
            told = time.monotonic()
            server.break_it(how)
            found = self.instance_ends(server)
            took = time.monotonic() - told
            self.end([*clients, health])
            self.assertRegex(found, reason)
            for client, whole in zip(clients, expected):
                self.broken_off(client, found, whole)
            first_error = min(client.ended for client in clients)
            self.assertLessEqual({status for asked, status in health.seen if asked > first_error}, {503},
                                 "healthy after the failure")
            self.assertGreater(took, at_least)
            self.assertLess(took, at_most)
            print(f"  {ranks} rank(s), {how}: over {took:.2f} s after\n    {found}", file=sys.stderr)

    def signal_while_a_rank_hangs(self):
        with server_of(2) as server:
            clients = self.start(server, requests(3))
            server.break_it("hang")
            server.process.send_signal(signal.SIGTERM)
            self.assertRegex(self.instance_ends(server), HANGS)
            self.end(clients)
            for client in clients:
                self.broken_off(client, "rank 0 waited 15 s for rank 1")

    def test_side_by_side(self):
        with Server(*ONE_RANK) as server:
            expected = [Client(server, body) for body in requests(6)]
            for client in expected:
                client.join(300)
                self.assertTrue(client.done, client.error)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            cases = {fault: pool.submit(self.fault, *fault, expected) for fault in FAULTS}
            cases["signal"] = pool.submit(self.signal_while_a_rank_hangs)
        for case, future in cases.items():
            with self.subTest(case):
                future.result()

    def test_behind_a_router(self):
        with tempfile.NamedTemporaryFile("w", suffix=".secret") as file:
            file.write("f" * 32)
            file.flush()
            secret = ("--cluster-secret-file", file.name)
            with server_of(2, *secret) as fragile, Server(*TWO_RANKS, *secret) as sound:
                self.others_go_on(fragile, sound, requests(8), secret, "drop", "rank 0 waited 15 s for rank 1 in a barrier")


if __name__ == "__main__":
    if not STREAM_SERVER.is_file():
        sys.exit(f"{STREAM_SERVER} is not there: build the target stream_server")
    unittest.main(verbosity=2)
