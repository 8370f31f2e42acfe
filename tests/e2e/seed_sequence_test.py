"""The seeds' decode sequence, end to end: slowed down until both ranks are full, let go, five steps profiled, expert
hits recorded and dumped, tokens/s/GPU by both formulas; and every request that piled up gets its whole output."""

import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import time

import harness
from harness import REFERENCE, Case, binary, certain_tokens, greedy, request, wait_until
from slow_down_test import RUNNING_PER_RANK, TwoRanksOfDecode

PROMPTS = [prompt for prompt in REFERENCE if len(prompt["ids"]) < 50]
REQUESTS = 200
NEW_TOKENS = 160
SLEEP_S = 0.5
PROFILES = 3
PROFILED_STEPS = 5
STEPS_BEHIND = 40  # that the log has of the time right behind a profile
RECORDED_STEPS = 20
PAIRS_PER_TOKEN = 6 * 5  # six experts in each of five layers
# How far by step (of the trace) and by counters (of the log, seconds around the profile) may lie apart, in the median
# of the profiles. Five steps on a machine that others use are a small sample; a rank, a GPU or a step counted twice
# would be a factor of two.
TOLERANCE = 0.4
PATIENCE_S = 60


class SeedSequenceTest(Case):
    @classmethod
    def make(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="tandem-seed-")
        os.environ["SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"] = cls.directory.name
        return TwoRanksOfDecode()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.directory.cleanup()

    def tandem(self, *args):
        done = subprocess.run([binary(), *map(str, args)], capture_output=True, text=True, timeout=90, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def states(self):
        return request(self.deployment.decode.port, "GET", "/get_server_info").json()["internal_states"]

    def running(self):
        return [state["running"] for state in self.states()]

    def steps(self):
        return self.states()[0]["forward_steps"]

    def send_all(self):
        """One POST of all requests, on a thread; its answer goes to self.answer."""

        def post():
            body = {
                "input_ids": [PROMPTS[i % len(PROMPTS)]["ids"] for i in range(REQUESTS)],
                "sampling_params": greedy(NEW_TOKENS, ignore_eos=True),
            }
            self.answer = request(self.port, "POST", "/generate", body)

        self.answer = None
        self.client = threading.Thread(target=post)
        self.client.start()
        self.addCleanup(self.client.join, harness.REQUEST_DEADLINE_S)
        self.addCleanup(
            request, self.deployment.decode.port, "POST", "/slow_down", {"forward_sleep_time": None}
        )

    def all_answer(self):
        """Health and control endpoints of all three, each at once."""
        deployment = self.deployment
        paths = [(server, "/health") for server in (deployment.router, deployment.prefill, deployment.decode)]
        paths += [(deployment.decode, path) for path in ("/get_server_info", "/get_load", "/metrics")]
        for server, path in paths:
            begin = time.monotonic()
            self.assertEqual(request(server.port, "GET", path).status, 200, path)
            self.took.append(time.monotonic() - begin)

    def pile_up(self, router):
        self.tandem("slow_down", "--router", router, "--sleep", SLEEP_S)
        self.send_all()
        self.took = []

        def full():
            self.all_answer()
            return self.running() == [RUNNING_PER_RANK] * 2

        wait_until(full, PATIENCE_S, "both ranks full")
        self.assertLess(statistics.median(self.took), SLEEP_S, "nothing waits for a sleep")

    def profile(self, number):
        """Five steps of each rank of decode, while it runs full: the traces, and a window of the log around them."""
        traces = pathlib.Path(self.directory.name, f"traces-{number}")
        begin = time.time()
        decode = f"http://127.0.0.1:{self.deployment.decode.port}"
        self.tandem("profile", "--url", decode, "--output-dir", traces, "--num-steps", PROFILED_STEPS)
        found = lambda: sorted(traces.rglob("*.trace.json.gz"))
        wait_until(lambda: len(found()) == 2, PATIENCE_S, "a trace of each rank")
        steps = self.steps()
        wait_until(lambda: self.steps() >= steps + STEPS_BEHIND, PATIENCE_S, "steps behind the profile")
        stamps = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) for at in (begin, time.time() + 1)]
        return found(), ",".join(stamps)

    def record(self, router):
        where = ("--router", router, "--role", "decode")
        self.tandem("experts", "record", *where)
        begin = self.steps()
        wait_until(lambda: self.steps() >= begin + RECORDED_STEPS, PATIENCE_S, "recorded steps")
        self.tandem("experts", "stop", *where)
        self.tandem("experts", "dump", *where)
        (dump,) = pathlib.Path(self.directory.name).glob("expert_distribution_recorder_*.pt")
        shown = self.tandem("experts", "show", dump)
        return int(re.search(r"([\d,]+) pairs", shown)[1].replace(",", ""))

    def throughput(self, *flags):
        out = self.tandem("throughput", *flags, "--phase", "decode", "--format", "json", "--tolerance", TOLERANCE)
        (report,) = json.loads(out)
        return report

    def test_a_slowed_down_decode_is_filled_profiled_recorded_and_measured(self):
        router = f"http://127.0.0.1:{self.port}"
        self.pile_up(router)
        self.tandem("slow_down", "--router", router, "--sleep", "null")
        profiles = [self.profile(number) for number in range(PROFILES)]
        pairs = self.record(router)
        self.assertIsNone(self.answer, "the load ended before it was measured")
        self.client.join(harness.REQUEST_DEADLINE_S)

        self.assertEqual(self.answer.status, 200, self.answer)
        answers = self.answer.json()
        self.assertEqual(len(answers), REQUESTS)
        for i, answer in enumerate(answers):
            prompt = PROMPTS[i % len(PROMPTS)]
            certain = certain_tokens(prompt)
            self.assertEqual(answer["output_ids"][: len(certain)], certain, prompt["name"])
            self.assertEqual(len(answer["output_ids"]), NEW_TOKENS)

        log = self.deployment.decode.log()
        for rank in range(2):
            sizes = re.findall(rf"DP{rank} TP{rank} EP{rank}\] Decode batch, #running-req: (\d+),", log)
            self.assertEqual(max(map(int, sizes)), RUNNING_PER_RANK)
        self.assertEqual(pairs % PAIRS_PER_TOKEN, 0)
        # Full ranks, but that a wave of requests may have ended meanwhile.
        self.assertGreater(pairs, RECORDED_STEPS * RUNNING_PER_RANK * PAIRS_PER_TOKEN)

        self.check_throughput(self.deployment.decode.log_file.name, profiles)
        self.wait_idle()

    def check_throughput(self, log, profiles):
        differences = []
        for traces, window in profiles:
            both = self.throughput("--log", log, "--window", window, "--trace", *traces)
            self.assertEqual((both["num_ranks"], both["num_gpus"]), (2, 2), both)
            self.assertGreater(both["tokens_per_step"], 1.8 * RUNNING_PER_RANK)
            self.assertLessEqual({finding["doubt"] for finding in both["findings"]}, {"formulas_differ"}, both)
            self.assertIn("trace", both["step_source"])
            differences.append(both["difference"])
            # Each source by itself: the traces say how large their steps' batches were, the log how fast its steps.
            trace, alone = self.throughput("--trace", *traces), self.throughput("--log", log, "--window", window)
            self.assertAlmostEqual(trace["by_step"] / both["by_step"], 1, delta=0.1, msg=(trace, both))
            self.assertAlmostEqual(alone["by_counters"] / both["by_counters"], 1, delta=0.1, msg=(alone, both))
            for report in (trace, alone):
                self.assertAlmostEqual(report["by_step"] / report["by_counters"], 1, delta=TOLERANCE, msg=report)
        self.assertLess(abs(statistics.median(differences)), TOLERANCE, differences)

    def wait_idle(self, deadline_s=15):
        def idle():
            return not any(map(harness.idle_fault, [*self.states(), self.deployment.prefill.state()]))

        wait_until(idle, deadline_s, "idle")


if __name__ == "__main__":
    harness.main()
