"""What may be stored: ids, metadata, columns; and that a row comes back as it went in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.catalog.catalog import Catalog
from stemma.catalog.schema import (
    COLUMNS_MAX,
    FIXED_FIELDS,
    ColumnType,
    Draft,
    catalog_schema,
    column_name,
    columns_of,
    infer_columns,
    join_metadata,
    split_metadata,
    validate_image_id,
    validate_metadata,
)
from stemma.errors import BadRequest

texts = st.text(max_size=8).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=5,
)
metadata = st.dictionaries(st.sampled_from(["n", "Publisher", "my key", "é", "row", "a_b"]), json_values, max_size=6)


@pytest.mark.parametrize(
    "image_id", ["../../x", "%2e%2e/", "🙂", "a b", "C:\\x", "x" * 512, "é" * 256, "'; --", "\u3000"]
)
def test_an_image_id_is_only_ever_a_string(image_id: str) -> None:
    assert validate_image_id(image_id) == image_id


@pytest.mark.parametrize(
    "image_id",
    ["", "x" * 513, "é" * 257, "a\0", "a\nb", "\x7f", "\x85", "a\u202eb", "\u200f", "\u2066", "\u2028", "\ud800"],
)
def test_an_image_id_is_refused(image_id: str) -> None:
    with pytest.raises(BadRequest):
        validate_image_id(image_id)


def _nested(depth: int) -> Any:
    out: Any = 1
    for _ in range(depth):
        out = [out]
    return out


@pytest.mark.parametrize(
    "good",
    [{}, {"a": _nested(7)}, {"k" * 128: 1}, {str(n): n for n in range(64)}, {"a": "x" * (16 * 1024 - 8)}, {"a": 2**80}],
)
def test_metadata_at_its_limits_is_kept(good: dict[str, Any]) -> None:
    assert validate_metadata(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        [], None, "x", {"a": _nested(8)}, {"a": _nested(5_000)}, {"k" * 129: 1}, {"": 1}, {1: 2}, {"a": {1: 2}},
        {str(n): n for n in range(65)}, {"a": "x" * (16 * 1024 - 7)}, {"a": float("nan")}, {"a": [float("inf")]},
        {"a": b"bytes"}, {"a": {1, 2}}, {"a": "\ud800"}, {"\ud800": 1},
    ],
)  # fmt: skip
def test_metadata_beyond_them_is_refused(bad: Any) -> None:
    with pytest.raises(BadRequest):
        validate_metadata(bad)


@given(keys=st.sets(st.text(min_size=1, max_size=6).filter(lambda t: t.encode("utf-8", "ignore").decode() == t)))
def test_metadata_columns_keep_their_keys_and_never_meet_ours(keys: set[str]) -> None:
    kinds: list[ColumnType] = ["text", "integer", "float", "boolean"]
    columns = {key: kinds[at % 4] for at, key in enumerate(sorted(keys))}
    schema = catalog_schema(columns)
    assert columns_of(schema) == columns
    assert len({name.lower() for name in schema.names}) == len(FIXED_FIELDS) + len(keys)
    assert all(column_name(key).isidentifier() for key in keys)


@given(many=st.lists(metadata, max_size=5))
def test_metadata_is_split_and_joined_without_loss(many: list[dict[str, Any]]) -> None:
    columns = infer_columns(many)
    for one in many:
        try:
            typed, extra = split_metadata(one, columns)
        except BadRequest:
            continue
        back = join_metadata(typed, extra)
        assert back == one
        assert json.dumps(back, sort_keys=True) == json.dumps(_as_floats(one, columns), sort_keys=True)


def _as_floats(one: dict[str, Any], columns: dict[str, ColumnType]) -> dict[str, Any]:
    floats = {key for key, value in one.items() if columns.get(key) == "float" and value is not None}
    return {key: float(value) + 0.0 if key in floats else value for key, value in one.items()}


def test_columns_are_inferred_from_the_first_scalars() -> None:
    many = [
        {"n": 1, "t": None, "big": 2**63, "list": [1]},
        {"n": 2.5, "t": "x", "b": True, "big": 1, "list": {"a": 1}},
        {"t": 1, "b": 2},
    ]
    assert infer_columns(many) == {"n": "float", "t": "text", "b": "boolean", "big": "integer"}
    assert len(infer_columns([{f"k{n}": n} for n in range(2 * COLUMNS_MAX)])) == COLUMNS_MAX


def test_another_type_rejects_that_item_alone(catalog: Catalog, draft: Callable[..., Draft]) -> None:
    catalog.commit([draft(0)])
    assert catalog.columns == {}
    catalog.commit([draft(1, metadata={"year": 1990, "score": 1}), draft(2, metadata={"score": 0.5, "tags": ["x"]})])
    assert catalog.columns == {"year": "integer", "score": "float"}
    result = catalog.commit(
        [
            draft(3, metadata={"year": "1990"}),
            draft(4, metadata={"year": 1991, "score": 2, "new": "x"}),
            draft(5, metadata={"year": True}),
            draft(6, metadata={"year": 2**63}),
            draft(7, metadata={"year": None}),
        ]
    )
    assert [item.status for item in result.items] == ["rejected", "stored", "rejected", "rejected", "stored"]
    assert {item.error.code for item in result.items if item.error} == {"bad_request"}
    assert catalog.columns == {"year": "integer", "score": "float"}
    assert catalog.record(draft(4).sha256).metadata == {"year": 1991, "score": 2.0, "new": "x"}
    assert catalog.record(draft(7).sha256).metadata == {"year": None}
    assert catalog.matching("m_year = 1991").sum() == 1


def test_declared_columns_are_all_there_will_be(url: str, draft: Callable[..., Draft]) -> None:
    with Catalog.create(url, columns={"year": "integer"}) as catalog:
        catalog.commit([draft(1, metadata={"other": 1, "year": 2})])
        assert catalog.columns == {"year": "integer"}
        assert catalog.record(draft(1).sha256).metadata == {"other": 1, "year": 2}


def test_a_row_comes_back_as_it_went_in(catalog: Catalog, draft: Callable[..., Draft]) -> None:
    one = draft("x", "mine", pixels=b"\xff\xd8" + bytes(5000), width=3, height=2**31 - 1)
    catalog.commit([one, draft("y")])
    values = catalog.read(
        catalog.rows_of(["mine"]),
        ["row", "seq", "image_id", "sha256", "width", "height", "weights", "job", "source", "pixels"],
    )
    assert {name: value[0] for name, value in values.items()} == {
        "row": 0, "seq": 1, "image_id": "mine", "sha256": one.sha256, "width": 3, "height": 2**31 - 1, "weights": "w1",
        "job": "job", "source": one.source, "pixels": one.pixels,
    }  # fmt: skip
    assert catalog.pixels("mine") == one.pixels


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixels": b""},
        {"embedding_D": np.zeros(255, np.int8)},
        {"embedding_D": np.zeros(256, np.float32)},
        {"cells_NF": np.zeros((32, 196), np.int8)},
        {"sha256": "ABC"},
    ],
)
def test_a_draft_of_the_wrong_shape_is_refused(draft: Callable[..., Draft], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"int8|sha256|bytes"):
        draft("x", **wrong)
