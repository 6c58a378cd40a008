"""scripts/check_layers.py finds includes that break the layers, and a page that says something else."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from check_layers import HEADING, faults_of, page_faults  # noqa: E402

LAYERS = {"core/base": [], "core/http": ["core/base"], "cmd": ["core/", "router"]}
PAGE = f"""# Page

| `core/other` | a row outside the section | `cmd` |

{HEADING}

| folder | what it holds | may include |
|---|---|---|
| `core/base` | errors, `check.h` | - |
| `core/http` | server | `core/base` |
| `cmd` | commands | `core` `router` |

## Next
"""


class LayersCheck(unittest.TestCase):
    def test_includes(self):
        for path, include in [
            ("core/http/server.cpp", '#include "core/engine/engine.h"'),
            ("core/base/log.cpp", '#include "core/http/server.h"'),
            ("core/http/server.cpp", '#include "server.h"'),
            ("core/api/json.cpp", "#include <boost/asio.hpp>"),
            ("core/engine/engine.cpp", "#ifdef MOECTL_HAVE_CUDA"),
        ]:
            self.assertEqual(len(list(faults_of(path, include))), 1, include)
        for path, include in [
            ("core/http/server.cpp", '#include "core/base/error.h"'),
            ("core/http/server.cpp", "#include <boost/asio.hpp>"),
            ("kernels/ops.cpp", "#ifdef MOECTL_HAVE_CUDA"),
        ]:
            self.assertEqual(list(faults_of(path, include)), [], include)

    def test_page(self):
        self.assertEqual(list(page_faults(PAGE, LAYERS)), [])
        for before, after in [
            ("| `core/http` | server | `core/base` |", "| `core/http` | server | `core/base` `kernels` |"),
            ("| `core/http` | server | `core/base` |", "| `core/http` | server | - |"),
            ("| `core/http` | server | `core/base` |\n", ""),
            ("## Next", "| `core/new` | new | - |\n## Next"),
        ]:
            self.assertEqual(len(list(page_faults(PAGE.replace(before, after), LAYERS))), 1, after)


if __name__ == "__main__":
    unittest.main()
