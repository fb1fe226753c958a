"""The one list of what is shown."""

from rljax.run import display
from rljax.run.shown import PANELS, SHOWN, Shown


def test_every_entry_is_in_exactly_one_picture_of_the_report():
    # Two panels of one title would draw it twice.
    titles = [panel.title for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for entry in SHOWN:
        panels = [panel for panel in PANELS if entry.pattern in panel.patterns]
        assert [panel.title for panel in panels] == [entry.panel]


def test_a_star_is_the_name_of_a_term_and_an_error_is_no_curve():
    names = ["policy/alpha", "alpha", "heldout/pass@1", "heldout/pass@1_error"]
    selected = {panel.title: panel.select(names) for panel in PANELS}
    assert selected["Held-out accuracy"] == ["heldout/pass@1"]
    assert selected["Controlled alpha and delta"] == ["policy/alpha"]
    assert Shown("a", "name", "", unit="nats").heading == "name, nats"


def test_the_board_shows_the_entries_that_say_so():
    # One value each for a metric of every entry.
    metrics = {entry.pattern.replace("*", "x"): 1.0 for entry in SHOWN}
    board = display.Board("run", last=1, metrics=metrics)
    shown = [label for label, _ in display.values(board)]
    want = [entry.label for entry in SHOWN if entry.on_board]
    # Failures of the verifier are shown where there are any.
    assert shown == [*want, "verifier failed"]
