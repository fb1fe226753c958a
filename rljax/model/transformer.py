"""A decoder in flax: prefill, scoring of completions, and decoding of single tokens.

With default options it is Llama; `DecoderConfig` says what other families add. Two
choices make it fast. Activations are flat, [rows, width], so that every projection is
one two-dimensional matrix product. A prompt is computed once per group, in the sampler
and in training.

The layers are one scan, so that deep models compile as fast as shallow ones. `L` layers
are `N` groups of `M` layers: the scan runs over groups, and its body unrolls the layers
of a group. Layer n M + m is layer m of group n. Per-layer values (keys and values) are
a tuple with one entry per layer of the group, each stacked over groups, so that a model
of one group never slices a stacked array.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rljax import mesh, numerics
from rljax.model import attention, attention_cached, causal, product, rotary
from rljax.model.attention import KeyValue
from rljax.model.block import Block
from rljax.model.config import DecoderConfig
from rljax.model.norm import Norm

_FAR = 2**30  # window in tokens of full attention, if other layers have a window


class PromptCache(NamedTuple):
    """Keys and values of the prompts, computed once and shared by the group.

    keys: a `KeyValue` per layer of a group, [P, N * H, S, D]: the heads of all N groups
      lie side by side, so that those of one group are a slice. If a mesh splits heads,
      they have an axis of their own, [P, N, H, S, D].
    length: i32[P] tokens.
    routes: [P, S, L, K], the experts that computed each token; None: not recorded.
    """

    keys: tuple[KeyValue, ...]
    length: jax.Array
    routes: jax.Array | None = None


class Cache(NamedTuple):
    """Keys and values of the completions: a ring, so that rows may start at any time.

    keys: a ring's parts per layer of a group; see `attention_cached.Ring`. They hold
      T - 1 keys, because the decoder never reads the last token.
    written: i32[] decode steps so far.
    routes: [P, G, L, K], the experts that computed the last token; None: not recorded.
    """

    keys: tuple[tuple[KeyValue, ...], ...]
    written: jax.Array
    routes: jax.Array | None = None


class Decoder(nn.Module):
    """Embedding, layers and output head."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.initializer_std)
        self.embed = nn.Embed(
            c.vocab_size, c.d_model, dtype=c.dtype, embedding_init=init
        )
        # Parameters of all layers are stacked, [L, ...]; each layer has its own key.
        self.layers = nn.vmap(
            Block,
            in_axes=None,
            axis_size=c.num_layers,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(c)
        self.norm = Norm(c)
        if not c.tie_embeddings:
            self.head = nn.Dense(
                c.vocab_size,
                dtype=c.dtype,
                use_bias=False,
                dot_general=lambda x, kernel, *_, **__: product.logits(x, kernel, 0),
                kernel_init=init,
            )

    def __call__(self):
        """Touches every parameter; only `init` uses it."""
        x = self.embed(jnp.zeros(1, jnp.int32))
        rope = self.rope(jnp.zeros((1, 1), jnp.int32), 1)[0]
        self.layers(x, 0, (1, 1, 1), rope, lambda q, own: (q, None))
        return self.logits(self.norm(x))

    def rope(self, positions: jax.Array, num_positions: int) -> tuple[jax.Array, ...]:
        """Rows of the rotary tables at positions i32[P or 1, T].

        Returns:
          An array [P or 1, 1, 1, T, 2, D] for each distinct rope of
          `DecoderConfig.ropes`, in the order of their first layers.
        """
        width = self.config.rotated_width
        tables = [
            rotary.rotary_table(num_positions, width, rope)
            for rope in dict.fromkeys(self.config.ropes)
        ]
        return tuple(table[positions][:, None, None] for table in tables)

    def embed_tokens(self, tokens, read=None):
        """Embeddings [rows, d_model] of tokens [...].

        Args:
          tokens: i32[...].
          read: bool[...]; tokens may be invalid ids where it is false. None: while
            decoding, where every token is valid and parameters are gathered already.
        """
        c = self.config
        if read is None:
            x = self.embed(tokens.reshape(-1))
        else:
            x = self._look_up(numerics.readable_ids(tokens, read, c.vocab_size))
        x = mesh.keep(x, "rows", None)
        return x * jnp.asarray(c.d_model**0.5, x.dtype) if c.scale_embeddings else x

    def _look_up(self, ids):
        """Like `nn.Embed`, on each device for its own prompts; invalid ids give NaN."""
        table = {"embed": {"embedding": self.embed.embedding.astype(self.config.dtype)}}

        def look_up(params, ids):
            return jnp.take(params["embed"]["embedding"], ids, axis=0)

        x = mesh.by_prompts(look_up, table, ids)
        return x.reshape(-1, x.shape[-1])

    def logits(self, hidden):
        """f32[..., V] from normalised hidden states [..., d_model]."""
        c = self.config
        if c.tie_embeddings:
            weight = self.embed.embedding.astype(hidden.dtype)
            out = product.logits(hidden, weight, 1)
        else:
            out = self.head(hidden)
        return attention.capped(out, c.logit_cap)

    def apply_layers(
        self,
        x: jax.Array,
        shape: tuple[int, int, int],
        ropes: tuple[jax.Array, ...],
        attend_fn: Callable,
        *,
        per_layer: tuple | None = None,
        shared: tuple | None = None,
        given: jax.Array | None = None,
        gathered: bool = False,
    ):
        """Applies all layers.

        Args:
          x, shape: as a `Block` takes them.
          ropes: as `rope` returns them.
          attend_fn: (q, own KeyValue, window, n, own_part, shared_part) -> (out like q,
            output). `window` is the layer's, in tokens, or None if no layer has one; n
            is the group, i32[]; the parts are the layer's of `per_layer` and `shared`.
          per_layer: a tree [N, ...] per layer of a group; layer n M + m gets index n of
            the m-th tree.
          shared: a tree per layer of a group; layer n M + m gets the whole m-th tree.
          given: [rows, L, K], experts that replace the routers' choices.
          gathered: whether parameters are already sharded as the products need them.

        Returns:
          x, and a tuple with an `Output` per layer of a group, its arrays [N, ...].
        """
        c, M = self.config, self.config.layers_per_group
        block = Block(c, parent=None)
        per_layer = (None,) * M if per_layer is None else per_layer
        shared = (None,) * M if shared is None else shared
        routes = (None,) * M
        if given is not None:
            routes = tuple(jnp.moveaxis(given, 1, 0)[m::M] for m in range(M))

        @jax.jit  # so that unrolled layers are traced and differentiated once
        def layer(x, n, m, params, own_part, shared_part, route):
            params = params if gathered else mesh.gather(params, c.dtype)
            x = mesh.keep(x, "rows", None)
            number = n * M + m
            rope, window = _rope_of(c, ropes, number), _window_of(c, number)

            def attend_here(q, own):
                return attend_fn(q, own, window, n, own_part, shared_part)

            return block.apply(
                {"params": params}, x, number, shape, rope, attend_here, route
            )

        if c.remat:
            layer = jax.checkpoint(layer)
        elif mesh.size() > 1:
            layer = jax.checkpoint(layer, policy=mesh.unless_gathered)

        def group(x, inputs):
            n, params, own_parts, routes = inputs
            outputs = []
            for m in range(M):
                parts = own_parts[m], shared[m], routes[m]
                x, output = layer(x, n, m, params[layer_name(m)], *parts)
                outputs.append(output)
            return x, tuple(outputs)

        params = self.layers.variables["params"]
        inputs = (jnp.arange(c.num_groups), params, per_layer, routes)
        return jax.lax.scan(group, x, inputs)

    def prefill(self, tokens, length, given=None):
        """Runs the prompts.

        Args:
          tokens, length: i32[P, S] and the number of tokens, i32[P].
          given: [P, S, L, K], experts that replace the routers' choices.

        Returns:
          The hidden states [P, d_model] after each prompt's last token; a `KeyValue`
          [N, P, H, S, D] per layer of a group; the routers' own choices [P, S, L, K],
          None without experts.
        """
        P, S = tokens.shape
        x = self.embed_tokens(tokens, jnp.arange(S) < length[:, None])
        ropes = self.rope(jnp.arange(S)[None], S)

        def attend(q, own, window, n, own_part, shared_part):
            del n, own_part, shared_part
            return causal.attend(self.config, q, own, window=window), own

        given = flat_routes(given)
        x, outputs = self.apply_layers(x, (P, 1, S), ropes, attend, given=given)
        last = jnp.take_along_axis(
            x.reshape(P, S, -1), (length - 1)[:, None, None], axis=1
        )[:, 0]
        keys = tuple(output.attended for output in outputs)
        return self.norm(last), keys, routes_of(outputs, (P, S))

    def score(self, tokens, mask, length, num_prompt_tokens, prompt_keys, given=None):
        """Runs completions after their prompts.

        Tokens outside the mask are read as well (tool output); invalid ids among them
        are read as 0.

        Args:
          tokens, mask: i32[P, G, T] and bool[P, G, T].
          length, num_prompt_tokens: tokens of each prompt, i32[P], and S, static.
          prompt_keys: as `prefill` returns them.
          given: [P, G, T, L, K], experts that replace the routers' choices.

        Returns:
          The hidden states [P, G, T, d_model], and the routers' own choices
          [P, G, T, L, K], None without experts.
        """
        P, G, T = tokens.shape
        S = num_prompt_tokens
        x = self.embed_tokens(tokens, mask)
        ropes = self.rope(length[:, None] + jnp.arange(T), S + T)
        seen = jnp.arange(S) < length[:, None]

        def attend(q, own, window, n, prompt, shared_part):
            del n, shared_part
            keys = own, prompt, seen
            return causal.attend(self.config, q, *keys, window=window), None

        x, outputs = self.apply_layers(
            x,
            (P, G, T),
            ropes,
            attend,
            per_layer=prompt_keys,
            given=flat_routes(given),
        )
        return self.norm(x).reshape(P, G, T, -1), routes_of(outputs, (P, G, T))

    def decode_step(self, tokens, t, prompt: PromptCache, cache: Cache):
        """Runs one more token of each completion.

        Args:
          tokens, t: i32[P, G] tokens and i32[P], their index in the completion.
          prompt, cache: of the prompts and of the tokens before.

        Returns:
          The hidden states [P, G, d_model] after the tokens, and the new cache.
        """
        P, G = tokens.shape
        S, U = prompt.keys[0].key.shape[-2], attention_cached.num_keys(cache.keys[0])
        N = self.config.num_groups
        x = self.embed_tokens(tokens)
        position = (prompt.length + t)[:, None]
        ropes = self.rope(position, S + U)
        place, most = cache.written % U, jnp.max(t)
        style = causal.style_of(self.config)
        in_prompt = jnp.arange(S) < prompt.length[:, None]

        def attend(q, new, window, n, own_part, caches):
            del own_part
            seen = attention.seen_of_prompt(in_prompt, position, window)
            of_prompt, own = caches
            of_prompt = jax.tree.map(
                lambda x: attention_cached.of_group(x, n, N), of_prompt
            )
            apart, output = new, new
            if N == 1:
                apart, output = None, attention_cached.write(own, new, place)
                own = output
            ring = attention_cached.Ring(own, place, t, most)
            out = attention_cached.attend_one(
                q, apart, of_prompt, seen, ring, n, N, window=window, style=style
            )
            return out, output

        caches = tuple(zip(prompt.keys, cache.keys, strict=True))
        x, outputs = self.apply_layers(
            x, (P, G, 1), ropes, attend, shared=caches, gathered=True
        )
        # XLA:CPU copies a cache in each layer if the scan over layers writes to it. So
        # with several groups the layers only read the cache, and all keys are written
        # here, at once and in place. With one group there is no scan; each layer then
        # writes before it reads, since XLA:CPU copies a cache whose reads and writes
        # have no fixed order.
        keys = tuple(output.attended for output in outputs)
        if N == 1:
            keys = jax.tree.map(lambda x: x[0], keys)
        else:
            keys = tuple(
                attention_cached.write(old, jax.tree.map(join_groups, new), place)
                for old, new in zip(cache.keys, keys, strict=True)
            )
        hidden = self.norm(x).reshape(P, G, -1)
        routes = None if cache.routes is None else routes_of(outputs, (P, G))
        return hidden, Cache(keys, cache.written + 1, routes)


def _rope_of(c: DecoderConfig, ropes, number):
    """The rotary rows of layer `number`, an i32[]."""
    if len(ropes) == 1:
        return ropes[0]
    kinds = list(dict.fromkeys(c.ropes))
    kind = np.array([kinds.index(rope) for rope in c.ropes])
    return jnp.stack(ropes)[jnp.asarray(kind)[number]]


def _window_of(c: DecoderConfig, number):
    """The window in tokens of layer `number`, an i32[]; None if no layer has one.

    It is looked up by the layer's number, so that a pattern of sliding layers need not
    divide the groups.
    """
    if c.window is None or all(c.sliding):
        return c.window
    return jnp.asarray([c.window if s else _FAR for s in c.sliding])[number]


def routes_of(outputs, shape: tuple[int, ...]) -> jax.Array | None:
    """The routers' choices [*shape, L, K] in the outputs of `apply_layers`, or None."""
    if outputs[0].choice is None:
        return None
    choice = jnp.stack([output.choice for output in outputs], 1)  # [N, M, rows, K]
    _, _, rows, K = choice.shape
    return jnp.moveaxis(choice.reshape(-1, rows, K), 0, 1).reshape(*shape, -1, K)


def flat_routes(routes: jax.Array | None) -> jax.Array | None:
    """[..., L, K] -> [rows, L, K]."""
    return None if routes is None else routes.reshape(-1, *routes.shape[-2:])


def join_groups(x):
    """[N, P, H, ...] -> [P, N * H, ...]: puts the heads of all groups on one axis.

    XLA:CPU would copy the cache if N and H were separate axes. A mesh that splits heads
    needs them separate: [P, N, H, ...].
    """
    x = jnp.moveaxis(x, 0, 1)
    if mesh.size(mesh.TENSOR) > 1:
        return mesh.keep(x, "prompts", None, "heads")
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def layer_name(m: int) -> str:
    """The parameter name of layer m of a group, stacked over groups."""
    return f"layer_{m}"


def by_group(params: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """Regroups the layers' parameters: [L, ...] -> M trees [N, ...], for the scan."""
    M = config.layers_per_group
    layers = {
        layer_name(m): jax.tree.map(lambda p, m=m: p[m::M], params["layers"])
        for m in range(M)
    }
    return {**params, "layers": layers}
