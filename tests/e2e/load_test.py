"""Ten thousand streams at once on one server, and a soak of mixed traffic: memory, fairness, and nothing left behind.

    load_test.py TANDEM_BINARY ThousandsTest|SoakTest        TANDEM_CLIENTS=10000  TANDEM_SOAK_S=1800
"""

import asyncio
import json
import os
import pathlib
import random
import resource
import statistics
import time
import unittest

import harness
from harness import REFERENCE, Combined, greedy, request, wait_until

CLIENTS = int(os.environ.get("TANDEM_CLIENTS", "10000"))
SOAK_S = float(os.environ.get("TANDEM_SOAK_S", "1800"))
PROMPT = next(prompt for prompt in REFERENCE if prompt["name"] == "chat-capital")["ids"]


def resident_mib(server):
    status = pathlib.Path(f"/proc/{server.child.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


class Client:
    """One streaming request over a plain socket; counts the events that came."""

    def __init__(self, number, tokens):
        self.tokens = 0
        self.status = None
        self.error = None
        self.done = False
        body = {
            "input_ids": PROMPT[: 8 + number % 8] + [100 + number % 4000],
            "sampling_params": greedy(tokens, ignore_eos=True),
            "stream": True,
        }
        body = json.dumps(body).encode()
        head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.bytes = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.writer = None

    async def run(self, port):
        try:
            reader, self.writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 14)
            self.writer.write(self.bytes)
            async for line in reader:
                if self.status is None:
                    self.status = int(line.split()[1])
                elif line == b"data: [DONE]\n":
                    self.done = True
                    return
                elif line.startswith(b"data: "):
                    self.tokens += 1
                    if b'"error"' in line:
                        self.error = line[:200]
                elif self.status != 200 and line.startswith(b"{"):
                    self.error = line[:300]
                    return
        except OSError as error:
            self.error = repr(error)
        finally:
            if self.writer:
                self.writer.transport.abort()


class ThousandsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # What the server and this process need.
        wanted = CLIENTS + 2000
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise unittest.SkipTest(f"{CLIENTS} clients need {wanted} file descriptors, the limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        cls.deployment = Combined("--max-running-requests", 256, "--max-queued-requests", CLIENTS)
        cls.deployment.wait_ready()
        cls.server = cls.deployment.server

    @classmethod
    def tearDownClass(cls):
        cls.deployment.close()

    def idle(self):
        return harness.idle_fault(self.server.state()) is None

    def test_all_are_served_evenly(self):
        before = resident_mib(self.server)
        clients = [Client(i, 16) for i in range(CLIENTS)]
        peak, begin = 0.0, time.monotonic()

        async def run():
            nonlocal peak
            tasks = []
            for i, client in enumerate(clients):
                tasks.append(asyncio.create_task(client.run(self.server.port)))
                if i % 200 == 199:
                    await asyncio.sleep(0.02)  # the listen queue is shorter than the crowd
            while not all(task.done() for task in tasks):
                peak = max(peak, resident_mib(self.server))
                await asyncio.sleep(0.5)

        asyncio.run(run())
        took = time.monotonic() - begin
        bad = [client for client in clients if client.status != 200 or client.error or not client.done]
        self.assertEqual(len(bad), 0, [(c.status, c.error, c.tokens) for c in bad[:5]])
        tokens = sorted(client.tokens for client in clients)
        wait_until(self.idle, 5, "baseline after the last answer")
        print(
            f"{CLIENTS} clients, {sum(tokens)} events in {took:.0f} s; resident {before:.0f} MiB before, "
            f"{peak:.0f} at most "
            f"({(peak - before) * 1024 / CLIENTS:.1f} KiB a client), {resident_mib(self.server):.0f} after"
        )
        self.assertEqual(tokens[0], tokens[-1])
        self.assertLess((peak - before) * 1024 / CLIENTS, 64)

    def test_when_all_hang_up_everything_comes_back_within_five_seconds(self):
        clients = [Client(i, 400) for i in range(CLIENTS)]
        running = []

        async def run():
            tasks = []
            for i, client in enumerate(clients):
                tasks.append(asyncio.create_task(client.run(self.server.port)))
                if i % 200 == 199:
                    await asyncio.sleep(0.02)
            for _ in range(600):  # until the server has seen them all
                state = self.server.state()
                if state["running"] + state["queued"] >= CLIENTS * 0.99 or sum(c.tokens for c in clients) > 20000:
                    break
                await asyncio.sleep(0.1)
            running.extend(sorted(c.tokens for c in clients if c.tokens))
            for client in clients:
                if client.writer:
                    client.writer.transport.abort()
            for task in tasks:
                task.cancel()

        asyncio.run(run())
        begin = time.monotonic()
        wait_until(self.idle, 5, "baseline after all have hung up")
        print(f"baseline {time.monotonic() - begin:.1f} s after {CLIENTS} clients hung up; resident "
              f"{resident_mib(self.server):.0f} MiB")
        if len(running) > 100:
            # Of those that run at the same time none is left behind.
            p50, p99 = statistics.median(running), running[int(len(running) * 0.99)]
            print(f"tokens of {len(running)} running clients: p50 {p50}, p99 {p99}")


class SoakTest(unittest.TestCase):
    """Mixed traffic for half an hour: memory stays where it is, and nothing fails."""

    def test_memory_is_flat_and_nothing_fails(self):
        deployment = harness.Pair()
        self.addCleanup(deployment.close)
        deployment.wait_ready()
        random.seed(1)
        stop = time.monotonic() + SOAK_S
        counts = {"served": 0, "hung up": 0}
        failures = []

        async def one(i):
            while time.monotonic() < stop:
                kind = random.random()
                client = Client(random.randrange(1 << 20), random.choice([1, 4, 16, 64]))
                if kind < 0.15:  # hangs up
                    with_timeout = asyncio.wait_for(client.run(deployment.front.port), random.random() * 0.2)
                    try:
                        await with_timeout
                    except TimeoutError:
                        counts["hung up"] += 1
                        continue
                else:
                    await client.run(deployment.front.port)
                if client.status != 200 or client.error or not client.done:
                    failures.append((client.status, client.error))
                counts["served"] += 1

        samples = []

        async def watch():
            while time.monotonic() < stop:
                now = SOAK_S - (stop - time.monotonic())
                samples.append((now, *(resident_mib(s) for s in (*deployment.servers, deployment.front))))
                await asyncio.sleep(max(1.0, SOAK_S / 200))

        async def run():
            await asyncio.gather(watch(), *(one(i) for i in range(24)))

        asyncio.run(run())
        self.assertEqual(failures, [], f"{len(failures)} failures")
        half = samples[len(samples) // 2 :]
        for name, column in (("prefill", 1), ("decode", 2), ("router", 3)):
            slope = statistics.linear_regression([s[0] for s in half], [s[column] for s in half]).slope * 3600
            print(f"{name}: {half[0][column]:.1f} to {half[-1][column]:.1f} MiB resident, {slope:+.1f} MiB an hour")
            self.assertLess(slope * SOAK_S / 3600, 8.0, name)
        print(counts)
        wait_until(
            lambda: all(harness.idle_fault(s.state()) is None for s in deployment.servers), 15, "baseline at the end"
        )


if __name__ == "__main__":
    harness.main()
