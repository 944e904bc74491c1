"""A user's mistakes: a few words that name the thing and say what to do, no traceback, and nothing left."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from alignkit import Batch, Loss, Objective, Scored
from alignkit.configfiles import packaged_configs
from tests.runs import environment

Run = Callable[..., tuple[int, str, str]]
Offer = Callable[[str, str, str], None]

CONFIG = """
objective:
  name: DMPO
  beta: 200.0
sampler: SharedNoise
backbone:
  name: StableDiffusion
  path: PIPELINE
optimizer:
  name: AdamW
  lr: 1.0e-4
data:
  train:
    class_path: tests.integration.conftest.NoisyPairs
  batch_size: 8
  resolution: 16
evaluation:
  rewards: [MajorityTaste]
  max_prompts: 0
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 2
  log_every_n_steps: 1
  enable_progress_bar: false
"""
OBJECTIVE = "objective:\n  name: DMPO\n  beta: 200.0\n"
PATH = "alignkit_dmpo.objective"
BACKBONE = "alignkit_diffusers.stable_diffusion.StableDiffusion"
EMA = "--trainer.callbacks=alignkit.callbacks.EMA"

# what is added to the command line, and what the message must say
ON_THE_COMMAND_LINE = {
    "--objective DMPPO": ["unknown objective 'DMPPO'", "did you mean 'DMPO'?", "Installed:", "DiffusionDPO"],
    "--objective nowhere.Thing": [
        "--objective: 'nowhere.Thing' is refused",
        "--trust nowhere",
        "Installed: ",
    ],
    "--objective nowhere.Thing --trust nowhere": [
        "--objective: cannot import 'nowhere.Thing'",
        "Installed: ",
        "DMPO",
    ],
    f"--objective {PATH}.DMPPO": [f"cannot import '{PATH}.DMPPO'", "no attribute 'DMPPO'", "Installed: "],
    f"--objective {BACKBONE}": ["--objective:", "StableDiffusion' is no Objective", "Installed: ", "DMPO"],
    "--objective": ["--objective: needs a value", "alignkit list"],
    "--objective.betta 3": ["--objective.betta: DMPO has no argument 'betta'", "did you mean beta?", "alpha"],
    "--objective.beta abc": ["--objective.beta: must be a number, got 'abc'"],
    "--objective.beta": ["--objective.beta: needs a value"],
    "--objective.beta -1": ["error: DMPO: beta must be positive, got -1.0"],
    "--objective.beta 0": ["error: DMPO: beta must be positive, got 0.0"],
    "--objective.alpha 0.7": ["error: DMPO: alpha must lie in (0, 0.5], got 0.7"],
    "--objective.beta ${vars.x}": ["--objective.beta: ${vars.x} stands for nothing", "--vars.x VALUE"],
    "--objective.beta ${data.bs}": ["--objective.beta: ${data.bs} stands for nothing"],
    "--objective.beta ${vars.x": ["--objective.beta: cannot read '${vars.x'", "${vars.NAME}"],
    "--objective {name:": ["--objective: is no YAML"],
    "--objective.help DMPPO": ["unknown objective 'DMPPO'", "did you mean 'DMPO'?"],
    "--objctive DMPO": ["unknown option --objctive", "did you mean --objective?"],
    "--trainer.max_step 3": ["unknown option --trainer.max_step", "did you mean --trainer.max_steps?"],
    "--trainer.max_steps soon": ["--trainer.max_steps: must be a whole number, got 'soon'"],
    "--trainer.precision 17": ["--trainer.precision: must be 64, 32, 16", "got '17'"],
    "--trainer.accelerator quantum": ["trainer: ", "quantum", "cpu"],
    "--trainer.callbacks alignkit.callbacks.EMAA": ["--trainer.callbacks: cannot import", "EMAA"],
    f"{EMA} --trainer.callbacks.decy 1": ["--trainer.callbacks.decy: EMA has no", "did you mean decay?"],
    f"{EMA} --trainer.callbacks.decay 3": ["error: EMA: decay must be between 0 and 1, got 3.0"],
    "--data.batch_size many": ["--data.batch_size: must be a whole number, got 'many'"],
    "--data.batch_size 0": ["error: AlignData: batch_size must be at least 1, got 0"],
    "--data.batch_size 1000": ["48 training pairs are fewer than the 1000", "lower batch_size"],
    "--data.train PickAPic": ["--data.train: PickAPic needs path", "--data.train.path"],
    "--data.train PickAPic --data.train.path nowhere": ["error: PickAPic: path 'nowhere' is no parquet file"],
    "--data.train EmojiPairs --data.train.split dev": ["--data.train.split: must be train or test", "'dev'"],
    "--backbone.path nowhere": ["StableDiffusion: path 'nowhere' is no pipeline folder", "Give a folder"],
    "--backbone.lora.rnk 2": ["--backbone.lora.rnk: LoRA has no argument 'rnk'", "did you mean rank?"],
    "--backbone.lora.rank 0": ["error: LoRA: rank must be at least 1, got 0"],
    "--backbone.lora 3": ["--backbone.lora: must be a class path, or a mapping of its arguments, got '3'"],
    "--sampler.max_step 5000": ["SharedNoise: max_step must be at most 999", "got 5000"],
    "--optimizer AdmW": ["unknown optimizer 'AdmW'", "did you mean 'AdamW'?", "SGD"],
    "--optimizer.lrr 1": ["--optimizer.lrr: AdamW has no argument 'lrr'", "did you mean lr?", "weight_decay"],
    "--optimizer.lr -1": ["torch.optim", "Invalid learning rate: -1.0"],
    '--evaluation.rewards ["Nope"]': ["unknown reward 'Nope'", "Installed:", "MajorityTaste"],
    "--evaluation.num_steps 0": ["error: Evaluation: num_steps must be at least 1, got 0"],
    "--ckpt_path nothere.ckpt": ["--ckpt_path: there is no 'nothere.ckpt'", "last.ckpt"],
    "hello": ["unexpected argument 'hello'", "--config FILE"],
    "--config nothere.yaml": ["no config 'nothere.yaml'", "With alignkit come:", "alignkit list --configs"],
    "--config .": ["config '.' is a folder"],
    "--config": ["--config: needs a value", "alignkit list --configs"],
}

# what is replaced in the config by what, and what the message must say
IN_THE_CONFIG = {
    "class": ("name: DMPO", "name: DMPPO", ["unknown objective 'DMPPO'", "did you mean 'DMPO'?"]),
    "short class": (OBJECTIVE, "objective: DMPPO\n", ["unknown objective 'DMPPO'", "did you mean 'DMPO'?"]),
    "class path": (
        OBJECTIVE,
        f"objective: {{class_path: {PATH}.DMPPO}}\n",
        [f"tiny.yaml: objective: cannot import '{PATH}.DMPPO'", "Installed: "],
    ),
    "name is a number": ("name: DMPO", "name: 3", ["objective: its name must be text, got 3"]),
    "name and class_path": (
        "name: DMPO",
        f"name: DMPO\n  class_path: {PATH}.DMPO",
        ["objective: give name or class_path, not both"],
    ),
    "list for a class": (OBJECTIVE, "objective: [DMPO]\n", ["tiny.yaml: objective: must be a name, or a"]),
    "argument": (
        "beta: 200.0",
        "betta: 2",
        ["tiny.yaml: objective.betta: DMPO has no", "mean beta?"],
    ),
    "argument of a source": (
        "NoisyPairs",
        "NoisyPairs\n    init_args: {counts: 2}",
        ["tiny.yaml: data.train.counts: NoisyPairs has no argument 'counts'", "did you mean count?"],
    ),
    "argument of a reward": (
        "[MajorityTaste]",
        "[{name: MajorityTaste, beta: 3}]",
        ["tiny.yaml: evaluation.rewards.beta: MajorityTaste has no argument 'beta'"],
    ),
    "argument of the optimizer": (
        "lr: 1.0e-4",
        "lrr: 1",
        ["tiny.yaml: optimizer.lrr: AdamW has no argument 'lrr'", "did you mean lr?"],
    ),
    "key": ("sampler:", "samplr:", ["tiny.yaml: samplr: unknown key", "did you mean sampler?"]),
    "nested key": ("max_steps: 2", "max_step: 2", ["tiny.yaml: trainer.max_step: unknown key", "max_steps?"]),
    "number": ("batch_size: 8", "batch_size: many", ["tiny.yaml: data.batch_size: must be a whole number"]),
    "number of a class": ("beta: 200.0", "beta: abc", ["tiny.yaml: objective.beta: must be a number", "abc"]),
    "number of the optimizer": ("lr: 1.0e-4", "lr: quick", ["tiny.yaml: optimizer.lr: must be a number"]),
    "beta is negative": ("beta: 200.0", "beta: -1", ["error: DMPO: beta must be positive, got -1.0"]),
    "interpolation": ("beta: 200.0", "beta: ${vars.x}", ["tiny.yaml: objective.beta: ${vars.x} stands for"]),
    "optimizer": ("name: AdamW", "name: AdmW", ["unknown optimizer 'AdmW'", "did you mean 'AdamW'?"]),
    "reward": ("[MajorityTaste]", "[Nope]", ["unknown reward 'Nope'", "Installed:", "MajorityTaste"]),
    "no objective": (OBJECTIVE, "", ["objective: missing in the config", "Installed: ", "DMPO"]),
    "no source": (
        "  train:\n    class_path: tests.integration.conftest.NoisyPairs\n",
        "",
        ["data.train: missing in the config", "Installed: ", "EmojiPairs"],
    ),
    "open bracket": ("name: DMPO", "name: [DMPO", ["tiny.yaml, line 4, column 7: is no YAML"]),
    "tab": ("  name: DMPO", "\tname: DMPO", ["tiny.yaml, line 3, column 1: is no YAML", "spaces, not tabs"]),
    "empty": (CONFIG, "", ["tiny.yaml: is empty", "objective: NAME"]),
    "list": (CONFIG, "- 1\n- 2\n", ["tiny.yaml: must map keys to values", "got [1, 2]"]),
    "text": (CONFIG, "hello\n", ["tiny.yaml: must map keys to values", "got 'hello'"]),
    "picture": (CONFIG, "\x89PNG", ["tiny.yaml: is no text file in UTF-8"]),
}

# whole command lines, and what the message must say
OTHERWISE = {
    "fit": ["no config", "alignkit fit --config FILE", "alignkit list --configs"],
    "validate": ["no config", "alignkit validate --config FILE", "alignkit list --configs"],
    "fot": ["unknown command 'fot'", "the commands are fit, "],
    "-p": ["-p takes no:PLUGIN", "alignkit -p no:acme list"],
    "-p emoji list": ["-p takes no:PLUGIN"],
    "list --config": ["alignkit list takes --configs or --papers, got '--config'"],
    "generate --prompt x": ["--run", "required", "alignkit generate --help"],
    "generate --run x": ["--prompt", "required", "alignkit generate --help"],
    "generate --run x --prompt x --num many": ["--num", "'many'", "alignkit generate --help"],
    "generate --run nowhere --prompt x": ["--run nowhere: no config.yaml there", "give the folder"],
}


@pytest.fixture
def config(pipeline: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("PIPELINE", str(pipeline)))
    return path


def assert_told(result: tuple[int, str, str], wanted: list[str], folder: Path, before: set[Path]) -> None:
    code, out, err = result
    assert code == 2, err
    assert out == ""
    lines = err.splitlines()
    assert 1 <= len(lines) <= 5
    assert all(len(line) <= 220 for line in lines)
    assert "Traceback" not in err
    assert "fit." not in err
    assert "Union" not in err
    for words in wanted:
        assert words in err
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(("options", "wanted"), ON_THE_COMMAND_LINE.items(), ids=ON_THE_COMMAND_LINE)
def test_on_the_command_line(
    alignkit: Run, config: Path, tmp_path: Path, options: str, wanted: list[str]
) -> None:
    result = alignkit("fit", "--config", "tiny.yaml", *options.split(" "))
    assert_told(result, wanted, tmp_path, {config})


@pytest.mark.parametrize(("old", "new", "wanted"), IN_THE_CONFIG.values(), ids=IN_THE_CONFIG)
def test_in_the_config(
    alignkit: Run, config: Path, tmp_path: Path, pipeline: Path, old: str, new: str, wanted: list[str]
) -> None:
    assert CONFIG.count(old) == 1
    config.write_bytes(CONFIG.replace(old, new).replace("PIPELINE", str(pipeline)).encode("latin-1"))
    assert_told(alignkit("fit", "--config", "tiny.yaml"), wanted, tmp_path, {config})


@pytest.mark.parametrize(("line", "wanted"), OTHERWISE.items(), ids=OTHERWISE)
def test_otherwise(alignkit: Run, tmp_path: Path, line: str, wanted: list[str]) -> None:
    assert_told(alignkit(*line.split()), wanted, tmp_path, set())


def test_misspelt_config_is_answered_with_the_nearest(alignkit: Run, tmp_path: Path) -> None:
    name = next(iter(packaged_configs()))
    result = alignkit("fit", "--config", name.replace(".yaml", "o.yaml"))
    assert_told(result, [f"did you mean '{name}'"], tmp_path, set())


def test_run_without_a_trained_network_has_nothing_to_generate(
    alignkit: Run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, saved, _ = alignkit("fit", "--config", "tiny.yaml", "--print_config")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(saved)
    before = set(tmp_path.rglob("*"))
    result = alignkit("generate", "--run", "run", "--prompt", "a pear")
    assert_told(result, ["--run run: no trained network", "come to its end?"], tmp_path, before)


@pytest.fixture
def offer(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
    """Installs a distribution with one plugin beside what is installed."""
    found: list[EntryPoint] = [*entry_points(group="alignkit")]
    before = set(sys.modules)

    def write(distribution: str, name: str, source: str) -> None:
        module = f"errortest_{distribution}"
        site = tmp_path_factory.mktemp("site")
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[alignkit]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(str(site))
        found.extend(entry for dist in distributions(path=[str(site)]) for entry in dist.entry_points)

    monkeypatch.setattr("alignkit.catalog.entry_points", lambda group: found)
    yield write
    for module in set(sys.modules) - before:
        if module.startswith("errortest_"):
            del sys.modules[module]


BROKEN = "raise RuntimeError('no\\nsuch driver')"
GOOD = """
from alignkit import hookimpl

@hookimpl
def alignkit_objectives():
    return {{"{name}": "errortest_nowhere:{name}"}}
"""


def test_broken_plugin_whose_component_is_wanted(
    alignkit: Run, config: Path, tmp_path: Path, offer: Offer
) -> None:
    offer("broken", "broken", BROKEN)
    result = alignkit("fit", "--config", "tiny.yaml", "--objective", "Mine")
    wanted = ["unknown objective 'Mine'", "plugin 'broken' of broken 1.0", "RuntimeError: no such driver"]
    assert_told(result, [*wanted, "alignkit -p no:broken"], tmp_path, {config})


def test_broken_plugin_that_nobody_wants_is_a_warning(alignkit: Run, config: Path, offer: Offer) -> None:
    offer("broken", "broken", BROKEN)
    code, out, err = alignkit("fit", "--config", "tiny.yaml", "--print_config")
    assert code == 0
    assert "DMPO" in out
    assert "alignkit: warning: plugin 'broken' of broken 1.0" in err
    assert "alignkit -p no:broken" in err
    assert len(err.splitlines()) == 2
    code, _, err = alignkit("-p", "no:broken", "fit", "--config", "tiny.yaml", "--print_config")
    assert (code, err) == (0, "")


def test_component_that_cannot_be_imported(alignkit: Run, config: Path, tmp_path: Path, offer: Offer) -> None:
    offer("half", "half", GOOD.format(name="Half"))
    result = alignkit("fit", "--config", "tiny.yaml", "--objective", "Half")
    wanted = ["objective 'Half' of plugin 'half' (half 1.0): cannot import errortest_nowhere:Half"]
    assert_told(result, [*wanted, "Repair or reinstall half 1.0", "DMPO"], tmp_path, {config})


def test_two_plugins_of_one_name(alignkit: Run, config: Path, tmp_path: Path, offer: Offer) -> None:
    offer("first", "same", GOOD.format(name="First"))
    offer("second", "same", GOOD.format(name="Second"))
    wanted = ["two plugins are named 'same': one of first 1.0, one of second 1.0", "alignkit -p no:second"]
    assert_told(alignkit("fit", "--config", "tiny.yaml"), wanted, tmp_path, {config})


def test_two_components_of_one_name(alignkit: Run, config: Path, tmp_path: Path, offer: Offer) -> None:
    offer("first", "one", GOOD.format(name="Same"))
    offer("second", "two", GOOD.format(name="Same"))
    wanted = ["objective 'Same'", "plugin 'one' (first 1.0)", "plugin 'two' (second 1.0)"]
    result = alignkit("fit", "--config", "tiny.yaml")
    assert_told(result, [*wanted, "alignkit -p no:one ... or alignkit -p no:two"], tmp_path, {config})


@pytest.mark.parametrize(
    "options",
    [
        "--objective DMPPO",
        "--objective.betta 3",
        "--objective.beta abc",
        "--objective.beta 0",
        "--objective.beta ${vars.x}",
        "--config nothere.yaml",
        "--ckpt_path nothere.ckpt",
        "--optimizer.lr -1",
    ],
)
def test_debug_shows_the_traceback(alignkit: Run, config: Path, options: str) -> None:
    code, _, err = alignkit("--debug", "fit", "--config", "tiny.yaml", *options.split())
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert "alignkit: error: " in err


def test_debug_shows_the_traceback_of_plugins(alignkit: Run, config: Path, offer: Offer) -> None:
    offer("broken", "broken", BROKEN)
    code, _, err = alignkit("--debug", "fit", "--config", "tiny.yaml", "--objective", "Mine")
    assert code == 2
    assert BROKEN in err  # the plugin's own line
    offer("again", "broken", BROKEN)
    code, _, err = alignkit("--debug", "list")
    assert code == 2
    assert "Traceback (most recent call last)" in err


class Faulty(Objective):
    """Fails in the training step, as its author did not intend."""

    uses: ClassVar[frozenset[str]] = frozenset({"logp"})

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        if self.way == "zip":
            dict(zip(batch.prompts, [], strict=True))
        if self.way == "torch":
            torch.nn.functional.binary_cross_entropy(torch.zeros(2), torch.zeros(3))
        raise RuntimeError("a defect")

    def initial_loss(self) -> None:
        return None


@pytest.mark.parametrize(
    ("way", "error", "message"),
    [
        ("zip", ValueError, "zip"),
        ("torch", ValueError, "target size"),
        ("raise", RuntimeError, "a defect"),
    ],
)
def test_defect_in_the_loop_keeps_its_traceback(
    alignkit: Run, config: Path, way: str, error: type[Exception], message: str
) -> None:
    objective = f"--objective={__name__}.Faulty"
    with pytest.raises(error, match=message):
        alignkit("fit", "--config", "tiny.yaml", objective, "--objective.way", way)


def test_module_works_as_the_command_and_says_nothing_else(config: Path, tmp_path: Path) -> None:
    """In a process of its own: what the libraries say when they are imported is in it."""
    command = [
        sys.executable,
        "-m",
        "alignkit.cli",
        "--trust",
        "tests",
        "fit",
        "--config",
        "tiny.yaml",
        "--objective.beta",
        "0",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.stderr == "alignkit: error: DMPO: beta must be positive, got 0.0\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert set(tmp_path.rglob("*")) == {config}
