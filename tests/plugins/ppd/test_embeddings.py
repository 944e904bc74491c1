"""Support sets: disjoint, of one person, and never the query or its pictures. S sets, P pairs each."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from alignkit import PairRecord
from alignkit_ppd.embeddings import UserEmbeddings, embed_users, liked, read_embeddings
from tests.plugins.ppd.people import Counting, Pairs, pairs_of

COUNTS = {"ann": 60, "bob": 12, "cy": 4}


def embedded(
    records: list[PairRecord] | None = None,
    encoder: Counting | None = None,
    *,
    max_sets: int = 20,
    seed: int = 0,
) -> UserEmbeddings:
    return embed_users(
        Pairs(pairs_of(COUNTS) if records is None else records),
        encoder or Counting(),
        num_pairs=4,
        max_sets=max_sets,
        seed=seed,
        device=torch.device("cpu"),
        quiet=True,
    )


def test_sets_are_disjoint_decided_and_of_one_person():
    """Ann decided 48 of 60 pairs, which are 12 sets of 4; Bob 10 of 12: two; Cy 4 of 4: one."""
    users = embedded()
    records = {record.id: record for record in pairs_of(COUNTS)}
    names = [users.users[number] for number in users.sets.user_S.tolist()]
    assert {name: names.count(name) for name in COUNTS} == {"ann": 12, "bob": 2, "cy": 1}
    ids = users.sets.support_SP.flatten().tolist()
    assert len(set(ids)) == len(ids) == 4 * 15
    for name, support in zip(names, users.sets.support_SP.tolist(), strict=True):
        assert {records[i].user for i in support} == {name}
        assert all(records[i].label_0 != 0.5 for i in support)


def test_encoder_is_shown_the_support_winner_first():
    encoder = Counting()
    users = embedded(encoder=encoder)
    records = {record.id: record for record in pairs_of(COUNTS)}
    for shown, support in zip(encoder.read, users.sets.support_SP.tolist(), strict=True):
        assert shown == tuple(liked(records[i]) for i in support)
    assert liked(PairRecord(1, "p", b"0", b"1", 1.0)) == ("p", b"0", b"1")
    assert liked(PairRecord(1, "p", b"0", b"1", 0.0)) == ("p", b"1", b"0")
    assert_close(users.sets.rows_SLD[:, :, 0], torch.tensor([4.0, 8.0, 12.0]).expand(15, 3))
    assert users.sets.truncated_S.tolist() == [False, True] + 13 * [False]
    assert all(text.startswith("likes ") for text in users.sets.texts)


def test_users_with_too_few_decided_pairs_are_left_out_and_named():
    users = embedded(pairs_of({"ann": 5, "bob": 4, "cy": 3}))
    assert users.skipped == ["cy"]
    with pytest.raises(ValueError, match=r"^UserTokens: user 'cy' has fewer than 4 decided pairs"):
        users.of("cy")
    with pytest.raises(ValueError, match=r"no pairs of user 'dan' were read; known are ann, bob$"):
        users.of("dan")
    cys = next(record.id for record in pairs_of({"ann": 5, "bob": 4, "cy": 3}) if record.user == "cy")
    assert users.usable("cy", cys) == users.places("cy") == users.places("dan") == []


def test_nobody_with_enough_pairs_is_a_mistake():
    with pytest.raises(ValueError, match=r"^UserTokens: none of 1 users has 4 decided pairs, in 3 pairs$"):
        embedded(pairs_of({"cy": 3}))
    with pytest.raises(ValueError, match=r"^UserTokens: no pair says who judged it"):
        embedded(pairs_of({"": 8}))
    with pytest.raises(ValueError, match=r"^UserTokens: an id names two pairs"):
        embedded(2 * pairs_of({"ann": 8}))


def test_sets_depend_on_seed_and_pairs_and_not_on_their_order():
    first, again = embedded(), embedded(pairs_of(COUNTS)[::-1])
    assert torch.equal(first.sets.support_SP, again.sets.support_SP)
    assert torch.equal(first.sets.rows_SLD, again.sets.rows_SLD)
    assert not torch.equal(first.sets.support_SP, embedded(seed=1).sets.support_SP)


def test_fewer_sets_are_the_first_of_more():
    few, many = embedded(max_sets=3), embedded()
    assert few.users == many.users
    for user in COUNTS:
        assert torch.equal(few.sets.support_SP[few.of(user)], many.sets.support_SP[many.of(user)][:3])


def test_usable_sets_share_neither_the_query_nor_a_picture():
    """Checked against all sets, by the pictures' bytes; pairs that are ties may be asked about, too."""
    users, records = embedded(), {record.id: record for record in pairs_of(COUNTS)}
    sizes = set()
    for query in records.values():
        usable = users.usable(query.user, query.id)
        pictures = {query.image_0, query.image_1}
        expected = [
            place
            for place in users.of(query.user)
            if not any(
                i == query.id or pictures & {records[i].image_0, records[i].image_1}
                for i in users.sets.support_SP[place].tolist()
            )
        ]
        assert usable == expected
        sizes.add(len(users.of(query.user)) - len(expected))
    assert max(sizes) > 1


def test_query_that_was_not_read_is_told_from_one_that_was():
    users = embedded()
    assert users.usable("ann", 99999) is None
    bobs = next(record.id for record in pairs_of(COUNTS) if record.user == "bob")
    assert users.usable("ann", bobs) is None
    assert users.usable("dan", bobs) is None


def test_file_holds_everything(tmp_path: Path):
    users, path = embedded(), tmp_path / "deep" / "users.safetensors"
    users.write(path)
    read = read_embeddings(path)
    assert (read.users, read.settings) == (users.users, users.settings)
    assert read.settings == ("Counting(counting)", 4, 20, 0, "first")
    for ours, theirs in zip(
        [*read.sets[:4], *read.judgements], [*users.sets[:4], *users.judgements], strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert read.sets.texts == users.sets.texts
    assert read.fingerprint == users.fingerprint != embedded(seed=1).fingerprint
    assert [file.name for file in path.parent.iterdir()] == ["users.safetensors"]


def test_what_is_no_such_file_is_named(tmp_path: Path):
    path = tmp_path / "users.safetensors"
    with pytest.raises(ValueError, match=r"^UserTokens: there are no embeddings at .*users.safetensors"):
        read_embeddings(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no embeddings of users; `alignkit users` makes such files"):
        read_embeddings(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no embeddings of users"):
        read_embeddings(path)
