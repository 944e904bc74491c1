"""Counter-based randomness: what a draw depends on, and how it is distributed. B prompts."""

import hashlib
import math
import statistics

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignkit.noise import bernoulli, integers, normal, uniform
from alignkit.types import Key


def key(count: int = 8, seed: int = 3, first: int = 0, visit: int = 0) -> Key:
    return Key(seed, torch.arange(first, first + count), torch.full((count,), visit))


MASK = 2**64 - 1


def mix(value: int) -> int:
    """SplitMix64's finalizer on Python integers, as published."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def splitmix64(state: int, count: int) -> list[int]:
    return [mix(state + i * 0x9E3779B97F4A7C15 & MASK) for i in range(1, count + 1)]


def test_the_derivation_below_is_splitmix64():
    """First numbers of the generator seeded with 1234567, as widely published with it."""
    assert splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, -1])
def test_uniform_equals_an_independent_derivation(seed: int):
    """The stream starts from seed, purpose, record and visit, mixed in turn; 52 bits become a midpoint."""
    ids, visits = [0, 5, -3, 2**62], [0, 1, 2, 3]
    expected = []
    for record, visit in zip(ids, visits, strict=True):
        state = mix(seed & MASK)
        for part in (
            int.from_bytes(hashlib.blake2b(b"noise", digest_size=8).digest(), "little"),
            record & MASK,
            visit,
        ):
            state = mix((state ^ part) + 0x9E3779B97F4A7C15 & MASK)
        expected.append([((bits >> 12) + 0.5) * 2.0**-52 for bits in splitmix64(state, 6)])
    ours = uniform(Key(seed, torch.tensor(ids), torch.tensor(visits)), "noise", 6)
    assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0)


def test_same_key_gives_the_same_draw():
    assert_close(normal(key(), "noise", (4, 8)), normal(key(), "noise", (4, 8)), rtol=0, atol=0)


def test_draw_ignores_global_generators():
    torch.manual_seed(0)
    before = normal(key(), "noise", (16,))
    torch.manual_seed(1)
    torch.rand(10)
    assert_close(normal(key(), "noise", (16,)), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("other", "purpose"),
    [(key(), "dropout"), (key(visit=1), "noise"), (key(seed=4), "noise"), (key(first=100), "noise")],
    ids=["purpose", "visit", "seed", "record"],
)
def test_another_key_gives_another_draw(other: Key, purpose: str):
    """Independent numbers: of 8 x 64 none is equal, and their correlation is within 4 / sqrt(512)."""
    ours, theirs = normal(key(), "noise", (64,)), normal(other, purpose, (64,))
    assert (ours != theirs).all()
    assert correlation(ours.flatten(), theirs.flatten()).abs() < 4 / math.sqrt(512)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([first, second]))[0, 1]


def test_record_and_visit_are_not_interchangeable():
    """(id 1, visit 2) is not (id 2, visit 1)."""
    one = uniform(Key(0, torch.tensor([1]), torch.tensor([2])), "noise")
    other = uniform(Key(0, torch.tensor([2]), torch.tensor([1])), "noise")
    assert one != other


def test_uniform_is_uniform():
    """Kolmogorov-Smirnov on 2e5 numbers of 200 records.

    Below 1.63 / sqrt(n), which a fair draw passes in 99 of 100.
    """
    sample = uniform(key(200), "noise", 1000)
    assert sample.dtype == torch.float64
    assert ((sample > 0) & (sample < 1)).all()
    assert kolmogorov(sample) < 1.63 / math.sqrt(sample.numel())


def kolmogorov(probability: Tensor) -> float:
    """Largest distance between the empirical and the uniform distribution function."""
    ordered = probability.flatten().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=ordered.dtype) / len(ordered)
    return max((ordered - steps[:-1]).max().item(), (steps[1:] - ordered).max().item())


def test_normal_is_standard_normal():
    """Kolmogorov-Smirnov and the first four moments of 2e5 numbers, within four standard errors."""
    sample = normal(key(200), "noise", (10, 100))
    assert sample.shape == (200, 10, 100)
    assert sample.dtype == torch.float32
    flat = sample.double().flatten()
    root = math.sqrt(len(flat))
    assert kolmogorov(torch.special.ndtr(flat)) < 1.63 / root
    assert flat.mean().abs() < 4 / root
    assert (flat.square().mean() - 1).abs() < 4 * math.sqrt(2) / root
    assert flat.pow(3).mean().abs() < 4 * math.sqrt(15) / root
    assert (flat.pow(4).mean() - 3).abs() < 4 * math.sqrt(96) / root


def test_normal_is_the_quantile_of_uniform():
    quantile = statistics.NormalDist().inv_cdf
    expected = [[quantile(value) for value in row] for row in uniform(key(), "noise", 12).tolist()]
    assert_close(normal(key(), "noise", (12,)), torch.tensor(expected))


def test_neighbouring_records_visits_and_numbers_are_uncorrelated():
    """Of 1e5 pairs each, within 4 / sqrt(1e5)."""
    sample = normal(key(1001), "noise", (100,))
    later = normal(key(1001, visit=1), "noise", (100,))
    bound = 4 / math.sqrt(100_000)
    assert correlation(sample[:-1].flatten(), sample[1:].flatten()).abs() < bound
    assert correlation(sample.flatten(), later.flatten()).abs() < bound
    assert correlation(sample[:, :-1].flatten(), sample[:, 1:].flatten()).abs() < bound


def test_integers_are_in_range_and_uniform():
    """Chi-squared with 9 degrees of freedom on 1e5 draws: below 27.9, its 99.9 percent point."""
    drawn = integers(key(100_000), "timestep", 10)
    assert drawn.dtype == torch.int64
    count = torch.bincount(drawn)
    assert len(count) == 10
    assert ((count - 10_000).square() / 10_000).sum() < 27.9


def test_integers_reach_both_ends_and_one_value_is_a_constant():
    drawn = integers(key(20_000), "timestep", 1000)
    assert (drawn.min().item(), drawn.max().item()) == (0, 999)
    assert_close(integers(key(), "timestep", 1), torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_bernoulli_is_exact_at_both_ends(probability: float, share: float):
    drawn = bernoulli(key(100_000), "dropout", probability)
    assert drawn.dtype == torch.bool
    assert drawn.double().mean() == share


def test_bernoulli_has_its_probability():
    """Within four standard errors, sqrt(0.2 * 0.8 / 1e5)."""
    share = bernoulli(key(100_000), "dropout", 0.2).double().mean()
    assert (share - 0.2).abs() < 4 * math.sqrt(0.16 / 100_000)
