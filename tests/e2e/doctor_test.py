"""tandem doctor beside a good and a bad deployment, and what --disaggregation-ib-device does."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import unittest

from harness import MODEL, Case, Pair, Process, binary, free_port, greedy, main, wait_until

SMALL = ("--num-threads", "1", "--max-total-tokens", "16384")


def doctor(*args, form="json"):
    """Exit status and findings by name (or the text)."""
    command = [binary(), "doctor", "--format", form, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if form != "json":
        return done.returncode, done.stdout
    try:
        report = json.loads(done.stdout)
    except ValueError:
        raise AssertionError(f"{done.stdout}\n{done.stderr}") from None
    assert report["ok"] == (done.returncode == 0), done
    return done.returncode, {check["name"]: check for check in report["checks"]}


class GoodTest(unittest.TestCase):
    def test_a_free_machine_with_the_embedded_model_passes(self):
        ports = free_port(), free_port()
        status, checks = doctor(
            *SMALL, "--port", ports[0], "--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", ports[1]
        )
        self.assertEqual(status, 0, checks)
        for name in ("flags", "model", "tokenizer", "memory", "port HTTP", "port KV", "devices", "GPU"):
            self.assertEqual(checks[name]["verdict"], "ok", checks[name])
        self.assertIn("sum", checks["memory"]["found"])

    def test_the_table_has_a_line_per_check_and_a_sum(self):
        status, text = doctor(*SMALL, "--port", free_port(), form="table")
        self.assertEqual(status, 0, text)
        self.assertRegex(text, r"(?m)^ok    port HTTP +127\.0\.0\.1:\d+ is free$")
        self.assertRegex(text, r"\d+ ok, \d+ warn, 0 fail\n$")

    def test_a_doctor_that_listens_is_measured_by_one_that_calls(self):
        listening = Process("doctor", "doctor", "--listen", 0, "--host", "127.0.0.1")
        self.addCleanup(listening.close)
        wait_until(lambda: "listens on" in listening.log(), 30, "listening")
        address = listening.log().split("listens on ")[1].split()[0]
        status, checks = doctor(*SMALL, "--port", free_port(), "--peer", address, "--check-timeout", 60)
        self.assertEqual(status, 0, checks)
        self.assertIn("MB/s", checks[f"peer {address}"]["found"])
        self.assertEqual(checks[f"clock {address}"]["verdict"], "ok")
        self.assertEqual(listening.stop(), 0)


class BadTest(unittest.TestCase):
    def fails(self, name, *args):
        status, checks = doctor(*args)
        self.assertEqual(status, 1, checks)
        self.assertEqual(checks[name]["verdict"], "fail", checks)
        self.assertTrue(checks[name]["fix"], checks[name])
        return checks[name]

    def test_a_port_that_is_taken(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            check = self.fails("port HTTP", *SMALL, "--port", taken.getsockname()[1])
        self.assertIn("already in use", check["found"])
        self.assertIn("--port", check["fix"])

    def test_a_peer_and_an_instance_that_are_not_there(self):
        peer, instance = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        status, checks = doctor(*SMALL, "--port", free_port(), "--peer", peer, "--instance", instance)
        self.assertEqual(status, 1)
        self.assertEqual(checks[f"peer {peer}"]["verdict"], "fail")
        self.assertIn("--listen", checks[f"peer {peer}"]["fix"])
        self.assertEqual(checks[f"instance {instance}"]["verdict"], "fail")

    def test_a_shard_that_is_missing(self):
        with tempfile.TemporaryDirectory() as place:
            model = pathlib.Path(place) / "model"
            shutil.copytree(MODEL, model, copy_function=os.symlink)
            shards = sorted(model.glob("*.safetensors"))
            shards[-1].unlink()
            check = self.fails("model", *SMALL, "--port", free_port(), "--model-path", model)
            self.assertIn(shards[-1].name, check["found"])

    def test_a_pool_that_does_not_fit(self):
        check = self.fails("memory", "--num-threads", 1, "--port", free_port(), "--max-total-tokens", 1000000000)
        self.assertIn("--max-total-tokens", check["fix"])

    def test_a_device_that_is_not_there_is_refused_by_doctor_and_by_every_use(self):
        device = ("--disaggregation-ib-device", "nonexistent0")
        self.assertIn("tcp/lo", self.fails("devices", *SMALL, "--port", free_port(), *device)["found"])
        uses = {
            "KV": ("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", free_port()),
            "nodes": ("--tp-size", 2, "--dp-size", 2, "--enable-dp-attention", "--nnodes", 2, "--node-rank", 1)
            + ("--dist-init-addr", f"127.0.0.1:{free_port()}"),
        }
        for name, flags in uses.items():
            with self.subTest(use=name):
                command = [binary(), "launch_server", *SMALL, "--port", free_port(), *flags, *device]
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertIn("'nonexistent0' is not one that UCX can use here", done.stderr)


class OneDeviceTest(Case):
    """Prefill and decode that may use one device only."""

    @classmethod
    def make(cls):
        return Pair("--disaggregation-ib-device", "lo")

    def test_caches_are_handed_over_through_it(self):
        answer = self.generate({"text": "The capital of Japan is", "sampling_params": greedy(8)})
        self.assertEqual(answer["meta_info"]["completion_tokens"], 8)
        self.wait_idle()

    def test_a_running_instance_is_well_and_its_clock_is_compared(self):
        url = f"http://127.0.0.1:{self.deployment.decode_port}"
        status, checks = doctor(*SMALL, "--port", free_port(), "--instance", url)
        self.assertEqual(status, 0, checks)
        self.assertEqual(checks[f"clock {url}"]["verdict"], "ok", checks)


if __name__ == "__main__":
    main()
