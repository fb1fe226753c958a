"""What users' transforms and losses return is checked, above all where P = G = T.

There an array that lacks an axis broadcasts without a word: a baseline [P] is taken for
one per sample, and the run trains on another objective.
"""

import functools

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
import loss_laws
import optax
import pytest

from rljax import advantage as adv
from rljax import loss
from rljax.advantage import seam
from rljax.learn import update
from rljax.types import NotMeasured

N = 4


def run(rows, transform=None, loss_fn=None, *, weighting=None, call=jax.eval_shape):
    """The loss of one term, made as the update makes it; by default only traced."""
    term = adv.Term(
        advantage=adv.chain() if transform is None else adv.chain(transform),
        weighting=adv.token_mean() if weighting is None else weighting,
        loss_fn=loss.reinforce() if loss_fn is None else loss_fn,
    )
    algorithm = adv.algorithm(policy=term)

    def value(now):
        credits, state, _ = algorithm.credit(rows, algorithm.init())
        current = jax.lax.stop_gradient(now)
        batch = rows.replace(current=current)
        credits, _, _ = algorithm.weigh(credits, batch, state)
        return algorithm.loss(now, credits, batch)

    return call(value, rows.current)


@functools.cache
def cube(num_prompts=N, num_samples=N, num_tokens=N):
    return loss_laws.rollout(num_prompts, num_samples, num_tokens)


def reduced(transform):
    credit, _ = jax.eval_shape(lambda rows: laws.op_by_op(transform, rows), cube())
    return credit.reduced


@pytest.mark.parametrize("name", laws.ALL_TRANSFORMS)
def test_every_transform_passes_where_all_sizes_are_equal(name):
    transform = laws.ALL_TRANSFORMS[name]
    mean = () if reduced(transform) else (adv.token_mean(),)
    assert run(cube(), weighting=adv.chain(transform, *mean)).shape == ()


def drop_axis(field):
    def broken(transform):
        def update(credit, rollout, state):
            credit, state = transform.update(credit, rollout, state)
            return credit.replace(**{field: getattr(credit, field)[..., 0]}), state

        return adv.AdvantageTransform(transform.init, update)

    return broken


def drop_prompts(transform):
    def update(credit, rollout, state):
        credit, state = transform.update(credit, rollout, state)
        return credit.replace(advantage=credit.advantage[0]), state

    return adv.AdvantageTransform(transform.init, update)


MUTATIONS = [drop_axis(x) for x in ("advantage", "weight", "member")] + [drop_prompts]


@pytest.mark.parametrize("name", laws.ALL_TRANSFORMS)
def test_a_transform_that_drops_an_axis_raises(name):
    transform = laws.ALL_TRANSFORMS[name]
    mean = () if reduced(transform) else (adv.token_mean(),)
    for broken in MUTATIONS:
        chain = adv.chain(broken(transform), *mean)
        with pytest.raises(seam.BrokenLaw, match=r"^term 'policy', weighting .*link 1"):
            run(cube(), weighting=chain)


@pytest.mark.parametrize("name", loss_laws.ALL_LOSSES)
def test_a_loss_that_drops_an_axis_raises(name):
    loss_fn = loss_laws.ALL_LOSSES[name]
    rows = cube()
    if name != "consistency":
        assert run(rows, loss_fn=loss_fn).shape == ()
    for cut in (
        lambda value: value[..., 0],
        lambda value: value[0],
        lambda value: jnp.mean(value, 1),
        jnp.mean,
    ):
        with pytest.raises(seam.BrokenLaw, match=r"^term 'policy', loss function"):
            run(rows, loss_fn=lambda *args, cut=cut: cut(loss_fn(*args)))


def group_mean(credit):
    return jnp.mean(credit.advantage, (1, 2))  # [P]


SLIPS = {
    "a baseline per prompt taken for one per sample": lambda c, r: c.replace(
        advantage=c.advantage - group_mean(c)[:, None]
    ),
    "a mean that loses its axis": lambda c, r: c.replace(
        advantage=c.advantage - jnp.mean(c.advantage, 1)
    ),
    "a reward without its last axis": lambda c, r: c.replace(
        advantage=c.advantage * r.verdict.reward
    ),
    "a filter of prompts broadcast over tokens": lambda c, r: c.replace(
        weight=jnp.where(group_mean(c) > 0, c.weight, 0.0)
    ),
    "a filter of prompts broadcast over samples": lambda c, r: c.replace(
        weight=jnp.where((group_mean(c) > 0)[:, None], c.weight, 0.0)
    ),
    "a filter of rows broadcast over tokens": lambda c, r: c.replace(
        weight=jnp.where(r.samples.finished, c.weight, 0.0)
    ),
    "tokens and samples exchanged": lambda c, r: c.replace(
        weight=jnp.swapaxes(c.weight, 1, 2)
    ),
}


@pytest.mark.parametrize("name", SLIPS)
@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 4, 3), (3, 4, 4), (4, 3, 4)])
def test_a_slip_of_axes_raises_or_is_none(name, sizes):
    # Where two sizes differ a slip may be harmless or impossible, never silent.
    rows = cube(*sizes)
    with pytest.raises(seam.BrokenLaw, match=r"advantage .*link 1 of 1"):
        run(rows, adv.stateless(SLIPS[name]))


def test_a_loss_that_mixes_ranks_raises():
    with pytest.raises(seam.BrokenLaw, match="loss function"):
        run(cube(), loss_fn=lambda now, c, r: c.advantage[..., 0] * now.logp)


def test_the_message_names_term_link_what_came_and_what_is_expected():
    inner = adv.chain(
        adv.center_by_group(), drop_axis("advantage")(adv.scale_by_focal_factor(0.5))
    )
    with pytest.raises(seam.BrokenLaw) as raised:
        run(loss_laws.rollout(3, 4, 5), inner)
    message = str(raised.value)
    assert message.startswith("term 'policy', advantage")
    for part in ("link 1 of 1", "link 2 of 2", "(drop_axis)", "an advantage float32"):
        assert part in message
    assert "shape (3, 4, 1) or (3, 4, 5)" in message
    assert "got float32 of shape (3, 4)" in message


def test_links_are_called_by_their_factory():
    assert seam.name_of(adv.center_by_group().update) == "center_by_group"
    assert seam.name_of(adv.drop_covariant(clipped_fn=lambda c, r: c.weight > 0).update)
    assert seam.name_of(loss.reinforce()) == "reinforce"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda c, r, s: c, "a pair"),
        (lambda c, r, s: (c.advantage, s), "a pair"),
        (lambda c, r, s: (c, (s, 1)), "a state"),
        (lambda c, r, s: (c.log(spread=c.advantage), s), "a metric 'spread'"),
        (
            lambda c, r, s: (c.replace(advantage=c.advantage.astype(jnp.bfloat16)), s),
            "an advantage float32",
        ),
        (
            lambda c, r, s: (c.replace(member=1.0 * c.member), s),
            "a member bool",
        ),
        (
            lambda c, r, s: (c.replace(weight=r.samples.mask), s),
            "a weight float32",
        ),
    ],
)
def test_what_is_no_credit_is_refused(returned, message):
    wrong = adv.AdvantageTransform(lambda: (), returned)
    with pytest.raises(seam.BrokenLaw, match=message):
        run(loss_laws.rollout(), wrong)


def test_a_loss_of_another_dtype_is_refused():
    with pytest.raises(seam.BrokenLaw, match="got int32"):
        run(cube(), loss_fn=lambda now, c, r: r.samples.tokens)


def test_unequal_sizes_are_multiples_that_differ():
    assert seam.unequal((4, 4, 4)) == (12, 4, 8)
    assert seam.unequal((4, 8, 8)) == (4, 8, 16)
    assert seam.unequal((3, 4, 5)) == (3, 4, 5)
    assert seam.unequal((4, 4, 4), fixed={4}) == (4, 4, 4)
    # One prompt, sample or token broadcasts as it should.
    assert seam.unequal((1, 1, 1)) == (1, 1, 1)


def test_numbers_and_state_of_one_batch_size_are_no_slip():
    # Written down by hand for 4 prompts, or kept for each of them.
    rows = cube()
    table = jnp.arange(16, dtype=jnp.float32).reshape(4, 4, 1)
    by_hand = adv.stateless(lambda c, r: c.replace(advantage=c.advantage + table))
    inside = adv.stateless(
        lambda c, r: c.replace(advantage=jnp.array([[[1.0]] * 4] * 4))
    )

    def remember(credit, rollout, last):
        return credit.replace(advantage=credit.advantage - last), credit.advantage

    kept = adv.AdvantageTransform(lambda: jnp.zeros((4, 4, 1)), remember)
    for transform in (by_hand, inside, kept):
        assert run(rows, transform).shape == ()
        assert run(rows, transform, call=lambda fn, now: fn(now)).shape == ()


def test_nothing_of_the_check_is_left_in_the_program():
    rows = loss_laws.rollout(N, N, N)
    once, _ = jax.jit(lambda r: laws.op_by_op(adv.chain(adv.center_by_group()), r))(
        rows
    )
    plain, _ = laws.op_by_op(adv.center_by_group(), rows)
    chex.assert_trees_all_close(once, plain, atol=1e-6)
    lowered = [
        jax.jit(lambda r, t=t: laws.op_by_op(t, r)).lower(rows).as_text().count("\n")
        for t in (adv.center_by_group(), adv.chain(adv.center_by_group()))
    ]
    assert lowered[0] == lowered[1]


@pytest.mark.parametrize("num_micro", [1, 2])
def test_a_loss_that_reads_current_is_refused_whatever_the_pieces(num_micro):
    # With one microbatch it used to work, with two it raised.
    policy = fakes.bandit(4, 5, 16)
    term = adv.Term(
        weighting=adv.token_mean(),
        loss_fn=lambda now, credit, rollout: -credit.advantage * rollout.current.logp,
    )
    algorithm = adv.algorithm(policy=term)
    learner = update.learner(
        policy.measure, algorithm, optax.sgd(1.0), num_microbatches=num_micro
    )
    rows = fakes.rollout(4, 4, 5)
    state = learner.init(policy.init(None), jax.random.key(0))
    with pytest.raises(NotMeasured, match="only `weighting` chains may read it"):
        jax.eval_shape(learner.learn, state, rows)


def test_a_reduction_in_the_advantage_chain_is_refused():
    # Term's chains exchanged: every token of the batch would weigh by its old share.
    swapped = adv.Term(
        advantage=adv.token_mean(),
        weighting=adv.center_by_group(),
        loss_fn=loss.reinforce(),
    )
    algorithm = adv.algorithm(policy=swapped)
    with pytest.raises(ValueError, match=r"'policy' .* swap the two chains"):
        algorithm.credit(loss_laws.rollout(), algorithm.init())
