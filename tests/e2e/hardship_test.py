"""Peers that stand still, cut networks, full disks, no file descriptors, clients that do not read: what runs ends, or
goes on; blocks come back, and service resumes."""

import contextlib
import http.client
import os
import pathlib
import resource
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import harness
from harness import REFERENCE, Case, Combined, Pair, Stream, greedy, request, wait_until
from steady_load import LONG, assert_tokens_return

PROMPT = next(prompt for prompt in REFERENCE if prompt["name"] == "chat-capital")
EXPECTED = PROMPT["greedy"][:8]
NOTICED_S = 15  # a peer that stands still is given up by then
RESUME_S = 60
IS_ROOT = os.geteuid() == 0


def answers(port, host="127.0.0.1", deadline_s=10):
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        body = {"input_ids": PROMPT["ids"], "sampling_params": greedy(64)}
        answer = request(port, "POST", "/generate", body, deadline_s=deadline_s, host=host)
        return answer.status == 200 and answer.json()["output_ids"] == EXPECTED
    return False


class FrozenTest(Case):
    """SIGSTOP is what a hung driver or a paused machine look like: connections stand, nobody answers."""

    @classmethod
    def make(cls):
        return Pair()

    def freeze_and_thaw(self, victim, survivor):
        for _ in range(3):
            wait_until(lambda: answers(self.port), RESUME_S, "service before")
        assert_tokens_return(self, self.port, lambda: self.freeze(victim, survivor))
        self.wait_idle(30)

    def freeze(self, victim, survivor):
        os.kill(victim.child.pid, signal.SIGSTOP)
        try:
            frozen = time.monotonic()
            wait_until(lambda: request(self.port, "GET", "/readiness").status != 200, NOTICED_S, "the router is red")
            red = time.monotonic() - frozen
            wait_until(lambda: not survivor.state()["leased_blocks"], 30, f"{survivor.name} has its blocks back")
            back = time.monotonic() - frozen
        finally:
            os.kill(victim.child.pid, signal.SIGCONT)
        thawed = time.monotonic()
        wait_until(lambda: request(self.port, "GET", "/readiness").status == 200, RESUME_S, "the router is green")
        wait_until(lambda: answers(self.port), RESUME_S, "service again")
        green = time.monotonic() - thawed
        print(
            f"{victim.name}: red after {red:.1f} s, blocks back after {back:.1f} s, "
            f"service {green:.1f} s after the thaw"
        )

    def test_prefill_stands_still(self):
        self.freeze_and_thaw(self.deployment.prefill, self.deployment.decode)

    def test_decode_stands_still(self):
        self.freeze_and_thaw(self.deployment.decode, self.deployment.prefill)


class ShortageTest(Case):
    @classmethod
    def make(cls):
        return Combined()

    @unittest.skipUnless(IS_ROOT, "mounting a small disk needs root")
    def test_a_full_disk_costs_traces_and_dumps_but_no_request(self):
        server = self.deployment.server
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], check=True)
            try:
                pathlib.Path(folder, "filler").write_bytes(b"x" * 16384)
                answer = request(server.port, "POST", "/start_profile", {"output_dir": folder, "num_steps": 4})
                self.assertIn(answer.status, (200, 400, 500), answer)
                self.assertTrue(answers(server.port))
                wait_until(lambda: not server.state()["profiling"], 20, "the profile ends")
                request(server.port, "POST", "/start_expert_distribution_record")
                self.assertTrue(answers(server.port))
                request(server.port, "POST", "/stop_expert_distribution_record")
            finally:
                subprocess.run(["umount", "-l", folder], check=True)
        self.assertIn("No space left", server.log())
        self.assertTrue(answers(server.port))
        self.wait_idle()

    def test_a_client_that_reads_nothing_holds_up_nobody(self):
        body = {"input_ids": PROMPT["ids"], "sampling_params": greedy(2000, ignore_eos=True), "stream": True}
        deaf = [Stream(self.port, "/generate", body) for _ in range(8)]
        try:
            begin = time.monotonic()
            self.assertTrue(answers(self.port, deadline_s=30))
            self.assertLess(time.monotonic() - begin, 20)
        finally:
            for stream in deaf:
                stream.close()
        self.wait_idle(30)

    def test_clients_that_vanish_give_their_blocks_back(self):
        body = {"input_ids": LONG[0], "sampling_params": greedy(2000, ignore_eos=True), "stream": True}
        for _ in range(3):
            gone = [Stream(self.port, "/generate", body) for _ in range(16)]
            for stream in gone:  # reset, not closed: as a machine that lost its power and came back
                stream.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                stream.close()
        self.wait_idle(15)


class DescriptorsTest(unittest.TestCase):
    def test_without_file_descriptors_a_server_waits_and_serves_again(self):
        port = harness.free_port()
        flags = ["--disaggregation-mode", "null", *harness.SERVER_FLAGS]
        server = harness.Server("few", "launch_server", port, *flags)
        try:
            server.wait_ready()
            pid = server.child.pid
            few = len(os.listdir(f"/proc/{pid}/fd")) + 32
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, few))
            held = []
            for _ in range(200):
                connection = socket.socket()
                connection.settimeout(2)
                with contextlib.suppress(OSError):
                    connection.connect(("127.0.0.1", port))
                held.append(connection)
            time.sleep(1)
            self.assertIsNone(server.child.poll(), server.log()[-2000:])
            for connection in held:
                connection.close()
            wait_until(lambda: answers(port), RESUME_S, "service when there are descriptors again")
            self.assertEqual(server.stop(), 0)
        finally:
            server.close()


@unittest.skipUnless(IS_ROOT, "network interfaces need root")
class LostInterfaceTest(unittest.TestCase):
    """As containers come and go, so do their interfaces, which have nothing to do with these servers."""

    def test_an_interface_that_nobody_uses_may_go(self):
        one, other = f"tdm{os.getpid()}a", f"tdm{os.getpid()}b"
        made = subprocess.run(["ip", "link", "add", one, "type", "veth", "peer", "name", other], capture_output=True)
        if made.returncode != 0:
            self.skipTest("network interfaces are not permitted here")
        gone = ["ip", "link", "del", one]
        self.addCleanup(subprocess.run, gone, capture_output=True)
        for words in (["addr", "add", "10.214.7.1/24", "dev", one], ["link", "set", one, "up"],
                      ["link", "set", other, "up"]):  # fmt: skip
            subprocess.run(["ip", *words], check=True)
        pair = Pair()
        self.addCleanup(pair.close)
        pair.wait_ready()
        subprocess.run(gone, check=True)
        for i in range(4):
            answer = request(pair.front.port, "POST", "/generate", {"input_ids": LONG[0], "sampling_params": greedy(4)})
            self.assertEqual(answer.status, 200, f"request {i}: {answer.body}")


@unittest.skipUnless(IS_ROOT, "network namespaces need root")
class CutNetworkTest(unittest.TestCase):
    """Prefill and decode in network namespaces of their own, and the wire between them cut: no reset, no goodbye."""

    SPACE = f"tandem-{os.getpid()}"

    def ip(self, *words, check=True):
        return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)

    def setUp(self):
        if self.ip("netns", "add", self.SPACE, check=False).returncode != 0:
            self.skipTest("network namespaces are not permitted here")
        self.addCleanup(self.ip, "netns", "del", self.SPACE, check=False)
        self.ip("link", "add", "tdm0", "type", "veth", "peer", "name", "tdm1", "netns", self.SPACE)
        self.ip("addr", "add", "10.213.7.1/24", "dev", "tdm0")
        self.ip("link", "set", "tdm0", "up")
        for words in (["addr", "add", "10.213.7.2/24", "dev", "tdm1"], ["link", "set", "tdm1", "up"],
                      ["link", "set", "lo", "up"]):
            self.ip("-n", self.SPACE, *words)

    def server(self, name, host, *flags, space=None):
        port = harness.free_port()
        command = [harness.binary(), *map(str, flags), "--host", host, "--port", str(port)]
        log = tempfile.NamedTemporaryFile(prefix=f"tandem-{name}-", suffix=".log")
        child = subprocess.Popen(
            ["ip", "netns", "exec", space, *command] if space else command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=harness.die_with_parent,
        )
        self.addCleanup(child.wait, 10)
        self.addCleanup(child.kill)
        return port, log

    def state(self, host, port):
        return request(port, "GET", "/get_server_info", host=host, deadline_s=5).json()["internal_states"][0]

    def test_a_cut_wire_is_noticed_and_mended(self):
        bootstrap = harness.free_port()
        here, there = "10.213.7.1", "10.213.7.2"
        prefill, prefill_log = self.server(
            "prefill", there, "launch_server", "--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port",
            bootstrap, *harness.SERVER_FLAGS, space=self.SPACE)
        decode, decode_log = self.server(
            "decode", here, "launch_server", "--disaggregation-mode", "decode", *harness.SERVER_FLAGS)
        router, _ = self.server(
            "router", here, "router", "--pd-disaggregation", "--prefill", f"http://{there}:{prefill}", bootstrap,
            "--decode", f"http://{here}:{decode}", "--health-check-interval-secs", 1, "--health-check-timeout-secs", 2,
            "--worker-startup-check-interval", 1, "--cb-timeout-duration-secs", 2)
        wait_until(lambda: answers(router, here), harness.START_DEADLINE_S, "service before")

        def cut():
            self.ip("link", "set", "tdm0", "down")
            begin = time.monotonic()
            try:
                wait_until(lambda: not self.state(here, decode)["leased_blocks"], 45, "decode has its blocks back")
                back = time.monotonic() - begin
            finally:
                self.ip("link", "set", "tdm0", "up")
            mended = time.monotonic()
            wait_until(lambda: answers(router, here), RESUME_S, "service again")
            served = time.monotonic() - mended
            print(f"cut: decode's blocks back after {back:.1f} s, service {served:.1f} s after it was mended")

        assert_tokens_return(self, router, cut, here)
        for host, port in ((here, decode), (there, prefill)):
            wait_until(lambda: harness.idle_fault(self.state(host, port)) is None, 45, "all blocks are back")


del Case

if __name__ == "__main__":
    harness.main()
