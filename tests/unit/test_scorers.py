"""Which scores that were kept count again."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignkit.evaluation.scorers import scorer
from alignkit.trust import trusting

Key = Callable[..., str]
REWARD = """
from pathlib import Path

from alignkit import Reward

class Bright(Reward):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def origins(self):
        return {{"weights": Path(__file__ + ".weights").read_text()}}

    def forward(self, image_NCHW, prompts):
        return {sign}self.factor * image_NCHW.mean((1, 2, 3))
"""


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Key]:
    """The key of a reward whose module says something."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(sign: str = "", told: str = "one", **arguments: float) -> str:
        (tmp_path / "my_bright.py").write_text(REWARD.format(sign=sign))
        (tmp_path / "my_bright.py.weights").write_text(told)
        sys.modules.pop("my_bright", None)
        with trusting(["my_bright"]):
            return scorer("reward", {"class_path": "my_bright.Bright", "init_args": arguments}).key

    yield of
    sys.modules.pop("my_bright", None)


def test_what_a_score_depends_on_changes_its_key(key: Key) -> None:
    """Its code, what it says of its weights, its settings; and nothing when all are the same."""
    assert key() == key()
    assert len({key(), key(sign="-"), key(told="two"), key(factor=2.0)}) == 4


def test_a_shipped_judge_says_which_weights_it_has() -> None:
    found = {
        scorer(kind, {"class_path": f"alignkit_emoji.{path}"}).provenance["judge sha256 model.safetensors"]
        for kind, path in (
            ("reward", "reward.EmojiFidelity"),
            ("reward", "reward.EmojiRecognition"),
            ("features", "features.EmojiFeatures"),
        )
    }
    assert len(found) == 1
