"""Conditioner of PPD. Shape suffixes: B prompts; N images; L user tokens, D their width; U users."""

import argparse
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.averages import trainable
from alignkit.components import Conditioner, PairSource
from alignkit.data import AlignData
from alignkit.noise import bernoulli, uniform
from alignkit.policy import has_adapters
from alignkit.types import Batch, Key
from alignkit_ppd.attention import UserAttention, attach_branches
from alignkit_ppd.embeddings import FILE, UserEmbeddings, embed_users, read_embeddings
from alignkit_ppd.encoder import LikedPair, UserEncoder
from alignkit_ppd.functional import even_rows, mixed
from alignkit_ppd.options import read_pairs, shares_of

WEIGHTS = "user_tokens.safetensors"


class UserTokens(Conditioner):
    """Tells the policy who is looking, by a few of the person's pairs (Dang et al., 2025).

    Each row of the person's embedding is a token, which a branch of its own reads beside every text
    cross-attention; only the branches' projections are trained. Deviations: ``README.md`` of the plugin.

    Args:
        encoder: what embeds a person by pairs.
        audiences: for whom held-out images are drawn and judged: lists of users by the name of their
            audience. Each is known by the first of its sets, and prompts go round among them.
        support: where people's pairs come from, by a class and its arguments; the training pairs without it.
            Must hold all training pairs. Held-out users need some of their own here, on other prompts than
            those that are evaluated.
        num_pairs: pairs that a person is known by; 4 in the paper.
        max_sets: most disjoint sets of that many pairs per user; 20 in the authors' code.
        layer: the only row that becomes a token, -1 for the last; all of them without it.
        width: width that a projection, which all branches share, reduces the tokens to; without it each
            branch reads them whole.
        dropout: share of visits at which the policy is told nothing; 0.1 is a choice, the paper's is not
            known.
        scale: factor of the branches.
        embeddings: a file that `alignkit users` wrote; without it the run makes them when it starts.
        seed: seed of support sets and of the projections.
    """

    def __init__(
        self,
        encoder: UserEncoder,
        audiences: dict[str, list[str]] | None = None,
        support: Callable[[], PairSource] | None = None,
        num_pairs: int = 4,
        max_sets: int = 20,
        layer: int | None = None,
        width: int | None = None,
        dropout: float = 0.1,
        scale: float = 1.0,
        embeddings: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if empty := [name for name, people in (audiences or {}).items() if not people]:
            raise ValueError(f"UserTokens: audiences: {empty[0]!r} has no user")
        for name, value in (("num_pairs", num_pairs), ("max_sets", max_sets), ("width", width)):
            if value is not None and value < 1:
                raise ValueError(f"UserTokens: {name} must be at least 1, got {value}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"UserTokens: dropout must be from 0 to 1, got {dropout}")
        if not math.isfinite(scale):
            raise ValueError(f"UserTokens: scale must be a finite number, got {scale}")
        self.encoder, self.support, self.embeddings = encoder, support, embeddings
        self.num_pairs, self.max_sets, self.seed = num_pairs, max_sets, seed
        self.layer, self.width, self.dropout, self.scale = layer, width, dropout, scale
        self._audiences = audiences or {}
        self._users: UserEmbeddings | None = None
        self._branches: list[UserAttention] = []
        self._preparation = Preparation()

    def callbacks(self) -> Sequence[pl.Callback]:
        return (self._preparation,)

    def attach(self, network: nn.Module) -> None:
        if has_adapters(network):
            raise ValueError(
                "UserTokens: the network has adapters, and only the user's projections are trained; "
                "leave lora out of the backbone"
            )
        known = self._users
        rows, width = known.sets.rows_SLD.shape[1:] if known else self.encoder.shape()
        if self.layer is not None and not -rows <= self.layer < rows:
            raise ValueError(
                f"UserTokens: layer must be from {-rows} to {rows - 1}, the rows of {self.encoder.name}, "
                f"got {self.layer}"
            )
        network.requires_grad_(False)
        self._branches = attach_branches(
            network, width, projected=self.width, scale=self.scale, seed=self.seed
        )

    def prepare(self, source: PairSource | None, folder: Path, device: torch.device) -> UserEmbeddings:
        """Makes the embeddings, or reads those that were made, and checks that they fit.

        Args:
            source: the training pairs, for a config without ``support``.
            folder: where those of this run are kept.
            device: where the encoder runs.

        Raises:
            ValueError: they do not fit, or there are no pairs to make them from.
        """
        path = Path(self.embeddings) if self.embeddings else folder / FILE
        if self.embeddings or path.is_file():
            self.use(read_embeddings(path))
        else:
            self.use(self.embed(source, device))
            self.users.write(path)
        return self.users

    def embed(self, source: PairSource | None, device: torch.device, quiet: bool = False) -> UserEmbeddings:
        """Makes the embeddings of everybody whose pairs there are.

        Raises:
            ValueError: there are no pairs, or nobody has enough.
        """
        pairs = self.support() if self.support else source
        if pairs is None:
            raise ValueError("UserTokens: no pairs to know people by; give support, or embeddings")
        return embed_users(
            pairs,
            self.encoder,
            num_pairs=self.num_pairs,
            max_sets=self.max_sets,
            seed=self.seed,
            device=device,
            quiet=quiet,
        )

    def use(self, users: UserEmbeddings) -> None:
        """Takes embeddings.

        Raises:
            ValueError: they were made otherwise than this says, or lack somebody of an audience.
        """
        made = users.settings
        for name, wanted, found in (
            ("encoder", self.encoder.name, made.encoder),
            ("num_pairs", self.num_pairs, made.num_pairs),
        ):
            if wanted != found:
                raise ValueError(f"UserTokens: {name} is {wanted}, but the embeddings were made with {found}")
        for user in (user for people in self._audiences.values() for user in people):
            users.of(user)
        self._users = users

    @property
    def users(self) -> UserEmbeddings:
        """The people it knows; outside of a run it makes or reads them when they are first asked for."""
        if self._users is None:
            cpu = torch.device("cpu")
            self.use(read_embeddings(Path(self.embeddings)) if self.embeddings else self.embed(None, cpu))
        assert self._users is not None
        return self._users

    def forward(self, batch: Batch, *, key: Key) -> Tensor:
        key = key.on_host()
        drawn = uniform(key, "user set")[:, 0].tolist()
        dropped = bernoulli(key, "user dropout", self.dropout if self.training else 0.0).tolist()
        told = []
        for i, (user, query) in enumerate(zip(batch.users, key.id_B.tolist(), strict=True)):
            places = self._support_of(user, query)
            unknown = dropped[i] or not places
            told.append(self._nobody() if unknown else self._tokens(places[int(drawn[i] * len(places))]))
        return torch.stack(told)

    def audiences(self) -> Mapping[str, Tensor]:
        return {
            name: torch.stack([self._of(user) for user in people]) for name, people in self._audiences.items()
        }

    def add_options(self, parser: argparse._ArgumentGroup) -> None:
        one = parser.add_mutually_exclusive_group()
        one.add_argument("--user", help="a person whose pairs the run knows; nobody if not given")
        one.add_argument(
            "--mix", nargs="+", metavar="USER=SHARE", help="several people, such as u1=0.7 u2=0.3"
        )
        one.add_argument(
            "--pairs",
            type=Path,
            help=f"{self.num_pairs} pairs of a new person: a file of lines "
            '{"prompt": ..., "chosen": PICTURE, "rejected": PICTURE}',
        )
        parser.add_argument("--user-scale", type=float, default=self.scale, help="factor of the branches")

    def chosen(self, options: argparse.Namespace) -> Tensor:
        for branch in self._branches:
            branch.scale = options.user_scale
        if options.user is not None:
            return self._of(options.user)
        if options.mix is not None:
            shares = shares_of(options.mix)
            tokens_ULD = torch.stack([self._of(user) for user in shares])
            return mixed(tokens_ULD, torch.tensor(list(shares.values())))
        if options.pairs is not None:
            return self._new_person(read_pairs(options.pairs, self.num_pairs), torch.device(options.device))
        return self._nobody()

    def save(self, network: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().contiguous() for name, weight in trainable(network)}
        save_file(weights, folder / WEIGHTS)
        if (folder / FILE).exists():
            return
        if not self.embeddings:
            self.users.write(folder / FILE)
            return
        try:
            os.link(self.embeddings, folder / FILE)  # they may be large
        except OSError:  # another file system, or one without links
            shutil.copyfile(self.embeddings, folder / FILE)

    def load(self, network: nn.Module, folder: Path) -> None:
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"UserTokens: there is no {WEIGHTS} in {str(folder)!r}")
        weights, wanted = load_file(folder / WEIGHTS), dict(trainable(network))
        shapes, wanted_shapes = (
            {name: tuple(weight.shape) for name, weight in side.items()} for side in (weights, wanted)
        )
        if shapes != wanted_shapes:
            name = next(iter(sorted(set(shapes.items()) ^ set(wanted_shapes.items()))))[0]
            raise ValueError(f"UserTokens: {WEIGHTS} is of another network or encoder: {name} does not fit")
        with torch.no_grad():
            for name, weight in wanted.items():
                weight.copy_(weights[name])
        self.use(read_embeddings(folder / FILE))

    def _support_of(self, user: str, query: int) -> list[int]:
        places = self.users.usable(user, query)
        if places is None and self.training:
            raise ValueError(
                f"UserTokens: training pair {query} of user {user!r} is not among the support pairs, so that "
                "they could share it; support must hold all training pairs, and say who judged them"
            )
        return self.users.places(user) if places is None else places

    def _of(self, user: str) -> Tensor:
        return self._tokens(self.users.of(user)[0])

    def _tokens(self, place: int) -> Tensor:
        return self._told(self.users.sets.rows_SLD[place])

    def _told(self, rows_LD: Tensor) -> Tensor:
        rows_LD = rows_LD if self.layer is None else rows_LD[self.layer][None]
        return even_rows(rows_LD.float())

    def _nobody(self) -> Tensor:
        return torch.zeros_like(self._tokens(0))

    def _new_person(self, pairs: Sequence[LikedPair], device: torch.device) -> Tensor:
        with self.encoder.loaded(device) as reader:
            if reader.fingerprint != self.users.settings.fingerprint:
                raise ValueError(
                    f"UserTokens: the weights of {self.encoder.name} are not those that the run's embeddings "
                    "were made with"
                )
            return self._told(reader.read(pairs).rows_LD)


class Preparation(pl.Callback):
    """Has the people of a run embedded before it starts, once for all processes."""

    def __init__(self) -> None:
        super().__init__()
        self._fingerprint, self._wanted = "", ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        conditioner, data = pl_module.conditioner, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(conditioner, UserTokens)
        source = data.train if isinstance(data, AlignData) else None
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            trainer.strategy.barrier("users")  # the first process writes what the others read
        users = conditioner.prepare(source, folder, trainer.strategy.root_device)
        if trainer.is_global_zero:
            trainer.strategy.barrier("users")
        self._fingerprint = users.fingerprint
        if stage == "fit":
            rank_zero_info(summary(users))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses to go on with other embeddings than those of the checkpoint."""
        if self._wanted not in ("", self._fingerprint):
            raise ValueError(
                "UserTokens: the checkpoint was trained with other embeddings of users; resume in the run's "
                "own folder, or give its embeddings"
            )

    on_validation_start = on_fit_start

    def state_dict(self) -> dict[str, Any]:
        return {"embeddings": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._wanted = state_dict["embeddings"]


def summary(users: UserEmbeddings) -> str:
    """What was embedded, in a line."""
    sets, made = users.sets, users.settings
    known = len(users.users) - len(users.skipped)
    text = f"{known} users known by {len(sets.user_S)} sets of {made.num_pairs} pairs"
    if users.skipped:
        text += f"; {len(users.skipped)} with fewer pairs left out"
    if cut := int(sets.truncated_S.sum()):
        text += f"; descriptions cut off: {cut}"
    return text
