"""The import law is kept by import-linter; here each breach is planted once and must be seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("stemma", "cluster", "actors", "training", "serving", "evaluation", "benchmarks")

BREACHES = {
    "a room below imports one above": ("stemma/index/planted.py", "import stemma.query"),
    "stemma imports serving": ("stemma/planted_in_errors.py", "import serving"),
    "cluster knows the time": ("cluster/planted.py", "import time"),
    "cluster knows chance": ("cluster/planted.py", "import random"),
    "cluster knows asyncio": ("cluster/planted.py", "import asyncio"),
    "cluster knows Ray": ("cluster/planted.py", "import ray"),
    "cluster knows the networks": ("cluster/planted.py", "import stemma.networks.weights"),
    "training knows serving": ("training/planted.py", "import serving"),
    "serving knows training": ("serving/planted.py", "import training"),
    "the embedded way knows Ray": ("stemma/index/planted.py", "import ray"),
    "evaluation knows Ray": ("evaluation/planted.py", "import ray"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, without weights."""
    copy = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copytree(ROOT / "stemma/networks", copy / "stemma/networks", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(house)}
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False)


def test_the_house_as_it_is_keeps_the_law(house: Path) -> None:
    result = lint(house)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", BREACHES)
def test_a_planted_breach_is_seen(house: Path, name: str) -> None:
    where, line = BREACHES[name]
    planted = house / where
    planted.write_text(line + "\n")
    try:
        assert lint(house).returncode != 0
    finally:
        planted.unlink()
