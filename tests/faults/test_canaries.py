"""Hostile files and names: whatever they would have run leaves a canary, and none may be there.

Each goes through the command or the loader that a user would hand it to, in this process.
"""

import ast
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from alignkit import checkpoints
from alignkit.cli import main
from alignkit.data.pictures import whole_picture
from alignkit.testing.pipelines import tiny_stable_diffusion
from alignkit_ppd.clip import ClipDifference
from alignkit_rewards.weights import read_tensors
from alignkit_sources.tables import table
from tests.runs import environment

Run = Callable[..., str]
ROOT = Path(__file__).parents[2]
CONFIG = """
objective: {name: DMPO}
sampler: SharedNoise
backbone: {class_path: alignkit.testing.ToyBackbone}
optimizer: {name: AdamW}
data:
  train: {class_path: alignkit.testing.ToyPairs}
trainer:
  max_steps: 1
  accelerator: cpu
"""
# imported, called or made: whichever is done with it is seen
MODULE = """
from pathlib import Path
CANARY = Path({canary!r})
CANARY.touch()
def function(*args, **kwargs):
    CANARY.touch()
class Thing:
    def __init__(self, *args, **kwargs):
        CANARY.touch()
    def __call__(self, *args, **kwargs):
        CANARY.touch()
"""


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that is not there at the end of the test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def refused(
    tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Runs a command that must refuse, where modules `hostile` and `torch_optim` could be imported.

    Gives what it says.
    """
    work = tmp_path / "work"
    work.mkdir()
    for name in ("hostile", "torch_optim"):
        (work / f"{name}.py").write_text(MODULE.format(canary=str(canary)))
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (work / "toy.yaml").write_text(CONFIG)

    def run(*arguments: str) -> str:
        before = sorted(work.rglob("*"))
        monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        assert code == 2, said
        assert "Traceback" not in said.err
        assert sorted(work.rglob("*")) == before
        assert not canary.exists()
        assert not {"hostile", "torch_optim"} & sys.modules.keys()
        return said.err

    yield run
    monkeypatch.delenv("ALIGNKIT_RUN", raising=False)


def changed(text: str) -> str:
    """A file of the toy config with other keys."""
    path = Path("hostile.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(CONFIG) | yaml.safe_load(text)))
    return str(path)


# what a config may say: its keys, the key that is named, and the path
HOSTILE_CONFIGS = {
    "class of a module in the way": ("objective: {class_path: hostile.Thing}", "objective", "hostile.Thing"),
    "name with a dot": ("objective: hostile.Thing", "objective", "hostile.Thing"),
    "name of a name": ("objective: {name: hostile.Thing}", "objective", "hostile.Thing"),
    "class of a module that looks allowed": (
        "optimizer: {class_path: torch_optim.Thing}",
        "optimizer",
        "torch_optim.Thing",
    ),
    "callback": ("trainer: {callbacks: [{class_path: hostile.Thing}]}", "trainer.callbacks", "hostile.Thing"),
    "callback by its path": ("trainer: {callbacks: hostile.Thing}", "trainer.callbacks", "hostile.Thing"),
    "logger": ("trainer: {logger: {class_path: hostile.Thing}}", "trainer.logger", "hostile.Thing"),
    "strategy": ("trainer: {strategy: {class_path: hostile.Thing}}", "trainer.strategy", "hostile.Thing"),
    "plugin": ("trainer: {plugins: [hostile.Thing]}", "trainer.plugins", "hostile.Thing"),
    "optimizer that is a function": ("optimizer: hostile.function", "optimizer", "hostile.function"),
    "function of the system": ("optimizer: os.system", "optimizer", "os.system"),
    "process": ("optimizer: {class_path: subprocess.Popen}", "optimizer", "subprocess.Popen"),
    "builtin": ("optimizer: builtins.eval", "optimizer", "builtins.eval"),
    "walk through an allowed package": (
        "optimizer: lightning.pytorch.trainer.trainer.os.system",
        "optimizer",
        "lightning.pytorch.trainer.trainer.os.system",
    ),
    "walk to a class": (
        "trainer: {callbacks: [{class_path: lightning.pytorch.trainer.trainer.logging.FileHandler, "
        "init_args: {filename: x.log}}]}",
        "trainer.callbacks",
        "logging.FileHandler",
    ),
    "function handed to an allowed callback": (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, "
        "init_args: {on_fit_start: hostile.function}}]}",
        "trainer.callbacks",
        "hostile.function",
    ),
    "in a list in arguments": (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.Timer, init_args: "
        "{duration: [{class_path: hostile.Thing}]}}]}",
        "trainer.callbacks",
        "hostile.Thing",
    ),
    "in free arguments": (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.Timer, dict_kwargs: "
        "{duration: {class_path: hostile.Thing}}}]}",
        "trainer.callbacks",
        "hostile.Thing",
    ),
    "in free values": ("vars: {x: {class_path: hostile.Thing}}", "vars.x", "hostile.Thing"),
    "source within a source": (
        "data: {train: {class_path: alignkit_adaptive_dpo.source.FlippedPairs, init_args: "
        "{flips: x, source: {class_path: hostile.Thing}}}}",
        "data.train.init_args.source",
        "hostile.Thing",
    ),
    "assembled": (
        "vars: {of: hostile, what: Thing}\n"
        "trainer: {callbacks: [{class_path: '${vars.of}.${vars.what}'}]}",
        "trainer.callbacks",
        "${vars.of}.${vars.what}",
    ),
    "of another key": (
        "vars: {x: hostile.function}\noptimizer: '${vars.x}'",
        "optimizer",
        "${vars.x}",
    ),
    "import by a resolver": ("vars: {x: '${oc.coerce:hostile.Thing,1}'}", "vars.x", "oc.coerce"),
    "environment by a resolver": ("vars: {x: '${oc.env:HOME}'}", "vars.x", "oc.env"),
    "resolver whose name is assembled": (
        "vars: {name: env, x: '${oc.${vars.name}:HOME}'}",
        "vars.x",
        "oc.env",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_CONFIGS)
def test_config_imports_nothing_that_is_not_trusted(case: str, refused: Run) -> None:
    text, key, path = HOSTILE_CONFIGS[case]
    said = refused("fit", "--config", changed(text))
    assert key in said
    assert path in said


HOSTILE_ARGUMENTS = {
    "component": (("--objective", "hostile.Thing"), "--objective"),
    "class path": (("--objective={class_path: hostile.Thing}",), "--objective"),
    "appended": (("--trainer.callbacks+=hostile.Thing",), "trainer.callbacks"),
    "appended class path": (("--trainer.callbacks+={class_path: hostile.Thing}",), "trainer.callbacks"),
    "argument of a class": (
        ("--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.x=hostile.Thing"),
        "trainer.logger",
    ),
    "config beside a config": (("--config", "nested.yaml"), "trainer.callbacks"),
    "config within a config": (("--optimizer", "nested_optimizer.yaml"), "optimizer"),
    "help of a component": (("--objective.help", "hostile.Thing"), "--objective.help"),
    "help of a class": (("--trainer.logger.help=hostile.Thing",), "--trainer.logger.help"),
    "help of an optimizer": (("--optimizer.help", "hostile.Thing"), "optimizer"),
    "value in the environment": (("--vars.x=${oc.env:HOME}",), "vars.x"),
}


@pytest.mark.parametrize("case", HOSTILE_ARGUMENTS)
def test_command_line_imports_nothing_that_is_not_trusted(case: str, refused: Run) -> None:
    arguments, key = HOSTILE_ARGUMENTS[case]
    Path("nested.yaml").write_text("trainer: {callbacks: [{class_path: hostile.Thing}]}")
    Path("nested_optimizer.yaml").write_text("{class_path: hostile.Thing}")
    said = refused("fit", "--config", "toy.yaml", *arguments)
    assert key in said


# what else builds parts of a config: a line in which {} is the config and _ a blank, and the key
EVALUATE = (
    "--model base --model x={{class_path:_alignkit.testing.ToyBackbone}} --suite emoji --reward EmojiFidelity"
)
COMMANDS = {
    "validate": ("validate --config {}", "sampler"),
    "plan": ("plan --config {}", "backbone"),
    "data": ("data check {}", "data"),
    "cache": ("cache --config {} --out cache", "backbone"),
    "pairs": ("pairs --config {} --prompt a --out out --reward EmojiFidelity", "backbone"),
    "invert": ("invert --config {} --steps 5", "sampler"),
    "users": ("users --config {} --out users.safetensors", "conditioner"),
    "flip": ("flip --config {} --rate 0.2 --out flips.json", "data"),
    "evaluate": (f"evaluate --config {{}} {EVALUATE}", "backbone"),
    "evaluate a run": ("evaluate --run run", "backbone"),
    "generate of a run": ("generate --run run --prompt a", "backbone"),
    "export a run": ("export --run run --format lora", "backbone"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_no_command_imports_what_is_not_trusted(case: str, refused: Run) -> None:
    line, part = COMMANDS[case]
    if part == "data":
        path = changed("data: {train: {class_path: hostile.Thing}}")
    else:
        path = changed(f"{part}: {{class_path: hostile.Thing}}")
    Path("run").mkdir()
    Path(path).rename("run/config.yaml")
    said = refused(
        *(word.replace("class_path:_", "class_path: ") for word in line.format("run/config.yaml").split())
    )
    assert f"{part}." in said
    assert "'hostile.Thing'" in said
    assert "--trust hostile" in said


@pytest.mark.parametrize(
    "line",
    [
        "serve-reward hostile.Thing --port 0",
        "serve-reward {{class_path:_hostile.Thing}} --port 0",
        f"evaluate --config toy.yaml {EVALUATE} --reward hostile.Thing",
        f"evaluate --config toy.yaml {EVALUATE} --model y={{{{class_path:_hostile.Thing}}}}",
        f"evaluate --config toy.yaml {EVALUATE} --suite {{{{class_path:_hostile.Thing}}}}",
        "pairs --config toy.yaml --prompt a --out out --reward hostile.Thing",
    ],
)
def test_no_option_imports_what_is_not_trusted(line: str, refused: Run) -> None:
    said = refused(*(word.replace("class_path:_", "class_path: ") for word in line.format().split()))
    assert "'hostile.Thing'" in said
    assert "--trust hostile" in said


def test_what_is_trusted_is_imported(refused: Run, canary: Path) -> None:
    """The refusal is what keeps the canary away: with trust it is there."""
    path = changed("optimizer: hostile.function")
    assert "--trust hostile" in refused("fit", "--config", path)
    with pytest.raises(SystemExit):  # having printed
        main(["fit", "--trust", "hostile", "--config", path, "--print_config"])
    assert canary.exists()
    canary.unlink()
    sys.modules.pop("hostile")
    refused("fit", "--config", path)  # it holds for one command


@pytest.mark.parametrize("module", ["", "a-b", "*", "jsonargparse", "jsonargparse.typing"])
def test_trust_names_modules(module: str, refused: Run) -> None:
    assert f"--trust {module}: " in refused("fit", f"--trust={module}", "--config", "toy.yaml")


def test_trust_stands_in_no_config_that_is_saved(refused: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["fit", "--trust", "hostile", "--config", "toy.yaml", "--print_config"])
    assert "trust" not in capsys.readouterr().out


class Touch:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_the_pickle_would_leave_a_canary(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "x")))
    assert (tmp_path / "x").exists()


@pytest.fixture(params=["pickle", "torch.save"])
def pickled(request: pytest.FixtureRequest, canary: Path) -> bytes:
    """A hostile state, as both write it."""
    state, buffer = {"state_dict": {"weight": Touch(canary)}}, io.BytesIO()
    if request.param == "pickle":
        return pickle.dumps(state, protocol=2)
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.pth", "x.bin", "x.npy", "x.safetensors"])
def test_no_reader_of_weights_runs_a_pickle(name: str, pickled: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickled)
    with pytest.raises(ValueError, match=rf"{name}.* is a pickle, .* and is not read"):
        checkpoints.read(tmp_path / name)
    with pytest.raises(ValueError, match=rf"(?s)^Head: cannot read '.*{name}'.* is never run"):
        read_tensors(tmp_path / name, "Head")


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.pth", "x.bin", "x.pkl"])
def test_a_model_is_no_pickle(name: str, pickled: bytes, refused: Run) -> None:
    path = Path(name)
    path.write_bytes(pickled)
    said = refused("fit", "--config", changed(f"backbone: {{name: StableDiffusion, path: {name}}}"))
    assert f"StableDiffusion: path {name!r} is a pickle" in said


def test_a_pickle_in_the_place_of_safetensors_is_not_read(
    pickled: bytes, refused: Run, tmp_path: Path
) -> None:
    folder = tiny_stable_diffusion(tmp_path / "tiny")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(pickled)
    told = refused("fit", "--config", changed(f"backbone: {{name: StableDiffusion, path: '{folder}'}}"))
    assert "StableDiffusion: cannot load the unet of" in told
    weights.rename(weights.with_suffix(".bin"))
    told = refused("fit", "--config", changed(f"backbone: {{name: StableDiffusion, path: '{folder}'}}"))
    assert "Only safetensors files are read, never pickles" in told


def test_an_encoder_of_people_is_no_pickle_and_has_no_code(pickled: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "pytorch_model.bin").write_bytes(pickled)
    encoder = ClipDifference(str(folder))
    with pytest.raises(ValueError, match=r"ClipDifference: cannot load the CLIPModel of .*safetensors"):
        encoder.loaded(torch.device("cpu")).__enter__()
    (folder / "config.json").write_text('{"model_type": "clip", "auto_map": {"AutoModel": "hostile.Thing"}}')
    with pytest.raises(ValueError, match=r"ClipDifference: .* asks for code of its own: auto_map"):
        encoder.shape()


PICKLING = (
    "plugins: lightning.pytorch.plugins.TorchCheckpointIO",
    "plugins: [{class_path: lightning.pytorch.plugins.AsyncCheckpointIO}]",
    "strategy: {class_path: lightning.pytorch.strategies.SingleDeviceStrategy, init_args: {checkpoint_io: "
    "lightning.pytorch.plugins.TorchCheckpointIO}}",
)


@pytest.mark.parametrize("text", PICKLING)
def test_no_plugin_reads_checkpoints_in_place_of_ours(text: str, refused: Run) -> None:
    """Those of Lightning, which a config may name, unpickle."""
    said = refused("fit", "--config", changed(f"trainer: {{max_steps: 1, accelerator: cpu, {text}}}"))
    assert "heckpoint" in said


def test_a_picture_is_no_array_of_objects(canary: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Touch(canary)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pair 7: its picture cannot be read"):
        whole_picture(buffer.getvalue(), "pair 7")


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "pandas"])
def test_a_type_in_parquet_is_never_unpickled(name: str, canary: Path, tmp_path: Path) -> None:
    """Earlier versions of arrow unpickled the first, pandas that its own metadata."""
    said = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Touch(canary))}
    field = pa.field("caption", pa.string(), metadata=said)
    rows = pa.table({"caption": ["a pear"]}, schema=pa.schema([field]))
    pq.write_table(rows, tmp_path / "pairs.parquet")
    found = table(str(tmp_path / "pairs.parquet"), "Pairs", ("caption",), split=None, revision=None)
    assert found["caption"][0] == "a pear"


TAGS = (
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{canary}']]",
    "!!python/object/new:hostile.Thing []",
    "!!python/name:hostile.function",
    "!!python/module:hostile",
)


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_objects(tag: str, refused: Run, canary: Path) -> None:
    """In a config, on the command line, and in what a run left."""
    text = tag.format(canary=canary)
    Path("tag.yaml").write_text(f"{CONFIG}\nvars:\n  x: {text}\n")
    Path("run").mkdir()
    Path("run/config.yaml").write_text(Path("tag.yaml").read_text())
    for command in ("fit --config tag.yaml", "data check tag.yaml", "generate --run run --prompt a"):
        said = refused(*command.split())
        assert ".yaml, line " in said
        assert "is no YAML: could not determine a constructor for the tag" in said
    refused("fit", "--config", "toy.yaml", f"--data.train={{class_path: {text}}}")
    refused("fit", "--config", "toy.yaml", f"--objective={{name: DMPO, beta: {text}}}")
    refused("serve-reward", f"{{name: {text}}}", "--port", "0")


def test_a_folder_of_a_package_is_looked_for_in_packages_that_are_trusted(refused: Run) -> None:
    """To find the folder is to import the package."""
    said = refused("fit", "--config", changed("backbone: {name: StableDiffusion, path: 'hostile:model'}"))
    assert "StableDiffusion: path 'hostile:model': 'hostile' is refused" in said


SHADOWS = ("alignkit_dmpo", "diffusers", "lightning", "sitecustomize", "torch", "yaml")


def test_modules_in_the_current_folder_shadow_nothing(canary: Path, tmp_path: Path) -> None:
    """Of the console script, which puts its own folder on the path and not the current one."""
    work, scripts = tmp_path / "work", tmp_path / "bin"
    for folder in (work, scripts):
        folder.mkdir()
    for name in SHADOWS:
        (work / f"{name}.py").write_text(MODULE.format(canary=str(canary)))
    (work / "toy.yaml").write_text(CONFIG)
    script = scripts / "alignkit"
    script.write_text("import sys\nfrom alignkit.cli import main\nsys.exit(main())\n")
    done = subprocess.run(
        [sys.executable, str(script), "fit", "--config", "toy.yaml", "--print_config"],
        cwd=work,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "class_path: alignkit_dmpo.objective.DMPO" in done.stdout


SOURCES = sorted(path for root in ("alignkit", "plugins") for path in (ROOT / root).rglob("*.py"))
# calls that run what they read, or unpack it: by their last name
NEVER = {"eval", "exec", "extract", "extractall", "unsafe_load", "full_load", "unpack_archive", "__import__"}
# names that may be called so, in what
ALSO = {"yaml": "load", "pickle": "load", "marshal": "loads", "np": "load", "joblib": "load"}


def called(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls in a file, by their dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_source_runs_what_it_reads() -> None:
    found = []
    for path in SOURCES:
        for name, call in called(path):
            home, _, last = name.rpartition(".")
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            plain = last in NEVER and (not home or last not in ("eval", "exec"))
            unsafe = last.startswith("load") and ALSO.get(home.rpartition(".")[2], "?") in last
            torches = name == "torch.load" and options.get("weights_only") != "True"
            trusting = options.get("trust_remote_code", "False") != "False"
            pickling = options.get("allow_pickle", "False") != "False"
            if plain or unsafe or torches or trusting or pickling:
                found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {name}")
    # a contract has a source pickled and read again, which is its own
    assert [line for line in found if not line.startswith("alignkit/testing/")] == []
    assert any("pickle.loads" in line for line in found), "the test sees such calls"
