"""Trains one arm with one seed, draws, scores, and writes its figures; `run.py` calls it.

    python benchmarks/claims/one.py '{"name": "dpo_500", "settings": {}}' --seed 0 --runs runs/claims

Two pictures of each of 57 prompts are drawn, with 20 DDIM steps and guidance 3. Their seeds belong to the
seed of the training, so that all arms and the base have the same noise. Suffixes: P prompts; M pictures; U
people; L tokens; D width; C H W.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import BASE, DISPLACEMENT, DIVERSITY, RESULTS, TUNING_SEED, Arm, config_of, path_of
from PIL import Image
from safetensors.torch import load_file
from sharing import settings_of
from torch import Tensor, nn

from alignkit.cli import main as alignkit
from alignkit.components import Backbone, Reward
from alignkit.evaluation.compare import draw, score
from alignkit.evaluation.results import Scores
from alignkit.evaluation.sheet import to_pictures
from alignkit.evaluation.statistics.spread import displacement, diversity
from alignkit.files import whole, write_text
from alignkit.generate import aligned, opened
from alignkit.trust import trusting
from alignkit_adaptive_dpo.source import choose_flips, write_flips
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_emoji.features import EmojiFeatures
from alignkit_emoji.reward import EmojiFidelity, EmojiRecognition, MajorityTaste, MinorityTaste
from alignkit_emoji.source import EmojiPairs

NUM_PROMPTS, NUM_PICTURES, NUM_SHOWN = 57, 2, 8
FIGURES = 5
# whom a conditioner is told of: shares of the majority's and the minority's unseen people
AUDIENCES = {
    "minority": 0.0,
    "mix 0.25": 0.25,
    "mix 0.5": 0.5,
    "mix 0.75": 0.75,
    "majority": 1.0,
}
NOBODY = "nobody"
# modules of this folder that configs name
OWN = ("kept", "controls")


def main() -> None:
    """Parses the command line, runs, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arm", help="fields of an Arm, as JSON")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--commit", default="", help="the commit that is checked out")
    options = parser.parse_args()
    fields = json.loads(options.arm)
    arm = Arm(**{**fields, "steps": tuple(fields["steps"])} if "steps" in fields else fields)
    torch.set_num_threads(1)
    folder = options.runs / f"{arm.name}-{options.seed}"
    started = time.monotonic()
    if arm.name != BASE:
        train(arm, options.seed, folder)
    trained = time.monotonic()
    with trusting(OWN):
        evaluations = list(judged(arm, options.seed, folder, options.runs))
    seconds = {"train": round(trained - started, 1), "judge": round(time.monotonic() - trained, 1)}
    content = {"identity": arm.identity(), "seed": options.seed, "commit": options.commit, "seconds": seconds}
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    entries = ",\n".join(f"    {json.dumps(entry)}" for entry in evaluations)
    write_text(
        path_of(arm, options.seed),
        "{\n" + ",\n".join(lines) + ',\n  "evaluations": [\n' + entries + "\n  ]\n}\n",
    )
    shutil.rmtree(folder / "steps", ignore_errors=True)


def train(arm: Arm, seed: int, folder: Path) -> None:
    """Runs `alignkit fit` from the beginning."""
    shutil.rmtree(folder, ignore_errors=True)
    settings: dict[str, Any] = {
        "seed_everything": seed,
        "trainer.max_steps": arm.steps[-1],
        "trainer.val_check_interval": math.gcd(*arm.steps),
        **arm.settings,
        **settings_of(arm, seed, folder.parent),
    }
    if arm.flip_rate:
        settings["data.train"] = flipped(arm.flip_rate, seed, folder.parent)
    shared = str(folder.parent)
    arguments = [
        text
        for key, value in settings.items()
        for text in (
            f"--{key}",
            value.replace("{runs}", shared) if isinstance(value, str) else json.dumps(value),
        )
    ]
    ours = [option for module in OWN for option in ("--trust", module)]
    code = alignkit([*ours, "fit", "--config", str(config_of(arm)), "--run", str(folder), *arguments])
    if code:
        sys.exit(code)


def flipped(rate: float, seed: int, folder: Path) -> dict[str, Any]:
    """The majority's training pairs with a share of the labels swapped, as a config writes it."""
    inner = {
        "class_path": "alignkit_emoji.source.EmojiPairs",
        "init_args": {"split": "train", "users": "majority"},
    }
    path = folder / "flips" / f"{rate:g}-{seed}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        flips = choose_flips(EmojiPairs("train", "majority"), inner, rate=rate, seed=seed)
        with whole(path) as partial:
            partial.unlink(missing_ok=True)
            write_flips(partial, flips)
    return {
        "class_path": "alignkit_adaptive_dpo.source.FlippedPairs",
        "init_args": {"source": inner, "flips": str(path)},
    }


def judged(arm: Arm, seed: int, folder: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """Draws and scores at each of the arm's steps, for each of its audiences."""
    prompts = prompts_of(seed)
    rewards: list[Reward] = [MajorityTaste(), MinorityTaste(), EmojiFidelity(), EmojiRecognition()]
    features = EmojiFeatures()
    base_PMD = base_features(seed, runs, prompts)
    for step, audience, backbone, network, tokens_ULD in networks(arm, folder):
        image_PMCHW = draw(
            backbone,
            network,
            prompts,
            images_per_prompt=NUM_PICTURES,
            seed=first_picture(seed),
            num_steps=20,
            guidance=3.0,
            tokens_ULD=tokens_ULD,
            label="",
        )
        scores = score(image_PMCHW, prompts, rewards=rewards, features=features)
        assert scores.feature_PSD is not None
        if arm.name == BASE:
            base_PMD = scores.feature_PSD
            with whole(base_path(seed, runs)) as partial, partial.open("wb") as file:
                np.save(file, base_PMD)
        figures = {name: row_PS.mean(1) for name, row_PS in scores.reward_PS.items()}
        figures[DIVERSITY] = diversity(scores.feature_PSD)
        figures[DISPLACEMENT] = displacement(scores.feature_PSD, base_PMD)
        rounded = {name: [round(x, FIGURES) for x in row_P.tolist()] for name, row_P in figures.items()}
        if seed == 0 and step == arm.steps[-1]:
            show(image_PMCHW, RESULTS / "pictures" / f"{'-'.join(filter(None, (arm.name, audience)))}.png")
        yield {"step": step, "audience": audience, "scores": rounded}


def prompts_of(seed: int) -> list[str]:
    """Held-out prompts; for a run that chooses settings, as many of those that are trained on."""
    split = "train" if seed >= TUNING_SEED else "test"
    prompts = list(dict.fromkeys(EmojiPairs(split, "majority").prompts()))
    count = min(NUM_PROMPTS, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def first_picture(seed: int) -> int:
    """Number of the first picture of each prompt: each training seed has pictures of its own."""
    return 1000 + NUM_PICTURES * seed


def base_path(seed: int, runs: Path) -> Path:
    """Where the base's embeddings are kept."""
    return runs / f"base-{seed}.npy"


def base_features(seed: int, runs: Path, prompts: list[str]) -> Any:
    """The base's embeddings of the same prompts from the same noise, drawn when they are first needed."""
    path = base_path(seed, runs)
    if not path.exists():
        backbone = StableDiffusion("alignkit_emoji:base")
        image_PMCHW = draw(
            backbone,
            backbone.build_policy().eval(),
            prompts,
            images_per_prompt=NUM_PICTURES,
            seed=first_picture(seed),
            num_steps=20,
            guidance=3.0,
            label="",
        )
        scores: Scores = score(image_PMCHW, prompts, rewards=[], features=EmojiFeatures())
        with whole(path) as partial, partial.open("wb") as file:
            np.save(file, scores.feature_PSD)
    return np.load(path)


def networks(arm: Arm, folder: Path) -> Iterator[tuple[int, str, Backbone, nn.Module, Tensor | None]]:
    """What draws: step, audience, backbone, network, and what it is told."""
    if arm.name == BASE:
        backbone = StableDiffusion("alignkit_emoji:base")
        yield 0, "", backbone, backbone.build_policy().eval(), None
        return
    run = opened(folder)
    if run.conditioner is None:
        for step in arm.steps:
            network = run.backbone.build_policy()
            network.load_state_dict(load_file(folder / "steps" / f"{step}.safetensors"))
            yield step, "", run.backbone, network.eval(), None
        return
    network = aligned(run)
    tokens = run.conditioner.audiences()
    majority_ULD, minority_ULD = tokens["majority"], tokens["minority"]
    # as many of either group, each majority member beside a minority one
    pairs = math.lcm(len(majority_ULD), len(minority_ULD))
    majority_ULD = majority_ULD.repeat(pairs // len(majority_ULD), 1, 1)
    minority_ULD = minority_ULD.repeat(pairs // len(minority_ULD), 1, 1)
    for audience, share in AUDIENCES.items():
        told_ULD = share * majority_ULD + (1 - share) * minority_ULD
        yield arm.steps[-1], audience, run.backbone, network, told_ULD
    yield arm.steps[-1], NOBODY, run.backbone, network, torch.zeros_like(majority_ULD)


def show(image_PMCHW: Tensor, path: Path) -> None:
    """Writes the first pictures of evenly spread prompts, side by side."""
    shown = torch.arange(NUM_SHOWN) * len(image_PMCHW) // NUM_SHOWN
    pictures = to_pictures(image_PMCHW[shown, 0])
    side = pictures[0].width
    strip = Image.new("RGB", (side * len(pictures), side))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (side * i, 0))
    with whole(path) as partial:
        strip.save(partial, "PNG")


if __name__ == "__main__":
    main()
