#!/usr/bin/env python3
"""Serves the trained model on a GPU and on the CPU, and compares greedy answers: smoke.py TANDEM MODEL"""
import json
import socket
import subprocess
import sys
import time
import urllib.request

PROMPTS = ["What is the capital of Japan?", "Who are you?", "The old house stood", "1 + 2 =", "Once upon a time"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(port, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/generate", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def answers(tandem, model, flags):
    port = free_port()
    command = [tandem, "launch_server", "--model-path", model, "--port", str(port), "--host", "127.0.0.1", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        server.kill()
                        sys.exit("the server did not start:\n" + server.stdout.read())
                    time.sleep(0.2)
            sampling = {"temperature": 0, "max_new_tokens": 32}
            one_by_one = [post(port, {"text": p, "sampling_params": sampling})["text"] for p in PROMPTS]
            start = time.monotonic()
            together = [r["text"] for r in post(port, {"text": PROMPTS * 12, "sampling_params": sampling})]
            seconds = time.monotonic() - start
            print(f"{flags}: {len(together)} requests of 32 tokens in {seconds:.2f} s")
            return one_by_one, together
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def main():
    tandem, model = sys.argv[1:3]
    cpu, _ = answers(tandem, model, ["--device", "cpu"])
    gpu, many = answers(tandem, model, ["--device", "cuda"])
    for prompt, want, got in zip(PROMPTS, cpu, gpu):
        print(repr(prompt), repr(got))
        if want != got:
            sys.exit(f"{prompt!r}: the CPU says {want!r}, the GPU {got!r}")
    if many != gpu * 12:
        sys.exit("a batch is answered otherwise than its requests alone")
    tensor, _ = answers(tandem, model, ["--device", "cuda", "--kernel-backend", "tensor"])
    same = sum(a == b for a, b in zip(cpu, tensor))
    print(f"on tensor cores {same} of {len(cpu)} answers are the same: {tensor}")


if __name__ == "__main__":
    main()
