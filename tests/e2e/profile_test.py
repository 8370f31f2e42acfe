"""Profiling: exactly the steps asked for, on every rank, under load and more than once; what the traces have in them;
all servers behind a router with one command."""

import gzip
import json
import pathlib
import re
import subprocess
import tempfile
import threading

import harness
from harness import REFERENCE, Case, Combined, Pair, binary, greedy, request, wait_until

RANKS = ("--tp-size", 2, "--dp-size", 2, "--enable-dp-attention", "--moe-a2a-backend", "deepep")
TRACKS = {"step", "scheduler", "layer", "op", "exchange", "kv transfer"}


def read(path):
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def spans(events, name):
    return [event for event in events if event["ph"] == "X" and event["name"] == name]


class Load:
    """Requests that keep the server decoding until the block ends."""

    def __init__(self, port, count=4, prompt_id=0):
        self.port = port
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(count)]
        self.ids = REFERENCE[prompt_id]["ids"]
        self.failures = []

    def ask(self):
        while not self.stopped.is_set():
            body = {"input_ids": self.ids, "sampling_params": greedy(64, ignore_eos=True)}
            answer = request(self.port, "POST", "/generate", body)
            if answer.status != 200:
                self.failures.append(answer)
                return

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)


class Traces:
    """A directory for traces that goes with the block."""

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="tandem-profile-")
        self.path = pathlib.Path(self.directory.name)
        return self

    def __exit__(self, *_):
        self.directory.cleanup()

    def wait_for(self, count, pattern="*.trace.json.gz"):
        def files():
            found = sorted(self.path.rglob(pattern))
            return found if len(found) >= count else None

        found = wait_until(files, 60, f"{count} traces")
        assert len(found) == count, found
        return found


class RanksTest(Case):
    """A server of two ranks with two-batch overlap."""

    @classmethod
    def make(cls):
        return Combined(*RANKS, "--enable-two-batch-overlap")

    def start(self, traces, **fields):
        return request(self.port, "POST", "/start_profile", {"output_dir": str(traces.path), **fields})

    def test_both_ranks_record_exactly_the_steps_asked_for_every_time(self):
        ids = set()
        with Load(self.port) as load, Traces() as traces:
            for count in (1, 2):
                answer = self.start(traces, num_steps="5", record_shapes=True)
                self.assertEqual((answer.status, answer.body), (200, b"Start profiling.\n"))
                for path in traces.wait_for(2 * count):
                    match = re.fullmatch(r"(\d+\.\d+)-TP-([01])-DP-\2-EP-\2\.trace\.json\.gz", path.name)
                    self.assertTrue(match, path)
                    ids.add(match[1])
                self.assertEqual(len(ids), count)
            by_id = {i: [read(path) for path in sorted(traces.path.glob(f"{i}-*"))] for i in ids}
        self.assertEqual(load.failures, [])
        for ranks in by_id.values():
            first, second = ([event["args"]["step"] for event in spans(rank, "step")] for rank in ranks)
            self.assertEqual(len(first), 5)
            self.assertEqual(first, second)
            self.assertEqual(first, list(range(first[0], first[0] + 5)))
            for rank in ranks:
                self.check_trace(rank)
        log = self.deployment.server.log()
        for rank in (0, 1):
            scope = rf"\[[^\]]* DP{rank} TP{rank} EP{rank}\] "
            for line in (
                rf"Profiling starts\. Traces will be saved to: /\S+ \(with profile id: \d+\.\d+\)",
                r"Stop profiling\.\.\.",
                r"Profiling done\. Traces are saved to: /\S+",
            ):
                self.assertGreaterEqual(len(re.findall(scope + line + "$", log, re.M)), 2, line)

    def check_trace(self, events):
        names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
        self.assertLessEqual(TRACKS, names)
        counters = {event["name"] for event in events if event["ph"] == "C"}
        self.assertLessEqual({"requests", "KV blocks"}, counters)
        for event in spans(events, "step"):
            self.assertIn(event["args"]["kind"], ("decode", "extend", "idle"))
            self.assertLessEqual({"num_tokens", "num_sequences"}, event["args"].keys())
            self.assertGreater(event["dur"], 0)
        begins = sorted(event["id"] for event in events if event["ph"] == "s")
        self.assertEqual(begins, sorted(event["id"] for event in events if event["ph"] == "f"))
        self.assertTrue(begins)
        linear = spans(events, "linear")
        self.assertTrue(all(len(op["args"]["Input Dims"][0]) == 3 for op in linear) and linear)
        self.check_nesting(events)

    def check_nesting(self, events):
        """On every track spans lie inside each other or apart: otherwise viewers draw nonsense."""
        tracks = {}
        for event in events:
            if event["ph"] == "X":
                tracks.setdefault(event["tid"], []).append(event)
        for track in tracks.values():
            open_ends = []
            for event in sorted(track, key=lambda e: (e["ts"], -e["dur"])):
                while open_ends and open_ends[-1] <= event["ts"] + 1e-6:
                    open_ends.pop()
                end = event["ts"] + event["dur"]
                if open_ends:
                    self.assertLessEqual(end, open_ends[-1] + 1e-6, event)
                open_ends.append(end)

    def test_a_start_step_stages_a_prefix_and_one_merged_file(self):
        state = self.deployment.server.state()
        with Traces() as traces, Load(self.port):
            start = state["forward_steps"] + 300
            self.assertEqual(self.start(traces, num_steps=2, start_step=str(start)).status, 200)
            rank = read(traces.wait_for(2)[0])
            self.assertEqual([event["args"]["step"] for event in spans(rank, "step")], [start, start + 1])
        with Traces() as traces, Load(self.port):
            fields = {"num_steps": 3, "profile_by_stage": True, "profile_prefix": "run", "merge_profiles": True}
            self.assertEqual(self.start(traces, **fields).status, 200)
            decode = traces.wait_for(2, "run-*-TP-*-DECODE.trace.json.gz")
            traces.wait_for(2, "run-*-TP-*-EXTEND.trace.json.gz")
            merged = read(traces.wait_for(1, "run-merged-*-DECODE.trace.json.gz")[0])
            self.assertEqual(len(spans(merged, "step")), 6)
            self.assertEqual(len({event["pid"] for event in merged}), 2)
            for path in decode:
                self.assertLessEqual({e["args"]["kind"] for e in spans(read(path), "step")}, {"decode", "idle"})

    def test_orders_that_make_no_sense_are_refused(self):
        self.assertEqual(request(self.port, "POST", "/stop_profile").status, 400)
        with Traces() as traces:
            for body in ({"num_steps": 0}, {"num_steps": "x"}, {"activities": ["MEM"]}, {"output_dir": "/proc/none"}):
                answer = request(self.port, "POST", "/start_profile", {"output_dir": str(traces.path), **body})
                self.assertEqual(answer.status, 400, answer)
            self.assertEqual(self.start(traces).status, 200)
            again = self.start(traces, num_steps=5)
            self.assertEqual(again.status, 400)
            self.assertIn("already in progress", again.json()["message"])
            self.generate({"input_ids": [1, 2, 3], "sampling_params": greedy(4, ignore_eos=True)})
            stopped = request(self.port, "POST", "/stop_profile")
            self.assertEqual(stopped.body, b"Stop profiling. This will take some time.\n")
            self.assertEqual(len(list(traces.path.iterdir())), 2)  # there when the stop is answered

    def test_a_directory_that_goes_away_costs_the_traces_only(self):
        with Traces() as traces:
            gone = traces.path / "gone"
            body = {"output_dir": str(gone)}
            self.assertEqual(request(self.port, "POST", "/start_profile", body).status, 200)
            gone.rmdir()
            stopped = request(self.port, "POST", "/stop_profile")
            self.assertEqual(stopped.status, 503, stopped)
        self.assertIn("Profiling failed: ", self.deployment.server.log())
        self.generate({"input_ids": [1, 2, 3], "sampling_params": greedy(4)})


class PairTest(Case):
    """Prefill and decode apart, profiled with the command."""

    @classmethod
    def make(cls):
        return Pair()

    def run_tandem(self, *args, status=0):
        done = subprocess.run([binary(), *map(str, args)], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, status, done)
        return done.stdout

    def test_one_command_profiles_all_servers_of_a_router_and_merges(self):
        with Traces() as traces, Load(self.port, prompt_id=1):
            url = f"http://127.0.0.1:{self.port}"
            shown = self.run_tandem(
                "profile", "--url", url, "--output-dir", traces.path, "--num-steps", 40, "--merge-profiles"
            )
            self.assertIn("profiling 40 steps on", shown)
            directory = next(traces.path.iterdir())
            self.assertTrue((directory / "server_args.json").exists())
            merged = read(directory / "merged.trace.json.gz")
            roles = {e["args"]["name"].split()[0] for e in merged if e["name"] == "process_name"}
            self.assertEqual(roles, {"prefill", "decode"})
            self.assertEqual(len(spans(read(next(directory.glob("decode*"))), "step")), 40)
            body = {"output_dir": str(directory), "num_steps": 300, "profile_prefix": "long"}  # several arrivals
            self.assertEqual(request(self.deployment.decode.port, "POST", "/start_profile", body).status, 200)
            decode = read(traces.wait_for(1, "long-*.gz")[0])
            self.assertEqual(len(spans(decode, "step")), 300)
            reads = [event for event in decode if event["ph"] in "be" and event["cat"] == "kv_transfer"]
            self.assertTrue(reads)
            prefill = next(directory.glob("prefill*"))
            table = self.run_tandem("profile", "show", prefill)
            for part in ("extend steps: 40", "operator", "GFLOP/s", "mla_prefill", "grouped_mlp", "everything else"):
                self.assertIn(part, table)
        self.run_tandem("profile", "show", "/nonexistent", status=1)
        self.run_tandem("profile", "--url", url, "--mem", status=2)

    def test_the_load_clients_profile_too(self):
        url = f"http://127.0.0.1:{self.port}"
        with Traces() as traces:
            self.run_tandem(
                *("bench_one_batch_server", "--base-url", url, "--batch-size", 2, "--input-len", 16),
                *("--output-len", 24),
                *("--skip-warmup", "--result-filename", traces.path / "result.jsonl", "--profile"),
                *("--profile-steps", 3, "--profile-output-dir", traces.path, "--profile-prefix", "one"),
            )
            names = [path.name for path in traces.wait_for(2)]
            self.assertTrue(all(name.startswith("one-bs-2-il-16-") for name in names), names)
            decode = read(next(traces.path.glob("*-decode*")))
            self.assertEqual(len(spans(decode, "step")), 3)


if __name__ == "__main__":
    harness.main()
