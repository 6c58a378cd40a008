"""`moectl deploy up|status|logs|down` with real processes, each test with a state folder of its own. Standard library."""
import json
import os
import re
import signal
import socket
import subprocess
import unittest
import urllib.error
from pathlib import Path

from deploy_harness import DEADLINE, QUESTION, DeployCase, alive
from harness import DEMO, MOECTL, ROOT


class Deploy(DeployCase):
    # ------------------------------------------------------------------------------------------ life
    def test_up_chat_kill_logs_down(self):
        done = self.up()
        url = self.state()["url"]
        for part in ("router/0", "prefill/0", "decode/0", "EP 1 DP 1 TP 1", f"curl -s {url}/v1/chat/completions"):
            self.assertIn(part, done.stdout)
        self.assertIn("541", self.chat())
        status = json.loads(self.moectl("status", "--json", code=0).stdout)
        self.assertEqual((status["ready"], status["phase"], status["instances_ready"]), (True, "running", 3))
        self.assertGreater(status["generation_tokens_total"], 0)
        self.assertEqual({i["role"] for i in status["instances"]}, {"router", "prefill", "decode"})
        self.assertTrue(all(isinstance(i["load"], dict) for i in status["instances"]))
        self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)
        self.assertEqual((self.folder / "secret").stat().st_mode & 0o777, 0o600)

        for name in ("decode/0", "prefill/0", "router/0"):
            self.kill(name)
            self.assertIn("541", self.chat())
            self.assertEqual((self.instance(name)["restarts"], self.instance(name)["last_exit"]), (1, "killed by signal 9 (Killed)"))
        self.assertEqual(self.state()["url"], url, "clients keep the address of a restarted router")

        found = self.moectl("logs", "decode/0", "--grep", "listening on .*, loading", code=0).stdout.splitlines()
        self.assertEqual(len(found), 1)
        self.assertIn("it ended: killed by signal 9", self.moectl("logs", "decode", "--previous", code=0).stdout)
        self.assertEqual(len(self.moectl("logs", "--tail", "5", "--since", "1h").stdout.splitlines()), 5)
        self.assertEqual(self.moectl("logs", "--since", "0").stdout, "")
        self.assertNotIn((self.folder / "secret").read_text().strip(), self.moectl("logs").stdout + (self.folder / "state.json").read_text())

        done = self.up(code=1)
        self.assertIn(f"deployment demo is running at {url}", done.stderr)
        self.assertIn("541", self.chat(), "it does not disturb the one that runs")

        self.moectl("down", code=0)
        self.assert_nothing_left()
        self.assertEqual(self.moectl("status").returncode, 69)
        self.assertIn("not running", self.moectl("down", code=0).stdout)
        self.assertIn("stopped", self.moectl("logs", code=0).stdout)

    def test_file_with_ranks_flags_and_two_decode_workers(self):
        path = Path(self.home, "cluster.yaml")
        path.write_text(f"""
model: {os.path.relpath(DEMO, self.home)}
served_model_name: tiny
prefill: {{environment: {{TP_SIZE: 2}}}}
decode:
  instances: 2
  flags: {{max-num-seqs: 4, local-prefill-tokens: 0}}
  environment: {{DP_SIZE: 2}}
router:
  flags: {{policy: round-robin}}
""")
        done = self.up(str(path))
        self.assertIn("--max-num-seqs=4 --local-prefill-tokens=0", done.stdout)
        self.assertEqual(done.stdout.count("EP 2 DP 2 TP 1"), 2)
        self.assertEqual(done.stdout.count("EP 2 DP 1 TP 2"), 1)
        request = dict(QUESTION, model="tiny")
        for _ in range(4):
            done = subprocess.run([MOECTL, "debug-request", "--url", self.state()["url"], "--body", json.dumps(request), "--json"],
                                  capture_output=True, text=True, timeout=DEADLINE, env=self.env)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("541", done.stdout)
        loads = json.loads(self.moectl("status", "--json", code=0).stdout)
        self.assertEqual([i["ep_size"] for i in loads["instances"]], [2, 2, 2, 1])
        self.moectl("down", code=0)
        self.assert_nothing_left()

    def test_keys_reach_the_router_and_not_the_state(self):
        self.up(env={"MOECTL_API_KEY": "key-of-this-test"})
        with self.assertRaises(urllib.error.HTTPError) as refused:
            self.chat()
        self.assertEqual(refused.exception.code, 401)
        refused.exception.close()
        self.assertIn("541", self.chat(headers={"Authorization": "Bearer key-of-this-test"}))
        for file in self.folder.rglob("*"):
            if file.is_file():
                self.assertNotIn("key-of-this-test", file.read_text(), file)

    # ------------------------------------------------------------------------------------------ ends that are not `down`
    def test_a_killed_supervisor_leaves_nothing(self):
        self.up()
        os.kill(self.remember()["supervisor"]["pid"], signal.SIGKILL)
        for process in self.seen.values():
            self.until(lambda: not alive(process), "instances end with the supervisor")
        self.assertEqual(self.moectl("status").returncode, 69)
        self.moectl("down", code=0)
        self.up()
        self.assertIn("541", self.chat())

    def test_down_ends_what_the_state_names(self):
        self.up()
        state = self.remember()
        self.moectl("down", code=0)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as left:  # as if the supervisor had died before it
            fields = Path(f"/proc/{left.pid}/stat").read_text().rpartition(")")[2].split()
            state["instances"][1]["process"].update(pid=left.pid, start_ticks=int(fields[19]))
            (self.folder / "state.json").write_text(json.dumps(state))
            self.assertIn("supervisor is gone", self.moectl("status", code=1).stdout)
            self.moectl("down", code=0)
            self.assertEqual(left.wait(DEADLINE), -signal.SIGTERM)
        self.assertEqual(self.moectl("status").returncode, 69)

    def test_a_worker_that_does_not_end_is_killed(self):
        self.up()
        os.kill(self.instance("decode/0")["process"]["pid"], signal.SIGSTOP)
        self.remember()
        self.moectl("down", "--timeout", "1", code=0)
        self.assert_nothing_left()

    def test_a_recycled_number_is_not_signalled(self):
        self.up()
        state = self.remember()
        self.moectl("down", code=0)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
            for process in [state["supervisor"], *(i["process"] for i in state["instances"])]:
                process["pid"] = stranger.pid  # the number, but not the start time
            state["phase"] = "running"
            (self.folder / "state.json").write_text(json.dumps(state))
            self.assertEqual(self.moectl("status").returncode, 69)
            self.moectl("down", code=0)
            self.assertIsNone(stranger.poll())
            stranger.stdin.close()
            self.assertEqual(stranger.wait(DEADLINE), 0, "it ended by itself")

    def test_foreground_and_ctrl_c(self):
        process = subprocess.Popen([MOECTL, "deploy", "up", "--port", "0", "--foreground"], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True, env=self.env, cwd=ROOT)
        with process:
            for line in process.stdout:
                if line.startswith("Ready after"):
                    break
            self.remember()
            self.assertIn("541", self.chat())
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(DEADLINE), 130)
        self.assert_nothing_left()

    def test_follow_sees_a_restart(self):
        self.up()
        follower = subprocess.Popen([MOECTL, "deploy", "logs", "decode/0", "-f", "--grep", "ready after|it ended"], stdout=subprocess.PIPE,
                                    text=True, env=self.env)
        with follower:
            self.assertIn("ready after", follower.stdout.readline())
            self.kill("decode/0")
            self.assertIn("it ended", follower.stdout.readline())
            self.assertIn("ready after", follower.stdout.readline())
            follower.send_signal(signal.SIGINT)
            follower.wait(DEADLINE)

    # ------------------------------------------------------------------------------------------ refusals
    def test_refusals_before_anything_starts(self):
        def yaml(text):
            file = Path(self.home, f"{len(list(Path(self.home).glob('*.yaml')))}bad.yaml")
            file.write_text(text)
            return str(file)

        for flags, code, said in (
                (["--template", "ep-dp"], 2, "ep-pd"),
                ([yaml("template: other")], 65, "there is no template `other`"),
                (["--model", "/nowhere"], 1, "no checkpoint in `/nowhere`"),
                (["--name", "../x"], 2, "no name for a deployment"),
                (["--decode", "0"], 2, "--decode"),
                ([self.home + "/none.yaml"], 1, "no such file"),
                ([yaml("decode: {environment: {TP_SIZE: 2, EP_SIZE: 3}}")], 78, "decode: EP_SIZE=3 is not a multiple of TP_SIZE=2"),
                ([yaml("prefill: {environment: {EP_SIZE: 2, DP_SIZE: 3}}")], 78, "contradicts"),
                ([yaml("a: [")], 65, "bad.yaml:1: not YAML"),
                ([yaml("name: x\ndecod: {}")], 65, "bad.yaml:2: decod: unknown key, did you mean `decode`?"),
                ([yaml("decode:\n  instances: many")], 65, "bad.yaml:2: decode.instances: 'many' is not a whole number"),
                ([yaml("decode:\n  flags: {max-num-sqs: 4}")], 65, "did you mean `max-num-seqs`?"),
                ([yaml("decode:\n  flags: {max-num-seqs: none}")], 65, "bad.yaml:2: decode.flags.max-num-seqs: 'none' is not"),
                ([yaml("decode:\n  flags: {port: 4}")], 65, "deploy sets this flag itself"),
                ([yaml("port: 1\nport: 2")], 65, "bad.yaml:2: port: given twice"),
                ([yaml("- 1")], 65, "bad.yaml:1: expected lines of the form")):
            with self.subTest(flags=flags):
                done = self.moectl("up", *flags, code=code)
                self.assertIn(said, done.stderr)
        self.assertFalse(self.folder.exists(), "nothing was started")

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = self.moectl("up", "--port", port, code=1)
        self.assertIn(f"cannot listen on 127.0.0.1:{port}: Address already in use", done.stderr)
        self.assertEqual(self.moectl("status").returncode, 69)

    def test_a_worker_that_cannot_start_ends_the_start(self):
        model = Path(self.home, "model")
        model.mkdir()
        for file in DEMO.iterdir():
            if file.name != "config.json":
                (model / file.name).symlink_to(file)
        (model / "config.json").write_text("{}")
        done = self.up("--model", str(model), code=65)
        self.assertRegex(done.stderr, r"(prefill|decode)/0 ended before it was ready: exit status 65")
        self.assertIn("config.json", done.stderr)
        self.remember()
        self.assertIn("The last start failed", self.moectl("status", code=69).stderr)

    def test_dry_run(self):
        done = self.moectl("up", "--dry-run", "--prefill", "2", "--decode", "3", code=0)
        self.assertEqual(re.findall(r"(prefill|decode)/(\d)", done.stdout), [("prefill", "0"), ("prefill", "1"), ("decode", "0"),
                                                                            ("decode", "1"), ("decode", "2")])
        self.assertFalse(self.folder.exists())


if __name__ == "__main__":
    unittest.main()
