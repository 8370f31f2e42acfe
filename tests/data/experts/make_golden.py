#!/usr/bin/env python3
"""Writes the .pt files beside it with real PyTorch: python3 make_golden.py (2.15.0 wrote those committed).

The files imitate what SGLang's expert distribution recorder saves, plus what a reader must refuse.
"""
import os
import pathlib

import torch

here = pathlib.Path(__file__).parent
LAYERS, EXPERTS, SLOTS = 2, 4, 6


def save(name, value):
    torch.save(value, here / name)


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
