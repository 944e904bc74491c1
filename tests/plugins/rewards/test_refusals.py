"""What is not there, is something else, or wants to run code: named, and nothing of it runs."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from alignkit_rewards import places
from alignkit_rewards.aesthetic import Aesthetic
from alignkit_rewards.clip_score import CLIPScore
from alignkit_rewards.features import CLIPFeatures, DINOFeatures
from alignkit_rewards.hpsv2 import HPSv2
from alignkit_rewards.image_reward import ImageReward
from alignkit_rewards.pick_score import PickScore
from alignkit_rewards.places import PINNED, model, single_file
from tests.plugins.rewards.models import head_weights, tiny_bert_tokenizer, tiny_clip, tiny_dino, tiny_hps


class Canary:
    """A pickle of it writes a file when it is read by what reads objects."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that must not appear, and beside it the pickle that would make it."""
    path = tmp_path / "canary"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Canary(path)}, protocol=2))
    torch.save({"state_dict": Canary(path)}, tmp_path / "evil_zip.pt")
    return path


def test_the_canary_would_sing(canary: Path) -> None:
    pickle.loads((canary.parent / "evil.pt").read_bytes())
    assert canary.exists()


@pytest.mark.parametrize("name", ["evil.pt", "evil_zip.pt"])
def test_pickles_that_need_code_are_refused_and_do_not_run(canary: Path, name: str) -> None:
    evil, clip = str(canary.parent / name), str(tiny_clip(canary.parent / "clip"))
    tokenizer = str(tiny_bert_tokenizer(canary.parent / "tokenizer"))
    for owner, build in (
        ("Aesthetic", lambda: Aesthetic(evil, path=clip)),
        ("HPSv2", lambda: HPSv2(evil, base=clip)),
        ("ImageReward", lambda: ImageReward(evil, tokenizer=tokenizer)),
    ):
        with pytest.raises(
            ValueError, match=rf"^{owner}: cannot read '.*{name}': (?s:.*)never run\. Save its"
        ):
            build()
    assert not canary.exists()


def test_a_folders_pickle_that_needs_code_does_not_run(canary: Path) -> None:
    folder = tiny_clip(canary.parent / "clip", safe=False)
    (folder / "pytorch_model.bin").write_bytes((canary.parent / "evil.pt").read_bytes())
    with pytest.raises(
        ValueError, match=r"^CLIPScore: cannot make a CLIPModel of '.*clip': (?s:.*)never run$"
    ):
        CLIPScore(str(folder))
    assert not canary.exists()


def test_a_folders_pickle_of_tensors_is_read_where_there_are_no_safetensors(tmp_path: Path) -> None:
    safe, pickled = tiny_clip(tmp_path / "safe"), tiny_clip(tmp_path / "pickled", safe=False)
    image_NCHW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CLIPFeatures(str(safe))(image_NCHW), CLIPFeatures(str(pickled))(image_NCHW))
    assert "clip sha256 pytorch_model.bin" in CLIPFeatures(str(pickled)).origins()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    clip = str(tiny_clip(tmp_path / "clip"))
    with pytest.raises(
        ValueError, match=r"^PickScore: path '/no/where' is no model folder \(it has no config"
    ):
        PickScore("/no/where")
    with pytest.raises(
        ValueError, match=r"^PickScore: processor: path '/no' is no processor or tokenizer fold"
    ):
        PickScore(clip, processor="/no")
    with pytest.raises(
        ValueError, match=r"^Aesthetic: there is no file '/no/head.pth'; give a file, or 'owner/"
    ):
        Aesthetic("/no/head.pth", path=clip)
    with pytest.raises(
        ValueError, match=r"^HPSv2: cannot get 'heads/hps/v2.pt': no file here, and heads/hps is"
    ):
        HPSv2("heads/hps/v2.pt", base=clip)
    with pytest.raises(
        ValueError, match=r"^DINOFeatures: cannot get 'facebook/dinov2-base': (?s:.*)hf download"
    ):
        DINOFeatures()
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"^CLIPScore: '.*' has no weights: there is neither model.safetensors n"
    ):
        CLIPScore(clip)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    clip, dino = tiny_clip(tmp_path / "clip"), tiny_dino(tmp_path / "dino")
    with pytest.raises(
        ValueError, match=r"^CLIPFeatures: '.*dino' is a 'dinov2', but must be one of clip; give"
    ):
        CLIPFeatures(str(dino))
    with pytest.raises(
        ValueError, match=r"^DINOFeatures: '.*clip' is a 'clip', but must be one of dinov2, dinov2_"
    ):
        DINOFeatures(str(clip))
    for name, text in (("tokenizer_config.json", "{}"), ("config.json", (dino / "config.json").read_text())):
        (dino / name).write_text(text)
    with pytest.raises(ValueError, match=r"^HPSv2: base: '.*dino' is a 'dinov2', but must be one of clip"):
        HPSv2(str(tiny_hps(tmp_path)), base=str(dino))


def test_weights_that_are_missing_or_of_another_shape_are_named(tmp_path: Path) -> None:
    """Transformers would draw them at random and go on."""
    folder = tiny_clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["projection_dim"] = 20
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r"^CLIPScore: '.*' has text_projection\.weight of shape \(24, 32\), but .* \(20, 32\)",
    ):
        CLIPScore(str(folder))
    config["projection_dim"], config["text_config"]["num_hidden_layers"] = 24, 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"^CLIPScore: '.*' lacks 16 weights of a CLIPModel, such as text_model\.enc"
    ):
        CLIPScore(str(folder))


def test_a_head_with_activations_is_refused(tmp_path: Path) -> None:
    """The published one with ReLU has its layers at other places."""
    clip, head = str(tiny_clip(tmp_path / "clip")), tmp_path / "relu.pth"
    torch.save({name.replace("layers.2.", "layers.3."): w for name, w in head_weights(24).items()}, head)
    with pytest.raises(
        ValueError, match=r"^Aesthetic: '.*relu.pth' must have layers.2.weight of shape \(128, 1024"
    ):
        Aesthetic(str(head), path=clip)
    torch.save(head_weights(16), head)
    with pytest.raises(
        ValueError, match=r"must have layers.0.weight of shape \(1024, 24\), has \(1024, 16\): the hea"
    ):
        Aesthetic(str(head), path=clip)
    torch.save([torch.zeros(1)], head)
    with pytest.raises(
        ValueError, match=r"^Aesthetic: '.*relu.pth' must hold tensors by name, or have them under"
    ):
        Aesthetic(str(head), path=clip)


def test_a_tokenizer_without_words_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"^CLIPScore: '.*' has no vocabulary of a CLIPTokenizer; give"):
        CLIPScore(str(folder))


def test_a_revision_is_of_a_hub_id_alone(tmp_path: Path) -> None:
    clip = str(tiny_clip(tmp_path / "clip"))
    with pytest.raises(
        ValueError, match=r"^CLIPScore: revision 'main' is for a hub id, but '.*' is here; leave it"
    ):
        CLIPScore(clip, revision="main")
    with pytest.raises(ValueError, match=r"^HPSv2: revision 'main' is for a hub id"):
        HPSv2(str(tiny_hps(tmp_path)), revision="main", base=clip)


def cached(monkeypatch: pytest.MonkeyPatch, folder: Path, hub_id: str, commit: str) -> Path:
    """A folder of the hub's cache, as a download leaves it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    root = folder / f"models--{hub_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("f" * 40)
    found = root / "snapshots" / commit
    found.mkdir(parents=True)
    return found


def test_a_known_hub_id_is_read_at_its_pinned_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not at what "main" is by now; and the record says so."""
    hub_id = "openai/clip-vit-large-patch14"
    folder = cached(monkeypatch, tmp_path, hub_id, PINNED[hub_id])
    tiny_clip(folder)
    told = CLIPFeatures().origins()
    assert told["clip"] == hub_id
    assert told["clip commit"] == PINNED[hub_id]
    with pytest.raises(ValueError, match=r"^CLIPFeatures: cannot get 'openai/"):
        CLIPFeatures(revision="main")


def test_other_hub_ids_are_read_at_main_and_the_record_says_which_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = cached(monkeypatch, tmp_path, "owner/hps", "f" * 40)
    tiny_hps(folder)
    place = single_file("owner/hps/hps.pt", revision=None, owner="Test")
    assert place.commit == "f" * 40
    assert place.origins("model")["model commit"] == "f" * 40
    assert place.root == folder / "hps.pt"


def test_safetensors_are_fetched_first_and_pickles_only_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A hub with pickles alone is asked twice; each time only for what is read."""
    asked: list[list[str]] = []

    def download(hub_id: str, *, allow_patterns: list[str] | None = None, **options: object) -> str:
        if options.get("local_files_only"):
            raise FileNotFoundError
        assert allow_patterns is not None
        asked.append(allow_patterns)
        if "pytorch_model.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(places, "snapshot_download", download)
    found = model("owner/name", revision=None, owner="Test")
    assert list(found.files) == ["pytorch_model.bin"]
    assert ["model.safetensors" in patterns for patterns in asked] == [True, False]
    assert all("*" not in patterns and "*.bin" not in patterns for patterns in asked)


def test_commits_are_whole() -> None:
    assert PINNED
    assert all(len(commit) == 40 and int(commit, 16) for commit in PINNED.values())
