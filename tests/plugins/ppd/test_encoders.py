"""What encoders say of a few pairs. Shape suffixes: S sets of pairs; L rows, D their width; P pairs."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from alignkit_emoji.judge import Judge
from alignkit_emoji.pictures import decode_image
from alignkit_emoji.source import EmojiPairs
from alignkit_ppd.clip import ClipDifference
from alignkit_ppd.embeddings import embed_users
from alignkit_ppd.encoder import LikedPair, Profile, UserEncoder
from alignkit_ppd.llava import PICTURE, LlavaOneVision, conversation, squared

CPU = torch.device("cpu")


def picture(seed: int, width: int = 32, height: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def four_pairs() -> list[LikedPair]:
    return [LikedPair(f"prompt {i}", picture(2 * i), picture(2 * i + 1)) for i in range(4)]


def profile_of(encoder: UserEncoder, pairs: list[LikedPair]) -> Profile:
    with encoder.loaded(CPU) as reader:
        return reader.read(pairs)


@pytest.fixture(scope="module")
def clip() -> ClipDifference:
    return ClipDifference("alignkit_emoji:judge")


def test_row_is_the_mean_difference_of_class_tokens(clip: ClipDifference):
    """Each picture alone, through the judge itself; the last layer is also what the judge pools."""
    rows_LD = profile_of(clip, four_pairs()).rows_LD
    vision = Judge().clip.vision_model

    def class_tokens(data: bytes) -> Tensor:
        pixels_1CHW = 2 * decode_image(data)[None].float() / 255 - 1
        with torch.no_grad():
            states = vision(pixel_values=pixels_1CHW, output_hidden_states=True).hidden_states
        return torch.stack([state[0, 0] for state in states[1:]])

    expected_PLD = torch.stack(
        [class_tokens(p.preferred) - class_tokens(p.dispreferred) for p in four_pairs()]
    )
    assert rows_LD.shape == clip.shape() == (4, 96)
    assert_close(rows_LD, expected_PLD.mean(0), rtol=1e-4, atol=1e-5)


def test_opposed_choices_are_opposed_rows_and_order_does_not_matter(clip: ClipDifference):
    pairs = four_pairs()
    rows_LD = profile_of(clip, pairs).rows_LD
    swapped = [LikedPair(pair.prompt, pair.dispreferred, pair.preferred) for pair in pairs]
    assert_close(profile_of(clip, swapped).rows_LD, -rows_LD)
    assert_close(profile_of(clip, pairs[::-1]).rows_LD, rows_LD)
    same = [LikedPair(pair.prompt, pair.preferred, pair.preferred) for pair in pairs]
    assert_close(profile_of(clip, same).rows_LD, torch.zeros(4, 96), rtol=0, atol=1e-5)


def area_under_curve(score_S: Tensor, positive_S: Tensor) -> float:
    """Share of (positive, negative) pairs that the score orders rightly."""
    above = score_S[positive_S][:, None] - score_S[~positive_S][None]
    return ((above > 0).double() + 0.5 * (above == 0).double()).mean().item()


@pytest.mark.slow
def test_four_pairs_tell_the_tastes_of_unseen_people_apart(clip: ClipDifference):
    """The direction is the difference of the groups' means over 32 people; scored are 8 others."""
    source = EmojiPairs("train", "minority")
    minority = {source[i].user for i in range(len(source))}

    def rows_and_labels(user_split: str) -> tuple[Tensor, Tensor]:
        source = EmojiPairs("train", "all", user_split)  # type: ignore[arg-type]
        users = embed_users(source, clip, num_pairs=4, max_sets=5, seed=0, device=CPU, quiet=True)
        names = [users.users[number] for number in users.sets.user_S.tolist()]
        return users.sets.rows_SLD, torch.tensor([name not in minority for name in names])

    seen_SLD, seen_S = rows_and_labels("train")
    unseen_SLD, unseen_S = rows_and_labels("test")
    assert (len(seen_S), len(unseen_S)) == (5 * 32, 5 * 8)
    direction_LD = seen_SLD[seen_S].mean(0) - seen_SLD[~seen_S].mean(0)
    score_SL = (unseen_SLD * direction_LD).sum(-1)
    assert min(area_under_curve(score_S, unseen_S) for score_S in score_SL.T) > 0.9


def test_fingerprint_tells_weights_apart(clip: ClipDifference, tmp_path: Path):
    other = Judge().clip
    with torch.no_grad():
        other.vision_model.post_layernorm.bias += 1e-3
    other.save_pretrained(tmp_path)
    judge = Path(clip._root)
    (tmp_path / "preprocessor_config.json").write_text((judge / "preprocessor_config.json").read_text())
    prints = []
    for encoder in (clip, clip, ClipDifference(str(tmp_path))):
        with encoder.loaded(CPU) as reader:
            prints.append(reader.fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("encoder", [ClipDifference, LlavaOneVision])
def test_path_that_holds_no_model_is_named(encoder: type):
    with pytest.raises(ValueError, match=rf"^{encoder.__name__}: path 'nowhere' is no model folder"):
        encoder("nowhere")


@pytest.mark.parametrize("encoder", [ClipDifference, LlavaOneVision])
def test_part_that_is_missing_is_named(encoder: type, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with (
        pytest.raises(ValueError, match=rf"^{encoder.__name__}: cannot load the \w+ of '{tmp_path}': "),
        encoder(str(tmp_path)).loaded(CPU),
    ):
        pass


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA-OneVision of three layers, whose tokenizer knows bytes."""
    folder = tmp_path_factory.mktemp("llava")
    special = ["<|endoftext|>", PICTURE, "<video>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:4],
    ).save_pretrained(folder)
    tile = {"size": {"height": 8, "width": 8}, "image_grid_pinpoints": [[8, 8]]}
    LlavaOnevisionImageProcessorPil(**tile).save_pretrained(folder)
    torch.manual_seed(0)
    LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
                vision_use_head=False,
            ),
            text_config=Qwen2Config(
                vocab_size=len(vocabulary),
                hidden_size=24,
                intermediate_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=1,
                bos_token_id=0,
                pad_token_id=0,
                eos_token_id=4,
            ),
            image_token_index=1,
            video_token_index=2,
            image_grid_pinpoints=[[8, 8]],
        )
    ).save_pretrained(folder)
    return folder


def test_rows_are_the_states_of_the_last_generated_position(llava_folder: Path):
    """Against one plain pass over the conversation and all that was generated but the last token."""
    encoder = LlavaOneVision(str(llava_folder), max_new_tokens=5, precision="float32")
    with encoder.loaded(CPU) as reader:
        profile = reader.read(four_pairs())
        model = reader.read._model  # type: ignore[attr-defined]
        seen: dict[str, Tensor] = {}
        generate = model.generate

        def spy(**inputs: Tensor) -> object:
            seen.update(inputs)
            drawn = generate(**inputs)
            seen["sequences"] = drawn.sequences
            return drawn

        model.generate = spy
        assert_close(reader.read(four_pairs()).rows_LD, profile.rows_LD, rtol=0, atol=0)
    pictures = {name: seen[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
    with torch.no_grad():
        states = model(
            input_ids=seen["sequences"][:, :-1], **pictures, output_hidden_states=True
        ).hidden_states
    assert profile.rows_LD.shape == encoder.shape() == (4, 24)
    assert_close(profile.rows_LD, torch.stack([state[0, -1] for state in states]), rtol=1e-4, atol=1e-5)
    assert seen["sequences"].shape[1] - seen["input_ids"].shape[1] == 5


def test_who_liked_the_other_pictures_is_somebody_else(llava_folder: Path):
    encoder = LlavaOneVision(str(llava_folder), max_new_tokens=3, precision="float32")
    swapped = [LikedPair(pair.prompt, pair.dispreferred, pair.preferred) for pair in four_pairs()]
    with encoder.loaded(CPU) as reader:
        first, again, other = (reader.read(pairs).rows_LD for pairs in (four_pairs(), four_pairs(), swapped))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-4


def test_description_that_is_cut_off_is_told_from_one_that_ends(llava_folder: Path):
    """A model that says "end" at once: one step, whose states are those of a whole conversation."""
    encoder = LlavaOneVision(str(llava_folder), max_new_tokens=3, precision="float32")
    assert profile_of(encoder, four_pairs()).truncated
    with encoder.loaded(CPU) as reader:
        model = reader.read._model  # type: ignore[attr-defined]
        head = model.lm_head.forward

        def saying_end(states: Tensor) -> Tensor:
            logits = head(states)
            logits[..., 4] = 1e4
            return logits

        model.lm_head.forward = saying_end
        profile = reader.read(four_pairs())
    assert not profile.truncated
    assert profile.text == ""
    assert profile.rows_LD.shape == (4, 24)


def test_conversation_shows_every_pair_and_ends_where_the_model_speaks():
    text = conversation(["a red apple", f"a {PICTURE} pear"])
    assert text.count(PICTURE) == 4
    assert text.index("Pair 1\nPrompt: a red apple") < text.index("Pair 2\nPrompt: a  pear")
    assert text.index(f"{PICTURE} preferred") < text.index(f"{PICTURE} not preferred")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_pictures_are_padded_to_squares_not_distorted():
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    square = np.asarray(squared(image))
    assert square.shape == (8, 8, 3)
    assert (square[2:6] == (255, 0, 0)).all()
    assert (square[[0, 1, 6, 7]] == 127).all()


def test_longest_description_must_have_a_token(llava_folder: Path):
    with pytest.raises(ValueError, match=r"^LlavaOneVision: max_new_tokens must be at least 1, got 0$"):
        LlavaOneVision(str(llava_folder), max_new_tokens=0)
