"""The files of the source tree, for the checks: what git tracks or would add; without git, everything but build folders.

    source_files.py [SUFFIX ...]    prints them, one a line
"""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def source_files(*suffixes):
    """Paths relative to ROOT, sorted; all of them when no suffix is given."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = []
        for folder, folders, names in os.walk(ROOT):
            folders[:] = [f for f in folders if not f.startswith(("build", ".")) or f == ".ci"]
            listed += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names]
    return sorted({p for p in listed if p and (not suffixes or p.endswith(suffixes)) and (ROOT / p).is_file()})


if __name__ == "__main__":
    print("\n".join(source_files(*sys.argv[1:])))
