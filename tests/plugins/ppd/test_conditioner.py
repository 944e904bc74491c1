"""The component UserTokens. Shape suffixes: B prompts; K candidates; L user tokens, D their width."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from alignkit import Batch, Key
from alignkit.functional import bradley_terry_nll, preference_logit
from alignkit.policy import LoRA
from alignkit.testing.pipelines import tiny_stable_diffusion
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_ppd.conditioner import FILE, WEIGHTS, Preparation, UserTokens, summary
from alignkit_ppd.functional import even_rows
from tests.plugins.ppd.people import ROWS, WIDTH, Counting, Pairs, pairs_of
from tests.plugins.ppd.test_attention import TEXT, plain_unet

COUNTS = {"ann": 60, "bob": 12, "cy": 3}
CPU = torch.device("cpu")


def people(**settings: object) -> UserTokens:
    conditioner = UserTokens(Counting(), **settings)  # type: ignore[arg-type]
    conditioner.use(conditioner.embed(Pairs(pairs_of(COUNTS)), CPU, quiet=True))
    return conditioner


def batch_of(user: str, count: int | None = None, visit: int = 0) -> Batch:
    records = [record for record in pairs_of(COUNTS) if record.user == user][:count]
    id_B = torch.tensor([record.id for record in records])
    prompts, users = (tuple(field) for field in zip(*((r.prompt, r.user) for r in records), strict=True))
    return Batch(torch.zeros(2, len(records), 3, 8, 8), prompts, id_B, torch.full_like(id_B, visit), users)


def told(conditioner: UserTokens, batch: Batch, seed: int = 0) -> Tensor:
    return conditioner(batch, key=Key(seed, batch.id_B, batch.visit_B))


def tokens_of(conditioner: UserTokens, place: int) -> Tensor:
    return even_rows(conditioner.users.sets.rows_SLD[place])


def test_tokens_are_those_of_a_set_that_the_pair_is_not_in():
    """C5.8: over many visits every usable set is drawn, and no other."""
    conditioner = people(dropout=0.0)
    drawn: dict[int, set[int]] = {}
    for visit in range(120):
        batch = batch_of("ann", 6, visit)
        for query, tokens_LD in zip(batch.id_B.tolist(), told(conditioner, batch), strict=True):
            places = [
                p for p in conditioner.users.of("ann") if torch.equal(tokens_of(conditioner, p), tokens_LD)
            ]
            assert len(places) == 1
            drawn.setdefault(query, set()).update(places)
    for query, places in drawn.items():
        usable = conditioner.users.usable("ann", query)
        assert usable is not None
        assert places == set(usable) < set(conditioner.users.of("ann"))


def test_draws_are_the_same_wherever_a_pair_stands():
    conditioner, batch = people(dropout=0.5), batch_of("ann", 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = batch._replace(
        id_B=batch.id_B[order], prompts=tuple(batch.prompts[i] for i in order), users=batch.users
    )
    assert torch.equal(told(conditioner, shuffled), told(conditioner, batch)[order])
    assert not torch.equal(told(conditioner, batch, seed=1), told(conditioner, batch))
    assert not torch.equal(told(conditioner, batch_of("ann", 12, visit=1)), told(conditioner, batch))


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.3, 0.15, 0.45), (1.0, 1, 1)])
def test_dropout_tells_nothing_at_that_share_of_visits(dropout: float, low: float, high: float):
    """T8: what is told at dropout 1 is tokens of zero, which the branch turns into the base exactly."""
    conditioner, batch = people(dropout=dropout), batch_of("ann")
    silent_B = (told(conditioner, batch) == 0).all(2).all(1)
    assert low <= silent_B.double().mean() <= high
    conditioner.eval()
    assert not (told(conditioner, batch) == 0).all(2).all(1).any()


def test_who_has_no_set_is_nobody_in_particular():
    conditioner = people(dropout=0.0)
    assert torch.equal(told(conditioner, batch_of("cy")), torch.zeros(3, ROWS, WIDTH))
    conditioner.eval()
    stranger = batch_of("bob", 2)._replace(users=("dan", ""))
    assert torch.equal(told(conditioner, stranger), torch.zeros(2, ROWS, WIDTH))


def test_training_pair_outside_the_support_is_refused_and_a_held_out_one_is_not():
    conditioner = people(dropout=0.0)
    unread = batch_of("ann", 2)
    unread = unread._replace(id_B=unread.id_B + 5000)
    with pytest.raises(
        ValueError, match=r"^UserTokens: training pair 5100 of user 'ann' is not among the sup"
    ):
        told(conditioner, unread)
    conditioner.eval()
    for tokens_LD in told(conditioner, unread):
        assert any(torch.equal(tokens_LD, tokens_of(conditioner, p)) for p in conditioner.users.of("ann"))


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_a_single_layer_is_a_single_token(layer: int):
    one, whole = people(layer=layer, dropout=0.0), people(dropout=0.0)
    batch = batch_of("ann", 3)
    assert_close(told(one, batch), told(whole, batch)[:, [layer]])


def test_audiences_are_people_by_their_first_four_pairs():
    conditioner = people(audiences={"both": ["bob", "ann"], "one": ["ann"]})
    bob_LD, ann_LD = (tokens_of(conditioner, conditioner.users.of(user)[0]) for user in ("bob", "ann"))
    found = conditioner.audiences()
    assert list(found) == ["both", "one"]
    assert torch.equal(found["both"], torch.stack([bob_LD, ann_LD]))
    assert torch.equal(found["one"], ann_LD[None])


def test_audience_without_pairs_is_named():
    with pytest.raises(
        ValueError, match=r"^UserTokens: no pairs of user 'dan' were read; known are ann, bob$"
    ):
        people(audiences={"strangers": ["ann", "dan"]})
    with pytest.raises(ValueError, match=r"^UserTokens: user 'cy' has fewer than 4 decided pairs"):
        people(audiences={"quiet": ["cy"]})
    with pytest.raises(ValueError, match=r"^UserTokens: audiences: 'nobody' has no user$"):
        people(audiences={"nobody": []})


def options_of(conditioner: UserTokens, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    conditioner.add_options(parser.add_argument_group("for whom"))
    return parser.parse_args(arguments)


def chosen(conditioner: UserTokens, *arguments: str) -> Tensor:
    return conditioner.chosen(options_of(conditioner, *arguments))


def test_chosen_user_is_the_audience_of_that_name_and_none_is_nobody():
    conditioner = people(audiences={"anns": ["ann"]})
    assert torch.equal(chosen(conditioner, "--user", "ann"), conditioner.audiences()["anns"][0])
    assert torch.equal(chosen(conditioner), torch.zeros(ROWS, WIDTH))


def test_mix_lies_between_its_people():
    """T6: shares of 1 and 0 give one of them."""
    conditioner = people()
    ann, bob = (chosen(conditioner, "--user", user) for user in ("ann", "bob"))
    assert_close(chosen(conditioner, "--mix", "ann=0.7", "bob=0.3"), 0.7 * ann + 0.3 * bob)
    assert torch.equal(chosen(conditioner, "--mix", "ann=1", "bob=0"), ann)


def test_scale_of_the_options_reaches_the_branches():
    conditioner = people(scale=0.5)
    conditioner.attach(plain_unet())
    for arguments, scale in (((), 0.5), (("--user-scale", "0.25"), 0.25)):
        chosen(conditioner, *arguments)
        assert {branch.scale for branch in conditioner._branches} == {scale}


def pairs_file(folder: Path, lines: int = 4, **changes: object) -> Path:
    said = []
    for i in range(lines):
        for side in ("chosen", "rejected"):
            (folder / f"{side}{i}.png").write_bytes(f"{side} {i}".encode())
        said.append({"prompt": f"p{i}", "chosen": f"chosen{i}.png", "rejected": f"rejected{i}.png"} | changes)
    path = folder / "four.jsonl"
    path.write_text("\n".join(map(json.dumps, said)) + "\n\n")
    return path


def test_new_person_is_known_by_four_pairs(tmp_path: Path):
    conditioner = people()
    tokens_LD = chosen(conditioner, "--pairs", str(pairs_file(tmp_path)))
    shown = conditioner.encoder.read[-1]  # type: ignore[attr-defined]
    assert shown == tuple((f"p{i}", f"chosen {i}".encode(), f"rejected {i}".encode()) for i in range(4))
    liked, other = (sum(sum(f"{side} {i}".encode()) for i in range(4)) for side in ("chosen", "rejected"))
    row_D = torch.tensor([4.0, liked, other, liked - other])
    assert_close(tokens_LD, even_rows(row_D).expand(ROWS, -1))


def test_embeddings_of_other_weights_are_not_mixed(tmp_path: Path):
    conditioner = people()
    conditioner.encoder = Counting(fingerprint="second")
    with pytest.raises(ValueError, match=r"^UserTokens: the weights of Counting\(counting\) are not those"):
        chosen(conditioner, "--pairs", str(pairs_file(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--user", "dan"), r"no pairs of user 'dan' were read; known are ann, bob$"),
        (("--mix", "ann=0.7", "bob=0.7"), r"^--mix: shares must sum to 1, got 1.4$"),
        (("--mix", "ann"), r"^--mix takes USER=SHARE, such as u1=0.7, got 'ann'$"),
        (("--mix", "ann=much"), r"^--mix takes USER=SHARE, such as u1=0.7, got 'ann=much'$"),
        (
            ("--mix", "ann=1.5", "bob=-0.5"),
            r"^--mix takes USER=SHARE with a share of at least 0, got 'bob=-0.5'$",
        ),
        (("--mix", "ann=0.5", "ann=0.5"), r"^--mix names a user twice"),
        (("--pairs", "nowhere.jsonl"), r"^--pairs: there is no file 'nowhere.jsonl'$"),
    ],
)
def test_mistakes_in_the_options_are_named(arguments: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        chosen(people(), *arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lines": 3}, r"^--pairs: a person is known by 4 pairs here, got 3 in .*four.jsonl$"),
        ({"chosen": "lost.png"}, r"^--pairs: line 1 of .*four.jsonl: .*lost.png"),
        ({"rejected": None}, r'^--pairs: line 1 of .*four.jsonl must be \{"prompt"'),
    ],
)
def test_mistakes_in_the_pairs_are_named(tmp_path: Path, settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        chosen(people(), "--pairs", str(pairs_file(tmp_path, **settings)))  # type: ignore[arg-type]


def trained(conditioner: UserTokens, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = plain_unet()
    conditioner.attach(network)
    for branch in conditioner._branches:
        nn.init.normal_(branch.to_v.weight)
    return network.eval()


@pytest.mark.parametrize("width", [None, 2])
def test_what_is_saved_can_be_loaded_into_the_base(tmp_path: Path, width: int | None):
    ours = people(width=width)
    network = trained(ours)
    ours.save(network, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {FILE, WEIGHTS}
    theirs = UserTokens(Counting(), width=width)
    torch.manual_seed(0)
    base = plain_unet()
    theirs.attach(base)
    theirs.load(base, tmp_path)
    assert theirs.users.users == ours.users.users
    assert torch.equal(chosen(theirs, "--user", "ann"), chosen(ours, "--user", "ann"))
    for (name, weight), saved in zip(base.named_parameters(), network.parameters(), strict=True):
        assert torch.equal(weight, saved), name


def test_weights_of_another_network_are_refused(tmp_path: Path):
    ours = people(width=2)
    ours.save(trained(ours), tmp_path)
    theirs = UserTokens(Counting(), width=3)
    network = trained(theirs)
    with pytest.raises(ValueError, match=r"^UserTokens: user_tokens.safetensors is of another network"):
        theirs.load(network, tmp_path)
    with pytest.raises(ValueError, match=r"^UserTokens: there is no user_tokens.safetensors in"):
        theirs.load(network, tmp_path / "nowhere")


def test_embeddings_that_were_given_stand_beside_the_weights(tmp_path: Path):
    given, folder = tmp_path / "given.safetensors", tmp_path / "run"
    people().users.write(given)
    conditioner = UserTokens(Counting(), embeddings=str(given))
    conditioner.prepare(None, folder, CPU)
    folder.mkdir()
    conditioner.save(trained(conditioner), folder)
    assert (folder / FILE).read_bytes() == given.read_bytes()


def test_people_are_known_without_a_run_where_the_config_says_who():
    asked = UserTokens(Counting(), support=lambda: Pairs(pairs_of(COUNTS)))
    assert torch.equal(asked.users.sets.rows_SLD, people().users.sets.rows_SLD)
    with pytest.raises(ValueError, match=r"^UserTokens: no pairs to know people by; give support, or"):
        _ = UserTokens(Counting()).users


def test_embeddings_are_made_once_for_a_run(tmp_path: Path):
    first = UserTokens(Counting(), support=lambda: Pairs(pairs_of(COUNTS)))
    first.prepare(None, tmp_path, CPU)
    second = UserTokens(Counting())
    second.prepare(None, tmp_path, CPU)  # without pairs: what the run made is read
    assert torch.equal(second.users.sets.rows_SLD, first.users.sets.rows_SLD)
    with pytest.raises(ValueError, match=r"^UserTokens: no pairs to know people by; give support, or"):
        UserTokens(Counting()).prepare(None, tmp_path / "elsewhere", CPU)


@pytest.mark.parametrize(
    ("conditioner", "message"),
    [
        (
            UserTokens(Counting("other")),
            r"encoder is Counting\(other\), but the embeddings were made with Counting",
        ),
        (UserTokens(Counting(), num_pairs=3), r"num_pairs is 3, but the embeddings were made with 4$"),
    ],
)
def test_embeddings_that_were_made_otherwise_are_refused(conditioner: UserTokens, message: str):
    with pytest.raises(ValueError, match=message):
        conditioner.use(people().users)


def test_resume_with_other_embeddings_is_refused():
    ours, theirs = Preparation(), Preparation()
    ours._fingerprint, theirs._fingerprint = "a", "b"
    ours.load_state_dict(ours.state_dict())
    ours.on_fit_start(None, None)  # type: ignore[arg-type]
    theirs.load_state_dict(ours.state_dict())
    with pytest.raises(ValueError, match=r"^UserTokens: the checkpoint was trained with other embeddings"):
        theirs.on_fit_start(None, None)  # type: ignore[arg-type]


def test_summary_says_who_was_left_out():
    assert summary(people().users) == (
        "2 users known by 14 sets of 4 pairs; 1 with fewer pairs left out; descriptions cut off: 1"
    )


def test_callbacks_are_the_same_at_every_call():
    conditioner = UserTokens(Counting())
    assert conditioner.callbacks() == conditioner.callbacks() == (conditioner._preparation,)


def test_encoder_is_no_part_of_the_checkpoint():
    assert list(people().state_dict()) == []


def test_adapters_are_refused(tmp_path: Path):
    policy = StableDiffusion(str(tiny_stable_diffusion(tmp_path)), lora=LoRA(rank=2)).build_policy()
    with pytest.raises(ValueError, match=r"^UserTokens: the network has adapters"):
        UserTokens(Counting()).attach(policy)


@pytest.mark.parametrize("layer", [ROWS, -ROWS - 1])
def test_layer_must_be_a_row_of_the_encoder(layer: int):
    message = rf"^UserTokens: layer must be from -{ROWS} to {ROWS - 1}, the rows of .*, got {layer}$"
    with pytest.raises(ValueError, match=message):
        UserTokens(Counting(), layer=layer).attach(plain_unet())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_pairs": 0}, r"^UserTokens: num_pairs must be at least 1, got 0$"),
        ({"max_sets": 0}, r"^UserTokens: max_sets must be at least 1, got 0$"),
        ({"width": 0}, r"^UserTokens: width must be at least 1, got 0$"),
        ({"dropout": 1.1}, r"^UserTokens: dropout must be from 0 to 1, got 1.1$"),
        ({"scale": math.inf}, r"^UserTokens: scale must be a finite number, got inf$"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        UserTokens(Counting(), **settings)  # type: ignore[arg-type]


class Opposed:
    """Two people who judge the same two pairs the other way round, and a UNet with branches."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = plain_unet().eval()
        self.tokens_BLD = torch.randn(1, ROWS, WIDTH) * torch.tensor([1.0, 1, -1, -1])[:, None, None]
        first_KBCHW = torch.randn(2, 2, 4, 8, 8)
        self.x_KBCHW = torch.cat([first_KBCHW, first_KBCHW.flip(0)], dim=1)
        self.target_CHW, self.text_NLD = torch.randn(4, 8, 8), torch.randn(5, TEXT).expand(8, -1, -1)
        UserTokens(Counting()).attach(self.network)
        self.ref_logp_KB = self.logp(None).detach()

    def logp(self, tokens_BLD: Tensor | None) -> Tensor:
        told = None if tokens_BLD is None else {"tokens_NLD": tokens_BLD.repeat(2, 1, 1)}
        said = self.network(
            self.x_KBCHW.flatten(0, 1), 500, self.text_NLD, cross_attention_kwargs=told
        ).sample
        return -(said.unflatten(0, (2, 4)) - self.target_CHW).square().mean((2, 3, 4))

    def loss(self, tokens_BLD: Tensor) -> Tensor:
        return bradley_terry_nll(preference_logit(self.logp(tokens_BLD), self.ref_logp_KB, beta=1000.0))

    def train(self) -> None:
        optimizer = torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], lr=0.03)
        for _ in range(25):
            optimizer.zero_grad()
            self.loss(self.tokens_BLD).mean().backward()
            optimizer.step()


def test_opposed_people_are_learned_only_if_they_are_told_apart():
    """T5: pooled, the losses of a pair are -log sigmoid of u and of -u, at least 2 log 2 whatever is learned.

    T9: told the wrong person, every loss is worse than under a model that knows nothing.
    """
    case = Opposed()
    nobody_B = torch.full((4,), math.log(2))
    assert_close(case.loss(case.tokens_BLD), nobody_B, rtol=0, atol=1e-6)
    case.train()
    assert case.loss(case.tokens_BLD).mean() < 0.05
    assert case.loss(case.tokens_BLD[:1].expand(4, -1, -1)).mean() > math.log(2)
    assert case.loss(-case.tokens_BLD).min() > math.log(2)
    assert_close(case.loss(0 * case.tokens_BLD), nobody_B, rtol=0, atol=1e-6)
