"""The sampler: decodes on the device, without the host, and stops when all rows ended.

A prompt is prefilled once and shared by its G samples. Random numbers are keyed by
(run key, step, prompt id, sample number, position), so batch size, order, padding and
sharding do not change them.

Tokens are drawn from the policy's distribution at its temperature, which is also what
the learner measures and trains. Top-k and top-p change the distribution; the samples'
`behaviour` says how.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import check, keys, mesh
from rljax.policy.base import Policy
from rljax.rollout import draw, slots
from rljax.rollout import environment as environments
from rljax.rollout.environment import Environment
from rljax.rollout.stop_string import StopStrings
from rljax.types import Prompts, Sampler, Samples, Source, TokenStats


def sampler(
    policy: Policy,
    *,
    num_samples: int,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
    stop_strings: StopStrings | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    environment: Environment | None = None,
    num_slots: int | None = None,
) -> Sampler:
    """Makes `sample(params, prompts, key) -> (samples, old)`.

    The temperature belongs to the policy, `decoder_policy(config, temperature=T)`, so
    that sampler and learner cannot differ in it. To evaluate at another temperature
    make another policy; it takes the same parameters.

    Args:
      policy: the policy to sample from.
      num_samples: G, completions per prompt.
      max_tokens: T, most tokens of a completion, the end token included.
      stop_tokens: token ids that end a completion; the completion includes them.
      stop_strings: texts that end a completion, made by `stop_string.stop_strings`. The
        completion includes the token that completes the text.
      top_k: draws among the k most likely tokens only (ties with the k-th are kept).
      top_p: after top-k, draws among the smallest set of most likely tokens whose
        probabilities add up to at least this fraction.
      environment: answers within completions; see `rljax.rollout.environment`.
      num_slots: samples decoded at a time over the whole mesh, raised to a multiple of
        its parts; when one ends, a waiting one takes its place. Useful if lengths
        differ much; try a sixteenth of the batch's samples. None decodes all samples
        together until the longest ends.

    Returns:
      A pure function of parameters, prompts and the step's key. `samples.behaviour`
      holds statistics of the distribution drawn from, with `extra["kept_mass"]`; `old`
      those of the policy before top-k and top-p. With the defaults both are equal. Both
      are 0 outside the mask: after the end of a completion and at forced tokens.

    Raises:
      ValueError: if a number is outside its range; when traced, if a stop token is no
        id of the vocabulary, or if prompts or slots do not divide among the devices.
    """
    if top_k is not None:
        check.count("top_k", top_k)
    if top_p is not None:
        check.number("top_p", top_p, above=0, high=1)
    settings = _Settings(
        policy=policy,
        draw_fn=draw.at_random(top_k, top_p),
        source=Source.OWN,
        num_samples=num_samples,
        max_tokens=max_tokens,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        environment=environment,
        num_slots=num_slots,
    )
    return _sampler(settings)


def greedy(
    policy: Policy,
    *,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
    stop_strings: StopStrings | None = None,
    environment: Environment | None = None,
    num_slots: int | None = None,
) -> Sampler:
    """A sampler of one row per prompt that always takes the most likely token.

    This is the limit of temperature 0. Greedy rows serve for evaluation and as
    baselines of sampled rows (ReMax). Do not train on them: without randomness there is
    no policy gradient.

    Args: as `sampler`.

    Returns:
      A sampler of rows [P, 1, T] with `Source.GREEDY`. Their `behaviour` has
      log-probability 0; their `old` holds the policy's own statistics.
    """
    settings = _Settings(
        policy=policy,
        draw_fn=draw.most_likely,
        source=Source.GREEDY,
        num_samples=1,
        max_tokens=max_tokens,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        environment=environment,
        num_slots=num_slots,
    )
    return _sampler(settings)


class _Settings(NamedTuple):
    """The arguments of a sampler; see `sampler`."""

    policy: Policy
    draw_fn: draw.Draw
    source: int
    num_samples: int
    max_tokens: int
    stop_tokens: tuple[int, ...]
    stop_strings: StopStrings | None
    environment: Environment | None
    num_slots: int | None

    def is_stop(self, token: jax.Array) -> jax.Array:
        """bool, like `token`: whether it is a stop token."""
        return jnp.isin(token, jnp.asarray(self.stop_tokens, jnp.int32))


class _State(NamedTuple):
    """State that a sample carries from token to token; () if there is none.

    turn: of its environment.
    text: i32, state of the stop strings' automaton; see `StopStrings`.
    """

    turn: Any = ()
    text: Any = ()


def _sampler(settings: _Settings) -> Sampler:
    check.kind("policy", settings.policy, Policy, "decoder_policy(config)")
    check.count("num_samples", settings.num_samples)
    check.count("max_tokens", settings.max_tokens)
    if not isinstance(settings.stop_tokens, (tuple, list)):
        check.refuse("stop_tokens", "be a tuple of token ids", settings.stop_tokens)
    for token in settings.stop_tokens:
        check.count("stop_tokens", token, low=0, high=2**31 - 1)
    if settings.stop_strings is not None:
        example = "stop_strings(texts, pieces)"
        check.kind("stop_strings", settings.stop_strings, StopStrings, example)
    if settings.environment is not None:
        example = "Environment(init, step)"
        check.kind("environment", settings.environment, Environment, example)
    if settings.num_slots is not None:
        check.count("num_slots", settings.num_slots)

    def sample(params, prompts: Prompts, key):
        with mesh.sampling(), jax.named_scope("sample"):
            prompts = mesh.constrain(prompts)
            return mesh.constrain(_sample(settings, params, prompts, key))

    return sample


def _sample(settings: _Settings, params, prompts: Prompts, key):
    num_prompts, policy = prompts.tokens.shape[0], settings.policy
    layout = _layout(num_prompts, settings.num_samples, settings.num_slots)
    with jax.named_scope("prefill"):
        logits, prompt = policy.prefill(params, prompts)
    check.stop_tokens(settings.stop_tokens, logits.shape[-1])
    queue, written = _begin(settings, layout, logits, prompts, key)
    recorded = _of_rows(policy.recorded(prompt), settings.num_samples)
    first = {name: _last(x, prompts.length) for name, x in recorded.items()}

    def out(x):  # a buffer for all T tokens, with the first one written
        shape = (*x.shape[:2], settings.max_tokens, *x.shape[2:])
        return jnp.zeros(shape, x.dtype).at[:, :, 0].set(x)

    work = slots.Work(
        policy=policy,
        decode_params=policy.decode_params(params),
        queue=queue,
        prompt=jax.tree.map(layout.split, prompt),
        choose_fn=lambda logits, items: _choose(settings, logits, items),
        num_slots=layout.num_slots,
        max_tokens=settings.max_tokens,
    )
    out = slots.Written(*jax.tree.map(out, (written, layout.rows(first))))
    with jax.named_scope("decode"):
        decoded = slots.decode(work, out)
    samples, old = _samples(settings, layout, num_prompts, decoded)
    of_prompt = {f"prompt_{name}": x for name, x in recorded.items()}
    behaviour = samples.behaviour.replace(row_extra=of_prompt)
    return samples.replace(behaviour=behaviour), old


class _Layout(NamedTuple):
    """How the samples of a batch are spread over devices and slots: see `slots`.

    num_devices: parts that the mesh splits prompts into; devices that share a part
      count as one.
    num_slots: slots of each device.
    num_rows: samples in a slot, all of the same prompt.
    """

    num_devices: int
    num_slots: int
    num_rows: int

    def split(self, x: jax.Array) -> jax.Array:
        """[P, ...] -> [devices, P / devices, ...]."""
        return x.reshape(self.num_devices, -1, *x.shape[1:])

    def rows(self, tree):
        """[P, G, ...] -> [devices, items, rows, ...]."""

        def lay_out(x):
            x = x.reshape(self.num_devices, -1, self.num_rows, *x.shape[2:])
            return mesh.constrain(x)

        return jax.tree.map(lay_out, tree)


def _layout(num_prompts: int, num_samples: int, num_slots: int | None) -> _Layout:
    num_devices = mesh.parts("prompts")
    if num_slots is None:
        # A prompt's samples share a slot, so that its keys and values are read once.
        layout = _Layout(num_devices, num_prompts // num_devices, num_samples)
    else:
        num_slots = min(num_slots, num_prompts * num_samples)
        layout = _Layout(num_devices, -(-num_slots // num_devices), 1)
    if num_prompts % num_devices:
        raise ValueError(
            f"the number of prompts must be a multiple of {num_devices}, the parts that"
            f" the mesh splits them into, got {num_prompts}; change it, or take a mesh"
            " of fewer devices."
        )
    return layout


def _begin(settings: _Settings, layout: _Layout, logits, prompts: Prompts, key):
    """(queue of all items with their first token, the records of these tokens)."""
    P, G = len(logits), settings.num_samples
    state = _State()
    if settings.environment is not None:
        turn = environments.begin(settings.environment, prompts, key, G)
        state = state._replace(turn=turn)
    if settings.stop_strings is not None:
        state = state._replace(text=jnp.zeros((P, G), jnp.int32))
    waiting = slots.Items(
        number=jnp.zeros(P, jnp.int32),  # set below
        t=jnp.zeros(P, jnp.int32),
        token=jnp.zeros((P, G), jnp.int32),
        done=jnp.zeros((P, G), bool),
        key=jax.random.key_data(sample_keys(key, prompts.id, G)),
        state=state,
    )
    logits = jnp.broadcast_to(logits[:, None], (P, G, logits.shape[-1]))
    first = _choose(settings, logits, waiting)
    done = layout.rows(first.done)
    number = jnp.broadcast_to(jnp.arange(done.shape[1]), done.shape[:2])
    queue = slots.Items(
        number=number,
        t=jnp.zeros_like(number),
        token=layout.rows(first.token),
        done=done,
        key=layout.rows(waiting.key),
        state=layout.rows(first.state),
    )
    return queue, layout.rows(first.written)


def _choose(settings: _Settings, logits: jax.Array, items: slots.Items) -> slots.Choice:
    """Draws the next token of each row, or takes the one its environment forces."""
    sample_key = jax.random.wrap_key_data(items.key)
    written, state = settings.draw_fn(logits, sample_key, items.t), items.state
    if settings.environment is not None:
        written = environments.force(state.turn, written)
    token = written["token"]
    ended = settings.is_stop(token)
    if settings.stop_strings is not None:
        text = settings.stop_strings.after(state.text, token)
        # Only the policy's own tokens count; a forced token resets the automaton.
        text = jnp.where(written["mask"], text, 0)
        ended |= settings.stop_strings.found(text)
        state = state._replace(text=text)
    if settings.environment is not None:
        turn = environments.answer(settings.environment, state.turn, token, ended)
        state, ended = state._replace(turn=turn), turn.finished
    is_last = (items.t == settings.max_tokens - 1)[:, None]
    return slots.Choice(token, ended | is_last, state, written)


def _samples(settings: _Settings, layout: _Layout, num_prompts, decoded: slots.Decoded):
    """(samples, `old`), [P, G, ...], from the records of all devices."""
    P, G, T = num_prompts, settings.num_samples, settings.max_tokens

    def by_sample(x):  # [devices, items, T, rows, ...]
        return jnp.moveaxis(x, 3, 2).reshape(P, G, T, *x.shape[4:])

    out, recorded = jax.tree.map(by_sample, decoded.out)
    old = TokenStats(logp=out["old"][0], entropy=out["old"][1])
    behaviour = old.replace(extra={"kept_mass": out["mask"].astype(jnp.float32)})
    if "behaviour" in out:
        logp, entropy = out["behaviour"]
        extra = {"kept_mass": out["kept"]}
        behaviour = TokenStats(logp=logp, entropy=entropy, extra=extra)
    behaviour = behaviour.replace(extra=behaviour.extra | recorded)
    state = jax.tree.map(lambda x: x.reshape(P, G, *x.shape[3:]), decoded.states)
    finished = jnp.any(settings.is_stop(out["token"]) & out["mask"], -1)
    if settings.stop_strings is not None:
        finished |= settings.stop_strings.found(state.text)
    samples = Samples(
        tokens=out["token"],
        mask=out["mask"],
        source=jnp.full((P, G), settings.source, jnp.int32),
        finished=finished,
        behaviour=behaviour,
        decode_steps=jnp.full(
            (P, G),
            layout.num_devices * layout.num_slots * layout.num_rows / (P * G),
            jnp.float32,
        )
        * decoded.num_steps,
    )
    if settings.environment is not None:
        turn = state.turn
        samples = samples.replace(finished=turn.finished, environment=turn.state)
    return samples, old


def _of_rows(recorded: dict[str, jax.Array], num: int) -> dict[str, jax.Array]:
    """Repeats what was recorded of prompts: [P, S, ...] -> [P, num, S, ...]."""

    def repeat(x):
        return jnp.broadcast_to(x[:, None], (len(x), num, *x.shape[1:]))

    return jax.tree.map(repeat, recorded)


def _last(x: jax.Array, length: jax.Array) -> jax.Array:
    """[P, G, S, ...] -> [P, G, ...], the entries at each prompt's last token."""
    return x[jnp.arange(len(length)), :, length - 1]


def sample_keys(key: jax.Array, prompt_id: jax.Array, num_samples: int) -> jax.Array:
    """key[P, G]: a key per sample; a draw still folds in the token's position.

    Args:
      key: the training step's key.
      prompt_id: i32[P].
      num_samples: G.
    """

    def own(prompt, sample):
        return keys.stream(key, keys.Stream.SAMPLE, prompt, sample)

    rows = jax.vmap(jax.vmap(own, (None, 0)), (0, None))
    return rows(prompt_id, jnp.arange(num_samples))
