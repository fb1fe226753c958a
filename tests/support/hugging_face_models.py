"""Small random models of transformers, and what torch computes with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.model import decoder_policy
from rljax.types import Prompts, Samples

NUM_LAYERS, VOCAB = 2, 61
COMMON = {
    "vocab_size": VOCAB,
    "num_hidden_layers": NUM_LAYERS,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Sizes differ from each other wherever they may: two that are swapped then fail.
GROUPED = {
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama_grouped": (
        "Llama",
        {
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
        },
    ),
    "llama_wide_heads_tied": (
        "Llama",
        {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 14,
            "rms_norm_eps": 0.05,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_grouped_tied": (
        "Qwen2",
        {
            "hidden_size": 40,
            "intermediate_size": 72,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_narrow_heads": (
        "Qwen2",
        {
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 4,
            "rms_norm_eps": 0.01,
            "rope_theta": 100.0,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_grouped_tied": (
        "Qwen3",
        {
            "hidden_size": 40,
            "intermediate_size": 72,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 14,
            "tie_word_embeddings": True,
        },
    ),
    # In 64 positions the pairs of features turn 10, 3.2, 1.02 and 0.3 times: kept, two
    # interpolated, and divided by 8.
    "llama_scaled_rope": (
        "Llama",
        {
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "tie_word_embeddings": False,
        },
    ),
    "mistral_odd_width": (
        "Mistral",
        {
            "hidden_size": 20,
            "intermediate_size": 44,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
    "mistral_window": (
        "Mistral",
        {**GROUPED, "sliding_window": 4},
    ),
    "qwen2_upper_window": (
        "Qwen2",
        {
            **GROUPED,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
    ),
    "qwen2_yarn": (
        "Qwen2",
        {
            **GROUPED,
            "head_dim": 14,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 8.0,
            },
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            **GROUPED,
            "head_dim": 14,
            "num_hidden_layers": 3,
            "sliding_window": 4,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    # Two of three layers slide, in five layers: the pattern does not divide them.
    "gemma3": (
        "Gemma3",
        {
            **GROUPED,
            "head_dim": 14,
            "num_hidden_layers": 5,
            "sliding_window": 4,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "rope_theta": 1000.0,
                    "factor": 8.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "olmo2": ("Olmo2", GROUPED),
    "smollm3": (
        "SmolLM3",
        {**GROUPED, "num_hidden_layers": 3, "no_rope_layer_interval": 2},
    ),
    "phi3_partial": (
        "Phi3",
        {
            **GROUPED,
            "hidden_size": 64,
            "sliding_window": 5,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75},
        },
    ),
    "phi3_longrope": (
        "Phi3",
        {
            **GROUPED,
            "original_max_position_embeddings": 128,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.1, 1.5, 2.0, 3.0],
                "long_factor": [1.0, 2.0, 4.0, 8.0, 8.0],
            },
        },
    ),
    "mixtral": (
        "Mixtral",
        {**GROUPED, "num_local_experts": 5, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **GROUPED,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 28,
            "shared_expert_intermediate_size": 36,
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **GROUPED,
            "head_dim": 14,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 28,
            "norm_topk_prob": True,
        },
    ),
}


def torch_model(name):
    """A small random model of transformers; biases and norms are random as well."""
    pytest.importorskip("torch")
    import transformers

    family, sizes = MODELS[name]
    kind = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, kind)(**{**COMMON, **sizes})
    config._attn_implementation = "eager"  # others leave out Gemma 2's cap
    return randomised(lambda: getattr(transformers, f"{family}ForCausalLM")(config))


def randomised(make):
    """The model that `make` returns, with random biases and norms."""
    import torch

    torch.set_num_threads(1)  # the matrices are tiny
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        # As initialised, biases are 0 and norms 1: mapped wrongly, nobody would see.
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2 + (p.ndim == 1))
    return model


def batch(num_prompts=3, num_samples=2, num_tokens=6):
    """Prompts of 3, 7 and 5 tokens with junk behind them, and completions."""
    rng = np.random.default_rng(0)
    shape = (num_prompts, num_samples, num_tokens)
    length = np.asarray([3, 7, 5], np.int32)
    prompts = Prompts(
        tokens=jnp.asarray(rng.integers(0, VOCAB, (num_prompts, 7)), jnp.int32),
        length=jnp.asarray(length),
        id=jnp.arange(num_prompts),
    )
    samples = Samples(
        tokens=jnp.asarray(rng.integers(0, VOCAB, shape), jnp.int32),
        mask=jnp.ones(shape, bool),
        source=jnp.zeros(shape[:2], jnp.int32),
        finished=jnp.ones(shape[:2], bool),
    )
    return prompts, samples


def torch_logits(model, prompts, samples):
    """[P, G, T, V] before each completion token, of one right-padded batch."""
    import torch

    rows, ends = [], []
    for p, length in enumerate(np.asarray(prompts.length)):
        for completion in np.asarray(samples.tokens[p]):
            rows.append(np.concatenate([prompts.tokens[p, :length], completion]))
            ends.append(length)
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    mask = np.stack([np.arange(width) < len(row) for row in rows])
    out = model(
        torch.tensor(ids.astype(np.int64)),
        attention_mask=torch.tensor(mask.astype(np.int64)),
    ).logits
    T = samples.tokens.shape[-1]
    out = [row[end - 1 : end - 1 + T] for row, end in zip(out, ends, strict=True)]
    return torch.stack(out).unflatten(0, samples.tokens.shape[:2])


def torch_logp(model, prompts, samples):
    """[P, G, T] of the completions' tokens."""
    import torch

    logp = torch_logits(model, prompts, samples).log_softmax(-1)
    index = torch.tensor(np.asarray(samples.tokens, np.int64))
    return logp.gather(-1, index[..., None])[..., 0]


def in_turn(config):
    """Its layers as a scan over one, which compiles faster than layers side by side."""
    return dataclasses.replace(config, unroll=1)


@functools.partial(jax.jit, static_argnums=0)
def measured(config, params, prompts, samples):
    """Logits, logp and the gradient of the summed logp, in one compilation."""
    policy = decoder_policy(in_turn(config))

    def loss(params):
        logp = policy.measure(params, prompts, samples).logp
        return jnp.sum(logp), logp

    (_, logp), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    hidden = policy.hidden(params, prompts, samples)
    return policy.logits(params, hidden), logp, gradient
