"""Random config.json files through the real binary (MOECTL): `inspect` says that one is supported, or refuses it with
exit status 65 and a reason that names the file. Never a crash, a hang or a large allocation. Fixed seed."""
import json
import os
import random
import resource
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOECTL = os.environ["MOECTL"]
NUM_CONFIGS = 240
SECONDS, MEMORY = 60, 1 << 30


SANITIZED = any(name in Path(MOECTL).read_bytes() for name in (b"__asan_init", b"__tsan_init"))


def limit():
    if not SANITIZED:  # its shadow takes terabytes of addresses
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def value(r, old):
    kinds = [None, True, False, "silu", "", [], {}, [1, 2], ["full_attention"] * 3, {"rope_type": "yarn", "factor": 2},
             -1, 0, 1, 3, 7, 64, 2**31, 2**63, 1e300, 0.5, 10**400, "9" * 5000, [[[[]]]], [0] * 3000]
    if isinstance(old, int) and r.random() < 0.4:
        return old + r.choice([-2, -1, 1, 2, old])
    return r.choice(kinds)


def random_config(r, published):
    config = json.loads(json.dumps(r.choice(published)["config"]))
    names = list(config) + ["surprise", "n_group", "layer_types", "rope_parameters", "head_dim", "quantization_config"]
    for _ in range(r.randint(0, 4)):
        name = r.choice(names)
        if r.random() < 0.25:
            config.pop(name, None)
        else:
            config[name] = value(r, config.get(name))
    return json.dumps(config)


class RandomConfigs(unittest.TestCase):
    def test_inspect(self):
        r = random.Random(20)
        published = list(json.loads((ROOT / "tests/model/published_configs.json").read_text()).values())
        num_supported = 0
        for i in range(NUM_CONFIGS):
            text = random_config(r, published)
            if r.random() < 0.1:  # not even JSON
                text = text[:r.randrange(len(text))] + r.choice(["", "\0", "}", "[" * 1000, '"'])
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "config.json").write_text(text)
                result = subprocess.run([MOECTL, "inspect", folder, "--json"], capture_output=True, text=True,
                                        stdin=subprocess.DEVNULL, timeout=SECONDS, preexec_fn=limit)
            with self.subTest(i=i, config=text[:2000]):
                self.assertIn(result.returncode, (0, 65), result.stderr)
                if result.returncode == 65:
                    self.assertIn("moectl: error: ", result.stderr)
                    self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
                    report = json.loads(result.stdout) if result.stdout else {"supported": False}
                    self.assertFalse(report["supported"])
                    self.assertIn("config.json", report.get("unsupported", result.stderr))
                else:
                    self.assertTrue(json.loads(result.stdout)["supported"])
                    num_supported += 1
        self.assertGreater(num_supported, NUM_CONFIGS // 10)
        self.assertLess(num_supported, NUM_CONFIGS // 2)


if __name__ == "__main__":
    unittest.main()
