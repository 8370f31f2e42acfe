"""Golden logits on tiny random checkpoints, one per corner of the DeepSeek-V2/V3 family, from transformers in float32.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python tools/tiny-model/make_golden.py --out tests/data/golden

Writes OUT/<case>/{config.json, model.safetensors, golden.json}. config.json is in the form in which the family's models
are shipped; golden.json holds token ids and the logits of every position. transformers 5.23 and torch 2.15 were used.
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP

COMMON = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": None, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1024, "rope_theta": 10000, "rope_scaling": None, "attention_bias": False,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}
V2 = {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "scoring_func": "softmax",
      "norm_topk_prob": False}
V3 = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "scoring_func": "sigmoid",
      "topk_method": "noaux_tc", "norm_topk_prob": True}


def yarn(factor, mscale, mscale_all_dim, **more):
    return {"type": "yarn", "factor": factor, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
            "mscale": mscale, "mscale_all_dim": mscale_all_dim, **more}


CASES = {
    # DeepSeek-V2-Lite: no q_lora, softmax greedy, yarn.
    "v2_lite": {**COMMON, **V2, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
                "rope_scaling": yarn(16, 0.707, 0.707)},
    # DeepSeek-V2: q_lora, groups ranked by their best score; unequal mscales put a factor into cos and sin.
    "v2_groups": {**COMMON, **V2, "q_lora_rank": 24, "topk_method": "group_limited_greedy", "n_group": 4,
                  "topk_group": 2, "routed_scaling_factor": 4.0, "rope_scaling": yarn(8, 1.0, 0.707)},
    # DeepSeek-V3 and R1: sigmoid, correction bias, groups ranked by their best two, yarn.
    "v3_yarn": {**COMMON, **V3, "q_lora_rank": 24, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
                "n_shared_experts": 1, "rope_scaling": yarn(40, 1.0, 1.0)},
    # Moonlight: no q_lora, one group, no yarn; here with tied embeddings and f32 weights.
    "v3_moonlight_tied": {**COMMON, **V3, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446,
                          "rope_theta": 50000.0, "tie_word_embeddings": True, "torch_dtype": "float32",
                          "hidden_size": 48, "num_hidden_layers": 2},
    # Every second layer dense, weights of the gate not normalised, Kimi's yarn borders.
    "v3_layer_freq": {**COMMON, **V3, "q_lora_rank": 24, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5,
                      "first_k_dense_replace": 0, "moe_layer_freq": 2, "norm_topk_prob": False, "model_type": "kimi_k2",
                      "rope_scaling": yarn(32, 1.0, 1.0, beta_fast=1.0, beta_slow=1.0)},
}


def build(config):
    """The transformers model of a shipped config.json."""
    is_v2 = config["architectures"][0].startswith("DeepseekV2")
    keys = dict(config)
    for name in ("architectures", "model_type", "moe_layer_freq", "scoring_func", "torch_dtype"):
        keys.pop(name)
    theta, scaling = keys.pop("rope_theta"), keys.pop("rope_scaling")
    rope = {"rope_type": "default", "rope_theta": float(theta)}
    if scaling:
        rope = {**scaling, "rope_type": scaling["type"], "rope_theta": float(theta)}
        rope.pop("type")
    if not is_v2:
        keys.pop("topk_method")
    cls, cfg = (DeepseekV2ForCausalLM, DeepseekV2Config) if is_v2 else (DeepseekV3ForCausalLM, DeepseekV3Config)
    hf = cfg(**keys, rope_parameters=rope, attn_implementation="eager", experts_implementation="eager")
    model = cls(hf).float().eval()
    for i, layer in enumerate(model.model.layers):  # transformers itself knows no moe_layer_freq
        if i % config["moe_layer_freq"] and i >= config["first_k_dense_replace"]:
            layer.mlp = DeepseekV3MLP(hf)
    return model


def fill(model, dtype, generator):
    """Random values, rounded as the checkpoint will store them."""
    for name, value in list(model.named_parameters()) + list(model.named_buffers()):
        if "rotary" in name:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            noise = 1 + 0.1 * noise
        elif name.endswith("e_score_correction_bias"):
            noise = 0.1 * noise
        elif name.endswith("gate.weight"):
            noise = 0.5 * noise
        else:
            noise = noise * (1.5 / value.shape[-1] ** 0.5)
        kept = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        value.data.copy_(noise.to(kept).float())


def stored(model, config, dtype):
    """name -> tensor, experts apart as in a shipped checkpoint."""
    out = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        kept = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(value):
                gate, up = both.chunk(2)
                base = name[: -len("gate_up_proj")] + f"{e}."
                out[base + "gate_proj.weight"], out[base + "up_proj.weight"] = gate.to(kept), up.to(kept)
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(value):
                out[name[: -len("down_proj")] + f"{e}.down_proj.weight"] = down.to(kept)
        else:
            out[name] = value.to(kept)
    return {name: value.contiguous().clone() for name, value in out.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    out = parser.parse_args().out
    for seed, (name, config) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(1000 + seed)
        dtype = getattr(torch, config["torch_dtype"])
        model = build(config)
        fill(model, dtype, generator)
        if config["tie_word_embeddings"]:
            assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        ids = torch.randint(0, config["vocab_size"], (1, 90), generator=generator)  # past yarn's original 64
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].float()
        folder = os.path.join(out, name)
        os.makedirs(folder, exist_ok=True)
        tensors = stored(model, config, dtype)
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(config, f, indent=1)
            f.write("\n")
        rows = [[round(v, 5) for v in logits[p].tolist()] for p in range(0, 90, 3)]
        with open(os.path.join(folder, "golden.json"), "w") as f:
            json.dump({"ids": ids[0].tolist(), "positions": list(range(0, 90, 3)), "logits": rows}, f)
            f.write("\n")
        size = os.path.getsize(os.path.join(folder, "model.safetensors"))
        print(f"{name}: {len(tensors)} tensors, {size} bytes, logits deviate by {logits.std():.2f}")


if __name__ == "__main__":
    main()
