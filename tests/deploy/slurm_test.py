"""deploy/slurm on a real Slurm: slurmctld and four slurmd on this host, a prefill group and a decode group of two nodes
each with the embedded model, a benchmark, a recording, and nothing left behind.

Needs slurmctld, slurmd and munged (Debian: slurm-wlm, munge); without them it says so and passes.
"""

import contextlib
import getpass
import gzip
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from harness import binary, die_with_parent, main, wait_until  # noqa: E402

DEPLOY = ROOT / "deploy/slurm"
NODES = 4
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
JOB_DEADLINE_S = 150
RUNNING_PER_RANK = 8
NUM_PROMPTS = 40
PROFILE_STEPS = 5


def missing_programs():
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH) is None]


def free_ports(count):
    """A run of free ports, below those that the kernel hands out by itself."""
    for first in range(21000 + os.getpid() % 5000, 32000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise AssertionError("no free ports")


class Cluster:
    """munged, slurmctld and a slurmd per node, in a directory of their own, as this user."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="tandem-slurm-"))
        self.daemons = []
        self.env = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(self.directory / "slurm.conf")}
        for name in [name for name in self.env if name.startswith(("SLURM_JOB", "SLURM_STEP", "SBATCH_"))]:
            del self.env[name]
        for name in ("state", "spool", "log"):
            (self.directory / name).mkdir()
        (self.directory / "munge.key").write_bytes(os.urandom(128))
        (self.directory / "munge.key").chmod(0o600)
        (self.directory / "slurm.conf").write_text(self.configuration())

    def configuration(self):
        first = free_ports(NODES + 1)
        place = self.directory
        return f"""
ClusterName=tandem
SlurmctldHost={socket.gethostname().split(".")[0]}(127.0.0.1)
SlurmctldPort={first}
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
SlurmctldLogFile={place}/log/slurmctld.log
SlurmdLogFile={place}/log/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=n[0-{NODES - 1}] NodeHostname={socket.gethostname().split(".")[0]} NodeAddr=127.0.0.1 \
Port=[{first + 1}-{first + NODES}] CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

    def spawn(self, *command):
        log = open(self.directory / "log" / f"{command[0]}.out", "ab")
        with log:
            child = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        self.daemons.append(child)

    def start(self):
        place = self.directory
        self.spawn(
            "munged",
            *("--foreground", "--force", f"--socket={place}/munge.socket", f"--key-file={place}/munge.key"),
            *(f"--pid-file={place}/munged.pid", f"--seed-file={place}/munge.seed"),
            f"--log-file={place}/log/munged.log",
        )
        wait_until((place / "munge.socket").exists, 20, "munged")
        self.spawn("slurmctld", "-D")
        for node in range(NODES):
            self.spawn("slurmd", "-D", "-N", f"n{node}")
        wait_until(lambda: self.idle_nodes() == str(NODES), 40, "nodes")

    def idle_nodes(self):
        return self.run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip()

    def run(self, *command, check=True, **more):
        done = subprocess.run(command, env={**self.env, **more}, capture_output=True, text=True, timeout=60, cwd=DEPLOY)
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def logs(self):
        files = sorted((self.directory / "log").iterdir())
        return "".join(f"--- {file.name} ---\n{file.read_text(errors='replace')[-1500:]}\n" for file in files)

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


def processes_of(directory):
    """Command lines of processes that were told this directory in their environment."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(directory).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if "tandem " in line]


FAKE_SCONTROL = """#!/usr/bin/env bash
if [[ $2 == hostnames ]]; then tr , '\\n' <<<"$3"; else echo "NodeName=$4 NodeAddr=${4%-*} State=IDLE"; fi
"""
FAKE_SRUN = """#!/usr/bin/env bash
[[ $1 != --help ]] || { echo "$SRUN_HELP"; exit 0; }
printf '%s\\n' "$@"
"""


class ScriptsTest(unittest.TestCase):
    """The scripts beside programs that only say what they were asked."""

    def setUp(self):
        place = tempfile.TemporaryDirectory(prefix="tandem-scripts-")
        self.addCleanup(place.cleanup)
        self.place = pathlib.Path(place.name)
        for name, text in (("scontrol", FAKE_SCONTROL), ("srun", FAKE_SRUN)):
            (self.place / name).write_text(text)
            (self.place / name).chmod(0o755)
        self.run_dir = self.place / "run"

    def run_script(self, script, *args, **settings):
        env = {
            "PATH": f"{self.place}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "1",
            "RUN_DIR": str(self.run_dir),
            "DECODE_NODES": "2",
            **settings,
        }
        return subprocess.run([DEPLOY / script, *args], env=env, capture_output=True, text=True, timeout=60)

    def nodes(self):
        show = """source "$0"
            echo "$FIRST_NODE ${PREFILL_NODE_LIST[*]} $DECODE_NODE_LIST"
            echo "${PREFILL_URL[*]} $DECODE_URL"
            echo "${PREFILL_KV_PORT[*]} ${PREFILL_MEETING[*]} $DECODE_MEETING" """
        return subprocess.check_output(["bash", "-c", show, self.run_dir / "nodes.sh"], text=True).splitlines()

    def test_nodes_are_split_into_groups_in_order(self):
        done = self.run_script("2.nodes.sh", SLURM_JOB_NODELIST="a,b,c,d,e,f", PREFILL_GROUPS="2")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            self.nodes(),
            [
                "a a,b c,d e,f",
                "http://a:30000 http://c:30000 http://e:30000",
                "30001 30001 a:30002 c:30002 e:30002",
            ],
        )

    def test_nodes_that_share_a_host_get_ports_of_their_own(self):
        done = self.run_script("2.nodes.sh", SLURM_JOB_NODELIST="x-1,x-2,y-1,x-3,x-4", PREFILL_NODES="3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.nodes()[1], "http://x:30000 http://x:30020")
        self.assertEqual(self.nodes()[2], "30001 x:30002 x:30022")

    def test_too_few_nodes_are_refused_with_the_sum(self):
        done = self.run_script("2.nodes.sh", SLURM_JOB_NODELIST="a,b,c", PREFILL_GROUPS="3")
        self.assertEqual(done.returncode, 1)
        self.assertIn("3 prefill groups of 2 nodes and 2 decode nodes need 8 nodes; the job has 3", done.stderr)

    def test_commands_run_in_the_container_by_pyxis_or_by_enroot(self):
        self.run_script("2.nodes.sh", SLURM_JOB_NODELIST="a,b,c,d")
        container = {"CONTAINER_IMAGE": "/images/tandem.sqsh", "CONTAINER_MOUNTS": "/data:/data"}
        pyxis = self.run_script("z.record.sh", "start", SRUN_HELP="--container-image", **container).stdout.splitlines()
        self.assertIn("--container-image=/images/tandem.sqsh", pyxis)
        self.assertEqual(pyxis[-6:], ["experts", "record", "--router", "http://a:8000", "--role", "decode"])
        enroot = self.run_script("z.record.sh", "dump", SRUN_HELP="", **container).stdout
        self.assertIn("enroot\nstart\n--root\n--rw\n--mount\n/data:/data\ntandem\ntandem\nexperts\ndump\n", enroot)

    def test_scripts_say_what_comes_first(self):
        for script in ("3.launch_prefill.sh", "5.launch_router.sh", "6.benchmark.sh"):
            done = self.run_script(script)
            self.assertEqual(done.returncode, 1)
            self.assertIn("run 2.nodes.sh first", done.stderr)

    @unittest.skipUnless(shutil.which("shellcheck"), "shellcheck is not installed")
    def test_shellcheck_has_nothing_to_say(self):
        scripts = sorted(path.name for path in DEPLOY.iterdir() if path.suffix in (".sh", ".sbatch"))
        done = subprocess.run(["shellcheck", "-x", *scripts], cwd=DEPLOY, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout)


@unittest.skipIf(missing_programs(), f"not installed: {', '.join(missing_programs())} (Debian: slurm-wlm, munge)")
class SlurmTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        try:
            cls.cluster.start()
        except BaseException:
            print(cls.cluster.logs(), file=sys.stderr)
            cls.cluster.stop()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def settings(self, run):
        first = free_ports(10 * NODES + 1)
        small = (
            "--num-threads 1 --max-total-tokens 16384 --decode-log-interval 10 "
            f"--max-running-requests {2 * RUNNING_PER_RANK}"
        )
        return {
            "RUN_DIR": str(run),
            "TANDEM": binary(),
            "PREFILL_NODES": "2",
            "DECODE_NODES": "2",
            "RANKS_PER_NODE": "1",
            "BASE_PORT": str(first),
            "ROUTER_PORT": str(first + 10 * NODES),
            "COMMON_FLAGS": small,
            "PREFILL_FLAGS": "--deepep-mode normal",
            "DECODE_FLAGS": "--deepep-mode low_latency",
            "BENCH_FLAGS": "--dataset-name random --random-range-ratio 1 --random-input-len 64 --random-output-len 300 "
            f"--num-prompts {NUM_PROMPTS} --seed 3",
            "SLOW_DOWN_S": "2",
            "SATURATE_S": "12",
            "SETTLE_S": "1",
            "PROFILE_STEPS": str(PROFILE_STEPS),
            "READY_TIMEOUT_S": "90",
        }

    def submit(self, run, *command):
        settings = self.settings(run)
        job = self.cluster.run(
            *("sbatch", "--parsable", f"--nodes={NODES}", f"--output={run}/job.log", "tandem.sbatch", *command),
            **settings,
        ).strip()

        def ended():
            state = self.cluster.run("scontrol", "--oneliner", "show", "job", job)
            words = dict(word.split("=", 1) for word in state.split() if "=" in word)
            return words if words["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") else None

        return job, ended

    def report(self, run):
        files = [file for file in (run / "job.log", *sorted((run / "logs").glob("*"))) if file.exists()]
        return "".join(f"--- {file.name} ---\n{file.read_text(errors='replace')[-2500:]}\n" for file in files)

    def test_a_command_that_fails_ends_the_job_with_its_status_and_the_servers(self):
        run = self.cluster.directory / "failing"
        run.mkdir()
        job, ended = self.submit(run, "bash", "-c", "exit 7")
        state = wait_until(ended, JOB_DEADLINE_S, "the job")
        self.assertEqual((state["JobState"], state["ExitCode"]), ("FAILED", "7:0"), self.report(run))
        wait_until(lambda: not processes_of(self.cluster.directory), 10, "no process of tandem is left")

    def test_the_sbatch_file_does_the_whole_measurement_and_leaves_nothing_behind(self):
        """tandem.sbatch without a command: workflow.sh, which runs the numbered scripts after the launch."""
        run = self.cluster.directory / "run"
        run.mkdir()
        job, ended = self.submit(run)
        try:
            state = wait_until(ended, JOB_DEADLINE_S, "the job")
            self.assertEqual((state["JobState"], state["ExitCode"]), ("COMPLETED", "0:0"))
            result = json.loads((run / "benchmark.jsonl").read_text())
            self.assertEqual(result["completed"], NUM_PROMPTS)
            servers = {}
            for name in ("prefill_0", "decode"):
                logs = [(run / f"logs/launch_server_{name}_node_rank_{node}.log").read_text() for node in range(2)]
                self.assertIn("The server is fired up and ready to roll!", logs[0])
                self.assertIn("node 1 of 2 is ready", logs[1])
                for log in logs:
                    self.assertTrue(log.rstrip().endswith("stopped"), log[-300:])
                servers[name] = logs
            # Decode slept before its steps, filled up meanwhile, and was let go.
            self.assertTrue("Scheduler.run_batch sleep 2.0s" in servers["decode"][0], "no step was slowed down")
            full = max(int(count) for count in re.findall(r"#running-req: (\d+)", servers["decode"][0]))
            self.assertEqual(full, RUNNING_PER_RANK)
            traces = list((run / "profile").glob("*/*.trace.json.gz"))
            self.assertEqual(len(traces), 2, "one of each rank")
            for trace in traces:
                events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
                steps = sum(event["name"] == event.get("cat") == "step" for event in events)
                self.assertEqual(steps, PROFILE_STEPS, trace)
            self.assertEqual(len(list((run / "experts").glob("expert_distribution_recorder_*.pt"))), 1)
            wait_until(lambda: not processes_of(self.cluster.directory), 10, "no process of tandem is left")
        except BaseException:
            self.cluster.run("scancel", job, check=False)
            print(self.cluster.logs() + self.report(run), file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
