"""What `alignkit export` says, writes beside the weights, sends, and refuses."""

import hashlib
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from alignkit import cli
from alignkit.checkpoints import read
from alignkit_diffusers import formats, hub
from alignkit_diffusers.formats import FORMATS
from tests.plugins.diffusers.exports import FAMILIES, Trained, export, fit, lora

pytestmark = pytest.mark.slow
EMA = "[{class_path: alignkit.callbacks.EMA, init_args: {decay: 0.5}}]"
SD = FAMILIES["sd"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that trained adapters and kept an average of them."""
    folder = tmp_path_factory.mktemp("averaged")
    settings = lora(("to_q", "to_v"))
    return fit(SD, SD.write(folder / "base"), folder / "plums", lora=settings, callbacks=EMA)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that trained all weights."""
    folder = tmp_path_factory.mktemp("full")
    return fit(SD, SD.write(folder / "base"), folder / "run", lora="null")


@pytest.fixture
def copied(run: Trained, tmp_path: Path) -> Trained:
    """The same run, to be spoilt."""
    return run._replace(folder=Path(shutil.copytree(run.folder, tmp_path / "copied", symlinks=True)))


def refused(capsys: pytest.CaptureFixture[str], run: Trained, *arguments: str | Path) -> str:
    """What the command says when it refuses."""
    assert cli.main(["export", "--run", str(run.folder), *map(str, arguments)]) == 2
    return capsys.readouterr().err


def named(path: Path) -> dict[str, Tensor]:
    return {name.removeprefix("unet."): weight for name, weight in load_file(path).items()}


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_it_says_what_was_written_how_large_and_how_to_load_it(
    run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, "--format", "lora", "--out", tmp_path / "out")
    first, *files, code = capsys.readouterr().out.split("\n", 3)
    assert first == (
        f"lora, float32, of the end of the run, moving average of the weights: {tmp_path / 'out'}"
    )
    for line, name in zip(files, ("README.md", "pytorch_lora_weights.safetensors"), strict=True):
        size, unit, path = line.split()
        assert path == str(tmp_path / "out" / name)
        assert unit == "kB"
        assert float(size) == pytest.approx(Path(path).stat().st_size / 1000, rel=0.01)
    assert f'pipeline.load_lora_weights("{tmp_path / "out"}"' in code


def test_the_default_place_is_in_the_run(copied: Trained) -> None:
    export(copied, "--format", "kohya")
    found = {path.name for path in (copied.folder / "export" / "kohya").iterdir()}
    assert found == {"copied.safetensors", "README.md"}


def test_the_files_are_readable_by_others(run: Trained, tmp_path: Path) -> None:
    """As any file that is made anew: safetensors would leave its own to their owner."""
    (tmp_path / "plain").touch()
    export(run, "--format", "kohya", "--out", tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_adapters_are_those_of_the_run_and_its_average(run: Trained, tmp_path: Path) -> None:
    """By default the average, which the run was evaluated with; --raw the weights themselves."""
    state = read(run.folder / "checkpoints" / "last.ckpt")
    average = state["callbacks"]["EMA"]["average"]
    raw = {name.removeprefix("policy."): w for name, w in state["state_dict"].items()}
    assert average.keys() == raw.keys()
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    for options, expected in (
        ((), average),
        (("--ema",), average),
        (("--raw",), raw),
        (("--checkpoint", "last"), average),
        (("--checkpoint", run.folder / "checkpoints" / "epoch=0-step=3.ckpt", "--raw"), raw),
    ):
        export(run, "--format", "lora", "--out", tmp_path / "a.safetensors", "--overwrite", *options)
        found = named(tmp_path / "a.safetensors")
        assert len(found) == len(expected)
        for name, weight in expected.items():
            assert_close(found[name.replace(".default", "")], weight, rtol=0, atol=0)


def test_all_weights_of_a_checkpoint_are_exported(full: Trained, tmp_path: Path) -> None:
    export(full, "--format", "diffusers", "--checkpoint", "last", "--out", tmp_path / "out")
    state = read(full.folder / "checkpoints" / "last.ckpt")["state_dict"]
    network = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    assert len(state) == len(list(network.parameters()))
    for name, weight in network.named_parameters():
        assert_close(weight.detach(), state[f"policy.{name}"], rtol=0, atol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the run's checkpoint epoch=0-step=3.ckpt, step 3" in card
    assert "Not measured for these weights" in card


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_weights_have_the_asked_dtype(
    run: Trained, tmp_path: Path, format_: str, name: str, dtype: torch.dtype
) -> None:
    export(run, "--format", format_, "--dtype", name, "--out", tmp_path / "out")
    files = [
        path for path in (tmp_path / "out").rglob("*.safetensors") if path.parent.name in ("out", "unet")
    ]
    assert len(files) == 1
    for key, weight in load_file(files[0]).items():
        assert weight.dtype == (torch.float32 if key.endswith(".alpha") else dtype), key


def test_numbers_that_a_dtype_cannot_hold_are_refused(
    copied: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled(copied.folder, 1e9)
    message = refused(capsys, copied, "--format", "lora", "--dtype", "float16", "--out", tmp_path / "out")
    assert re.search(
        r"--dtype: .*lora_[AB].* reaches \S+, more than torch.float16 holds; give --dtype bf", message
    )
    assert not (tmp_path / "out").exists()
    scaled(copied.folder, float("nan"))
    message = refused(capsys, copied, "--format", "merged", "--out", tmp_path / "out")
    assert "is not finite: the training diverged; nothing was written" in message
    assert [path.name for path in tmp_path.iterdir()] == ["copied"]


def scaled(folder: Path, factor: float) -> None:
    """Multiplies what a run trained."""
    path = folder / "pytorch_lora_weights.safetensors"
    weights, metadata = load_file(path), header(path)
    formats.save_file({name: weight * factor for name, weight in weights.items()}, path, metadata)


def test_kohyas_header_says_what_it_is(run: Trained, tmp_path: Path) -> None:
    """Every key that kohya's scripts want, and the hash of what follows the header."""
    path = tmp_path / "plums.safetensors"
    export(run, "--format", "kohya", "--out", path)
    said = header(path)
    raw = path.read_bytes()
    content = raw[8 + struct.unpack("<Q", raw[:8])[0] :]
    digest = hashlib.sha256(content).hexdigest()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said.pop("modelspec.date"))
    assert said.pop("modelspec.description").startswith("Trained with DiffusionDPO by alignkit ")
    assert said == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "plums",
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.license": "same as the base model: check",
        "modelspec.resolution": "16x16",
        "modelspec.prediction_type": "epsilon",
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "8",
        "ss_network_args": "{}",
        "ss_output_name": "plums",
        "sshs_model_hash": digest,
    }


def test_pefts_header_keeps_alpha(run: Trained, tmp_path: Path) -> None:
    export(run, "--format", "lora", "--out", tmp_path / "a.safetensors")
    said = json.loads(header(tmp_path / "a.safetensors")["lora_adapter_metadata"])
    assert (said["unet.r"], said["unet.lora_alpha"], said["unet.use_rslora"]) == (2, 8.0, False)


@pytest.mark.parametrize("format_", ["lora", "kohya", "comfyui", "merged"])
def test_rslora_draws_the_same_pictures(
    tmp_path: Path, format_: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its scale is alpha over the root of the rank."""
    run = special(tmp_path_factory, "rslora")
    export(run, "--format", format_, "--out", tmp_path / "a.safetensors")
    assert_drawn(run, tmp_path / "a.safetensors", format_)


@pytest.mark.parametrize("format_", ["lora", "merged"])
def test_dora_draws_the_same_pictures(
    tmp_path: Path, format_: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = special(tmp_path_factory, "dora")
    export(run, "--format", format_, "--out", tmp_path / "a.safetensors")
    assert_drawn(run, tmp_path / "a.safetensors", format_)


def special(factory: pytest.TempPathFactory, kind: str) -> Trained:
    """A run with adapters of another kind; each is trained once."""
    if kind not in SPECIAL:
        folder = factory.mktemp(kind)
        settings = lora(("to_q", "to_k", "to_v", "to_out.0"), rank=3, alpha=6.0, more=f", {kind}: true")
        SPECIAL[kind] = fit(SD, SD.write(folder / "base"), folder / "run", lora=settings)
    return SPECIAL[kind]


SPECIAL: dict[str, Trained] = {}


def assert_drawn(run: Trained, path: Path, format_: str) -> None:
    if format_ == "merged":
        network = UNet2DConditionModel.from_single_file(path, config=str(run.base), subfolder="unet")
        pipeline = run.plain(unet=network)
    else:
        pipeline = run.plain()
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
    drawn = run.theirs(pipeline)
    assert (drawn - run.theirs(run.plain())).abs().max() > 1e-2
    assert_close(drawn, run.ours(), rtol=0, atol=1e-5)


def test_dora_is_refused_where_it_would_be_lost(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = special(tmp_path_factory, "dora")
    for format_ in ("kohya", "comfyui"):
        assert "adapters are DoRA" in refused(capsys, run, "--format", format_, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_the_weights_are(run: Trained, tmp_path: Path) -> None:
    """Hashes are those of the files; figures and config those of the run."""
    scores = {
        "base": {"mean": 0.1, "low": 0.05, "high": 0.15},
        "aligned": {"mean": 0.3, "low": 0.2, "high": 0.4},
        "difference": {"mean": 0.2, "low": 0.1, "high": 0.3},
        "win_rate": {"mean": 0.75, "low": 0.6, "high": 0.9},
        "ratio": 3.0,
    }
    folder = Path(shutil.copytree(run.folder, tmp_path / "plums"))
    summary = json.loads((folder / "summary.json").read_text())
    judged = {"Taste": scores, "displacement": {"aligned": scores["aligned"]}}
    more = {"prompts": ["a", "b"], "images_per_prompt": 3, "num_steps": 20, "guidance": 7.5}
    (folder / "summary.json").write_text(json.dumps({**summary, **more, "scores": judged}))
    export(run._replace(folder=folder), "--format", "pipeline", "--out", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "other",
        "license_name": "same-as-the-base-model-check",
        "tags": ["alignkit", "diffusers", "text-to-image", "lora"],
    }
    assert "| Taste | 0.100 [0.050, 0.150] | 0.300 [0.200, 0.400] | 0.200 [0.100, 0.300] | 0.750" in body
    assert "| displacement |  | 0.300 [0.200, 0.400] |  |  |" in body
    assert "2 held-out prompts, 3 pictures of each; DDIM, 20 steps, guidance 7.5" in body
    assert "low-rank adapters trained with DiffusionDPO, SharedNoise, 3 optimizer steps" in body
    assert "- Method: [Diffusion Model Alignment Using Direct Preference Optimization]" in body
    assert f"- Base model: `{run.base}`; SHA-256 of its network's weights in float32 `" in body
    assert "- train: ToyPairs (count 60)" in body
    assert "## Licence\n\nsame as the base model: check" in body
    assert (folder / "config.yaml").read_text() in body
    files = dict(re.findall(r"^\| `(.+?)` \| `([0-9a-f]{64})` \|$", body, re.MULTILINE))
    assert files.keys() == {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.safetensors")
    }
    for name, digest in files.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def test_runs_from_one_base_name_the_same_base(run: Trained, full: Trained, tmp_path: Path) -> None:
    """Adapters stand on weights with longer names; the hash is of the weights themselves."""
    found = set()
    for one in (run, full):
        export(one, "--format", "diffusers", "--out", tmp_path / one.folder.name)
        card = (tmp_path / one.folder.name / "README.md").read_text()
        found |= set(re.findall(r"weights in float32 `([0-9a-f]{64})`", card))
    assert len(found) == 1


def test_nothing_is_overwritten_without_being_told(
    run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "a.safetensors"
    for place in (out, file):
        export(run, "--format", "kohya", "--out", place)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(before) == 4
    message = refused(capsys, run, "--format", "lora", "--out", out)
    assert f"--out {out}: holds an earlier export; give another place, or --overwrite" in message
    message = refused(capsys, run, "--format", "lora", "--out", file)
    assert f"--out {file}: {file} exists; give another place, or --overwrite" in message
    assert {path: path.read_bytes() for path in before} == before
    export(run, "--format", "lora", "--out", out, "--overwrite")
    assert {path.name for path in out.iterdir()} == {"README.md", "pytorch_lora_weights.safetensors"}
    export(run, "--format", "lora", "--out", file, "--overwrite")
    assert file.read_bytes() != before[file]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "a.safetensors", "a.md"}


def test_what_is_no_export_is_never_replaced(
    run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "README.md").write_text("mine")
    message = refused(capsys, run, "--format", "lora", "--out", tmp_path / "photos", "--overwrite")
    assert "the folder holds other things than an export, and is never replaced" in message
    message = refused(capsys, run, "--format", "lora", "--out", run.folder, "--overwrite")
    assert "the folder holds other things than an export" in message
    (tmp_path / "a.md").write_text("mine")
    message = refused(capsys, run, "--format", "lora", "--out", tmp_path / "a.safetensors", "--overwrite")
    assert "a.md is no model card of an export" in message
    assert (tmp_path / "a.md").read_text() == (tmp_path / "photos" / "README.md").read_text() == "mine"


def test_a_failed_export_leaves_the_old_one(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the weights and the card: the place has all of the old export and nothing of the new."""
    out = tmp_path / "out"
    export(run, "--format", "kohya", "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def broken(card: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr("alignkit_diffusers.export.written", broken)
    with pytest.raises(OSError, match="no space left"):
        cli.main(["export", "--run", str(run.folder), "--format", "lora", "--out", str(out), "--overwrite"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_fine_tune_has_no_adapters_to_export(
    full: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for format_ in ("lora", "kohya", "comfyui", "merged"):
        message = refused(capsys, full, "--format", format_, "--out", tmp_path / "out")
        assert f"--format {format_}: the run {full.folder} trained all weights and has no adapters" in message
        assert "the formats of such a run are diffusers, pipeline" in message
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_in_words(
    run: Trained, full: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--out", tmp_path / "out")
    for one, arguments, message in (
        (run, ("--format", "onnx"), "invalid choice: 'onnx'"),
        (
            run,
            ("--format", "pipeline", "--out", tmp_path / "a.safetensors"),
            "the format pipeline is a folder",
        ),
        (
            run,
            ("--format", "lora", *place, "--checkpoint", "none.ckpt"),
            "--checkpoint: there is no 'none.ckpt'",
        ),
        (
            full,
            ("--format", "diffusers", *place, "--ema"),
            f"--ema: the run {full.folder} keeps no moving average",
        ),
        (
            run,
            ("--format", "lora", *place, "--checkpoint", full.folder / "checkpoints" / "last.ckpt", "--raw"),
            "is not of this run's network",
        ),
        (run, ("--format", "lora", *place, "--public"), "--public is about --push"),
        (run, ("--format", "lora", *place, "--push", "plums"), "--push plums: give OWNER/NAME"),
        (run, ("--format", "lora", *place, "--push", "a/b/c"), "--push a/b/c: "),
        (
            run._replace(folder=tmp_path / "none"),
            ("--format", "lora"),
            "give the folder that `alignkit fit` said",
        ),
    ):
        assert message in refused(capsys, one, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_run_that_did_not_end_is_refused(
    copied: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its last checkpoint holds can still be had."""
    shutil.rmtree(copied.folder / "unet")
    (copied.folder / "pytorch_lora_weights.safetensors").unlink()
    message = refused(capsys, copied, "--format", "lora", "--out", tmp_path / "out")
    assert "no trained network there (unet/); did its training come to its end?; --checkpoint last" in message
    export(copied, "--format", "lora", "--out", tmp_path / "out", "--checkpoint", "last")
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_a_base_model_that_is_gone_is_named(
    copied: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copied.folder / "config.yaml"
    config.write_text(config.read_text().replace(str(copied.base), str(tmp_path / "gone")))
    message = refused(capsys, copied, "--format", "lora", "--out", tmp_path / "out")
    assert "cannot load the base model that it started from, which an export needs" in message
    assert f"path '{tmp_path / 'gone'}' is no pipeline folder" in message


def test_adapters_of_another_config_are_refused(
    copied: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copied.folder / "config.yaml"
    config.write_text(config.read_text().replace("- to_v", "- to_k"))
    message = refused(capsys, copied, "--format", "lora", "--out", tmp_path / "out")
    assert "are not those that the run's config asks for" in message


class Hub:
    """Stands for the hub: keeps what it is told."""

    def __init__(self, *, private: bool = True) -> None:
        self.private = private
        self.made: list[tuple[str, bool]] = []
        self.sent: dict[str, bytes] = {}

    def __call__(self) -> "Hub":
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.made.append((name, private))
        return f"https://huggingface.co/{name}"

    def repo_info(self, name: str) -> "Hub":
        return self

    def create_commit(self, name: str, operations: list[CommitOperationAdd], *, commit_message: str) -> None:
        assert name == self.made[-1][0]
        assert commit_message == "plums, lora"
        self.sent = {one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations}  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["out", "plums.safetensors"])
@pytest.mark.parametrize("public", [False, True])
def test_push_sends_exactly_what_was_written(
    run: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    public: bool,
) -> None:
    """To a private repository unless it is to be public; the card is the repository's."""
    fake = Hub(private=not public)
    monkeypatch.setattr(hub, "HfApi", fake)
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    (tmp_path / "other.txt").touch()
    more = ["--public"] if public else []
    export(run, "--format", "lora", "--out", tmp_path / place, "--push", "someone/plums", *more)
    assert fake.made == [("someone/plums", not public)]
    written = (tmp_path / place).parent if place.endswith(".safetensors") else tmp_path / place
    weights = place if place.endswith(".safetensors") else "pytorch_lora_weights.safetensors"
    card = "plums.md" if place.endswith(".safetensors") else "README.md"
    assert fake.sent == {
        weights: (written / weights).read_bytes(),
        "README.md": (written / card).read_bytes(),
    }
    assert 'pipeline.load_lora_weights("someone/plums"' in fake.sent["README.md"].decode()
    assert "sent to https://huggingface.co/someone/plums" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("token", "api", "message"),
    [
        (None, Hub(), "there is no token to send with; log in with `hf auth login`"),
        ("token", Hub(private=False), "this repository is public; give --public if all may have"),
        ("token", OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set, so the hub is not asked"),
        ("token", ConnectionError("no route to host"), "the hub cannot be reached: no route to host"),
    ],
)
def test_what_cannot_be_sent_is_written_and_says_why(
    run: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    api: Any,
    message: str,
) -> None:
    def asked() -> Any:
        if isinstance(api, Exception):
            raise api
        return api

    monkeypatch.setattr(hub, "HfApi", asked)
    monkeypatch.setattr(hub, "get_token", lambda: token)
    told = refused(capsys, run, "--format", "lora", "--out", tmp_path / "out", "--push", "someone/plums")
    assert f"--push someone/plums: {message}" in told
    assert "Nothing is lost: all is written where it says above" in told
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_help_lists_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    text = capsys.readouterr().out
    for name, format_ in FORMATS.items():
        assert re.search(rf"^  {name} +{re.escape(format_.help)}$", text, re.MULTILINE)
