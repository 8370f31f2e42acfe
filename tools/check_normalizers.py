#!/usr/bin/env python3
"""Compares Tandem's normalizers with Hugging Face's: each kind of normalizer under two vocabularies, id by id.

    python3 -m venv build/oracle && build/oracle/bin/pip install tokenizers
    ninja -C build/release tokenize_lines
    build/oracle/bin/python tools/check_normalizers.py build/release/tests/text/tokenize_lines
    build/oracle/bin/python tools/check_normalizers.py --write   # tests/data/normalizers.json, from Hugging Face alone

Characters on whose normal form the library and Python's unicodedata do not agree are left out: the library's tables are
those of Unicode 12.0, ours those of utf8proc.
"""

import json
import random
import subprocess
import sys
import tempfile
import unicodedata

import tokenizers
from check_tokenizer import ROOT, every_character, random_text

FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def replace(kind, pattern, content):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


LOWERCASE = {"type": "Lowercase"}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
PREPEND = {"type": "Prepend", "prepend": "▁"}
NORMALIZERS = [
    *({"type": form} for form in FORMS),
    LOWERCASE,
    STRIP,
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    PREPEND,
    replace("String", " ", "▁"),
    replace("String", "ab", ""),
    replace("Regex", r"\s+", " "),
    replace("Regex", r"(?<=a)\p{M}|[0-9]{2,}", "$1\\1"),
    sequence(),
    sequence(PREPEND, replace("String", " ", "▁")),
    sequence({"type": "NFD"}, LOWERCASE, replace("Regex", r"\p{M}", ""), STRIP),
    sequence({"type": "NFKC"}, sequence(LOWERCASE, replace("String", "``", '"')), {"type": "NFC"}),
]
# Their matches are empty, which upsets the library's account of offsets: mostly it fails, and where words are cut it
# may say the same text twice. Where it does neither we agree.
EMPTY_MATCHES = [replace("String", "", "-"), replace("Regex", "b*", "<b>"), replace("Regex", "^", "> ")]
# What is found before and after normalization, with every flag; <Ä> and <U> are found in the spelling that they get.
ADDED = [
    {"content": "<X>", "special": True, "normalized": False},
    {"content": "<Ä>"},
    {"content": "<U> ", "lstrip": True},
    {"content": "<r>", "rstrip": True},
    {"content": "Word", "single_word": True},
    {"content": "<s>", "special": True, "normalized": False, "lstrip": True, "rstrip": True},
]


def byte_alphabet():
    """The character that spells each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (c for c in range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_tokenizer(normalizer):
    """Every byte a token of its own: the ids are the normalized text."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(300),
        "normalizer": normalizer,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab | {f"<{id_}>": id_ for id_ in range(256, 300)}, "merges": []},
    }


def added_tokens(first):
    flags = {"special": False, "normalized": True, "lstrip": False, "rstrip": False, "single_word": False}
    return [{"id": first + i, **flags, **token} for i, token in enumerate(ADDED)]


def trained_tokenizer(normalizer):
    tokenizer = json.loads((ROOT / "models/tiny/tokenizer.json").read_text())
    tokenizer["normalizer"] = normalizer
    tokenizer["added_tokens"] += added_tokens(8192)
    return tokenizer


def known(character):
    """Whether the library's tables have this character; a mark of an unknown class would not change places."""
    for form in FORMS:
        library = getattr(tokenizers.normalizers, form)()
        for text in (character, character + "\u0334", "a" + character + "\u0327"):
            if library.normalize_str(text) != unicodedata.normalize(form, text):
                return False
    return tokenizers.normalizers.Lowercase().normalize_str(character) == character.lower()


def random_marks(random_):
    """What normal forms are about: marks in every order, characters that compose, Hangul, compatibility forms."""
    pools = [
        "aeiouAEIOU",
        "\u0300\u0301\u0302\u0308\u0323\u0327\u0328\u0334\u0345\u035c\u3099\u309a\u05b0\u05b1\u094d\u093c",
        "éÅÄ\u212b\u1e69\u1e0b\u0344\u0958\u2adc\ufb1f\u1d15e\u0390",
        "\u1100\u1161\u11a8\u1102\u1175\u11c2가각힣",
        "ﬁ①㌀ﷺ½ⅷＡｱﾞ\u00a0\u2003…",
        "İıΣςẞßǅ",
        " \n\t",
        "ab``12",
    ]
    return "".join(
        "".join(random_.choices(pool, k=random_.randint(1, 4)))
        for pool in random_.choices(pools, k=random_.randint(1, 12))
    )


def texts(count):
    random_ = random.Random(22)
    contents = [token["content"] for token in ADDED] + ["<x>", "<ä>", "<a\u0308>", "<u>", "word", "<A\u0308>"]
    yield from ("", " ", "  \u3000\n", "a", "ab", "abb abbb", "<Ä><Ä>", " <X> ", "a <s> b", "İ", "ΑΣ Σ")
    for i in range(count):
        if i % 2:
            yield random_text(random_, contents)
        else:
            yield random_marks(random_) + random_.choice(["", *contents]) + random_marks(random_)


def without(unknown, text):
    return "".join(c for c in text if c not in unknown)


def library_ids(oracle, text):
    """None where the library fails: its account of offsets goes wrong on some replacements."""
    try:
        return oracle.encode(text, add_special_tokens=False).ids
    except BaseException as error:  # no Exception
        if type(error).__name__ != "PanicException":
            raise
        return None


def compare(peer, tokenizer, lines):
    oracle = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(tokenizer, file)
        file.flush()
        asked = "".join(json.dumps(line) + "\n" for line in lines)
        done = subprocess.run([peer, file.name], input=asked.encode(), stdout=subprocess.PIPE, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == len(lines), "one answer for each line"
    faults = panics = 0
    for text, answer in zip(lines, answers):
        expected = library_ids(oracle, text)
        if expected is None:
            panics += 1
            continue
        if json.loads(answer) != expected:
            faults += 1
            if faults <= 3:
                print(f"encode {text[:200]!r}\n  expected {expected[:80]}\n  came     {json.loads(answer)[:80]}")
    fails = f" ({panics} that the library fails on)" if panics else ""
    name = json.dumps(tokenizer["normalizer"], ensure_ascii=False)
    print(f"{len(lines)} texts{fails}, {faults} differ: {name}", flush=True)
    return faults


def check(peer):
    whole = list(every_character())
    unknown = {c for c in set("".join(whole)) if not known(c)}
    print(f"{len(unknown)} characters left out")
    whole = [without(unknown, text) for text in whole]
    mixed = [without(unknown, text) for text in texts(4000)]
    faults = 0
    for normalizer in NORMALIZERS:
        faults += compare(peer, byte_tokenizer(normalizer), whole + mixed)
        faults += compare(peer, trained_tokenizer(normalizer), mixed)
    for normalizer in EMPTY_MATCHES:
        faults += compare(peer, byte_tokenizer(normalizer), whole + mixed)
    return faults


def write():
    """Few texts for each normalizer: what the library makes of them, as Tandem's own test reads it."""
    cases = []
    lines = [line[:40] for line in texts(16)]
    assert all(known(c) for line in lines for c in line)
    for normalizer in NORMALIZERS + EMPTY_MATCHES:
        tokenizer = byte_tokenizer(normalizer)
        oracle = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
        ids = [library_ids(oracle, line) for line in lines]
        cases.append({"normalizer": normalizer, "ids": ids})
    fixture = {"tokenizers": tokenizers.__version__, "added_tokens": added_tokens(300), "texts": lines, "cases": cases}
    (ROOT / "tests/data/normalizers.json").write_text(
        json.dumps(fixture, separators=(",", ":")).replace('{"normalizer"', '\n{"normalizer"') + "\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--write":
        write()
    else:
        sys.exit(1 if check(sys.argv[1]) else 0)
