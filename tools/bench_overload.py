#!/usr/bin/env python3
"""What becomes of a deployment that is offered more than it can serve: prefill, decode and router on this machine with
the embedded model, and Poisson arrivals at 0.5 to 5 times the measured capacity. Prints a row per load and draws them.

    tools/bench_overload.py [--binary build/release/tandem] [--limit 32] [--queue 32] [--seconds 15] [--plot FILE.svg]

Capacity: completed requests per second of --limit + --queue clients that ask again as soon as they are answered.
Goodput: complete answers per second; refused: 429 and 503; latency: of a whole answer, from the request's first byte.
All prompts differ, so that no cache helps.
"""
import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

SETTLE_S = 2.0  # at the start of each load, not counted
ANSWER_DEADLINE_S = 120.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Deployment:
    def __init__(self, flags):
        self.directory = tempfile.TemporaryDirectory(prefix="tandem-overload-")
        self.children = []
        prefill, bootstrap, decode, self.port = (free_port() for _ in range(4))
        pair = ("--num-threads", 1, "--max-total-tokens", 65536, "--max-running-requests", flags.limit)
        self.start(flags, prefill, "launch_server", "--disaggregation-mode", "prefill",
                   "--disaggregation-bootstrap-port", bootstrap, *pair)
        self.start(flags, decode, "launch_server", "--disaggregation-mode", "decode", *pair)
        self.start(flags, self.port, "router", "--pd-disaggregation", "--prefill", f"http://127.0.0.1:{prefill}",
                   bootstrap, "--decode", f"http://127.0.0.1:{decode}", "--max-concurrent-requests", flags.limit,
                   "--queue-size", flags.queue)
        for port in (prefill, decode, self.port):
            self.wait_ready(port)

    def start(self, flags, port, command, *args):
        log = open(pathlib.Path(self.directory.name, f"{port}.log"), "wb")
        line = [flags.binary, command, "--host", "127.0.0.1", "--port", port, *args]
        self.children.append(subprocess.Popen([str(part) for part in line], stdout=log, stderr=subprocess.STDOUT))

    def wait_ready(self, port):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if any(child.poll() is not None for child in self.children):
                sys.exit("bench_overload: a server ended")
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200:
                    return
            time.sleep(0.1)
        sys.exit(f"bench_overload: port {port} is not ready")

    def close(self):
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15)
            child.kill()
        self.directory.cleanup()


class Client:
    def __init__(self, port, flags):
        self.port, self.flags, self.random = port, flags, random.Random(flags.seed)

    def request_bytes(self):
        ids = [self.random.randrange(300, 900) for _ in range(self.flags.input_len)]
        sampling = {"temperature": 0, "max_new_tokens": self.flags.output_len, "ignore_eos": True}
        body = json.dumps({"input_ids": ids, "sampling_params": sampling}).encode()
        return b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nConnection: close\r\n" + (
            b"Content-Length: %d\r\n\r\n" % len(body)) + body

    async def ask(self, request):
        """(end, seconds, status, has Retry-After); status 0: no answer."""
        begin = time.monotonic()
        answer = b""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(request)
            answer = await reader.read(-1)
            writer.close()
        end = time.monotonic()
        head = answer.split(b"\r\n\r\n")[0].lower()
        status = int(head.split()[1]) if head.startswith(b"http/") else 0
        return end, end - begin, status, b"\r\nretry-after:" in head

    async def closed_loop(self, clients, length_s):
        """Answers per second of so many clients."""
        begin = time.monotonic()
        counted = []

        async def one():
            while time.monotonic() < begin + SETTLE_S + length_s:
                end, _, status, _ = await self.ask(self.request_bytes())
                if status == 200 and begin + SETTLE_S <= end < begin + SETTLE_S + length_s:
                    counted.append(end)

        await asyncio.gather(*(one() for _ in range(clients)))
        return len(counted) / length_s

    async def open_loop(self, rate, length_s):
        """Every answer to arrivals at this rate."""
        times, at = [], 0.0
        while at < SETTLE_S + length_s:
            times.append(at)
            at += self.random.expovariate(rate)
        requests = [self.request_bytes() for _ in times]  # made before, so that the client takes little of the cores
        begin = time.monotonic()
        tasks = []
        for at, request in zip(times, requests):
            await asyncio.sleep(max(0, begin + at - time.monotonic()))
            tasks.append(asyncio.create_task(self.ask(request)))
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            results = await asyncio.gather(*tasks)
        return begin + SETTLE_S, results


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


def row_of(factor, rate, begin, length_s, results):
    counted = [r for r in results if begin <= r[0] < begin + length_s]
    good = [r for r in counted if r[2] == 200]
    refused = [r for r in counted if r[2] in (429, 503)]
    return {
        "factor": factor,
        "offered": rate,
        "goodput": len(good) / length_s,
        "refused": len(refused) / length_s,
        "failed": len([r for r in results if r[2] not in (200, 429, 503)]),
        "no_retry_after": len([r for r in results if r[2] in (429, 503) and not r[3]]),
        "refusal_p50_ms": quantile([r[1] for r in refused], 0.5) * 1e3,
        "refusal_p99_ms": quantile([r[1] for r in refused], 0.99) * 1e3,
        "latency_p50_ms": quantile([r[1] for r in good], 0.5) * 1e3,
        "latency_p99_ms": quantile([r[1] for r in good], 0.99) * 1e3,
    }


def print_table(rows):
    best = max(row["goodput"] for row in rows)
    print("| load | offered req/s | goodput req/s | of the best | refused req/s | refusal p50 / p99 ms |"
          " latency p50 / p99 ms | failed | without Retry-After |")
    print("| --- " * 9 + "|")
    for r in rows:
        refusal = f"{r['refusal_p50_ms']:.0f} / {r['refusal_p99_ms']:.0f}" if r["refused"] else "-"
        print(f"| {r['factor']:g}x | {r['offered']:.1f} | {r['goodput']:.1f} | {r['goodput'] / best:.0%} |"
              f" {r['refused']:.1f} | {refusal} | {r['latency_p50_ms']:.0f} / {r['latency_p99_ms']:.0f} |"
              f" {r['failed']} | {r['no_retry_after']} |")


def panel(rows, left, title, lines):
    """One diagram of lines over the offered load: [(name, colour, key)]."""
    width, height, top = 330, 220, 40
    most_x = max(row["factor"] for row in rows)
    most_y = max(row[key] for row in rows for _, _, key in lines if row[key] == row[key]) * 1.1 or 1
    digits = 0 if most_y >= 20 else 1
    x = lambda value: left + 50 + value / most_x * (width - 70)
    y = lambda value: top + height - value / most_y * height
    out = [f'<text x="{left + 50}" y="24" font-weight="bold">{title}</text>']
    for part in range(5):
        value = most_y * part / 4
        out.append(f'<path d="M{left + 50} {y(value):.1f}H{left + width - 20}" stroke="#ccc"/>')
        out.append(f'<text x="{left + 45}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.{digits}f}</text>')
    for row in rows:
        at = f'x="{x(row["factor"]):.1f}" y="{top + height + 16}"'
        out.append(f'<text {at} text-anchor="middle">{row["factor"]:g}</text>')
    for number, (name, colour, key) in enumerate(lines):
        points = [f"{x(row['factor']):.1f},{y(row[key]):.1f}" for row in rows if row[key] == row[key]]
        out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{left + 60}" y="{top + height / 2 + 14 * number:.0f}" fill="{colour}">{name}</text>')
    out.append(f'<text x="{left + width / 2 + 15}" y="{top + height + 34}" text-anchor="middle">'
               "offered load / capacity</text>")
    return "".join(out)


def plot(path, rows):
    rates = [("goodput", "#0a7d32", "goodput"), ("refused", "#b3261e", "refused")]
    times = [("answer, p50", "#1f5fbf", "latency_p50_ms"), ("answer, p99", "#7a3db8", "latency_p99_ms")]
    times.append(("refusal, p99", "#b3261e", "refusal_p99_ms"))
    drawing = panel(rows, 0, "requests per second", rates) + panel(rows, 350, "ms", times)
    pathlib.Path(path).write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 310" font-family="sans-serif" font-size="11">'
        f'<rect width="700" height="310" fill="#fff"/>{drawing}</svg>\n')


async def measure(port, flags):
    client = Client(port, flags)
    await client.closed_loop(flags.limit, 1)
    capacity = await client.closed_loop(flags.limit + flags.queue, flags.seconds)
    print(f"capacity: {capacity:.1f} req/s with {flags.limit} running and {flags.queue} waiting, {flags.input_len} "
          f"tokens in, {flags.output_len} out; load of the machine {os.getloadavg()[0]:.1f}\n", flush=True)
    rows = []
    for factor in flags.factors:
        begin, results = await client.open_loop(factor * capacity, flags.seconds)
        rows.append(row_of(factor, factor * capacity, begin, flags.seconds, results))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/release/tandem")
    parser.add_argument("--limit", type=int, default=32, help="--max-concurrent-requests of the router")
    parser.add_argument("--queue", type=int, default=32, help="its --queue-size")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15, help="of each load")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 0.75, 1, 1.5, 2, 3, 5])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", help="where to draw the rows, .svg")
    flags = parser.parse_args()
    deployment = Deployment(flags)
    try:
        rows = asyncio.run(measure(deployment.port, flags))
    finally:
        deployment.close()
    print_table(rows)
    if flags.plot:
        plot(flags.plot, rows)


if __name__ == "__main__":
    main()
