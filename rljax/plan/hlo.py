"""Lists the collectives and the largest arrays of a compiled program.

It parses the text of an optimised HLO module, `compiled.as_text()`. XLA's own analysis
counts the body of a loop once; here it counts as often as the loop runs.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<shape>.*?) (?P<opcode>[a-z][\w-]*)\("
)
_ARRAY = re.compile(r"(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<sizes>[\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"= [su]\d+\[\][^ ]* constant\((\d+)\)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_KINDS = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# TPUs fuse an all-reduce with the slice that a device keeps of it.
_SCATTERS = "all-reduce-scatter"
# TPUs cut an asynchronous collective into fusions with other work, some of them inside
# loops. All name the whole collective; it counts where it starts.
_CONTINUES = re.compile(
    r"^\s*(?:ROOT )?%?async-collective-done|calls=%?async_collective_fusion"
)


class Collective(NamedTuple):
    """A collective operation of a program.

    kind: as XLA names it, such as all-gather.
    shape: of its result on one device, as XLA writes it.
    bytes: of the result.
    times: how often it runs; an upper bound if a loop's end depends on data.
    op_name: name of the traced operation that it comes from; if XLA gives none, that of
      the loop or fusion that it is in, or "".
    """

    kind: str
    shape: str
    bytes: int
    times: int
    op_name: str


class _Line(NamedTuple):
    """An instruction: the shape of its result, its opcode, and its whole text."""

    shape: str
    opcode: str
    text: str


def collectives(text: str) -> list[Collective]:
    """The collectives of an optimised HLO module, with the number of their runs."""
    computations, entry = _computations(text)
    found: list[Collective] = []

    def walk(name: str, times: int, scope: str) -> None:
        for line in computations.get(name, ()):
            # Of an asynchronous pair only `-done` counts, because the shape of `-start`
            # includes operands.
            kind = line.opcode.removesuffix("-done")
            op_name = _OP_NAME.search(line.text)
            here = op_name[1] if op_name else scope
            if kind in _KINDS:
                size = num_bytes(line.shape)
                found.append(Collective(kind, line.shape, size, times, here))
                continue  # the adder that an all-reduce calls moves nothing
            trips = _trip_count(line, computations) if line.opcode == "while" else 1
            for called in _called(line.text):
                if called.startswith(_SCATTERS):
                    size = num_bytes(line.shape)
                    one = Collective("reduce-scatter", line.shape, size, times, here)
                    found.append(one)
                elif _CONTINUES.search(line.text) is None:
                    walk(called, trips * times, here)

    walk(entry, 1, "")
    return found


def by_kind(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> {"count": runs, "bytes": bytes of all results}."""
    kinds: dict[str, collections.Counter] = {}
    for one in found:
        counter = kinds.setdefault(one.kind, collections.Counter())
        counter.update(count=one.times, bytes=one.times * one.bytes)
    return {kind: dict(kinds[kind]) for kind in sorted(kinds)}


def arrays(text: str, min_bytes: int) -> dict[str, int]:
    """Shape -> bytes, for arrays of a module of at least `min_bytes` on one device.

    These are arguments, results and temporaries. Values inside a fusion do not count,
    because they are never stored.
    """
    computations, _ = _computations(text)
    fused = {
        called
        for lines in computations.values()
        for line in lines
        if line.opcode == "fusion"
        for called in _called(line.text)
    }
    found: dict[str, int] = {}
    for name, lines in computations.items():
        if name in fused:
            continue
        for line in lines:
            for array in _ARRAY.finditer(line.shape):
                if (size := _array_bytes(array)) >= min_bytes:
                    found[array[0]] = size
    return found


def num_bytes(shape: str) -> int:
    """Bytes of a shape in XLA's notation; a tuple has the sum of its parts.

    >>> num_bytes("(f32[2,3]{1,0:T(8,128)}, s32[]{:T(128)})")
    28
    """
    return sum(map(_array_bytes, _ARRAY.finditer(shape)))


def _array_bytes(array: re.Match) -> int:
    bits = re.search(r"\d+", array["dtype"])  # the first number: 8 for f8e4m3fn
    width = 8 if bits is None else int(bits[0])  # pred takes a byte
    sizes = [int(size) for size in array["sizes"].split(",") if size]
    return -(-width * math.prod(sizes) // 8)


def _computations(text: str) -> tuple[dict[str, list[_Line]], str]:
    """Name -> instructions of each computation, and the name of the entry."""
    found: dict[str, list[_Line]] = {}
    entry = name = ""
    for text_line in text.splitlines():
        if (head := _COMPUTATION.match(text_line)) is not None:
            name = head["name"]
            found[name] = []
            entry = name if head["entry"] else entry
        elif name and (match := _INSTRUCTION.match(text_line)) is not None:
            found[name].append(_Line(match["shape"], match["opcode"], text_line))
    return found, entry


def _called(text: str) -> Iterator[str]:
    """Names of the computations that an instruction calls."""
    yield from _CALLED.findall(text)
    for branches in _BRANCHES.findall(text):
        yield from (branch.strip().lstrip("%") for branch in branches.split(","))


def _trip_count(line: _Line, computations: dict[str, list[_Line]]) -> int:
    """The number of iterations of a loop.

    If XLA does not give it, this is the largest constant in the loop's condition, or 1.
    """
    if (known := _TRIPS.search(line.text)) is not None:
        return int(known[1])
    bounds = [1]
    waiting = _CONDITION.findall(line.text)
    while waiting:
        for inner in computations.get(waiting.pop(), ()):
            bounds += map(int, _CONSTANT.findall(inner.text))
            waiting += _called(inner.text)
    return max(bounds)
