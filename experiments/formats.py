"""Number formats and memory of a model, as the flags of `train` name them."""

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
    """The model of --model; its layers are computed again backward unless refused."""
    return language_model.load(
        cast(pathlib.Path, c.model),
        param_dtype=c.param_dtype,
        save_dtype=c.save_dtype,
        **_fields(c, remat=c.remat != "none"),
    )


def new(
    c: Config, config: DecoderConfig, tokenizer: "PreTrainedTokenizerBase"
) -> Model:
    """A new decoder of these sizes; nothing of it is computed twice unless asked."""
    config = dataclasses.replace(config, **_fields(c, remat=c.remat == "layers"))
    made = language_model.new(config, tokenizer, param_dtype=c.param_dtype)
    return made._replace(save_dtype=c.save_dtype)


def _fields(c: Config, *, remat: bool) -> dict[str, Any]:
    # Of layers side by side XLA may keep what remat should not.
    unroll = 1 if remat and c.unroll is None else c.unroll
    return {
        "dtype": jnp.dtype(c.dtype),
        "attention": c.attention,
        "remat": remat,
        "unroll": unroll,
    }


def fast_dtype() -> Literal["float32", "bfloat16"]:
    """bfloat16 where the machine has units for its products, else float32."""
    if jax.default_backend() != "cpu":
        return "bfloat16"
    described = pathlib.Path("/proc/cpuinfo")  # of Linux
    has_units = described.is_file() and "amx_bf16" in described.read_text()
    return "bfloat16" if has_units else "float32"
