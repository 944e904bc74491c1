"""A CLIP tokenizer whose vocabulary is the words of the concepts; any other word falls back to its parts."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

MAX_LENGTH = 16


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Trains byte-pair merges on the given words until each is one token.

    A prompt has at most ``MAX_LENGTH`` tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=1_000_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(sorted(set(words)), trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    tokens = dict.fromkeys(
        [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(pair) for pair in merges)]
    )
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        vocab, merged = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps(vocabulary, ensure_ascii=False))
        merged.write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
        return CLIPTokenizer(vocab=str(vocab), merges=str(merged), model_max_length=MAX_LENGTH)
