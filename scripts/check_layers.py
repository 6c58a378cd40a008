"""Checks who includes whom and where third-party headers are at home, and that the table of folders in docs/architecture.md
says the same.

Prints FILE:LINE and the rule that an include breaks; exit status 1 when there is any.
"""
import re
import sys

from source_files import ROOT, source_files

# layer: the layers it may include, besides itself
LAYERS = {
    "core/base": [],
    "core/jinja": ["core/base"],
    "core/text": ["core/base", "core/jinja"],
    "core/http": ["core/base"],
    "kernels": ["core/base"],
    "core/parallel": ["core/base", "kernels"],
    "core/comm": ["core/base", "core/parallel", "kernels"],
    "core/kv": ["core/base", "core/text", "kernels"],
    "core/pd": ["core/base", "core/kv"],
    "core/model": ["core/base", "core/parallel", "core/comm", "core/kv", "kernels"],
    "core/engine": ["core/base", "core/text", "core/model", "core/kv", "core/pd", "core/parallel", "core/comm", "kernels"],
    "core/api": ["core/base", "core/text"],
    "core/service": ["core/base", "core/http", "core/api"],
    "core/serving": ["core/", "kernels"],
    "router": ["core/base", "core/text", "core/http", "core/api", "core/service"],
    "cmd": ["core/", "kernels", "router"],
    "tests/cmd": ["core/", "kernels", "router", "cmd", "tests"],
    "tests/faults": ["core/", "kernels", "router", "cmd", "tests"],
    "tests": ["core/", "kernels", "router"],
}

# A layer with a boundary header: from these layers it is entered through that header only.
BOUNDARIES = {"core/engine/engine.h": ("core/serving", "cmd")}

# third-party include: (what it is, the files it may stand in)
HOMES = [
    (r"boost/", r"core/(http|pd)/|tests/(http|pd)/"),
    (r"CLI/", r"cmd/flags/parse\.cpp$"),
    (r"yaml-cpp/", r"cmd/(yaml_file|flags/config_file|deploy/(deploy|workers)_file)\.cpp$"),
    (r"(cuda|cublas|cooperative_groups|cub/|thrust/|cutlass|cute/)", r"kernels/cuda/|tests/kernels_cuda/"),
    (r"nccl\.h", r"core/comm/nccl_(library|group|comm)\.|tests/faults/nccl\.cpp$"),
    (r"gloo/", r"core/comm/gloo_comm\."),
    (r"spdlog/", r"core/base/log\.cpp$"),
    (r"fmt/(core|format)\.h", r""),  # part of core/base/error.h
    (r"fmt/", r"core/base/"),
    (r"prometheus/", r"core/base/metrics\."),
    (r"(pcre2|utf8proc)", r"core/(jinja|text)/"),
    (r"simdjson", r"core/api/.*\.cpp$"),
    (r"openssl/", r"core/(http|pd)/|core/base/hmac\.cpp$|tests/(http|pd)/"),
    (r"nlohmann/json_fwd\.hpp", r""),
    (r"nlohmann/", r".*\.cpp$"),
    (r"(gtest|gmock)/", r"tests/"),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
# Backend switches stand in the files that pick a backend, and nowhere else.
BACKEND = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*\bMOECTL_HAVE_")
BACKEND_HOMES = ("kernels/ops.cpp", "kernels/bench_kernels.cpp", "core/comm/collectives.cpp")


def layer_of(path):
    return next((layer for layer in LAYERS if path.startswith(layer + "/")), None)


def third_party_fault(path, header):
    for pattern, home in HOMES:
        if re.match(pattern, header):
            return None if re.match(home, path) else f"<{header}> is at home in {home} only"
    return None


def project_fault(path, layer, header):
    if not (ROOT / header).is_file():
        return f'"{header}" is not a path from the root of the repository'
    for boundary, layers in BOUNDARIES.items():
        folder = boundary.rpartition("/")[0] + "/"
        if layer in layers and header.startswith(folder) and header != boundary:
            return f"{layer} may include {boundary} of {folder}, not {header}"
    allowed = [layer + "/"] + [a if a.endswith(("/", ".h")) else a + "/" for a in LAYERS[layer]]
    if any(header.startswith(a) for a in allowed):
        return None
    return f"{layer} may include {', '.join(a.rstrip('/') for a in allowed)}, not {header}"


def faults_of(path, text):
    layer = layer_of(path)
    for number, line in enumerate(text.splitlines(), 1):
        if BACKEND.match(line) and path not in BACKEND_HOMES:
            yield number, f"backends are told apart in {', '.join(BACKEND_HOMES)} only"
        if not (found := INCLUDE.match(line)) or layer is None:
            continue
        bracket, header = found.groups()
        fault = third_party_fault(path, header) if bracket == "<" else project_fault(path, layer, header)
        if fault:
            yield number, fault


PAGE = "docs/architecture.md"
HEADING = "## Folders and who may include whom"
ROW = re.compile(r"^\| `([^`]+)` \|.*\|([^|]*)\|$")


def page_faults(page, layers=LAYERS):
    """The rows `| `folder` | ... | `folder` `folder` |` under HEADING must be those of `layers`."""
    section = page.partition(HEADING)[2].partition("\n## ")[0]
    rows = {found[1]: set(re.findall("`([^`]+)`", found[2])) for found in map(ROW.match, section.splitlines()) if found}
    for layer in sorted(rows.keys() ^ layers.keys()):
        yield f"{layer} is {'no folder of scripts/check_layers.py' if layer in rows else 'missing in the table of folders'}"
    for layer in sorted(rows.keys() & layers.keys()):
        allowed = {name.rstrip("/") for name in layers[layer]}
        if rows[layer] != allowed:
            yield f"{layer} may include {', '.join(sorted(allowed)) or 'nothing'}; the page says {', '.join(sorted(rows[layer])) or 'nothing'}"


def main():
    faults = 0
    for fault in page_faults((ROOT / PAGE).read_text()):
        print(f"{PAGE}: {fault}")
        faults += 1
    for path in source_files(".h", ".cpp", ".cu", ".cuh"):
        for number, fault in faults_of(path, (ROOT / path).read_text()):
            print(f"{path}:{number}: {fault}")
            faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
