"""Training configs: what ships parses, what is wrong is named, and what a run may begin from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stemma.errors import BadRequest, Corrupt, NotFound
from stemma.networks import weights as weights_files
from training import recipe
from training.workers import Alone

CONFIGS = Path(__file__).parents[3] / "configs" / "training"
TINY = """
network: comparator
comparator: {steps: 4, batch: 2, pairs: {side_px: 32, aligned: 0.0}}
loop: {checkpoint_every: 2, validate_every: 4}
render_processes: 0
validation_renders: 1
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


def test_the_configs_that_ship_parse_and_say_how_they_are_run() -> None:
    paths = sorted(CONFIGS.rglob("*.yaml"))
    assert {path.relative_to(CONFIGS).as_posix() for path in paths} == {
        f"{size}/{network}.yaml" for size in ("starter", "paper") for network in recipe.NETWORKS
    }
    for path in paths:
        config = recipe.read(path)
        settings = getattr(config, config.network)
        assert settings.size == path.parent.name and config.network == path.stem
        head = path.read_text().splitlines()[:3]
        assert "# command" in head[1] and path.relative_to(CONFIGS.parents[1]).as_posix() in head[1]
        assert head[2].startswith("# hardware")


def test_the_papers_configs_are_to_the_letter() -> None:
    icn = recipe.read(CONFIGS / "paper" / "comparator.yaml").comparator
    assert (icn.batch, icn.rate, icn.class_weight, icn.grid_weight, icn.pairs.side_px) == (8, 1e-4, 0.5, 0.5, 224)
    assert icn.pairs.both == icn.pairs.distinct == icn.pairs.benign and icn.pairs.manip == 0 and not icn.pairs.laid
    f = recipe.read(CONFIGS / "paper" / "encoder.yaml").encoder
    assert (f.batch, f.rate, f.decay_at, f.form, f.projected) == (16, 1e-3, (0.6, 0.9), "printed", 128)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["comparator.stepz=3"], "comparator.stepz"),
        (["comparator.pairs.side_px=33"], "comparator.pairs.side_px"),
        (["network=classifier"], "network"),
        (["comparator.steps=many"], "comparator.steps"),
        (["comparator.steps.of=3"], "comparator.steps.of"),
        (["steps"], "steps"),
    ],
)
def test_a_bad_config_is_refused_naming_the_key(tiny: Path, overrides: list[str], named: str) -> None:
    with pytest.raises(BadRequest) as refused:
        recipe.read(tiny, overrides)
    assert refused.value.subject == named


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for body in (None, "- a list", "a: [torn"):
        path = tmp_path / "config.yaml"
        if body is not None:
            path.write_text(body, encoding="utf-8")
        with pytest.raises(BadRequest):
            recipe.read(path)


def test_overrides_win_and_the_description_is_plain(tiny: Path) -> None:
    config = recipe.read(tiny, ["comparator.steps=9", "loop.log_every=3"])
    assert config.comparator.steps == 9 and config.loop.log_every == 3
    assert recipe.TrainingConfig.model_validate(json.loads(json.dumps(recipe.describe(config)))) == config


def test_a_run_keeps_nothing_of_the_networks_it_does_not_train(tiny: Path) -> None:
    plain = recipe.describe(recipe.read(tiny, ["encoder.rate=0.5"]))
    assert not plain.keys() & ({*recipe.NETWORKS} - {"comparator"}) and plain["comparator"]["steps"] == 4


def test_validation_is_the_same_in_every_run(tiny: Path, miniature: Path) -> None:
    config = recipe.read(tiny)
    first, again = (recipe.validation_pairs(config, miniature) for _ in range(2))
    assert [pair.kind for pair in first] == ["benign", "manip", "both", "distinct"] * 2
    assert [pair.query_HWC.tobytes() for pair in first] == [pair.query_HWC.tobytes() for pair in again]


def test_the_encoder_runs_from_the_shipped_weights(miniature: Path, tmp_path: Path) -> None:
    path = tmp_path / "encoder.yaml"
    path.write_text("network: encoder\nencoder: {batch: 2, steps: 1, clean: true, queue: 4, projected: 256}\n")
    parts = recipe.parts(recipe.read(path), miniature, Alone())
    said = parts.step.step(next(parts.batches(0)), 0)
    assert said["loss"] < 1.0 and parts.steps == 1
    found = parts.validate()
    assert found["first_benign"] >= 0.5
    torch.save({"step": parts.step.state_dict(), "config": {"network": "encoder"}}, tmp_path / "c.pt")
    assert parts.begin(str(tmp_path / "c.pt")) > 100
    parts.close()


def test_without_the_development_data_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--data"):
        recipe.public_lite0(tmp_path)


def test_the_config_of_a_network_is_found() -> None:
    for network in ("encoder", "comparator"):
        assert recipe.read(recipe.default_path(network)).network == network
        assert recipe.default_path(network, "paper") == CONFIGS / "paper" / f"{network}.yaml"


def test_a_run_may_begin_from_what_ships_or_a_file_of_it(tiny: Path, tmp_path: Path) -> None:
    config = recipe.read(tiny)
    shipped = recipe.starting("shipped", config)
    assert "classify.weight" in shipped and all(tensor.is_floating_point() for tensor in shipped.values())
    file = weights_files.SHIPPED / "starter" / "comparator.safetensors"
    again = recipe.starting(str(file), config)
    assert shipped.keys() == again.keys() and all(torch.equal(shipped[name], again[name]) for name in shipped)
    with pytest.raises(NotFound):
        recipe.starting(str(tmp_path / "none.safetensors"), config)
    with pytest.raises(NotFound):
        recipe.starting(str(tmp_path / "none.pt"), config)
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(Corrupt):
        recipe.starting(str(tmp_path / "torn.safetensors"), config)
    torch.save({"step": {"network": {}}, "config": {"network": "encoder"}}, tmp_path / "c.pt")
    with pytest.raises(BadRequest, match="checkpoint of the encoder"):
        recipe.starting(str(tmp_path / "c.pt"), config)


def test_a_step_is_fed_pairs_or_views(tiny: Path) -> None:
    assert recipe.items(recipe.read(tiny)) == (2, "pairs")
    paper = recipe.read(CONFIGS / "paper" / "encoder.yaml")
    # DIC 4.2: 64 views
    assert recipe.items(paper) == (64, "images") and recipe.steps(paper) == 7940
