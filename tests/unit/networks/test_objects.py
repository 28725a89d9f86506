"""Objects: crops stay in the picture, an embedding does not depend on its company, and a pasted thing is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.config import ObjectSettings
from stemma.errors import Conflict, Corrupt, NotFound
from stemma.flow import OBJECT_DIM
from stemma.networks import objects, weights
from stemma.networks.objects import ObjectEncoder

Picture = NDArray[np.uint8]
Scene = Callable[..., Picture]
BOXES = np.array([[40, 30, 200, 180], [220, 60, 400, 300], [5, 200, 90, 310]], np.float32)


@pytest.fixture(scope="module")
def finder() -> ObjectEncoder:
    return ObjectEncoder.load(ObjectSettings())


def test_the_whole_picture_comes_last(finder: ObjectEncoder, scene: Scene) -> None:
    found = finder.embed(scene(1), BOXES, np.array([0.9, 0.5, 0.2], np.float32))
    assert found.embedding_OD.shape == (4, OBJECT_DIM) and found.embedding_OD.dtype == np.int8
    assert found.box_O4[-1].tolist() == [0, 0, 1, 1] and found.score_O.tolist() == pytest.approx([0.9, 0.5, 0.2, 1.0])
    assert np.allclose(found.box_O4[:3] * [448, 320, 448, 320], BOXES, atol=1e-3)
    length_O = np.linalg.norm(found.embedding_OD.astype(float), axis=1) / finder.card.scale
    assert np.allclose(length_O, 1, atol=0.03)


def test_an_object_does_not_depend_on_its_company(finder: ObjectEncoder, scene: Scene) -> None:
    picture = scene(2)
    together = finder.embed(picture, BOXES).embedding_OD
    for number, box in enumerate(BOXES):
        assert np.array_equal(finder.embed(picture, box[None]).embedding_OD[0], together[number])
    assert len(finder.embed(picture, np.zeros((0, 4), np.float32)).embedding_OD) == 1


def test_what_lies_around_an_object_has_no_part_in_it(finder: ObjectEncoder, scene: Scene) -> None:
    """A pasted object lies in another scene; for local matching the crop still takes in some of it."""
    picture, other = scene(2), scene(7)
    for box in BOXES:
        x0, y0, x1, y1 = (int(edge) for edge in box)
        moved = other.copy()
        moved[y0:y1, x0:x1] = picture[y0:y1, x0:x1]
        both = [finder.embed(each, box[None]).embedding_OD[0] for each in (picture, moved)]
        assert np.array_equal(*both)
        assert not np.array_equal(finder.cells(picture, box), finder.cells(moved, box))


def test_the_second_view_is_nearly_the_mirrored_pictures(finder: ObjectEncoder, scene: Scene) -> None:
    picture = scene(3)
    upright, both_VOD = finder.embed_views(picture, BOXES)
    turned_HWC = np.ascontiguousarray(picture[:, ::-1])
    turned = finder.embed(turned_HWC, objects.mirrored_boxes(BOXES, 448)).embedding_OD.astype(float)
    assert np.array_equal(both_VOD[0], upright.embedding_OD)
    near_OO = turned @ both_VOD[1].astype(float).T
    assert near_OO.argmax(1).tolist() == [0, 1, 2, 3]
    assert (np.diag(near_OO) > (turned * both_VOD[0]).sum(1)).all()
    assert np.array_equal(objects.mirrored_boxes(objects.mirrored_boxes(BOXES, 448), 448), BOXES)


def test_turning_features_twice_changes_nothing() -> None:
    rows = np.random.default_rng(0).normal(size=(3, objects.STARTER_FEATURES)).astype(np.float32)
    assert np.array_equal(objects.turned_features(objects.turned_features(rows)), rows)
    assert np.array_equal(objects.turned_features(rows)[:, :1280], rows[:, :1280])


def test_a_symmetric_thing_has_equal_views() -> None:
    """What looks the same from both sides keeps its layout."""
    half = torch.rand(1, 112, 8, 4)
    found = objects.starter_features(torch.rand(1, 1280, 4, 4), torch.cat([half, half.flip(3)], 3)).numpy()
    assert np.allclose(objects.turned_features(found), found, atol=1e-6)


def test_a_pasted_object_is_nearest_its_own(finder: ObjectEncoder, scene: Scene) -> None:
    """In the miniature: of six things, each pasted into another scene at another size, all are found first."""
    things = [scene(seed)[60:220, 100:300] for seed in range(10, 16)]
    box = np.array([[100, 60, 300, 220]], np.float32)
    home = np.stack([finder.embed(scene(seed), box).embedding_OD[0] for seed in range(10, 16)]).astype(float)
    for number, thing in enumerate(things):
        host = scene(30 + number)
        host[100:228, 200:360] = cv2.resize(thing, (160, 128), interpolation=cv2.INTER_AREA)
        away = finder.embed(host, np.array([[198, 103, 357, 230]], np.float32)).embedding_OD[0].astype(float)
        assert int((home @ away).argmax()) == number


def test_cells_of_the_whole_are_nearly_the_encoders(finder: ObjectEncoder, scene: Scene) -> None:
    picture = scene(4)
    cells = finder.cells(picture, (0, 0, 448, 320))
    assert cells.shape == (196, 32) and cells.dtype == np.int8 and np.abs(cells).max() > 30


EDGES = st.floats(-500, 1500, allow_nan=False)


@given(st.tuples(EDGES, EDGES, EDGES, EDGES), st.integers(32, 600), st.integers(32, 600))
def test_a_crop_lies_in_its_picture(edges: tuple[float, ...], width: int, height: int) -> None:
    x0, x1 = sorted(edges[:2])
    y0, y1 = sorted(edges[2:])
    left, top, right, bottom = objects.crop_box((x0, y0, x1, y1), (width, height))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert right - left >= objects.BOX_SIDE_PX_MIN and bottom - top >= objects.BOX_SIDE_PX_MIN


def test_a_crop_takes_in_its_margin() -> None:
    assert objects.crop_box((100, 100, 200, 150), (448, 320)) == (90, 95, 210, 155)
    assert objects.crop_box((0, 0, 448, 320), (448, 320)) == (0, 0, 448, 320)


def test_roi_features_are_the_maxima_of_crops() -> None:
    """On a map that is flat within cells of the bins' size, ROIAlign's maximum is the crop's."""
    map_1CHW = torch.zeros(1, 3, 20, 20)
    map_1CHW[0, 0, 4:11, 4:11] = 2.0
    map_1CHW[0, 1] = torch.linspace(0, 1, 20)[:, None].expand(20, 20)
    map_1CHW[0, 2, 15:, 15:] = 5.0
    box = torch.tensor([[4 * 16.0, 4 * 16.0, 11 * 16.0, 11 * 16.0], [240.0, 240.0, 320.0, 320.0]])
    found = objects.roi_features(map_1CHW, box, 16)
    assert found.shape == (2, 3)
    assert found[0].tolist() == pytest.approx([2.0, 10 / 19, 0.0], abs=0.02)
    assert found[1].tolist() == pytest.approx([0.0, 1.0, 5.0], abs=0.02)


def test_both_parts_of_the_features_weigh_the_same() -> None:
    top, cells = torch.rand(2, 1280, 4, 4), torch.randn(2, 112, 8, 8)
    found = objects.starter_features(top, cells)
    assert found.shape == (2, objects.STARTER_FEATURES)
    assert torch.allclose(found[:, :1280].norm(dim=1), torch.ones(2))
    assert torch.allclose(found[:, 1280:].norm(dim=1), torch.full((2,), objects.LAYOUT_WEIGHT))


def folder_with(tmp_path: Path, **changed: object) -> Path:
    card, tensors = weights.read_objects()
    digest = weights.write_objects(tmp_path, weights.narrow(tensors))
    fields = {name: getattr(card, name) for name in ("name", "size", "encoder", "scale", "donor", "donor_min")}
    weights.write_card(tmp_path, weights.ObjectsCard(**{**fields, "digest": digest, **changed}))  # type: ignore[arg-type]
    return tmp_path


def test_objects_of_another_trunk_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="belong to encoder abc"):
        ObjectEncoder.load(ObjectSettings(weights=str(folder_with(tmp_path, encoder="abc"))))
    with pytest.raises(NotFound):
        ObjectEncoder.load(ObjectSettings(weights=str(tmp_path / "nowhere")))


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    again = weights.objects_card(folder)
    assert again.donor == weights.objects_card().donor and again.donor_min == weights.objects_card().donor_min
    body = bytearray((folder / weights.OBJECTS_FILE).read_bytes())
    body[-7] ^= 1
    (folder / weights.OBJECTS_FILE).write_bytes(bytes(body))
    with pytest.raises(Corrupt, match="its card says"):
        ObjectEncoder.load(ObjectSettings(weights=str(folder)))
