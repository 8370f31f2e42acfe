"""Recording of experts on a server of two ranks: modes, endpoints, files, balancedness lines and metrics."""

import os
import re
import subprocess
import tempfile

import harness
from harness import REFERENCE, Case, Combined, binary, greedy, request, wait_until

FLAGS = ("--tp-size", 2, "--dp-size", 2, "--enable-dp-attention", "--moe-a2a-backend", "deepep")
LINE = re.compile(
    r"\[Expert Balancedness\] forward_pass_id=\d+ current_pass_balancedness=([01]\.\d{3}) "
    r"last_10_average_balancedness=[01]\.\d{3} last_100_average_balancedness=[01]\.\d{3} "
    r"last_1000_average_balancedness=[01]\.\d{3}  gpu_physical_count_sum=(\d+)"
)
NEW_TOKENS = 8
PROMPT = next(prompt for prompt in REFERENCE if prompt["name"] == "digits")["ids"]
PAIRS_PER_TOKEN = 6 * 5  # six experts in each of five layers


class Recorder(Case):
    """The steps; the classes below say with what flags."""

    flags = ()

    @classmethod
    def make(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="tandem-recorder-")
        os.environ["SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"] = cls.directory.name
        os.environ["SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL"] = "1"
        return Combined(*FLAGS, *cls.flags)

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.directory.cleanup()

    def serve_one(self):
        """The pairs that it computes: what the prefix cache has of the prompt, and the last new token, are not."""
        answer = self.generate({"input_ids": PROMPT, "sampling_params": greedy(NEW_TOKENS, ignore_eos=True)})
        return (len(PROMPT) - answer["meta_info"]["cached_tokens"] + NEW_TOKENS - 1) * PAIRS_PER_TOKEN

    def call(self, verb):
        answer = request(self.port, "POST", f"/{verb}_expert_distribution_record")
        self.assertEqual(answer.status, 200, answer)
        return answer.body.decode().splitlines()

    def shown_pairs(self, paths):
        result = subprocess.run([binary(), "experts", "show", *paths], capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        return int(re.search(r"([\d,]+) pairs", result.stdout)[1].replace(",", ""))

    def dump(self):
        text, *paths = self.call("dump")
        self.assertEqual(text, "Dump expert distribution record.")
        for path in paths:
            self.assertEqual(os.path.dirname(path), self.directory.name)
        return paths


class NoModeTest(Recorder):
    def test_recording_starts_without_a_mode_and_is_shown(self):
        self.assertEqual(self.call("start"), ["Start recording expert distribution."])
        pairs = self.serve_one()
        self.assertEqual(self.call("stop"), ["Stop recording expert distribution."])
        self.serve_one()
        paths = self.dump()
        self.assertEqual(len(paths), 1)
        self.assertEqual(self.shown_pairs(paths), pairs)
        self.assertNotIn("[Expert Balancedness]", self.deployment.front.log())


class PerPassTest(Recorder):
    flags = (
        *("--expert-distribution-recorder-mode", "per_pass"),
        *("--enable-expert-distribution-metrics", "--enable-metrics"),
    )

    def test_passes_are_recorded_from_the_start_with_lines_and_metrics(self):
        self.dump()  # of the warm-up
        before = len(LINE.findall(self.deployment.front.log()))
        pairs = self.serve_one()
        paths = self.dump()
        self.assertEqual(len(paths), 2)
        self.assertEqual(self.shown_pairs(paths), pairs)

        def lines():
            return LINE.findall(self.deployment.front.log())[before:]

        wait_until(lambda: len(lines()) >= NEW_TOKENS, 10, "a line per pass")
        self.assertEqual(sum(int(count) for _, count in lines()), pairs)
        metrics = request(self.port, "GET", "/metrics").body.decode()
        for name in (
            r'tandem:eplb_pass_balancedness{[^}]*} [01]',
            r'tandem:eplb_window_balancedness{[^}]*passes="1000"[^}]*} [01]',
            r'sglang:eplb_gpu_physical_count_bucket{layer="1",le="1"} [1-9]',
        ):
            self.assertRegex(metrics, name)


class PerTokenTest(Recorder):
    flags = ("--expert-distribution-recorder-mode", "per_token", "--expert-distribution-recorder-buffer-size", 3)

    def test_the_last_passes_are_kept_and_a_plan_is_made_from_them(self):
        self.call("start")
        self.serve_one()
        paths = self.dump()
        self.assertIn("passes<=3", self.deployment.front.log())
        self.assertIn(": 3 passes, ", self.deployment.front.log())
        self.assertEqual(self.shown_pairs(paths), 3 * PAIRS_PER_TOKEN)
        plan = subprocess.run(
            [binary(), "experts", "plan", "--load", *paths, "--slots", "36", "--gpus", "2"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(plan.returncode, 0, plan.stderr)


if __name__ == "__main__":
    harness.main()
