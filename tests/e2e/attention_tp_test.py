"""Ranks that share their requests, prefill and decode apart and of different sizes: the reference's tokens, logs and
figures of leaders only, a clean end."""

import threading

import harness
from harness import REFERENCE, Case, Pair, Server, certain_tokens, greedy, request
from nodes_test import Nodes

PROMPTS = [prompt for prompt in REFERENCE if len(certain_tokens(prompt)) >= 12 and len(prompt["ids"]) < 600][:8]
SMALL = ("--num-threads", 1, "--max-total-tokens", 8192, "--max-running-requests", 32)


class SplitPair(Pair):
    """Prefill: one group of two ranks. Decode: two groups of two."""

    def start_prefill(self):
        self.prefill = Server(
            "prefill",
            "launch_server",
            self.prefill_port,
            *("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", self.bootstrap_port),
            *("--tp-size", 2, "--moe-a2a-backend", "deepep", "--kv-digest-sample-rate", 1, *SMALL),
        )

    def start_decode(self):
        self.decode = Server(
            "decode",
            "launch_server",
            self.decode_port,
            *("--disaggregation-mode", "decode", "--decode-log-interval", 1, "--kv-digest-sample-rate", 1, *SMALL),
            *("--tp-size", 4, "--dp-size", 2, "--enable-dp-attention", "--enable-dp-lm-head"),
            *("--moe-dense-tp-size", 1, "--moe-a2a-backend", "deepep", "--prefill-round-robin-balance"),
        )


class AttentionTpTest(Case):
    @classmethod
    def make(cls):
        return SplitPair()

    def test_tokens_are_the_reference_s_and_only_leaders_speak(self):
        results = [None] * len(PROMPTS)

        def ask(i):
            body = {"input_ids": PROMPTS[i]["ids"], "sampling_params": greedy(12, ignore_eos=True)}
            results[i] = request(self.port, "POST", "/generate", body)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(harness.REQUEST_DEADLINE_S)
        for prompt, answer in zip(PROMPTS, results):
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(answer.json()["output_ids"], prompt["greedy"][:12], prompt["name"])
        self.wait_idle()
        info = request(self.deployment.decode.port, "GET", "/get_server_info").json()
        self.assertEqual(len(info["internal_states"]), 2)
        self.assertEqual((info["tp_size"], info["dp_size"]), (4, 2))
        log = self.deployment.decode.log()
        self.assertRegex(log, r"DP[01] TP[02] EP[02]\] Decode batch")
        self.assertNotRegex(log, r"TP[13] EP[13]\] Decode batch")
        self.assertRegex(self.deployment.prefill.log(), r" TP0 EP0\] Prefill batch")
        for server in self.deployment.servers:
            self.assertEqual(server.stop(), 0)


class NodesTest(Case):
    """Two nodes, on each a group of two ranks: both groups give the reference's tokens."""

    @classmethod
    def make(cls):
        return Nodes("split", 4, "--dp-size", 2)

    def test_groups_of_both_nodes_give_the_reference_s_tokens(self):
        for i, prompt in enumerate(PROMPTS[:4]):
            body = {
                "input_ids": prompt["ids"],
                "data_parallel_rank": i % 2,
                "sampling_params": greedy(12, ignore_eos=True),
            }
            self.assertEqual(self.generate(body)["output_ids"], prompt["greedy"][:12], prompt["name"])
        info = request(self.port, "GET", "/get_server_info").json()
        self.assertEqual(len(info["internal_states"]), 2)
        for server in self.deployment.servers:
            server.stop()


if __name__ == "__main__":
    harness.main()
