"""Split by user: nobody is on both sides, whatever the source."""

import pytest

from alignkit_ppd.source import UserSplit
from tests.plugins.ppd.people import Pairs, pairs_of

PEOPLE = {f"user {i}": 5 for i in range(60)} | {"": 3}
SOURCE = Pairs(pairs_of(PEOPLE))


def users(split: UserSplit) -> set[str]:
    return {split[i].user for i in range(len(split))}


def test_every_pair_that_says_who_judged_is_in_one_part():
    train, test = (UserSplit(SOURCE, part, 0.25) for part in ("train", "test"))
    assert len(train) + len(test) == 300
    assert users(train) | users(test) == set(PEOPLE) - {""}
    assert users(train) & users(test) == set()
    assert 5 <= len(users(test)) <= 25


def test_side_of_a_user_does_not_depend_on_the_source():
    few = UserSplit(Pairs(pairs_of(dict(list(PEOPLE.items())[::-3]))), "test", 0.25)
    assert users(few) == users(UserSplit(SOURCE, "test", 0.25)) & set(list(PEOPLE)[::-3])
    assert users(UserSplit(SOURCE, "test", 0.25, seed=1)) != users(UserSplit(SOURCE, "test", 0.25))
    assert users(UserSplit(SOURCE, "test", 0.1)) < users(UserSplit(SOURCE, "test", 0.25))


def test_labels_and_prompts_are_those_of_its_pairs():
    test = UserSplit(SOURCE, "test", 0.25)
    assert test.labels() == [test[i].label_0 for i in range(len(test))]
    assert test.prompts() == [test[i].prompt for i in range(len(test))]
    with pytest.raises(IndexError):
        test[len(test)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "dev"}, r"^UserSplit: part must be one of train, test, got 'dev'$"),
        ({"held_out": 0.0}, r"^UserSplit: held_out must be between 0 and 1, got 0.0$"),
        ({"held_out": 1.0}, r"^UserSplit: held_out must be between 0 and 1, got 1.0$"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        UserSplit(SOURCE, **settings)  # type: ignore[arg-type]
