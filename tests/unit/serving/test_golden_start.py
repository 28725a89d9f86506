"""A replica whose networks do not give their golden answers never takes a query."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serving.comparator import ComparatorReplica
from serving.encoder import EncoderReplica
from stemma.config import ComparatorSettings, EncoderSettings
from stemma.errors import Corrupt
from stemma.networks import golden, weights


@pytest.fixture
def changed(tmp_path: Path) -> str:
    """The shipped weights beside golden answers that nobody gives."""
    for path in weights.resolve(None).iterdir():
        if path.is_file() and path.name != golden.FILE:
            os.symlink(path, tmp_path / path.name)
    body = json.loads((weights.resolve(None) / golden.FILE).read_text(encoding="utf-8"))
    body["descriptors"][1]["embedding"][0] += 5
    body["comparisons"][3]["logits"][2] += 1.0
    (tmp_path / golden.FILE).write_text(json.dumps(body), encoding="utf-8")
    return str(tmp_path)


def test_the_encoder_is_asked_before_it_serves(changed: str) -> None:
    with pytest.raises(Corrupt, match="golden picture 1"):
        EncoderReplica(EncoderSettings(weights=changed))


def test_the_comparator_is_asked_before_it_serves(changed: str) -> None:
    with pytest.raises(Corrupt, match="golden comparison 3"):
        ComparatorReplica(ComparatorSettings(weights=changed, flow=False))
