#!/usr/bin/env python3
"""Foreign software against Tandem: OpenAI's SDK at Tandem's router, SGLang's own routers over Tandem's servers.

    python3 -m venv build/venv/clients && build/venv/clients/bin/pip install openai sglang-router
    build/venv/clients/bin/python tools/compat/check_clients.py \
        --router http://127.0.0.1:30000 --prefill http://127.0.0.1:30001 8998 --decode http://127.0.0.1:30002

Any of the three may be left out; what it is needed for is skipped and said so. Prints one line per check; exit status 1
when one failed. Not in the default suite: it needs packages from the registry and running servers (`tandem up`).
"""
import argparse
import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

PROMPT = "Once upon a time"
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
failed = []


def check(name, run):
    started = time.monotonic()
    try:
        said = run()
        print(f"ok      {name}  ({time.monotonic() - started:.2f} s) {said or ''}".rstrip(), flush=True)
    except Exception as e:  # every kind of failure of a client is a finding
        failed.append(name)
        print(f"FAILED  {name}: {type(e).__name__}: {e}", flush=True)


def want(condition, message):
    if not condition:
        raise AssertionError(message)


def post(base, path, body, timeout=120):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def get(base, path, timeout=30):
    try:
        with urllib.request.urlopen(base + path, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def generate(base, **body):
    status, text = post(base, "/generate", {"sampling_params": GREEDY, **body})
    want(status == 200, f"status {status}: {text[:300]}")
    return json.loads(text)


def stream(base, path, body):
    """The events' data of a stream, [DONE] not included but demanded."""
    url = urllib.parse.urlparse(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=120)
    connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    want(answer.status == 200, f"status {answer.status}")
    text = answer.read().decode()
    events = [e[len("data: "):] for e in text.split("\n\n") if e.startswith("data: ")]
    want(events and events[-1] == "[DONE]", f"the stream does not end with [DONE]: {text[-200:]!r}")
    return [json.loads(e) for e in events[:-1]]


def check_native(name, base, reference, batches=True):
    """The native API behind some router: the same greedy text in every form of request."""
    first = {}

    def single():
        answer = generate(base, text=PROMPT)
        first["text"] = answer["text"]
        want(answer["meta_info"]["completion_tokens"] == GREEDY["max_new_tokens"], f"meta_info {answer['meta_info']}")
        if reference is not None:
            want(answer["text"] == reference, f"{answer['text']!r} is not {reference!r}")
        return repr(answer["text"])

    def streamed():
        events = stream(base, "/generate", {"text": PROMPT, "sampling_params": GREEDY})
        want(events[-1]["text"] == first["text"], f"{events[-1]['text']!r} is not {first['text']!r}")
        want(all(b["text"].startswith(a["text"]) for a, b in zip(events, events[1:])), "the text is not cumulative")
        return f"{len(events)} events"

    def batch():
        answers = generate(base, text=[PROMPT, PROMPT, "The"])
        want([a["text"] for a in answers[:2]] == [first["text"]] * 2, "a batch answers otherwise than one prompt")
        return f"{len(answers)} answers"

    def logprobs():
        answer = generate(base, text=PROMPT, return_logprob=True, logprob_start_len=0)
        meta = answer["meta_info"]
        want(len(meta["input_token_logprobs"]) == meta["prompt_tokens"],
             f"{len(meta['input_token_logprobs'])} prompt log-probabilities for {meta['prompt_tokens']} tokens")
        want(len(meta["output_token_logprobs"]) == meta["completion_tokens"], "output log-probabilities are missing")

    def bad():
        status, text = post(base, "/generate", {"text": PROMPT, "sampling_params": {"max_new_tokens": -5}})
        # SGLang's router parses the parameters itself and says 422.
        want(status in (400, 422), f"status {status}: {text[:200]}")

    check(f"{name}: /generate", single)
    check(f"{name}: /generate streamed", streamed)
    if batches:
        check(f"{name}: /generate of a batch", batch)
    check(f"{name}: /generate with log-probabilities", logprobs)
    check(f"{name}: a bad request is refused", bad)
    return first.get("text")


def check_openai(name, base):
    try:
        import openai
    except ImportError:
        print(f"skipped {name}: the openai package is not installed")
        return
    client = openai.OpenAI(base_url=base + "/v1", api_key="none", timeout=120, max_retries=0)
    model = {}
    messages = [{"role": "user", "content": "Tell me a story."}]

    def models():
        model["id"] = client.models.list().data[0].id
        return model["id"]

    def chat():
        answer = client.chat.completions.create(model=model["id"], messages=messages, temperature=0, max_tokens=12)
        model["chat"] = answer.choices[0].message.content
        want(answer.usage.completion_tokens <= 12, str(answer.usage))
        want(answer.choices[0].finish_reason in ("stop", "length"), str(answer.choices))
        return repr(model["chat"])

    def chat_stream():
        text, usage, reasons = "", None, []
        for chunk in client.chat.completions.create(model=model["id"], messages=messages, temperature=0, max_tokens=12,
                                                    stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
        want(text == model["chat"], f"{text!r} is not {model['chat']!r}")
        want(usage is not None and len(reasons) == 1, f"usage {usage}, finish reasons {reasons}")

    def chat_n():
        answer = client.chat.completions.create(model=model["id"], messages=messages, n=2, max_tokens=5, seed=1)
        want(sorted(c.index for c in answer.choices) == [0, 1], str(answer.choices))

    def completions():
        answer = client.completions.create(model=model["id"], prompt=[PROMPT, "The"], temperature=0, max_tokens=5)
        want(len(answer.choices) == 2, str(answer.choices))
        one = client.completions.create(model=model["id"], prompt=PROMPT, temperature=0, max_tokens=5, logprobs=1)
        want(one.choices[0].text == answer.choices[0].text, "a batch answers otherwise than one prompt")
        want(len(one.choices[0].logprobs.token_logprobs) == one.usage.completion_tokens, str(one.choices[0].logprobs))

    def completions_stream():
        text = "".join(c.choices[0].text for c in client.completions.create(
            model=model["id"], prompt=PROMPT, temperature=0, max_tokens=5, stream=True) if c.choices)
        want(len(text) > 0, "no text")

    def hang_up():
        answer = client.chat.completions.create(model=model["id"], messages=messages, max_tokens=400, stream=True)
        next(iter(answer))
        answer.close()

    def errors():
        try:
            client.chat.completions.create(model=model["id"], messages=messages, max_tokens=-1)
        except openai.BadRequestError as e:
            return str(e)[:80]
        raise AssertionError("max_tokens=-1 was accepted")

    check(f"{name}: models", models)
    check(f"{name}: chat", chat)
    check(f"{name}: chat streamed with usage", chat_stream)
    check(f"{name}: chat with n=2", chat_n)
    check(f"{name}: completions, one and a batch, log-probabilities", completions)
    check(f"{name}: completions streamed", completions_stream)
    check(f"{name}: hanging up in a stream", hang_up)
    check(f"{name}: BadRequestError", errors)
    check(f"{name}: chat after all that", chat)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class SglangRouter:
    """SGLang's own router from its wheel, over Tandem's servers."""

    def __init__(self, prefill, decode, extra):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation", "--host", "127.0.0.1",
                   "--port", str(self.port), "--prefill", *prefill, "--decode", decode,
                   "--prometheus-port", str(free_port()), "--worker-startup-check-interval", "1", *extra]
        print("$ " + " ".join(command), flush=True)
        self.log = open(f"/tmp/sglang-router-{self.port}.log", "w+")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def wait_ready(self):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            want(self.process.poll() is None, f"the router ended with {self.process.returncode}: {self.tail()}")
            try:
                status, _ = post(self.base, "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 1}}, 20)
                if status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"not ready after 90 s: {self.tail()}")

    def tail(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-1500:]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def want_chat(base, body):
    status, text = post(base, "/v1/chat/completions", body)
    want(status == 200, f"status {status}: {text[:200]}")
    want(len(json.loads(text)["choices"]) == body.get("n", 1), text[:300])


def check_sglang_router(prefill, decode, reference):
    for name, extra in (("sglang-router", ["--policy", "round_robin"]), ("sglang mini_lb", ["--mini-lb"])):
        router = SglangRouter(prefill, decode, extra)
        ready = []
        check(f"{name}: comes up over Tandem's servers", lambda: ready.append(router.wait_ready()))
        if ready:
            # Its typed parser takes a single text only; mini_lb takes lists.
            check_native(name, router.base, reference, batches=name.endswith("mini_lb"))
            chat = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
            # Its Rust router sends arrays of n bootstrap entries, mini_lb one scalar.
            for body in (chat, {**chat, "n": 2}):
                check(f"{name}: chat with n={body.get('n', 1)}", lambda: want_chat(router.base, body))
            for path in ("/get_server_info", "/v1/models"):
                check(f"{name}: {path}", lambda: want(get(router.base, path)[0] == 200, "status"))
        router.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", help="Tandem's router")
    parser.add_argument("--prefill", nargs="+", metavar=("URL", "PORT"), help="a prefill server and its bootstrap port")
    parser.add_argument("--decode", help="a decode server")
    args = parser.parse_args()
    reference = None
    if args.router:
        reference = check_native("tandem router", args.router.rstrip("/"), None)
        check_openai("openai SDK", args.router.rstrip("/"))
    else:
        print("skipped OpenAI's SDK: --router is not given")
    if args.prefill and args.decode:
        check_sglang_router(args.prefill, args.decode, reference)
    else:
        print("skipped SGLang's routers: --prefill and --decode are not given")
    print(f"{len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
