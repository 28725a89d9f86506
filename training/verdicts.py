"""``stemma train calibrate``: the comparator's temperature, margin and thresholds, from 200 calibration photographs.

Everything is fitted on ``training.evidence``, in this order:

- temperature: least cross-entropy of benign, manipulated and distinct over the pairs that a query would compare;
- distinct_min: fewest of them culled plus strangers let through, each as a share; the middle of all that are best;
- margin: the smallest with at most 2% of benign queries called manipulated, while .96 of them are called benign;
- heatmap_min: the best mean IoU in the query's frame while benign queries show at most .5% of their area.

Only strangers above the match threshold are compared, so the luckiest of each query, though mostly below it, are
measured and fit nothing: with them the temperature was 2.7 instead of 1.2, the calibration error .057 instead of .01.

Then the whole is measured: verdicts, heatmaps, whether early stopping changed any first place, and the expected
calibration error of ``confidence``, with temperature and match probability fitted on other photographs than are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma import verdict
from stemma.config import ComparatorSettings, EncoderSettings
from stemma.flow import Hit, Judged, Pairing
from stemma.networks import explain, matching
from stemma.networks import weights as files
from stemma.networks.comparator import BENIGN, DISTINCT, MANIPULATED
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.networks.weights import Card, ComparatorCard
from stemma.terminal import progress
from stemma.verdict import Decision, Rules
from stemma.vision.decode import working_copy
from training import calibrate, evidence
from training.calibrate import share
from training.evidence import THRESHOLDS, Evidence, Side

PHOTOGRAPHS = 950
"""Steps of the bar: 750 of the gallery, 200 that are asked."""
ACCUSED_MAX = 0.02
BENIGN_MIN = 0.96
BENIGN_GIVEN_MAX = 0.01
"""Where benign is not called so often even without a margin, this much of it may be given up for one."""
FALSE_AREA_MAX = 0.005
MARGINS = np.round(np.arange(0.0, 0.96, 0.02), 2)
TEMPERATURES = np.exp(np.linspace(np.log(0.3), np.log(6.0), 301))
FOLDS = 5
BINS = 15
RESAMPLED = 1000
BATCH = 4
FIGURES = "calibration photographs, whole pipeline"
TAMPER = "tamper/train, pairs (chose nothing)"
FITTED_COMMAND = "; stemma train calibrate --data DIR"

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a query came to under some rules."""

    one: Evidence
    asked: str
    """Its kind, or unknown where its original was left out."""
    decision: Decision
    judged: Judged | None
    """Of the original that was found."""

    @property
    def right_original(self) -> bool:
        return self.decision.original is not None and self.decision.original.row == self.one.row

    @property
    def right(self) -> bool:
        wanted = {"benign": "benign", "unknown": "unknown"}.get(self.asked, "manipulated")
        return self.decision.verdict == wanted and (self.asked == "unknown" or self.right_original)


def replay(side: Side, rules: Rules, *, stop: bool = True, most: int = evidence.RERANK_MAX) -> tuple[Hit, ...]:
    """The ranked candidates as ``stemma.query`` would leave them; ``stop=False`` compares all that it may."""
    cooled = {row: with_temperature(one, rules.comparator.temperature) for row, one in side.judged.items()}
    compared: dict[int, Judged] = {}
    if not stop:
        compared = {hit.row: cooled[hit.row] for hit in side.hits[:most] if rules.could_be_original(hit)}
    else:
        while chosen := verdict.next_pairs(side.hits, compared, rules, most=most, batch=BATCH):
            compared |= {hit.row: cooled[hit.row] for hit in chosen}
    return verdict.rerank(side.hits, compared, rules)


def decided(one: Evidence, rules: Rules, *, stranger: bool) -> Replayed:
    """The verdict on a query, with its original in the gallery or without."""
    side = one.without if stranger else one.with_original
    ranked = replay(side, rules)
    cooled = {row: with_temperature(said, rules.comparator.temperature) for row, said in side.judged.items()}
    could = {hit.row: cooled[hit.row] for hit in ranked if rules.could_be_original(hit)}
    decision = verdict.decide(ranked, could, one.encoded, rules)
    judged = None if decision.original is None else could[decision.original.row]
    return Replayed(one=one, asked="unknown" if stranger else one.kind, decision=decision, judged=judged)


def with_temperature(judged: Judged, temperature: float) -> Judged:
    benign, manipulated, distinct = explain.probabilities(np.array([judged.logits], np.float32), temperature)[
        0
    ].tolist()
    return replace(judged, benign=benign, manipulated=manipulated, distinct=distinct)


def labelled(seen: Iterable[Evidence], match_min: float) -> tuple[Doubles, NDArray[np.int64]]:
    """(logits [N, 3], class [N]) of pairs that have a truth: each query with its original, where it was compared, and
    the first stranger of some, where its match is at least ``match_min``."""
    rows: list[tuple[tuple[float, float, float], int]] = []
    for one in seen:
        own = one.with_original.judged.get(one.row)
        if own is not None and not one.hidden:
            rows.append((own.logits, BENIGN if one.kind == "benign" else MANIPULATED))
        first = one.without.hits[0] if one.without.hits else None
        if first is not None and first.row in one.without.judged and (first.match or 0.0) >= match_min:
            rows.append((one.without.judged[first.row].logits, DISTINCT))
    return np.array([logits for logits, _ in rows], np.float64).reshape(-1, 3), np.array(
        [label for _, label in rows], np.int64
    )


def cross_entropy(logits_N3: Doubles, label_N: NDArray[np.int64], temperature: float) -> float:
    scaled_N3 = logits_N3 / temperature
    top_N = scaled_N3.max(1)
    total_N = top_N + np.log(np.exp(scaled_N3 - top_N[:, None]).sum(1))
    return float((total_N - scaled_N3[np.arange(len(label_N)), label_N]).mean())


def fit_temperature(logits_N3: Doubles, label_N: NDArray[np.int64]) -> float:
    """The temperature of the least cross-entropy, which is convex in its inverse."""
    losses = [cross_entropy(logits_N3, label_N, one) for one in TEMPERATURES.tolist()]
    return round(float(TEMPERATURES[int(np.argmin(losses))]), 3)


def fit_distinct(true_N: Doubles, stranger_N: Doubles) -> float:
    """From P(distinct) of true pairs and of strangers, if any: the middle of the thresholds that err least."""
    strangers = max(1, len(stranger_N))
    wrong_T = np.array([(true_N >= t).mean() + (stranger_N < t).sum() / strangers for t in THRESHOLDS])
    best = np.flatnonzero(wrong_T <= wrong_T.min() + 1e-9)
    return float(THRESHOLDS[best[len(best) // 2]])


def fit_margin(leaning_N: Doubles, found_N: NDArray[np.bool_]) -> float:
    """Of benign queries: (P(manip) - P(benign)) / (P(manip) + P(benign)) and whether the original was found.

    The smallest margin that keeps accusations under ``ACCUSED_MAX``; none beyond which fewer than ``BENIGN_MIN`` are
    called benign (or, where that many never are, ``BENIGN_GIVEN_MAX`` fewer than without a margin).
    """

    def benign(margin: float) -> float:
        return float((found_N & (leaning_N <= -max(margin, 1e-12))).mean())

    floor = min(BENIGN_MIN, benign(0.0) - BENIGN_GIVEN_MAX)
    allowed = [float(margin) for margin in MARGINS if benign(float(margin)) >= floor - 1e-12]
    for margin in allowed:
        accused = float((found_N & (leaning_N >= max(margin, 1e-12))).mean())
        if accused <= ACCUSED_MAX + 1e-12:
            return margin
    return allowed[-1]


def fit_heatmap(iou_NT: Doubles, area_MT: Doubles) -> float:
    """The threshold of the best mean IoU among those at which benign queries show little enough."""
    quiet_T = area_MT.mean(0) <= FALSE_AREA_MAX
    if not quiet_T.any():
        return float(THRESHOLDS[-1])
    mean_T = np.where(quiet_T, iou_NT.mean(0), -1.0)
    return float(THRESHOLDS[int(mean_T.argmax())])


def fit(seen: Sequence[Evidence], match: Card, card: ComparatorCard) -> ComparatorCard:
    """The card with what these queries say, measured too."""
    logits_N3, label_N = labelled(seen, match.match_threshold)
    temperature = fit_temperature(logits_N3, label_N)
    distinct_N, strangers_N = distinct(logits_N3, temperature), label_N == DISTINCT
    distinct_min = fit_distinct(distinct_N[~strangers_N], distinct_N[strangers_N])
    card = replace(card, temperature=temperature, margin=0.0, distinct_min=distinct_min)
    forced = [decided(one, Rules(match=match, comparator=card), stranger=False) for one in seen]
    benign = [one for one in forced if one.asked == "benign"]
    margin = fit_margin(
        np.array([leaning(one.judged) for one in benign]), np.array([one.judged is not None for one in benign])
    )
    shown = [one for one in forced if one.asked != "benign" and not one.one.hidden]
    heatmap_min = fit_heatmap(np.stack([map_of(one) for one in shown]), np.stack([map_of(one) for one in benign]))
    card = replace(card, margin=margin, heatmap_min=heatmap_min)
    far_N3, far_N = labelled(seen, 0.0)
    luckiest_N = distinct(far_N3[far_N == DISTINCT], temperature)
    said = {
        "cross-entropy, at temperature 1": round(cross_entropy(logits_N3, label_N, 1.0), 4),
        "cross-entropy": round(cross_entropy(logits_N3, label_N, temperature), 4),
        "pairs": len(label_N),
        "true pairs culled": share(int((distinct_N[~strangers_N] >= distinct_min).sum()), int((~strangers_N).sum())),
        "strangers above the match threshold": int(strangers_N.sum()),
        "luckiest strangers culled, whatever their match": share(
            int((luckiest_N >= distinct_min).sum()), max(1, len(luckiest_N))
        ),
    }
    return replace(card, figures={FIGURES: said | figures(seen, Rules(match=match, comparator=card))})


def distinct(logits_N3: Doubles, temperature: float) -> Doubles:
    """P(distinct) [N]."""
    if not len(logits_N3):
        return np.zeros(0)
    return explain.probabilities(logits_N3.astype(np.float32), temperature)[:, DISTINCT].astype(np.float64)


def leaning(judged: Judged | None) -> float:
    if judged is None:
        return 0.0
    return (judged.manipulated - judged.benign) / (judged.manipulated + judged.benign)


def map_of(one: Replayed) -> Doubles:
    """IoU, or the area shown, by threshold; nothing where the original was not found."""
    nothing = np.zeros(len(THRESHOLDS))
    return one.one.shown_T if one.right_original and one.one.shown_T is not None else nothing


def figures(seen: Sequence[Evidence], rules: Rules) -> dict[str, Any]:
    """Everything that was measured under ``rules``, shares with n and 95% intervals."""
    known = [decided(one, rules, stranger=False) for one in seen]
    asked = [one for one in known if not one.one.hidden]
    unknown = [decided(one, rules, stranger=True) for one in seen if one.without.judged or one.number == 0]
    out: dict[str, Any] = {}
    at = int(np.flatnonzero(np.isclose(THRESHOLDS, rules.comparator.heatmap_min))[0])
    for kind in ("benign", "manip", "both"):
        some = [one for one in asked if one.asked == kind]
        out[f"verdict {kind}"] = share(sum(one.right for one in some), len(some))
        out[f"abstained {kind}"] = share(sum(one.decision.verdict == "inconclusive" for one in some), len(some))
        maps = [(one.one.name, float(map_of(one)[at])) for one in some]
        out["false area benign" if kind == "benign" else f"heatmap_iou {kind}"] = mean(maps)
    out["verdict unknown"] = share(sum(one.right for one in unknown), len(unknown))
    benign = [one for one in asked if one.asked == "benign"]
    out["falsely accused"] = share(sum(one.decision.verdict == "manipulated" for one in benign), len(benign))
    out["left out, the edit is not to be seen"] = len(known) - len(asked)
    same = [first(one.with_original, rules, stop=True) == first(one.with_original, rules, stop=False) for one in seen]
    out["first place, early stop as full re-ranking"] = share(sum(same), len(same))
    out["ece of confidence, forced, cross-fitted"] = round(cross_fitted(seen, rules), 4)
    return out


def first(side: Side, rules: Rules, *, stop: bool) -> int | None:
    ranked = replay(side, rules, stop=stop)
    return ranked[0].row if ranked else None


def cross_fitted(seen: Sequence[Evidence], rules: Rules) -> float:
    """Calibration error of forced answers; temperature and match probability never saw the photographs they judge."""
    place = {name: n % FOLDS for n, name in enumerate(sorted({one.name for one in seen}))}
    confidence: list[float] = []
    right: list[bool] = []
    for fold in range(FOLDS):
        rest = [one for one in seen if place[one.name] != fold]
        own = [one for one in seen if place[one.name] == fold and not one.hidden]
        card = replace(
            rules.comparator, temperature=fit_temperature(*labelled(rest, rules.match.match_threshold)), margin=0.0
        )
        fitted = Rules(match=replace(rules.match, calibration=match_table(rest)), comparator=card)
        answers = [decided(one, fitted, stranger=False) for one in own]
        answers += [decided(one, fitted, stranger=True) for one in own if one.number == 0]
        confidence += [one.decision.confidence for one in answers]
        right += [one.right for one in answers]
    return expected_calibration_error(np.array(confidence), np.array(right))


def match_table(seen: Sequence[Evidence]) -> tuple[tuple[float, float], ...]:
    """As ``training.calibrate`` fits it: half of the questions have their original there."""
    firsts = [side.hits[0] for one in seen for side in (one.with_original, one.without)]
    right = [flag for one in seen for flag in (one.with_original.hits[0].row == one.row, False)]
    return calibrate.table(*calibrate.logistic([hit.match or 0.0 for hit in firsts], right))


def expected_calibration_error(confidence_N: Doubles, right_N: NDArray[np.bool_]) -> float:
    """Over 15 equal bins of confidence: |mean confidence - share right|, weighted by how many are in it."""
    place_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    gaps = [abs(float((confidence_N - right_N)[place_N == n].sum())) for n in range(BINS)]
    return sum(gaps) / max(1, len(confidence_N))


def mean(values: Sequence[tuple[str, float]], seed: int = 0) -> dict[str, float | int]:
    """Of (photograph, value): the mean and its 95% interval, resampled by photograph."""
    names = sorted({name for name, _ in values})
    places = [names.index(name) for name, _ in values]
    sums_P, counts_P = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(sums_P, places, [value for _, value in values])
    np.add.at(counts_P, places, 1)
    drawn_SP = np.random.default_rng(seed).integers(len(names), size=(RESAMPLED, len(names)))
    means_S = sums_P[drawn_SP].sum(1) / counts_P[drawn_SP].sum(1)
    low, high = np.quantile(means_S, [0.025, 0.975])
    whole = float(sums_P.sum() / counts_P.sum())
    return {"mean": round(whole, 4), "n": len(values), "low": round(float(low), 4), "high": round(float(high), 4)}


def tamper(data: Path, encoder: Encoder, comparator: Comparator, rules: Rules) -> dict[str, Any]:
    """``tamper/train``, each picture with its own original, as ``/v1/compare`` does it: edits of other makes."""
    verdicts, maps = [], []
    at = int(np.flatnonzero(np.isclose(THRESHOLDS, rules.comparator.heatmap_min))[0])
    for folder in sorted((data / "tamper" / "train").iterdir()):
        query_HWC, original_HWC = (evidence.read(folder / f"{name}.jpg") for name in ("tampered", "original"))
        mask_HW = evidence.read(folder / "mask.png")[..., 0]
        asked, known = encoder.encode(query_HWC, mirrored=True), encoder.encode(original_HWC, mirrored=False)
        assert asked.cells_VNF is not None and known.cells_VNF is not None
        found = matching.match(asked.cells_VNF, known.cells_VNF)[0]
        pairing = Pairing(
            original=working_copy(evidence.pixels(original_HWC)), affine=found.affine, mirrored=found.mirrored
        )
        judged = with_temperature(comparator.compare(query_HWC, [pairing])[0], rules.comparator.temperature)
        verdicts.append(rules.pair_verdict(judged, found.score))
        maps.append((folder.name, float(evidence.shown(judged, query_HWC.shape[:2], mask_HW)[at])))
    return {
        "verdict manipulated": share(verdicts.count("manipulated"), len(verdicts)),
        "abstained": share(verdicts.count("inconclusive"), len(verdicts)),
        "heatmap_iou": mean(maps),
    }


def fit_folder(data: Path, out: Path, seen: Callable[[Evidence], None] = lambda _: None) -> ComparatorCard:
    """Fit and measure the comparator in ``out`` with the encoder there (else the shipped one); writes its card."""
    where = str(out)
    has_encoder = (out / files.CARD_FILE).exists()
    encoder = Encoder.load(EncoderSettings(weights=where if has_encoder else None))
    card = files.comparator_card(out)
    flow = (out / files.FLOW_CARD_FILE).exists()
    comparator = Comparator.load(ComparatorSettings(weights=where, size=card.size, flow=flow))
    found: list[Evidence] = []
    with progress("calibrate", PHOTOGRAPHS) as moved:
        for one in evidence.gather(data, encoder, comparator, moved):
            found.append(one)
            seen(one)
    fitted = fit(found, encoder.card, card)
    rules = Rules(match=encoder.card, comparator=fitted)
    measured = {TAMPER: tamper(data, encoder, comparator, rules)} if (data / "tamper" / "train").is_dir() else {}
    kept = {name: value for name, value in card.figures.items() if "calibration photographs" not in name}
    fitted = replace(
        fitted,
        command=card.command.removesuffix(FITTED_COMMAND) + FITTED_COMMAND,
        limits=tuple(line for line in card.limits if "not fitted" not in line),
        figures={**kept, **fitted.figures, **measured},
    )
    files.write_card(out, fitted)
    return fitted
