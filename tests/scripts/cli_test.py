"""Drives the real binary (MOECTL) as a user at a terminal would: exit statuses, which stream says what, words of help."""
import json
import os
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOECTL = os.environ["MOECTL"]
DEMO = str(ROOT / "models/demo")


def moectl(*args, cwd=ROOT, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOECTL_")}
    return subprocess.run([MOECTL, *args], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=120)


class CommandLine(unittest.TestCase):
    def assertFails(self, result, status, *words):
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertTrue(result.stderr.startswith("moectl: error: "), result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_alone_it_prints_short_help(self):
        result = moectl()
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("Usage: moectl COMMAND", result.stdout)
        for command in ("serve-decode", "inspect", "bench engine"):
            self.assertIn(command, result.stdout)
        self.assertNotIn("docgen", result.stdout)

    def test_help_and_version(self):
        for command in (["serve-decode"], ["inspect"], ["bench", "engine"]):
            result = moectl(*command, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertIn("Usage: moectl " + " ".join(command), result.stdout)
            self.assertNotIn("\033", result.stdout)
        self.assertRegex(moectl("--version").stdout, r"^moectl \d+\.\d+\.\d+\n$")

    def test_typos_exit_2_and_name_the_nearest(self):
        self.assertFails(moectl("serve-decod"), 2, "did you mean `serve-decode`?")
        self.assertFails(moectl("serve-decode", "--prot", "1"), 2, "did you mean `--port`?")
        self.assertFails(moectl("bench", "engin"), 2, "did you mean `bench engine`?")
        self.assertFails(moectl("serve-decode", "--port", "http"), 2, "--port", "'http'", "65535")

    def test_contradictions_exit_78(self):
        self.assertFails(moectl("serve-decode", DEMO, "--ep-size", "4", "--dp-size", "2"), 78, "--expert-parallel-size 4",
                         "--data-parallel-size 2")
        self.assertFails(moectl("bench", "engine", DEMO, "--device", "cpu", "--tp-size", "3"), 78,
                         "--tensor-parallel-size 3: it does not divide the model's 8 attention heads; use 2 or 4")
        for flags in (["--enable-eplb"], ["--enable-dbo"], ["--kv-cache-dtype", "fp8"]):
            self.assertFails(moectl("bench", "engine", DEMO, *flags), 78, " ".join(flags), "not in this version", "use")
        self.assertFails(moectl("bench", "engine", DEMO, "--device", "cuda", CUDA_VISIBLE_DEVICES=""), 78, "--device cuda")

    def test_bad_files_exit_65_and_missing_ones_1(self):
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "moectl.yaml")
            config.write_text("port: 0\nmax-model-length: 5\n")
            self.assertFails(moectl("serve-decode", DEMO, "--config", str(config)), 65, f"{config}:2:", "max-model-length",
                             "did you mean `max-model-len`?")
            Path(folder, "config.json").write_text("{")
            self.assertFails(moectl("inspect", folder), 65, "config.json")
        self.assertFails(moectl("inspect", "no/such/folder"), 1, "no/such/folder")

    def test_inspect(self):
        text = moectl("inspect", DEMO)
        self.assertEqual((text.returncode, text.stderr), (0, ""))
        report = moectl("inspect", DEMO, "--json")
        self.assertEqual((report.returncode, report.stderr), (0, ""))
        # models/demo/README.md
        self.assertEqual(json.loads(report.stdout)["parameters"]["total"], 25_377_216)
        self.assertIn("25,377,216", text.stdout)
        self.assertEqual(moectl("inspect", MOECTL_MODEL=DEMO, MOECTL_JSON="1").stdout, report.stdout)

    def test_inspect_counts_the_memory_of_a_rank(self):
        result = moectl("inspect", "--shape", "deepseek-r1", "--ep-size", "8", "--gpu-memory-gb", "141", "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        rank = json.loads(result.stdout)["rank"]
        self.assertEqual((rank["num_ranks"], rank["num_local_experts"], rank["gpu"]["smallest_ep_size"]), (8, 32, 8))
        self.assertTrue(99e9 < rank["weight_bytes"] < 101e9, rank)
        self.assertNotIn("rank", json.loads(moectl("inspect", "--shape", "tiny", "--json").stdout))
        self.assertFails(moectl("inspect", DEMO, "--tp-size", "3"), 78, "--tensor-parallel-size 3", "use 2 or 4")

    def test_bench_kernels_on_the_cpu(self):
        result = moectl("bench", "kernels", "--device", "cpu", "--shape", "tiny", "--filter", "LINEAR.*gate", "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        report = json.loads(result.stdout)
        self.assertGreater(report["roofs"]["read_bytes_per_second"], 1e8)
        self.assertIsNone(report["roofs"]["f8_flops_per_second"])
        self.assertTrue(report["kernels"])
        for kernel in report["kernels"]:
            self.assertRegex(kernel["kernel"] + kernel["shape"], "linear.*gate")
            self.assertGreater(kernel["seconds"], 0)
        again = moectl("bench", "kernels", "--device", "cpu", "--shape", "tiny", "--filter", "linear.*gate", "--json", "--threads", "1")
        self.assertEqual([k["output_hash"] for k in json.loads(again.stdout)["kernels"]],
                         [k["output_hash"] for k in report["kernels"]])

    def test_bench_kernels_refuses(self):
        self.assertFails(moectl("bench", "kernels", "--filter", "("), 2, "--filter (", "regular expression")
        self.assertFails(moectl("bench", "kernels", "--device", "cpu", "--filter", "nothing"), 2, "--filter nothing")
        self.assertFails(moectl("bench", "kernels", "--shape", "deepseek"), 2, "shape `deepseek`", "qwen3-30b-a3b")
        # Whatever a machine has, this hides its GPUs.
        self.assertFails(moectl("bench", "kernels", "--device", "cuda", CUDA_VISIBLE_DEVICES=""), 78, "--device cuda")

    def test_bench_comm_on_the_cpu(self):
        args = ("bench", "comm", "--device", "cpu", "--ep-size", "3", "--tokens", "2,9", "--hidden-size", "64", "--top-k", "4",
                "--num-experts", "12", "--iterations", "5", "--pause-ms", "1")
        result = moectl(*args, "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        report = json.loads(result.stdout)
        self.assertEqual((report["device"], report["crosses_link"], report["ep_size"], report["dtype"]), ("cpu", False, 3, "f32"))
        self.assertEqual([rate["transfer"] for rate in report["link"]["rates"]], ["stores", "loads"])
        self.assertTrue(all(rate["bytes_per_second"] > 0 for rate in report["link"]["rates"]))
        self.assertGreater(report["link"]["flag_seconds"], 0)
        self.assertEqual((report["nccl"], report["not_measured"], report["one_shot_bytes"]), (None, None, 4 << 20))
        per_token = [("all_gather", None)] + [(name, form) for form in ("deterministic", "fast") for name in ("dispatch", "combine")]
        per_token += [("all_reduce", "f32 wire")]
        self.assertEqual([(r["operation"], r["form"], r["tokens"]) for r in report["results"]],
                         [("stamps", None, None), ("barrier", None, None)] + [(*what, n) for n in (2, 9) for what in per_token])
        for r in report["results"]:
            for times in (r["back_to_back"], r["after_pause"]):
                self.assertEqual(times["iterations"], 5, r)
                self.assertTrue(0 < times["p50_seconds"] <= times["p99_seconds"] <= times["max_seconds"] < 60, r)
                self.assertEqual(times["bytes_per_second"] is not None, r["tokens"] is not None, r)
            self.assertEqual("output_hash" in r, r["operation"] in ("combine", "all_reduce"))
            self.assertEqual(r["collectives"], None if r["operation"] == "stamps" else "local")
            if r["operation"] == "all_reduce":
                self.assertEqual(r["bytes"], r["tokens"] * 64 * 4)
        table = moectl(*args)
        self.assertEqual((table.returncode, table.stderr), (0, ""))
        self.assertIn("no link is measured: the ranks are threads of one CPU", table.stdout)
        for r in report["results"]:  # the same bits again, in one line each
            line = rf"(?m)^ *{r['tokens'] or '-'} {r['operation']} +{r['form'] or '-'} +{r['collectives'] or '-'} .*{r.get('output_hash', '')}$"
            self.assertRegex(table.stdout, line)

    def test_bench_comm_refuses(self):
        self.assertFails(moectl("bench", "comm", "--device", "cpu", "--dtype", "fp8"), 78, "--dtype fp8", "use auto")
        self.assertFails(moectl("bench", "comm", "--device", "cpu", "--devices", "0"), 78, "--devices names 1 GPU(s) for 2 ranks")
        self.assertFails(moectl("bench", "comm", "--device", "cuda", CUDA_VISIBLE_DEVICES=""), 78, "--device cuda, rank 0 of 2")
        for collectives in ("p2p", "nccl"):
            self.assertFails(moectl("bench", "comm", "--device", "cpu", "--collectives", collectives), 78,
                             f"--collectives {collectives} is for ranks on GPUs", "use --device cuda")

    def test_bench_engine_with_made_up_weights(self):
        args = ("bench", "engine", "--shape", "tiny", "--device", "cpu", "--concurrency", "1,4", "--input-len", "16",
                "--output-len", "8", "--json")
        report = json.loads(moectl(*args).stdout)
        self.assertEqual((report["model"], report["architecture"], report["hashes_equal"]), ("tiny", "deepseek_v3", True))
        self.assertEqual([level["num_requests"] for level in report["levels"]], [1, 4])
        self.assertTrue(all(level["decode_tokens_per_second"] > 0 for level in report["levels"]))
        load = report["expert_load"]
        self.assertTrue(0 < load["expert_balancedness"]["lowest"] <= load["expert_balancedness"]["mean"] <= 1, load)
        for layer in load["layers"]:
            self.assertEqual((sum(layer["tokens_per_expert"]), sum(layer["tokens_per_rank"])), (layer["num_tokens"],) * 2)
            self.assertEqual(layer["num_tokens"], load["layers"][0]["num_tokens"])
        self.assertIsNone(report["all2all_backend"])  # one rank
        alone = moectl(*args, "--all2all-backend", "naive")
        self.assertEqual(alone.stderr.count("--all2all-backend naive has no effect: there is one rank"), 1, alone.stderr)
        two = json.loads(moectl(*args, "--ep-size", "2", "--all2all-backend", "naive").stdout)
        self.assertEqual((two["ep_size"], two["all2all_backend"]), (2, "naive"))
        self.assertEqual(two["levels"][0]["output_hash"], report["levels"][0]["output_hash"])
        self.assertFails(moectl("bench", "engine", "--shape", "tiny:layers=9"), 2, "layers=N")
        self.assertFails(moectl("bench", "engine", "--shape", "tiny", "--shape", "ds-v2-lite"), 78, "takes one shape")
        self.assertFails(moectl("bench", "engine", DEMO, "--shape", "tiny"), 78, "--shape tiny", "give one of them")

    def test_the_demo_is_found_from_any_directory(self):
        with tempfile.TemporaryDirectory() as folder:
            beside_source = Path(MOECTL).resolve().parent.parent / "models/demo"
            result = moectl("inspect", cwd=folder)
            if beside_source.is_dir():
                self.assertEqual(result.returncode, 0, result.stderr)
            else:  # a build folder outside the source tree
                self.assertFails(result, 1, "--model DIR")

    def test_a_full_disk_is_a_failure(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([MOECTL, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot write to standard output", result.stderr)

    def test_a_reader_that_leaves_does_not_crash_it(self):
        process = subprocess.Popen([MOECTL, "serve-decode", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        process.stderr.read()
        self.assertIn(process.wait(60), (0, 1, -signal.SIGPIPE))
        process.stderr.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
