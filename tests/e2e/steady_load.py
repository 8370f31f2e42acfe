"""A load that goes on through a fault, and whether its tokens/s come back afterwards."""

import contextlib
import http.client
import os
import pathlib
import threading
import time

from harness import REFERENCE, Stream, greedy

CHAT = next(prompt["ids"] for prompt in REFERENCE if prompt["name"] == "chat-capital")
LONG = [prompt["ids"] for prompt in REFERENCE if len(prompt["ids"]) > 300]
RETURN_SHARE = 0.95
ATTEMPTS, WINDOWS_AFTER = 3, 4  # others use the machine: a window may be theirs
WARM_UP_S, WINDOW_S = 3, 6


class Load:
    """Streams without end, a few at a time. What they got is counted; an error must be one that a client can read."""

    def __init__(self, port, at_once=6, host="127.0.0.1"):
        self.port, self.host = port, host
        self.counts = [0] * at_once  # of tokens; each thread writes its own
        self.served = 0
        self.errors, self.unclear = {}, []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(at_once)]
        for thread in self.threads:
            thread.start()

    @property
    def tokens(self):
        return sum(self.counts)

    def run(self, i):
        while not self.stopping.is_set():
            ids = LONG[i % len(LONG)] if i % 3 == 0 else CHAT
            body = {"input_ids": ids, "sampling_params": greedy(48, ignore_eos=True), "stream": True}
            try:
                with Stream(self.port, "/generate", body, 60, host=self.host) as stream:
                    if stream.status != 200:
                        self.note(str(stream.status))
                        continue
                    self.read(i, stream)
            except TimeoutError:
                self.unclear.append("a request without an end")
            except (OSError, http.client.HTTPException) as error:
                self.note(type(error).__name__)

    def read(self, i, stream):
        last, seen = {}, 0
        for last in stream:
            count = last.get("meta_info", {}).get("completion_tokens", seen)
            self.counts[i] += count - seen
            seen = count
        if "error" in last:
            self.note(f"error event {last['error'].get('message', '')[:60]}")
        elif stream.done:
            self.served += 1
        else:
            self.unclear.append("a stream that breaks off without a word")

    def note(self, what):
        self.errors[what] = self.errors.get(what, 0) + 1
        self.stopping.wait(0.2)

    def rate(self, over_s):
        before, begin = self.tokens, time.monotonic()
        self.stopping.wait(over_s)
        return (self.tokens - before) / (time.monotonic() - begin)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(90)


@contextlib.contextmanager
def load_on(port, **more):
    load = Load(port, **more)
    try:
        yield load
    finally:
        load.stop()


def own_cpu_s():
    """CPU time of this process and of all below it."""
    parent_of, ticks_of = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parent_of[pid], ticks_of[pid] = int(fields[1]), int(fields[11]) + int(fields[12])

    def is_own(pid):
        while pid in parent_of and pid != os.getpid():
            pid = parent_of[pid]
        return pid == os.getpid()

    return sum(ticks for pid, ticks in ticks_of.items() if is_own(pid)) / os.sysconf("SC_CLK_TCK")


def all_cpu_s():
    """CPU time of all processes, and what a hypervisor took."""
    fields = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class Window:
    """Tokens/s over a few seconds, and the cores that others left to us meanwhile."""

    def __init__(self, load, over_s):
        others, begin = all_cpu_s() - own_cpu_s(), time.monotonic()
        self.rate = load.rate(over_s)
        taken = (all_cpu_s() - own_cpu_s() - others) / (time.monotonic() - begin)
        self.cores = max(os.cpu_count() - taken, 0.1)

    def __str__(self):
        return f"{self.rate:.0f} tokens/s on {self.cores:.2f} cores"


def assert_tokens_return(case, port, fault, host="127.0.0.1"):
    """fault(): breaks something under load and returns when it is mended. Of the windows behind it, in a few attempts,
    one must have the tokens/s from before within RETURN_SHARE; where others took more of the machine than before,
    within that of their rest."""
    shares = []
    for _ in range(ATTEMPTS):
        with load_on(port, host=host) as load:
            load.rate(WARM_UP_S)
            before = Window(load, WINDOW_S)
            fault()
            load.rate(WARM_UP_S)  # the router's circuit breaker closes, the batch fills
            for _ in range(WINDOWS_AFTER):
                after = Window(load, WINDOW_S)
                shares.append(after.rate / (before.rate * min(1, after.cores / before.cores)))
                print(f"{before} before, {after} after ({shares[-1]:.2f}); {load.served} served, {load.errors}")
                if shares[-1] >= RETURN_SHARE:
                    break
        case.assertEqual(load.unclear, [])
        if shares[-1] >= RETURN_SHARE:
            return
    case.fail(f"{max(shares):.2f} of the tokens/s from before came back at best: {shares}")
