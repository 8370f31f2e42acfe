"""The deployment's secret: servers and nodes that have it work together; who has another or none is refused by name."""

import os
import re
import tempfile

import harness
from harness import SERVER_FLAGS, Case, Pair, Server, free_port, greedy, request, wait_until
from nodes_test import Nodes

SECRET, OTHER = "open-sesame-open-sesame", "open-barley-open-barley"


def secret_file(case, secret):
    file = tempfile.NamedTemporaryFile(mode="w", prefix="tandem-secret-")
    case.addClassCleanup(file.close)
    os.chmod(file.name, 0o600)
    file.write(secret + "\n")
    file.flush()
    return ("--deployment-secret-file", file.name)


def secrets_in(log):
    return [secret for secret in (SECRET, OTHER) if secret in log]


class PairTest(Case):
    @classmethod
    def make(cls):
        cls.flags, cls.other_flags = secret_file(cls, SECRET), secret_file(cls, OTHER)
        return Pair(*cls.flags)

    def test_with_the_same_secret_prefill_hands_over(self):
        answer = self.generate({"text": "Hello", "sampling_params": greedy(4)})
        self.assertEqual(len(answer["output_ids"]), 4)
        self.wait_idle()

    def test_a_decode_server_with_another_or_no_secret_is_refused_on_both_sides(self):
        prefill = self.deployment.prefill
        for name, flags, said in (
            ("another", self.other_flags, "its deployment secret differs"),
            ("none", (), "it has no deployment secret"),
        ):
            with self.subTest(name):
                decode = Server(f"decode-{name}", "launch_server", free_port(), "--disaggregation-mode", "decode",
                                *SERVER_FLAGS, *flags)  # fmt: skip
                self.addCleanup(decode.close)
                decode.wait_ready()
                body = {"text": "Hello", "sampling_params": greedy(4), "bootstrap_host": "127.0.0.1",
                        "bootstrap_port": self.deployment.bootstrap_port, "bootstrap_room": 7}  # fmt: skip
                answer = request(decode.port, "POST", "/generate", body, deadline_s=30)
                self.assertEqual(answer.status, 500, answer)
                self.assertIn(said, decode.log())
                line = rf"a connection from 127\.0\.0\.1:\d+ was refused: {said}"
                wait_until(lambda line=line: re.search(line, prefill.log()), 10, "a line in prefill's log")
                self.assertEqual(secrets_in(prefill.log() + decode.log()), [])
        self.test_with_the_same_secret_prefill_hands_over()

    def test_secrets_that_cannot_be_are_refused_at_start(self):
        for name, text, said in (("short", "sesame", "wanted 16 to 4096 bytes, got 6"), ("empty", "", "is empty")):
            with self.subTest(name):
                server = Server(name, "launch_server", free_port(), *secret_file(type(self), text))
                self.addCleanup(server.close)
                self.assertEqual(server.child.wait(30), 2)
                self.assertIn(said, server.log())
        missing = Server("missing", "launch_server", free_port(), "--deployment-secret-file", "/nowhere/secret")
        self.addCleanup(missing.close)
        self.assertEqual(missing.child.wait(30), 2)
        self.assertIn("/nowhere/secret: cannot be read", missing.log())


class NodesTest(Case):
    @classmethod
    def make(cls):
        return Nodes("guarded", 2, *secret_file(cls, SECRET))

    def test_nodes_with_the_same_secret_serve(self):
        body = {"text": ["Hello", "World"], "sampling_params": greedy(4)}
        answer = request(self.port, "POST", "/generate", body)
        self.assertEqual(answer.status, 200, answer)


class StrangerTest(Case):
    """A node whose secret differs ends by itself; the group waits on for the right one."""

    @classmethod
    def make(cls):
        cls.flags = secret_file(cls, SECRET), secret_file(cls, OTHER)
        deployment = Nodes("odd", 2, "--dist-timeout", 60, of_node=cls.flags)
        deployment.wait_ready = lambda: deployment
        return deployment

    def test_it_is_refused_by_name_on_both_sides(self):
        first, stranger = self.deployment.servers
        self.assertEqual(stranger.child.wait(60), 2)
        self.assertIn("its deployment secret differs", stranger.log())
        wait_until(lambda: "was refused: its deployment secret differs" in first.log(), 10, "a line in node 0's log")
        self.assertIsNone(first.child.poll(), "the group waits on")
        self.assertEqual(secrets_in(first.log() + stranger.log()), [])


del Case

if __name__ == "__main__":
    harness.main()
