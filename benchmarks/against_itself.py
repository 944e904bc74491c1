"""A model against itself with other seeds: no difference may be found, but by chance.

    python benchmarks/against_itself.py --out benchmarks/results

The base of the embedded default draws held-out prompts with 20 DDIM steps and guidance 3. Disjoint seeds are
compared by the functions that `alignkit evaluate` uses: an interval of 95 % should leave out what is true, a
win rate of 0.5 and a difference of 0, once in twenty times.
"""

import argparse
from pathlib import Path

import torch
from report import header, write

from alignkit.evaluation.compare import draw, score
from alignkit.evaluation.contents import Comparison, Evaluated
from alignkit.evaluation.results import Prompt, Results, Scores
from alignkit.evaluation.statistics.comparisons import comparisons
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_emoji.reward import EmojiFidelity, EmojiRecognition, MajorityTaste, MinorityTaste
from alignkit_emoji.source import EmojiPairs

SEED = 5000


def drawn(prompts: list[str], count: int) -> Scores:
    """The base's pictures, so many of each prompt, scored."""
    backbone = StableDiffusion("alignkit_emoji:base")
    network = backbone.build_policy().eval()
    image_PMCHW = draw(
        backbone,
        network,
        prompts,
        images_per_prompt=count,
        seed=SEED,
        num_steps=20,
        guidance=3.0,
        label="drawing",
    )
    rewards = [MajorityTaste(), MinorityTaste(), EmojiFidelity(), EmojiRecognition()]
    return score(image_PMCHW, prompts, rewards=rewards, features=None)


def compared(prompts: list[str], scores: Scores, first: int, count: int) -> tuple[Comparison, ...]:
    """Two sets of so many pictures, next to each other."""
    sides = {
        name: Scores(
            {measure: row_PS[:, start : start + count] for measure, row_PS in scores.reward_PS.items()}
        )
        for name, start in (("base", first), ("itself", first + count))
    }
    results = Results(tuple(Prompt(text) for text in prompts), tuple(range(count)), sides)
    return comparisons(results, [Evaluated("base", "base"), Evaluated("itself", "base")])


def main() -> None:
    """Draws, compares, writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--pairs", type=int, default=20, help="comparisons, of disjoint seeds")
    parser.add_argument("--pictures", type=int, default=2, help="of each prompt on either side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = list(dict.fromkeys(EmojiPairs("test", "majority").prompts()))
    scores = drawn(prompts, 2 * options.pairs * options.pictures)
    firsts = range(0, 2 * options.pairs * options.pictures, 2 * options.pictures)
    found = [one for first in firsts for one in compared(prompts, scores, first, options.pictures)]
    told = (
        f"{len(prompts)} prompts, {options.pictures} pictures of each on either side, {options.pairs} pairs"
    )
    lines = [
        *header("The base against itself", f"{told} of disjoint seeds."),
        "| reward | win rates | 0.5 within the interval | 0 within the difference's | smallest corrected p |",
        "|---|---|---|---|---|",
    ]
    for reward in scores.reward_PS:
        ones = [one for one in found if one.measure == reward]
        rates = [one.win_rate for one in ones if one.win_rate is not None]
        differences = [one.difference for one in ones if one.difference is not None]
        level = sum(rate.low <= 0.5 <= rate.high for rate in rates)
        none = sum(difference.low <= 0 <= difference.high for difference in differences)
        least = min(one.adjusted_p for one in ones if one.adjusted_p is not None)
        means = [rate.mean for rate in rates]
        lines.append(
            f"| {reward} | {min(means):.2f} to {max(means):.2f} | {level} of {len(ones)} "
            f"| {none} of {len(ones)} | {least:.2f} |"
        )
    print("\n".join(lines))
    write(lines, options.out, "against_itself")


if __name__ == "__main__":
    main()
