"""`tandem explain`: a healthy server, a frozen node, a frozen prefill, a killed server; what the watchdog says."""

import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading

import harness
from harness import REFERENCE, Case, Combined, Pair, Server, free_port, greedy, request, wait_until
from nodes_test import Nodes

PROMPT = next(prompt for prompt in REFERENCE if prompt["name"] == "chat-capital")["ids"]
BODY = {"input_ids": PROMPT, "sampling_params": greedy(8)}


def explain(*arguments):
    """Exit status and output."""
    done = subprocess.run(
        [harness.binary(), "explain", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout + done.stderr


def url(server):
    return f"http://127.0.0.1:{server.port}"


class HealthyTest(Case):
    @classmethod
    def make(cls):
        return Combined()

    def directory(self):
        return pathlib.Path(re.search(r"flight recorder: (\S+) ", self.deployment.front.log())[1])

    def test_nothing_is_stuck_while_it_serves_and_its_files_go_with_it(self):
        server = self.deployment.front
        self.generate(BODY)
        for source in (url(server), self.directory()):
            status, text = explain(source)
            self.assertEqual(status, 0, text)
            self.assertIn("nothing is stuck\nthe combined server of rank 0", text)
            self.assertRegex(text, rf"combined +0 +0 .* {server.child.pid} +running")
        answer = request(server.port, "GET", "/flight_recorder").json()
        self.assertFalse(answer["stuck"])
        self.assertEqual(answer["ranks"][0]["pid"], server.child.pid)
        status, text = explain(url(server), "--json")
        self.assertEqual((status, json.loads(text)["stuck"]), (0, False))

        # A sleep that was asked for is no hang.
        self.assertEqual(request(server.port, "POST", "/slow_down", {"forward_sleep_time": 60}).status, 200)
        asking = threading.Thread(target=request, args=(server.port, "POST", "/generate", BODY))
        asking.start()
        wait_until(lambda: "sleeps on request (slow_down of 60.0 s)" in explain(url(server))[1], 10, "asleep")
        self.assertEqual(explain(url(server), "--stuck-after", 0.5)[0], 0)
        self.assertEqual(request(server.port, "POST", "/slow_down", {"forward_sleep_time": None}).status, 200)
        asking.join(20)

        directory = self.directory()
        self.assertTrue(directory.exists())
        self.assertEqual(server.stop(), 0)
        self.assertFalse(directory.exists())
        status, text = explain(url(server))
        self.assertEqual(status, 1, text)
        self.assertEqual(explain(directory)[0], 2)
        self.assertEqual(explain()[0], 2)


class FrozenNodeTest(Case):
    """SIGSTOP of node 1 of a decode server of two nodes."""

    @classmethod
    def make(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="tandem-flight-")
        more = ("--disaggregation-mode", "decode", "--flight-recorder-dir", cls.directory.name)
        return Nodes("flight", 2, *more, of_node=(("--watchdog-timeout", 8), ()))

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.directory.cleanup()

    def test_its_rank_and_the_step_are_named_and_the_watchdog_says_so(self):
        first, other = self.deployment.servers
        self.assertEqual(explain(url(first), url(other))[0], 0)
        os.kill(other.child.pid, signal.SIGSTOP)
        try:
            named = re.compile(
                rf"stuck: rank 1 \(decode node 1, pid {other.child.pid}, stopped\) has not voted for step \d+ for "
                r"\d+\.\d s: its last entry, \d+\.\d s old, is 'decision for step \d+: nothing to run'; rank 0 waits "
                "for it\n"
            )
            wait_until(lambda: named.search(explain(self.directory.name)[1]), 5, "rank 1 named by its file")
            status, text = explain(self.directory.name)
            self.assertEqual(status, 1, text)
            self.assertRegex(text, rf"decode +1 +1 .* {other.child.pid} +stopped")
            # From node 0 alone, which has no recording of the other node's ranks.
            named = re.compile(r"rank 1 \(decode, no recording of it here\) has not voted for step \d+")
            ask = lambda: explain(url(first), "--stuck-after", 1)
            wait_until(lambda: named.search(ask()[1]), 5, "rank 1 named by rank 0")
            self.assertEqual(first.child.wait(15), 1)
            self.assertRegex(first.log(), r"Watchdog timeout .*: the engine made no progress")
            self.assertRegex(first.log(), "flight recorder: stuck: rank 1 " + r"\(decode, no recording of it here\)")
            # Of its end there is the file.
            self.assertRegex(explain(self.directory.name)[1], "stuck: rank 1 .*; rank 0 waits for it")
        finally:
            os.kill(other.child.pid, signal.SIGCONT)


class FrozenPrefillTest(Case):
    """SIGSTOP of prefill between two requests, then kill -9 of decode."""

    @classmethod
    def make(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="tandem-flight-")
        return Pair("--flight-recorder-dir", cls.directory.name)

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.directory.cleanup()

    def test_decode_names_the_prefill_that_it_waits_for_and_a_killed_server_is_named(self):
        pair = self.deployment
        expected = self.generate(BODY)["output_ids"]
        self.assertEqual(explain(url(pair.router))[0], 0)  # a router stands for its servers
        answers = []
        asking = threading.Thread(target=lambda: answers.append(request(self.port, "POST", "/generate", BODY)))
        os.kill(pair.prefill.child.pid, signal.SIGSTOP)
        try:
            asking.start()
            named = re.compile(
                rf"stuck: rank 0 \(decode, pid {pair.decode.child.pid}\) has waited for 'source' of room \d+ for "
                rf"\d+\.\d s, from 127\.0\.0\.1:{pair.bootstrap_port}, rank 0 \(prefill, pid "
                rf"{pair.prefill.child.pid}, stopped\): its last entry, "
            )
            wait_until(lambda: named.search(explain(self.directory.name)[1]), 5, "the wait of decode")
            self.assertEqual(explain(self.directory.name)[0], 1)
        finally:
            os.kill(pair.prefill.child.pid, signal.SIGCONT)
        asking.join(30)
        self.assertEqual([answer.json()["output_ids"] for answer in answers], [expected])
        wait_until(lambda: explain(self.directory.name)[0] == 0, 10, "nothing stuck any more")

        pair.decode.kill()
        status, text = explain(self.directory.name)
        self.assertEqual(status, 1, text)
        self.assertRegex(text, rf"the process of rank 0 \(decode, pid {pair.decode.child.pid}, gone\) ended without")

        # The server that takes its place is what counts.
        pair.decode.log_file.close()
        pair.start_decode()
        pair.decode.wait_ready()
        status, text = explain(self.directory.name)
        self.assertEqual(status, 0, text)
        self.assertEqual(pair.decode.stop(), 0)
        kept = list(pathlib.Path(self.directory.name).glob("decode-node0-*/rank-0.flight"))
        self.assertEqual(len(kept), 2, "an explicit directory is kept")


class RefusedTest(harness.unittest.TestCase):
    def test_a_directory_that_cannot_be_made_stops_the_start(self):
        server = Server("refused", "launch_server", free_port(), *harness.SERVER_FLAGS, "--flight-recorder-dir",
                        "/proc/none")
        try:
            self.assertEqual(server.child.wait(60), 2, server.log())
            self.assertIn("--flight-recorder-dir: /proc/none/combined-node0-", server.log())
        finally:
            server.close()


del Case

if __name__ == "__main__":
    harness.main()
