"""Pictures from seeds of their own, as they are kept and judged."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from alignkit import Reward
from alignkit.evaluation.compare import draw
from alignkit.evaluation.drawing import drawn, file_name, picture_seed, read_picture
from alignkit.evaluation.judging import judged
from alignkit.evaluation.sheet import to_pictures
from alignkit.testing import ToyBackbone


def test_a_seed_is_a_hash_of_the_prompt_and_the_number() -> None:
    """Kept pictures are known by it: it must not change between releases."""
    digest = hashlib.blake2b(b'["a cat", 3]', digest_size=8).digest()
    assert picture_seed("a cat", 3) == int.from_bytes(digest, "little") // 2
    assert 0 <= picture_seed("a cat", 3) < 2**63
    assert len({picture_seed(prompt, number) for prompt in ("a", "b") for number in range(5)}) == 10


def test_a_picture_is_the_same_among_other_prompts() -> None:
    backbone, options = ToyBackbone(), {"images_per_prompt": 2, "num_steps": 2, "guidance": 2.0, "label": ""}
    network = backbone.build_policy()
    among = draw(backbone, network, ["a plum", "a cat", "a pear"], seed=3, **options)  # type: ignore[arg-type]
    alone = draw(backbone, network, ["a cat"], seed=3, **options)  # type: ignore[arg-type]
    assert_close(alone[0], among[1], rtol=0, atol=1.001 / 255)
    later = draw(backbone, network, ["a cat"], seed=4, **options)  # type: ignore[arg-type]
    assert_close(later[0, 0], among[1, 1], rtol=0, atol=1.001 / 255)
    assert (later[0, 1] != among[1, 1]).any()


def test_a_picture_comes_back_from_a_file_bit_by_bit(tmp_path: Path) -> None:
    backbone = ToyBackbone()
    image_NCHW = drawn(backbone, backbone.build_policy(), ["a"], seeds=[1], num_steps=2, guidance=1.0)
    path = tmp_path / "a.png"
    to_pictures(image_NCHW)[0].save(path)
    assert torch.equal(read_picture(path), image_NCHW[0])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"(?s)a\.png: cannot be read.*Delete it"):
        read_picture(path)


def test_names_of_pictures_fit_into_file_systems() -> None:
    """A name may have 255 bytes, of which a seed, a key and the suffix take some."""
    for prompt in ("红色的苹果" * 100, "ö" * 400, "🦊" * 99, "a/b\\c:d*e?\n" * 40):
        name = file_name(prompt)
        assert len(name.encode()) <= 120
        assert not set('/\\:*?"<>|\n') & set(name)


class Wrong(Reward):
    """Gives what it was told to give."""

    differentiable = False

    def __init__(self, said: Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, image_NCHW: Tensor, prompts: object) -> Tensor:
        return self.said


@pytest.mark.parametrize("said", [torch.zeros(3), torch.zeros(2, 1), torch.tensor([1.0, torch.inf])])
def test_a_reward_gives_one_finite_number_for_every_image(said: Tensor) -> None:
    with pytest.raises(ValueError, match="Wrong: must give a finite number for every image"):
        judged(Wrong(said), torch.zeros(2, 3, 4, 4), ["a", "b"])
    right = judged(Wrong(torch.tensor([1.0, 0.1])), torch.zeros(2, 3, 4, 4), ["a", "b"])
    assert right.dtype == torch.float64
    np.testing.assert_array_equal(right.numpy(), np.float32([1.0, 0.1]).astype(np.float64))


def test_an_image_in_grey_is_read_in_colours(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 51).save(tmp_path / "grey.png")
    assert_close(read_picture(tmp_path / "grey.png"), torch.full((3, 2, 2), 0.2))
