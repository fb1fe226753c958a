"""Chips, their peak rates, the slices they come in, and prices.

Rates are the vendors' peaks per chip. Those of TPUs come from Google's pages
docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e (read 2026-11: 197, 459 and 918
TFLOP/s in bfloat16; 819, 2765 and 1638 GB/s; links of 400, 1200 and 800 GB/s, both
directions of all ports together). Those of the H100 SXM (989 TFLOP/s, 3.35 TB/s,
NVLink at 900 GB/s) come from secondary sources, which agree; its data sheet was not
read.

Prices of v5p and v6e come from SkyPilot's catalog, which Google's billing API fills
(skypilot-org/skypilot-catalog, catalogs/v8/gcp/vms.csv: us-east5, on demand, $4.20 and
$2.70; spot prices were 40 and 45 % of these). The price of v5e is from memory. Prices
change.
"""

import math
import re
from typing import NamedTuple

PRICES = "on demand, United States, list price of 2025: check it"


class Chip(NamedTuple):
    """A kind of chip.

    tflops: peak rate of bfloat16 products, 1e12 FLOP/s.
    hbm_gib: memory that a program may use, GiB; for a TPU, as libtpu allows.
    hbm_gb_per_s: bandwidth of the memory, 1e9 bytes/s.
    link_gb_per_s: rate at which a chip receives data from its two neighbours along one
      axis of the torus, 1e9 bytes/s; for a GPU, from the other GPUs of its machine.
    dollars: per chip and hour; None: there is no single list price.
    accelerator: name in Google's API, before the size; "" for a GPU.
    cores: cores per chip, as the size in that API counts them.
    runtime: software version of a TPU VM.
    gke: label of the nodes in GKE, and template of their machine types.
    zone: a zone that has such chips.
    """

    tflops: float
    hbm_gib: float
    hbm_gb_per_s: float
    link_gb_per_s: float
    dollars: float | None
    accelerator: str = ""
    cores: int = 1
    runtime: str = ""
    gke: tuple[str, str] = ("", "")
    zone: str = ""


# Links: one axis of the torus has half of the total bandwidth (v5p: a third), and half
# of that is inward: 400 / 2 / 2, 1200 / 3 / 2 and 800 / 2 / 2 GB/s.
CHIPS = {
    "v5e": Chip(
        *(197.0, 15.75, 819.0, 100.0, 1.20),
        accelerator="v5litepod",
        runtime="v2-alpha-tpuv5-lite",
        gke=("tpu-v5-lite-podslice", "ct5lp-hightpu-{}t"),
        zone="us-west4-a",
    ),
    "v5p": Chip(
        *(459.0, 95.0, 2765.0, 200.0, 4.20),
        accelerator="v5p",
        cores=2,
        runtime="v2-alpha-tpuv5",
        gke=("tpu-v5p-slice", "ct5p-hightpu-{}t"),
        zone="us-east5-a",
    ),
    "v6e": Chip(
        *(918.0, 31.25, 1638.0, 200.0, 2.70),
        accelerator="v6e",
        runtime="v2-alpha-tpuv6e",
        gke=("tpu-v6e-slice", "ct6e-standard-{}t"),
        zone="us-east5-b",
    ),
    "h100": Chip(989.0, 79.0, 3350.0, 450.0, None),
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SHAPES = {
    "v5e": _FLAT,
    "v6e": _FLAT,
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "h100": ("1", "2", "4", "8"),
}


class Slice(NamedTuple):
    """A slice: chips that are connected.

    kind: a key of `CHIPS`.
    shape: chips along each axis, such as 2x4.
    """

    kind: str
    shape: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.shape}"

    @property
    def chip(self) -> Chip:
        """The kind of its chips."""
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        """Whether the chips are TPUs."""
        return bool(self.chip.accelerator)

    @property
    def num_chips(self) -> int:
        """Number of chips."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def chips_per_host(self) -> int:
        """Chips per host: all of a slice of up to 8 chips (v5p: 4), else 4."""
        if self.kind == "v5p":
            return 4
        return self.num_chips if self.num_chips <= 8 else 4

    @property
    def num_hosts(self) -> int:
        """Number of hosts, each of which runs a process."""
        return self.num_chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """The name in Google's API, such as v5litepod-8 or v5p-32."""
        return f"{self.chip.accelerator}-{self.num_chips * self.chip.cores}"

    @property
    def dollars_per_hour(self) -> float | None:
        """List price of all chips, or None; see `PRICES`."""
        price = self.chip.dollars
        return None if price is None else price * self.num_chips


def known() -> list[str]:
    """The names of all known slices, by kind, small ones first."""
    return [str(Slice(kind, s)) for kind, shapes in SHAPES.items() for s in shapes]


def parse(topology: str) -> Slice:
    """The slice that a text such as v5e:2x4 or h100:8 names.

    Raises:
      ValueError: if the slice is not known.
    """
    if topology not in known():
        family = re.split(r"[:-]", topology)[0]
        near = [t for t in known() if t.startswith(f"{family}:")]
        raise ValueError(
            f"--topology must be one of {', '.join(near or known())}, got"
            f" {topology!r}; take one of these."
        )
    return Slice(*topology.split(":"))
