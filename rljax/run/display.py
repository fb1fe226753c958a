"""The display of a running experiment: a live board in a terminal, else lines."""

import collections
import dataclasses
import math
import time
from collections.abc import Mapping

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rljax.run.shown import SHOWN


@dataclasses.dataclass
class Board:
    """The numbers that are displayed; the run loop sets them.

    title: name of the run.
    last: training steps of the whole run.
    step: training steps done.
    phase: name of the phase.
    seconds: of training so far.
    left: seconds to the end of the run; None: unknown.
    tokens_per_second: of the last dispatch; None: unknown.
    metrics: of the last step, by name.
    evaluation: values of the last evaluation, by name.
    events: number of occurrences, by name.
    doing: what the run is waiting for, such as an evaluation; "": nothing.
    """

    title: str
    last: int
    step: int = 0
    phase: str = ""
    seconds: float = 0.0
    left: float | None = None
    tokens_per_second: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    evaluation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    events: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    doing: str = ""


class Display:
    """Shows a board until closed; the run loop only sets the board's numbers.

    In a terminal the board is drawn twice a second. Elsewhere, `update` prints a line
    if the last one is at least `interval` seconds old.

    Args:
      board: to show.
      console: to print on; None: standard output.
      interval: seconds between lines.
    """

    def __init__(
        self, board: Board, console: Console | None = None, interval: float = 30.0
    ):
        self.board = board
        self._console = Console() if console is None else console
        self._interval = interval
        self._printed = -math.inf
        self._live = None
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                refresh_per_second=2,
                get_renderable=lambda: render(board),
            )
            self._live.start()

    def update(self) -> None:
        """Call when the board has changed."""
        now = time.monotonic()
        if self._live is None and now - self._printed >= self._interval:
            self._printed = now
            self.say(line(self.board))

    def say(self, text: str, style: str | None = None) -> None:
        """Prints text above the board."""
        self._console.print(Text(text, style=style or ""), soft_wrap=True)

    def working(self, text: str) -> None:
        """Announces slow work by a line; in a terminal the board shows it."""
        if self._live is None:
            self.say(f"{text} ...")

    def show_cursor(self) -> None:
        """Shows the cursor again, for a process that may exit without `close`."""
        self._console.show_cursor()

    def close(self) -> None:
        """Stops drawing; outside a terminal, prints a last line."""
        if self._live is not None:
            self._live.stop()
        else:
            self.say(line(self.board))


def values(board: Board) -> list[tuple[str, str]]:
    """(label, text) of each number that is known."""
    found = []
    for name, text in estimates(board.evaluation).items():
        last = name.rsplit("/", 1)[-1]
        if last.startswith("pass@"):
            found.append((last, text))
    for entry in SHOWN:
        for name, value in board.metrics.items():
            if entry.on_board and entry.matches(name):
                found.append((entry.label, f"{value:.4g}"))
    failed = board.metrics.get("verify/failed", 0.0)
    if failed > 0:
        share = board.metrics.get("verify/failed_share", math.nan)
        of_all = "" if math.isnan(share) else f" ({100 * share:.3g} %)"
        found.append(("verifier failed", f"{failed:.4g}{of_all}"))
    if board.tokens_per_second is not None:
        found.append(("tokens/s", f"{board.tokens_per_second:,.0f}"))
    return found


def estimates(evaluation: Mapping[str, float]) -> dict[str, str]:
    """Name -> text of an evaluation's values, with the standard error `NAME_error`."""

    def text(name, value):
        error = evaluation.get(f"{name}_error", math.nan)
        return f"{value:.4g}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"

    errors = {f"{name}_error" for name in evaluation}
    return {n: text(n, value) for n, value in evaluation.items() if n not in errors}


def line(board: Board) -> str:
    """The board as one line of text."""
    parts = [f"[{board.phase}] step {board.step}/{board.last}", duration(board.seconds)]
    if board.left is not None and board.step < board.last:
        parts.append(f"left {duration(board.left)}")
    parts += [f"{label} {text}" for label, text in values(board)]
    parts += [f"{name} x{count}" for name, count in board.events.items()]
    return "  ".join(parts)


def render(board: Board) -> Panel:
    """The board as a panel for a terminal."""
    left = "?" if board.left is None else duration(board.left)
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(ratio=1)
    head.add_column(justify="right")
    head.add_row(
        ProgressBar(total=max(board.last, 1), completed=board.step),
        f"{board.step}/{board.last}  {duration(board.seconds)}, left {left}",
    )
    numbers = values(board)
    half = (len(numbers) + 1) // 2
    grid = Table(box=box.SIMPLE, show_header=False, expand=True, padding=(0, 1))
    for _ in range(2):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
    for i in range(half):
        second = numbers[half + i] if half + i < len(numbers) else ("", "")
        grid.add_row(*numbers[i], *second)
    parts: list[RenderableType] = [head, grid]
    if board.events:
        counts = ", ".join(f"{name} x{count}" for name, count in board.events.items())
        parts.append(Text(counts, style="yellow"))
    if board.doing:
        parts.append(Text(board.doing, style="bold"))
    title = Text(f"{board.title}: {board.phase}")  # rich reads a str as markup
    return Panel(Group(*parts), title=title, box=box.ROUNDED)


def duration(seconds: float) -> str:
    """Seconds as text: 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
