"""What a person sees of a run: the bar, lines where there is no terminal, TensorBoard's events, a followed log."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from training import live, loop
from training.live import Bar, Events, Follower
from training.loop import Entry

ENTRIES: list[Entry] = [
    {"t": 1, "loss": 2.5, "rate": 0.1, "step_s": 0.5, "data_s": 0.1},
    {"t": 50, "loss": 1.25, "rate": 0.1, "step_s": 0.5, "data_s": 0.1},
    {"t": 50, "validation": {"score": 0.875, "pairs": 4.0}},
]


def shown(entries: list[Entry], *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with Bar("run", first=0, steps=100, items=8, unit="pairs", console=console) as bar:
        for entry in entries:
            bar.show(entry)
    return out.getvalue()


def test_the_bar_says_loss_speed_and_how_far() -> None:
    said = shown(ENTRIES, terminal=True)
    for part in ("run", "50/100", "loss 1.2500", "pairs/s", "score 0.875"):
        assert part in said
    # how many pairs were validated is no score
    assert "pairs 4" not in said


def test_where_there_is_no_terminal_a_line_comes_now_and_then() -> None:
    lines = shown(ENTRIES, terminal=False).splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:3] == ["50", "of", "100"] and "loss 1.2500" in lines[0]
    assert "score 0.875" in lines[1]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / live.EVENTS)).Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


# the reader of TensorBoard's own files, which only this test uses
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_events_hold_what_the_log_says_and_a_resumed_run_overwrites(tmp_path: Path) -> None:
    events = Events(tmp_path, first=0)
    for entry in [*ENTRIES, {"t": 51, "loss": 9.0}]:
        events.write(entry)
    events.close()
    again = Events(tmp_path, first=51)
    again.write({"t": 51, "loss": 1.0})
    again.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 2.5), (50, 1.25), (51, 1.0)]
    assert found["validation/score"] == [(50, 0.875)]
    assert "train/t" not in found and "train/step_s" in found


def write(folder: Path, lines: list[str]) -> None:
    (folder / loop.LOG).write_text("".join(lines))


def test_a_follower_tells_every_entry_once_whatever_is_half_written(tmp_path: Path) -> None:
    whole = [json.dumps(entry) + "\n" for entry in ENTRIES]
    write(tmp_path, whole[:1])
    heard: list[Entry] = []
    follower = Follower(tmp_path, heard.append)
    follower.look()
    # a resumed run's first entries are known
    assert heard == []
    write(tmp_path, [*whole[:2], whole[2][:9]])
    follower.look()
    assert heard == ENTRIES[1:2]
    write(tmp_path, whole)
    follower.look()
    follower.look()
    assert heard == ENTRIES[1:]
    # back to a checkpoint: what is kept was told, what is made again is told again
    write(tmp_path, whole[:1])
    follower.look()
    write(tmp_path, whole[:2])
    follower.look()
    assert heard == [*ENTRIES[1:], ENTRIES[1]]


def test_a_log_that_was_cut_and_grew_again_between_two_looks_is_read_from_a_whole_line_on(tmp_path: Path) -> None:
    heard: list[Entry] = []
    follower = Follower(tmp_path, heard.append)
    short = [json.dumps({"t": t}) + "\n" for t in range(9)]
    write(tmp_path, short[:3])
    follower.look()
    for extra in range(1, 8):
        # longer lines: the place behind three short ones lies inside one of them
        write(tmp_path, [json.dumps({"t": t, "loss": "x" * extra}) + "\n" for t in range(9)])
        follower.look()
        write(tmp_path, short[:3])
        follower.look()
    assert all(entry["t"] in range(9) for entry in heard)
    assert {entry["t"] for entry in heard} >= {3, 8}


def test_a_follower_looks_once_more_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FOLLOW_S", 60.0)
    heard: list[Entry] = []
    with Follower(tmp_path, heard.append):
        write(tmp_path, [json.dumps(entry) + "\n" for entry in ENTRIES])
    assert heard == ENTRIES
