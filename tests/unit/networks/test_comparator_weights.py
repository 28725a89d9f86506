"""The comparator and the flow that ship are the files that their cards describe, and fit their networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.errors import Corrupt, NotFound
from stemma.networks import raft, weights
from stemma.networks.comparator import StarterComparator
from stemma.networks.weights import ComparatorCard, FlowCard

SHIPPED_BYTES_MAX = 40 * 1024 * 1024


def a_comparator_card(**changes: Any) -> ComparatorCard:
    known: dict[str, Any] = {"name": "test", "size": "starter", "digest": "0" * 64}
    known |= {"temperature": 1.5, "margin": 0.1, "distinct_min": 0.5, "heatmap_min": 0.4}
    return ComparatorCard(**{**known, **changes})


def a_flow_card(**changes: Any) -> FlowCard:
    return FlowCard(**{"name": "test", "size": "small", "digest": "0" * 64, **changes})


def test_the_shipped_comparator_is_its_cards_and_fits_the_network() -> None:
    card, tensors = weights.read_comparator()
    assert card == weights.comparator_card()
    rows = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    StarterComparator().load_state_dict(rows, strict=True)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert card.what and card.data and card.limits and card.licences and "training" in card.command


def test_the_shipped_flow_is_its_cards_and_finds_a_shift() -> None:
    card, tensors = weights.read_flow()
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert any("BSD-3-Clause" in line for line in card.licences) and card.size == "small"
    noise_1CHW = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    picture_1CHW = torch.nn.functional.interpolate(noise_1CHW, size=(136, 136), mode="bicubic").clamp(0, 1) * 2 - 1
    first, second = picture_1CHW[..., :128, 4:132], picture_1CHW[..., :128, :128]
    with torch.inference_mode():
        flow_B2HW = raft.load_shipped(updates=4)(first, second)
    middle = flow_B2HW[0, :, 32:96, 32:96].flatten(1).median(1).values
    # what stands at x in the first stands at x + 4 in the second
    assert middle[0] == pytest.approx(4.0, abs=0.5) and middle[1] == pytest.approx(0.0, abs=0.5)


def test_everything_shipped_stays_small() -> None:
    assert sum(path.stat().st_size for path in weights.SHIPPED.rglob("*") if path.is_file()) <= SHIPPED_BYTES_MAX


def test_the_notice_names_what_the_cards_name() -> None:
    notice = (Path(weights.SHIPPED).parent.parent / "NOTICE").read_text(encoding="utf-8")
    for name in ("Apache License 2.0", "BSD 3-Clause", "princeton-vl", "CC BY-SA 4.0", "CC BY 2.0"):
        assert name in notice, name


def blank(part: weights.Part[Any], **changes: Any) -> weights.AnyCard:
    """The shipped card of a part with other things in it."""
    return dataclasses.replace(part.card(), **changes)


@pytest.mark.parametrize("part", weights.PARTS, ids=lambda part: part.name)
def test_written_and_read_again_and_refused_when_changed(tmp_path: Path, part: weights.Part[Any]) -> None:
    assert not part.there(tmp_path) and part.there()
    with pytest.raises(NotFound, match="json"):
        part.read(tmp_path)
    weights.write_card(tmp_path, blank(part))
    with pytest.raises(NotFound, match=part.file):
        part.read(tmp_path)
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3).T, "n": np.array(3, np.int64)}
    entry = blank(part, digest=part.write(tmp_path, tensors), licences=("x",), figures={"n": 3})
    weights.write_card(tmp_path, entry)
    card, again = part.read(tmp_path)
    assert (
        card == entry and part.there(tmp_path) and all(np.array_equal(again[name], tensors[name]) for name in tensors)
    )
    assert again["b"].dtype == np.float32 and again["n"].dtype == np.int64
    body = bytearray((tmp_path / part.file).read_bytes())
    body[-1] ^= 1
    (tmp_path / part.file).write_bytes(body)
    with pytest.raises(Corrupt, match="card says"):
        part.read(tmp_path)
    (tmp_path / part.file).write_bytes(b"not safetensors")
    weights.write_card(tmp_path, blank(part, digest=weights.digest_of(b"not safetensors")))
    with pytest.raises(Corrupt, match="no safetensors"):
        part.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"margin": 1.5},
        {"distinct_min": -0.1},
        {"heatmap_min": 2},
        {"side_px": 150},
        {"surprise": 1},
        {"margin": None},
    ],
)
def test_a_comparators_card_that_cannot_be_meant_is_corrupt(tmp_path: Path, change: dict[str, object]) -> None:
    body = {**dataclasses.asdict(a_comparator_card()), **change}
    (tmp_path / weights.COMPARATOR_CARD_FILE).write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(Corrupt, match=str(next(iter(change)))):
        weights.comparator_card(tmp_path)


def test_a_flow_of_no_known_size_is_corrupt(tmp_path: Path) -> None:
    digest = weights.write_flow(tmp_path, {"a": np.zeros(1, np.float32)})
    weights.write_card(tmp_path, a_flow_card(digest=digest, size="medium"))
    with pytest.raises(Corrupt, match="medium"):
        raft.load_shipped(tmp_path)
    weights.write_card(tmp_path, a_flow_card(digest=digest))
    with pytest.raises(Corrupt, match="RAFT small"):
        raft.load_shipped(tmp_path)


def test_narrow_keeps_counters_and_halves_floats() -> None:
    out = weights.narrow({"w": np.ones(3, np.float32), "n": np.array(7, np.int64)})
    assert out["w"].dtype == np.float16 and out["n"].dtype == np.int64


@pytest.mark.parametrize("part", weights.PARTS, ids=lambda part: part.name)
def test_a_shipped_card_is_written_as_it_lies_there(tmp_path: Path, part: weights.Part[Any]) -> None:
    weights.write_card(tmp_path, part.card())
    assert (tmp_path / part.card_file).read_bytes() == (weights.resolve(None) / part.card_file).read_bytes()


def test_objects_are_known_by_all_that_makes_them() -> None:
    objects, detector = weights.objects_card(), weights.detector_card()
    changed = [{"digest": "1" * 64}, {"encoder": "2" * 64}, {"scale": objects.scale + 1}]
    known = [weights.objects_digest(dataclasses.replace(objects, **one), detector) for one in changed]  # type: ignore[arg-type]
    known += [weights.objects_digest(objects, dataclasses.replace(detector, digest="3" * 64))]
    assert len({*known, weights.objects_digest(objects, detector)}) == 5
    # what was fitted since, or said, changes no stored object
    assert weights.objects_digest(dataclasses.replace(objects, donor_min=0.9, what=""), detector) not in known
