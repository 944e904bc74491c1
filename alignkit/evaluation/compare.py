"""Base against aligned, paired by prompt and seed.

Shape suffixes: P prompts; M = S images of a prompt, a seed each; N = P*M; C H W; U people, L tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import track
from torch import Tensor, nn

from alignkit.components import Backbone, Features, Reward
from alignkit.evaluation.contents import Evaluated
from alignkit.evaluation.drawing import drawn, picture_seed
from alignkit.evaluation.judging import judged
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.evaluation.statistics.comparisons import comparisons
from alignkit.evaluation.wording import bounds, lined_up, number, percent
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


def score(
    image_PMCHW: Tensor, prompts: Sequence[str], *, rewards: Sequence[Reward], features: Features | None
) -> Scores:
    """Asks all judges about one model's pictures; rewards answer under their class names."""
    image_NCHW = image_PMCHW.flatten(0, 1)
    repeated = [prompt for prompt in prompts for _ in range(image_PMCHW.shape[1])]
    reward_PS = {
        type(reward).__name__: judged(reward, image_NCHW, repeated).view(image_PMCHW.shape[:2]).numpy()
        for reward in rewards
    }
    if features is None:
        return Scores(reward_PS)
    feature_ND = judged(features, image_NCHW, repeated)
    return Scores(reward_PS, feature_ND.view(*image_PMCHW.shape[:2], -1).numpy())


def compare(prompts: Sequence[str], base: Scores, aligned: Scores) -> dict[str, dict[str, Any]]:
    """For every measure: both means, their paired difference, and the aligned model's share of wins.

    The figures are those of ``comparisons``. A measure that is positive for every prompt, such as a
    similarity, also gets the ratio of the means. Displacement is the aligned model's alone.
    """
    judged = [*base.reward_PS.values(), *([] if base.feature_PSD is None else [base.feature_PSD])]
    if not judged:
        return {}
    shown = tuple(map(Prompt, prompts))
    results = Results(shown, tuple(range(judged[0].shape[1])), {"base": base, "aligned": aligned})
    lowest = {
        name: min(scores.reward_PS[name].mean(1).min() for scores in (base, aligned))
        for name in base.reward_PS
    }
    report: dict[str, dict[str, Any]] = {}
    for one in comparisons(results, [Evaluated("base", ""), Evaluated("aligned", "")]):
        parts = {
            "base": one.against_mean,
            "aligned": one.mean,
            "difference": one.difference,
            "win_rate": one.win_rate,
        }
        report[one.measure] = {name: part._asdict() for name, part in parts.items() if part is not None}
        # the other measures are never negative
        if one.against_mean is not None and lowest.get(one.measure, one.against_mean.mean) > 0:
            report[one.measure]["ratio"] = one.mean.mean / one.against_mean.mean
    return report


def table(report: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as lines of text."""
    rows = [["", "base", "aligned", "difference", "wins"]]
    for name, figures in report.items():
        cells = [
            _cell(Interval(**figures[part])) if part in figures else ""
            for part in ("base", "aligned", "difference")
        ]
        rows.append([name, *cells, percent(figures["win_rate"]["mean"]) if "win_rate" in figures else ""])
    return lined_up(rows, 1)


def _cell(interval: Interval) -> str:
    return f"{number(interval.mean)} {bounds(interval)}"
