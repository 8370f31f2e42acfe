"""Servers of several nodes, all on this machine: same tokens as one rank, prefill and decode apart, experts counted and
moved while it serves, a node that dies, nodes that do not fit together or do not come."""

import gzip
import http.client
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

import harness
from harness import REFERENCE, Case, Process, Server, Stream, certain_tokens, free_port, greedy, request, wait_until

PROMPTS = [prompt for prompt in REFERENCE if len(prompt["ids"]) < 300][:6]
LOST_DEADLINE_S = 15
FLAGS = ("--num-threads", 1, "--max-total-tokens", 16384, "--max-running-requests", 64)


class Nodes:
    """One server over two nodes. more: flags of both; of_node: by node, flags of one."""

    def __init__(self, name, ranks, *more, of_node=((), ())):
        meeting = f"127.0.0.1:{free_port()}"
        self.servers = [
            Server(
                f"{name}-node{node}",
                "launch_server",
                free_port(),
                *("--tp-size", ranks, "--dp-size", ranks, "--enable-dp-attention", "--moe-a2a-backend", "deepep"),
                *("--nnodes", 2, "--node-rank", node, "--dist-init-addr", meeting),
                *FLAGS,
                *more,
                *of_node[node],
            )
            for node in range(2)
        ]
        self.front = self.servers[0]

    def wait_ready(self):
        for server in self.servers:
            server.wait_ready()
        return self

    def close(self):
        for server in self.servers:
            server.close()


def states(server):
    return request(server.port, "GET", "/get_server_info").json()["internal_states"]


class CombinedTest(Case):
    """Two nodes of two ranks beside a server of one."""

    @classmethod
    def make(cls):
        nodes = Nodes("combined", 4)
        nodes.single = Server("single", "launch_server", free_port(), *FLAGS)
        nodes.servers.append(nodes.single)
        return nodes

    def wait_idle(self, deadline_s=15):
        wait_until(lambda: not any(map(harness.idle_fault, states(self.deployment.front))), deadline_s, "idle")

    def tokens(self, server, ids, **more):
        body = {"input_ids": ids, "sampling_params": greedy(24, ignore_eos=True), **more}
        answer = request(server.port, "POST", "/generate", body)
        self.assertEqual(answer.status, 200, answer)
        return answer.json()["output_ids"]

    def test_every_rank_gives_the_tokens_of_a_server_of_one_rank(self):
        for i, prompt in enumerate(PROMPTS):
            expected = self.tokens(self.deployment.single, prompt["ids"])
            ranks = range(4) if i == 0 else [i % 4]
            for rank in ranks:
                with self.subTest(prompt=prompt["name"], rank=rank):
                    got = self.tokens(self.deployment.front, prompt["ids"], data_parallel_rank=rank)
                    self.assertEqual(got, expected)
        self.wait_idle()

    def test_a_batch_over_all_ranks_gives_the_tokens_of_a_server_of_one_rank(self):
        ids = [prompt["ids"] for prompt in PROMPTS] * 2
        body = {"input_ids": ids, "sampling_params": greedy(16, ignore_eos=True)}
        answers = [request(s.port, "POST", "/generate", body) for s in (self.deployment.front, self.deployment.single)]
        got, expected = ([item["output_ids"] for item in answer.json()] for answer in answers)
        self.assertEqual(got, expected)
        self.wait_idle()

    def test_figures_of_all_ranks_are_shown_and_the_other_node_says_that_it_lives(self):
        self.assertEqual(len(states(self.deployment.front)), 4)
        load = request(self.port, "GET", "/get_load").json()
        self.assertEqual([rank["dp_rank"] for rank in load], [0, 1, 2, 3])
        other = self.deployment.servers[1].port
        for path in ("/ping", "/health", "/health_generate"):
            self.assertEqual(request(other, "GET", path).status, 200)
        self.assertEqual(request(other, "POST", "/generate", {"text": "x"}).status, 404)

    def test_a_hang_up_frees_a_rank_of_the_other_node(self):
        body = {
            "input_ids": PROMPTS[0]["ids"],
            "sampling_params": greedy(3000, ignore_eos=True),
            "stream": True,
            "data_parallel_rank": 3,
        }
        with Stream(self.port, "/generate", body) as stream:
            self.assertEqual(stream.status, 200)
            next(iter(stream))
        self.wait_idle()

    def test_flushing_reaches_the_other_node(self):
        self.tokens(self.deployment.front, PROMPTS[1]["ids"], data_parallel_rank=2)
        self.wait_idle()
        self.assertEqual(request(self.port, "POST", "/flush_cache").status, 200)
        wait_until(lambda: not any(s["cached_blocks"] for s in states(self.deployment.front)), 5, "nothing cached")

    def test_ranks_of_both_nodes_record_the_same_steps_and_refuse_together(self):
        refused = request(self.port, "POST", "/start_profile", {"output_dir": "/proc/none"})
        self.assertEqual(refused.status, 400)
        self.assertIn("/proc/none", refused.json()["message"])
        with tempfile.TemporaryDirectory(prefix="tandem-profile-") as directory:
            body = {"output_dir": directory, "num_steps": 6, "merge_profiles": True}
            self.assertEqual(request(self.port, "POST", "/start_profile", body).status, 200)
            self.tokens(self.deployment.front, PROMPTS[0]["ids"], data_parallel_rank=3)
            merged = lambda: list(pathlib.Path(directory).glob("merged-*.gz"))
            wait_until(merged, 40, "the merged trace")
            files = sorted(pathlib.Path(directory).glob("*-TP-*.gz"))
            self.assertEqual(len(files), 4)
            traces = [json.load(gzip.open(path))["traceEvents"] for path in files]
            steps = [[event["args"]["step"] for event in trace if event["name"] == "step"] for trace in traces]
            self.assertEqual(len(steps[0]), 6)
            self.assertEqual(steps, [steps[0]] * 4)
            self.assertEqual(request(self.port, "POST", "/stop_profile").status, 400)
        self.wait_idle()

    def test_zz_a_signal_to_the_other_node_ends_all_nodes_in_agreement(self):
        first, other = self.deployment.servers[:2]
        body = {"input_ids": PROMPTS[0]["ids"], "sampling_params": greedy(40, ignore_eos=True)}
        answers = []
        asking = threading.Thread(target=lambda: answers.append(request(self.port, "POST", "/generate", body)))
        asking.start()
        wait_until(lambda: any(s["running"] for s in states(first)), 10, "running")
        self.assertEqual(other.stop(), 0)
        self.assertEqual(first.child.wait(10), 0)
        asking.join(10)
        self.assertEqual([answer.status for answer in answers], [200])


class ExpertsTest(Case):
    """Two nodes of two ranks that rebalance all the time, beside a server of one rank."""

    @classmethod
    def make(cls):
        cls.records = tempfile.TemporaryDirectory(prefix="tandem-records-")
        os.environ["SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"] = cls.records.name
        nodes = Nodes(
            "experts", 4,
            *("--ep-num-redundant-experts", 8, "--enable-eplb", "--enable-eplb-rebalance-async"),
            *("--eplb-rebalance-num-iterations", 30, "--eplb-algorithm", "deepseek"),
        )
        nodes.single = Server("experts-single", "launch_server", free_port(), *FLAGS)
        nodes.servers.append(nodes.single)
        return nodes

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.records.cleanup()

    def placement(self):
        return request(self.port, "GET", "/expert_placement").json()

    def batch(self, server):
        body = {"input_ids": [p["ids"] for p in PROMPTS] * 2, "sampling_params": greedy(48, ignore_eos=True)}
        answer = request(server.port, "POST", "/generate", body)
        self.assertEqual(answer.status, 200, answer)
        return [item["output_ids"] for item in answer.json()]

    def test_tokens_stay_the_same_while_experts_move_between_nodes_and_a_record_holds_all_hits(self):
        expected = self.batch(self.deployment.single)
        self.assertEqual(request(self.port, "POST", "/start_expert_distribution_record").status, 200)
        end = time.monotonic() + 90
        batches = 0
        while (self.placement()["epoch"] < 4 or batches < 3) and time.monotonic() < end:
            self.assertEqual(self.batch(self.deployment.front), expected)
            batches += 1
        placement = self.placement()
        self.assertGreaterEqual(placement["epoch"], 4, placement)
        self.assertEqual(placement["failed"], 0, placement)
        self.assertGreater(placement["experts_moved"], 0)
        self.assertGreater(self.dumped_pairs(), 0)
        # Hits of the other node's ranks alone.
        body = {"input_ids": PROMPTS[0]["ids"], "sampling_params": greedy(8, ignore_eos=True), "data_parallel_rank": 3}
        self.assertEqual(request(self.port, "POST", "/generate", body).status, 200)
        self.assertGreater(self.dumped_pairs(), 0)
        self.assertEqual(request(self.port, "POST", "/stop_expert_distribution_record").status, 200)

    def dumped_pairs(self):
        """The (token, expert) pairs of each layer of a dump made now, which are the same in all layers."""
        before = set(pathlib.Path(self.records.name).iterdir())
        answer = request(self.port, "POST", "/dump_expert_distribution_record")
        self.assertEqual(answer.status, 200, answer)
        (file,) = set(pathlib.Path(self.records.name).iterdir()) - before
        shown = subprocess.run(
            [harness.binary(), "experts", "show", file], capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual(shown.returncode, 0, shown.stderr)
        rows = [line.split() for line in shown.stdout.splitlines()]
        pairs = {int(row[1].replace(",", "")) for row in rows if len(row) == 5 and row[0].isdigit()}
        self.assertEqual(len(pairs), 1, shown.stdout)
        return pairs.pop()

    def test_a_placement_can_be_asked_for_and_a_wrong_one_is_refused(self):
        answer = request(self.port, "POST", "/rebalance", {"placement": {"physical_to_logical_map": [[0]]}})
        self.assertEqual(answer.status, 400, answer)
        self.assertEqual(request(self.deployment.servers[1].port, "GET", "/expert_placement").status, 404)


class PairTest(Case):
    """Prefill and decode apart, two nodes each, behind the router."""

    @classmethod
    def make(cls):
        pair = harness.Pair.__new__(harness.Pair)
        pair.bootstrap_port = free_port()
        digest = ("--kv-digest-sample-rate", 1.0)
        pair.groups = [
            Nodes("prefill", 2, "--disaggregation-mode", "prefill", *digest, of_node=(
                ("--disaggregation-bootstrap-port", pair.bootstrap_port),
                (),
            )),
            Nodes("decode", 2, "--disaggregation-mode", "decode", *digest),
        ]
        pair.prefill, pair.decode = (group.front for group in pair.groups)
        pair.prefill_port, pair.decode_port = pair.prefill.port, pair.decode.port
        pair.start_router(free_port())
        return PairOfGroups(pair)

    def test_tokens_are_the_references_whatever_rank_serves(self):
        for prompt in PROMPTS * 2:  # rooms are random, so are the ranks
            expected = certain_tokens(prompt)[:16]
            answer = self.generate({"input_ids": prompt["ids"], "sampling_params": greedy(16)})
            self.assertEqual(answer["output_ids"][: len(expected)], expected, prompt["name"])
        used = [[s["handovers"] for s in states(server)] for server in self.deployment.fronts]
        self.assertTrue(all(all(ranks) for ranks in used), used)


class PairOfGroups:
    def __init__(self, pair):
        self.pair, self.front = pair, pair.router
        self.fronts = [group.front for group in pair.groups]
        self.servers = [server for group in pair.groups for server in group.servers]

    def wait_ready(self):
        for server in (*self.servers, self.front):
            server.wait_ready()
        return self

    def close(self):
        for server in (self.front, *self.servers):
            server.close()


class Streams:
    """Long answers under way to many clients at once, and how each ended."""

    def __init__(self, port, count=12):
        self.port, self.ends, self.begun = port, [None] * count, set()
        self.threads = [threading.Thread(target=self.ask, args=(i,)) for i in range(count)]
        for thread in self.threads:
            thread.start()
        wait_until(lambda: len(self.begun) == count, 60, "all streams have begun")

    def ask(self, i):
        body = {"input_ids": PROMPTS[i % len(PROMPTS)]["ids"], "sampling_params": greedy(3000, ignore_eos=True)}
        try:
            with Stream(self.port, "/generate", {**body, "stream": True}, 60) as stream:
                last = None
                for last in stream:
                    self.begun.add(i)
                self.ends[i] = ("done" if stream.done else "cut", last)
        except (OSError, http.client.HTTPException) as error:
            self.ends[i] = (type(error).__name__, error)

    def join(self, deadline_s):
        for thread in self.threads:
            thread.join(deadline_s)
        return self.ends


class LossTest(Case):
    """kill -9 of a node under load, while experts move between nodes: an owner whose reader dies lives on."""

    @classmethod
    def make(cls):
        return Nodes(
            "lost", 4,
            *("--ep-num-redundant-experts", 8, "--enable-eplb", "--enable-eplb-rebalance-async"),
            *("--eplb-rebalance-num-iterations", 10, "--eplb-algorithm", "deepseek", "--eplb-bytes-per-step", 65536),
        )

    def test_every_client_hears_health_turns_red_and_node_0_names_the_node(self):
        first, other = self.deployment.servers
        streams = Streams(self.port)
        other.kill()
        killed = time.monotonic()

        def red():
            try:
                return request(self.port, "GET", "/health", deadline_s=5).status == 503
            except (OSError, http.client.HTTPException):
                return True

        wait_until(red, LOST_DEADLINE_S, "health red")
        ends = streams.join(30)
        self.assertLess(time.monotonic() - killed, LOST_DEADLINE_S)
        for how, last in ends:
            self.assertEqual(how, "done", ends)
            reason = last["meta_info"]["finish_reason"]
            self.assertEqual(reason["type"], "abort", last)
            self.assertIn("node 1", reason["message"])
        self.assertEqual(first.child.wait(LOST_DEADLINE_S), 1)
        self.assertIn("node 1 (127.0.0.1) was lost", first.log())


class DecodeGroup(Case):
    """One prefill server and a decode server of two nodes behind the router: node 1 of decode is lost under load."""

    @classmethod
    def make(cls):
        pair = harness.Pair.__new__(harness.Pair)
        pair.flags = ()
        pair.prefill_port, pair.bootstrap_port = free_port(), free_port()
        pair.start_prefill()
        cls.group = Nodes("decode", 2, "--disaggregation-mode", "decode")
        pair.decode, pair.decode_port = cls.group.front, cls.group.front.port
        pair.start_router(free_port())
        return pair

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.group.close()

    def lose(self, number, deadline_s, reason):
        """Sends the signal to node 1. All that waits for it has its end within the deadline."""
        first, other = self.group.servers
        streams = Streams(self.port)
        os.kill(other.child.pid, number)
        began = time.monotonic()
        stamps = {}
        ends = streams.join(deadline_s)
        stamps["clients"] = time.monotonic() - began
        self.assertLess(stamps["clients"], deadline_s, ends)
        for how, last in ends:
            self.assertEqual(how, "done", ends)
            finish = last["meta_info"]["finish_reason"]
            self.assertEqual(finish["type"], "abort", last)
            self.assertIn("node 1", finish["message"])
        self.assertEqual(first.child.wait(max(1, deadline_s - stamps["clients"])), 1, first.log()[-2000:])
        stamps["node 0"] = time.monotonic() - began
        self.assertIn("node 1 (127.0.0.1) was lost" + reason, first.log())
        prefill = self.deployment.prefill
        wait_until(lambda: harness.idle_fault(prefill.state()) is None, deadline_s, "prefill has its blocks back")
        stamps["prefill's blocks"] = time.monotonic() - began
        print("seconds:", {name: round(stamp, 1) for name, stamp in stamps.items()})
        # Nobody is there to answer, and who asks hears that at once.
        body = {"input_ids": PROMPTS[0]["ids"], "sampling_params": greedy(4)}
        self.assertIn(request(self.port, "POST", "/generate", body, deadline_s=20).status, (500, 502, 503))
        wait_until(lambda: harness.idle_fault(prefill.state()) is None, LOST_DEADLINE_S, "and keeps none")


class KilledDecodeNodeTest(DecodeGroup):
    def test_clients_prefill_and_node_0_are_told_within_seconds(self):
        self.lose(signal.SIGKILL, LOST_DEADLINE_S, "")


class FrozenDecodeNodeTest(DecodeGroup):
    def test_clients_prefill_and_node_0_are_told_once_it_was_silent_for_twelve_seconds(self):
        self.lose(signal.SIGSTOP, 25, ": nothing was heard of it for 12 s")


class FrozenTest(Case):
    """SIGSTOP of a node: its connections stand, nothing comes any more."""

    @classmethod
    def make(cls):
        return Nodes("frozen", 2)

    def test_a_frozen_node_is_named_within_fifteen_seconds(self):
        first, other = self.deployment.servers
        os.kill(other.child.pid, signal.SIGSTOP)
        try:
            self.assertEqual(first.child.wait(25), 1)
            self.assertIn("node 1 (127.0.0.1) was lost: nothing was heard of it for 12 s", first.log())
            self.assertRegex(first.log(), r"flight recorder: stuck: rank 1 \(combined, no recording .* has not voted")
        finally:
            os.kill(other.child.pid, signal.SIGCONT)


class StartTest(harness.unittest.TestCase):
    def run_both(self, *more, of_node=((), ())):
        nodes = Nodes("start", 2, *more, of_node=of_node)
        try:
            return [(server.child.wait(60), server.log()) for server in nodes.servers]
        finally:
            nodes.close()

    def test_a_flag_that_differs_is_named_on_both_nodes(self):
        for status, log in self.run_both(of_node=(("--page-size", 1), ("--page-size", 4))):
            self.assertEqual(status, 2, log)
            self.assertIn("--page-size differs: node 0 (127.0.0.1) has 1, node 1 (127.0.0.1) has 4", log)

    def test_a_missing_node_is_named(self):
        address = f"127.0.0.1:{free_port()}"
        lines = {
            0: "node(s) 1 of 2 did not come to " + address,
            1: "node 1 found no group: node 0 at " + address,
        }
        for node, line in lines.items():
            alone = Process(
                f"alone{node}", "launch_server", "--port", free_port(), "--tp-size", 2, "--dp-size", 2,
                "--enable-dp-attention", "--nnodes", 2, "--node-rank", node, "--dist-init-addr", address,
                "--dist-timeout", 1, *FLAGS,
            )
            try:
                self.assertEqual(alone.child.wait(60), 1, alone.log())
                self.assertIn(line, alone.log())
            finally:
                alone.close()


if __name__ == "__main__":
    harness.main()
