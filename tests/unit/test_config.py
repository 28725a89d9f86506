"""Settings: what wins over what, and how a wrong one is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from stemma.config import Settings, known_keys, load
from stemma.errors import BadRequest


def test_the_later_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("search: {k: 3, nprobe: 7, shortlist: 50}\n")
    monkeypatch.setenv("STEMMA_SEARCH__NPROBE", "8")
    monkeypatch.setenv("STEMMA_SEARCH__SHORTLIST", "60")
    search = load(file, ["search.shortlist=70"]).search
    assert (search.k, search.nprobe, search.shortlist) == (3, 8, 70)


@pytest.mark.parametrize(
    ("override", "subject", "hint"),
    [
        ("search.nprob=3", "search.nprob", "search.nprobe"),
        ("serch.k=3", "serch.k", "search.k"),
        ("search.k=zero", "search.k", "integer"),
        ("search.k=0", "search.k", "greater"),
        ("search.k", "search.k", "section.key=value"),
    ],
)
def test_a_wrong_override_is_named_with_the_way_out(override: str, subject: str, hint: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        load(overrides=[override])
    assert refusal.value.subject == subject
    assert hint in refusal.value.detail


@pytest.mark.parametrize("text", ["search: {kk: 3}", "serch: {k: 3}", "[1, 2]", "search: {k: [}", "search: 3"])
def test_a_wrong_file_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(BadRequest):
        load(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_settings_travel_to_actors() -> None:
    settings = load(overrides=["cluster.copies=2"])
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_load(path: Path) -> None:
    assert isinstance(load(path), Settings)


def test_every_key_is_a_section_and_a_name_with_its_unit_last() -> None:
    assert all(key.count(".") == 1 for key in known_keys())
    bounds = [key for key in known_keys() if "max" in key]
    assert bounds
