"""The bare loop: a resumed run is the run that never stopped, and no run is continued or overwritten by accident."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stemma.errors import Conflict, Corrupt, NotFound
from training import loop
from training.loop import LoopSettings, Run

CONFIG = {"seed": 1, "nested": {"a": 2}}


class Tiny:
    """A step that leans on everything a checkpoint must hold: weights, momentum, and torch's random state."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(4, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1)

    def step(self, batch: Tensor, t: int) -> dict[str, float]:
        noise = torch.rand(batch.shape)
        loss = (self.net(batch + noise) ** 2).mean() * (1 + t)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def batches(first: int) -> Iterator[Tensor]:
    t = first
    while True:
        yield torch.rand(3, 4, generator=torch.Generator().manual_seed(t))
        t += 1


def advance(folder: Path, steps: int, *, resume: bool, every: int = 2, stop_at: int | None = None) -> Tiny:
    run: Run[Tensor] = Run(folder, LoopSettings(checkpoint_every=every, validate_every=3))
    tiny, done = Tiny(), list[loop.Entry]()
    first = run.start(tiny, CONFIG, resume=resume)
    run.go(
        tiny,
        batches(first),
        config=CONFIG,
        first=first,
        steps=steps,
        validate=lambda: {"score": float(-tiny.net.weight.detach().abs().sum())},
        told=lambda entry: done.append(entry) if "loss" in entry else None,
        stop=lambda: stop_at is not None and first + len(done) >= stop_at,
    )
    return tiny


def lines(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key not in loop.CLOCKS} for entry in loop.log(folder)]


@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, stop_at: int) -> None:
    torch.manual_seed(9)
    whole = advance(tmp_path / "whole", 8, resume=False)
    torch.manual_seed(9)
    advance(tmp_path / "parts", 8, resume=False, stop_at=stop_at)
    torch.manual_seed(12345)
    parts = advance(tmp_path / "parts", 8, resume=True)
    assert torch.equal(whole.net.weight, parts.net.weight)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_kill_between_checkpoints_costs_only_what_was_not_saved(tmp_path: Path) -> None:
    torch.manual_seed(9)
    whole = advance(tmp_path / "whole", 8, resume=False)

    class Killed(BaseException):
        pass

    def killed(first: int) -> Iterator[Tensor]:
        for number, batch in enumerate(batches(first)):
            if number == 5:
                raise Killed
            yield batch

    torch.manual_seed(9)
    folder = tmp_path / "killed"
    run: Run[Tensor] = Run(folder, LoopSettings(checkpoint_every=2, validate_every=3))
    tiny = Tiny()
    with pytest.raises(Killed):
        run.go(tiny, killed(run.start(tiny, CONFIG, resume=False)), config=CONFIG, first=0, steps=8)
    (folder / loop.LOG).write_text((folder / loop.LOG).read_text() + '{"t": 6, "lo')
    assert loop.load(folder / loop.LAST)["t"] == 4
    resumed = advance(folder, 8, resume=True)
    assert torch.equal(whole.net.weight, resumed.net.weight)
    assert [entry["t"] for entry in lines(folder) if "loss" in entry] == list(range(1, 9))


def test_the_best_is_what_validated_best(tmp_path: Path) -> None:
    advance(tmp_path / "run", 9, resume=False)
    scores = {entry["t"]: entry["validation"]["score"] for entry in lines(tmp_path / "run") if "validation" in entry}
    assert list(scores) == [3, 6, 9]
    best = loop.load(tmp_path / "run" / loop.BEST)
    assert scores[best["t"]] == max(scores.values()) == best["best"]


def test_a_resumed_run_keeps_its_best(tmp_path: Path) -> None:
    advance(tmp_path / "run", 4, resume=False)
    kept = loop.load(tmp_path / "run" / loop.BEST)["best"]
    run: Run[Tensor] = Run(tmp_path / "run", LoopSettings(checkpoint_every=1, validate_every=1))
    tiny = Tiny()
    first = run.start(tiny, CONFIG, resume=True)
    worse = {"score": kept - 1}
    run.go(tiny, batches(first), config=CONFIG, first=first, steps=6, validate=lambda: worse)
    assert loop.load(tmp_path / "run" / loop.BEST)["best"] == kept


def test_no_run_is_continued_or_overwritten_by_accident(tmp_path: Path) -> None:
    advance(tmp_path / "run", 2, resume=False)
    with pytest.raises(Conflict, match="of this name"):
        advance(tmp_path / "run", 4, resume=False)
    run: Run[Tensor] = Run(tmp_path / "run")
    with pytest.raises(Conflict, match="another seed"):
        run.start(Tiny(), {**CONFIG, "seed": 2}, resume=True)
    # what an older version kept of other networks does not stand in the way
    assert run.start(Tiny(), {"seed": 1}, resume=True) == 2
    with pytest.raises(Conflict, match="another added"):
        run.start(Tiny(), {**CONFIG, "added": 1}, resume=True)
    with pytest.raises(NotFound):
        advance(tmp_path / "none", 4, resume=True)
    (tmp_path / "run" / loop.LAST).write_bytes(b"torn")
    with pytest.raises(Corrupt):
        advance(tmp_path / "run", 4, resume=True)


def test_who_listens_hears_what_the_log_says(tmp_path: Path) -> None:
    heard: list[loop.Entry] = []
    run: Run[Tensor] = Run(tmp_path / "run", LoopSettings(validate_every=2))
    first = run.start(Tiny(), CONFIG, resume=False)
    score = {"score": 0.5}
    run.go(Tiny(), batches(0), config=CONFIG, first=first, steps=3, validate=lambda: score, told=heard.append)
    assert heard == loop.log(tmp_path / "run")
    assert [("validation" in entry, entry["t"]) for entry in heard] == [
        (False, 1),
        (False, 2),
        (True, 2),
        (False, 3),
        (True, 3),
    ]
    assert all(entry[clock] >= 0 for entry in heard if "loss" in entry for clock in loop.CLOCKS)


def test_a_worker_that_does_not_write_leaves_nothing_and_tells_nobody(tmp_path: Path) -> None:
    heard: list[loop.Entry] = []
    run: Run[Tensor] = Run(tmp_path / "run", writes=False)
    (tmp_path / "run").mkdir()
    run.go(Tiny(), batches(0), config=CONFIG, first=run.join(Tiny(), CONFIG), steps=3, told=heard.append)
    assert not heard and not list((tmp_path / "run").iterdir())


def test_a_worker_that_fell_before_the_first_checkpoint_logs_its_steps_once(tmp_path: Path) -> None:
    run: Run[Tensor] = Run(tmp_path / "run", LoopSettings(checkpoint_every=50))
    run.create(CONFIG)
    for steps in (3, 4):
        torch.manual_seed(4)
        tiny = Tiny()
        first = run.join(tiny, CONFIG)
        (tmp_path / "run" / loop.LAST).unlink(missing_ok=True)
        run.go(tiny, batches(first), config=CONFIG, first=first, steps=steps)
        (tmp_path / "run" / loop.LAST).unlink(missing_ok=True)
    assert [entry["t"] for entry in lines(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_that_begins_from_weights_has_them_in_its_first_checkpoint(tmp_path: Path) -> None:
    run: Run[Tensor] = Run(tmp_path / "run")
    tiny = Tiny()
    run.create(CONFIG)
    torch.nn.init.constant_(tiny.net.weight, 0.25)
    run.begin(tiny, CONFIG)
    other = Tiny()
    assert run.join(other, CONFIG) == 0
    assert torch.equal(other.net.weight, tiny.net.weight)


def test_a_checkpoint_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance(tmp_path / "run", 2, resume=False)
    before = (tmp_path / "run" / loop.LAST).read_bytes()

    def torn(state: Any, out: Any) -> None:
        out.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        advance(tmp_path / "run", 4, resume=True)
    assert (tmp_path / "run" / loop.LAST).read_bytes() == before
