#!/usr/bin/env python3
"""Writes the quantised checkpoints of tests/golden and their references. Not part of the tests: it documents how they were made.

    make_quantized.py OUT [NAME...] --autoawq DIR     DIR: the unpacked source of AutoAWQ 0.2.9

Needs torch, transformers 5.17, compressed-tensors 0.20 and safetensors. Weights are random. The numbers of a reference are those
that the library that defines the format makes of the stored tensors, with its scales widened to float32 first, so that
scale * number is not rounded to 16 bits:
  compressed-tensors    its compressors' decompress()
  mxfp4                 transformers.integrations.mxfp4.convert_moe_packed_tensors()
  awq                   AutoAWQ's awq/utils/packing_utils.py: dequantize_gemm()
  fp8, a scale a tensor number * weight_scale (there is no loader in transformers; as vLLM's fp8 does)
They go as a float32 checkpoint into transformers (eager attention, no cache, whole sequence at once).
"""
import argparse
import importlib.util
import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

COMMON = {"attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu", "tie_word_embeddings": False,
          "max_position_embeddings": 2048, "vocab_size": 192, "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16"}
QWEN3 = {**COMMON, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96,
         "moe_intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8,
         "num_experts_per_tok": 3, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "rope_theta": 1000000.0,
         "attention_bias": False, "use_sliding_window": False, "rope_scaling": None}
DEEPSEEK = {**COMMON, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 96,
            "moe_intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "n_shared_experts": 1, "n_routed_experts": 8,
            "num_experts_per_tok": 3, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1,
            "routed_scaling_factor": 2.5, "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "q_lora_rank": 32,
            "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 24, "v_head_dim": 32, "rope_theta": 10000,
            "rope_scaling": None, "attention_bias": False, "num_nextn_predict_layers": 0}
GPT_OSS = {**COMMON, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 64,
           "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 3,
           "experts_per_token": 3, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True,
           "swiglu_limit": 7.0, "rms_norm_eps": 1e-5, "rope_theta": 150000,
           "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                            "original_max_position_embeddings": 64, "truncate": False}}


def bf16(shape, std):
    return (torch.randn(shape) * std).to(torch.bfloat16)


def plain_tensors(c):
    """Every tensor of the architecture as the hub names it, in bfloat16; experts apart."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    t = {"model.embed_tokens.weight": bf16((c["vocab_size"], hidden), 1.0), "model.norm.weight": 1 + bf16((hidden,), 0.1),
         "lm_head.weight": bf16((c["vocab_size"], hidden), 2.5 / math.sqrt(hidden))}

    def linear(name, n, k, gain=1.0, bias=False):
        t[name + ".weight"] = bf16((n, k), gain / math.sqrt(k))
        if bias:
            t[name + ".bias"] = bf16((n,), 0.2)

    def mlp(p, width):
        linear(p + "gate_proj", width, hidden)
        linear(p + "up_proj", width, hidden)
        linear(p + "down_proj", hidden, width, 2.0)

    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        t[p + "input_layernorm.weight"] = 1 + bf16((hidden,), 0.1)
        t[p + "post_attention_layernorm.weight"] = 1 + bf16((hidden,), 0.1)
        if c["model_type"] == "deepseek_v3":
            nope, rope, v, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
            linear(a + "q_a_proj", c["q_lora_rank"], hidden)
            t[a + "q_a_layernorm.weight"] = 1 + bf16((c["q_lora_rank"],), 0.1)
            linear(a + "q_b_proj", heads * (nope + rope), c["q_lora_rank"], 1.5)
            linear(a + "kv_a_proj_with_mqa", rank + rope, hidden)
            t[a + "kv_a_layernorm.weight"] = 1 + bf16((rank,), 0.1)
            linear(a + "kv_b_proj", heads * (nope + v), rank)
            linear(a + "o_proj", hidden, heads * v)
        else:
            bias, kv, dim = c["attention_bias"], c["num_key_value_heads"], c["head_dim"]
            linear(a + "q_proj", heads * dim, hidden, 1.5, bias)
            linear(a + "k_proj", kv * dim, hidden, 1.5, bias)
            linear(a + "v_proj", kv * dim, hidden, 1.0, bias)
            linear(a + "o_proj", hidden, heads * dim, 1.0, bias)
            if c["model_type"] == "qwen3_moe":
                t[a + "q_norm.weight"] = 1 + bf16((dim,), 0.1)
                t[a + "k_norm.weight"] = 1 + bf16((dim,), 0.1)
            else:
                t[a + "sinks"] = bf16((heads,), 1.0)
        m = p + "mlp."
        if c["model_type"] == "gpt_oss":
            linear(m + "router", c["num_local_experts"], hidden, 1.5, True)
            t[m + "experts.gate_up_proj_bias"] = bf16((c["num_local_experts"], 2 * c["intermediate_size"]), 0.2)
            t[m + "experts.down_proj_bias"] = bf16((c["num_local_experts"], hidden), 0.2)
        elif c["model_type"] == "deepseek_v3" and i < c["first_k_dense_replace"]:
            mlp(m, c["intermediate_size"])
        else:
            num = c.get("num_experts") or c["n_routed_experts"]
            linear(m + "gate", num, hidden, 1.5)
            if c["model_type"] == "deepseek_v3":
                t[m + "gate.e_score_correction_bias"] = bf16((num,), 0.05).float()
                mlp(m + "shared_experts.", c["moe_intermediate_size"])
            for e in range(num):
                mlp(f"{m}experts.{e}.", c["moe_intermediate_size"])
    return t


def quantised(name):
    """Linear layers but the router and the output head, as published checkpoints have it."""
    return name.endswith("_proj.weight") or name.endswith("_proj_with_mqa.weight")


# Each scheme: (stored tensors, float32 numbers) of one matrix, `name` without ".weight".

def with_compressed_tensors(compressor, weights, scale_dtype):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def store(name, w):
        w = w.float()
        size = args.group_size if args.strategy == "group" else w.shape[1]
        groups = w.reshape(w.shape[0], -1, size)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        scale = scale.to(scale_dtype or torch.float32)
        state = {"weight": w, "weight_scale": scale.float(), "weight_zero_point": zero.to(torch.int8)}
        packed = compressor.compress(state, scheme)
        if scale_dtype:  # else the compressor's own: a power of two
            packed["weight_scale"] = scale
        widened = {**packed, "weight_scale": scale.float()} if scale_dtype else packed
        numbers = compressor.decompress(widened, scheme)["weight"].float()
        return {f"{name}.{k}": v.contiguous() for k, v in packed.items() if k != "weight_zero_point" or not args.symmetric}, numbers

    return store


def fp8_per_tensor(name, w):
    scale = w.float().abs().max() / 448
    q = (w.float() / scale).to(torch.float8_e4m3fn)
    stored = {name + ".weight": q, name + ".weight_scale": scale.reshape(()), name + ".input_scale": torch.tensor(0.5)}
    return stored, q.float() * scale


def awq(group_size, packing_utils):
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(q):  # [rows, n] to words of eight columns
        words = torch.zeros(q.shape[0], q.shape[1] // 8, dtype=torch.int64)
        for i, column in enumerate(order):
            words |= q[:, column::8].to(torch.int64) << (4 * i)
        return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)

    def store(name, w):
        w = w.float().t()  # [k, n]
        groups = w.reshape(-1, group_size, w.shape[1])
        low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        scales = ((high - low) / 15).to(torch.float16)
        zeros = (-low / scales.float()).round().clamp(0, 15)
        q = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15).reshape(w.shape)
        stored = {name + ".qweight": pack(q), name + ".qzeros": pack(zeros), name + ".scales": scales}
        numbers = packing_utils.dequantize_gemm(stored[name + ".qweight"], stored[name + ".qzeros"], scales.float(), 4, group_size)
        return stored, numbers.t().contiguous()

    return store


def mxfp4_experts(c, stored, numbers):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    num, hidden, width = c["num_local_experts"], c["hidden_size"], c["intermediate_size"]
    for i in range(c["num_hidden_layers"]):
        for name, n, k, gain in (("gate_up_proj", 2 * width, hidden, 1.0), ("down_proj", hidden, width, 1.0)):
            p = f"model.layers.{i}.mlp.experts.{name}"
            blocks = torch.randint(0, 256, (num, n, k // 32, 16), dtype=torch.uint8)
            exponent = 127 + round(math.log2(gain / math.sqrt(k) / 3))
            scales = (exponent + torch.randint(-2, 3, (num, n, k // 32))).to(torch.uint8)
            stored.update({p + "_blocks": blocks, p + "_scales": scales})
            numbers[p] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)


def checkpoints(packing_utils):
    from compressed_tensors.compressors import BaseCompressor
    int4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": False}
    asymmetric = {**int4, "symmetric": False, "group_size": 8}
    int8 = {**int4, "num_bits": 8}
    mxfp4 = {**int4, "type": "float", "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}

    def compressed(fmt, weights, activations=None):
        return {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed", "kv_cache_scheme": None,
                "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": activations, "output_activations": None,
                                              "weights": {**weights, "actorder": None, "block_structure": None}}},
                "ignore": ["lm_head", "re:.*mlp.gate$"]}

    def ct(fmt, weights, scale_dtype=torch.bfloat16):
        return with_compressed_tensors(BaseCompressor.get_value_from_registry(fmt), weights, scale_dtype)

    return {
        "deepseek_v3_int4": (DEEPSEEK, compressed("pack-quantized", int4), ct("pack-quantized", int4)),
        "qwen3_moe_int4_zp": ({**QWEN3, "moe_intermediate_size": 48}, compressed("pack-quantized", {**asymmetric, "group_size": 16}),
                              ct("pack-quantized", {**asymmetric, "group_size": 16})),
        "qwen3_moe_fp8_channel": (QWEN3, compressed("float-quantized", fp8, {**fp8, "strategy": "token", "dynamic": True}),
                                  ct("float-quantized", fp8)),
        "qwen3_moe_fp8_tensor": (QWEN3, {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
                                 fp8_per_tensor),
        "deepseek_v3_awq": (DEEPSEEK, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
                                       "modules_to_not_convert": ["gate"]}, awq(32, packing_utils)),
        "gpt_oss_mxfp4": (GPT_OSS, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn",
                                    "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}, None),
        "qwen3_moe_int8": ({**QWEN3, "moe_intermediate_size": 32}, compressed("pack-quantized", int8), ct("pack-quantized", int8)),
        "qwen3_moe_mxfp4": ({**QWEN3, "moe_intermediate_size": 32}, compressed("mxfp4-pack-quantized", mxfp4),
                            ct("mxfp4-pack-quantized", mxfp4, None)),
    }


def reference_model(config, numbers):
    from transformers import AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
        save_file({k: v.float().contiguous() for k, v in numbers.items()}, Path(d) / "model.safetensors", {"format": "pt"})
        model, info = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


@torch.no_grad()
def cases(model, vocab):
    """Prompts whose greedy tokens are clear and whose logprobs do not hang on a near tie in the routing."""
    def logprobs(ids):
        return torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0].double(), -1)

    embedding = model.get_input_embeddings().weight
    out = []
    for length in (1, 7, 33, 90):
        for _ in range(200):
            prompt = torch.randint(2, vocab, (length,)).tolist()
            ids, clear = list(prompt), True
            for _ in range(12):
                top = logprobs(ids)[-1].topk(2)
                clear = clear and bool(top.values[0] - top.values[1] >= 0.02)
                if not clear:
                    break
                ids.append(int(top.indices[0]))
            if not clear:
                continue
            chosen = logprobs(ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            saved = embedding.detach().clone()
            worst = 0.0
            for _ in range(2):
                embedding.copy_(saved * (1 + 1e-5 * torch.randn_like(saved)))
                worst = max(worst, float((logprobs(ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0] - chosen).abs().max()))
            embedding.copy_(saved)
            if worst <= 4e-4:
                out.append({"prompt_ids": prompt, "output_ids": ids[length:], "logprobs": [round(float(x), 5) for x in chosen]})
                break
        else:
            raise SystemExit(f"no clear prompt of {length} tokens")
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--autoawq", type=Path, required=True)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("packing_utils", args.autoawq / "awq/utils/packing_utils.py")
    packing_utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packing_utils)
    torch.set_num_threads(1)
    import compressed_tensors
    import transformers
    for i, (name, (config, quantization, store)) in enumerate(checkpoints(packing_utils).items()):
        if args.names and name not in args.names:
            continue
        torch.manual_seed(100 + i)
        stored, numbers = {}, {}
        for tensor, w in plain_tensors(config).items():
            if store and quantised(tensor):
                parts, numbers[tensor] = store(tensor.removesuffix(".weight"), w)
                stored.update(parts)
            else:
                stored[tensor] = numbers[tensor] = w
        if not store:
            mxfp4_experts(config, stored, numbers)
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}, indent=1) + "\n")
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        model = reference_model(config, numbers)
        about = (f"Reference: transformers {transformers.__version__}, float32, torch {torch.__version__}, of the numbers that "
                 f"compressed-tensors {compressed_tensors.__version__}, AutoAWQ 0.2.9 or transformers make of the stored ones "
                 "(make_quantized.py).")
        lines = ",\n".join(json.dumps(c) for c in cases(model, config["vocab_size"]))
        (folder / "golden.json").write_text(f'{{"about": {json.dumps(about)},\n"cases": [\n{lines}\n]}}\n')
        print(name, (folder / "model.safetensors").stat().st_size, file=sys.stderr)


if __name__ == "__main__":
    main()
