"""What is built holds what is needed, and nothing that is not ours."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    "alignkit",
    "plugins",
    "configs",
    "pyproject.toml",
    "setup.cfg",
    "setup.py",
    "MANIFEST.in",
    "LICENSE",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of a copy of the sources: building leaves folders that the next build would pack again."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in [*SOURCES, "README.md"]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    # without isolation: nothing is downloaded
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_wheel_holds_every_module_config_and_data_file(wheel: zipfile.ZipFile):
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "alignkit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "alignkit/evaluation/report/page.html" in expected
    expected |= {
        f"alignkit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    expected |= {
        path.relative_to(ROOT / "plugins").as_posix()
        for path in (ROOT / "plugins").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".parquet") for name in expected)
    assert expected <= set(wheel.namelist())


@pytest.mark.slow
def test_wheel_installs_nothing_that_is_not_ours(wheel: zipfile.ZipFile):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert "alignkit" in top
    assert all(name.startswith("alignkit") for name in top)


@pytest.mark.slow
def test_wheel_names_command_plugins_and_licence(wheel: zipfile.ZipFile):
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "alignkit = alignkit.cli:main" in entry_points
    assert "dmpo = alignkit_dmpo" in entry_points
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Name"], metadata["License-Expression"]) == ("alignkit", "Apache-2.0")


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path):
    """Unpacked elsewhere and run from an empty folder, it finds its plugins, configs and base pipeline."""
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    wheel.extractall(installed)
    empty.mkdir()
    code = (
        "import alignkit, sys; assert alignkit.__file__.startswith(sys.argv[1]), alignkit.__file__\n"
        "from alignkit.cli import main\n"
        "few = ['--trainer.max_steps=1', '--trainer.limit_val_batches=1', '--evaluation.max_prompts=1']\n"
        "sys.exit(main(['fit', '--config', 'dmpo.yaml', '--samples.num_prompts=0', *few]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("ALIGNKIT_RUN", None)
    command = [sys.executable, "-c", code, str(installed)]
    ran = subprocess.run(
        command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert (empty / "runs" / "dmpo" / "unet" / "config.json").is_file()
