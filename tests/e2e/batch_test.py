"""Many prompts in one POST, as bench_one_batch_server sends them: memory by the size of the body, and nobody else is
stalled. TANDEM_BATCH_PROMPTS says how many, TANDEM_BATCH_PROMPT_TOKENS of how many tokens."""

import json
import os
import pathlib
import threading
import time

import harness
from harness import Case, Pair, Stream, greedy, request

PROMPTS = int(os.environ.get("TANDEM_BATCH_PROMPTS", "2000"))
PROMPT_TOKENS = int(os.environ.get("TANDEM_BATCH_PROMPT_TOKENS", "200"))
WARM_UP_PROMPTS = 500  # so many that the pools of the transfer have grown to what they need
# The same in all: the cache computes them once, so that the test is not one of prefill speed.
SHARED_TOKENS = PROMPT_TOKENS - 16
NEW_TOKENS = 2
BATCH_DEADLINE_S = 3000.0
# Resident memory beyond the idle process: so many times the body. A small body does not outweigh what frames in flight
# and freed pages take whatever its size.
BODY_FACTOR = 3
SMALL_BODY = 8 << 20
FIXED_BYTES = 3 << 20
# A stream that runs when the batch comes, and questions asked meanwhile, wait no longer than this.
STALL_S = 10.0


def memory(server, field):
    """VmRSS or VmHWM, in bytes."""
    for line in pathlib.Path(f"/proc/{server.child.pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


def prompt(i):
    """Ids of one prompt; the last ones make it different from every other."""
    return [100 + (j * 7) % 300 for j in range(SHARED_TOKENS)] + [
        100 + (i // 300 if j == 0 else i * 31 + j) % 300 for j in range(PROMPT_TOKENS - SHARED_TOKENS)
    ]


class BatchTest(Case):
    @classmethod
    def make(cls):
        # Far less than the batch may take: what waits for decode's memory is not late, and decode says what waits.
        os.environ.setdefault("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", "20")
        return Pair("--enable-priority-scheduling")

    def others(self, done, gaps):
        """Asks small things until done is set; appends what each took."""
        while not done.is_set():
            for path in ("/health", "/v1/models", "/get_server_info"):
                begin = time.monotonic()
                self.assertEqual(request(self.port, "GET", path).status, 200)
                gaps.append((time.monotonic() - begin, path))
            begin = time.monotonic()
            body = {"input_ids": [5, 6, 7], "priority": 10, "sampling_params": greedy(2, ignore_eos=True)}
            answer = request(self.port, "POST", "/generate", body)
            self.assertEqual(answer.status, 200, answer)
            gaps.append((time.monotonic() - begin, "a request of higher priority"))
            begin = time.monotonic()
            body = {"messages": [{"role": "user", "content": "Hi"}], "priority": 10, "max_tokens": 4, "temperature": 0}
            answer = request(self.port, "POST", "/v1/chat/completions", body)
            self.assertEqual(answer.status, 200, answer)
            gaps.append((time.monotonic() - begin, "a chat of higher priority"))
            done.wait(0.1)

    def stream(self, done, gaps):
        """Reads streams, token by token, until done is set; appends the longest gap of each."""
        while not done.is_set():
            body = {
                "input_ids": [8, 9, 10],
                "stream": True,
                "priority": 10,
                "sampling_params": greedy(500, ignore_eos=True),
            }
            last, longest = None, 0
            with Stream(self.port, "/generate", body) as events:
                for _ in events:
                    now = time.monotonic()
                    longest = max(longest, now - last if last else 0)
                    last = now
                self.assertTrue(events.done)
            gaps.append((longest, "between two events of a stream"))

    def test_one_post_of_many_prompts(self):
        body = json.dumps(
            {"input_ids": [prompt(i) for i in range(PROMPTS)], "sampling_params": greedy(NEW_TOKENS, ignore_eos=True)}
        ).encode()
        # Touches the cache and the workspaces, so that what grows from here on is the batch's.
        warm_up = [prompt(PROMPTS + i) for i in range(WARM_UP_PROMPTS)]
        self.generate({"input_ids": warm_up, "sampling_params": greedy(NEW_TOKENS, ignore_eos=True)})
        processes = {self.deployment.router, *self.deployment.servers}
        before = {server: memory(server, "VmRSS") for server in processes}
        for server in processes:
            pathlib.Path(f"/proc/{server.child.pid}/clear_refs").write_text("5")  # the peak counts from here

        done, gaps, faults = threading.Event(), [], []

        def guarded(work):
            try:
                work(done, gaps)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=guarded, args=(work,)) for work in (self.others, self.stream)]
        for thread in threads:
            thread.start()
        begin = time.monotonic()
        try:
            answer = request(self.port, "POST", "/generate", body, deadline_s=BATCH_DEADLINE_S)
        finally:
            elapsed = time.monotonic() - begin
            done.set()
            for thread in threads:
                thread.join(harness.REQUEST_DEADLINE_S)
        self.assertEqual(answer.status, 200, answer)
        answers = answer.json()
        self.assertEqual(len(answers), PROMPTS)
        self.assertEqual({len(one["output_ids"]) for one in answers}, {NEW_TOKENS})
        self.assertEqual(faults, [])

        print(f"body {len(body)} bytes, {PROMPTS} prompts, {elapsed:.1f} s, slowest other {max(gaps)}")
        allowed = BODY_FACTOR * len(body) + (FIXED_BYTES if len(body) < SMALL_BODY else 0)
        for server in processes:
            grown = memory(server, "VmHWM") - before[server]
            print(f"{server.name}: {grown} bytes beyond {before[server]}: {grown / len(body):.2f} times the body")
        for server in processes:
            self.assertLessEqual(memory(server, "VmHWM") - before[server], allowed, server.name)
        self.assertLess(max(gaps)[0], STALL_S, max(gaps))
        self.wait_idle()


if __name__ == "__main__":
    harness.main()
