"""tandem up: comes up, serves, ends when asked and leaves nothing behind."""

import pathlib
import re
import signal
import socket
import unittest

import harness
from harness import REFERENCE, Process, free_port, greedy, request, wait_until


def descendants(pid):
    """Of a living process, its children's children included."""
    found = []
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return found
    for child in children:
        found += [int(child), *descendants(child)]
    return found


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class UpTest(unittest.TestCase):
    def start(self, *flags):
        port = free_port()
        process = Process("up", "up", "--port", port, *flags)
        self.addCleanup(process.close)
        return process, port

    def wait_url(self, process):
        def url():
            self.assertIsNone(process.child.poll(), process.log()[-3000:])
            return re.search(r"router +ready +http://127\.0\.0\.1:(\d+)", process.log())

        return int(wait_until(url, harness.START_DEADLINE_S, "the URL is printed")[1])

    def test_serves_and_leaves_nothing_behind(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number.name):
                process, port = self.start()
                self.assertEqual(self.wait_url(process), port)
                prompt = next(prompt for prompt in REFERENCE if prompt["name"] == "chat-capital")

                def answers():
                    answer = request(
                        port, "POST", "/generate", {"input_ids": prompt["ids"], "sampling_params": greedy(64)}
                    )
                    return answer.status == 200 and answer.json()["output_ids"] == prompt["greedy"][:8]

                wait_until(answers, 60, "an answer")
                children = descendants(process.child.pid)
                self.assertGreaterEqual(len(children), 2, "servers are processes of their own")
                process.child.send_signal(number)
                self.assertEqual(process.child.wait(15), 0, process.log()[-3000:])
                wait_until(lambda: not any(map(alive, children)), 5, "no process is left")
                with self.assertRaises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
                    pass

    def test_bench_runs_and_exits_cleanly(self):
        process, _ = self.start("--bench", "--num-prompts", 8, "--max-concurrency", 4)
        self.assertEqual(process.child.wait(150), 0, process.log()[-3000:])
        self.assertIn("Successful requests:", process.log())


if __name__ == "__main__":
    harness.main()
