"""The implementations of causal attention, for prefill and training, by name.

    whole   all scores at once
    blocks  one block of scores at a time, in plain JAX, on every device
    splash  jax's splash kernel, TPUs only
    cudnn   cuDNN, GPUs only; bfloat16 or float16, without a cap
    auto    whole for up to 1,024 tokens, blocks for more

They differ only in rounding. "auto" never chooses a kernel, because no device was
available to run one. Tests compare splash with the textbook formula in jax's kernel
interpreter and compile it for a TPU; `attention_cudnn` says how cuDNN is tested.

Temporary memory of one layer, forward and backward, compiled for a v5p (libtpu
0.0.42.1), for 1 prompt of 2,048 tokens, 4 samples of 8,191 tokens, 32 query and 8
key/value heads of width 128: whole 24.0 GiB, blocks 1.6 GiB, splash 1.2 GiB.
"""

import functools
from collections.abc import Callable

import jax

from rljax.model import attention, attention_blocks
from rljax.model.attention import Scores
from rljax.model.config import DecoderConfig

_KERNELS = ("splash", "cudnn")


def attend(c: DecoderConfig, q: jax.Array, *keys, window: jax.typing.ArrayLike | None):
    """`attention.attend_causally`, by the implementation that the configuration names.

    Args:
      c: `attention` names the implementation.
      q, *keys, window: as `attention.attend_causally` takes them.

    Raises:
      ValueError: when traced, if the kernel does not support the arguments.
    """
    kind = kind_of(c, q.shape[-2])
    fn = functools.partial(_function(kind, c.attention_block), style=style_of(c))
    if kind not in _KERNELS or not isinstance(window, jax.Array):
        return fn(q, *keys, window=window)
    # A kernel's window is static, the layer's is traced: compile both, run one.
    near, far = (functools.partial(fn, window=w) for w in (c.window, None))
    return jax.lax.cond(window == c.window, near, far, q, *keys)


def kind_of(c: DecoderConfig, num_tokens: int) -> str:
    """The implementation's name, with "auto" resolved for the number of tokens."""
    if c.attention != "auto":
        return c.attention
    few = c.attention_block is None and num_tokens <= 2 * attention_blocks.BLOCK
    return "whole" if few else "blocks"


def style_of(c: DecoderConfig) -> Scores:
    """The scale and cap of a decoder's attention scores."""
    return Scores(c.query_scalar, c.attention_cap)


def _function(kind: str, block: int | None) -> Callable:
    if kind == "whole":
        return attention.attend_causally
    if kind == "blocks":
        block = attention_blocks.BLOCK if block is None else block
        return functools.partial(attention_blocks.attend_in_blocks, block=block)
    # Imported here because Pallas is slow to import and most runs do not need it.
    if kind == "splash":
        from rljax.model.attention_splash import attend_by_splash

        return attend_by_splash
    from rljax.model.attention_cudnn import attend_by_cudnn

    return attend_by_cudnn
