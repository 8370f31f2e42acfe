#!/usr/bin/env python3
"""What a live rebalance costs: a server of several ranks under steady decode load, without rebalancing, with it in the
background, and as fast as it goes, one after the other, several rounds. Prints one row per mode: medians over rounds.

    tools/bench_rebalance.py [--binary build/release/tandem] [--ranks 4] [--nodes 1] [--every 50] [--rounds 3]
                             [-- SERVER FLAGS]

With --nodes 2 the ranks lie in two processes, and experts move between them over UCX. The row `noise` is a second run
without rebalancing: how far two runs of the same lie apart on this machine.

Server flags after `--` choose another model, for example
    -- --model-path tests/data/configs/m --load-format dummy --skip-tokenizer-init --max-total-tokens 4096
       --json-model-override-args '{"num_hidden_layers": 3}'
"""
import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

MODES = {
    "none": [],
    "noise": [],
    "background": ["--enable-eplb", "--enable-eplb-rebalance-async"],
    "at once": ["--enable-eplb"],
}
ROWS = {
    "output tok/s": r"Output token throughput \(tok/s\): +([0-9.]+)",
    "ITL p50 ms": r"Median ITL \(ms\): +([0-9.]+)",
    "ITL p99 ms": r"P99 ITL \(ms\): +([0-9.]+)",
    "ITL max ms": r"Max ITL \(ms\): +([0-9.]+)",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read()


def wait_ready(port, server, deadline_s):
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if server.poll() is not None:
            sys.exit(f"bench_rebalance: the server ended with status {server.returncode}")
        try:
            get(port, "/health")
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("bench_rebalance: the server did not become ready")


def start_nodes(options, flags, port, logs):
    meeting = free_port()
    nodes = []
    for node in range(options.nodes):
        apart = ["--nnodes", str(options.nodes), "--node-rank", str(node), "--dist-init-addr", f"127.0.0.1:{meeting}"]
        nodes.append(subprocess.Popen(
            [options.binary, "launch_server", "--port", str(port if node == 0 else free_port()), "--tp-size",
             str(options.ranks), "--dp-size", str(options.ranks), "--enable-dp-attention", "--enable-deepep-moe",
             "--ep-num-redundant-experts", str(options.redundant), "--eplb-algorithm", "deepseek",
             "--eplb-rebalance-num-iterations", str(options.every), "--page-size", "16",
             *(apart if options.nodes > 1 else []), *options.server_flags, *flags],
            stdout=logs[node], stderr=subprocess.STDOUT))
    return nodes


def run_once(options, flags):
    port = free_port()
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="tandem-rebalance-", suffix=".log"))
                for _ in range(options.nodes)]
        details = stack.enter_context(tempfile.NamedTemporaryFile("r", prefix="tandem-rebalance-", suffix=".jsonl"))
        nodes = start_nodes(options, flags, port, logs)
        try:
            wait_ready(port, nodes[0], 300)
            bench = subprocess.run(
                [options.binary, "bench_serving", "--base-url", f"http://127.0.0.1:{port}", "--backend", "sglang",
                 "--dataset-name", "random-ids", "--random-input-len", "16", "--random-output-len",
                 str(options.output_len), "--random-range-ratio", "1", "--num-prompts", str(options.concurrency),
                 "--max-concurrency", str(options.concurrency), "--seed", "1", "--output-file", details.name,
                 "--output-details",
                 "--tokenizer", options.tokenizer, "--tokenize-prompt"],
                capture_output=True, text=True, timeout=1800)
            placement = json.loads(get(port, "/expert_placement"))
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait(timeout=60)
        itls_of_requests = json.loads(details.read().splitlines()[-1])["itls"] if bench.returncode == 0 else []
    if bench.returncode != 0:
        sys.exit("bench_rebalance: " + bench.stderr[-2000:])
    figures = {name: float(re.search(pattern, bench.stdout)[1]) for name, pattern in ROWS.items()}
    # The first prompts are computed between the first steps: steady is what follows.
    gaps = sorted(1e3 * gap for itls in itls_of_requests for gap in itls[options.skip:])
    figures["steady p99 ms"] = gaps[int(0.99 * (len(gaps) - 1))]
    figures["steady max ms"] = gaps[-1]
    figures["rebalances"] = placement["epoch"]
    figures["experts moved"] = placement["experts_moved"]
    figures["MiB moved"] = placement["bytes_moved"] / 2**20
    if placement["failed"]:
        sys.exit(f"bench_rebalance: a rebalance failed: {placement['last_error']}")
    if flags and placement["experts_moved"] == 0:
        sys.exit("bench_rebalance: no expert was moved")
    return figures


def verdict(medians):
    """The bounds that a rebalance in the background has to keep, against the run without."""
    still, moving = medians["none"], medians["background"]
    gap = moving["steady max ms"] / still["steady p99 ms"]
    loss = 100 * (1 - moving["output tok/s"] / still["output tok/s"])
    noise = 100 * abs(1 - medians["noise"]["output tok/s"] / still["output tok/s"])
    noise_gap = medians["noise"]["steady max ms"] / still["steady p99 ms"]
    print(f"\nlongest gap over p99 without: {gap:.2f} (wanted at most 1.5; a second run without has {noise_gap:.2f})")
    print(f"throughput lost: {loss:.1f} % (wanted under 2; two runs without differ by {noise:.1f} %)")
    print(f"load of the machine (1 min): {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench_rebalance: ended by a signal"))  # the servers end, too
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description="what a live rebalance costs")
    parser.add_argument("--binary", default="build/release/tandem")
    parser.add_argument("--tokenizer", default="models/tiny", help="the client's")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=1, help="processes that the ranks are spread over")
    parser.add_argument("--redundant", type=int, default=8)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--output-len", type=int, default=512)
    parser.add_argument("--skip", type=int, default=64, help="tokens of each request before decoding is steady")
    options = parser.parse_args(arguments[:split])
    options.server_flags = arguments[split + 1:]
    results = {mode: [] for mode in MODES}
    for round_index in range(options.rounds):
        for mode, flags in MODES.items():
            print(f"round {round_index + 1} of {options.rounds}: {mode} ...", file=sys.stderr, flush=True)
            results[mode].append(run_once(options, flags))
    names = list(results["none"][0])
    print("| rebalancing | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    all_medians = {}
    for mode, rounds in results.items():
        medians = {name: statistics.median(figures[name] for figures in rounds) for name in names}
        cells = [f"{value:,.2f}" if value < 1000 else f"{value:,.0f}" for value in medians.values()]
        print(f"| {mode} | " + " | ".join(cells) + " |")
        all_medians[mode] = medians
    verdict(all_medians)


if __name__ == "__main__":
    main()
