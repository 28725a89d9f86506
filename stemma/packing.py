"""Values of the contract as msgpack: arrays travel as ``{dtype, shape, data}``, everything else as in JSON."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from pydantic import BaseModel

from stemma.api import Heatmap

MEDIA_TYPE = "application/msgpack"
_DTYPES: dict[str, np.dtype[Any]] = {
    "<f4": np.dtype("<f4"),
    "<f8": np.dtype("<f8"),
    "|u1": np.dtype("u1"),
    "|i1": np.dtype("i1"),
}


def pack(value: BaseModel | Any) -> bytes:
    """``value`` as msgpack; the values of a heatmap become one float32 array of ``[rows, cols]``."""
    packed: bytes = msgpack.packb(_plain(value))
    return packed


def unpack(body: bytes) -> Any:
    """What ``pack`` wrote, its arrays as numpy arrays. Raises ``ValueError`` for anything else."""
    try:
        return msgpack.unpackb(body, object_hook=_array)
    except (ValueError, KeyError, TypeError) as error:  # msgpack raises ValueError or a child of it
        raise ValueError(f"not msgpack of this contract: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Heatmap):
        values = np.asarray(value.values, dtype="<f4").reshape(value.rows, value.cols)
        return {"rows": value.rows, "cols": value.cols, "values": _plain(values)}
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, np.ndarray):
        assert value.dtype.str in _DTYPES, f"{value.dtype} does not travel"
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _array(value: dict[str, Any]) -> Any:
    if value.keys() != {"dtype", "shape", "data"}:
        return value
    dtype = _DTYPES[value["dtype"]]
    return np.frombuffer(value["data"], dtype=dtype).reshape(value["shape"])
