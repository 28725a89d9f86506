"""What is packed is unpacked the same; what is not of this contract is refused."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stemma.api import Comparison, Heatmap
from stemma.packing import pack, unpack

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_plain_values_come_back(value: object) -> None:
    assert unpack(pack(value)) == value


@given(
    st.sampled_from(["<f4", "<f8", "|u1", "|i1"]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=4))
    )
)
def test_arrays_travel_as_dtype_shape_and_data(array: np.ndarray) -> None:
    raw = msgpack.unpackb(pack({"a": array}))["a"]
    assert raw.keys() == {"dtype", "shape", "data"}
    back = unpack(pack({"a": array}))["a"]
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_a_heatmap_is_one_array_of_its_rows_and_columns() -> None:
    heatmap = Heatmap(rows=2, cols=3, values=(0.0, 0.25, 0.5, 0.75, 1.0, 0.125))
    value = unpack(pack(Comparison(verdict="benign", heatmap=heatmap)))["heatmap"]
    assert value["values"].shape == (2, 3)
    assert tuple(value["values"].ravel().tolist()) == heatmap.values


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81\xa1a",
        msgpack.packb({"dtype": "object", "shape": [1], "data": b"x"}),
        msgpack.packb({"dtype": "<f4", "shape": [9], "data": b"xxxx"}),
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="not msgpack of this contract"):
        unpack(body)
