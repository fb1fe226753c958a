"""Attention of one token over a ring of keys, against the textbook's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.model import attention_cached
from rljax.model.attention import PLAIN, KeyValue, Scores

P, H, G, R, D, S, N = 2, 2, 3, 2, 8, 5, 2


def inputs(num_keys, dtype=jnp.float32, split=False, in_one=False):
    """q, own key, prompt and a ring's parts, of which every place holds something."""
    draw = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), dtype)

    heads = (N, H * G) if split else (N * H * G,)
    return (
        normal(P, H, G, R, 1, D),
        KeyValue(*(normal(P, H * G, 1, D) for _ in range(2))),
        KeyValue(*(normal(P, H, S, D) for _ in range(2))),
        tuple(
            KeyValue(*(normal(P, *heads, B, D) for _ in range(2)))
            for B in attention_cached.part_sizes(num_keys, 2 if in_one else 1)
        ),
    )


def attend(arrays, place, count, n, window, apart=True, style=PLAIN):
    """The token's own key is apart, or first written to all groups of the ring."""
    q, new, prompt, blocks = arrays
    if not apart:
        everywhere = jax.tree.map(lambda x: jnp.concatenate([x] * N, 1), new)
        blocks = attention_cached.write(blocks, everywhere, place)
        new = None
    seen = (jnp.arange(S) < jnp.array([[2], [S]]))[:, None, None]
    ring = attention_cached.Ring(blocks, place, count, jnp.max(count))
    return attention_cached.attend_one(
        q, new, prompt, seen, ring, n, N, window=window, style=style
    )


attend = jax.jit(attend, static_argnames=("apart", "style"))


def textbook(arrays, place, count, n, window, style=PLAIN):
    """Each row's keys in their order, and one softmax over them."""
    q, new, prompt, blocks = jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)
    keys = [np.concatenate(x, -2) for x in zip(*blocks, strict=True)]
    keys = [x.reshape(P, N, H * G, -1, D)[:, n] for x in keys]
    U = keys[0].shape[-2]
    out = np.zeros(q.shape)
    for p, h, g, r in np.ndindex(P, H, G, R):
        own = [(place - age) % U for age in range(min(count[p], window - 1), 0, -1)]
        k, v = (
            np.concatenate(
                [a[p, h, : (2, S)[p]], b[p, h * G + g, own], c[p, h * G + g]]
            )
            for a, b, c in zip(prompt, keys, new, strict=True)
        )
        scores = k @ q[p, h, g, r, 0] / np.sqrt(style.scalar or D)
        if style.cap is not None:
            scores = style.cap * np.tanh(scores / style.cap)
        weight = np.exp(scores - scores.max())
        out[p, h, g, r, 0] = weight @ v / weight.sum()
    return out


# 47 keys are a ring of 3 blocks of 16; 15 keys are a single block.
CASES = [
    # Nothing yet, one token, all of a block, one more, all there can be.
    *((47, t, (t, t)) for t in (0, 1, 16, 17, 46)),
    *((15, t, (t, t)) for t in (0, 1, 14)),
    # Rows that began later than others; one that begins now; a ring gone round.
    (47, 25, (25, 3)),
    (47, 6, (0, 46)),
    (47, 16, (4, 46)),
    (15, 3, (10, 0)),
]


@pytest.mark.parametrize(("apart", "in_one"), [(True, True), (False, False)])
@pytest.mark.parametrize("window", [2**30, 9, 17, 1])
@pytest.mark.parametrize(("num_keys", "place", "count"), CASES)
def test_blocks_of_a_ring_are_one_softmax(
    num_keys, place, count, window, apart, in_one
):
    # A block left out or read twice, the oldest key in the new one's place, or what is
    # left of other samples would each be off by a tenth and more.
    arrays = inputs(num_keys, in_one=in_one)
    for n in range(N):
        got = attend(arrays, place, jnp.array(count), n, window, apart)
        want = textbook(arrays, place, count, n, window)
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("num_keys", [15, 47])
def test_capped_scores_and_split_heads_are_the_same_law(num_keys):
    style = Scores(scalar=3.0, cap=1.5)
    count = (13, 9)
    arrays = inputs(num_keys, split=True, in_one=True)
    got = attend(arrays, 13, jnp.array(count), 1, None, style=style)
    want = textbook(arrays, 13, count, 1, 2**30, style)
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("num_keys", [15, 47])
def test_bfloat16_is_as_exact_as_its_weights(num_keys):
    # Weights and the result are rounded to 8 bits, each by at most 2^-9; sums are not.
    arrays, count = inputs(num_keys, jnp.bfloat16, in_one=True), (14, 9)
    got = attend(arrays, 14, jnp.array(count), 0, 2**30)
    assert got.dtype == jnp.bfloat16
    want = textbook(arrays, 14, count, 0, 2**30)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=1.5e-2)


@pytest.mark.parametrize(
    ("place", "most", "window", "reads"),
    [
        (16, 16, 2**30, [0]),
        (17, 17, 2**30, [0, 1]),
        (20, 3, 2**30, [1]),
        # Gone round; the window ends in the first block, or one before it.
        (10, 46, 2**30, [0, 1, 2]),
        (10, 46, 11, [0]),
        (10, 46, 12, [0, 2]),
    ],
)
@pytest.mark.parametrize("in_one", [True, False])
def test_blocks_that_no_row_sees_are_not_read(place, most, window, reads, in_one):
    # NaN in a block that is read would come through: 0 x NaN is NaN.
    q, new, prompt, parts = inputs(47, in_one=in_one)
    count = jnp.array([most, 0])
    for j in range(3):
        bad = list(parts)
        if in_one:
            here = slice(16 * j, 16 * (j + 1))
            bad[0] = KeyValue(*(x.at[..., here, :].set(jnp.nan) for x in bad[0]))
        else:
            bad[j] = jax.tree.map(lambda x: x * jnp.nan, bad[j])
        out = attend((q, new, prompt, tuple(bad)), place, count, 0, window)
        assert bool(jnp.any(jnp.isnan(out))) == (j in reads)


def test_a_ring_is_little_larger_than_its_keys():
    sizes = {1: [1], 16: [16], 63: [16] * 4, 8191: [1024] * 8}
    for num_keys, want in sizes.items():
        assert attention_cached.part_sizes(num_keys, 1) == want
        assert attention_cached.part_sizes(num_keys, 2) == [sum(want)]
    for n in range(1, 9000):
        (U,) = attention_cached.part_sizes(n, 2)
        num = attention_cached.num_blocks(n)
        assert n <= U < n + num
        assert attention_cached.num_blocks(U) == num  # decoding knows U alone
