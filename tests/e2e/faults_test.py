"""kill -9 of any side: what ran ends with an error, all blocks come back, service resumes with the restarted side."""

import contextlib
import http.client
import threading
import time

import harness
from harness import REFERENCE, Case, Pair, Stream, greedy, request, wait_until
from steady_load import assert_tokens_return

PROMPT = next(prompt for prompt in REFERENCE if prompt["name"] == "chat-capital")
EXPECTED = PROMPT["greedy"][:8]  # "The capital of France is Paris." and end of sentence
# Long ones keep the prefill side busy, short ones run on the decode side: some are in every stage when a side dies.
PREFILLS = [prompt["ids"] for prompt in REFERENCE if len(prompt["ids"]) > 300]
LOST_DEADLINE_S = 30
RESUME_DEADLINE_S = 60


class Crowd:
    """Requests of all kinds at once; each must come to an end."""

    def __init__(self, port, count=12):
        self.ends = [None] * count
        self.streaming = set()  # the numbers of the streams that have begun
        self.threads = [threading.Thread(target=self.ask, args=(port, i)) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def ask(self, port, i):
        ids = PROMPT["ids"] if i % 3 == 0 else PREFILLS[i % len(PREFILLS)]
        body = {"input_ids": ids, "sampling_params": greedy(400, ignore_eos=True)}
        try:
            if i % 2:
                self.ends[i] = request(port, "POST", "/generate", body, deadline_s=LOST_DEADLINE_S * 2).status
                return
            with Stream(port, "/generate", {**body, "stream": True}, LOST_DEADLINE_S * 2) as stream:
                if stream.status != 200:
                    self.ends[i] = stream.status
                    return
                last = None
                for last in stream:
                    self.streaming.add(i)
                self.ends[i] = f"{'done' if stream.done else 'cut'} with {last['error'] if 'error' in last else 'text'}"
        except (OSError, http.client.HTTPException) as error:
            self.ends[i] = f"{type(error).__name__}: {error}"

    def join(self, deadline_s):
        for thread in self.threads:
            thread.join(deadline_s)
        return self.ends


class FaultsTest(Case):
    @classmethod
    def make(cls):
        return Pair()

    def answers_like_the_reference(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            body = {"input_ids": PROMPT["ids"], "sampling_params": greedy(64)}
            answer = request(self.port, "POST", "/generate", body, deadline_s=10)
            return answer.status == 200 and answer.json()["output_ids"] == EXPECTED
        return False

    def serves_again(self, what):
        """Three answers: so many close the router's circuit breaker, which refuses a crowd until then."""
        for _ in range(3):
            wait_until(self.answers_like_the_reference, RESUME_DEADLINE_S, what)

    def kill_and_recover(self, victim, survivor, restart, num_streams):
        self.serves_again("service before the fault")
        crowd = Crowd(self.port)
        wait_until(lambda: len(crowd.streaming) >= num_streams, 30, "streams have begun")
        victim.kill()
        begin = time.monotonic()
        stamps = {}
        ends = crowd.join(LOST_DEADLINE_S)
        self.assertTrue(all(end is not None for end in ends), f"every request ends: {ends}")
        self.assertTrue(all("Timeout" not in str(end) for end in ends), ends)
        stamps["ends"] = time.monotonic() - begin
        print(f"ends after kill -9 of {victim.name}: {sorted(map(str, ends))}")
        victim.log_file.close()
        self.assertIsNone(survivor.child.poll(), f"{survivor.name} lives on")
        wait_until(
            lambda: harness.idle_fault(survivor.state()) is None,
            LOST_DEADLINE_S,
            f"{survivor.name} has its blocks back",
        )
        stamps["blocks"] = time.monotonic() - begin
        restart()
        self.deployment.wait_ready()
        stamps["ready"] = time.monotonic() - begin
        self.serves_again("service with the restarted side")
        stamps["service"] = time.monotonic() - begin
        self.wait_idle()
        print("seconds after the kill:", {name: round(stamp, 1) for name, stamp in stamps.items()})

    def test_tokens_per_second_return_after_either_side_was_restarted(self):
        pair = self.deployment
        for victim, restart in (("prefill", pair.start_prefill), ("decode", pair.start_decode)):
            with self.subTest(victim=victim):
                self.serves_again("service before the fault")

                def die_and_come_back():
                    server = getattr(pair, victim)
                    server.kill()
                    server.log_file.close()
                    restart()
                    pair.wait_ready()
                    self.serves_again("service with the restarted side")

                assert_tokens_return(self, self.port, die_and_come_back)
                self.wait_idle(LOST_DEADLINE_S)

    def test_prefill_dies(self):
        pair = self.deployment
        self.kill_and_recover(pair.prefill, pair.decode, pair.start_prefill, 1)  # the first: others wait or compute

    def test_decode_dies(self):
        pair = self.deployment
        self.kill_and_recover(pair.decode, pair.prefill, pair.start_decode, 3)

    def test_router_dies(self):
        pair = self.deployment
        self.serves_again("service before the fault")
        crowd = Crowd(self.port)
        wait_until(lambda: len(crowd.streaming) >= 3, 30, "streams have begun")
        pair.router.kill()
        self.assertTrue(all(end is not None for end in crowd.join(LOST_DEADLINE_S)))
        self.wait_idle(LOST_DEADLINE_S)  # both sides notice that nobody listens
        pair.start_router(pair.router.port)
        pair.wait_ready()
        self.serves_again("service with the restarted router")


del Case

if __name__ == "__main__":
    harness.main()
