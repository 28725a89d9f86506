"""The comparator's weights that ship as a start for further training are the file that their card describes."""

from __future__ import annotations

import hashlib
import json

from safetensors.torch import load_file

from stemma.networks.comparator import StarterComparator
from stemma.networks.weights import resolve


def test_they_are_what_their_card_says_and_fit_the_network() -> None:
    file = resolve(None) / "comparator.safetensors"
    card = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["digest"]
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    StarterComparator().load_state_dict(tensors, strict=True)
