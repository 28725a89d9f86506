"""Style is a test: sizes, names, exports, documentation and the laws that no linter knows."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import stemma
from stemma import errors
from stemma.cli import COMMANDS
from stemma.config import Settings, known_keys

ROOT = Path(__file__).parent.parent
ROOMS = ("stemma", "cluster", "actors", "training", "serving", "evaluation", "benchmarks")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
TOP_LEVEL = {
    *ROOMS,
    *("tests", "configs", "docs", "README.md", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "NOTICE"),
}


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def suites() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_and_functions_keep_their_caps() -> None:
    long_files = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    }
    long_functions = {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in sources()
        for name, lines in functions(path)
        if lines > FUNCTION_LINES_MAX
    }
    assert (long_files, long_functions) == ({}, {})


def test_tests_weigh_at_least_as_much_as_what_they_test() -> None:
    def weigh(paths: list[Path]) -> int:
        return sum(path.stat().st_size for path in paths)

    assert weigh(suites()) >= 0.7 * weigh(sources())


def test_no_room_for_odds_and_ends() -> None:
    named = {path.name for path in [*sources(), *suites()]}
    assert not named & {"utils.py", "common.py", "helpers.py", "util.py", "misc.py"}
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not any(path.is_dir() and path.name in ("ray", "datasets") for path in ROOT.glob("*/*"))


def test_the_first_sight_of_the_house_is_calm() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    top = {name.split("/")[0] for name in listed if name and not name.startswith(".")}
    assert top <= TOP_LEVEL


def test_the_readme_shows_the_real_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^([a-z_]+)/ ", readme, flags=re.MULTILINE))
    assert shown == {name for name in TOP_LEVEL if (ROOT / name).is_dir()}


def test_exported_names_exist() -> None:
    for name in stemma.__all__:
        assert getattr(stemma, name) is not None


def test_every_command_has_its_function_and_its_place_in_the_docs() -> None:
    documented = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    for name, (target, _) in COMMANDS.items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), target
        assert f"stemma {name}" in documented, f"`stemma {name}` is nowhere in the docs"


def test_every_setting_says_what_it_is_and_stands_in_the_docs() -> None:
    documented = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    for key, description in known_keys().items():
        assert description, f"{key} has no description"
        assert f"`{key}`" in documented, f"{key} is not in docs/settings.md"
    assert set(Settings.model_fields) == {key.split(".")[0] for key in known_keys()}


def test_every_dependency_has_its_line() -> None:
    documented = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8").lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for requirement in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        name = re.split(r"[\[<>=!~ ]", requirement)[0].lower()
        assert f"`{name}`" in documented, f"{name} has no line in docs/dependencies.md"


def all_errors(kind: type[errors.StemmaError] = errors.StemmaError) -> Iterator[type[errors.StemmaError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from all_errors(child)


@pytest.mark.parametrize("kind", list(all_errors()), ids=lambda kind: kind.__name__)
def test_every_error_pickles_and_becomes_a_problem(kind: type[errors.StemmaError]) -> None:
    error = kind("what happened and the way out", subject="q.jpg", retry_after_s=2.5)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.detail, again.subject, again.retry_after_s) == (kind, error.detail, "q.jpg", 2.5)
    problem = error.problem()
    assert problem["status"] == kind.status
    assert problem["code"] == kind.code
    assert f"{kind.__name__} " in (inspect.getdoc(errors) or "") or kind is errors.StemmaError, "draw it in the tree"


def test_all_errors_live_in_the_tree() -> None:
    for room in ROOMS:
        for module in pkgutil.walk_packages([str(ROOT / room)], prefix=f"{room}."):
            importlib.import_module(module.name)
    assert {kind.__module__ for kind in all_errors()} == {"stemma.errors"}


def attribute_uses(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            yield f"{owner}.{node.attr}", node.lineno


def remote_breaches(paths: list[Path]) -> list[str]:
    """Places that call an actor or a handle outside the two files that may (docs/architecture.md, Rooms)."""
    breaches = []
    for path in paths:
        where = "/".join(path.parts[-2:])
        for use, line in attribute_uses(path):
            waits = use in ("ray.get", "ray.wait", "ray.kill") and where != "actors/handles.py"
            calls = (
                use.endswith(".remote")
                and use != "ray.remote"
                and where not in ("actors/handles.py", "serving/engine.py")
            )
            if waits or calls:
                breaches.append(f"{where}:{line} {use}")
    return breaches


def test_calls_to_actors_live_in_one_file_and_calls_to_handles_in_one_other() -> None:
    assert remote_breaches(sources()) == []


def test_a_planted_remote_call_is_seen(tmp_path: Path) -> None:
    planted = tmp_path / "cluster" / "planted.py"
    planted.parent.mkdir()
    planted.write_text("import ray\nray.get(actor.search.remote(1))\n")
    assert len(remote_breaches([planted])) == 2


def test_importing_a_room_has_no_effect_on_the_process() -> None:
    script = (
        "import logging, os, sys, threading;"
        "state = lambda: (dict(os.environ), threading.active_count(), len(logging.root.handlers)); before = state();"
        "import stemma, stemma.cli, stemma.config, stemma.api, stemma.errors;"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules; assert before == state()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
