"""Requests that nobody should send: each gets its status and a message in JSON, and the server goes on answering."""

import contextlib
import json
import pathlib
import socket

import harness
from harness import Case, Combined, Pair, greedy, request
from malformed_cases import BODIES, CHAT, COMPLETIONS, GENERATE, REQUESTS, SERVER_BODIES, sampling

HELLO = [{"role": "user", "content": "Hello"}]
LARGE = bytes(200 << 20)


# What it is; method and path; body (bytes are sent as they are); accepted statuses.
TABLE = [
    ("no body", "POST", GENERATE, b"", {400}),
    ("broken JSON", "POST", GENERATE, b'{"text": "Hello"', {400}),
    ("rubbish", "POST", GENERATE, b"\x00\x01\xfe\xff", {400}),
    ("two values", "POST", GENERATE, b'{"text": "a"} {"text": "b"}', {400}),
    ("not an object", "POST", GENERATE, b"[1, 2]", {400}),
    ("null", "POST", GENERATE, b"null", {400}),
    ("invalid UTF-8", "POST", GENERATE, b'{"text": "\xff\xfe"}', {400}),
    ("half a surrogate", "POST", GENERATE, b'{"text": "\\ud800"}', {400}),
    ("NaN", "POST", GENERATE, b'{"text": "a", "sampling_params": {"temperature": NaN}}', {400}),
    ("infinity", "POST", GENERATE, b'{"text": "a", "sampling_params": {"temperature": 1e999}}', {400}),
    ("deep nesting", "POST", GENERATE, b'{"text": ' + b"[" * 100000, {400}),
    (
        "deep nesting in an ignored field",
        "POST",
        GENERATE,
        b'{"text": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        {400},
    ),
    ("no prompt", "POST", GENERATE, {}, {400}),
    ("text is a number", "POST", GENERATE, {"text": 5}, {400}),
    ("text is an object", "POST", GENERATE, {"text": {"a": 1}}, {400}),
    ("texts hold a number", "POST", GENERATE, {"text": ["a", 5]}, {400}),
    ("no texts", "POST", GENERATE, {"text": []}, {400}),
    ("no ids", "POST", GENERATE, {"input_ids": []}, {400}),
    ("one of the id lists is empty", "POST", GENERATE, {"input_ids": [[5], []]}, {400}),
    ("ids are strings", "POST", GENERATE, {"input_ids": ["a"]}, {400}),
    ("ids are fractions", "POST", GENERATE, {"input_ids": [1.5]}, {400}),
    ("an id beyond the vocabulary", "POST", GENERATE, {"input_ids": [5, 8192]}, {400}),
    ("a negative id", "POST", GENERATE, {"input_ids": [-1]}, {400}),
    ("a huge id", "POST", GENERATE, b'{"input_ids": [99999999999999999999999]}', {400}),
    ("prompt beyond the context", "POST", GENERATE, {"input_ids": [5] * 5000}, {400}),
    (
        "prompt and answer beyond the context",
        "POST",
        GENERATE,
        {"input_ids": [5] * 100, **sampling(max_new_tokens=4000)},
        {400},
    ),
    ("unknown sampling key", "POST", GENERATE, sampling(temprature=1), {400}),
    ("sampling is a list of the wrong length", "POST", GENERATE, {"text": ["a", "b"], "sampling_params": [{}]}, {400}),
    ("sampling is a string", "POST", GENERATE, {"text": "a", "sampling_params": "hot"}, {400}),
    ("negative temperature", "POST", GENERATE, sampling(temperature=-1), {400}),
    ("temperature is a word", "POST", GENERATE, sampling(temperature="warm"), {400}),
    ("top_p is 0", "POST", GENERATE, sampling(top_p=0), {400}),
    ("top_p is 2", "POST", GENERATE, sampling(top_p=2), {400}),
    ("top_k is 0", "POST", GENERATE, sampling(top_k=0), {400}),
    ("min_p is 2", "POST", GENERATE, sampling(min_p=2), {400}),
    ("negative length", "POST", GENERATE, sampling(max_new_tokens=-1), {400}),
    ("huge length", "POST", GENERATE, b'{"text": "a", "sampling_params": {"max_new_tokens": 1e30}}', {400}),
    ("least above most", "POST", GENERATE, sampling(min_new_tokens=9, max_new_tokens=3), {400}),
    ("penalty out of range", "POST", GENERATE, sampling(frequency_penalty=3), {400}),
    ("n is 0", "POST", GENERATE, sampling(n=0), {400}),
    ("n is huge", "POST", GENERATE, sampling(n=1 << 40), {400}),
    ("stop is a number", "POST", GENERATE, sampling(stop=5), {400}),
    ("broken stop_regex", "POST", GENERATE, sampling(stop_regex="a(b"), {400}),
    ("stop_regex matches nothing", "POST", GENERATE, sampling(stop_regex="x*"), {400}),
    ("bias beyond the vocabulary", "POST", GENERATE, sampling(logit_bias={"9000": 1}), {400}),
    ("bias of a word", "POST", GENERATE, sampling(logit_bias={"a": 1}), {400}),
    ("grammar", "POST", GENERATE, sampling(json_schema="{}"), {400}),
    ("logprobs of a word", "POST", GENERATE, {"text": "a", "return_logprob": True, "top_logprobs_num": "many"}, {400}),
    ("negative top_logprobs", "POST", GENERATE, {"text": "a", "return_logprob": True, "top_logprobs_num": -1}, {400}),
    ("rids of the wrong length", "POST", GENERATE, {"text": ["a", "b"], "rid": ["x"]}, {400}),
    ("a lora", "POST", GENERATE, {"text": "a", "lora_path": "x"}, {400}),
    ("completion without prompt", "POST", COMPLETIONS, {"model": "m"}, {400}),
    ("completion with empty prompt list", "POST", COMPLETIONS, {"prompt": []}, {400}),
    ("completion with max_tokens 0", "POST", COMPLETIONS, {"prompt": "a", "max_tokens": 0}, {400}),
    ("completion with best_of", "POST", COMPLETIONS, {"prompt": "a", "best_of": 5}, {400}),
    ("chat without messages", "POST", CHAT, {"model": "m"}, {400}),
    ("chat with no messages", "POST", CHAT, {"messages": []}, {400}),
    ("chat with an unknown role", "POST", CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, {400}),
    ("chat with a number as content", "POST", CHAT, {"messages": [{"role": "user", "content": 5}]}, {400}),
    ("chat without role", "POST", CHAT, {"messages": [{"content": "a"}]}, {400}),
    (
        "chat with tools",
        "POST",
        CHAT,
        {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {400},
    ),
    (
        "chat with too many top_logprobs",
        "POST",
        CHAT,
        {"messages": HELLO, "logprobs": True, "top_logprobs": 10000},
        {400},
    ),
    ("chat beyond the context", "POST", CHAT, {"messages": [{"role": "user", "content": "word " * 9000}]}, {400}),
    ("unknown path", "GET", "/nowhere", None, {404}),
    ("wrong method", "GET", CHAT, None, {405}),
    ("unknown model card", "GET", "/v1/models/none", None, {404}),
    *BODIES,
]


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
        self.assertGreaterEqual(len(TABLE) + len(REQUESTS), 100)
        self.assertEqual(len({case[0] for case in TABLE + REQUESTS}), len(TABLE) + len(REQUESTS), "names are unique")
        for name, method, path, body, statuses in TABLE:
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
