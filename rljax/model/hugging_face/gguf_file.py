"""Converts a GGUF file of a Llama-type model to a Hugging Face folder.

It uses neither torch nor transformers, whose versions make different tokenizers of the
same file. Quantised weights are dequantised to bfloat16. The package `gguf` reads the
file; `rljax[real]` installs it.
"""

import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from rljax.model.hugging_face.metadata import CONFIG, GENERATION
from rljax.model.hugging_face.weights import WEIGHTS, write_json

_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

_LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_CONTROL = 3  # GGUF's type of control tokens


def write_folder(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes config.json, weights, tokenizer, chat template and end tokens.

    Args:
      file: GGUF, of architecture `llama` with a byte-level tokenizer of kind `smollm`.
      folder: to make; must not exist.

    Raises:
      ValueError: naming the file, if it is of another kind or `gguf` is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f"reading {file} needs the package gguf, which is not installed; install"
            " rljax[real]."
        ) from error
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    for key, known in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        if said.get(key) != known:
            raise ValueError(
                f"{file}: {key} must be {known!r}, got {said.get(key)!r}; download a"
                " Hugging Face folder of the model instead."
            )
    heads = {
        "attn_q": said["llama.attention.head_count"],
        "attn_k": said["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name, module = _name(file, tensor.name)
        weight = by_halves(weight, heads[module]) if module in heads else weight
        tensors[name] = np.ascontiguousarray(weight.astype(ml_dtypes.bfloat16))
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, _config(said, tied="lm_head.weight" not in tensors))
    _write_tokenizer(said, folder)


def by_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows [heads * width, ...] of q or k for Hugging Face's rotation.

    GGUF keeps the two rows of a rotated pair side by side, Hugging Face half a head
    apart.
    """
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _name(file: pathlib.Path, name: str) -> tuple[str, str]:
    """A tensor's name in Hugging Face folders, and its module's name in GGUF."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    layer, module = found.groups() if found else (None, name)
    known = _MODULES if layer is None else _LAYER_MODULES
    if module not in known:
        raise ValueError(f"{file}: a Llama has no tensor {name!r}.")
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{known[module]}.weight", module


def _config(said: dict[str, Any], tied: bool) -> dict[str, Any]:
    llama = {k.removeprefix("llama."): v for k, v in said.items()}
    heads = llama["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": len(said["tokenizer.ggml.tokens"]),
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["embedding_length"] // heads,
        "max_position_embeddings": llama["context_length"],
        "rope_theta": _shortest(llama["rope.freq_base"]),
        "rms_norm_eps": _shortest(llama["attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        **{f"{kind}_token_id": i for kind, i in _token_ids(said).items()},
    }


def _shortest(number: float) -> float:
    """The shortest decimal that rounds to the same float32, such as 1e-5."""
    return float(str(np.float32(number)))


def _token_ids(said: dict[str, Any]) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {kind: said.get(f"tokenizer.ggml.{k}_token_id") for kind, k in keys.items()}
    return {kind: i for kind, i in found.items() if i is not None}


def _write_tokenizer(said: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # Kind `smollm`: each digit is a word of its own; the rest follows GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(t, normalized=False, special=True) for t in control]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = _token_ids(said)
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": said["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **{f"{kind}_token": tokens[i] for kind, i in ids.items()},
    }
    if (template := said.get("tokenizer.chat_template")) is not None:
        described["chat_template"] = template
    write_json(folder / "tokenizer_config.json", described)
    # The token that ends a turn, and the one that ends a document, if it is another.
    document = [vocabulary[t] for t in control if t == "<|endoftext|>"]
    ends = list(dict.fromkeys([ids["eos"], *document]))
    generation = {f"{kind}_token_id": i for kind, i in ids.items() if kind != "unk"}
    write_json(folder / GENERATION, generation | {"eos_token_id": ends})
