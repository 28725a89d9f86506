"""Makes ``encoder.json``: descriptors of two pictures drawn by whole-number arithmetic.

    python tests/golden/make_encoder.py

Run it when the shipped weights change on purpose (a new fit of the projections), and say so in the commit; a difference
with the same weights is a change of preprocessing or network, and stored collections would no longer match.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from stemma.config import EncoderSettings
from stemma.networks.encoder import Encoder

HERE = Path(__file__).parent
TESTS = HERE.parent / "unit" / "networks" / "test_encoder.py"


def main() -> None:
    out = HERE / "encoder.json"
    if not out.exists():
        out.write_text('{"weights": "", "pictures": []}', encoding="utf-8")
    spec = importlib.util.spec_from_file_location("test_encoder", TESTS)
    assert spec is not None and spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    encoder = Encoder.load(EncoderSettings())
    pictures = []
    for phase in range(2):
        made = encoder.encode(tests.formula_picture(phase), mirrored=False)
        assert made.cells_VNF is not None
        cells = made.cells_VNF[0, ::28].ravel().tolist()
        pictures.append({"embedding": made.embedding_VD[0].tolist(), "cells": cells})
    out.write_text(json.dumps({"weights": encoder.weights, "pictures": pictures}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
