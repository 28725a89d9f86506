"""The rules of identity as a table, and compaction's choice of fragments: decisions without a disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.catalog.compaction import grouped, horizon_of
from stemma.catalog.journal import Entry
from stemma.catalog.planning import Known, plan
from stemma.catalog.schema import ColumnType, Draft
from stemma.config import LimitSettings

MakeDraft = Callable[..., Draft]
LIMITS = LimitSettings()


@pytest.fixture
def decide(draft: MakeDraft) -> Callable[..., list[tuple[str | None, str]]]:
    """``decide(drafts, live={id: body}, replace=False)``: (image_id, status or error code) of each draft."""

    def run(
        drafts: Sequence[Draft], live: Mapping[str, str] | None = None, replace: bool = False
    ) -> list[tuple[str | None, str]]:
        shas = {image_id: draft(body).sha256 for image_id, body in (live or {}).items()}
        by_sha: dict[str, list[str]] = {}
        for image_id, sha in shas.items():
            by_sha.setdefault(sha, []).append(image_id)
        columns: dict[str, ColumnType] = {"year": "integer"}
        done = plan(
            drafts, Known(shas, by_sha), replace=replace, columns=columns, infer=False, next_row=40, limits=LIMITS
        )
        assert [one.row for one in done.stored] == list(range(40, 40 + len(done.stored)))
        assert [one.name for one in done.items] == [one.name for one in drafts]
        return [(item.image_id, item.error.code if item.error else item.status) for item in done.items]

    return run


Decide = Callable[..., list[tuple[str | None, str]]]


@pytest.mark.parametrize(
    ("image_id", "body", "replace", "expected"),
    [
        ("a", "A", False, ("a", "duplicate")),
        ("a", "A", True, ("a", "duplicate")),
        ("a", "new", False, ("a", "conflict")),
        ("a", "new", True, ("a", "replaced")),
        ("a", "B", False, ("a", "conflict")),  # its id is taken, whoever else has the bytes
        ("a", "B", True, ("a", "replaced")),
        ("c", "A", False, ("a", "duplicate")),
        ("c", "A", True, ("a", "duplicate")),
        ("c", "new", False, ("c", "stored")),
        ("bad\n", "new", False, (None, "bad_request")),
    ],
)
def test_one_draft_against_what_is_there(
    decide: Decide,
    draft: MakeDraft,
    image_id: str,
    body: str,
    replace: bool,
    expected: tuple[str | None, str],
) -> None:
    assert decide([draft(body, image_id)], {"a": "A", "b": "B"}, replace) == [expected]


def test_without_an_id_it_is_the_digest(decide: Decide, draft: MakeDraft) -> None:
    one = draft("x")
    assert decide([one, one]) == [(one.sha256, "stored"), (one.sha256, "duplicate")]
    assert decide([one], {"mine": "x"}) == [("mine", "duplicate")]
    assert decide([draft("y", one.sha256), one]) == [(one.sha256, "stored"), (one.sha256, "conflict")]


def test_the_rules_hold_inside_one_batch(decide: Decide, draft: MakeDraft) -> None:
    batch = [draft("x", "p"), draft("x", "q"), draft("y", "p"), draft("y", "r"), draft("x", "p")]
    assert decide(batch) == [
        ("p", "stored"),
        ("p", "duplicate"),
        ("p", "conflict"),
        ("r", "stored"),
        ("p", "duplicate"),
    ]
    assert decide(batch, replace=True) == [
        ("p", "stored"),
        ("p", "duplicate"),
        ("p", "replaced"),
        ("p", "duplicate"),  # "y" is p's by now
        ("p", "replaced"),
    ]


def test_a_rejected_draft_leaves_no_trace(decide: Decide, draft: MakeDraft) -> None:
    """Not even as the first of a duplicate: what comes after it in the batch is stored."""
    assert decide([draft("x", "p", metadata={"year": "old"}), draft("x", "q", metadata={"year": 1})]) == [
        (None, "bad_request"),
        ("q", "stored"),
    ]
    assert decide([draft("new", "a"), draft("new", "c")], {"a": "A"}) == [("a", "conflict"), ("c", "stored")]


def test_columns_are_inferred_from_what_is_stored_alone(draft: MakeDraft) -> None:
    drafts = [
        draft("known", "k", metadata={"from_duplicate": 1}),
        draft("bad", "b\n", metadata={"from_refused": 1}),
        draft("new", "n", metadata={"year": 1}),
    ]
    known = Known({"k": drafts[0].sha256}, {drafts[0].sha256: ["k"]})
    done = plan(drafts, known, replace=False, columns={}, infer=True, next_row=0, limits=LIMITS)
    assert done.new_columns == {"year": "integer"}
    none = plan(drafts[:2], known, replace=False, columns={}, infer=True, next_row=0, limits=LIMITS)
    assert (none.stored, none.new_columns) == ((), {})


@given(
    sizes=st.lists(st.integers(1, 40), max_size=20),
    dead=st.sets(st.integers(0, 400)),
    fragment_rows=st.sampled_from([1, 8, 32, 1000]),
)
def test_groups_cover_every_row_once_and_keep_what_is_settled(
    sizes: list[int], dead: set[int], fragment_rows: int
) -> None:
    fragments = [SimpleNamespace(physical_rows=size) for size in sizes]
    dropped_R = np.array([row in dead for row in range(sum(sizes))], bool)
    groups = grouped(fragments, dropped_R, fragment_rows)
    assert [fragment for group in groups for fragment in group.fragments] == fragments
    assert [group.first for group in groups[1:]] == [group.end for group in groups[:-1]]
    for group in groups:
        assert group.end - group.first == sum(fragment.physical_rows for fragment in group.fragments)
        has_dropped = bool(dropped_R[group.first : group.end].any())
        assert group.rewrite == (has_dropped or len(group.fragments) > 1)
        for fragment in group.fragments if group.rewrite and not has_dropped else []:
            assert 2 * fragment.physical_rows < fragment_rows
        assert group.end - group.first <= fragment_rows + max(sizes)
    # Where nothing dies, doing it again after the merge changes nothing more than the small rest.
    merged = [SimpleNamespace(physical_rows=group.end - group.first) for group in groups]
    again = grouped(merged, np.zeros_like(dropped_R), fragment_rows)
    assert len(again) <= len(groups)


def test_the_horizon_is_the_last_commit_old_enough() -> None:
    def entry(seq: int, at_s: float, history: tuple[tuple[int, float], ...] = ()) -> Entry:
        return Entry(seq=seq, at_s=at_s, catalog=1, tombstones=1, next_row=0, weights=None, files=(), history=history)

    entries = [entry(5, 50.0, ((2, 20.0), (4, 40.0))), entry(6, 60.0), entry(7, 70.0)]
    assert [horizon_of(entries, at_s) for at_s in (10, 20, 39, 45, 50, 69, 99)] == [0, 2, 2, 4, 5, 6, 7]
