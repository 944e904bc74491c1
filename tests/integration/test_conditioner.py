"""Runs that tell the policy who is looking, through the command line, on a tiny pipeline."""

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from alignkit import Batch, Encoded, Key, PairRecord
from alignkit.checkpoints import read
from alignkit.data.dataset import PairDataset, collate
from alignkit.module import AlignModule
from alignkit.policy import TokensOff
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusers.stable_diffusion_xl import StableDiffusionXL
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_ppd.conditioner import FILE, WEIGHTS, UserTokens
from alignkit_standard.sampler import SharedNoise
from tests.integration.conftest import NoisyPairs
from tests.plugins.ppd.people import Counting
from tests.runs import environment

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
conditioner:
  name: UserTokens
  encoder: {{class_path: tests.plugins.ppd.people.Counting}}
  support: {{class_path: tests.integration.test_conditioner.JudgedPairs}}
  audiences: {{bright: [u0], dark: [u1]}}
sampler: SharedNoise
backbone:
  name: StableDiffusion
  path: {pipeline}
  caption_dropout: 0.2
optimizer: {{name: AdamW, lr: 1.0e-2}}
model: {{warmup_steps: 3}}
data:
  train: {{class_path: tests.integration.test_conditioner.JudgedPairs}}
  validation:
    class_path: tests.integration.test_conditioner.JudgedPairs
    init_args: {{count: 20, first: 900}}
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 2, images_per_prompt: 2, num_steps: 2, guidance: 2.0, rewards: [MajorityTaste]}}
samples: {{every: 5, num_prompts: 2, num_steps: 2}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 10
  log_every_n_steps: 1
  enable_progress_bar: false
"""
SHORT = ("--evaluation.max_prompts", "0", "--samples.num_prompts", "0")


class JudgedPairs(NoisyPairs):
    """The noisy pairs, judged by four people in turn; every second likes what the others do not."""

    def __init__(self, count: int = 60, first: int = 0) -> None:
        super().__init__(count)
        self.first = first

    def __getitem__(self, index: int) -> PairRecord:
        record = super().__getitem__(index)
        user = index // 2 % 4
        label_0 = 1 - record.label_0 if user % 2 else record.label_0
        return record._replace(id=record.id + self.first, label_0=label_0, user=f"u{user}")

    def labels(self) -> list[float]:
        return [1 - label if i // 2 % 4 % 2 else label for i, label in enumerate(super().labels())]


@pytest.fixture
def config(pipeline: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(pipeline=pipeline))
    return str(path)


def assert_same(first: Path, second: Path, tolerance: float = 0) -> None:
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, weight in ours.items():
        assert_close(weight, theirs[name], rtol=0, atol=tolerance)


def test_run_leaves_projections_and_people_and_no_copy_of_the_base(
    alignkit: Run, config: str, tmp_path: Path
) -> None:
    code, _, err = alignkit("fit", "--config", config)
    assert code == 0, err
    assert "4 users known by 10 sets of 4 pairs" in err
    assert "margin 0 (exactly 0), loss of DiffusionDPO 0.693147" in err
    run = tmp_path / "runs" / "tiny"
    assert (run / FILE).is_file()
    assert not (run / "unet").exists()
    weights = load_file(run / WEIGHTS)
    assert {name.rpartition("processor.")[2] for name in weights} == {"to_k.weight", "to_v.weight"}
    assert all(weight.abs().max() > 0 for weight in weights.values())
    checkpoint = read(run / "checkpoints" / "last.ckpt")
    assert set(checkpoint["state_dict"]) == {f"policy.{name}" for name in weights}
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["audiences"]) == ["bright", "dark"]
    for report in summary["audiences"].values():
        assert report["MajorityTaste"]["difference"]["mean"] != 0


def drawn(folder: Path, label: str) -> bytes:
    with Image.open(folder / f"a-red-apple-0-{label}.png") as picture:
        return picture.tobytes()


def test_pictures_are_drawn_for_people(alignkit: Run, config: str, tmp_path: Path) -> None:
    """For one, for somebody between two, for a new one by four pairs; for nobody it is the base exactly."""
    code, _, err = alignkit("fit", "--config", config, "--run", "run", *SHORT)
    assert code == 0, err
    lines = []
    for i in range(4):
        record = JudgedPairs()[2 * i]
        for side, data in (("chosen", record.image_0), ("rejected", record.image_1)):
            (tmp_path / f"{side}{i}.png").write_bytes(data)
        lines.append(
            json.dumps({"prompt": record.prompt, "chosen": f"chosen{i}.png", "rejected": f"rejected{i}.png"})
        )
    (tmp_path / "four.jsonl").write_text("\n".join(lines))
    whom = {
        "nobody": (),
        "one": ("--user", "u0"),
        "other": ("--user", "u1"),
        "end": ("--mix", "u0=1", "u1=0"),
        "between": ("--mix", "u0=0.5", "u1=0.5"),
        "new": ("--pairs", "four.jsonl"),
        "switched off": ("--user", "u0", "--user-scale", "0"),
    }
    pictures = {}
    for name, options in whom.items():
        command = ("generate", "--run", "run", "--prompt", "a red apple", "--num", "1", "--out", name)
        code, _, err = alignkit(*command, *options)
        assert code == 0, err
        pictures[name] = drawn(tmp_path / name, "aligned")
        assert drawn(tmp_path / name, "base") == pictures["nobody"]
    assert pictures["nobody"] == pictures["switched off"]
    assert pictures["one"] == pictures["end"]
    assert len({pictures[name] for name in ("nobody", "one", "other", "between", "new")}) == 5


def test_mistakes_are_told_in_a_few_words(alignkit: Run, config: str) -> None:
    code, _, err = alignkit("fit", "--config", config, "--run", "run", *SHORT, "--trainer.max_steps", "1")
    assert code == 0, err
    draw = ("generate", "--run", "run", "--prompt", "a red apple", "--num", "1")
    for options, told in (
        (("--user", "u9"), "no pairs of user 'u9' were read; known are u0, u1, u2, u3"),
        (("--mix", "u0=0.7"), "--mix: shares must sum to 1, got 0.7"),
        (("--user", "u0", "--pairs", "four.jsonl"), "not allowed with argument"),
        (("--pairs", "four.jsonl"), "--pairs: there is no file 'four.jsonl'"),
    ):
        code, _, err = alignkit(*draw, *options)
        assert code == 2
        assert told in err
        assert "Traceback" not in err
    for options, told in (
        (("--backbone.lora.rank", "2"), "UserTokens: with a conditioner, that alone is trained"),
        (("--conditioner.audiences", "{lost: [u9]}"), "UserTokens: no pairs of user 'u9' were read"),
        (("--conditioner.num_pairs", "40"), "UserTokens: none of 4 users has 40 decided pairs, in 60 pairs"),
        (("--conditioner.dropout", "2"), "UserTokens: dropout must be from 0 to 1, got 2.0"),
        (("--data.train", "tests.integration.conftest.NoisyPairs"), "is not among the support pairs"),
    ):
        code, _, err = alignkit("fit", "--config", config, "--run", "bad", *SHORT, *options)
        assert code == 2
        assert told in err
        assert not Path("bad").exists()


def test_resumed_run_is_bit_equal(alignkit: Run, config: str, tmp_path: Path) -> None:
    """Ten steps straight against four, saved in the middle of an epoch of six batches, and six more."""
    ema = ("--trainer.callbacks=alignkit.callbacks.EMA", "--trainer.callbacks.decay=0.9")
    code, _, err = alignkit("fit", "--config", config, "--run", "straight", *SHORT, *ema)
    assert code == 0, err
    stop = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "4")
    code, _, err = alignkit("fit", "--config", config, "--run", "resumed", *SHORT, *ema, *stop)
    assert code == 0, err
    resume = ("--ckpt_path", "resumed/checkpoints/last.ckpt")
    code, _, err = alignkit("fit", "--config", config, "--run", "resumed", *SHORT, *ema, *resume)
    assert code == 0, err
    for file in (FILE, WEIGHTS):
        assert_same(tmp_path / "straight" / file, tmp_path / "resumed" / file)
    other = ("--run", "other", "--conditioner.seed", "1", "--allow-change", "conditioner.seed")
    code, _, err = alignkit("fit", "--config", config, *SHORT, *ema, *resume, *other)
    assert code == 2
    assert "the checkpoint was trained with other embeddings of users" in err


def test_validate_scores_a_checkpoint(alignkit: Run, config: str, tmp_path: Path) -> None:
    code, _, err = alignkit("fit", "--config", config, "--run", "run", *SHORT)
    assert code == 0, err
    code, _, err = alignkit("validate", "--config", config, "--ckpt_path", "run/checkpoints/last.ckpt")
    assert code == 0, err
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    checked = json.loads((tmp_path / "runs" / "tiny-validate" / "summary.json").read_text())
    assert checked["held_out"] == trained["held_out"]
    assert list(checked["audiences"]) == ["bright", "dark"]


def test_users_can_be_embedded_once_for_many_runs(alignkit: Run, config: str, tmp_path: Path) -> None:
    code, out, err = alignkit("users", "--config", config, "--out", "people.safetensors")
    assert code == 0, err
    assert "4 users known by 10 sets of 4 pairs; descriptions cut off: 1, in people.safetensors" in out
    given = ("--conditioner.embeddings", "people.safetensors")
    for run, options in (("made", ()), ("given", given)):
        code, _, err = alignkit("fit", "--config", config, "--run", run, *SHORT, *options)
        assert code == 0, err
    for file in (FILE, WEIGHTS):
        assert_same(tmp_path / "made" / file, tmp_path / "given" / file)


def test_mistakes_of_the_users_command(alignkit: Run, config: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    text = (tmp_path / "tiny.yaml").read_text()
    plain.write_text(text[: text.index("conditioner:")] + text[text.index("sampler:") :])
    for arguments, told in (
        (("--config", str(plain), "--out", "x"), "its conditioner must be UserTokens"),
        (("--config", "nowhere.yaml", "--out", "x"), "no config 'nowhere.yaml'"),
        (("--config", config), "the following arguments are required: --out"),
    ):
        code, _, err = alignkit("users", *arguments)
        assert code == 2
        assert told in err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_two_processes_embed_once_and_give_the_same_weights_as_one(config: str, tmp_path: Path) -> None:
    # plain descent: in its first steps Adam makes of a rounding error in a small gradient a whole step
    plain = ("--optimizer=SGD", "--optimizer.lr=0.1")
    ddp = ("--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp")
    for run, options in (("one", ()), ("two", ddp)):
        command = [
            sys.executable,
            "-m",
            "alignkit.cli",
            "--trust",
            "tests",
            "fit",
            f"--config={config}",
            f"--run={run}",
        ]
        done = subprocess.run(
            [*command, *SHORT, *plain, *options],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "one" / FILE, tmp_path / "two" / FILE)
    assert_same(tmp_path / "one" / WEIGHTS, tmp_path / "two" / WEIGHTS, 1e-6)


BACKBONES = {"pipeline": StableDiffusion, "xl_pipeline": StableDiffusionXL}


@pytest.fixture(params=list(BACKBONES))
def module(request: pytest.FixtureRequest) -> AlignModule:
    """A step without a Trainer, of either family."""
    backbone = BACKBONES[request.param](str(request.getfixturevalue(request.param)))
    conditioner = UserTokens(Counting(), dropout=0.0)
    module = AlignModule(
        DiffusionDPO(beta=200.0), SharedNoise(), backbone, torch.optim.AdamW, conditioner=conditioner
    )
    conditioner.use(conditioner.embed(JudgedPairs(), torch.device("cpu"), quiet=True))
    module.configure_model()
    module._report = Mock()  # type: ignore[method-assign] # there is no Trainer to log to
    return module


def batch_of(count: int = 4) -> Batch:
    pairs = PairDataset(JudgedPairs(), resolution=16)
    return collate([pairs[index, 0] for index in range(count)])


def logit_of(module: AlignModule, batch: Batch) -> Tensor:
    scored, *_ = module._report.call_args.args  # type: ignore[attr-defined]
    gain_KB = scored.logp_KB - scored.ref_logp_KB
    return 100.0 * (gain_KB[0] - gain_KB[1]).detach()


def test_step_is_diffusion_dpo_of_the_told_policy_against_the_base(module: AlignModule) -> None:
    """T4, against a base loaded anew: the loss is -log sigmoid of that margin; swapping negates it."""
    batch = batch_of()
    assert isinstance(module.reference, TokensOff)
    module.training_step(batch, 0)
    _, loss, *_ = module._report.call_args.args  # type: ignore[attr-defined]
    assert torch.equal(loss.loss_B.detach(), torch.full((4,), math.log(2)))
    for name, weight in module.policy.named_parameters():  # type: ignore[union-attr]
        if name.endswith("to_v.weight") and weight.requires_grad:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    told = module.training_step(batch, 0)
    key = Key(module.seed, batch.id_B, batch.visit_B)
    encoded = module._encode(batch, key)
    policy, reference = module._denoisers(encoded)
    sample = module.sampler(batch, encoded, policy, reference, key=key)
    base = module.backbone.build_policy()

    def error_KB(network: torch.nn.Module, said: Encoded) -> Tensor:
        prediction_KBCHW = module.backbone.predict(network, sample.x_KBCHW, sample.t_KB, said)
        return (prediction_KBCHW - sample.target_KBCHW).square().mean((2, 3, 4))

    assert module.policy is not None
    change_KB = error_KB(module.policy, encoded) - error_KB(base, encoded._replace(tokens_BLD=None))
    expected_B = -100.0 * (change_KB[0] - change_KB[1])
    logit_B = logit_of(module, batch)
    assert logit_B.abs().min() > 1e-3
    assert_close(logit_B, expected_B.detach(), rtol=1e-3, atol=1e-4)
    assert_close(told.detach(), (1 + (-logit_B).exp()).log().mean())
    module.training_step(batch._replace(image_KBCHW=batch.image_KBCHW.flip(0)), 0)
    assert_close(logit_of(module, batch), -logit_B, rtol=1e-3, atol=1e-4)


def test_guided_step_reads_the_user_in_its_prompted_half_only(module: AlignModule) -> None:
    """The other half is the base under the empty prompt, so that guidance amplifies the user, too."""
    network = module.policy.eval()  # type: ignore[union-attr]
    tokens_NLD = module.conditioner._of("u0")[None]  # type: ignore[union-attr, operator]
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(
        lambda _, __, options: seen.append(options["cross_attention_kwargs"]["tokens_NLD"]), with_kwargs=True
    )
    module.backbone.generate(
        network, ["a red apple"], seeds=[1], num_steps=1, guidance=3.0, tokens_NLD=tokens_NLD
    )
    handle.remove()
    assert torch.equal(seen[0], torch.cat([torch.zeros_like(tokens_NLD), tokens_NLD]))


def test_people_of_these_pairs_are_opposed() -> None:
    """The fixture itself: who likes the bright picture is followed by who does not."""
    for index in range(8):
        record = JudgedPairs()[index]
        if record.label_0 == 0.5:
            continue
        liked = record.image_0 if record.label_0 else record.image_1
        with Image.open(io.BytesIO(liked)) as picture:
            bright = sum(picture.convert("L").tobytes()) / 256 > 127
        assert bright == (record.user in ("u0", "u2"))
