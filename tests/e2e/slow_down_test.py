"""Decode slowed down until its ranks are full, then let go; and the same without a sleep, by holding decode back."""

import re
import statistics
import subprocess
import threading
import time

import harness
from harness import REFERENCE, Case, Pair, Server, certain_tokens, greedy, request, wait_until

PROMPTS = [prompt for prompt in REFERENCE if len(prompt["ids"]) < 50 and len(certain_tokens(prompt)) >= 8]
NEW_TOKENS = 8
REQUESTS = 200
SLEEP_S = 2.0
RUNNING_PER_RANK = 16
HELD_PER_RANK = 8
HELD_REQUESTS = 48
# Far more than a request of each rank needs: the machine may be busy.
PATIENCE_S = 90


class TwoRanksOfDecode(Pair):
    def start_decode(self):
        self.decode = Server(
            "decode",
            "launch_server",
            self.decode_port,
            *("--disaggregation-mode", "decode", "--decode-log-interval", 1, "--enable-metrics"),
            *("--tp-size", 2, "--dp-size", 2, "--enable-dp-attention", "--moe-a2a-backend", "deepep"),
            *("--max-running-requests", 2 * RUNNING_PER_RANK, "--num-reserved-decode-tokens", 16),
            *harness.SERVER_FLAGS,
        )


class SlowDownTest(Case):
    @classmethod
    def make(cls):
        return TwoRanksOfDecode()

    def setUp(self):
        self.decode = self.deployment.decode
        self.log_begin = len(self.decode.log())
        self.answers, self.threads = [], []

    def tearDown(self):
        request(self.decode.port, "POST", "/slow_down", {"forward_sleep_time": None})
        request(self.decode.port, "POST", "/hold_admission", {"running_requests": None})
        for thread in self.threads:
            thread.join(harness.REQUEST_DEADLINE_S)

    def wait_idle(self, deadline_s=15):
        def idle():
            return not any(map(harness.idle_fault, [*self.states(), self.deployment.prefill.state()]))

        wait_until(idle, deadline_s, "idle")

    def states(self):
        return request(self.decode.port, "GET", "/get_server_info").json()["internal_states"]

    def log(self):
        return self.decode.log()[self.log_begin :]

    def send(self, count):
        """So many requests, each of its own client."""

        def one(index):
            prompt = PROMPTS[index % len(PROMPTS)]
            body = {"input_ids": prompt["ids"], "sampling_params": greedy(NEW_TOKENS, ignore_eos=True)}
            self.answers.append((prompt, request(self.port, "POST", "/generate", body)))

        started = [threading.Thread(target=one, args=(index,)) for index in range(count)]
        for thread in started:
            thread.start()
        self.threads += started

    def expect_answers(self, count):
        for thread in self.threads:
            thread.join(harness.REQUEST_DEADLINE_S)
        self.assertEqual(len(self.answers), count)
        for prompt, answer in self.answers:
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(answer.json()["output_ids"], prompt["greedy"][:NEW_TOKENS], prompt["name"])

    def tandem(self, *args):
        return subprocess.run(
            [harness.binary(), *map(str, args)], capture_output=True, text=True, timeout=60, check=False
        )

    def running_sizes(self, rank):
        """#running-req of the decode batches of a rank, in order."""
        line = re.compile(rf"DP{rank} TP{rank} EP{rank}\] Decode batch, #running-req: (\d+),")
        return [int(size) for size in line.findall(self.log())]

    def wait_answering(self, condition, what):
        """Until the condition holds; health and control endpoints are asked all the while."""
        took = []

        def holds():
            for path in ("/health", "/get_server_info", "/get_load", "/metrics"):
                begin = time.monotonic()
                self.assertEqual(request(self.decode.port, "GET", path).status, 200, path)
                took.append(time.monotonic() - begin)
            return condition()

        wait_until(holds, PATIENCE_S, what)
        self.assertLess(statistics.median(took), 1)
        self.assertLess(max(took), SLEEP_S, "nothing waits for a sleep")

    def test_sleeping_decode_fills_up_and_null_restores_it(self):
        done = self.tandem("slow_down", "--router", f"http://127.0.0.1:{self.port}", "--sleep", SLEEP_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f":{self.deployment.decode_port}", done.stdout)
        self.assertNotIn(f":{self.deployment.prefill_port}", done.stdout)
        self.send(REQUESTS)

        def full():
            states = self.states()
            self.assertEqual([state["forward_sleep_time"] for state in states], [SLEEP_S] * 2)
            return [state["running"] for state in states] == [RUNNING_PER_RANK] * 2

        self.wait_answering(full, "both ranks full")
        self.wait_answering(lambda: max(self.running_sizes(0) or [0]) == RUNNING_PER_RANK, "a full batch, logged")
        self.assertEqual(max(self.running_sizes(1)), RUNNING_PER_RANK)
        for rank in range(2):
            self.assertIn(f"DP{rank} TP{rank} EP{rank}] Scheduler.run_batch sleep {SLEEP_S}s", self.log())
        self.assertIn('tandem:forward_sleep_seconds{dp_rank="1"', self.metrics())
        sleeps = self.log().count("Scheduler.run_batch sleep")
        done = self.tandem("slow_down", "--url", f"http://127.0.0.1:{self.deployment.decode_port}", "--sleep", "null")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.expect_answers(REQUESTS)
        # Two ranks, a line each; one more sleep may have begun before the order came.
        self.assertLessEqual(self.log().count("Scheduler.run_batch sleep"), sleeps + 4)
        self.assertEqual([state["forward_sleep_time"] for state in self.states()], [None, None])
        self.wait_idle()

    def metrics(self):
        return request(self.decode.port, "GET", "/metrics").body.decode()

    def test_held_decode_begins_with_as_many_as_asked_for(self):
        refused = request(self.decode.port, "POST", "/hold_admission", {"running_requests": RUNNING_PER_RANK + 1})
        self.assertEqual(refused.status, 400, refused)
        self.assertIn(str(RUNNING_PER_RANK), refused.json()["message"])
        held = request(
            self.decode.port, "POST", "/hold_admission", {"running_requests": HELD_PER_RANK, "timeout_s": PATIENCE_S}
        )
        self.assertEqual(held.status, 200, held)
        self.send(HELD_PER_RANK - 1)  # too few for either rank
        collected = lambda: sum(state["running"] for state in self.states()) == HELD_PER_RANK - 1
        self.wait_answering(collected, "all of them collected")
        self.assertEqual([state["held_for_requests"] for state in self.states()], [HELD_PER_RANK] * 2)
        self.assertEqual((self.running_sizes(0), self.running_sizes(1), self.answers), ([], [], []))
        # The router's rooms are random: that one of two ranks gets fewer than eight of these happens once in 10^6 runs.
        self.send(HELD_REQUESTS - HELD_PER_RANK + 1)
        self.expect_answers(HELD_REQUESTS)
        for rank in range(2):
            self.assertGreaterEqual(self.running_sizes(rank)[0], HELD_PER_RANK)
        self.assertIn("Hold admission ends", self.log())
        self.assertIn("every rank is ready", self.log())
        self.assertNotIn("sleep", self.log())
        self.assertEqual([state["held_for_requests"] for state in self.states()], [None, None])
        self.wait_idle()


if __name__ == "__main__":
    harness.main()
