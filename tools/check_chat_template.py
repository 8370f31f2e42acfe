#!/usr/bin/env python3
"""Compares Tandem's chat templates with jinja2 under transformers' settings.

    python3 -m venv build/oracle && build/oracle/bin/pip install jinja2
    ninja -C build/release tokenize_lines
    build/oracle/bin/python tools/check_chat_template.py build/release/tests/text/tokenize_lines [TEMPLATE...]

TEMPLATE: a .jinja file, or a tokenizer_config.json with a chat_template. Random templates are compared too: they
mix what chat templates are made of, with every form of whitespace control.
"""

import json
import pathlib
import random
import subprocess
import sys

import jinja2
import jinja2.sandbox

ROOT = pathlib.Path(__file__).resolve().parent.parent
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
CONTENTS = [
    "Hello",
    " spaces \n and\nlines ",
    "",
    "天地 🙂",
    "<think>why</think>because",
    "a</think>b</think>c",
    "{{ no }} {% %}",
]


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def compiled(source):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)


def expected(template, messages, generate):
    return template.render(
        messages=messages, tools=None, documents=None, bos_token=BOS, eos_token=EOS, add_generation_prompt=generate
    )


def conversations(random_):
    yield [{"role": "user", "content": "Hello"}]
    for _ in range(3):
        yield [
            {"role": random_.choice(["system", "user", "user", "assistant"]), "content": random_.choice(CONTENTS)}
            for _ in range(random_.randint(1, 6))
        ]


EXPRESSIONS = r"""
messages[0]['content']; messages[-1].role; messages[1:] | length; messages[0].content[1:3]; messages[0].content[-2:]
'a' ~ 1 ~ true ~ none; 1 + 2 * 3 - 4 // 3 % 2; -7 // 2; -7 % 3; (1 + 2) * 3; 'x' if add_generation_prompt else 'y'
messages[0]['content'].split('l')[-1]; messages[0]['content'].split('e', 1)[1] is defined
' b '.strip() + 'xax'.strip('x')
missing is defined; missing is none; tools is none; not tools and not missing; 1 < 2 and 'a' < 'b'; 2 >= 3 or 3 <= 3
1 == true; 'user' in messages[0]['role']; 'q' not in 'abc'; 'role' in messages[0]; 'tool_calls' not in messages[0]
1 in [1, 2]; 'a' in ['b']; messages[0]['content'] | trim; messages | length; 'aB' | upper | lower; bos_token + eos_token
messages[0].get('tool_calls'); messages[0] is mapping; 's' is string; messages is iterable; 1 is number; true is true
messages[0]['content'].startswith('H'); 'tail'.endswith('l'); '' or 'default'; 'first' and 'second'
not ''; 'x' if missing
"double \"quoted\" \n line"; 'one' 'two'; messages[7] is undefined; none == false; [1] == [1]
'é🙂x'[1]; 'é🙂x' | length; messages | first is mapping; messages[0].role == 'user' and loop is defined
1 != 2; 2 > 1
"""
EXPRESSIONS = [part.strip() for part in EXPRESSIONS.replace("\n", ";").split(";") if part.strip()]


def random_template(random_, depth=0):
    """Statements with random text and whitespace control; always renders something."""
    space = lambda: random_.choice(["", " ", "\n", "  ", "\n  ", " \n\n", "x", "x\n", "\t\n "])
    dash = lambda: random_.choice(["", "", "-"])
    tag = lambda body: "{%" + random_.choice(["", "-", "+"]) + f" {body} " + random_.choice(["", "-", "+"]) + "%}"
    out = []
    for _ in range(random_.randint(1, 4)):
        kind = random_.random()
        inner = lambda: random_template(random_, depth + 1) if depth < 1 else space()
        if kind < 0.4:
            out.append("{{" + dash() + f" {random_.choice(EXPRESSIONS)} " + dash() + "}}")
        elif kind < 0.5:
            out.append("{#" + dash() + " note " + dash() + "#}")
        elif kind < 0.7:
            out.append(tag("for m in messages") + inner() + "{{ m.role ~ loop.index ~ loop.last }}" + tag("endfor"))
        elif kind < 0.9:
            out.append(
                tag(f"if ({random_.choice(EXPRESSIONS)})")
                + inner()
                + tag(f"elif ({random_.choice(EXPRESSIONS)})")
                + inner()
                + tag("else")
                + inner()
                + tag("endif")
            )
        else:
            out.append(
                tag("set ns = namespace(n=1)")
                + tag("for m in messages")
                + tag("set ns.n = ns.n + loop.index0")
                + tag("set x = 'inner'")
                + tag("endfor")
                + "{{ ns.n }}{{ x is defined }}"
            )
        out.append(space())
    return space() + "".join(out)


def sources(paths):
    for path in paths:
        text = pathlib.Path(path).read_text()
        yield path, json.loads(text)["chat_template"] if path.endswith(".json") else text
    random_ = random.Random(22)
    # Every message in order first, which Tandem insists on; the tail is the generation prompt.
    body = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    for number in range(1500):
        yield f"random {number}", body + random_template(random_) + "|"


def main(peer, paths):
    random_ = random.Random(23)
    cases = []
    for name, source in sources(paths):
        template = compiled(source)
        for messages in conversations(random_):
            generate = random_.random() < 0.5
            try:
                cases.append((name, source, messages, generate, expected(template, messages, generate)))
            except Exception as error:
                cases.append((name, source, messages, generate, {"error": str(error)}))
    lines = "".join(
        json.dumps(
            {"template": source, "bos": BOS, "eos": EOS, "messages": messages, "add_generation_prompt": generate}
        )
        + "\n"
        for _, source, messages, generate, _ in cases
    )
    run = subprocess.run(
        [peer, str(ROOT / "models/tiny/tokenizer.json")], input=lines.encode(), stdout=subprocess.PIPE, check=True
    )
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(cases), "one answer for each line"
    faults = refused = 0
    for (name, source, messages, generate, wanted), came in zip(cases, answers):
        if isinstance(wanted, dict) and isinstance(came, dict):
            refused += 1
        elif wanted != came:
            faults += 1
            if faults <= 5:
                print(f"{name}: {source!r}\n  {messages} {generate}\n  expected {wanted!r}\n  came     {came!r}")
    print(f"{len(cases)} renderings, {refused} refused by both, {faults} differ")
    return 1 if faults else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
