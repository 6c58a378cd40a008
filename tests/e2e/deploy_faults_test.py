"""`moectl deploy` when something hangs, is stopped, or the disk is full: what `status` shows, what the supervisor does."""
import errno
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import unittest
from pathlib import Path

from deploy_harness import DEADLINE, DeployCase

ON_SMALL_DISK = "MOECTL_TEST_ON_SMALL_DISK"  # set in the mount namespace


def port_of(url):
    return int(url.rpartition(":")[2])


class FaultCase(DeployCase):
    def signal(self, name, number):
        os.kill(self.instance(name)["process"]["pid"], number)

    def signal_supervisor(self, number):
        os.kill(self.state()["supervisor"]["pid"], number)

    def status(self, code):
        return json.loads(self.moectl("status", "--json", code=code).stdout)

    def status_of(self, name, code):
        return next(i for i in self.status(code)["instances"] if i["id"] == name)

    def take_port_of(self, name):
        """Kills the instance and listens on its port before the supervisor can start it again."""
        self.signal_supervisor(signal.SIGSTOP)
        self.signal(name, signal.SIGKILL)
        taken = socket.socket()
        self.addCleanup(taken.close)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def is_bound():
            try:
                taken.bind(("127.0.0.1", port_of(self.instance(name)["url"])))
                return True
            except OSError as error:
                self.assertEqual(error.errno, errno.EADDRINUSE)
                return False  # the process is ending
        self.until(is_bound, "the port of a killed instance is free")
        taken.listen()
        self.signal_supervisor(signal.SIGCONT)


class DeployFaults(FaultCase):
    def test_a_stopped_worker_is_unhealthy_and_started_again(self):
        self.up("--unhealthy-timeout", "3")
        before = self.instance("decode/0")
        self.signal("decode/0", signal.SIGSTOP)
        shown = self.moectl("status", code=1).stdout
        self.assertRegex(shown, r"decode/0 +unhealthy .* no answer: the process is stopped")
        self.assertIn("2/3 instances ready", shown)
        self.until(lambda: self.instance("decode/0")["restarts"] == 1, "it is started again")
        self.until(self.ready, "all are ready again")
        self.remember()
        after = self.instance("decode/0")
        self.assertRegex(after["last_exit"], r"^killed by the supervisor: no answer, unhealthy for \d+ s$")
        self.assertEqual([after[key] for key in ("url", "ops", "reason")], [before["url"], before["ops"], ""])
        self.assertIn("541", self.chat())
        self.assertEqual([self.instance(name)["restarts"] for name in ("prefill/0", "router/0")], [0, 0])
        logged = self.moectl("logs", "decode/0", "--previous", code=0).stdout
        self.assertIn("supervisor: it is unhealthy: no answer", logged)

    def test_a_stopped_router_is_started_again_at_its_port(self):
        self.up("--unhealthy-timeout", "1")
        url = self.state()["url"]
        self.signal("router/0", signal.SIGSTOP)
        self.until(lambda: self.instance("router/0")["restarts"] == 1, "it is started again")
        self.until(self.ready, "all are ready again")
        self.remember()
        self.assertEqual(self.state()["url"], url)
        self.assertIn("541", self.chat())

    def test_a_worker_that_goes_on_in_time_lives(self):
        self.up()  # unhealthy for 30 s, by default
        self.signal("prefill/0", signal.SIGSTOP)
        self.until(lambda: self.instance("prefill/0")["state"] == "unhealthy", "the supervisor finds it unhealthy")
        self.signal("prefill/0", signal.SIGCONT)
        self.until(self.ready, "all are ready again")
        self.assertEqual([i["restarts"] for i in self.state()["instances"]], [0, 0, 0])

    def test_status_asks_the_instances_themselves(self):
        self.up()
        self.signal_supervisor(signal.SIGSTOP)
        self.signal("decode/0", signal.SIGSTOP)
        self.assertEqual(self.instance("decode/0")["state"], "ready", "the state file is old")
        shown = self.moectl("status", code=1).stdout
        self.assertRegex(shown, r"decode/0 +unhealthy")
        self.assertIn("The supervisor is stopped", shown)
        self.signal("decode/0", signal.SIGCONT)
        self.until(lambda: self.status_of("decode/0", 1)["state"] == "ready", "it answers again")

        class Stalled(http.server.BaseHTTPRequestHandler):  # a worker whose engine hangs
            def do_GET(self):
                body = json.dumps({"state": "stalled", "seconds_since_progress": 31.4}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalled)
        self.addCleanup(server.server_close)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        state = self.state()
        ops = next(i for i in state["instances"] if i["id"] == "decode/0")["ops"]
        text = (self.folder / "state.json").read_text()
        (self.folder / "state.json").write_text(text.replace(ops, f"http://127.0.0.1:{server.server_port}"))
        self.assertRegex(self.moectl("status", code=1).stdout, r"decode/0 +unhealthy .* stalled: no step completed for 31 s")
        (self.folder / "state.json").write_text(text)
        self.signal_supervisor(signal.SIGCONT)
        self.until(self.ready, "all are ready")
        self.assertEqual([i["restarts"] for i in self.state()["instances"]], [0, 0, 0])

    def test_a_taken_port_is_replaced(self):
        self.up()
        before = self.instance("decode/0")
        self.take_port_of("decode/0")
        self.until(lambda: self.instance("decode/0")["restarts"] == 1 and self.ready(), "all are ready again")
        self.remember()
        self.assertNotEqual(self.instance("decode/0")["url"], before["url"])
        self.assertEqual(self.instance("decode/0")["ops"], before["ops"])
        self.assertIn("541", self.chat())

    def test_refused_values(self):
        self.assertIn("--unhealthy-timeout", self.moectl("up", "--unhealthy-timeout", "0", code=2).stderr)
        file = Path(self.home, "cluster.yaml")
        for value in ("soon", "0"):
            file.write_text(f"unhealthy_timeout: {value}")
            self.assertIn(f"cluster.yaml:1: unhealthy_timeout: '{value}' is not a whole number from 1 to",
                          self.moectl("up", str(file), code=65).stderr)

    def test_a_full_disk(self):
        mounts = ["unshare", "--map-root-user", "--mount"]
        try:
            probe = subprocess.run([*mounts, "mount", "-t", "tmpfs", "none", self.home], capture_output=True, text=True)
        except FileNotFoundError as error:
            self.skipTest(str(error))
        if probe.returncode != 0:
            print(f"skipped: no mount namespace: {probe.stderr.strip()}")
            self.skipTest("no mount namespace")
        done = subprocess.run([*mounts, sys.executable, __file__, "OnSmallDisk"], capture_output=True, text=True, timeout=5 * DEADLINE,
                              env={**os.environ, ON_SMALL_DISK: "1"})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("Ran 1 test", done.stderr)


@unittest.skipUnless(os.environ.get(ON_SMALL_DISK), "run by test_a_full_disk")
class OnSmallDisk(FaultCase):
    """In a mount namespace: the state folder is a file system of a few megabytes."""

    def setUp(self):
        super().setUp()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", self.home], check=True)

    def end(self):
        super().end()
        subprocess.run(["umount", "--lazy", self.home], check=True)

    def test_the_deployment_lives_again_when_the_disk_is_free(self):
        self.up()
        before = self.instance("decode/0")
        log = self.folder / "logs/supervisor.log"
        log.write_text("-" * 1000 + "\n")  # its first page is there: lines fit in although the disk is full
        filler = Path(self.home, "filler")
        with open(filler, "wb", buffering=0) as file:
            with self.assertRaises(OSError) as full:
                while True:
                    file.write(bytes(4096))
        self.assertEqual(full.exception.errno, errno.ENOSPC)

        self.take_port_of("decode/0")  # so that the router must be told where it is now
        workers = self.folder / "workers.json"

        def tries(path):
            return f"{path} cannot be written: No space left on device; tried again each second" in log.read_text()
        self.until(lambda: tries(workers), "the supervisor could not write workers.json")
        self.assertTrue(tries(self.folder / "state.json"))
        self.assertIn(before["url"], workers.read_text())
        filler.unlink()
        self.until(lambda: self.instance("decode/0")["restarts"] == 1 and self.ready(), "all are ready again")
        self.remember()
        self.assertNotEqual(self.instance("decode/0")["url"], before["url"])
        self.assertIn(self.instance("decode/0")["url"], workers.read_text())
        self.assertIn("541", self.chat())
        self.assertEqual(log.read_text().count("workers.json cannot be written"), 1, "it is said once")


if __name__ == "__main__":
    unittest.main()
