"""Models with the number formats and memory options of `train`'s flags."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any, Literal, cast

import jax
import jax.numpy as jnp

from experiments.flags import Config
from rljax.model import DecoderConfig, Model, language_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load(c: Config) -> Model:
    """The model of --model; its layers are rematerialised unless --remat is none."""
    return language_model.load(
        cast(pathlib.Path, c.model),
        param_dtype=c.param_dtype,
        save_dtype=c.save_dtype,
        **_fields(c, remat=c.remat != "none"),
    )


def new(
    c: Config, config: DecoderConfig, tokenizer: "PreTrainedTokenizerBase"
) -> Model:
    """A new decoder; its layers are rematerialised only if --remat is layers."""
    config = dataclasses.replace(config, **_fields(c, remat=c.remat == "layers"))
    made = language_model.new(config, tokenizer, param_dtype=c.param_dtype)
    return made._replace(save_dtype=c.save_dtype)


def _fields(c: Config, *, remat: bool) -> dict[str, Any]:
    # XLA may keep the activations of unrolled layers in spite of remat.
    unroll = 1 if remat and c.unroll is None else c.unroll
    return {
        "dtype": jnp.dtype(c.dtype),
        "attention": c.attention,
        "remat": remat,
        "unroll": unroll,
    }


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """bfloat16 if the machine has matrix units for it, else float32."""
    if jax.default_backend() != "cpu":
        return "bfloat16"
    cpu = pathlib.Path("/proc/cpuinfo")  # Linux only
    has_units = cpu.is_file() and "amx_bf16" in cpu.read_text()
    return "bfloat16" if has_units else "float32"
