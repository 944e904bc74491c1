"""Plots of the bench, one per claim. Shape suffixes: S training seeds; P prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from arms import BASE, DIVERSITY, FIDELITY, MINORITY, UTILITY, Runs
from claim import Claim
from e_ppd import SHARES
from intervals import interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")
# distinguishable for the colour-blind: Okabe and Ito, https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CURVES: Mapping[str, Mapping[str, str]] = {
    "c": {"long_see": "SEE-DPO", "long_dpo": "DPO", "long_stiff": "DPO, beta (1 + gamma)"},
    "d": {"spin": "SPIN-Diffusion", "spin_frozen": "one round", "dpo": "DPO with labels"},
    "f": {
        "inversion": "Inversion-DPO, the config's",
        "dpo": "Diffusion-DPO",
        "inversion_paper": "the paper's",
    },
}
MEASURES = {UTILITY: "gain in utility", FIDELITY: "fidelity", DIVERSITY: "diversity"}


def plot(claim: Claim, runs: Runs, path: Path) -> None:
    """Draws gains of all arms, and curves where arms were judged at several steps."""
    lines = claim.lines(runs)
    curves = CURVES.get(claim.letter, {})
    columns = 1 + (len(MEASURES) if claim.letter == "c" else 1 if curves or claim.letter == "e" else 0)
    figure = Figure(
        figsize=(5.4 + 3.6 * (columns - 1), 1.2 + 0.34 * max(len(lines), 6)), layout="constrained"
    )
    panels = figure.subplots(1, columns, squeeze=False)[0]
    _gains(panels[0], runs, [(line.label, line.arm, line.audience, line.measure) for line in lines])
    if curves:
        measures = list(MEASURES) if claim.letter == "c" else [UTILITY]
        for panel, measure in zip(panels[1:], measures, strict=True):
            _curves(panel, runs, curves, measure)
        panels[1].legend(frameon=False, fontsize=8)
    if claim.letter == "e":
        _mixtures(panels[1], runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _gains(panel: Axes, runs: Runs, lines: Sequence[tuple[str, str, str, str]]) -> None:
    for row, (_, arm, audience, measure) in enumerate(lines):
        found = interval(runs.gain(arm, measure, audience=audience))
        error = [[found.mean - found.low], [found.high - found.mean]]
        colour = COLOURS[0] if row < 2 else "#666666"
        panel.errorbar(found.mean, row, xerr=error, fmt="o", color=colour, capsize=3, markersize=5)
    panel.set_yticks(range(len(lines)), [label for label, *_ in lines], fontsize=8)
    panel.invert_yaxis()
    panel.axvline(0, color="#999999", linewidth=0.8)
    panel.set_xlabel("gain in utility over the base")
    _tidy(panel)


def _curves(panel: Axes, runs: Runs, arms: Mapping[str, str], measure: str) -> None:
    for colour, (arm, name) in zip(COLOURS, arms.items(), strict=False):
        steps = runs.steps(arm)
        start_SP = runs.table(BASE, measure)
        rows = [start_SP, *(runs.table(arm, measure, step=step) for step in steps)]
        found = [interval(row_SP - start_SP if measure == UTILITY else row_SP) for row_SP in rows]
        at = [0, *steps]
        panel.plot(at, [one.mean for one in found], color=colour, marker="o", markersize=3, label=name)
        low, high = [one.low for one in found], [one.high for one in found]
        panel.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    panel.set_xlabel("steps")
    panel.set_ylabel(MEASURES[measure])
    _tidy(panel)


def _mixtures(panel: Axes, runs: Runs) -> None:
    shares = [100 * i / (len(SHARES) - 1) for i in range(len(SHARES))]
    for colour, measure, name in zip(
        COLOURS, (UTILITY, MINORITY), ("majority's", "minority's"), strict=False
    ):
        found = [interval(runs.gain("ppd", measure, audience=whom)) for whom in SHARES]
        panel.plot(shares, [one.mean for one in found], color=colour, marker="o", markersize=3, label=name)
        low, high = [one.low for one in found], [one.high for one in found]
        panel.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
    panel.axhline(0, color="#999999", linewidth=0.8)
    panel.set_xlabel("share of the majority, %")
    panel.set_ylabel("gain in utility")
    panel.legend(frameon=False, fontsize=8, title="whose utility", title_fontsize=8)
    _tidy(panel)


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", color="#eeeeee", linewidth=0.6)
    panel.tick_params(labelsize=8)
    panel.xaxis.label.set_size(9)
    panel.yaxis.label.set_size(9)
    panel.set_axisbelow(True)
