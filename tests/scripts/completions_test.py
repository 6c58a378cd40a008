"""Loads the committed completions in the real shells and asks for candidates, as pressing Tab does.

    completions_test.py bash|zsh|fish      exit status 77: that shell is not installed
"""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPLETIONS = ROOT / "completions"
SHELL = None

BASH = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_moectl
printf '%s\n' "${COMPREPLY[@]}"
"""

# A shell in a pseudo-terminal gets the line typed and Tab pressed; compadd, the builtin that every zsh completion ends in,
# writes down what it accepts.
ZSH = r"""
zmodload zsh/zpty || exit 1
completions=$1 folder=$2 found=$3 line=$4
zpty shell zsh -f -i
zpty -w shell "cd ${(q)folder}; PS1=; unsetopt beep auto_list auto_menu; LISTMAX=100000; bindkey -e; bindkey '^I' complete-word
fpath=(${(q)completions} \$fpath); autoload -Uz compinit && compinit -u -D
compadd() {
  local -a hits
  if [[ \${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd \"\$@\"; return; fi
  builtin compadd -A hits \"\$@\"
  print -rl -- \$hits >>${(q)found}
  builtin compadd \"\$@\"
}
finish() { exit 0 }
comppostfuncs=(finish)
print -r -- rea''dy"
zpty -r shell output '*ready*' || exit 1
zpty -n -w shell "$line"$'\t'
while zpty -r shell output; do :; done
"""


def run(*args, **kwargs):
    return subprocess.run(args, check=True, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **kwargs).stdout


def candidates(words, folder):
    """What the shell offers for the last of `words`, sorted, without descriptions."""
    if SHELL == "bash":
        out = run("bash", "--norc", "-c", BASH, "bash", COMPLETIONS / "moectl.bash", *words, cwd=folder)
    elif SHELL == "zsh":
        with tempfile.NamedTemporaryFile(mode="r") as found:
            run("zsh", "-f", "-c", ZSH, "zsh", COMPLETIONS, folder, found.name, " ".join(words), cwd=folder)
            out = found.read()
    else:
        script = f"source {COMPLETIONS / 'moectl.fish'}; complete -C {repr(' '.join(words))}"
        home = dict(os.environ, HOME=str(folder), XDG_CONFIG_HOME=str(folder / ".config"), XDG_DATA_HOME=str(folder / ".data"))
        out = run("fish", "--no-config", "-c", script, cwd=folder, env=home)
    lines = [line.split("\t")[0] for line in out.splitlines()]
    # zsh offers --flag= where bash and fish offer --flag; folders come with or without the slash, spaces quoted or not.
    return sorted({line.replace("\\ ", " ").strip("'\"").rstrip("/=") for line in lines if line.strip()})


class Completions(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "checkpoint one").mkdir()
        (self.folder / "checkpoint-two").mkdir()
        (self.folder / "settings.yaml").touch()

    def offered(self, *words):
        return candidates(["moectl", *words], self.folder)

    def test_commands(self):
        offered = self.offered("")
        for name in ("serve-decode", "inspect", "bench"):
            self.assertIn(name, offered)
        self.assertNotIn("docgen", offered)
        self.assertTrue({"serve-decode", "serve-prefill"} <= set(self.offered("serve")))
        self.assertEqual(self.offered("bench", ""), ["comm", "engine", "kernels", "serve"])

    def test_flags_of_a_command(self):
        self.assertEqual(self.offered("serve-decode", "--po"), ["--port", "--portable-kernels"])
        self.assertEqual(self.offered("serve-decode", "--ep-si"), ["--ep-size"])
        self.assertEqual(self.offered("serve-decode", "--no-enable"), ["--no-enable-prefix-caching"])
        self.assertEqual(self.offered("inspect", "--js"), ["--json"])
        self.assertEqual(self.offered("bench", "engine", "--conc"), ["--concurrency"])
        self.assertNotIn("--concurrency", self.offered("serve-decode", "--"))
        self.assertNotIn("--port", self.offered("bench", "engine", "--"))
        self.assertIn("--threads", self.offered("bench", "engine", "--"))

    def test_choices(self):
        self.assertEqual(self.offered("serve-decode", "--device", ""), ["auto", "cpu", "cuda"])
        self.assertEqual(self.offered("serve-decode", "--port", "1", "--device", "cu"), ["cuda"])
        self.assertEqual(self.offered("bench", "engine", "--cpu-path", "a"), ["auto", "avx512"])

    def test_files_and_folders(self):
        self.assertEqual(self.offered("serve-decode", "--model", "check"), ["checkpoint one", "checkpoint-two"])
        self.assertEqual(self.offered("inspect", "checkpoint-"), ["checkpoint-two"])
        self.assertEqual(self.offered("serve-decode", "--config", "sett"), ["settings.yaml"])
        self.assertNotIn("settings.yaml", self.offered("inspect", "sett"))

    def test_a_number_has_no_candidates(self):
        self.assertEqual(self.offered("serve-decode", "--port", ""), [])


if __name__ == "__main__":
    SHELL = sys.argv.pop(1)
    if not shutil.which(SHELL):
        print(f"skipped: {SHELL} is not installed")
        sys.exit(77)
    unittest.main(verbosity=2)
