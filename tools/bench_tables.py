#!/usr/bin/env python3
"""Turns what tools/run_benchmarks.sh recorded into Markdown: bench_tables.py FOLDER NAME...

Google Benchmark's JSON and JSON lines with a `case` become tables; anything else is shown as it was printed."""
import json
import pathlib
import platform
import subprocess
import sys


def cell(value):
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def table(rows):
    """rows: dicts with the same keys."""
    keys = list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    lines += ["| " + " | ".join(cell(row[key]) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def google_benchmark(path):
    rows = []
    for run in json.loads(path.read_text())["benchmarks"]:
        if run.get("error_occurred"):
            rows.append({"case": run["name"], "time": "error: " + run["error_message"]})
            continue
        row = {"case": run["name"], "time": f"{run['real_time']:.4g} {run['time_unit']}"}
        known = {"name", "family_index", "per_family_instance_index", "run_name", "run_type", "repetitions",
                 "repetition_index", "threads", "iterations", "real_time", "cpu_time", "time_unit", "label"}
        row |= {key: value for key, value in run.items() if key not in known and isinstance(value, (int, float))}
        rows.append(row)
    return rows


def json_lines(text):
    rows, rest = [], []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict) and "case" in value:
            rows.append(value)
        else:
            rest.append(line)
    return rows, rest


def by_keys(rows):
    """Tables of rows with equal keys, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return "\n\n".join(table(group) for group in groups.values())


def serving(path):
    rows = []
    for line in path.read_text().splitlines():
        run = json.loads(line)
        rows.append({
            "concurrency": run["max_concurrency"], "requests": run["completed"], "failed": run["failed"],
            "input tok/s": run["input_throughput"], "output tok/s": run["output_throughput"],
            "TTFT p50 ms": run["median_ttft_ms"], "TTFT p99 ms": run["p99_ttft_ms"],
            "TPOT p50 ms": run["median_tpot_ms"], "TPOT p99 ms": run["p99_tpot_ms"],
            "ITL p50 ms": run["median_itl_ms"], "ITL p99 ms": run["p99_itl_ms"]})
    return table(rows)


def machine():
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "unknown CPU")
    cores = subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return f"Machine: {model}, {cores} cores, {platform.system()} {platform.release()}. Commit {commit}."


def main(folder, names):
    print(machine())
    for name in names:
        text_path = folder / f"{name}.txt"
        if not text_path.exists():
            continue
        text = text_path.read_text()
        print(f"\n## {name}\n")
        commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        print("```\n" + "\n".join(commands) + "\n```\n")
        if name == "serving":
            print(serving(folder / "serving.jsonl"))
        elif (folder / f"{name}.json").exists() and (folder / f"{name}.json").stat().st_size:
            print(by_keys(google_benchmark(folder / f"{name}.json")))
        else:
            rows, rest = json_lines(text)
            if rows:
                print(by_keys(rows))
            rest = [line for line in rest if line and not line.startswith("$ ")]
            if rest:
                print("\n```\n" + "\n".join(rest) + "\n```")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
