"""A vision language model as user encoder. Shape suffixes: L rows, D their width; T tokens of a text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from alignkit.folders import located_folder
from alignkit_ppd.encoder import (
    LikedPair,
    Profile,
    Reader,
    UserEncoder,
    at_revision,
    fingerprint_of,
    load_part,
    opened,
)

PICTURE = "<image>"
# the structure is that of the authors' template, the words are our own
OPENING = (
    "The following pairs of pictures were shown to one person. Of each pair you see the prompt, the picture "
    "that the person preferred, and the one that the person liked less.\n\n"
)
PAIR = "Pair {number}\nPrompt: {prompt}\n{picture} preferred\n{picture} not preferred\n\n"
TASK = (
    "Think of style, visual quality and aesthetics.\n"
    "1. Describe both pictures of every pair.\n"
    "2. Say for every pair how the preferred picture differs from the other one.\n"
    "3. Sum up all these differences into a profile of what this person likes and dislikes.\n\n"
    "Answer in this form:\n"
    "Pair 1: Preferred: ... Not preferred: ... Differences: ...\n"
    "(and so on for every pair)\n"
    "User profile: ..."
)
# the conversation format of Qwen 1.5 and 2
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
)
Precision = Literal["float16", "bfloat16", "float32"]


class LlavaOneVision(UserEncoder):
    """Knows a person by what LLaVA-OneVision writes about the pairs: the encoder of the paper.

    The model describes the pairs and writes a profile of the person, greedily. The embedding is the state of
    the last generated position at every layer, that of the input embedding first: 29 rows of 3584 for the
    7B model (stage 1 of https://github.com/Asap7772/Personalized-Text-To-Image-Diffusion at 30872a1).

    Args:
        path: folder or hub id of a LlavaOnevisionForConditionalGeneration, such as
            "llava-hf/llava-onevision-qwen2-7b-ov-chat-hf".
        max_new_tokens: longest description; 1024 in the authors' code. What is longer is cut off and
            reported.
        precision: of the weights; float16 in the authors' code.
        revision: a hub id's branch, tag or commit.
    """

    def __init__(
        self,
        path: str,
        max_new_tokens: int = 1024,
        precision: Precision = "float16",
        revision: str | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"LlavaOneVision: max_new_tokens must be at least 1, got {max_new_tokens}")
        self.path, self.max_new_tokens, self.precision = path, max_new_tokens, precision
        self.revision = revision
        self._root = located_folder(path, marker="config.json", kind="model", owner="LlavaOneVision")

    @property
    def name(self) -> str:
        place = at_revision(self.path, self.revision)
        return f"LlavaOneVision({place}, {self.max_new_tokens}, {self.precision})"

    def shape(self) -> tuple[int, int]:
        text = self._part(LlavaOnevisionConfig).text_config
        return text.num_hidden_layers + 1, text.hidden_size

    @contextmanager
    def loaded(self, device: torch.device) -> Iterator[Reader]:
        model = self._part(LlavaOnevisionForConditionalGeneration, dtype=getattr(torch, self.precision))
        # tokenizer and image processor apart: the class that joins them also wants a video processor
        tokenizer = self._part(AutoTokenizer)
        images = self._part(AutoImageProcessor, backend="pil")
        describe = _Description(model.eval().to(device), tokenizer, images, self.max_new_tokens)
        yield Reader(describe, fingerprint_of(model))

    def _part(self, kind: Any, **options: object) -> Any:
        return load_part(kind, self._root, "LlavaOneVision", revision=self.revision, **options)


class _Description:
    """Has a model describe a person's pairs."""

    def __init__(self, model: Any, tokenizer: Any, images: Any, max_new_tokens: int) -> None:
        self._model, self._tokenizer, self._images = model, tokenizer, images
        self._max_new_tokens = max_new_tokens

    @torch.no_grad()
    def __call__(self, pairs: Sequence[LikedPair]) -> Profile:
        model = self._model
        pictures = [squared(opened(data)) for pair in pairs for data in (pair.preferred, pair.dispreferred)]
        text_1T = self._tokenizer(self._conversation(pairs), return_tensors="pt").to(model.device)
        # a list in a list: several pictures of one conversation, each in a single tile
        picture_inputs = self._images([pictures], return_tensors="pt").to(model.device, model.dtype)
        drawn = model.generate(
            **text_1T,
            **picture_inputs,
            do_sample=False,
            max_new_tokens=self._max_new_tokens,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        # the last position of the last step: a step that reads the whole conversation has many
        rows_LD = torch.stack([state[0, -1] for state in drawn.hidden_states[-1]]).cpu()
        said = drawn.sequences[0, text_1T.input_ids.shape[1] :].tolist()
        ends = model.generation_config.eos_token_id
        truncated = said[-1] not in (ends if isinstance(ends, list) else [ends])
        return Profile(rows_LD, self._tokenizer.decode(said, skip_special_tokens=True).strip(), truncated)

    def _conversation(self, pairs: Sequence[LikedPair]) -> str:
        vision = self._model.config.vision_config
        # one token per patch, and one that ends the picture
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        return conversation([pair.prompt for pair in pairs], picture=PICTURE * tokens)


def conversation(prompts: Sequence[str], *, picture: str = PICTURE) -> str:
    """What the model is asked; the pictures of each pair are in the order preferred, dispreferred."""
    shown = [
        PAIR.format(number=number, prompt=prompt.replace(PICTURE, ""), picture=picture)
        for number, prompt in enumerate(prompts, start=1)
    ]
    return CHAT.format(message=OPENING + "".join(shown) + TASK)


def squared(image: Image.Image) -> Image.Image:
    """A picture with grey margins that make it square, as the authors' ``image_aspect_ratio: pad``."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side), color=(127, 127, 127))
