"""Tables about donors: of fixed queries, composites in small, copy-moves, PS-Battles' variants, and of students."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evaluation.markdown import count_of, table, told, value_of

RANKED = {"donor": "donor", "donor_without_host": "donor, host out", "host": "host", "either": "either"}
"""What composites' ranks are told of, and its name in a table."""


def donor_tables(result: dict[str, Any]) -> list[str]:
    """Those for which there are figures."""
    parts = []
    if "donor" in result:
        parts += [_donors(result), _beside(result)]
    if "by_method" in result:
        parts.append(_localization(result["by_method"]))
    if "splice" in result:
        parts += [_composites(result["splice"]), _counts(result["splice"]["by_objects"])]
    if "pir" in result:
        parts.append(_pir(result["pir"]))
    if "students" in result:
        parts.append(_students(result))
    return parts


def _donors(result: dict[str, Any]) -> str:
    donor = result["donor"]
    rows = [["all splices", told(donor["R@1"]), told(donor["R@10"]), str(donor["n"])]]
    rows += [
        [f"object {each['area']} of the picture", told(each["R@1"]), told(each["R@10"]), str(each["n"])]
        for each in donor["by_area"]
    ]
    return table(["queries", "donor first", "among ten", "n"], rows)


def _beside(result: dict[str, Any]) -> str:
    def rows() -> Iterator[list[str]]:
        for name, each in result["false_donors"]["by_set"].items():
            yield [f"shown a donor, {name}", told(each), count_of(each)]
        for name, each in result["donor_shown"].items():
            yield [f"splices shown a donor, {name}", told(each), count_of(each)]
        yield ["clones shown, of pictures with one", told(result["clones_shown"]), count_of(result["clones_shown"])]
        for name, each in result["regions_ceiling"].items():
            yield [f"object covered by a region, {name}", told(each), count_of(each)]
        for name, each in result.get("donor_search", {}).items():
            took = f"{each['ratio']:.2f} ({each['with_ms']:.0f} ms against {each['without_ms']:.0f})"
            yield [f"search with donors against without, {name}", took, str(each["n"])]

    return table(["donors", "share", "n"], list(rows()))


def _localization(by_method: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{value_of(each[key]):.3f}" for key in ("mcc", "f1")),
            *(f"{each['pooled'][key]:.3f}" for key in ("mcc", "f1")),
            f"{each['threshold']:.3f}",
            str(each["n"]),
        ]
        for name, each in by_method.items()
    ]
    return table(["copy-moves, by", "MCC", "F1", "pooled MCC", "pooled F1", "threshold", "n"], rows)


def _composites(splice: dict[str, Any]) -> str:
    rows = [
        [name, *(told(each[what][f"R@{k}"]) for what in RANKED for k in (1, 10)), str(each["n"])]
        for name, each in splice["by_method"].items()
    ]
    heads = [f"{words} R@{k}" for words in RANKED.values() for k in (1, 10)]
    return table(["composites, by", *heads, "n"], rows)


def _counts(by_objects: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(each["objects"]),
            *(told(each[what][f"R@{k}"]) for what in RANKED for k in (1, 10)),
            f"{each['code_bytes_per_image']}",
        ]
        for each in by_objects
    ]
    heads = [f"{words} R@{k}" for words in RANKED.values() for k in (1, 10)]
    return table(["objects", *heads, "code bytes an image"], rows)


def _pir(pir: dict[str, Any]) -> str:
    rows = [
        [
            str(each["objects"]),
            *(told(each[f"R@{k}"]) for k in (1, 10, 100)),
            f"{each['code_bytes_per_image']}",
            str(each["n"]),
        ]
        for each in pir["by_objects"]
    ]
    return table(["objects", "R@1", "R@10", "R@100", "code bytes an image", "n"], rows)


def _students(result: dict[str, Any]) -> str:
    """OE-SIR Table 2 in small: cost, eq. 6, and donors found, by crops and by one pass."""

    def row(name: str, each: dict[str, Any]) -> Iterator[str]:
        yield name
        yield f"{each['multiply_adds'] / 1e6:,.0f} M"
        yield f"{each['parameters'] / 1e6:.2f} M"
        yield f"{each['mse']:.4f}, {each['explained']:.0%} explained" if "mse" in each else ""
        for pooling in ("crops", "one_pass"):
            found = each.get(pooling)
            for depth in ("R@1", "R@10"):
                kept = None if found is None else found.get("kept", {}).get(depth)
                text = "" if found is None else told(found[depth])
                yield text if kept is None else f"{text}, keeps {kept:.0%}"

    heads = [
        "network",
        "multiply-adds",
        "parameters",
        "mean square, validation",
        "crops R@1",
        "R@10",
        "one pass R@1",
        "R@10",
    ]
    return table(heads, [list(row(name, each)) for name, each in result["students"].items()])
