"""Base against aligned, paired by prompt and seed.

Shape suffixes: P prompts; M = S images of a prompt, a seed each; N = P*M; C H W; U people, L tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import track
from torch import Tensor, nn

from alignkit.components import Backbone, Features, Reward
from alignkit.evaluation.bootstrap import Interval, bootstrap
from alignkit.evaluation.drawing import drawn, picture_seed
from alignkit.evaluation.results import Scores
from alignkit.evaluation.spread import displacement, diversity
from alignkit.module import AlignModule

# how many pictures are denoised at once
DRAWN = 32


def audiences(module: AlignModule, name: str) -> dict[str, Tensor | None]:
    """For whom a policy draws: a conditioner's audiences, or nobody in particular under the given name."""
    return dict(module.conditioner.audiences()) if module.conditioner else {name: None}


def draw(
    backbone: Backbone,
    network: nn.Module,
    prompts: Sequence[str],
    *,
    images_per_prompt: int,
    seed: int,
    num_steps: int,
    guidance: float,
    tokens_ULD: Tensor | None = None,
    batch_size: int = DRAWN,
    label: str = "generating",
) -> Tensor:
    """Generates images in [0, 1] of every prompt, (P, M, C, H, W), of 8 bits.

    Those of a prompt have the numbers from ``seed`` on: see ``picture_seed``. With a conditioner's tokens,
    prompt number p is drawn for person p modulo U.
    """
    asked = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    seeds = [picture_seed(prompt, seed + i) for prompt in prompts for i in range(images_per_prompt)]
    quiet = getattr(rank_zero_only, "rank", 0) != 0 or not label
    tokens_NLD = None
    if tokens_ULD is not None:
        person_N = torch.arange(len(prompts)).repeat_interleave(images_per_prompt) % len(tokens_ULD)
        tokens_NLD = tokens_ULD[person_N.to(tokens_ULD.device)]
    parts = []
    for start in track(range(0, len(asked), batch_size), label, disable=quiet, transient=True):
        part = asked[start : start + batch_size]
        image_NCHW = drawn(
            backbone,
            network,
            part,
            seeds=seeds[start : start + batch_size],
            num_steps=num_steps,
            guidance=guidance,
            tokens_NLD=None if tokens_NLD is None else tokens_NLD[start : start + batch_size],
        )
        parts.append(image_NCHW)
    image_NCHW = torch.cat(parts)
    return image_NCHW.view(len(prompts), images_per_prompt, *image_NCHW.shape[1:])


@torch.no_grad()
def score(
    image_PMCHW: Tensor, prompts: Sequence[str], *, rewards: Sequence[Reward], features: Features | None
) -> Scores:
    """Asks all judges about one model's pictures; rewards answer under their class names."""
    image_NCHW = image_PMCHW.flatten(0, 1)
    repeated = [prompt for prompt in prompts for _ in range(image_PMCHW.shape[1])]
    reward_PS = {
        type(reward).__name__: reward(image_NCHW, repeated).view(image_PMCHW.shape[:2]).double().numpy()
        for reward in rewards
    }
    if features is None:
        return Scores(reward_PS)
    feature_ND = F.normalize(features(image_NCHW).double(), dim=1)
    return Scores(reward_PS, feature_ND.view(*image_PMCHW.shape[:2], -1).numpy())


def compare(base: Scores, aligned: Scores) -> dict[str, dict[str, Any]]:
    """For every judge: both means, their paired difference, and the aligned model's share of wins.

    A win is counted by prompt. A judge that is positive throughout, such as a similarity, also gets
    the ratio of the means. Embeddings give diversity, and displacement from the base.
    """
    pairs = {
        name: (base_PS.mean(1), aligned.reward_PS[name].mean(1)) for name, base_PS in base.reward_PS.items()
    }
    moved_P = None
    if base.feature_PSD is not None and aligned.feature_PSD is not None:
        moved_P = displacement(aligned.feature_PSD, base.feature_PSD)
        if base.feature_PSD.shape[1] > 1:
            pairs["diversity"] = diversity(base.feature_PSD), diversity(aligned.feature_PSD)
    report: dict[str, dict[str, Any]] = {}
    for name, (base_P, aligned_P) in pairs.items():
        won_P = (aligned_P > base_P) + 0.5 * (aligned_P == base_P)
        report[name] = {
            "base": bootstrap(base_P)._asdict(),
            "aligned": bootstrap(aligned_P)._asdict(),
            "difference": bootstrap(aligned_P - base_P)._asdict(),
            "win_rate": bootstrap(won_P)._asdict(),
        }
        if min(base_P.min(), aligned_P.min()) > 0:
            report[name]["ratio"] = float(aligned_P.mean() / base_P.mean())
    if moved_P is not None:
        report["displacement"] = {"aligned": bootstrap(moved_P)._asdict()}
    return report


def table(report: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as lines of text."""
    lines = [f"{'':20}{'base':>24}{'aligned':>24}{'difference':>24}{'wins':>7}"]
    for name, figures in report.items():
        cells = [
            _cell(Interval(**figures[part])) if part in figures else ""
            for part in ("base", "aligned", "difference")
        ]
        wins = f"{figures['win_rate']['mean']:.0%}" if "win_rate" in figures else ""
        lines.append((f"{name:20}" + "".join(f"{cell:>24}" for cell in cells) + f"{wins:>7}").rstrip())
    return "\n".join(lines)


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
