"""Asks simulated annotators which of two drawings they like better, and writes their answers, bit for bit.

    python -m alignkit_emoji.build.pairs --out plugins/alignkit_emoji/data

Writes ``taste.json``, the distribution of the features, and ``pairs.parquet``, judgements in the columns of
Pick-a-Pic v2. Suffixes: N pictures, P pairs of drawings of one concept, U users, R rows, F features.
"""

import argparse
import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkit_emoji.pictures import SETS, Pictures, load_pictures
from alignkit_emoji.taste import FEATURES, MAJORITY, MINORITY, FeatureScale, Taste, features

NUM_MAJORITY = 28
NUM_MINORITY = 12
PAIRS_PER_USER = 300
# per standard deviation of a person's own utility
DECISIVENESS = 2.6
# standard deviation of a person's weights around the group's
INDIVIDUALITY = 0.15
TIE_SHARE = 0.1
TRAIN_SHARE = 0.8
# so that another machine's last bits change no digit of the file
DIGITS = 6


class Answers(NamedTuple):
    """Who was asked what and what they said, row by row.

    Args:
        user_R: number of the user.
        left_R: row of the left picture.
        right_R: row of the right picture.
        label_R: 1 where the left one was preferred, 0 where the right one was, 0.5 for a tie.
    """

    user_R: NDArray[np.int64]
    left_R: NDArray[np.int64]
    right_R: NDArray[np.int64]
    label_R: NDArray[np.float64]


def measured_features(pictures: Pictures) -> Tensor:
    """Features of the pictures in float64, (N, F)."""
    return features(pictures.image_NCHW.double() / 255)


def measured_scale(feature_NF: Tensor) -> FeatureScale:
    """The distribution of the features, rounded."""
    mean_F, deviation_F = feature_NF.mean(0), feature_NF.std(0, correction=0)
    standard_NF = (feature_NF - mean_F) / deviation_F
    correlation_FF = standard_NF.T @ standard_NF / len(feature_NF)
    return FeatureScale(
        tuple(round(value, DIGITS) for value in mean_F.tolist()),
        tuple(round(value, DIGITS) for value in deviation_F.tolist()),
        tuple(tuple(round(value, DIGITS) for value in row) for row in correlation_FF.tolist()),
    )


def users(generator: np.random.Generator) -> list[Taste]:
    """The majority's users, then the minority's, each with weights of their own; named by their group."""
    groups = [MAJORITY] * NUM_MAJORITY + [MINORITY] * NUM_MINORITY
    noise_UF = INDIVIDUALITY * generator.standard_normal((len(groups), len(FEATURES)))
    return [
        Taste(group.name, *(float(weight) for weight in np.add(group.weights, noise_F)))
        for group, noise_F in zip(groups, noise_UF, strict=True)
    ]


def answers(
    people: list[Taste], feature_NF: Tensor, scale: FeatureScale, generator: np.random.Generator
) -> Answers:
    """Shows every user other random pairs, and draws what they say after Bradley and Terry."""
    drawings = [range(first, first + len(SETS)) for first in range(0, len(feature_NF), len(SETS))]
    pair_P2 = np.array([pair for same_concept in drawings for pair in combinations(same_concept, 2)])
    shown, differences, labels = [], [], []
    for person in people:
        utility_N = person.of_features(feature_NF, scale).numpy()
        asked_R2 = pair_P2[generator.choice(len(pair_P2), PAIRS_PER_USER, replace=False)]
        asked_R2 = generator.permuted(asked_R2, axis=1)
        difference_R = utility_N[asked_R2[:, 0]] - utility_N[asked_R2[:, 1]]
        probability_R = 1 / (1 + np.exp(-DECISIVENESS * difference_R))
        shown.append(asked_R2)
        differences.append(difference_R)
        labels.append((generator.random(PAIRS_PER_USER) < probability_R).astype(np.float64))
    shown_R2, label_R = np.concatenate(shown), np.concatenate(labels)
    closest_first_R = np.argsort(np.abs(np.concatenate(differences)), kind="stable")
    label_R[closest_first_R[: round(TIE_SHARE * len(label_R))]] = 0.5
    user_R = np.repeat(np.arange(len(people)), PAIRS_PER_USER)
    return Answers(user_R, shown_R2[:, 0], shown_R2[:, 1], label_R)


def train_part(names: list[str], generator: np.random.Generator) -> set[str]:
    """A random choice of the names, ``TRAIN_SHARE`` of them."""
    order = generator.permutation(len(names))
    return {names[i] for i in order[: round(TRAIN_SHARE * len(names))]}


def table(pictures: Pictures, people: list[Taste], said: Answers, generator: np.random.Generator) -> pa.Table:
    """The answers of all users, shuffled, in Pick-a-Pic v2's columns and three of our own."""
    train_prompts = train_part(sorted(set(pictures.concepts)), generator)
    numbers = [str(i) for i in range(len(people))]
    train_users = train_part(numbers[:NUM_MAJORITY], generator)
    train_users |= train_part(numbers[NUM_MAJORITY:], generator)

    order = generator.permutation(len(said.user_R))
    user, left, right = (part[order].tolist() for part in (said.user_R, said.left_R, said.right_R))
    label = said.label_R[order].tolist()
    caption = [pictures.concepts[i] for i in left]
    num_asked = Counter(caption)
    best = [left_i if x == 1 else right_i for left_i, right_i, x in zip(left, right, label, strict=True)]
    uid = [f"{name}/{concept}" for name, concept in zip(pictures.sets, pictures.concepts, strict=True)]
    columns = {
        "are_different": pa.array([True] * len(order)),
        "best_image_uid": pa.array(["" if x == 0.5 else uid[i] for i, x in zip(best, label, strict=True)]),
        "caption": pa.array(caption),
        "created_at": pa.array([0] * len(order), pa.timestamp("ns")),
        "has_label": pa.array([True] * len(order)),
        "image_0_uid": pa.array([uid[i] for i in left]),
        "image_1_uid": pa.array([uid[i] for i in right]),
        "jpg_0": pa.array([pictures.png[i] for i in left], pa.binary()),
        "jpg_1": pa.array([pictures.png[i] for i in right], pa.binary()),
        "label_0": pa.array(label, pa.float64()),
        "label_1": pa.array([1 - x for x in label], pa.float64()),
        "model_0": pa.array([pictures.sets[i] for i in left]),
        "model_1": pa.array([pictures.sets[i] for i in right]),
        "ranking_id": pa.array(range(len(order)), pa.int64()),
        "user_id": pa.array(user, pa.int64()),
        "num_example_per_prompt": pa.array([num_asked[prompt] for prompt in caption], pa.int64()),
        "prompt_split": pa.array(["train" if name in train_prompts else "test" for name in caption]),
        "user_split": pa.array(["train" if str(i) in train_users else "test" for i in user]),
        "taste": pa.array([people[i].name for i in user]),
    }
    return pa.table(columns)


def build(out: Path, seed: int = 0) -> None:
    """Writes ``taste.json`` and ``pairs.parquet``."""
    generator = np.random.Generator(np.random.PCG64(seed))
    pictures = load_pictures()
    feature_NF = measured_features(pictures)
    scale = measured_scale(feature_NF)
    content = {"features": FEATURES, **scale._asdict()}
    (out / "taste.json").write_text(json.dumps(content, indent=1) + "\n")

    people = users(generator)
    said = answers(people, feature_NF, scale, generator)
    judged = table(pictures, people, said, generator)
    # one dictionary page holds every picture once: 12,000 rows take the space of 1,144 pictures, per column
    pq.write_table(
        judged,
        out / "pairs.parquet",
        row_group_size=judged.num_rows,
        dictionary_pagesize_limit=1 << 26,
        compression="none",
    )


def main() -> None:
    """Parses the command line and builds."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--out", type=Path, required=True, help="folder for taste.json and pairs.parquet")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    build(arguments.out)


if __name__ == "__main__":
    main()
