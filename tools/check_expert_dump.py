#!/usr/bin/python3
"""Checks by PyTorch that dumps of the expert recorder load with its restricted loader and are what they should be.

    tools/check_expert_dump.py FILE.pt...     (Debian: python3-torch)

Not a test of the suite, which has a reader of its own and no PyTorch. Prints a line per file; the exit status is 1 when
one of them does not load or does not fit together.
"""

import sys

import torch


def check_records(content):
    last = content["last_physical_to_logical_map"]
    maps = {entry["version"]: entry["physical_to_logical_map"] for entry in content.get("placements", [])}
    pairs = 0
    for record in content["records"]:
        counts = record["global_physical_count"]
        placement = maps[record["placement_version"]] if "placement_version" in record else last
        assert counts.dtype == torch.int32 and counts.shape == placement.shape, counts.shape
        pairs += int(counts.sum())
        if "topk_ids_of_layer" not in record:
            continue
        chosen = record["topk_ids_of_layer"]
        assert chosen.shape[:2] == (counts.shape[0], len(record["input_ids"])), chosen.shape
        assert len(record["positions"]) == len(record["input_ids"])
        assert record["extend_seq_lens"] is None or sum(record["extend_seq_lens"]) == len(record["input_ids"])
        for layer in range(counts.shape[0]):
            ids = chosen[layer].flatten().long()
            hits = torch.bincount(ids[ids >= 0], minlength=counts.shape[1])
            assert torch.equal(hits.int(), counts[layer]), f"layer {layer}: choices and counts differ"
    return f"{len(content['records'])} passes, {pairs} pairs, {content['dropped_passes']} passes dropped"


def check(path):
    content = torch.load(path, weights_only=True)
    if "records" in content:
        return check_records(content)
    counts = content["logical_count"]
    assert counts.dtype == torch.int32 and counts.dim() == 3, counts.shape
    return f"{counts.shape[0]} steps, {int(counts.sum())} pairs"


def main():
    failed = False
    for path in sys.argv[1:]:
        try:
            print(f"{path}: {check(path)}")
        except Exception as error:  # whatever PyTorch raises
            print(f"{path}: {type(error).__name__}: {error}")
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
