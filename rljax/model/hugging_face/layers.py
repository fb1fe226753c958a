"""The per-layer keys of config.json: sliding windows, and layers without rotation."""

import json
from typing import Any

from rljax.model.config import DecoderConfig
from rljax.model.hugging_face.family import Family
from rljax.model.hugging_face.value import checked

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read(values: dict[str, Any], family: Family, source) -> dict[str, Any]:
    """The fields `window`, `sliding` and `unrotated` of DecoderConfig.

    Args:
      values: entries of config.json and the family's defaults.
      family: of the model.
      source: path of the file, for messages.

    Raises:
      ValueError: naming source and key, if keys contradict each other or are not
        supported.
    """
    sliding = _sliding(values, family, source)
    window = None
    if any(sliding):
        window = checked(int, "sliding_window", values["sliding_window"], source)
    unrotated = _unrotated(values, source) if family.unrotated else ()
    return {
        "window": window,
        "sliding": sliding if any(sliding) else (),
        "unrotated": unrotated if any(unrotated) else (),
    }


def entries(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """The per-layer keys of config.json that say what `config` does."""
    out: dict[str, Any] = {}
    if family.unrotated:
        still = config.unrotated or (False,) * config.num_layers
        out["no_rope_layers"] = [int(not x) for x in still]
    windows = family.windows
    if windows is None:
        return out
    sliding = config.sliding or (False,) * config.num_layers
    if windows.switch is not None:
        out[windows.switch] = any(sliding)
        if not any(sliding):
            return out
        # transformers 4 reads this key instead of layer_types.
        out["max_window_layers"] = sliding.index(True)
    out["sliding_window"] = config.window
    if windows.listed:
        out["layer_types"] = [_SLIDING if slides else _FULL for slides in sliding]
    return out


def _sliding(values, family: Family, source) -> tuple[bool, ...]:
    """Per layer, whether it has a sliding window."""
    windows, layers = family.windows, range(values["num_hidden_layers"])
    window = values.get("sliding_window") if windows is not None else None
    switch = windows.switch if windows is not None else None
    if switch is not None and not checked(
        bool, switch, values.get(switch, False), source
    ):
        window = None
    sliding = (False,) * len(layers)
    if windows is not None and window is not None:
        sliding = tuple(windows.slides(values, i) for i in layers)
    kinds = values.get("layer_types")
    if kinds is None:
        return sliding
    if not isinstance(kinds, list) or len(kinds) != len(layers):
        raise ValueError(
            f"{source}: layer_types must be a list of num_hidden_layers={len(layers)}"
            f" kinds, got {json.dumps(kinds)}."
        )
    supported = (_FULL, _SLIDING) if windows is not None else (_FULL,)
    if other := sorted({str(kind) for kind in kinds} - set(supported)):
        only = " or ".join(json.dumps(kind) for kind in supported)
        raise ValueError(
            f"{source}: layer_types must be {only} to be supported, got"
            f" {json.dumps(other)}; choose another model."
        )
    listed = tuple(kind == _SLIDING for kind in kinds)
    if listed != sliding and (not windows or not windows.listed or window is None):
        raise ValueError(
            f"{source}: layer_types must agree with sliding_window"
            f"{f' and {switch}' if switch else ''}, got {json.dumps(kinds)} and window"
            f" {json.dumps(window)}; take the file published with the weights."
        )
    return listed


def _unrotated(values, source) -> tuple[bool, ...]:
    """Per layer, whether it has no rotary embedding."""
    num, rotated = values["num_hidden_layers"], values.get("no_rope_layers")
    if rotated is None:
        every = values.get("no_rope_layer_interval", 4)
        checked(int, "no_rope_layer_interval", every, source)
        return tuple((i + 1) % every == 0 for i in range(num))
    if (
        not isinstance(rotated, list)
        or len(rotated) != num
        or not all(x in (0, 1) for x in rotated)
    ):
        raise ValueError(
            f"{source}: no_rope_layers must be a list of num_hidden_layers={num} zeros"
            f" and ones, got {json.dumps(rotated)}."
        )
    return tuple(not x for x in rotated)
