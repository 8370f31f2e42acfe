"""A rolling restart under steady load: every instance of two prefill and two decode servers leaves and comes back, and
no client notices. With tools/rolling_restart.py, and by bare signals that the router has not been told of."""

import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import harness
from harness import REFERENCE, Server, Stream, binary, certain_tokens, free_port, greedy, request, wait_until

CLIENTS = 6
NEW_TOKENS = 64
LONG_TOKENS = 400
PROMPTS = [prompt for prompt in REFERENCE if prompt["name"] in ("digits", "unicode", "chat-turns", "chat-system")]
FLAGS = ("--num-threads", 1, "--max-total-tokens", 16384, "--drain-timeout", 60)
LIFE_S = 280  # of a process that the test did not end: the test's own deadline is longer


def has_left(pid):
    """Ended, whether or not anybody has waited for it."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Instances:
    """Two servers of each role, each with its number in a file, and the router."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="tandem-rolling-")
        self.commands, self.pid_files, lines = [], [], ["# the deployment"]
        router_flags = []
        for role in ("prefill", "prefill", "decode", "decode"):
            port, flags = free_port(), ["--disaggregation-mode", role]
            router_flags += [f"--{role}", f"http://127.0.0.1:{port}"]
            if role == "prefill":
                kv_port = free_port()
                flags += ["--disaggregation-bootstrap-port", kv_port]
                router_flags.append(kv_port)
            # timeout passes signals on; nothing outlives a test that was killed by much.
            command = ["timeout", "--foreground", LIFE_S, binary(), "launch_server", "--host", "127.0.0.1"]
            self.commands.append([str(part) for part in (*command, "--port", port, *flags, *FLAGS)])
            self.pid_files.append(pathlib.Path(self.directory.name, f"{port}.pid"))
            lines.append(f"http://127.0.0.1:{port} {self.pid_files[-1]} {' '.join(self.commands[-1])}")
            self.start(len(lines) - 2)
        # Calm health checks: an instance that is gone has to be noticed by what becomes of requests.
        self.router = Server("router", "router", free_port(), "--pd-disaggregation", *router_flags)
        self.file = pathlib.Path(self.directory.name, "instances")
        self.file.write_text("\n".join(lines) + "\n")

    def start(self, index):
        pid_file = self.pid_files[index]
        with open(f"{pid_file}.log", "ab") as log:
            child = subprocess.Popen(
                self.commands[index],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        pid_file.write_text(f"{child.pid}\n")
        threading.Thread(target=child.wait, daemon=True).start()

    def pid(self, index):
        return int(self.pid_files[index].read_text())

    def workers(self):
        return request(self.router.port, "GET", "/workers").json()["workers"]

    def wait_healthy(self):
        self.router.wait_ready()
        all_there = lambda: [worker["is_healthy"] for worker in self.workers()] == [True] * 4
        wait_until(all_there, harness.START_DEADLINE_S, "four healthy instances")

    def logs(self):
        logs = [(path, pathlib.Path(f"{path}.log").read_text()[-1500:]) for path in self.pid_files]
        return "\n".join(f"--- {path} ---\n{text}" for path, text in logs)

    def close(self):
        self.router.close()
        for index in range(len(self.pid_files)):
            try:
                os.killpg(self.pid(index), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.directory.cleanup()


class Load:
    """Clients that stream one answer after the other, and compare every token."""

    def __init__(self, port, expected):
        self.port, self.expected = port, expected
        self.over = threading.Event()
        self.faults, self.completed = [], 0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.work, args=(i,)) for i in range(CLIENTS)]

    def work(self, client):
        turn = client
        while not self.over.is_set() and not self.faults:
            turn += 1
            prompt = PROMPTS[turn % len(PROMPTS)]
            name, new_tokens = prompt["name"], LONG_TOKENS if client == 0 else NEW_TOKENS
            try:
                got = self.ask(prompt["ids"], new_tokens, whole=client == 1)
                fault = None if got == self.expected[name][:new_tokens] else f"{name}: {got}"
            except Exception as error:
                fault = f"{name}: {error!r}"
            with self.lock:
                self.completed += fault is None
                if fault:
                    self.faults.append((time.strftime("%H:%M:%S"), fault))

    def ask(self, ids, new_tokens, whole):
        body = {"input_ids": ids, "stream": not whole, "sampling_params": greedy(new_tokens, ignore_eos=True)}
        if whole:
            answer = request(self.port, "POST", "/generate", body)
            assert answer.status == 200, answer
            return answer.json()["output_ids"]
        last = None
        with Stream(self.port, "/generate", body) as stream:
            assert stream.status == 200, stream.status
            for event in stream:
                last = event
            assert stream.done, "a cut stream"
        assert last["meta_info"]["finish_reason"]["type"] == "length", last
        return last["output_ids"]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(harness.REQUEST_DEADLINE_S)


class RollingRestartTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.deployment = Instances()
        cls.addClassCleanup(cls.deployment.close)
        cls.deployment.wait_healthy()
        cls.expected = {}
        for prompt in PROMPTS:
            body = {"input_ids": prompt["ids"], "sampling_params": greedy(LONG_TOKENS, ignore_eos=True)}
            answer = request(cls.deployment.router.port, "POST", "/generate", body)
            assert answer.status == 200, answer
            cls.expected[prompt["name"]] = answer.json()["output_ids"]
            certain = certain_tokens(prompt)
            assert cls.expected[prompt["name"]][: len(certain)] == certain, prompt["name"]

    def check(self, load):
        self.assertEqual(load.faults, [], self.deployment.logs() + self.deployment.router.log()[-2000:])
        self.assertGreater(load.completed, 4 * CLIENTS)
        self.assertEqual([worker["is_healthy"] for worker in self.deployment.workers()], [True] * 4)

    def test_every_instance_is_restarted_and_no_request_fails(self):
        before = [self.deployment.pid(i) for i in range(4)]
        with Load(self.deployment.router.port, self.expected) as load:
            done = subprocess.run(
                [
                    harness.ROOT / "tools/rolling_restart.py",
                    *("--router", f"http://127.0.0.1:{self.deployment.router.port}"),
                    *("--instances", self.deployment.file, "--leave-timeout", "60", "--ready-timeout", "60"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=240,
            )
            self.assertEqual(done.returncode, 0, done.stdout + self.deployment.logs())
            completed = load.completed
            wait_until(lambda: load.completed > completed + CLIENTS or load.faults, 60, "requests behind the restarts")
        print(f"{done.stdout}{load.completed} requests, 0 failed")
        self.check(load)
        for old, new in zip(before, (self.deployment.pid(i) for i in range(4))):
            self.assertNotEqual(old, new)

    def test_signals_without_a_word_to_the_router_fail_no_request(self):
        with Load(self.deployment.router.port, self.expected) as load:
            for index in (0, 2):  # a prefill server and a decode server
                completed = load.completed
                wait_until(lambda: load.completed > completed + CLIENTS or load.faults, 60, "load")
                pid = self.deployment.pid(index)
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda: has_left(pid), 60, "it has left")
                completed = load.completed
                wait_until(lambda: load.completed > completed + CLIENTS or load.faults, 60, "load without it")
                self.deployment.start(index)
                self.deployment.wait_healthy()
        self.check(load)


class DrainTest(unittest.TestCase):
    def test_a_server_that_leaves_says_so_and_finishes_what_it_has(self):
        deployment = harness.Combined("--drain-timeout", 60)
        self.addCleanup(deployment.close)
        port = deployment.wait_ready().server.port
        body = {"input_ids": [5, 6, 7], "stream": True, "sampling_params": greedy(2500, ignore_eos=True)}
        with Stream(port, "/generate", body) as stream:
            events = iter(stream)
            next(events)
            deployment.server.child.send_signal(signal.SIGTERM)
            wait_until(lambda: request(port, "GET", "/health").status == 503, 10, "red")
            refused = request(port, "POST", "/generate", {"input_ids": [5], "stream": True})
            self.assertEqual((refused.status, refused.headers.get("Retry-After")), (503, "1"))
            self.assertEqual(request(port, "GET", "/get_server_info").status, 200)
            last = list(events)[-1]
        self.assertTrue(stream.done)
        self.assertEqual(len(last["output_ids"]), 2500)
        self.assertEqual(deployment.server.child.wait(30), 0)


if __name__ == "__main__":
    harness.main()
