"""Requests that nobody should send: each gets its status and a message in JSON, and the server goes on answering."""

import contextlib
import json
import pathlib
import socket

import harness
from harness import Case, Combined, Pair, greedy, request
from malformed_cases import BODIES, CHAT, COMPLETIONS, GENERATE, REQUESTS, SERVER_BODIES, sampling

LARGE = bytes(200 << 20)


class Malformed(Case):
    def still_answers(self):
        answer = self.generate({"text": "Hello", "sampling_params": greedy(2)})
        self.assertEqual(len(answer["output_ids"]), 2)

    def assert_told(self, answer, statuses):
        self.assertIn(answer.status, statuses, answer)
        told = json.loads(answer.body)
        error = told.get("error")
        message = (
            told.get("detail") or told.get("message") or (error["message"] if isinstance(error, dict) else error)
        )
        self.assertTrue(isinstance(message, str) and message, answer)
        self.assertNotIn("\n", message)

    def test_each_gets_its_status_and_message(self):
        self.assertGreaterEqual(len(BODIES) + len(REQUESTS), 100)
        self.assertEqual(len({case[0] for case in BODIES + REQUESTS}), len(BODIES) + len(REQUESTS), "names are unique")
        for name, method, path, body, statuses in BODIES:
            with self.subTest(name):
                self.assert_told(request(self.port, method, path, body, deadline_s=30), statuses)
        self.still_answers()
        self.wait_idle()

    def test_streamed_faults_are_events_or_statuses(self):
        for path, body in (
            (GENERATE, sampling(top_p=2)),
            (COMPLETIONS, {"prompt": "a", "max_tokens": 0}),
            (CHAT, {"messages": []}),
        ):
            with self.subTest(path):
                answer = request(self.port, "POST", path, {**body, "stream": True}, deadline_s=30)
                self.assertIn(answer.status, {200, 400}, answer)
                self.assertIn(b'"message"', answer.body)
                if answer.status == 200:
                    self.assertTrue(answer.body.rstrip().endswith(b"data: [DONE]"), answer)
        self.still_answers()

    def answer_to(self, data):
        """All that comes back until the connection closes; a server may close while it is still being told."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(65536):
                    answer += piece
        return answer

    def test_broken_http_is_refused_once_and_nothing_behind_it_is_read(self):
        for name, data, statuses in REQUESTS:
            with self.subTest(name):
                answer = self.answer_to(data)
                self.assertEqual(answer.count(b"HTTP/1.1 "), 1, answer[:2000])
                self.assertIn(int(answer[9:12]), statuses, answer[:500])
                self.assertIn(b"connection: close", answer.lower())
        self.still_answers()
        self.wait_idle()

    def test_a_body_that_stops_halfway_harms_nobody(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"text": "Hel')
        self.still_answers()
        self.wait_idle()


class CombinedTest(Malformed):
    @classmethod
    def make(cls):
        return Combined()

    def test_what_only_a_server_reads_is_refused_as_well(self):
        for name, method, path, body, statuses in SERVER_BODIES:
            with self.subTest(name):
                self.assert_told(request(self.port, method, path, body, deadline_s=30), statuses)
        self.still_answers()


class RouterTest(Malformed):
    @classmethod
    def make(cls):
        return Pair()


class LargeBodyTest(Case):
    """Bodies of 200 MB: refused by name, with at most 3 times the body in memory."""

    @classmethod
    def make(cls):
        return Combined()

    def peak_bytes(self):
        status = pathlib.Path(f"/proc/{self.deployment.server.child.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def test_200_mb(self):
        before = self.peak_bytes()
        text = b"word " * (len(LARGE) // 5)
        ids = b"5, " * (len(LARGE) // 3)
        for name, body in (
            ("rubbish", LARGE),
            ("a text", b'{"text": "' + text + b'"}'),
            ("ids", b'{"input_ids": [' + ids + b"5]}"),
        ):
            with self.subTest(name):
                answer = request(self.port, "POST", GENERATE, body, deadline_s=120)
                self.assertIn(answer.status, {400, 413}, answer)
                self.assertIn(b'"message"', answer.body)
        self.assertLess(self.peak_bytes() - before, 3 * len(LARGE))
        self.assertEqual(len(self.generate({"text": "Hello", "sampling_params": greedy(2)})["output_ids"]), 2)


del Malformed, Case

if __name__ == "__main__":
    harness.main()
