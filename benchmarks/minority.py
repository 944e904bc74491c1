"""Measures whether the minority metric finds minority samples, on held-out pairs.

    python benchmarks/minority.py --out benchmarks/results

The claim: to a policy that was trained on labels of which 20 % were swapped, flipped held-out pairs weigh
less than clean ones; and so do the minority's pairs to a policy that was trained on everybody's. Trains both,
then scores held-out pairs with the live policy and its averages as they were after the last step, each pair
at several noises. A single visit is what a training step sees; the mean over visits says what the metric
would know without the noise of a step. With `--plain` it also trains without the weighting.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from report import header, write
from torch.utils.data import DataLoader

from alignkit import Batch, PairSource, Scored, Weighting, Weights
from alignkit.building import build
from alignkit.checkpoints import read
from alignkit.data.dataset import PairDataset, collate
from alignkit.data.ordering import TIE
from alignkit.module import AlignModule
from alignkit.training import quiet_libraries
from alignkit_adaptive_dpo.functional import group_rho, minority
from alignkit_adaptive_dpo.source import FlippedPairs, read_flips
from alignkit_adaptive_dpo.weighting import MinorityAware
from alignkit_emoji.source import EmojiPairs

FIGURES = ("weight", "score", "confidence", "stability", "margin")
GAINS = (
    "| training | gain in the majority's utility, held-out prompts | fidelity, share of base | "
    "accuracy on the majority's held-out pairs | training, s |"
)
NUM_RESAMPLES = 1000
Rows = NDArray[np.intp]


class Case(NamedTuple):
    """One training set, and held-out pairs of which some are suspicious.

    Args:
        name: what is trained on.
        suspicious: what the suspicious pairs are.
        train: what the config's ``data.train`` becomes.
        pairs: held-out pairs.
        ids: ids of those that are suspicious.
    """

    name: str
    suspicious: str
    train: dict[str, Any]
    pairs: PairSource
    ids: frozenset[int]


class Judged(NamedTuple):
    """What a weighting says of held-out pairs. Suffixes: P pairs, V visits.

    Args:
        suspicious_P: whether a pair is.
        prompt_P: number of its prompt.
        figures: each of ``FIGURES``, (P, V).
    """

    suspicious_P: NDArray[np.bool_]
    prompt_P: Rows
    figures: dict[str, NDArray[np.float64]]


class Recording(Weighting):
    """Writes down what a weighting says of each pair, as after its warm-up."""

    def __init__(self, inner: MinorityAware) -> None:
        super().__init__()
        self.inner, self.snapshots = inner, inner.snapshots
        self.rows: list[tuple[int, ...]] = []

    def forward(self, scored: Scored, batch: Batch) -> Weights:
        weights: Weights = self.inner(scored._replace(step=self.inner.warmup_steps), batch)
        assert scored.logp_KB is not None
        assert scored.ref_logp_KB is not None
        assert scored.snapshot_logp_SKB is not None
        logp_AKB = torch.cat([scored.logp_KB[None], scored.snapshot_logp_SKB]) - scored.ref_logp_KB
        margin_AB = logp_AKB[:, 0] - logp_AKB[:, 1]
        found = minority(margin_AB, rho=group_rho(self.inner.rho, num_prompts=margin_AB.shape[1]))
        figures = (weights.weight_B, found.score_B, found.confidence_B, found.stability_B, margin_AB[0])
        self.rows += zip(batch.id_B.tolist(), *(figure.tolist() for figure in figures), strict=True)
        return weights


def cases(rate: float, folder: Path) -> list[Case]:
    """Flipped labels of the majority, and everybody's own."""
    files = {split: flips(split, rate, folder) for split in ("train", "test")}
    minority_pairs = EmojiPairs("test", "minority")
    return [
        Case(
            f"the majority's pairs, {rate:.0%} flipped",
            "flipped",
            {"name": "FlippedPairs", "flips": str(files["train"]), "source": emoji("train", "majority")},
            FlippedPairs(EmojiPairs("test", "majority"), str(files["test"])),
            frozenset(read_flips(files["test"]).ids),
        ),
        Case(
            "everybody's pairs",
            "the minority's",
            emoji("train", "all"),
            EmojiPairs("test", "all"),
            frozenset(minority_pairs[row].id for row in range(len(minority_pairs))),
        ),
    ]


def emoji(split: str, users: str) -> dict[str, Any]:
    """What a config says of shipped judgements."""
    return {"class_path": "alignkit_emoji.source.EmojiPairs", "init_args": {"split": split, "users": users}}


def flips(split: str, rate: float, folder: Path) -> Path:
    """The file that says which of the majority's pairs are flipped, written if it is not there."""
    path, config = folder / f"flips-{split}.json", folder / f"{split}.yaml"
    config.write_text(yaml.safe_dump({"data": {"train": emoji(split, "majority")}}))
    if not path.exists():
        alignkit("flip", "--config", str(config), "--rate", str(rate), "--out", str(path))
    return path


def alignkit(*arguments: str) -> None:
    """Runs a command."""
    environment = {name: value for name, value in os.environ.items() if name != "ALIGNKIT_RUN"}
    subprocess.run([sys.executable, "-m", "alignkit.cli", *arguments], check=True, env=environment)


def trained(run: Path) -> AlignModule:
    """The networks of a run as they were after its last step, averages included."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    parts = build(config, ("objective", "weighting", "sampler", "backbone"))
    weighting = Recording(parts.pop("weighting"))
    module = AlignModule(
        **parts, optimizer=torch.optim.AdamW, weighting=weighting, seed=config["seed_everything"]
    )
    module.configure_model()
    checkpoint = read(run / "checkpoints" / "last.ckpt")
    module.load_state_dict(checkpoint["state_dict"])
    for callback in module.configure_callbacks():
        callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    return module


def judged(module: AlignModule, case: Case, *, visits: int, batch_size: int, resolution: int) -> Judged:
    """Scores every held-out pair at several visits; batches are shuffled anew for each."""
    pairs = PairDataset(case.pairs, resolution)
    generator = torch.Generator().manual_seed(0)
    places = [(i, v) for v in range(visits) for i in torch.randperm(len(pairs), generator=generator).tolist()]
    loader = DataLoader(pairs, batch_size, sampler=places, collate_fn=collate)
    recording = module.weighting
    assert isinstance(recording, Recording)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.validate(module, loader, verbose=False)
    rows = np.array(recording.rows)
    row_PVF = rows[np.argsort(rows[:, 0], kind="stable")].reshape(len(pairs), visits, -1)
    labels, prompts = case.pairs.labels(), case.pairs.prompts()
    prompt_of = {case.pairs[row].id: prompts[row] for row in range(len(labels)) if labels[row] != TIE}
    id_P = row_PVF[:, 0, 0].astype(int)
    return Judged(
        np.isin(id_P, list(case.ids)),
        np.unique([prompt_of[i] for i in id_P], return_inverse=True)[1],
        {name: row_PVF[:, :, 1 + place] for place, name in enumerate(FIGURES)},
    )


def auc(value_P: NDArray[np.float64], suspicious_P: NDArray[np.bool_]) -> float:
    """Probability that a suspicious pair has a larger value than another one; ties count half."""
    _, place_P, count = np.unique(value_P, return_inverse=True, return_counts=True)
    rank_P = (count.cumsum() - (count - 1) / 2)[place_P]
    positive = int(suspicious_P.sum())
    negative = len(value_P) - positive
    return float((rank_P[suspicious_P].sum() - positive * (positive + 1) / 2) / (positive * negative))


def interval(figure: Callable[[Rows], float], prompt_P: Rows) -> str:
    """A figure of all pairs with the 95 % interval of a bootstrap over prompts."""
    rows = [np.flatnonzero(prompt_P == prompt) for prompt in range(prompt_P.max() + 1)]
    generator = np.random.default_rng(0)
    drawn = [
        figure(np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))]))
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{figure(np.arange(len(prompt_P))):.3f} [{low:.3f}, {high:.3f}]"


def means(value_P: NDArray[np.float64], found: Judged) -> str:
    """Mean of suspicious pairs, of the others, and their difference, as cells of a table."""

    def mean(wanted: bool) -> Callable[[Rows], float]:
        return lambda rows: float(value_P[rows][found.suspicious_P[rows] == wanted].mean())

    inside, outside = mean(True), mean(False)
    cells = (inside, outside, lambda rows: inside(rows) - outside(rows))
    return " | ".join(interval(cell, found.prompt_P) for cell in cells)


def areas(value_PV: NDArray[np.float64], found: Judged) -> str:
    """AUC of a single visit and of the mean over visits, as cells of a table."""
    visits, mean_P, suspicious_P = value_PV.shape[1], value_PV.mean(1), found.suspicious_P

    def single(rows: Rows) -> float:
        return auc(value_PV[rows].ravel(), suspicious_P[rows].repeat(visits))

    def averaged(rows: Rows) -> float:
        return auc(mean_P[rows], suspicious_P[rows])

    return " | ".join(interval(cell, found.prompt_P) for cell in (single, averaged))


def lines_of(case: Case, found: Judged) -> list[str]:
    """What is reported of the metric in one case."""
    suspicious_P, figures = found.suspicious_P, found.figures
    visits = figures["weight"].shape[1]
    return [
        f"## Trained on {case.name}",
        "",
        f"{len(suspicious_P)} held-out pairs of {found.prompt_P.max() + 1} prompts, {suspicious_P.sum()} of "
        f"them {case.suspicious}.",
        "",
        f"| mean of {visits} visits | {case.suspicious} pairs | other pairs | difference |",
        "|---|---|---|---|",
        *(f"| {name} | {means(figures[name].mean(1), found)} |" for name in FIGURES[:-1]),
        "",
        "| AUC of | single visit | mean of visits |",
        "|---|---|---|",
        *(f"| {name} | {areas(figures[name], found)} |" for name in FIGURES[1:-1]),
        f"| raw margin, negated | {areas(-figures['margin'], found)} |",
        "",
    ]


def main() -> None:
    """Trains, scores, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="adaptive_dpo.yaml")
    parser.add_argument("--rate", type=float, default=0.2, help="share of flipped labels")
    parser.add_argument("--visits", type=int, default=8, help="noises per held-out pair")
    parser.add_argument("--plain", action="store_true", help="trains without the weighting, too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--runs", type=Path, help="folder for the runs; a temporary one if not given")
    options, extra = parser.parse_known_args()
    lines = header(
        "The minority metric on held-out pairs",
        "Mean [95 % interval over held-out prompts, bootstrap].",
    )
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = options.runs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(cases(options.rate, folder)):
            lines += report(case, folder / f"case-{number}", options, extra)
            print("\n".join(lines), flush=True)
    write(lines, options.out, "minority")


def report(case: Case, run: Path, options: argparse.Namespace, extra: Sequence[str]) -> list[str]:
    """Trains one case, unless its runs are there already, and scores it."""
    train = ["--data.train", yaml.safe_dump(case.train, default_flow_style=True, width=10_000).strip()]
    runs = {"with the weighting": (run, [])}
    if options.plain:
        runs["without"] = (run.with_name(f"{run.name}-plain"), ["--weighting", "null"])
    for folder, changes in runs.values():
        if not (folder / "summary.json").exists():
            command = ["fit", "--config", options.config, *train, *changes, "--run", str(folder)]
            alignkit(*command, "--samples.num_prompts", "0", *extra)
    data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    batches = {"batch_size": data["batch_size"], "resolution": data["resolution"]}
    found = judged(trained(run), case, visits=options.visits, **batches)
    gains = [gain(name, folder) for name, (folder, _) in runs.items()]
    return [*lines_of(case, found), GAINS, "|" + "---|" * (GAINS.count("|") - 1), *gains, ""]


def gain(name: str, run: Path) -> str:
    """What a run gained on held-out prompts."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    utility, fidelity = summary["scores"]["MajorityTaste"], summary["scores"]["EmojiFidelity"]
    difference = "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**utility["difference"])
    accuracy, seconds = summary["held_out"]["rewards/accuracies"], summary["train_seconds"]
    return f"| {name} | {difference} | {fidelity['ratio']:.1%} | {accuracy:.3f} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
