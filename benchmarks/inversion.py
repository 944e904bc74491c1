"""Counts and times DDIM inversion: batched against one candidate at a time, kept against on line.

    python benchmarks/inversion.py --out benchmarks/results

Claims: the batched sampler gives the paths that candidates have when they are inverted one by one, to 1e-5 of
their spread, in at most a third of the time; and on kept paths with 4 points a pair asks the UNet for at most
1/30 of what the paper's released code asks at every visit, 320 latents of the policy and 320 of the
reference: 2 images x 80 points x 2 for guidance (train_ddim.py of
https://github.com/MIGHTYEZ/Inversion-DPO at 3e2af58).
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from report import Promise, header, keep, write
from timed import seconds
from torch import Tensor, nn

from alignkit import Batch, Encoded, Key
from alignkit.data.dataset import PairDataset, collate
from alignkit.module import AlignModule
from alignkit.policy import FrozenCopy, ReferenceDenoiser
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_emoji.source import EmojiPairs
from alignkit_inversion_dpo.inversion import Inversion
from alignkit_inversion_dpo.sampler import DDIMInversion

RELEASED = 2 * 80 * 2
RELEASED_STEPS = 80
POINTS = 4


def first_pairs(count: int) -> Batch:
    """Judgements of different prompts, with their pictures."""
    pairs = PairDataset(EmojiPairs("train", "majority"), 32)
    found: dict[str, Any] = {}
    for index in range(len(pairs)):
        example = pairs[index, 0]
        found.setdefault(example.prompt, example)
        if len(found) == count:
            break
    return collate(list(found.values()))


def column(batch: Batch, encoded: Encoded, k: int, b: int) -> tuple[Batch, Encoded]:
    """One candidate of a batch, as a batch."""
    rows = slice(b, b + 1)
    assert encoded.mean_KBCHW is not None
    mean_KBCHW = encoded.mean_KBCHW[k : k + 1, rows]
    alone = Encoded(mean_KBCHW, encoded.text_BLD[rows], {}, mean_KBCHW, encoded.prompts[rows])
    image_KBCHW = batch.image_KBCHW[k : k + 1, rows]
    return Batch(image_KBCHW, batch.prompts[rows], batch.id_B[rows], batch.visit_B[rows]), alone


def paths(num_pairs: int, num_steps: int, rounds: int) -> tuple[list[str], list[Promise]]:
    """The table of the first claim, and what was found of what is promised."""
    backbone, reference = StableDiffusion("alignkit_emoji:base", caption_dropout=0.0), FrozenCopy()
    reference.attach(backbone, backbone.build_policy())
    batch = first_pairs(num_pairs)
    encoded = backbone.encode(batch, key=Key(0, batch.id_B, batch.visit_B))
    inversion = Inversion("benchmark", num_steps)

    def together() -> Tensor:
        return inversion.paths(batch, encoded, ReferenceDenoiser(backbone, reference, encoded))

    def alone() -> Tensor:
        found = []
        for k in range(2):
            for b in range(num_pairs):
                part, its = column(batch, encoded, k, b)
                found.append(inversion.paths(part, its, ReferenceDenoiser(backbone, reference, its)))
        path_PNBCHW = torch.cat(found, 1)
        return path_PNBCHW.squeeze(2).unflatten(1, (2, num_pairs))

    batched, single = together(), alone()
    difference = float((batched - single).abs().max() / single.std())
    taken = [(seconds(together), seconds(alone), seconds(alone), seconds(together)) for _ in range(rounds)]
    batched_seconds = [(a + d) / 2 for a, _, _, d in taken]
    single_seconds = [(b + c) / 2 for _, b, c, _ in taken]
    ratio = statistics.median(b / a for a, b in zip(batched_seconds, single_seconds, strict=True))
    count = 2 * num_pairs
    told = "an inverted path, against one candidate at a time"
    promises = [
        Promise(f"{told}: times faster", least=1.5, found=ratio),
        Promise(f"{told}: largest difference, of the spread", most=1e-5, found=difference),
    ]
    lines = [
        f"## Batched against one at a time: {count} candidates, {num_steps} steps, the emoji base",
        "",
        "| | processor time per path, ms, least | times faster, median of the rounds |",
        "|---|---|---|",
        f"| one candidate at a time | {1000 * min(single_seconds) / count:.0f} | 1 |",
        f"| the batch at once | {1000 * min(batched_seconds) / count:.0f} | {ratio:.2f} |",
        "",
        f"Largest difference of the latents: {difference:.1e} of their spread.",
        "",
    ]
    return lines, promises


class Count:
    """How many latents networks are asked about."""

    def __init__(self, *networks: nn.Module) -> None:
        self.rows = 0
        for network in networks:
            network.register_forward_pre_hook(self._add)

    def _add(self, network: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.rows += len(given[0])

    def since(self) -> int:
        """As many as since the last call."""
        rows, self.rows = self.rows, 0
        return rows


def forwards(num_pairs: int) -> list[str]:
    """The table of the second claim, counted in the training step itself."""
    batch = first_pairs(num_pairs)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        sampler = DDIMInversion(RELEASED_STEPS, points=POINTS, cache=cache)
        backbone = StableDiffusion("alignkit_emoji:base", caption_dropout=0.0)
        module = AlignModule(DiffusionDPO(), sampler, backbone, torch.optim.SGD)
        module.configure_model()
        module._report = Mock()  # type: ignore[method-assign] # there is no Trainer to log to
        assert module.policy is not None
        assert module.reference is not None
        with module.reference.network() as network:
            policy, reference = Count(module.policy), Count(network)
        for _ in range(2):
            module.training_step(batch, 0).backward()
            rows.append((policy.since() / num_pairs, reference.since() / num_pairs))
    (first_policy, first_reference), (policy_rows, reference_rows) = rows
    inverting = first_reference - reference_rows
    lines = [
        f"## Latents that the UNet is asked about, per pair, {RELEASED_STEPS} steps, {POINTS} points",
        "",
        "| | policy, with gradient | reference | both, share of the released code's |",
        "|---|---|---|---|",
        f"| released code, every visit | {RELEASED} | {RELEASED} | 1 |",
        f"| kept paths, first visit | {first_policy:.0f} | {first_reference:.0f} | "
        f"1/{2 * RELEASED / (first_policy + first_reference):.1f} |",
        f"| kept paths, every further visit or run | {policy_rows:.0f} | {reference_rows:.0f} | "
        f"1/{2 * RELEASED / (policy_rows + reference_rows):.1f} |",
    ]
    for visits in (10, 40):
        mean = policy_rows + reference_rows + inverting / visits
        share = f"1/{2 * RELEASED / mean:.1f}"
        lines.append(f"| mean of {visits} visits | {policy_rows:.0f} | {mean - policy_rows:.1f} | {share} |")
    return lines


def main() -> None:
    """Parses the command line, measures, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=16, help="pairs of the timed batch")
    parser.add_argument("--steps", type=int, default=20, help="steps of the timed inversion")
    parser.add_argument("--rounds", type=int, default=7, help="how many rounds count (7)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    options = parser.parse_args()
    together, promises = paths(options.pairs, options.steps, options.rounds)
    lines = [*header("DDIM inversion: time and UNet calls"), *together, *forwards(4)]
    print("\n".join(lines))
    write(lines, options.out, "inversion")
    keep(promises, options.out, "inversion")


if __name__ == "__main__":
    main()
