"""tandem throughput: the users' worked example, their logs, traces of torch's profiler, a pair of our servers."""

import gzip
import json
import pathlib
import subprocess
import tempfile
import threading
import unittest

from harness import ROOT, Case, Pair, binary, main, request

DATA = ROOT / "tests/data/throughput"


def throughput(*args):
    done = subprocess.run(
        [binary(), "throughput", *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def reports(*args):
    status, out, errors = throughput(*args, "--format", "json")
    if status != 0:
        raise AssertionError(f"status {status}: {errors}{out}")
    return {report["phase"]: report for report in json.loads(out)}


def torch_trace(path, gaps_ms):
    """What matters of a file of torch's profiler: a graph launch a step, among kernels and metadata."""
    events = [{"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "python"}}]
    at = 1.7e15
    for index, gap in enumerate([0, *gaps_ms]):
        at += gap * 1e3
        runtime = {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "pid": 7, "tid": 7}
        events.append({**runtime, "ts": at, "dur": 80, "args": {"correlation": index}})
        kernel = {"ph": "X", "cat": "kernel", "name": 'gemm<"a", [b]>', "pid": 0, "tid": 7}
        events += [{**kernel, "ts": at + i, "dur": 9, "args": {"stream": 7}} for i in range(50)]
    with gzip.open(path, "wt") as file:
        json.dump({"schemaVersion": 1, "deviceProperties": [{"id": 0}], "traceEvents": events}, file)


class CommandTest(unittest.TestCase):
    def test_the_worked_example(self):
        status, out, _ = throughput(
            "--running-req", "285,256,254,265,271,227,221,269", "--step-ms", 65, "--gpus", 8
        )
        self.assertEqual(status, 0)
        self.assertIn("3,938 tok/s/GPU", out)

    def test_users_log_with_a_trace_of_its_profile(self):
        with tempfile.TemporaryDirectory() as folder:
            trace = pathlib.Path(folder) / "1763882692.8351896-TP-0-DP-0-EP-0.trace.json.gz"
            torch_trace(trace, [77.7, 77.6, 77.8, 77.7])
            decode = reports("--log", DATA / "gb200_decode_dp0.log", "--trace", trace)["decode"]
            self.assertAlmostEqual(decode["step_ms"], 77.7, places=3)
            self.assertAlmostEqual(decode["by_step"], 1024 / 0.0777, delta=1)
            self.assertAlmostEqual(decode["by_counters"], 12170, delta=10)
            self.assertIn("cudaGraphLaunch", decode["step_source"])
            self.assertEqual(decode["verdict"], "valid", decode)
            # The same trace beside the log of another day.
            october = reports("--log", DATA / "decode_october_dp0.log", "--trace", trace)["decode"]
            self.assertEqual(october["verdict"], "invalid")
            self.assertIn("another_profile", [finding["doubt"] for finding in october["findings"]])

    def test_what_cannot_be_read_is_one_line_that_names_the_file(self):
        with tempfile.TemporaryDirectory() as folder:
            broken = pathlib.Path(folder) / "broken.trace.json.gz"
            broken.write_bytes(gzip.compress(b'{"traceEvents": [{"ph": "X"')[:-9])
            for flag, path in (("--trace", broken), ("--log", pathlib.Path(folder) / "none.log")):
                status, out, errors = throughput(flag, path)
                self.assertEqual((status, out), (1, ""))
                self.assertEqual(errors.count("\n"), 1, errors)
                self.assertIn(str(path), errors)
                self.assertIn("expected" if flag == "--trace" else "cannot be opened", errors)

    def test_a_log_without_batches_has_no_figure(self):
        with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
            log.write("[2025-11-22 10:00:00] nothing here\n")
            log.flush()
            status, out, _ = throughput("--log", log.name)
            self.assertEqual(status, 1)
            self.assertIn("invalid: nothing was read of decode", out)


class PairTest(Case):
    @classmethod
    def make(cls):
        return Pair("--decode-log-interval", 1, "--enable-metrics")

    def generate_all(self, count):
        body = {
            "input_ids": [[3 + (i * 7 + k) % 200 for k in range(64)] for i in range(count)],
            "sampling_params": {"temperature": 0, "max_new_tokens": 96, "ignore_eos": True},
        }
        answer = request(self.port, "POST", "/generate", body)
        self.assertEqual(answer.status, 200, answer)

    def test_live_counters_and_the_servers_own_logs(self):
        stop = threading.Event()

        def load():
            while not stop.is_set():
                self.generate_all(16)

        client = threading.Thread(target=load)
        client.start()
        try:
            live = reports("--url", f"http://127.0.0.1:{self.port}", "--window-s", 3, "--tolerance", 10)
        finally:
            stop.set()
            client.join()
        for phase in ("decode", "prefill"):
            report = live[phase]
            self.assertGreater(report["by_step"], 0, report)
            self.assertGreater(report["by_counters"], 0, report)
            self.assertLess(report["by_counters"], report["by_step"] * 1.5, report)
            self.assertEqual(report["num_gpus"], 1)
        logs = reports("--log", self.deployment.prefill.log_file.name, self.deployment.decode.log_file.name)
        for phase in ("decode", "prefill"):
            self.assertGreater(logs[phase]["by_step"], 0, logs[phase])
            self.assertGreater(logs[phase]["by_counters"], 0, logs[phase])
        # Batches of 16 by one path and by the other.
        self.assertLessEqual(logs["decode"]["tokens_per_step"], 16)
        self.assertGreater(logs["decode"]["tokens_per_step"], 12)
        one = reports("--log", self.deployment.decode.log_file.name, "--phase", "decode")
        self.assertEqual(list(one), ["decode"])


if __name__ == "__main__":
    main()
