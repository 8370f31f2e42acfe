#!/usr/bin/env python3
"""Restarts the instances of a deployment one after the other while its router serves: each is taken out of the router,
asked to end (SIGTERM: it finishes what it has, within its --drain-timeout), started again, and put back when healthy.

    tools/rolling_restart.py --router URL --instances FILE [--leave-timeout 180] [--ready-timeout 600]

FILE has an instance a line, `#` begins a comment:

    URL  PID-FILE  COMMAND...

URL as the router knows it (GET /workers says which role and bootstrap port it has). PID-FILE holds the number of the
running process and gets that of the new one, whose output is appended to PID-FILE.log. At least one other instance of
the same role has to be healthy, or nothing is restarted. Ends with status 1 at the first instance that does not leave
or does not become healthy; the others run on.
"""
import argparse
import contextlib
import http.client
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.parse


class Failure(Exception):
    pass


def ask(base, method, path, body=None, timeout_s=10):
    """Status and answer; (0, reason) where there was none."""
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=timeout_s)
    headers = {"Content-Type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = "Bearer " + os.environ["OPENAI_API_KEY"]
    with contextlib.closing(connection):
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)


def wait_until(condition, timeout_s, what):
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {timeout_s:g} s")
        pause.wait(0.05)


def say(text):
    print(text, flush=True)


class Instance:
    def __init__(self, line):
        url, pid_file, *command = shlex.split(line, comments=True)
        if not command:
            raise Failure(f"wanted URL, PID-FILE and COMMAND: {line.strip()}")
        self.url, self.pid_file, self.command = url.rstrip("/"), pathlib.Path(pid_file), command

    def pid(self):
        return int(self.pid_file.read_text())

    def runs(self):
        """Also true of a process that has ended but that nobody has waited for, unless its parent says so."""
        try:
            os.kill(self.pid(), 0)
            state = pathlib.Path(f"/proc/{self.pid()}/stat").read_text().rsplit(")", 1)[1].split()[0]
            return state != "Z"
        except (ProcessLookupError, FileNotFoundError):
            return False

    def start(self):
        with open(f"{self.pid_file}.log", "ab") as log:
            child = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.pid_file.write_text(f"{child.pid}\n")
        return child


def workers(router):
    status, body = ask(router, "GET", "/workers")
    if status != 200:
        raise Failure(f"{router}/workers: {status or ''} {body}")
    return {worker["url"]: worker for worker in json.loads(body)["workers"]}


def restart(router, instance, flags):
    known = workers(router)
    if instance.url not in known:
        raise Failure(f"{instance.url} is not among the router's instances")
    entry = known[instance.url]
    peers = [w for w in known.values() if w["worker_type"] == entry["worker_type"] and w is not entry]
    if not any(peer["is_healthy"] for peer in peers):
        raise Failure(f"{instance.url} is the only healthy {entry['worker_type']} instance")
    status, body = ask(router, "DELETE", f"/workers/{instance.url}")
    if status != 202:
        raise Failure(f"{router} does not let {instance.url} go: {status or ''} {body}")
    begin = time.monotonic()
    os.kill(instance.pid(), signal.SIGTERM)
    wait_until(lambda: not instance.runs(), flags.leave_timeout, f"{instance.url} has left")
    left = time.monotonic()
    child = instance.start()

    def healthy():
        if child.poll() is not None:
            raise Failure(f"{instance.url} ended with status {child.returncode}: see {instance.pid_file}.log")
        return ask(instance.url, "GET", "/health")[0] == 200

    wait_until(healthy, flags.ready_timeout, f"{instance.url} is healthy")
    again = {key: entry[key] for key in ("url", "worker_type", "bootstrap_port")}
    status, body = ask(router, "POST", "/workers", again)
    if status != 202:
        raise Failure(f"{router} does not take {instance.url} back: {status or ''} {body}")
    back = lambda: workers(router).get(instance.url, {}).get("is_healthy")
    wait_until(back, flags.ready_timeout, f"{instance.url} is healthy for the router")
    say(f"{entry['worker_type']:<8} {instance.url:<28} left {left - begin:.1f} s, back {time.monotonic() - left:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", required=True)
    parser.add_argument("--instances", required=True)
    parser.add_argument("--leave-timeout", type=float, default=180, help="seconds; more than --drain-timeout")
    parser.add_argument("--ready-timeout", type=float, default=600)
    flags = parser.parse_args()
    try:
        lines = pathlib.Path(flags.instances).read_text().splitlines()
        for line in lines:
            if line.split("#")[0].strip():
                restart(flags.router.rstrip("/"), Instance(line), flags)
    except (Failure, OSError) as failure:
        sys.exit(f"rolling_restart: {failure}")


if __name__ == "__main__":
    main()
