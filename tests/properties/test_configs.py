"""Configs: what is expanded stays as it is, what is saved reads back the same, and no unknown key passes."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from alignkit import training
from alignkit.beta import Convention, convert
from alignkit.catalog import Catalog, discover
from alignkit.configfiles import packaged_configs
from alignkit.mistakes import UsageError
from alignkit.naming import OPTIMIZERS, PLACES, absolute, expand, expand_config

# for what takes a while; thorough profiles have more, too
FEWER = settings(max_examples=settings().max_examples // 8)
NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10)
REFERENCES = st.builds("${{{}}}".format, st.lists(NAMES, min_size=1, max_size=3).map(".".join))
# interpolations in the middle of texts, and what only looks like one
TEXTS = st.lists(
    REFERENCES | st.sampled_from(["${", "}", "$", "${.a}", "${oc.env:HOME}", "a b", "${fit.a}"]), max_size=4
).map("".join)
TREES = st.recursive(
    LEAVES | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return discover()


def components(catalog: Catalog) -> list[tuple[str, str]]:
    """Every place of a config, with every name that may stand there."""
    names = [(place, name) for place, kind in PLACES.items() for name in catalog.names(kind)]
    return names + [("optimizer", name) for name in OPTIMIZERS]


@given(value=TREES, command=st.sampled_from(["fit", "validate"]))
def test_interpolations_are_made_absolute_once(value: Any, command: str) -> None:
    once = absolute(value, command)
    assert absolute(once, command) == once
    assert json.dumps(once).replace(f"${{{command}.", "${") == json.dumps(value).replace(
        f"${{{command}.", "${"
    )


@given(data=st.data())
def test_expanding_what_is_expanded_changes_nothing(data: Any, catalog: Catalog) -> None:
    """And all ways to name a component with an argument are one."""
    place, name = data.draw(st.sampled_from(components(catalog)))
    arguments = data.draw(st.dictionaries(NAMES.filter(lambda key: key not in ("name", "class_path")), TREES))
    kind = PLACES[place]
    once = expand(catalog, kind, {"name": name, **arguments})
    assert expand(catalog, kind, once) == once
    assert expand(catalog, kind, {"class_path": name, "init_args": arguments}) == once
    assert once["init_args"].items() >= arguments.items()
    if not arguments:
        assert expand(catalog, kind, name) == once
    assert expand(catalog, kind, [once, {"name": name, **arguments}]) == [once, once]


@given(config=st.dictionaries(NAMES, TREES, max_size=4), data=st.data())
def test_expanding_a_config_leaves_what_names_no_component(
    config: dict[str, Any], data: Any, catalog: Catalog
) -> None:
    config = {
        key: value
        for key, value in config.items()
        if key not in {place.partition(".")[0] for place in PLACES}
    }
    named = data.draw(st.lists(st.sampled_from(components(catalog)), max_size=3))
    whole: dict[str, Any] = dict(config)
    for place, name in named:
        head, _, tail = place.partition(".")
        whole[head] = {**whole.get(head, {}), tail: name} if tail else name
    before = json.dumps(whole)
    once = expand_config(catalog, whole)
    assert json.dumps(whole) == before
    assert expand_config(catalog, once) == once
    assert {key: once[key] for key in config} == config
    assert once.keys() == whole.keys()


def read(catalog: Catalog, path: Path, *options: str) -> dict[str, Any]:
    return training.read_config(catalog, ["--config", str(path), *options])


def said(tree: Any) -> Any:
    """A parsed config without what says where it was read."""
    if isinstance(tree, dict):
        return {key: said(value) for key, value in tree.items() if key not in ("config", "__path__")}
    return [said(item) for item in tree] if isinstance(tree, list) else tree


FITTED = [name for name in packaged_configs() if not name.startswith("emoji/")]


@FEWER
@given(
    name=st.sampled_from(FITTED),
    batch_size=st.integers(1, 10**6),
    lr=st.floats(0, 10, allow_subnormal=False),
    seed=st.integers(0, 2**32 - 1),
    prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
@example(name=FITTED[0], batch_size=1, lr=0.0, seed=0, prompt="0")  # a text, though it reads as a number
def test_a_printed_config_reads_back_as_what_was_said(
    name: str,
    batch_size: int,
    lr: float,
    seed: int,
    prompt: str,
    catalog: Catalog,
    tmp_path: Path,
    capsys: Any,
) -> None:
    """With overrides of every kind of value; what is printed is what a run saves as its config.yaml."""
    override = tmp_path / "override.yaml"
    content = {
        "data": {"batch_size": batch_size},
        "optimizer": {"lr": lr},
        "seed_everything": seed,
        "vars": {"text": prompt},
    }
    override.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    arguments = ["--config", name, "--config", str(override)]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        training.read_config(catalog, [*arguments, "--print_config"])
    saved = tmp_path / "config.yaml"
    saved.write_text(capsys.readouterr().out, encoding="utf-8")
    first = training.read_config(catalog, arguments)
    assert first["data"]["batch_size"] == batch_size
    assert first["optimizer"]["init_args"]["lr"] == lr
    assert first["seed_everything"] == seed
    assert first["vars"] == {"text": prompt}
    assert said(read(catalog, saved)) == said(first)


@FEWER
@given(data=st.data(), key=NAMES, value=LEAVES)
def test_no_unknown_key_passes(data: Any, key: str, value: Any, catalog: Catalog, tmp_path: Path) -> None:
    """Wherever it stands in a config that is right otherwise; only ``vars`` takes any."""
    config = yaml.safe_load(packaged_configs()["dmpo.yaml"].read_text(encoding="utf-8"))
    mappings = [("", config)] + [(k, v) for k, v in config.items() if isinstance(v, dict) and k != "vars"]
    place, mapping = data.draw(st.sampled_from(mappings))
    known = training.read_config(catalog, ["--config", "dmpo.yaml"])
    section = known.get(place, {}) if place else known
    assume(key not in section and key not in section.get("init_args", {}) and key != "name")
    mapping[key] = value
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    with pytest.raises(UsageError, match=key):
        read(catalog, path)


CONVENTIONS = st.builds(
    Convention, st.just("one"), st.just("here"), half=st.booleans(), summed=st.booleans(), steps=st.booleans()
)
BETAS = st.floats(1e-9, 1e9)


@given(
    beta=BETAS,
    one=CONVENTIONS,
    other=CONVENTIONS,
    third=CONVENTIONS,
    shape=st.tuples(*[st.integers(1, 256)] * 3),
    steps=st.integers(1, 4000),
)
def test_a_beta_comes_back_over_any_detour(
    beta: float, one: Convention, other: Convention, third: Convention, shape: Any, steps: int
) -> None:
    there = convert(beta, one, other, shape=shape, steps=steps)
    assert convert(there, other, one, shape=shape, steps=steps) == pytest.approx(beta, rel=1e-12)
    onward = convert(there, other, third, shape=shape, steps=steps)
    assert onward == pytest.approx(convert(beta, one, third, shape=shape, steps=steps), rel=1e-12)
    assert convert(2 * beta, one, other, shape=shape, steps=steps) == pytest.approx(2 * there, rel=1e-12)
