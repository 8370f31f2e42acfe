"""Clients that mean harm: slow ones, huge ones, floods of them, and those without the right key. Others are served."""

import concurrent.futures
import contextlib
import pathlib
import socket
import subprocess
import time

import harness
from harness import Case, Combined, Server, greedy, request
from malformed_cases import BODY

API_KEY, ADMIN_KEY = "api-key-5ca1ab1e", "admin-key-c0ffee"
PAYLOAD = 1 << 20  # that the router takes
HELLO = {"text": "Hello", "sampling_params": greedy(2)}


class Routed:
    """A combined server, and a router in front of it; both are targets."""

    def __init__(self, *flags, router_flags=()):
        self.combined = Combined(*flags)
        self.server = self.combined.server
        self.servers = [self.server]
        self.router = Server(
            "router", "router", harness.free_port(), "--worker-urls", f"http://127.0.0.1:{self.server.port}",
            "--health-check-interval-secs", 1, *router_flags,
        )  # fmt: skip
        self.front = self.router

    def wait_ready(self):
        self.server.wait_ready()
        self.router.wait_ready()
        return self

    def close(self):
        self.router.close()
        self.combined.close()


def peak_bytes(server):
    status = pathlib.Path(f"/proc/{server.child.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def drip(port, beginning, deadline_s):
    """Says the beginning, then a byte a second: how long until the other side hangs up, and what it said."""
    begin = time.monotonic()
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(beginning)
        connection.settimeout(1)
        while time.monotonic() - begin < deadline_s:
            try:
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"a")
            except ConnectionError:
                break
    return time.monotonic() - begin, answer


class SlowAndHugeTest(Case):
    @classmethod
    def make(cls):
        return Routed(router_flags=("--max-payload-size", PAYLOAD))

    def targets(self):
        return {"server": self.deployment.server, "router": self.deployment.router}.items()

    def served(self, port):
        begin = time.monotonic()
        answer = request(port, "POST", "/generate", HELLO, deadline_s=30)
        self.assertEqual(answer.status, 200, answer)
        return time.monotonic() - begin

    def test_a_byte_a_second_is_cut_and_others_are_served_meanwhile(self):
        header = b"GET /health HTTP/1.1\r\nHost: x\r\nX: "
        body = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"
        with concurrent.futures.ThreadPoolExecutor(80) as pool:
            drips = []
            for name, target in self.targets():
                for what, beginning, deadline_s in (("header", header, 20), ("body", body, 45)):
                    drips += [(name, what, deadline_s, pool.submit(drip, target.port, beginning, deadline_s))
                              for _ in range(20)]  # fmt: skip
            slowest = 0
            while not all(future.done() for *_, future in drips):
                slowest = max([slowest] + [self.served(target.port) for _, target in self.targets()])
                time.sleep(0.5)
        for name, what, deadline_s, future in drips:
            took_s, answer = future.result()
            self.assertLess(took_s, deadline_s, (name, what))
            self.assertTrue(answer.startswith(b"HTTP/1.1 408 "), (name, what, answer))
        self.assertLess(slowest, 5)

    def test_a_promised_gigabyte_is_refused_before_it_is_sent(self):
        for name, target in self.targets():
            with self.subTest(name), socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
                connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1100000000\r\n\r\n")
                self.assertTrue(connection.recv(65536).startswith(b"HTTP/1.1 413 "))

    def test_a_streamed_gigabyte_is_refused_at_the_limit_and_memory_stays_small(self):
        router = self.deployment.router
        before = peak_bytes(router)
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        sent = 0
        with socket.create_connection(("127.0.0.1", router.port), timeout=10) as connection:
            connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while sent < 1 << 30:
                    connection.sendall(chunk)
                    sent += len(chunk)
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = connection.recv(65536)
        # What was under way when the router hung up may reset the connection before the answer is read.
        self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 413 "), answer[:200])
        self.assertLess(sent, 1 << 28, "the connection was not closed")
        self.assertLess(peak_bytes(router) - before, 8 * PAYLOAD)
        self.served(router.port)

    def test_a_thousand_idle_connections_keep_nobody_out(self):
        for name, target in self.targets():
            with self.subTest(name), contextlib.ExitStack() as stack:
                for _ in range(1000 if name == "server" else 500):
                    stack.enter_context(socket.create_connection(("127.0.0.1", target.port), timeout=10))
                self.assertLess(self.served(target.port), 5)


class MadeUpBootstrapTest(Case):
    """A decode server that anybody may reach, and requests that name prefill servers which are none."""

    @classmethod
    def make(cls):
        return Combined("--disaggregation-mode", "decode")

    def post(self, **fields):
        return request(self.port, "POST", "/generate", {**HELLO, **fields}, deadline_s=40)

    def test_nobody_there_is_an_error_by_name_and_nothing_stays(self):
        listener = socket.socket()  # somebody who is there and does not speak the language
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.addCleanup(listener.close)
        for name, host, port in (
            ("a closed port", "127.0.0.1", 1),
            ("port 0", "127.0.0.1", 0),
            ("an address that is none", "999.999.999.999", 8998),
            ("a name that is none", "no-such-host.invalid", 8998),
            ("an option in the place of a host", "--help", 8998),
            ("a path", "../../etc/passwd", 8998),
            ("a stranger", "127.0.0.1", listener.getsockname()[1]),
            ("itself", "127.0.0.1", self.port),
        ):
            with self.subTest(name):
                answer = self.post(bootstrap_host=host, bootstrap_port=port, bootstrap_room=7)
                self.assertEqual(answer.status, 500, answer)
                self.assertIn(host.encode(), answer.body)
        self.wait_idle()

    def test_no_room_is_refused(self):
        self.assertEqual(self.post(bootstrap_host="127.0.0.1").status, 400)
        self.wait_idle()


class KeysTest(Case):
    @classmethod
    def make(cls):
        keys = ("--api-key", API_KEY, "--admin-api-key", ADMIN_KEY)
        return Routed(*keys, router_flags=keys)

    def status(self, target, method, path, key, body=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return request(target.port, method, path, body, headers, deadline_s=30).status

    def test_control_wants_the_admin_key_and_answers_either(self):
        server, router = self.deployment.server, self.deployment.router
        controls = [
            (server, "POST", "/flush_cache", None),
            (server, "GET", "/flush_cache", None),
            (server, "POST", "/abort_request", {"rid": "nobody"}),
            (server, "POST", "/slow_down", {"forward_sleep_time": None}),
            (server, "POST", "/hold_admission", {"running_requests": None}),
            (server, "POST", "/start_profile", {"output_dir": "/dev/null/x"}),
            (server, "POST", "/stop_profile", None),
            (server, "POST", "/start_expert_distribution_record", None),
            (server, "POST", "/stop_expert_distribution_record", None),
            (server, "GET", "/dump_expert_distribution_record", None),
            (server, "POST", "/rebalance", {}),
            (router, "POST", "/flush_cache", None),
            (router, "GET", "/flush_cache", None),
            (router, "HEAD", "/flush_cache", None),
            (router, "POST", "/abort_request", {"rid": "nobody"}),
            (router, "POST", "/workers", {"url": "http://127.0.0.1:1"}),
            (router, "DELETE", "/workers/http://127.0.0.1:1", None),
        ]
        for target, method, path, body in controls:
            with self.subTest(f"{target.name} {method} {path}"):
                for key in (None, API_KEY, "x" + ADMIN_KEY, ADMIN_KEY[:-1]):
                    self.assertEqual(self.status(target, method, path, key, body), 401)
                self.assertNotEqual(self.status(target, method, path, ADMIN_KEY, body), 401)
        for target in (server, router):
            for key, status in ((None, 401), ("wrong", 401), (API_KEY, 200), (ADMIN_KEY, 200)):
                with self.subTest(f"{target.name} {key}"):
                    self.assertEqual(self.status(target, "POST", "/generate", key, HELLO), status)
                    self.assertEqual(self.status(target, "GET", "/v1/models", key), status)
            self.assertEqual(self.status(target, "GET", "/health", None), 200)

    def test_the_router_passes_the_admin_key_on(self):
        answer = request(self.deployment.router.port, "POST", "/flush_cache", None,
                         {"Authorization": f"Bearer {ADMIN_KEY}"})  # fmt: skip
        self.assertEqual(answer.status, 200, answer)
        self.assertIn(b"1 of 1 workers", answer.body)

    def test_commands_send_the_admin_key(self):
        url = f"http://127.0.0.1:{self.deployment.router.port}"
        for command in (
            ("slow_down", "--router", url, "--role", "all", "--sleep", "null"),
            ("experts", "record", "--router", url),
            ("experts", "stop", "--router", url),
            ("profile", "--url", url, "--stop"),
        ):
            with self.subTest(" ".join(command[:2])):
                denied = subprocess.run([harness.binary(), *command, "--api-key", API_KEY],
                                        capture_output=True, text=True, timeout=60)  # fmt: skip
                self.assertIn("Unauthorized", denied.stdout + denied.stderr)
                allowed = subprocess.run([harness.binary(), *command, "--admin-api-key", ADMIN_KEY],
                                         capture_output=True, text=True, timeout=60)  # fmt: skip
                self.assertNotIn("Unauthorized", allowed.stdout + allowed.stderr)

    def test_no_key_gets_into_a_log_or_an_answer(self):
        info = request(self.port, "GET", "/get_server_info", None, {"Authorization": f"Bearer {API_KEY}"})
        self.assertEqual(info.status, 200)
        said = info.body.decode() + self.deployment.server.log() + self.deployment.router.log()
        for key in (API_KEY, ADMIN_KEY):
            self.assertNotIn(key, said)

    def test_a_client_cannot_begin_a_line_of_the_log(self):
        forged = "x\n[2026-01-01 00:00:00] ERROR: forged"
        for _, target in (("server", self.deployment.server), ("router", self.deployment.router)):
            request(target.port, "POST", "/abort_request", {"rid": forged}, {"Authorization": f"Bearer {ADMIN_KEY}"})
            request(target.port, "POST", "/generate", {**HELLO, "rid": forged, "stream": False},
                    {"Authorization": f"Bearer {API_KEY}"})  # fmt: skip
            self.assertFalse([line for line in target.log().splitlines() if line.startswith("[2026-01-01 00:00:00")])


class OneKeyTest(Case):
    """With an admin key alone, normal endpoints are open; BODY is any request."""

    @classmethod
    def make(cls):
        return Combined("--admin-api-key", ADMIN_KEY)

    def test_control_alone_is_guarded(self):
        self.assertEqual(request(self.port, "POST", "/generate", BODY).status, 200)
        self.assertEqual(request(self.port, "POST", "/flush_cache").status, 401)
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        self.assertEqual(request(self.port, "POST", "/flush_cache", None, headers).status, 200)


del Case

if __name__ == "__main__":
    harness.main()
