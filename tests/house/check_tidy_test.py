#!/usr/bin/env python3
"""check_tidy finds what it promises to find, and nothing in clean code: run on small trees made here."""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parent.parent.parent / "tools" / "check_tidy"


class CheckTidy(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        (self.root / "tools").mkdir()
        shutil.copy(TOOL, self.root / "tools" / "check_tidy")
        self.write("src/base/README.md", "# base\n")

    def tearDown(self):
        shutil.rmtree(self.root)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def findings(self):
        done = subprocess.run([sys.executable, self.root / "tools" / "check_tidy"], capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.returncode, 0 if done.stdout.splitlines()[-1:] == ["tidy"] else 1)
        return done.stdout

    def test_clean_code_passes(self):
        self.write("src/base/a.h", "#pragma once\n// std::thread, getenv(x) and sleep(1) in a comment\n"
                   "inline const char* a() { return \"std::thread getenv( \\\" {\"; }\nstruct B { int x{1}; };\n")
        self.assertEqual(self.findings(), "tidy\n")

    def test_long_files_and_lines_are_found(self):
        self.write("src/base/a.cc", "int x;\n" * 501 + "// " + "y" * 120 + "\n")
        self.assertIn("file src/base/a.cc: 502, at most 500", self.findings())
        self.assertIn("columns src/base/a.cc: 123, at most 120", self.findings())

    def body(self, lines):
        return "\n".join(["  f();"] * lines) + "\n}\n"

    def test_long_functions_are_found_wherever_they_stand(self):
        self.write("src/base/a.cc", "namespace n {\nvoid free_one(int a) {\n" + self.body(70) +
                   "struct S {\n  S(int a) : a_{a}, b_(2)\n  {\n" + self.body(71) + "  void fine() {\n" +
                   self.body(68) + "};\n}\nconst int kTable[] = {\n" + "  1,\n" * 100 + "};\n")
        found = self.findings()
        self.assertIn("function src/base/a.cc free_one: 72, at most 70", found)
        self.assertIn("function src/base/a.cc S: 7", found)
        self.assertEqual(found.count("at most"), 2, found)

    def test_kernel_bodies_may_be_long(self):
        self.write("src/kernels/README.md", "# kernels\n")
        self.write("src/kernels/cpu/a.cc", "void kernel() {\n" + self.body(100))
        self.assertEqual(self.findings(), "tidy\n")

    def test_parameters_are_counted_not_commas(self):
        self.write("src/base/a.cc",
                   "void six(std::map<int, int> a, int b, int (*c)(int, int), int d, int e, int f) {}\n"
                   "void seven(int a, int b, int c, int d, int e, int f, int g) {}\n")
        found = self.findings()
        self.assertIn("parameters src/base/a.cc seven: 7, at most 6", found)
        self.assertEqual(found.count("at most"), 1, found)

    def test_bans(self):
        self.write("src/base/a.h", "using namespace std;\n")
        self.write("src/base/a.cc", "auto x = std::getenv(\"X\"); std::thread t;\nauto id = std::thread::id();\n")
        self.write("src/app/a.cc", "auto x = std::getenv(\"X\");\n")
        self.write("src/app/README.md", "# app\n")
        self.write("tests/a_test.cc", "void f() { std::this_thread::sleep_for(x); }\n"
                   "// TO" "DO later, TO" "DO(12) fine\n")
        self.write("docs/a.md", "in /" + "work/main and https://x.org/work/a\n")
        found = self.findings().splitlines()
        self.assertEqual(len(found), 6, found)
        for text in ("a.cc:1: the environment", "'using namespace' in a header", "a.cc:1: std::thread", "sleeps",
                     "unowned", "docs/a.md:1: a path of one machine"):
            self.assertTrue(any(text in line for line in found), text)

    def test_rooms_need_a_short_readme(self):
        self.write("src/kv/a.h", "#pragma once\n")
        self.write("src/base/README.md", "x\n" * 31)
        self.assertIn("src/kv: no README.md", self.findings())
        self.assertIn("src/base/README.md: more than 30 lines", self.findings())

    def test_the_allow_list_lets_old_excess_shrink_but_not_grow(self):
        self.write("src/base/a.cc", "int x;\n" * 510)
        self.write("tools/tidy_allow.json", '{"file src/base/a.cc": 520, "file src/base/gone.cc": 600}')
        found = self.findings()
        self.assertIn("gone.cc' is within its budget now", found)
        self.assertTrue(found.endswith("tidy\n"), found)
        self.write("src/base/a.cc", "int x;\n" * 521)
        self.assertIn("521, at most 500, the allow list says 520", self.findings())


if __name__ == "__main__":
    unittest.main()
