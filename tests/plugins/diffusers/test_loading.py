"""Where parts come from: folders, hub ids with a revision, variants, single files; and what is refused."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from alignkit.testing.pipelines import tiny_flux, tiny_stable_diffusion, tiny_stable_diffusion_xl
from alignkit_diffusers.flux import Flux
from alignkit_diffusers.loading import PipelineFolder, SingleFile
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusers.stable_diffusion_xl import StableDiffusionXL
from tests.plugins.diffusers.single_file import write_single_file

CPU = torch.device("cpu")
# diffusers still gives the hub's client an argument that it no longer reads
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
PROMPTS = ["red apple", ""]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(folder, tmp_path_factory.mktemp("file") / "model.safetensors")


def assert_same(first: StableDiffusion, second: StableDiffusion) -> None:
    """Every weight of the network, and what autoencoder and text encoder say, bit for bit."""
    ours, theirs = (dict(backbone.build_policy().named_parameters()) for backbone in (first, second))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
        assert weight.dtype == torch.float32
    image_NCHW = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    for mine, others in zip(first.encode_images(image_NCHW), second.encode_images(image_NCHW), strict=True):
        assert torch.equal(mine, others)
    assert torch.equal(first.decode(torch.ones(1, 4, 8, 8)), second.decode(torch.ones(1, 4, 8, 8)))
    assert torch.equal(*(backbone.encode_prompts(PROMPTS, CPU)[0] for backbone in (first, second)))


def test_a_single_file_is_the_pipeline_that_it_was_made_of(folder: Path, file: Path) -> None:
    assert_same(StableDiffusion(str(file), config=str(folder)), StableDiffusion(str(folder)))


def test_only_settings_and_tokenizers_come_from_beside_a_single_file(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    beside = shutil.copytree(folder, tmp_path / "beside")
    for path in beside.rglob("*.safetensors"):
        path.unlink()
    assert_same(StableDiffusion(str(file), config=str(beside)), StableDiffusion(str(folder)))


def test_text_encoders_that_a_single_file_lacks_come_from_beside_it(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    weights = {name: value for name, value in load_file(file).items() if not name.startswith("cond_stage")}
    save_file(weights, tmp_path / "bare.safetensors")
    bare = StableDiffusion(str(tmp_path / "bare.safetensors"), config=str(folder))
    assert_same(bare, StableDiffusion(str(folder)))


def test_a_single_file_in_half_precision_is_trained_in_float32(folder: Path, tmp_path: Path) -> None:
    path = write_single_file(folder, tmp_path / "half.safetensors", torch.float16)
    policy = StableDiffusion(str(path), config=str(folder)).build_policy()
    stored = StableDiffusion(str(folder)).build_policy()
    for weight, whole in zip(policy.parameters(), stored.parameters(), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, whole.half().float())


def test_a_transformer_in_diffusers_own_names_is_a_single_file_too(tmp_path: Path) -> None:
    """As transformers are often published alone; the rest is that of the pipeline beside it."""
    beside = tiny_flux(tmp_path / "beside")
    source = tiny_flux(tmp_path / "source", seed=1)
    path = source / "transformer/diffusion_pytorch_model.safetensors"
    policy = Flux(str(path), config=str(beside), resolution=16).build_policy()
    stored = load_file(path)
    other = load_file(beside / "transformer/diffusion_pytorch_model.safetensors")
    found = dict(policy.named_parameters())
    assert found.keys() == stored.keys()
    assert all(torch.equal(weight, stored[name]) for name, weight in found.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in found.items())


def test_a_variant_is_the_one_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert_same(StableDiffusion(str(tmp_path)), StableDiffusion(str(folder)))
    halved = StableDiffusion(str(tmp_path), variant="fp16")
    stored = StableDiffusion(str(folder)).build_policy()
    for weight, whole in zip(halved.build_policy().parameters(), stored.parameters(), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, whole.half().float())
    with pytest.raises(
        ValueError, match=r"\(variant fp8\).*\nThere is diffusion_pytorch_model\..*; give another variant"
    ):
        StableDiffusion(str(tmp_path), variant="fp8").build_policy()


def on_hub(cache: Path, name: str, revisions: dict[str, Path]) -> None:
    """Puts folders where the hub's client keeps what it downloaded, a commit for each branch or tag."""
    home = cache / f"models--{name.replace('/', '--')}"
    for number, (revision, folder) in enumerate(revisions.items()):
        commit = f"{number:040x}"
        shutil.copytree(folder, home / "snapshots" / commit)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / revision).write_text(commit)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id with two revisions, as far as this machine has it."""
    other = tiny_stable_diffusion(tmp_path / "other", "v_prediction", seed=1)
    on_hub(tmp_path / "cache", "someone/tiny", {"main": folder, "v2": other})
    for module in (
        "huggingface_hub.constants",
        "huggingface_hub.file_download",
        "diffusers.configuration_utils",
        "diffusers.utils.hub_utils",
        "transformers.utils.hub",
    ):
        for constant in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
            monkeypatch.setattr(f"{module}.{constant}", str(tmp_path / "cache"), raising=False)
    return "someone/tiny"


def test_a_revision_of_a_hub_id_is_the_one_that_is_asked_for(hub: str, folder: Path, tmp_path: Path) -> None:
    """All of it: scheduler and configs, not the weights alone."""
    main, second = StableDiffusion(hub), StableDiffusion(hub, revision="v2")
    assert (main.prediction_type, second.prediction_type) == ("epsilon", "v_prediction")
    assert_same(main, StableDiffusion(str(folder)))
    assert_same(second, StableDiffusion(str(tmp_path / "other")))


def test_a_hub_id_stays_at_the_commit_that_it_was_first_read_at(
    hub: str, folder: Path, tmp_path: Path
) -> None:
    """A branch that moves meanwhile does not give parts of two pipelines; the record says which it was."""
    backbone = StableDiffusion(hub)
    assert backbone.origins() == {"base": hub, "base commit": "0" * 40}
    (tmp_path / "cache/models--someone--tiny/refs/main").write_text(f"{1:040x}")
    assert_same(backbone, StableDiffusion(str(folder)))
    assert StableDiffusion(hub).origins()["base commit"] == f"{1:040x}"
    assert StableDiffusion(str(folder)).origins() == {"base": str(folder)}


def test_a_revision_that_there_is_not_is_named(hub: str) -> None:
    with pytest.raises(ValueError, match=r"cannot load the .* of 'someone/tiny' \(revision v3\)"):
        StableDiffusion(hub, revision="v3")


class Bomb(nn.Module):
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


def test_pickles_are_never_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where they are the only weights, nor where they are named."""
    monkeypatch.chdir(tmp_path)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        for path in (pickled / part).glob("*.safetensors"):
            path.unlink()
        torch.save({"conv_in.weight": Bomb()}, pickled / part / f"{name}.bin")
    backbone = StableDiffusion(str(pickled))
    with pytest.raises(ValueError, match=r"(?s)cannot load the unet.*Only safetensors .* never pickles"):
        backbone.build_policy()
    with pytest.raises(ValueError, match=r"(?s)cannot load the text_encoder.*never pickles"):
        backbone.encode_prompts(["a"], CPU)
    for name in ("model.ckpt", "model.bin"):
        torch.save({"state_dict": Bomb()}, tmp_path / name)
        with pytest.raises(ValueError, match=rf"path '{name}' is a pickle, which runs code"):
            StableDiffusion(name, config=str(folder))
    assert not (tmp_path / "exploded").exists()


def use(path: Path) -> None:
    """Loads every part."""
    backbone = StableDiffusion(str(path))
    backbone.build_policy()
    backbone.encode_prompts(["a"], CPU)
    backbone.decode(torch.ones(1, 4, 8, 8))


ASKED_FOR = {
    "text_encoder/config.json": {"auto_map": {"AutoModel": "evil.Evil"}},
    "unet/config.json": {"auto_map": {"AutoModel": "evil.Evil"}},
    "vae/config.json": {"trust_remote_code": True},
    "text_encoder/config.json ": {"attn_implementation": "someone/kernel"},
    "model_index.json": {"unet": ["evil", "Evil"]},
    "model_index.json ": {"_class_name": ["evil", "Evil"]},
    "model_index.json  ": {"custom_pipeline": "someone/pipeline"},
}


@pytest.mark.parametrize("place", ASKED_FOR)
def test_code_that_comes_with_a_model_is_refused_and_not_run(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the folder, and in the folder of a part, is the module that is asked for."""
    monkeypatch.chdir(tmp_path)
    hostile = shutil.copytree(folder, tmp_path / "hostile")
    for home in (tmp_path, hostile, hostile / "unet", hostile / "text_encoder"):
        (home / "evil.py").write_text("open('exploded', 'w')\nclass Evil: pass\n")
    path, asked = hostile / place.strip(), ASKED_FOR[place]
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    key = re.escape(next(iter(asked)))
    with pytest.raises(ValueError, match=rf"(?s)^StableDiffusion: '.*hostile.*' .*own: {key}.*never run"):
        use(hostile)
    assert not (tmp_path / "exploded").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "holds weights alone; give config: a pipeline folder or hub id of the same kind"),
        ({"config": "FOLDER", "revision": "main"}, "revision 'main' does not go with a single file"),
        ({"config": "FOLDER", "variant": "fp16"}, "variant 'fp16' does not go with a single file"),
        (
            {"config": "nowhere/at/all"},
            "config: path 'nowhere/at/all' is no pipeline folder",
        ),
    ],
)
def test_what_does_not_go_with_a_single_file(
    folder: Path, file: Path, options: dict[str, str], message: str
) -> None:
    given = {name: value.replace("FOLDER", str(folder)) for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        StableDiffusion(str(file), **given)


def test_what_does_not_go_with_a_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"config is for a single file, but path .* leave it out"):
        StableDiffusion(str(folder), config=str(folder))
    with pytest.raises(ValueError, match=r"revision 'main' is for a hub id, but path .* is a folder here"):
        StableDiffusion(str(folder), revision="main")


def test_a_single_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file 'no/such\.safetensors'"):
        StableDiffusion("no/such.safetensors", config=str(folder))


def test_a_single_file_of_another_shape_is_refused(folder: Path, file: Path, tmp_path: Path) -> None:
    """Not with random weights where the file has none, and not with an error of the converter's."""
    larger = tiny_stable_diffusion_xl(tmp_path / "xl")
    with pytest.raises(ValueError, match=r"unet.*\n?.*shape"):
        StableDiffusionXL(str(file), config=str(larger)).build_policy()
    weights = load_file(file)
    del weights["model.diffusion_model.middle_block.0.in_layers.0.weight"]
    save_file(weights, tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match="unet"):
        StableDiffusion(str(tmp_path / "partial.safetensors"), config=str(folder)).build_policy()


def test_a_broken_file_is_named(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / UNET).write_bytes((broken / UNET).read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot load the unet of"):
        StableDiffusion(str(broken)).build_policy()
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x00" * 10)
    with pytest.raises(ValueError, match=r"cannot load the unet out of .*model\.safetensors"):
        StableDiffusion(str(path), config=str(folder)).build_policy()


def test_a_trained_network_is_read_from_a_runs_folder(folder: Path, file: Path, tmp_path: Path) -> None:
    """Whatever the run was started from."""
    backbone = StableDiffusion(str(file), config=str(folder))
    policy = backbone.build_policy()
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    backbone.save(policy, tmp_path)
    loaded = backbone.load(tmp_path)
    for weight, trained in zip(loaded.parameters(), policy.parameters(), strict=True):
        assert torch.equal(weight, trained)


def test_stores_read_no_weights_until_they_are_asked(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    path.touch()
    store = SingleFile("Somebody", path, PipelineFolder("Somebody", str(folder)))
    assert store.index["_class_name"] == "StableDiffusionPipeline"
