"""Headers of safetensors files as `moectl inspect` reads them: time linear in the number of tensors, memory bounded."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

MOECTL = os.environ["MOECTL"]
CONFIG = Path(__file__).resolve().parents[1] / "golden/deepseek_v3_a/config.json"
FILE = "model.safetensors"


def name(i):
    return f"model.layers.{i % 61}.mlp.experts.{i}.down_proj.weight"


def header_of(num_tensors):
    return json.dumps({name(i): {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(num_tensors)}).encode()


class CheckpointHeader(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        shutil.copy(CONFIG, self.folder)

    def write(self, header, num_data_bytes=0, file=FILE):
        self.write_parts([header], num_data_bytes, file)

    def write_parts(self, parts, num_data_bytes=0, file=FILE):
        """The header in parts: what this process holds would count as memory of the process it starts."""
        with open(self.folder / file, "wb") as out:
            out.write(bytes(8))
            for part in parts:
                out.write(part)
            size = out.tell() - 8
            out.truncate(8 + size + num_data_bytes)
            out.seek(0)
            out.write(size.to_bytes(8, "little"))

    def inspect(self):
        """Exit status, CPU seconds, peak memory in MB, stdout and stderr."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen([MOECTL, "inspect", str(self.folder)], stdout=output, stderr=output)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            return process.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output.read()

    def cpu_seconds(self, num_tensors):
        _, seconds, _, output = min((self.inspect() for _ in range(2)), key=lambda run: run[1])
        self.assertIn(f"1 file, {num_tensors:,} tensors", output)  # they are not those of the configuration
        return seconds

    def test_time_is_linear_in_the_number_of_tensors(self):
        seconds = {}
        for num_tensors in (20_000, 100_000):
            self.write(header_of(num_tensors), 4 * num_tensors)
            seconds[num_tensors] = self.cpu_seconds(num_tensors)
        print(f"CPU seconds by tensors: {seconds}")
        self.assertLess(seconds[100_000], 12 * seconds[20_000])  # quadratic: 25 times

    def test_time_is_linear_in_the_size_of_the_index(self):
        seconds = {}
        for num_tensors in (20_000, 100_000):
            self.write(header_of(num_tensors), 4 * num_tensors, "shard.safetensors")
            (self.folder / (FILE + ".index.json")).write_text(json.dumps({"weight_map": {name(i): "shard.safetensors" for i in range(num_tensors)}}))
            seconds[num_tensors] = self.cpu_seconds(num_tensors)
        print(f"CPU seconds by tensors of an index: {seconds}")
        self.assertLess(seconds[100_000], 12 * seconds[20_000])

    def test_hostile_headers_are_refused_in_bounded_memory(self):
        lists, text = [b"[]," * 30_000] * 1000, [b"y" * 90_000] * 1000  # 90 MB
        for parts, said in (([b"[", *lists, b"[]]"], "header is a list; expected an object"),
                            ([b'{"x":[', *lists, b"[]]}"], "holds more than 100000 values"),
                            ([b'{"__metadata__":{"x":[', *lists, b"[]]}}"], "holds more than 100000 values"),
                            ([b'{"x":"', *text, b'"}'], 'tensor "x" is "yyy')):
            with self.subTest(said=said):
                self.write_parts(parts)
                code, _, megabytes, output = self.inspect()
                print(f"{megabytes:.0f} MB for: {output.strip()[-120:]}")
                self.assertEqual(code, 65, output)
                self.assertIn(said, output)
                self.assertLess(megabytes, 900)  # 90 of them are the mapped file; they were 2,000


if __name__ == "__main__":
    unittest.main()
