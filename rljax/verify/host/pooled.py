"""Verifiers in Python, for `program.split`: any function of text, in a process pool."""

import collections
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

import numpy as np

from rljax import check
from rljax.types import Prompts, Samples, Verdict, Verify
from rljax.verify.graph.text import answers_host, decode_host
from rljax.verify.graph.vocabulary import TokenBytes
from rljax.verify.host import pool as pools

_log = logging.getLogger(__name__)

DecodeFn = Callable[[np.ndarray, np.ndarray], list[str]]
"""(tokens i32[B, T], mask bool[B, T]) -> B texts."""


@contextlib.contextmanager
def pooled(
    fn: Callable[[str, str], float],
    decode: TokenBytes | DecodeFn,
    *,
    num_workers: int,
    timeout_s: float,
    memory_bytes: int | None = None,
    correct_at: float = 1.0,
) -> Iterator[Verify]:
    """A verifier that calls `fn(completion, answer)` for every sample, in processes.

    A call fails if it raises, returns no finite number, exceeds a limit or kills its
    process. Its sample then has `failed=True` and reward 0; the loop counts such
    samples and leaves them out of the loss. The log says what happened. Other calls are
    not affected. A run stops only if all calls of several consecutive batches fail.

    Each call runs in a fork of a process that has imported `fn`'s module. The fork
    takes about a millisecond. Nothing that a call sets up is there for the next call,
    so import and load at the top of the module what all calls need. This is not a
    sandbox: see `host.pool`.

    Args:
      fn: (completion, answer) -> reward of one sample. It is sent to the workers by
        name, so it must be defined at the top level of a module. It is not told whether
        the sample was cut.
      decode: the bytes of each token, or, if `token_bytes` does not support the
        tokenizer, a function (tokens i32[B, T], mask bool[B, T]) -> B strings. Bytes
        that are not UTF-8 become U+FFFD.
      num_workers: calls that run at the same time.
      timeout_s: limit of one call, seconds. Then its process is killed, with all
        processes that it started (on Linux; elsewhere with its process group).
      memory_bytes: address space that a call may take beyond what it starts with
        (Linux only). None: no limit.
      correct_at: a sample is correct if its reward is at least this.

    Returns:
      A context manager that yields (prompts, samples) -> Verdict of NumPy arrays. It
      reads `prompts.data["answer"]`. Leaving the context kills the workers.

    Raises:
      ValueError: if an argument is out of range, `fn` cannot be sent by name, or
        `decode` does not return a string for every sample.
      RuntimeError: if the workers cannot be started.

    Example: `with pooled(reward, table, num_workers=8, timeout_s=5.0) as verify: ...`
    """
    check.maker("fn", fn, "completion, answer")
    if not isinstance(decode, TokenBytes) and not callable(decode):
        raise ValueError(
            f"decode must be the bytes of each token or a function, got {decode!r};"
            " pass token_bytes(tokenizer)."
        )
    check.count("num_workers", num_workers)
    check.number("timeout_s", timeout_s, above=0)
    if memory_bytes is not None:
        check.count("memory_bytes", memory_bytes, high=2**63 - 1)
    check.number("correct_at", correct_at)
    with pools.Pool(
        fn, num_workers=num_workers, timeout_s=timeout_s, memory_bytes=memory_bytes
    ) as pool:

        def verify(prompts: Prompts, samples: Samples) -> Verdict:
            results = pool.run(_calls(decode, prompts, samples))
            _warn_of_failures(_name_of(fn), results)
            return _verdict(results, samples.tokens.shape[:2], correct_at)

        yield verify


def _calls(
    decode: TokenBytes | DecodeFn, prompts: Prompts, samples: Samples
) -> list[tuple[str, str]]:
    """(completion, answer) of each sample, row by row."""
    tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
    num_prompts, num_samples, num_tokens = tokens.shape
    rows = (num_prompts * num_samples, num_tokens)
    completions = _decode(decode, tokens.reshape(rows), mask.reshape(rows))
    answers = [answer.decode(errors="replace") for answer in answers_host(prompts)]
    repeated = [answer for answer in answers for _ in range(num_samples)]
    return list(zip(completions, repeated, strict=True))


def _name_of(fn: Callable) -> str:
    inner = fn.func if isinstance(fn, functools.partial) else fn
    return getattr(inner, "__qualname__", type(inner).__qualname__)


def _decode(
    decode: TokenBytes | DecodeFn, tokens: np.ndarray, mask: np.ndarray
) -> list[str]:
    if isinstance(decode, TokenBytes):
        texts = decode_host(decode, tokens, mask)
        return [text.decode(errors="replace") for text in texts]
    texts = decode(tokens, mask)
    good = isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts)
    if not good or len(texts) != len(tokens):
        got = type(texts).__name__
        if isinstance(texts, list | tuple):
            kinds = sorted({type(text).__name__ for text in texts})
            got += f" of {len(texts)} {' and '.join(kinds)}"
        raise ValueError(
            f"decode must return a list of {len(tokens)} str, one for each row of"
            f" tokens, got {got} from {decode!r}; decode row by row, to text."
        )
    return list(texts)


def _warn_of_failures(name: str, results: list[float | pools.Failure]) -> None:
    failures = [r for r in results if isinstance(r, pools.Failure)]
    if failures:
        kinds = collections.Counter(failure.kind for failure in failures)
        _log.warning(
            "%s: %d of %d verifications failed (%s); the first: %s",
            name,
            len(failures),
            len(results),
            ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
            failures[0].detail,
        )


def _verdict(
    results: list[float | pools.Failure], shape: tuple[int, ...], correct_at: float
) -> Verdict:
    failed = np.array([isinstance(r, pools.Failure) for r in results], bool)
    reward = [0.0 if isinstance(r, pools.Failure) else r for r in results]
    reward = np.array(reward, np.float32).reshape(shape)
    failed = failed.reshape(shape)
    return Verdict(
        reward=reward, correct=(reward >= correct_at) & ~failed, failed=failed
    )
