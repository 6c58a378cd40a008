"""scripts/check_coroutines.py finds what it must and nothing else."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from check_coroutines import faults_of  # noqa: E402

BAD = [
    "co_await f({.name = x});",
    "co_await f(Args{1, 2});",
    "co_return co_await g(h(Args{.a = 1}));",
    "auto v = co_await f(1,\n  {.name = x});",
    "co_await run([&] { return 1; });",
    "co_await run([x = std::move(x)]() mutable { return x; });",
    "co_await with(1, [this](int i) { return i; });",
    "if (co_await f({1})) return;",
    "co_await Timer{io};",
]
GOOD = [
    "co_await f(name);",
    "co_await f(std::move(args), 1);",
    "if (co_await f(x)) { g({1}); }",
    "co_await run([] { return 1; });",
    "co_await f(a[i], b[j]);",
    "while (co_await next()) { h(Args{1}); }",
    "Args args{.name = x}; co_await f(std::move(args));",
    "// co_await f({.name = x});",
    'co_await f("({[&]");',
    "co_await f(); g({.name = x});",
    "run([x] { return x; }); co_await f();",
]


class CoroutineCheck(unittest.TestCase):
    def test_bad(self):
        for code in BAD:
            self.assertEqual(len(list(faults_of(code))), 1, code)

    def test_good(self):
        for code in GOOD:
            self.assertEqual(list(faults_of(code)), [], code)

    def test_line(self):
        self.assertEqual([n for n, _ in faults_of('\n/* co_await\n */\nauto s = R"(\n)";\nco_await f({1});')], [6])


if __name__ == "__main__":
    unittest.main()
