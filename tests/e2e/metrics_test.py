"""Metrics: docs/metrics.md says what servers and router do under load; the dashboard asks for no others."""

import contextlib
import http.client
import itertools
import json
import re
import threading
import unittest

from harness import ROOT, Combined, Pair, Server, Stream, free_port, main, request, wait_until

# Gauges of expert balance come and go with the recorder's modes; experts.md has them.
ELSEWHERE = re.compile(r"eplb|expert")
HISTOGRAM_SUFFIX = re.compile(r"_(bucket|sum|count)$")


def documented():
    """{metric: (type, {role: cell})} of the tables in docs/metrics.md, and the letters that it explains."""
    table, roles = {}, []
    text = (ROOT / "docs/metrics.md").read_text()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| metric |"):
            roles = cells[2:-1]
        elif line.startswith("| `"):
            table[cells[0].strip("`")] = (cells[1], dict(zip(roles, cells[2:-1])))
    return table, set(re.findall(r"^- (\w): ", text, re.M))


class Page:
    """One /metrics answer: the type of each family, and its total over all labels (of histograms: the count)."""

    def __init__(self, text):
        self.types, self.totals = {}, {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                self.types[name] = kind
            elif line and not line.startswith("#"):
                name = re.match(r"[\w:]+", line)[0]
                base = HISTOGRAM_SUFFIX.sub("", name)
                if self.types.get(base) == "histogram":
                    if not name.endswith("_count"):
                        continue
                    name = base
                self.totals[name] = self.totals.get(name, 0) + float(line.rsplit(" ", 1)[1])


class Watch:
    """Looks at the metrics of several servers until stopped, and remembers what each family was."""

    def __init__(self, servers):
        self.servers = servers
        self.types = {role: {} for role in servers}
        self.values = {role: {} for role in servers}
        self.stopped = threading.Event()
        self.look()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def look(self):
        for role, server in self.servers.items():
            with contextlib.suppress(OSError, http.client.HTTPException):
                page = Page(request(server.port, "GET", "/metrics", deadline_s=10).body.decode())
                self.types[role].update(page.types)
                for name, total in page.totals.items():
                    self.values[role].setdefault(name, []).append(total)

    def run(self):
        while not self.stopped.wait(0.02):
            self.look()

    def value(self, role, name):
        return self.values[role].get(name, [0])[-1]

    def stop(self):
        self.stopped.set()
        self.thread.join()

    def moved(self, role, name):
        seen = self.values[role].get(name, [])
        is_gauge = self.types[role].get(name) == "gauge"
        # A counter with labels appears with its first event.
        return len(set(seen)) > 1 or any(seen) and (is_gauge or role == "router")


class SmallPair(Pair):
    """Few places and little memory, so that every queue is used and requests give way."""

    def start_prefill(self):
        self.flags = ("--enable-metrics", "--chunked-prefill-size", 128, "--page-size", 4)
        super().start_prefill()

    def start_decode(self):
        self.flags = ("--enable-metrics", "--decode-log-interval", 1, "--max-total-tokens", 1024, "--page-size", 4)
        self.flags += ("--max-running-requests", 2, "--num-reserved-decode-tokens", 4)
        super().start_decode()

    def start_router(self, port):
        prefill = ("--prefill", f"http://127.0.0.1:{self.prefill_port}", self.bootstrap_port)
        decode = ("--decode", f"http://127.0.0.1:{self.decode_port}")
        pace = ("--health-check-interval-secs", 1, "--worker-startup-check-interval", 1)
        limits = ("--max-concurrent-requests", 2, "--queue-size", 50)
        self.router = Server("router", "router", port, "--pd-disaggregation", *prefill, *decode, *pace, *limits)
        self.front = self.router


def batch(count, prompt_tokens, new_tokens, seed=0):
    prompts = [[3 + (i * 31 + k * 7 + seed) % 400 for k in range(prompt_tokens)] for i in range(count)]
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    return {"input_ids": prompts, "sampling_params": sampling}


def in_background(port, body):
    def send():
        with contextlib.suppress(OSError, http.client.HTTPException):
            request(port, "POST", "/generate", body)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


class WorkloadTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pair = SmallPair()
        cls.combined = Combined(
            "--enable-metrics", "--decode-log-interval", 1, "--max-total-tokens", 1024, "--page-size", 4,
            "--max-running-requests", 8, "--schedule-conservativeness", 0.01,
        )  # fmt: skip
        try:
            cls.pair.wait_ready()
            cls.combined.wait_ready()
            cls.watch = Watch(
                {
                    "prefill": cls.pair.prefill,
                    "decode": cls.pair.decode,
                    "combined": cls.combined.server,
                    "router": cls.pair.router,
                }
            )
            try:
                cls.run_all()
            finally:
                cls.watch.stop()
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.pair.close()
        cls.combined.close()

    @classmethod
    def run_all(cls):
        router = cls.pair.router.port
        cls.serve(router)
        cls.serve(cls.combined.server.port)
        for _ in range(2):  # too few places for the cache to keep a prompt of the load above
            request(cls.combined.server.port, "POST", "/generate", batch(1, 100, 4, 77))
        request(router, "POST", "/generate", {"text": "x", "sampling_params": {"no_such_key": 1}})
        for port in (router, cls.combined.server.port):
            with Stream(port, "/generate", {**batch(1, 8, 500), "stream": True}) as stream:
                next(iter(stream))
        cls.abort_on_one_side("decode", "prefill", "sglang:num_transfer_failed_reqs_total")
        cls.abort_on_one_side("prefill", "prefill", "sglang:num_aborted_requests_total")
        nobody = {"bootstrap_host": "127.0.0.1", "bootstrap_port": free_port(), "bootstrap_room": 77}
        request(cls.pair.decode.port, "POST", "/generate", {**batch(1, 8, 4), "input_ids": [3, 4, 5], **nobody})
        cls.lose_prefill()

    @classmethod
    def serve(cls, port):
        """Twice the same prompts, for the prefix cache. Three requests at a time: one waits in the router."""
        for _ in range(2):
            clients = [in_background(port, batch(6, 200, 150, seed)) for seed in range(3)]
            for client in clients:
                client.join()

    @classmethod
    def abort_on_one_side(cls, where, role, metric):
        """Aborts in the middle of handovers until one was hit."""
        before = cls.watch.value(role, metric)
        seeds = itertools.count(10)  # other prompts each time: none is in the prefix cache

        def moved():
            return cls.watch.value(role, metric) > before

        def hit():
            # Without the router, which would hang up on the other side.
            seed = next(seeds)
            room = {"bootstrap_host": "127.0.0.1", "bootstrap_port": cls.pair.bootstrap_port}
            room["bootstrap_room"] = 100 * seed
            legs = [in_background(leg.port, {**batch(4, 900, 4, seed), **room}) for leg in cls.pair.servers]
            wait_until(lambda: cls.pair.prefill.state()["leased_blocks"], 20, "a prefill under way")
            server = cls.pair.decode if where == "decode" else cls.pair.prefill
            request(server.port, "POST", "/abort_request", {"rid": "", "abort_all": True})
            for leg in legs:
                leg.join()
            with contextlib.suppress(AssertionError):
                wait_until(moved, 1, metric)
            return moved()

        wait_until(hit, 60, f"an abort on {where} that moves {metric} of {role}")

    @classmethod
    def lose_prefill(cls):
        client = in_background(cls.pair.router.port, batch(4, 900, 4, 9))
        wait_until(lambda: cls.pair.prefill.state()["leased_blocks"], 20, "a prefill under way")
        cls.pair.prefill.kill()
        client.join()
        lost = {"decode": "sglang:num_transfer_failed_reqs_total", "router": "sgl_router_retries_total"}
        for role, metric in lost.items():
            wait_until(lambda m=metric, r=role: cls.watch.value(r, m) > 0, 30, f"{metric} of {role}")

    def test_every_documented_metric_does_what_its_cell_says(self):
        table, reasons = documented()
        self.assertGreater(len(table), 50)
        faults = []
        for name, (kind, cells) in table.items():
            for role, cell in cells.items():
                given = self.watch.types[role].get(name)
                if cell == "-":
                    faults += [f"{role} {name}: is there"] if given else []
                    continue
                moved = self.watch.moved(role, name)
                if given != kind:
                    faults.append(f"{role} {name}: type {given}, documented as {kind}")
                elif cell == "moves" and not moved:
                    faults.append(f"{role} {name}: did not move, {self.watch.values[role].get(name, [])[-1:]}")
                elif cell != "moves" and cell not in reasons:
                    faults.append(f"{role} {name}: reason {cell} is not explained")
                elif cell != "moves" and cell != "k" and moved:
                    faults.append(f"{role} {name}: moved, documented as still ({cell})")
        self.assertEqual(faults, [])

    def test_every_metric_that_a_server_gives_is_documented(self):
        table, _ = documented()
        for role, types in self.watch.types.items():
            unknown = [name for name in types if name not in table and not ELSEWHERE.search(name)]
            self.assertEqual(unknown, [], role)

    def test_the_labels_are_those_of_sglang(self):
        text = request(self.pair.decode.port, "GET", "/metrics").body.decode()
        line = next(line for line in text.splitlines() if line.startswith("sglang:num_running_reqs{"))
        labels = set(re.findall(r'(\w+)="', line))
        self.assertEqual(labels, {"model_name", "engine_type", "tp_rank", "pp_rank", "dp_rank"})


class DeployTest(unittest.TestCase):
    def setUp(self):
        self.dashboard = json.loads((ROOT / "deploy/grafana/tandem.json").read_text())

    def test_the_dashboard_asks_for_documented_metrics_only(self):
        table, _ = documented()
        asked = set()
        for panel in self.dashboard["panels"]:
            for target in panel["targets"]:
                names = re.findall(r"\b(?:sglang:|tandem:|sgl_router_)\w+", target["expr"])
                self.assertTrue(names, target)
                for name in names:
                    base = HISTOGRAM_SUFFIX.sub("", name)
                    known = base if table.get(base, ("",))[0] == "histogram" and base != name else name
                    self.assertIn(known, table, target["expr"])
                    if table[known][0] == "counter":
                        self.assertRegex(target["expr"], r"rate\(" + name, "a counter is shown as a rate")
                    asked.add(known)
        self.assertGreater(len(asked), 25)

    def test_the_dashboard_has_the_shape_that_grafana_imports(self):
        for key, kind in (("title", str), ("uid", str), ("schemaVersion", int), ("panels", list), ("templating", dict)):
            self.assertIsInstance(self.dashboard[key], kind)
        ids, places = set(), set()
        variables = {variable["name"] for variable in self.dashboard["templating"]["list"]}
        for panel in self.dashboard["panels"]:
            ids.add(panel["id"])
            place = panel["gridPos"]
            places.add((place["x"], place["y"]))
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            self.assertEqual(len({target["refId"] for target in panel["targets"]}), len(panel["targets"]))
            used = set(re.findall(r"\$\{?(\w+)", json.dumps(panel))) - {"__rate_interval"}
            self.assertLessEqual(used, variables)
        self.assertEqual(len(ids), len(self.dashboard["panels"]))
        self.assertEqual(len(places), len(self.dashboard["panels"]))

    def test_prometheus_scrapes_the_router_and_what_stands_behind_it(self):
        text = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
        paths = re.findall(r"^    metrics_path: (\S+)$", text, re.M)
        self.assertEqual(paths, ["/metrics", "/engine_metrics"])
        self.assertEqual(len(re.findall(r"^  - job_name: \S+$", text, re.M)), 2)
        self.assertNotIn("\t", text)


if __name__ == "__main__":
    main()
