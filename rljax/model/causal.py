"""How the attention of prompts and of training is computed: equal ways, by name.

    whole   all scores at once
    blocks  a block of scores at a time, in plain JAX, on every device
    splash  jax's splash kernel, on TPUs alone
    cudnn   cuDNN's, on GPUs alone; bfloat16 or float16, without a cap
    auto    whole for up to 1,024 tokens and blocks for more, on every device

Nothing takes a kernel by itself: no chip was there to run one on. Tests hold splash to
the textbook's formula in jax's interpreter of kernels and compile it for a TPU; what
they do for cuDNN stands in `attention_cudnn`.

Temporaries of one layer, forward and backward, compiled for a v5p: 1 prompt of 2,048
tokens, 4 samples of 8,191, 32 query and 8 key/value heads of 128. whole: 24.0 GiB;
blocks: 1.6; splash: 1.2 (libtpu 0.0.42.1).
"""

import functools
from collections.abc import Callable

import jax

from rljax.model import attention, attention_blocks
from rljax.model.attention import Scores
from rljax.model.config import DecoderConfig

_KERNELS = ("splash", "cudnn")


def attend(c: DecoderConfig, q: jax.Array, *keys, window: jax.typing.ArrayLike | None):
    """`attention.attend_causally` as the configuration says, with the same arguments.

    Raises:
      ValueError: when traced, for what a kernel does not do.
    """
    kind = kind_of(c, q.shape[-2])
    fn = functools.partial(_function(kind, c.attention_block), style=style_of(c))
    if kind not in _KERNELS or not isinstance(window, jax.Array):
        return fn(q, *keys, window=window)
    # A kernel's window is static: both are compiled, and one of them runs.
    near, far = (functools.partial(fn, window=w) for w in (c.window, None))
    return jax.lax.cond(window == c.window, near, far, q, *keys)


def kind_of(c: DecoderConfig, num_tokens: int) -> str:
    """What "auto" means for so many tokens; every other name is itself."""
    if c.attention != "auto":
        return c.attention
    few = c.attention_block is None and num_tokens <= 2 * attention_blocks.BLOCK
    return "whole" if few else "blocks"


def style_of(c: DecoderConfig) -> Scores:
    """How a decoder's scores are made."""
    return Scores(c.query_scalar, c.attention_cap)


def _function(kind: str, block: int | None) -> Callable:
    if kind == "whole":
        return attention.attend_causally
    if kind == "blocks":
        block = attention_blocks.BLOCK if block is None else block
        return functools.partial(attention_blocks.attend_in_blocks, block=block)
    # Here, as importing Pallas takes time that most runs need not wait.
    if kind == "splash":
        from rljax.model.attention_splash import attend_by_splash

        return attend_by_splash
    from rljax.model.attention_cudnn import attend_by_cudnn

    return attend_by_cudnn
