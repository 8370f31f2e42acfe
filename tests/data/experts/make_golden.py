#!/usr/bin/env python3
"""Writes the .pt files beside it with real PyTorch: python3 make_golden.py (2.15.0 wrote those committed).

The files imitate what SGLang's expert distribution recorder saves, plus what a reader must refuse.
"""
import os
import pathlib
import struct

import torch

here = pathlib.Path(__file__).parent
LAYERS, EXPERTS, SLOTS = 2, 4, 6


def save(name, value):
    torch.save(value, here / name)


def to_zip64(data):
    """The same archive with a ZIP64 directory, as one of more than 4 GiB has: 32-bit fields saturated."""
    end = data.rindex(b"PK\5\6")
    count, size, begin = struct.unpack_from("<HII", data, end + 10)
    out, at = data[:begin], begin
    for _ in range(count):
        head = bytearray(data[at : at + 46])
        name_length, extra_length = struct.unpack_from("<HH", head, 28)
        sizes, offset = struct.unpack_from("<II", head, 20), struct.unpack_from("<I", head, 42)
        extra = struct.pack("<HHQQQ", 1, 24, sizes[1], sizes[0], offset[0])
        struct.pack_into("<II", head, 20, 2**32 - 1, 2**32 - 1)
        struct.pack_into("<I", head, 42, 2**32 - 1)
        struct.pack_into("<H", head, 30, len(extra))
        out += bytes(head) + data[at + 46 : at + 46 + name_length] + extra
        at += 46 + name_length + extra_length
    end64 = len(out)
    out += b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, end64 - begin, begin)
    out += b"PK\6\7" + struct.pack("<IQI", 0, end64, 1)
    return out + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


counts = torch.arange(3 * LAYERS * EXPERTS, dtype=torch.int32).reshape(3, LAYERS, EXPERTS)
save("stat.pt", {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": 0.625})
slot_map = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 0, 0]], dtype=torch.int64)
for rank in range(2):
    records = [
        {
            "forward_pass_id": 7 + step,
            "rank": rank,
            "gatherer_key": "primary",
            "global_physical_count": torch.full((LAYERS, SLOTS), 1 + rank + 10 * step, dtype=torch.int32),
            "extend_seq_lens": None,
            "input_ids": [1, 300, 70000],
        }
        for step in range(2)
    ]
    save(f"per_token_{rank}.pt", {"records": records, "last_physical_to_logical_map": slot_map})
save("placement.pt", {"physical_to_logical_map": slot_map})
base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
save(
    "views.pt",
    {
        "transposed": base.t(),
        "window": base[1:3, 2:5],
        "column": base[:, 1],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.tensor([1.5, -2.0, 6e-8], dtype=torch.float16),
        "bfloat16": torch.tensor([1.5, -3.0], dtype=torch.bfloat16),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "small": torch.tensor([-128, 127], dtype=torch.int8),
        "short": torch.tensor([-32768], dtype=torch.int16),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros((0, 3), dtype=torch.int64),
        "nested": {"list": [1, -1, 2**40, -(2**40), None, True, 0.5, "text"], "tuple": (1, (2, 3), ()), 5: {}},
    },
)
save("state_dict.pt", torch.nn.Linear(2, 1).state_dict())
save("forbidden.pt", {"logical_count": counts, "evil": Evil()})
save("expanded.pt", {"logical_count": torch.ones(1).expand(1000, 1000)})
(here / "zip64.pt").write_bytes(to_zip64((here / "stat.pt").read_bytes()))
assert torch.equal(torch.load(here / "zip64.pt")["logical_count"], counts)
