"""A tiny random pipeline on disk and pairs in memory, of the classes that users have."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from alignkit import PairRecord, PairSource
from alignkit_emoji.build.tokenizer import build_tokenizer

WORDS = ("a", "red", "green", "apple", "pear")


def tiny_pipeline(folder: Path, prediction_type: str = "epsilon") -> Path:
    """Writes a random StableDiffusionPipeline of about 60,000 weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(WORDS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            mid_block_add_attention=False,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


class NoisyPairs(PairSource):
    """Pairs of random pictures; every fifth is a tie, and the winner stands second in every other one."""

    def __init__(self, count: int = 60) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> PairRecord:
        if not 0 <= index < self.count:
            raise IndexError(index)
        label_0 = self.labels()[index]
        best, worst = self._picture(2 * index, bright=True), self._picture(2 * index + 1, bright=False)
        images = (worst, best) if label_0 == 0 else (best, worst)
        return PairRecord(1000 + index, self.prompts()[index], *images, label_0)

    def labels(self) -> list[float]:
        return [0.5 if index % 5 == 4 else float(index % 2) for index in range(self.count)]

    def prompts(self) -> list[str]:
        return [f"a {WORDS[1 + index % 2]} {WORDS[3 + index % 3 % 2]}" for index in range(self.count)]

    def _picture(self, seed: int, *, bright: bool) -> bytes:
        generator = np.random.default_rng(seed)
        pixels = generator.integers(128, size=(16, 16, 3)) + 127 * bright
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="session")
def v_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "v", "v_prediction")


@pytest.fixture
def alignkit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the command line in this process, in an empty folder; gives exit code, output and errors."""
    from alignkit.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
        for handler in logging.getLogger("lightning").handlers:
            assert isinstance(handler, logging.StreamHandler)
            handler.stream = sys.stderr  # not that of the test that imported lightning
        capsys.readouterr()
        try:
            code = main(list(arguments))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    yield run
    # the run's folder is handed to DDP's processes through the environment
    monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
