"""The fits that are not training: projections of the starter's encoder, its codec, its match threshold.

    python -m training.fit pca --data DIR        encoder.safetensors and a card, from Lite0 and 501 photographs
    python -m training.fit codec --data DIR      codec/opq, from 20 rendered views of each of the 501
    python -m training.fit threshold --data DIR  the card's threshold and calibration, from the other 200

In this order; each later one starts from what the earlier ones wrote into ``--out`` (default: the shipped folder).
Everything is seeded and runs on one CPU thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stemma.networks import weights as weights_files
from stemma.networks.backbones import lite0_keys
from stemma.networks.encoder import INT8_MAX, STARTER, EncoderNetwork
from training import split as split_files
from training import views

SOURCE_FILE = "efficientnet_lite0.safetensors"
CLIPPED_SHARE = 1e-5
"""Share of components that int8 may clip: a scale for the very largest would leave the others fewer levels."""


def principal(x_NC: NDArray[np.float64], dims: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean [C], components [dims, C]) of the rows; the sign of each direction is fixed by its largest entry."""
    mean_C = x_NC.mean(0)
    _, _, rows = np.linalg.svd(x_NC - mean_C, full_matrices=False)
    components_DC = rows[:dims]
    largest = np.abs(components_DC).argmax(1)
    return mean_C, components_DC * np.sign(components_DC[np.arange(dims), largest])[:, None]


def int8_scale(unit: NDArray[np.floating]) -> float:
    """The global scale under which ``CLIPPED_SHARE`` of all components reach 127."""
    return float(round(INT8_MAX / float(np.quantile(np.abs(unit), 1 - CLIPPED_SHARE)), 1))


def public_tensors(data: Path) -> weights_files.Tensors:
    """The public checkpoint's trunk under our names, as stored (float16; BatchNorm statistics float32)."""
    from safetensors.numpy import load_file

    theirs = load_file(data / "weights" / SOURCE_FILE)
    return {f"trunk.{ours}": theirs[key] for ours, key in lite0_keys()}


def fit_pca(data: Path, out: Path) -> weights_files.Card:
    """Fit both projections on the 501 clean photographs and write the network file and a first card."""
    tensors = public_tensors(data)
    network = EncoderNetwork(STARTER).eval()
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=False)
    both = [views.pooled(network, picture) for picture in views.photographs(data, split_files.load().train)]
    clean = {"embedding": np.stack([one for one, _ in both]), "cells": np.concatenate([cells for _, cells in both])}
    scales = {}
    for name, features in clean.items():
        rows = features.astype(np.float64)
        projection = getattr(network, name)
        mean_C, components_DC = principal(rows, projection.components_DC.shape[0])
        tensors[f"{name}.mean_C"] = mean_C.astype(np.float32)
        tensors[f"{name}.components_DC"] = components_DC.astype(np.float32)
        projected = (rows - mean_C) @ components_DC.T
        scales[name] = int8_scale(projected / np.linalg.norm(projected, axis=1, keepdims=True))
    digest = weights_files.write_tensors(out, tensors, embedding_scale=scales["embedding"], cells_scale=scales["cells"])
    return weights_files.Card(
        name=out.name,
        size=STARTER.name,
        digest=digest,
        embedding_scale=scales["embedding"],
        cells_scale=scales["cells"],
        match_threshold=12.0,
        calibration=((0.0, 0.0), (12.0, 0.5), (30.0, 0.99)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fit the starter's projections, codec and threshold.")
    parser.add_argument("what", choices=("pca",))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=weights_files.resolve(None))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    card = fit_pca(args.data, args.out)
    weights_files.write_card(args.out, card)
    print(card)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
