"""Replies of hosts survive the way between processes, whatever is in them."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stemma.flow import Hit, HostReply, ObjectHit

distance = st.floats(0, 4, allow_nan=False)
plain = {
    "row": st.integers(0, 2**63),
    "image_id": st.text(max_size=8),
    "distance": distance,
    "refined_distance": distance,
    "coded": st.booleans(),
    "match": st.none() | distance,
    "mirrored": st.booleans(),
    "affine": st.none() | st.tuples(*[st.floats(-2, 2)] * 6),
}
hits = st.builds(Hit, **plain)
object_hits = st.builds(
    ObjectHit,
    **plain,
    query_object=st.integers(0, 8),
    donor_object=st.integers(0, 8),
    donor_box=st.tuples(*[st.floats(0, 1, width=32)] * 4),
)


@given(
    st.lists(hits, max_size=6) | st.lists(object_hits, max_size=6),
    st.none() | st.lists(st.integers(0, 2**40), max_size=5),
)
def test_a_reply_comes_out_as_it_went_in(found: list[Hit], live: list[int] | None) -> None:
    counts = None if live is None else np.array(live, dtype=np.int64)
    reply = HostReply(
        hits=tuple(found), images_searched=3, images_total=9, seq=4, live_by_rank=counts, nprobe=2, codec="opq"
    )
    back = pickle.loads(pickle.dumps(reply))
    assert back.hits == reply.hits
    for each in fields(HostReply):
        np.testing.assert_array_equal(getattr(back, each.name), getattr(reply, each.name))
