"""The contracts of ``alignkit.testing`` over everything that is installed here."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit.testing import ToyPairs
from alignkit.testing.contracts import *  # noqa: F403
from alignkit.testing.pipelines import (
    tiny_flux,
    tiny_stable_diffusion,
    tiny_stable_diffusion_3,
    tiny_stable_diffusion_xl,
)
from alignkit_adaptive_dpo.source import choose_flips, write_flips
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_emoji.reward import MajorityTaste
from alignkit_rewards.server import RewardServer
from tests.plugins.ppd.people import Counting
from tests.plugins.rewards.models import (
    tiny_bert_tokenizer,
    tiny_clip,
    tiny_dino,
    tiny_head,
    tiny_hps,
    tiny_image_reward,
)
from tests.plugins.sources.formats import WRITERS, ten_pairs
from tests.plugins.sources.prompt_lists import LISTS


def BACKBONE(folder: Path) -> StableDiffusion:
    return StableDiffusion(str(tiny_stable_diffusion(folder)), caption_dropout=0.0)


def tiny(write: Callable[..., Path], **options: object) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"path": str(write(folder)), "caption_dropout": 0.0, **options}


def flipped(folder: Path) -> dict[str, Any]:
    path, pairs = folder / "flips.json", ToyPairs(20)
    write_flips(path, choose_flips(pairs, {}, rate=0.5, seed=0))
    return {"source": pairs, "flips": str(path)}


def clip(folder: Path) -> str:
    return str(tiny_clip(folder / "clip"))


def serving(folder: Path) -> dict[str, Any]:
    server = RewardServer(MajorityTaste(), ("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"url": server.url}


def pairs(write: Callable[..., dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: write(folder, ten_pairs())


ARGUMENTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "StableDiffusion": tiny(tiny_stable_diffusion),
    "StableDiffusion3": tiny(tiny_stable_diffusion_3, max_sequence_length=16),
    "Flux": tiny(tiny_flux, max_sequence_length=16, resolution=16),
    "StableDiffusionXL": tiny(tiny_stable_diffusion_xl),
    **{name: pairs(write) for name, write in WRITERS.items()},
    "Aesthetic": lambda folder: {"head": str(tiny_head(folder)), "path": clip(folder)},
    "CLIPFeatures": lambda folder: {"path": clip(folder)},
    "CLIPScore": lambda folder: {"path": clip(folder)},
    "DINOFeatures": lambda folder: {"path": str(tiny_dino(folder))},
    "HPSv2": lambda folder: {"path": str(tiny_hps(folder)), "base": clip(folder)},
    "ImageReward": lambda folder: {
        "path": str(tiny_image_reward(folder)),
        "tokenizer": str(tiny_bert_tokenizer(folder / "tokenizer")),
    },
    "PickScore": lambda folder: {"path": clip(folder), "processor": str(folder / "clip")},
    "RemoteReward": serving,
    **LISTS,
    "FlippedPairs": flipped,
    "UserSplit": lambda folder: {"source": ToyPairs(30)},
    "UserTokens": lambda folder: {
        "encoder": Counting(),
        "support": ToyPairs,
        "audiences": {"one": ["user0"], "other": ["user1", "user0"]},
    },
}
