"""Handovers whose bytes are spoiled on their way, in real processes: refused, never served, and their blocks come back.
Needs a build with the fault points: cmake --preset faults."""

import collections
import threading

import harness
from harness import REFERENCE, Case, Pair, certain_tokens, greedy, request, wait_until

PROMPTS = [prompt for prompt in REFERENCE if len(certain_tokens(prompt)) >= 8][:8]
ROUNDS, AT_ONCE = 12, 6
# Whichever leg the router hears first.
DIGEST = "the digest of the prompt's cache differs between prefill and decode|decode gave up"


class PairOfOneTry(Pair):
    router_flags = ("--disable-retries", "--disable-circuit-breaker")  # which would hide what is refused


class SpoiledCase(Case):
    fault = None
    loses_peer = False  # and with it whatever else was on its way

    @classmethod
    def make(cls):
        return PairOfOneTry("--kv-digest-sample-rate", 1.0, "--kv-read-fault", cls.fault)

    def ask_all(self):
        """Status and body of each answer, with its prompt."""
        left = collections.deque(PROMPTS * ROUNDS)
        answers = []

        def ask():
            while left:
                prompt = left.popleft()
                body = {"input_ids": prompt["ids"], "sampling_params": greedy(8)}
                answers.append((prompt, request(self.port, "POST", "/generate", body)))

        threads = [threading.Thread(target=ask) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def spoiled(self):
        return self.deployment.decode.log().count("fault point: ")

    def check(self, reason):
        before = self.spoiled()
        answers = self.ask_all()
        spoiled = self.spoiled() - before
        served = [(prompt, answer) for prompt, answer in answers if answer.status == 200]
        refused = [answer for _, answer in answers if answer.status != 200]
        print(f"{self.fault}: {spoiled} frames spoiled, {len(served)} served, {len(refused)} refused")
        self.assertEqual(len(answers), len(PROMPTS) * ROUNDS)
        self.assertGreater(len(served), 0)
        self.assertGreater(len(refused), 0)
        self.assertGreaterEqual(spoiled, len(refused) if not self.loses_peer else 1)
        for prompt, answer in served:
            self.assertEqual(answer.json()["output_ids"], certain_tokens(prompt)[:8], prompt["name"])
        for answer in refused:
            self.assertGreaterEqual(answer.status, 500, answer)
            self.assertRegex(answer.body.decode(), reason)
        self.wait_idle(30)


class FlippedBitsTest(SpoiledCase):
    fault = "flip:0.05"

    def test_a_flipped_bit_is_refused(self):
        self.check(DIGEST)


class OtherBlocksTest(SpoiledCase):
    fault = "other:0.05"

    def test_bytes_of_another_block_are_refused(self):
        self.check(DIGEST)


class StaleBytesTest(SpoiledCase):
    fault = "stale:0.05"

    def test_bytes_of_an_earlier_read_are_refused(self):
        self.check(DIGEST)


class DuplicateTest(SpoiledCase):
    fault = "twice:0.05"
    loses_peer = True

    def test_a_frame_that_comes_twice_ends_the_connection_and_is_not_served(self):
        self.check("bytes that nobody asked for|lost|Losing connection")
        self.assertIn("bytes that nobody asked for", self.deployment.decode.log() + self.deployment.prefill.log())


class RefusedTest(harness.unittest.TestCase):
    def test_a_fault_that_there_is_not_stops_the_start(self):
        server = harness.Server(
            "refused", "launch_server", harness.free_port(), "--disaggregation-mode", "decode", *harness.SERVER_FLAGS,
            "--kv-read-fault", "nonsense",
        )
        try:
            wait_until(lambda: server.child.poll() is not None, 60, "it ends")
            self.assertIn("wanted flip, other, stale or twice", server.log())
        finally:
            server.close()


del Case, SpoiledCase

if __name__ == "__main__":
    harness.main()
