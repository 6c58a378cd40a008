"""The table of memory per GPU in docs/parallelism.md is what `moectl inspect` prints for the published config.json files.

  MOECTL=build/moectl python3 tests/scripts/memory_table_test.py --write     writes the table anew
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOECTL = os.environ["MOECTL"]
PAGE = ROOT / "docs/parallelism.md"
BEGIN, END = "<!-- memory table -->\n", "<!-- end of memory table -->\n"
GPU_GB = 141  # H200
EP_SIZES = (1, 2, 4, 8, 16, 32, 72)
MODELS = {  # name in tests/model/published_configs.json: how the table names it
    "DeepSeek-V3": "DeepSeek-V3, R1 (FP8, with MTP)",
    "Kimi-K2": "Kimi K2 (FP8)",
    "Qwen3-235B-A22B": "Qwen3-235B-A22B (BF16)",
    "GLM-4.5-Air": "GLM-4.5-Air (BF16, with MTP)",
    "gpt-oss-120b": "gpt-oss-120b (MXFP4)",
    "Qwen3-30B-A3B": "Qwen3-30B-A3B (BF16)",
    "DeepSeek-V2-Lite": "DeepSeek-V2-Lite (BF16)",
}


def rank_memory(folder, ep_size):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOECTL_") and k not in ("EP_SIZE", "DP_SIZE", "TP_SIZE")}
    result = subprocess.run([MOECTL, "inspect", folder, "--ep-size", str(ep_size), "--gpu-memory-gb", str(GPU_GB), "--json"],
                            env=clean, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(result.stdout)["rank"]


def cell(rank):
    weights = f"{rank['weight_bytes'] / 1e9:.1f}"
    return f"**{weights}**; {rank['gpu']['kv_cache_tokens'] // 1000} k" if rank["gpu"]["fits"] else weights


def table():
    lines = ["| model | KV bytes per token | " + " | ".join(f"EP {n}" for n in EP_SIZES) + " | smallest EP |\n",
             "|---" * (len(EP_SIZES) + 3) + "|\n"]
    published = json.loads((ROOT / "tests/model/published_configs.json").read_text())
    for name, title in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(published[name]["config"]))
            ranks = [rank_memory(folder, n) for n in EP_SIZES]
        cells = [title, f"{ranks[0]['kv_bytes_per_token']['bf16']:,}", *map(cell, ranks),
                 str(ranks[0]["gpu"]["smallest_ep_size"])]
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


class MemoryTable(unittest.TestCase):
    def test_the_page_has_the_binarys_numbers(self):
        text = PAGE.read_text()
        self.assertEqual(text[text.index(BEGIN) + len(BEGIN):text.index(END)], table(),
                         "write it anew with `tests/scripts/memory_table_test.py --write`")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        text = PAGE.read_text()
        PAGE.write_text(text[:text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END):])
    else:
        unittest.main(verbosity=2)
