"""Runs Tandem's processes for the end-to-end tests: on free ports, with their logs kept, and never left behind.

Standard library only. Every wait has a deadline; a test that fails prints the ends of its servers' logs.
"""

import atexit
import contextlib
import ctypes
import functools
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/tiny"
REFERENCE = json.loads((ROOT / "tests/data/tiny/reference.json").read_text())["prompts"]
# Below this distance between the reference's two best logits the fast kernels may choose otherwise (the gap rule).
MIN_MARGIN = 0.05
START_DEADLINE_S = 120.0
REQUEST_DEADLINE_S = 120.0


def binary():
    return os.environ["TANDEM_BINARY"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, deadline_s, what):
    """Calls condition until it returns something true; that is returned."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline_s} s")
        pause.wait(0.02)


@functools.cache
def scratch():
    """Where processes put temporary files; gone with the test, also what a kill left there."""
    directory = tempfile.TemporaryDirectory(prefix="tandem-e2e-")
    atexit.register(directory.cleanup)
    return directory.name


def die_with_parent():
    """In the child: end when the test's process ends, however that happens."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """One tandem process and its log."""

    def __init__(self, name, *args):
        self.name = name
        self.args = [str(arg) for arg in args]
        self.log_file = tempfile.NamedTemporaryFile(prefix=f"tandem-{name}-", suffix=".log")
        self.child = subprocess.Popen(
            [binary(), *self.args],
            stdin=subprocess.DEVNULL,
            stdout=self.log_file,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
            env={**os.environ, "TMPDIR": scratch()},
        )

    def log(self):
        return pathlib.Path(self.log_file.name).read_text(errors="replace")

    def kill(self):
        """kill -9."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(10)

    def stop(self, deadline_s=20):
        """Asks it to end and returns its exit status."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {deadline_s} s of SIGTERM\n{self.log()[-3000:]}")

    def close(self):
        self.kill()
        self.log_file.close()


class Server(Process):
    """A process that answers HTTP."""

    def __init__(self, name, command, port, *flags):
        self.port = port
        super().__init__(name, command, "--host", "127.0.0.1", "--port", port, *flags)

    def wait_ready(self):
        def ready():
            if self.child.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.child.returncode}\n{self.log()[-3000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return request(self.port, "GET", "/health", deadline_s=5).status == 200
            return False

        try:
            wait_until(ready, START_DEADLINE_S, f"{self.name} ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from None
        return self

    def state(self):
        return request(self.port, "GET", "/get_server_info").json()["internal_states"][0]


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:500]!r}"


def request(port, method, path, body=None, headers=None, deadline_s=REQUEST_DEADLINE_S, host="127.0.0.1"):
    """body: a value (sent as JSON) or bytes (sent as they are)."""
    connection = http.client.HTTPConnection(host, port, timeout=deadline_s)
    with contextlib.closing(connection):
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = dict(headers or {})
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


class Stream:
    """A server-sent-event answer, read event by event. Closing it early is a client that hangs up."""

    def __init__(self, port, path, body, deadline_s=REQUEST_DEADLINE_S, host="127.0.0.1"):
        self.connection = http.client.HTTPConnection(host, port, timeout=deadline_s)
        self.connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()
        self.status = self.response.status
        self.done = False

    def __iter__(self):
        """The events as values, until [DONE] (then done is set) or the end of the body."""
        for line in self.response:
            line = line.strip()
            if line == b"data: [DONE]":
                self.done = True
                if self.response.read().strip():
                    raise AssertionError("bytes behind [DONE]")
                return
            if line:
                if not line.startswith(b"data: "):
                    raise AssertionError(f"not an event: {line!r}")
                yield json.loads(line[6:])

    def close(self):
        self.response.close()
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


SERVER_FLAGS = ("--num-threads", 1, "--max-total-tokens", 16384)


class Combined:
    """One server that does both phases."""

    def __init__(self, *flags):
        self.server = Server(
            "combined", "launch_server", free_port(), "--disaggregation-mode", "null", *SERVER_FLAGS, *flags
        )
        self.front = self.server
        self.servers = [self.server]

    def wait_ready(self):
        self.server.wait_ready()
        return self

    def close(self):
        self.server.close()


class Pair:
    """A prefill server, a decode server and the router."""

    router_flags = ()

    def __init__(self, *flags):
        self.flags = flags
        self.prefill_port, self.bootstrap_port, self.decode_port = free_port(), free_port(), free_port()
        self.start_prefill()
        self.start_decode()
        self.start_router(free_port())

    def start_router(self, port):
        # Checks and the circuit breaker at the pace of a test: recovery shows in seconds, not in a minute.
        self.router = Server(
            "router",
            "router",
            port,
            "--pd-disaggregation",
            "--prefill",
            f"http://127.0.0.1:{self.prefill_port}",
            self.bootstrap_port,
            "--decode",
            f"http://127.0.0.1:{self.decode_port}",
            "--health-check-interval-secs",
            1,
            "--health-check-timeout-secs",
            3,
            "--worker-startup-check-interval",
            1,
            "--cb-timeout-duration-secs",
            2,
            *self.router_flags,
        )
        self.front = self.router

    def start_prefill(self):
        self.prefill = Server(
            "prefill",
            "launch_server",
            self.prefill_port,
            "--disaggregation-mode",
            "prefill",
            "--disaggregation-bootstrap-port",
            self.bootstrap_port,
            *SERVER_FLAGS,
            *self.flags,
        )

    def start_decode(self):
        self.decode = Server(
            "decode", "launch_server", self.decode_port, "--disaggregation-mode", "decode", *SERVER_FLAGS, *self.flags
        )

    @property
    def servers(self):
        return [self.prefill, self.decode]

    def wait_ready(self):
        for server in (self.prefill, self.decode, self.router):
            server.wait_ready()
        return self

    def close(self):
        for server in (self.router, self.decode, self.prefill):
            server.close()


def idle_fault(state):
    """Why these blocks are not all accounted for at rest; None if they are."""
    if state["running"] or state["queued"]:
        return f"running {state['running']}, queued {state['queued']}"
    if state["leased_blocks"]:
        return f"{state['leased_blocks']} blocks leased"
    if state["free_blocks"] + state["cached_blocks"] != state["total_blocks"]:
        return f"free {state['free_blocks']} + cached {state['cached_blocks']} is not {state['total_blocks']}"
    return None


class Case(unittest.TestCase):
    """A test over a deployment: make() gives it, once per class."""

    deployment = None
    maxDiff = 2000

    @classmethod
    def make(cls):
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        cls.deployment = cls.make()
        try:
            cls.deployment.wait_ready()
        except BaseException:
            cls.deployment.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.deployment.close()

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before and self.deployment:
            for server in {self.deployment.front, *self.deployment.servers}:
                print(f"--- log of {server.name} ---\n{server.log()[-2000:]}", file=sys.stderr)

    @property
    def port(self):
        return self.deployment.front.port

    def generate(self, body, status=200):
        answer = request(self.port, "POST", "/generate", body)
        self.assertEqual(answer.status, status, answer)
        return answer.json()

    def wait_idle(self, deadline_s=15):
        """All blocks of all servers are back."""
        faults = {}

        def idle():
            faults.clear()
            for server in self.deployment.servers:
                fault = idle_fault(server.state())
                if fault:
                    faults[server.name] = fault
            return not faults

        try:
            wait_until(idle, deadline_s, "idle")
        except AssertionError:
            raise AssertionError(f"not idle within {deadline_s} s: {faults}") from None


def greedy(max_new_tokens, **more):
    return {"temperature": 0, "max_new_tokens": max_new_tokens, **more}


def certain_tokens(prompt):
    """The reference's greedy tokens up to the first that rounding may change."""
    margins = prompt["greedy_margin"]
    count = next((i for i, margin in enumerate(margins) if margin < MIN_MARGIN), len(margins))
    return prompt["greedy"][:count]


def main():
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} TANDEM_BINARY [unittest arguments]")
    os.environ["TANDEM_BINARY"] = sys.argv.pop(1)
    unittest.main(verbosity=2)
