"""The rotary keys of config.json, in the spellings of transformers 4 and 5.

transformers 4 has top-level keys `rope_theta` and `rope_scaling`. transformers 5 has
`rope_parameters`, with one entry per kind of layer if there are two kinds. Files that
both versions have written hold all of them; then all must agree.
"""

import json
import math
from typing import Any, NamedTuple

from rljax.model.config import DecoderConfig
from rljax.model.hugging_face.family import Family
from rljax.model.hugging_face.value import checked, only
from rljax.model.rotary import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeScaling,
    YarnScaling,
)

_ORIGINAL = "original_max_position_embeddings"
_LLAMA3 = {  # field of the scaling -> key
    "factor": "factor",
    "low_turns": "low_freq_factor",
    "high_turns": "high_freq_factor",
    "original_positions": _ORIGINAL,
}
_YARN = {"fast_turns": "beta_fast", "slow_turns": "beta_slow"}
_KEYS = {  # rope_type -> keys beside the base and the type
    "default": set(),
    "linear": {"factor"},
    "llama3": set(_LLAMA3.values()),
    "yarn": {
        "factor",
        _ORIGINAL,
        *_YARN.values(),
        *("attention_factor", "mscale", "mscale_all_dim", "truncate"),
    },
    "longrope": {
        *("short_factor", "long_factor", "factor", _ORIGINAL, "attention_factor")
    },
}
_OLD_NAMES = {"su": "longrope"}


class _Place(NamedTuple):
    """An object of config.json with rotary keys, and its name for messages."""

    name: str
    rope: dict[str, Any]


def read(given: dict[str, Any], family: Family, source) -> dict[str, Any]:
    """The rotary fields of DecoderConfig, and `partial`, the rotated part of a head.

    Args:
      given: entries of config.json.
      family: of the model.
      source: path of the file, for messages.

    Returns:
      `rope_theta`, `rope_scaling`, for some families `sliding_rope_theta`, and
      `partial`, a fraction in (0, 1].

    Raises:
      ValueError: naming source and key, if keys contradict each other or are not
        supported.
    """
    everywhere, local = _places(given, family, source)
    thetas = {"rope_theta": given["rope_theta"]} if "rope_theta" in given else {}
    thetas |= _stated(everywhere, "rope_theta")
    parts = _stated(everywhere, "partial_rotary_factor")
    if given.get("partial_rotary_factor") is not None:
        parts["partial_rotary_factor"] = given["partial_rotary_factor"]
    scalings = {
        place.name: _scaling(place, given, family, source)
        for place in everywhere
        if place.rope
    }
    default = family.defaults.get("rope_theta", 10_000.0)
    fields = {
        "rope_theta": only("rope_theta", thetas, default, source),
        "rope_scaling": only("rotary scaling", scalings, None, source),
        "partial": only("partial_rotary_factor", parts, 1.0, source),
    }
    if family.local_rope:
        key = "rope_local_base_freq"
        thetas = {key: given[key]} if key in given else {}
        thetas |= _stated(local, "rope_theta")
        if any(_scaling(place, given, family, source) for place in local):
            raise ValueError(
                f"{source}: rope_parameters.sliding_attention must have rope_type"
                f' "default" to be supported, got {json.dumps(local[0].rope)}; choose'
                " another model."
            )
        theta = only(key, thetas, family.defaults[key], source)
        fields["sliding_rope_theta"] = checked(float, key, theta, source)
    checked(float, "rope_theta", fields["rope_theta"], source)
    checked(float, "partial_rotary_factor", fields["partial"], source)
    return fields


def entries(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """The rotary keys of config.json, in spellings that transformers 4 reads, too."""
    out: dict[str, Any] = {"rope_theta": config.rope_theta}
    if family.local_rope:
        out["rope_local_base_freq"] = config.sliding_rope_theta
    if family.partial_rotary:
        out["partial_rotary_factor"] = config.rotated_width / config.head_dim
    if config.rope_scaling is not None:
        out["rope_scaling"] = _written(config.rope_scaling)
        if _ORIGINAL in family.defaults and _ORIGINAL in out["rope_scaling"]:
            out[_ORIGINAL] = out["rope_scaling"][_ORIGINAL]
    return out


def _places(given, family: Family, source) -> tuple[list[_Place], list[_Place]]:
    """The objects for layers with full attention, or all, and for sliding layers."""
    everywhere, local = [], []
    for key in ("rope_parameters", "rope_scaling"):
        rope = {} if given.get(key) is None else given[key]
        if not isinstance(rope, dict):
            raise ValueError(f"{source}: {key} must be an object, got {rope!r}.")
        if family.local_rope and key == "rope_parameters" and rope:
            kinds = {"full_attention": everywhere, "sliding_attention": local}
            if rope.keys() - kinds.keys() or not all(
                isinstance(x, dict) for x in rope.values()
            ):
                raise ValueError(
                    f"{source}: {key} must hold objects full_attention and"
                    f" sliding_attention, got {json.dumps(rope)}."
                )
            for kind, part in rope.items():
                kinds[kind].append(_Place(f"{key}.{kind}", part))
        else:
            everywhere.append(_Place(key, rope))
    return everywhere, local


def _stated(places: list[_Place], key: str) -> dict[str, Any]:
    """Full name -> value, for each place that has the key."""
    return {f"{name}.{key}": rope[key] for name, rope in places if key in rope}


def _scaling(place: _Place, given, family: Family, source) -> RopeScaling | None:
    """The scaling that an object asks for, or None."""
    name, rope = place
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = _OLD_NAMES.get(kind, kind)
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
    # Multi-modal and nested per-layer forms also have the type "default".
    if kind not in family.ropes or rope.keys() - known - _KEYS[kind]:
        *others, last = (f'"{x}"' for x in family.ropes)
        raise ValueError(
            f"{source}: {name} must have rope_type {', '.join(others)} or {last} and"
            f" only keys of that type, got {json.dumps(rope)}; choose another model."
        )

    def number(key, kind=float, default=None):
        value = default if rope.get(key) is None else rope[key]
        return checked(kind, f"{name}.{key}", value, source)

    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(number("factor"))
    if kind == "llama3":
        kinds = Llama3Scaling.__annotations__
        return Llama3Scaling(**{f: number(k, kinds[f]) for f, k in _LLAMA3.items()})
    at_top = given.get(_ORIGINAL, family.defaults.get(_ORIGINAL))
    original = number(_ORIGINAL, int, at_top)
    if kind == "yarn":
        return _yarn(rope, number, original)
    return _long(rope, number, original, given, f"{source}: {name}")


def _yarn(rope, number, original: int) -> YarnScaling:
    factor = number("factor")

    def amplitude_of(weight):
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    default = amplitude_of(1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        default = amplitude_of(number("mscale"))
        default /= amplitude_of(number("mscale_all_dim"))
    turns = {field: rope[key] for field, key in _YARN.items() if rope.get(key)}
    for key in _YARN.values():
        number(key, default=1.0)
    whole = number("truncate", bool, default=True)
    amplitude = number("attention_factor", default=default)
    return YarnScaling(factor, original, amplitude, **turns, whole=whole)


def _long(rope, number, original: int, given, where: str) -> LongScaling:
    short, long = (
        _factors(rope, key, where) for key in ("short_factor", "long_factor")
    )
    longest = given.get("max_position_embeddings", original)
    factor = number("factor", default=longest / original)
    ratio = math.log(factor) / math.log(original) if factor > 1 else 0.0
    amplitude = number("attention_factor", default=math.sqrt(1 + ratio))
    return LongScaling(short, long, original, amplitude)


def _factors(rope, key: str, where: str) -> tuple[float, ...]:
    got = rope.get(key)
    if not isinstance(got, list):
        raise ValueError(f"{where}.{key} must be a list, got {json.dumps(got)}.")
    return tuple(checked(float, key, x, where) for x in got)


def _written(scaling: RopeScaling) -> dict[str, Any]:
    """The value of `rope_scaling` for a scaling."""
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        numbers = {key: getattr(scaling, field) for field, key in _LLAMA3.items()}
        return {"rope_type": "llama3", **numbers}
    rest = {
        _ORIGINAL: scaling.original_positions,
        "attention_factor": scaling.amplitude,
    }
    if isinstance(scaling, LongScaling):
        factors = {"short_factor": scaling.short, "long_factor": scaling.long}
        lists = {key: list(x) for key, x in factors.items()}
        return {"rope_type": "longrope", **lists, **rest}
    turns = {key: getattr(scaling, field) for field, key in _YARN.items()}
    yarn = {"rope_type": "yarn", "factor": scaling.factor, **turns, **rest}
    return yarn if scaling.whole else {**yarn, "truncate": False}
