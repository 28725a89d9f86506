"""A miniature of the development data, in its real layout: the least that a training run starts from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stemma.networks.backbones import Lite0, lite0_keys
from training import split

PHOTOGRAPHS = 8


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/train (8 names of the split), photos/val (2), weights/efficientnet_lite0.safetensors (random)."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("miniature")
    names = {"train": split.load().train[:PHOTOGRAPHS], "val": ("a.jpg", "b.jpg")}
    for part, listed in names.items():
        (folder / "photos" / part).mkdir(parents=True)
        for seed, name in enumerate(listed):
            small = np.random.default_rng([seed, len(listed)]).integers(0, 256, (12, 16, 3)).astype(np.uint8)
            picture = cv2.resize(small, (96, 72), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / "photos" / part / name), picture)
    (folder / "weights").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = Lite0().state_dict()
    tensors = {theirs: state[ours].half() for ours, theirs in lite0_keys()}
    save_file(tensors, folder / "weights" / "efficientnet_lite0.safetensors")
    return folder
