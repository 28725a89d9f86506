"""PSBat-Ret and PSBat-Pair (DIC 4.1): query sets made of PS-Battles' test pairs.

Retrieval: every pair gives its variant as it is (``manip``), and ten benign versions each of its original (``benign``)
and of its variant (``both``); the database holds the originals and any distractors. Comparison: every pair gives one
query of each of four kinds, the fourth (``distinct``) a benign version of another group's picture; only the query is
transformed. A query is a pure function of the seed, its kind, its pair and its number, so sets need no files (a
stranger hangs on the list of groups, too).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stemma.vision import benign
from stemma.vision.geometry import Picture
from training.ps_battles import Entry, Pair, PsBattles

Kind = Literal["benign", "manip", "both", "distinct"]
RETRIEVAL: tuple[Kind, ...] = ("benign", "manip", "both")
COMPARISON: tuple[Kind, ...] = ("benign", "manip", "both", "distinct")
VERSIONS = 10
"""Benign versions of each pair in retrieval: 29.6k queries of 2,960 pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query, not yet rendered."""

    kind: Kind
    pair: Pair
    number: int
    source: Entry
    """What it is made of."""

    @property
    def expected(self) -> str | None:
        """Id of the original that retrieval must find; None for a stranger."""
        return None if self.kind == "distinct" else self.pair.original.id


def retrieval(pairs: Sequence[Pair]) -> list[Query]:
    """PSBat-Ret's three sets, one after another."""
    return [
        Query(kind=kind, pair=pair, number=number, source=_source(kind, pair))
        for kind in RETRIEVAL
        for pair in pairs
        for number in range(1 if kind == "manip" else VERSIONS)
    ]


def comparison(pairs: Sequence[Pair], *, seed: int) -> list[Query]:
    """PSBat-Pair's four sets of equal size, one after another. Raises ``ValueError`` where there is but one group."""
    originals = list({pair.original.sha256: pair.original for pair in pairs}.values())
    if len(originals) == 1:
        raise ValueError("a distinct picture comes from another group, and there is one group")
    place = {original.sha256: i for i, original in enumerate(originals)}
    queries = []
    for kind in COMPARISON:
        for pair in pairs:
            source = _source(kind, pair)
            if kind == "distinct":
                step = 1 + int(_rng(seed, "stranger", pair, 0).integers(len(originals) - 1))
                source = originals[(place[pair.original.sha256] + step) % len(originals)]
            queries.append(Query(kind=kind, pair=pair, number=0, source=source))
    return queries


def render(query: Query, data: PsBattles, *, seed: int) -> Picture | None:
    """The query's picture, uint8 RGB; None where its source cannot be read (it is named in ``data.skipped``)."""
    source_HWC = data.read(query.source)
    if source_HWC is None or query.kind == "manip":
        return source_HWC
    return benign.render(source_HWC, _rng(seed, query.kind, query.pair, query.number)).rgb_HWC


def _source(kind: Kind, pair: Pair) -> Entry:
    return pair.original if kind == "benign" else pair.variant


def _rng(seed: int, kind: str, pair: Pair, number: int) -> np.random.Generator:
    """Never that of a training sample, whose seeds are lists of small numbers."""
    name = f"psbat {seed} {kind} {pair.original.id} {pair.variant.id} {number}"
    return np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
