"""The board of a run, in a terminal and in a log."""

import collections
import io

from rich.console import Console

from rljax.run import display


def full_board():
    return display.Board(
        "run-7",
        last=200,
        step=50,
        phase="rl",
        seconds=3725.0,
        left=75.0,
        tokens_per_second=12345.6,
        metrics={
            "reward/mean": 0.5,
            "policy/entropy_nats": 1.25,
            "mass/positive": 0.2,
            "mass/negative": 0.3,
            "policy/alpha": 0.7,
            "policy/delta": 1.5,
            "update/refused_in_row": 0.0,
            "policy/other": 9.0,
        },
        evaluation={"heldout/pass@1": 0.625, "heldout/pass@1_error": 0.012},
        events=collections.Counter({"checkpoint/failed": 2}),
    )


def test_the_line_has_the_numbers_in_order():
    assert display.line(full_board()) == (
        "[rl] step 50/200  1:02:05  left 1:15  pass@1 0.625 ± 0.012  reward 0.5"
        "  entropy 1.25  m_S 0.2  m_F 0.3  alpha 0.7  delta 1.5  refused 0"
        "  tokens/s 12,346  checkpoint/failed x2"
    )


def test_an_error_stands_behind_its_estimate():
    # The error of one problem is unknown; one of something unnamed stands for itself.
    values = {"pass@1": 0.42578, "pass@1_error": 0.0121, "pass@8": 0.5}
    values |= {"pass@8_error": float("nan"), "word_error": 0.0312, "seconds": 12.3456}
    assert display.estimates(values) == {
        "pass@1": "0.426 ± 0.012",
        "pass@8": "0.5",
        "word_error": "0.0312",
        "seconds": "12.35",
    }


def test_a_board_without_numbers_is_a_line_too():
    assert display.line(display.Board("run", last=3)) == "[] step 0/3  0:00"


def test_a_terminal_shows_the_same_numbers():
    # A phase or run in brackets would vanish as markup.
    board = full_board()
    board.title, board.doing = "run [7]", "evaluating"
    file = io.StringIO()
    Console(file=file, width=100).print(display.render(board))
    text = file.getvalue()
    for part in ("run [7]: rl", "50/200", "left 1:15", "evaluating"):
        assert part in text
    for label, number in display.values(board):
        assert label in text
        assert number in text


def test_a_log_gets_a_line_now_and_then():
    file = io.StringIO()
    board = display.Board("run", last=9)
    screen = display.Display(board, Console(file=file), interval=1000.0)
    for board.step in range(1, 6):
        screen.update()
    screen.say("[not markup]")
    screen.close()
    assert file.getvalue().splitlines() == [
        "[] step 1/9  0:00",
        "[not markup]",
        "[] step 5/9  0:00",
    ]


def test_a_terminal_is_drawn_live_and_left_in_order():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    screen = display.Display(full_board(), console)
    screen.update()
    screen.say("an event")
    screen.close()
    text = file.getvalue()
    assert "an event" in text
    assert "run-7" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor
