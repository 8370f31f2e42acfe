"""tandem reproduce: both halves on the embedded model, and each sabotage named by its reason."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

import browser
import harness

# Short, and forgiving of a busy machine: what is tested is the workflow. reproduce_valid (label long) has the defaults.
QUICK = ["--window", "5", "--settle", "1", "--settle-timeout", "4", "--record", "2", "--profile-steps", "10"]
QUICK += ["--decode-output-len", "256"]
TOLERANT = ["--max-variation", "9", "--max-imbalance", "9"]
STAGE_BEGINS = re.compile(r"^  (\w[\w ]*?) +\d+ s left \.\.\.", re.MULTILINE)


class Fleet:
    """Prefill servers, decode servers of two ranks each and a router."""

    def __init__(self, *decode_flags, num_prefill=1, num_decode=1, router_flags=()):
        router_flags = list(router_flags)
        self.prefills = []
        for i in range(num_prefill):
            port, kv_port = harness.free_port(), harness.free_port()
            flags = ["--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", kv_port]
            self.prefills.append(harness.Server(f"prefill-{i}", "launch_server", port, "--num-threads", 1, *flags))
            router_flags += ["--prefill", f"http://127.0.0.1:{port}", kv_port]
        ranks = ["--tp-size", 2, "--dp-size", 2, "--enable-dp-attention"]
        self.decodes = []
        for i in range(num_decode):
            flags = ["--disaggregation-mode", "decode", "--num-threads", 1, *ranks, *decode_flags]
            self.decodes.append(harness.Server(f"decode-{i}", "launch_server", harness.free_port(), *flags))
            router_flags += ["--decode", f"http://127.0.0.1:{self.decodes[i].port}"]
        self.decode = self.decodes[0]
        self.router = harness.Server("router", "router", harness.free_port(), "--pd-disaggregation", *router_flags)
        for server in self.servers:
            server.wait_ready()

    @property
    def servers(self):
        return [*self.prefills, *self.decodes, self.router]

    def close(self):
        for server in reversed(self.servers):
            server.close()


def reproduce(*flags, deadline_s=240, meanwhile=None):
    """Returns exit status, report and output. meanwhile(stage): called every 0.2 s with the stage that is under way."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as printed:
        child = subprocess.Popen(
            [harness.binary(), "reproduce", "--output", folder, *map(str, flags)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )

        def output():
            return os.pread(printed.fileno(), 1 << 20, 0).decode()

        try:
            end = time.monotonic() + deadline_s
            while child.poll() is None:
                if time.monotonic() > end:
                    raise AssertionError(f"it did not end within {deadline_s} s:\n{output()}")
                stages = STAGE_BEGINS.findall(output())
                if meanwhile and stages:
                    meanwhile(stages[-1])
                time.sleep(0.2)
        finally:
            child.kill()
            child.wait()
        path = pathlib.Path(folder, "report.json")
        if not path.exists():
            raise AssertionError(f"no report; status {child.returncode}\n{output()}")
        report = json.loads(path.read_text())
        report["html"] = pathlib.Path(folder, "report.html").read_text()
        report["files"] = sorted(entry.name for entry in pathlib.Path(folder).iterdir())
        return child.returncode, report, output()


def codes(report):
    return {reason["code"] for reason in report["reasons"]}


class WorkflowTest(unittest.TestCase):
    def test_both_halves_are_measured_and_reported(self):
        status, report, out = reproduce(*QUICK, *TOLERANT)
        self.assertEqual(status, 0 if report["verdict"] == "valid" else 1, out)
        # Load of other programs may spoil the figures, but nothing else may be wrong.
        self.assertLessEqual(codes(report), {"formulas_differ", "trace_differs", "not_saturated"}, out)
        names = [half["name"] for half in report["halves"]]
        self.assertEqual(names, ["decode-bound", "prefill-bound"])
        decode, prefill = report["halves"]
        for measured in (decode["before"], decode["after"], prefill["before"]):
            self.assertGreater(measured["tokens_per_s_per_gpu_by_counters"], 0)
            self.assertGreater(measured["requests_completed"], 0)
            self.assertEqual(measured["requests_failed"], 0)
        self.assertEqual(decode["before"]["num_gpus"], 2)
        self.assertEqual(decode["before"]["trace"]["num_steps"], 10)
        self.assertGreater(len(decode["before"]["trace"]["parts"]), 3)
        self.assertGreater(decode["before"]["experts"]["balancedness"], 0.5)
        stages = [stage["name"] for stage in decode["stages"]]
        for stage in ("saturate", "settle", "measure", "profile", "record", "rebalance", "measure again", "drain"):
            self.assertIn(stage, stages)
        self.assertEqual(len([name for name in report["files"] if name.endswith(".trace.json.gz")]), 3)
        self.assertIn("prefers-color-scheme:dark", report["html"])
        for outside in ("http://www", "https://", "<script", "@import"):
            self.assertNotIn(outside, report["html"].replace("http://www.w3.org/2000/svg", ""))

        self.look_at(report["html"])

    def test_a_restart_with_the_recorded_placement_is_measured_too(self):
        flags = ["--half", "decode", "--rebalance", "restart", "--window", "3", "--profile-steps", "0"]
        status, report, out = reproduce(*QUICK, *TOLERANT, *flags)
        self.assertEqual(status, 0 if report["verdict"] == "valid" else 1, out)
        self.assertLessEqual(codes(report), {"formulas_differ", "not_saturated"}, out)
        (half,) = report["halves"]
        for measured in (half["before"], half["after"]):
            self.assertGreater(measured["tokens_per_s_per_gpu_by_counters"], 0)
            self.assertEqual(measured["requests_failed"], 0)
        # The second placement was planned from the first one's hits, and serves them more evenly.
        before, after = (half[name]["experts"]["balancedness"] for name in ("before", "after"))
        self.assertGreater(after, before, out)
        stages = [stage["name"] for stage in half["stages"]]
        self.assertLess(stages.index("drain"), stages.index("measure again"))
        started = [command for command in report["commands"] if "--init-expert-location" in command]
        self.assertEqual(len(started), 1, report["commands"])
        self.assertLessEqual({"logs-decode-bound", "logs-decode-bound-restarted"}, set(report["files"]))

    def look_at(self, html):
        if not browser.find():
            print("chromium is not installed: the report was not looked at", file=sys.stderr)
            return
        for dark, paper in ((False, [255, 255, 255]), (True, [20, 23, 27])):
            seen = browser.look(html, dark)
            self.assertEqual(seen["background"], paper, seen)
            self.assertEqual(seen["pixel"], paper, seen)
            self.assertLessEqual(seen["overflow"], 0, seen)
            self.assertGreaterEqual(len(seen["drawings"]), 7, seen)
            self.assertTrue(all(height > 50 for height in seen["drawings"]), seen)
            self.assertGreaterEqual(seen["contrast"], 3.0, seen)
            self.assertEqual(seen["outside"], [], seen)

    def test_bad_flags_are_one_line(self):
        restart = ["--rebalance", "restart", "--router", "http://127.0.0.1:9"]  # of servers started elsewhere
        for flags in (["--decode-split", "2"], ["--half", "third"], ["--output", "/proc/nowhere"], restart):
            done = subprocess.run(
                [harness.binary(), "reproduce", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)


class ValidTest(unittest.TestCase):
    """With the defaults, on an otherwise idle machine."""

    def test_the_embedded_model_is_valid_within_three_minutes(self):
        status, report, out = reproduce(deadline_s=180)
        self.assertEqual(report["reasons"], [], out)
        self.assertEqual(report["verdict"], "valid")
        self.assertEqual(status, 0)


class SabotageTest(unittest.TestCase):
    """Each on a deployment of its own, attached to; the sabotage happens while the window is measured."""

    FLAGS = [*QUICK, *TOLERANT, "--half", "decode", "--record", "0", "--profile-steps", "0", "--running-per-rank", "8"]

    def deployment(self, *decode_flags, **parts):
        fleet = Fleet(*decode_flags, **parts)
        self.addCleanup(fleet.close)
        return fleet

    def run_with(self, fleet, *flags, meanwhile=None):
        status, report, out = reproduce(
            "--router", f"http://127.0.0.1:{fleet.router.port}", *self.FLAGS, *flags, meanwhile=meanwhile
        )
        self.assertEqual(report["verdict"], "invalid", out)
        self.assertEqual(status, 1)
        return codes(report), out

    def slow_down(self, server, sleep_s):
        answer = harness.request(server.port, "POST", "/slow_down", {"forward_sleep_time": sleep_s})
        self.assertEqual(answer.status, 200, answer.body)

    def test_a_killed_transfer(self):
        # Without a second try, or no client would hear of it.
        fleet = self.deployment("--max-running-requests", 16, num_prefill=2, router_flags=["--disable-retries"])

        def sabotage(stage):
            if stage == "measure":
                fleet.prefills[0].kill()

        # Prompts so long that there is always one on its way, and a batch that they can fill all the same.
        flags = ["--decode-input-len", "1000", "--decode-output-len", "512", "--running-per-rank", "4"]
        found, out = self.run_with(fleet, *flags, meanwhile=sabotage)
        self.assertTrue(found & {"failed_transfers", "failed_requests"}, out)

    def test_a_tiny_kv_pool(self):
        fleet = self.deployment("--max-running-requests", 16, "--max-total-tokens", 1024)
        found, out = self.run_with(fleet, "--saturate-timeout", "10")
        # With so few blocks the batch may not even be filled; that stage's line says how full the pool is.
        self.assertTrue(found & {"retractions", "kv_pool_exhausted", "stage_failed"}, out)
        self.assertIn("KV pool", out)

    def test_an_unsteady_load(self):
        fleet = self.deployment("--max-running-requests", 16)
        calls = []

        def sabotage(_stage):
            calls.append(1)
            if len(calls) % 8 == 0:
                self.slow_down(fleet.decode, 0.2 if len(calls) % 16 else None)

        found, out = self.run_with(fleet, "--max-variation", "0.1", meanwhile=sabotage)
        self.assertIn("unsteady", found, out)

    def test_zero_output(self):
        fleet = self.deployment("--max-running-requests", 16)
        slept = []

        def sabotage(stage):
            if stage == "settle" and not slept:
                slept.append(stage)
                self.slow_down(fleet.decode, 100)
            elif stage == "drain" and len(slept) == 1:
                slept.append(stage)
                self.slow_down(fleet.decode, None)

        found, out = self.run_with(fleet, meanwhile=sabotage)
        self.assertIn("zero_output", found, out)

    def test_imbalanced_ranks(self):
        # A choice that looks at nothing: others would send fewer requests to the slow one.
        random = ["--decode-policy", "random"]
        fleet = self.deployment("--max-running-requests", 16, num_decode=2, router_flags=random)

        def sabotage(stage):
            # Its requests stay longer, so that those of the fast one become few.
            if stage == "settle":
                self.slow_down(fleet.decodes[1], 0.05)

        lengths = ["--decode-output-len", "64", "--settle", "4"]
        flags = ["--max-imbalance", "0.1", "--decode-ranks", "4", *lengths]
        found, out = self.run_with(fleet, *flags, meanwhile=sabotage)
        self.assertIn("rank_imbalance", found, out)

    def test_the_profiler_left_on(self):
        fleet = self.deployment("--max-running-requests", 16)
        with tempfile.TemporaryDirectory() as folder:
            answer = harness.request(fleet.decode.port, "POST", "/start_profile", {"output_dir": folder})
            self.assertEqual(answer.status, 200, answer.body)
            found, out = self.run_with(fleet)
            harness.request(fleet.decode.port, "POST", "/stop_profile", {})
        self.assertIn("profiler_on", found, out)


if __name__ == "__main__":
    harness.main()
