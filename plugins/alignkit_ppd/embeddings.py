"""Embeddings of people, and the pairs that they were made from.

Shape suffixes: S support sets of P pairs each; L rows of an embedding, D their width; R pairs that were read.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignkit.components import PairSource
from alignkit.mistakes import listed
from alignkit.noise import uniform
from alignkit.types import Key, PairRecord
from alignkit_ppd.encoder import LikedPair, UserEncoder

FILE = "user_embeddings.safetensors"
TIE = 0.5


class Settings(NamedTuple):
    """How embeddings were made.

    Args:
        encoder: name of the encoder.
        num_pairs: pairs of a support set.
        max_sets: most support sets of a user.
        seed: seed of the sets.
        fingerprint: identity of the encoder's weights.
    """

    encoder: str
    num_pairs: int
    max_sets: int
    seed: int
    fingerprint: str = ""


class Sets(NamedTuple):
    """Embeddings of disjoint support sets, several per user.

    Args:
        rows_SLD: what the encoder said.
        user_S: number of the user.
        support_SP: ids of the pairs that it was shown.
        truncated_S: whether its description was cut off.
        texts: the descriptions.
    """

    rows_SLD: Tensor
    user_S: Tensor
    support_SP: Tensor
    truncated_S: Tensor
    texts: tuple[str, ...]


class Judgements(NamedTuple):
    """The pairs that support could be drawn from, by ascending id.

    Args:
        id_R: int64.
        user_R: number of who judged.
        picture_R2: a hash of each of both pictures.
        decided_R: whether one of them was preferred.
    """

    id_R: Tensor
    user_R: Tensor
    picture_R2: Tensor
    decided_R: Tensor


class UserEmbeddings:
    """What is known of people, by support sets, and which set may be used for which pair.

    Args:
        users: who they are; their numbers are their places.
        sets: the embeddings.
        judgements: every pair of these users that was read, for support or not.
        settings: how they were made.
    """

    def __init__(self, users: Sequence[str], sets: Sets, judgements: Judgements, settings: Settings) -> None:
        self.users, self.sets, self.judgements, self.settings = tuple(users), sets, judgements, settings
        self._number = {user: number for number, user in enumerate(self.users)}
        self._sets_of: dict[int, list[int]] = {}
        for place, number in enumerate(sets.user_S.tolist()):
            self._sets_of.setdefault(number, []).append(place)

    @property
    def skipped(self) -> list[str]:
        """Users who have too few decided pairs for one set."""
        return [user for number, user in enumerate(self.users) if number not in self._sets_of]

    def of(self, user: str) -> list[int]:
        """Places of a user's sets.

        Raises:
            ValueError: the user is unknown, or has none.
        """
        if user not in self._number:
            known = [name for name in self.users if name not in set(self.skipped)]
            raise ValueError(f"UserTokens: no pairs of user {user!r} were read; known are {listed(known)}")
        if not self.places(user):
            raise ValueError(
                f"UserTokens: user {user!r} has fewer than {self.settings.num_pairs} decided pairs and was "
                "left out"
            )
        return self.places(user)

    def places(self, user: str) -> list[int]:
        """Places of a user's sets; none if nothing is known of the user."""
        return self._sets_of.get(self._number.get(user, -1), [])

    def usable(self, user: str, query: int) -> list[int] | None:
        """Places of a user's sets that share no picture with a pair, and so do not contain it.

        Returns:
            Such sets, maybe none; None if no such pair of this user was read.
        """
        places, row = self.places(user), self._row(query)
        if row is None or int(self.judgements.user_R[row]) != self._number.get(user):
            return None
        shared = torch.isin(self._pictures_SQ[places], self.judgements.picture_R2[row]).any(1)
        return [place for place, taken in zip(places, shared.tolist(), strict=True) if not taken]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the embeddings."""
        rows = self.sets.rows_SLD.contiguous().flatten().view(torch.uint8)
        return hashlib.sha256(rows.numpy().data).hexdigest()

    @cached_property
    def _pictures_SQ(self) -> Tensor:
        """Hashes of the 2 P pictures of each set."""
        row_SP = torch.searchsorted(self.judgements.id_R, self.sets.support_SP)
        return self.judgements.picture_R2[row_SP].flatten(1)

    def _row(self, query: int) -> int | None:
        row = int(torch.searchsorted(self.judgements.id_R, query))
        found = row < len(self.judgements.id_R) and int(self.judgements.id_R[row]) == query
        return row if found else None

    def write(self, path: Path) -> None:
        """Writes one safetensors file; whoever reads while it is written finds the old one."""
        tensors = {
            "rows": self.sets.rows_SLD,
            "user": self.sets.user_S,
            "support": self.sets.support_SP,
            "truncated": self.sets.truncated_S,
            # not in the header, whose length is limited
            "texts": torch.frombuffer(bytearray(json.dumps(self.sets.texts).encode()), dtype=torch.uint8),
            "judgement_id": self.judgements.id_R,
            "judgement_user": self.judgements.user_R,
            "judgement_pictures": self.judgements.picture_R2,
            "judgement_decided": self.judgements.decided_R,
        }
        about = {"users": json.dumps(self.users), "settings": json.dumps(self.settings._asdict())}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, about)
        os.replace(unfinished, path)


def read_embeddings(path: Path) -> UserEmbeddings:
    """Reads what ``UserEmbeddings.write`` wrote.

    Raises:
        ValueError: the file is not there, or is no such file.
    """
    if not path.is_file():
        raise ValueError(f"UserTokens: there are no embeddings at {str(path)!r}; `alignkit users` makes them")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no dict
        users, settings = list(json.loads(about["users"])), Settings(**json.loads(about["settings"]))
        texts = tuple(json.loads(bytes(tensors["texts"].tolist())))
        sets = Sets(tensors["rows"], tensors["user"], tensors["support"], tensors["truncated"], texts)
        judgements = Judgements(
            tensors["judgement_id"],
            tensors["judgement_user"],
            tensors["judgement_pictures"],
            tensors["judgement_decided"],
        )
        _check_lengths(users, sets, judgements)
        return UserEmbeddings(users, sets, judgements, settings)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"UserTokens: {str(path)!r} holds no embeddings of users; `alignkit users` makes such files"
        ) from error


def _check_lengths(users: Sequence[str], sets: Sets, judgements: Judgements) -> None:
    """Checks that what belongs together has one length.

    Raises:
        ValueError: it has not.
    """
    if not all(isinstance(user, str) for user in users):
        raise ValueError("a user is no text")
    for parts, dims in ((sets, (3, 1, 2, 1)), (judgements, (1, 1, 2, 1))):
        tensors = parts[:4]
        if tuple(tensor.ndim for tensor in tensors) != dims or len({len(part) for part in parts}) != 1:
            raise ValueError(f"{type(parts).__name__} are of {[tuple(tensor.shape) for tensor in tensors]}")


def embed_users(
    source: PairSource,
    encoder: UserEncoder,
    *,
    num_pairs: int,
    max_sets: int,
    seed: int,
    device: torch.device,
    quiet: bool = False,
) -> UserEmbeddings:
    """Cuts every user's decided pairs into disjoint sets, in an order drawn by the seed, and embeds each.

    Args:
        source: pairs; those of nobody in particular, whose user is empty, are left out.
        encoder: what embeds a set.
        num_pairs: pairs of a set.
        max_sets: most sets of a user.
        seed: seed of the order.
        device: where the encoder runs.
        quiet: shows no progress.

    Raises:
        ValueError: nobody has pairs enough, or an id names two pairs.
    """
    users, judgements, index_R = _read(source, quiet)
    chosen = _support(judgements, num_pairs, max_sets, seed)
    if not chosen:
        raise ValueError(
            f"UserTokens: none of {len(users)} users has {num_pairs} decided pairs, in {len(source)} pairs"
        )
    profiles = []
    with encoder.loaded(device) as reader:
        for rows in track(chosen, "embedding users", disable=quiet, transient=True):
            profiles.append(reader.read([liked(source[index_R[row]]) for row in rows]))
    support_SP = torch.tensor(chosen)
    sets = Sets(
        rows_SLD=torch.stack([profile.rows_LD for profile in profiles]),
        user_S=judgements.user_R[support_SP[:, 0]],
        support_SP=judgements.id_R[support_SP],
        truncated_S=torch.tensor([profile.truncated for profile in profiles]),
        texts=tuple(profile.text for profile in profiles),
    )
    settings = Settings(encoder.name, num_pairs, max_sets, seed, reader.fingerprint)
    return UserEmbeddings(users, sets, judgements, settings)


def liked(record: PairRecord) -> LikedPair:
    """A decided judgement, the preferred picture first."""
    pictures = _both(record)
    return LikedPair(record.prompt, *(pictures if record.label_0 > TIE else pictures[::-1]))


def _read(source: PairSource, quiet: bool) -> tuple[list[str], Judgements, list[int]]:
    """Users, their judgements by ascending id, and where in the source those stand."""
    read: list[tuple[int, int, str, int, int, bool]] = []
    for index in track(range(len(source)), "reading pairs", disable=quiet, transient=True):
        record = source[index]
        if record.user:
            images = _both(record)
            hashes = (_hash(images[0]), _hash(images[1]))
            read.append((record.id, index, record.user, *hashes, record.label_0 != TIE))
    if not read:
        raise ValueError("UserTokens: no pair says who judged it; give pairs with users")
    read.sort()
    ids, indices, users, first, second, decided = zip(*read, strict=True)
    if len(set(ids)) < len(ids):
        raise ValueError("UserTokens: an id names two pairs; support and query could not be told apart")
    known = sorted(set(users))
    number = {user: place for place, user in enumerate(known)}
    judgements = Judgements(
        torch.tensor(ids),
        torch.tensor([number[user] for user in users]),
        torch.tensor([first, second]).T.contiguous(),
        torch.tensor(decided),
    )
    return known, judgements, list(indices)


def _support(judgements: Judgements, num_pairs: int, max_sets: int, seed: int) -> list[list[int]]:
    """Rows of the judgements of each set; a user's sets stand together."""
    key = Key(seed, judgements.id_R, torch.zeros_like(judgements.id_R))
    order_R = uniform(key, "support")[:, 0].argsort().tolist()
    decided, users = judgements.decided_R.tolist(), judgements.user_R.tolist()
    rows_of: dict[int, list[int]] = {user: [] for user in sorted(set(users))}
    for row in order_R:
        if decided[row]:
            rows_of[users[row]].append(row)
    sets = []
    for rows in rows_of.values():
        count = min(max_sets, len(rows) // num_pairs)
        sets += [rows[start * num_pairs : (start + 1) * num_pairs] for start in range(count)]
    return sets


def _both(record: PairRecord) -> tuple[bytes, bytes]:
    if record.image_1 is None:
        raise ValueError(f"UserTokens: pair {record.id} has no loser; give pairs, not winners alone")
    return record.image_0, record.image_1


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
