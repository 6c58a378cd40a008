"""Checkpoints that always say the same: real qwen3_moe checkpoints whose weights are written by hand, so that the real engine,
tokenizer, template and server produce a chosen answer.

Every piece of the script is one token. Its embedding is a unit vector of its own, attention and experts are zero, and the row
of the output matrix that points at a vector is that of the piece which follows. So after the token that a template puts at
the end of the prompt the model writes the pieces one after the other, then the end token, at any temperature. Pieces must
differ from each other: the model knows the last token only."""
import json
import random
import re
import struct
from pathlib import Path

from harness import DEMO

HIDDEN, EXPERTS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 256, 4, 4, 2, 32, 64
EOS = "<|eos|>"


def cut(texts, tokens=()):
    """{name: text} as {name: pieces}: of a few characters each, all different; markers in `tokens` are pieces of their own."""
    rng = random.Random(1)
    for _ in range(5000):
        scripts = {name: [p for part in split_at(text, tokens) for p in (
            [part] if part in tokens else random_pieces(part, rng))] for name, text in texts.items()}
        pieces = [p for own in scripts.values() for p in own]
        if len(set(pieces)) == len(pieces):
            return scripts
    raise ValueError("these texts repeat themselves too much")


def split_at(text, tokens):
    """The text at its markers, which are kept."""
    return [p for p in re.split("|".join(f"({re.escape(t)})" for t in tokens) or "(?!)", text) if p]


def random_pieces(text, rng):
    pieces = []
    while text:
        size = rng.randint(2, 9)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def bf16(values):
    return struct.pack(f"<{len(values)}H", *(struct.unpack("<I", struct.pack("<f", v))[0] >> 16 for v in values))


def write_checkpoint(folder, scripts, chat_template, tokens=(), special=()):
    """scripts: {name: pieces}. The template starts one by ending its prompt with <|script NAME|>. `tokens`, `special`: markers that
    are added tokens, and those of them that are left out of text."""
    folder = Path(folder)
    base = json.loads((DEMO / "tokenizer.json").read_text())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(c) for c in range(256, 512))
    spelled = {byte: chr(byte) if byte in printable else next(others) for byte in range(256)}  # as byte-level vocabularies do
    vocabulary = {c: i for i, c in enumerate(spelled.values())}
    ids = {}
    base["added_tokens"] = []

    def add(content, is_added):
        if content not in ids:
            ids[content] = 256 + len(ids)
            if is_added:
                base["added_tokens"].append({"id": ids[content], "content": content, "single_word": False, "lstrip": False,
                                             "rstrip": False, "normalized": False, "special": content not in tokens or content in special})
            else:
                vocabulary["".join(spelled[byte] for byte in content.encode())] = ids[content]
        return ids[content]

    end = add(EOS, True)
    for content in [*special, *tokens]:
        add(content, True)
    follows = {}
    for name, pieces in scripts.items():
        chain = [add(f"<|script {name}|>", True), *(add(p, p in special or p in tokens) for p in pieces), end]
        for a, b in zip(chain, chain[1:]):
            assert follows.setdefault(a, b) == b, f"two scripts share the piece before {b}"
    assert len(follows) <= HIDDEN
    vocab = 256 + len(ids)
    base["model"].update(vocab=vocabulary, merges=[])
    axis = {token: i for i, token in enumerate(follows)}  # the direction of each token that something follows

    def rows(entries, width):
        data = bytearray(vocab * width * 2)
        for row, column, value in entries:
            at = 2 * (row * width + column)
            data[at:at + 2] = bf16([value])
        return bytes(data)

    ones = lambda n: bf16([1.0]) * n
    zeros = lambda n: bytes(2 * n)
    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": ([vocab, HIDDEN], rows([(t, i, 1.0) for t, i in axis.items()], HIDDEN)),
        "lm_head.weight": ([vocab, HIDDEN], rows([(follows[t], i, 8.0) for t, i in axis.items()], HIDDEN)),
        "model.norm.weight": ([HIDDEN], ones(HIDDEN)),
        layer + "input_layernorm.weight": ([HIDDEN], ones(HIDDEN)),
        layer + "post_attention_layernorm.weight": ([HIDDEN], ones(HIDDEN)),
        layer + "self_attn.q_norm.weight": ([HEAD_DIM], ones(HEAD_DIM)),
        layer + "self_attn.k_norm.weight": ([HEAD_DIM], ones(HEAD_DIM)),
    }
    shapes = {"self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
              "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
              "mlp.gate": (EXPERTS, HIDDEN)}
    for i in range(EXPERTS):
        shapes |= {f"mlp.experts.{i}.gate_proj": (INTERMEDIATE, HIDDEN), f"mlp.experts.{i}.up_proj": (INTERMEDIATE, HIDDEN),
                   f"mlp.experts.{i}.down_proj": (HIDDEN, INTERMEDIATE)}
    for name, (n, k) in shapes.items():
        tensors[f"{layer}{name}.weight"] = ([n, k], zeros(n * k))
    header, data = {}, b""
    for name, (shape, content) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": vocab, "hidden_size": HIDDEN, "intermediate_size": 128, "moe_intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "attention_bias": False, "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None,
        "rope_scaling": None, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
        "bos_token_id": None, "eos_token_id": end}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    (folder / "tokenizer.json").write_text(json.dumps(base, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS, "add_bos_token": False}))
    (folder / "chat_template.jinja").write_text(chat_template)
