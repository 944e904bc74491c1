"""A folder of checkpoints: what stands for the last one when it is damaged, gone or half-written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignkit.checkpoints import CheckpointFiles, UnsavedError, kept, link, loaded, read, saved, tidy, write


def save(folder: Path, name: str, step: int) -> Path:
    path = folder / f"{name}.ckpt"
    state = {"policy.weight": torch.full((3,), float(step))}
    write(path, {"global_step": step, "state_dict": state, "callbacks": {}})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Steps 4, 20 and 9; the last is that of 20."""
    folder = tmp_path / "run" / "checkpoints"
    for name, step in (("epoch=0-step=4", 4), ("epoch=1-step=20", 20), ("round-1", 9)):
        save(folder, name, step)
    link(folder / "last.ckpt", folder / "epoch=1-step=20.ckpt")
    return folder


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_last_is_read_and_its_file_told(folder: Path) -> None:
    path, state = loaded(folder / "last.ckpt", "--ckpt_path")
    assert path == folder / "epoch=1-step=20.ckpt"
    assert state["global_step"] == 20


def test_damaged_last_falls_back_loudly_on_the_newest_good_one(folder: Path) -> None:
    """The newest by its step, not by its name or the time of its file."""
    os.utime(folder / "epoch=0-step=4.ckpt", (2e9, 2e9))
    spoil(folder / "epoch=1-step=20.ckpt")
    told = r"--ckpt_path: .*last\.ckpt is damaged .* GOING BACK to .*, round-1\.ckpt, .* after step 9"
    with pytest.warns(UserWarning, match=told):
        path, state = loaded(folder / "last.ckpt", "--ckpt_path")
    assert (path, state["global_step"]) == (folder / "round-1.ckpt", 9)
    spoil(folder / "round-1.ckpt")
    with pytest.warns(UserWarning, match=r"GOING BACK to .*, epoch=0-step=4\.ckpt, .* after step 4"):
        loaded(folder / "last.ckpt", "--ckpt_path")
    spoil(folder / "epoch=0-step=4.ckpt")
    with pytest.raises(
        ValueError, match=r"last\.ckpt is damaged .*; and no good checkpoint stands beside it"
    ):
        loaded(folder / "last.ckpt", "--ckpt_path")


def test_broken_link_falls_back_too(folder: Path) -> None:
    (folder / "epoch=1-step=20.ckpt").unlink()
    with pytest.warns(
        UserWarning, match=r"last\.ckpt cannot be read: No such file.* GOING BACK to .*round-1"
    ):
        assert loaded(folder / "last.ckpt", "--ckpt_path").state["global_step"] == 9
    with pytest.warns(UserWarning, match=r"--model run@last: .* GOING BACK"):
        found = saved(folder / "last.ckpt", "--model run@last")
    assert (found.step, found.weights["weight"].tolist()) == (9, [9.0, 9.0, 9.0])


def test_damaged_one_that_was_named_is_refused(folder: Path) -> None:
    path = folder / "round-1.ckpt"
    spoil(path)
    with pytest.raises(ValueError, match=r"^--model x: .*round-1\.ckpt is damaged or cut off"):
        loaded(path, "--model x")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("epoch=0-step=5.ckpt", r"there are epoch=0-step=4\.ckpt, epoch=1-step=20\.ckpt, round"),
        ("round-7.ckpt", r"there are round-1\.ckpt, epoch"),
        ("xyz", r"there are epoch=0-step=4\.ckpt, epoch=1-step=20\.ckpt, round-1\.ckpt"),
    ],
)
def test_missing_one_is_refused_with_names_like_it(folder: Path, name: str, told: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^--ckpt_path: there is no '.*{name}'; {told}.* beside it; a run's own stand"
    ):
        loaded(folder / name, "--ckpt_path")


@pytest.mark.parametrize("name", ["last.ckpt", "x.ckpt"])
def test_missing_one_of_no_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"there is no '.*{name}'; a run's own stand in RUN/checkpoints/"):
        loaded(tmp_path / name, "--ckpt_path")


def test_each_is_listed_once_and_what_is_half_written_not_at_all(folder: Path) -> None:
    (folder / ".epoch=2-step=30.ckpt.partial").write_bytes(b"x")
    names = ["epoch=0-step=4.ckpt", "epoch=1-step=20.ckpt", "round-1.ckpt"]
    assert [path.name for path in kept(folder.parent)] == names
    tidy(folder)
    assert sorted(os.listdir(folder)) == sorted([*names, "last.ckpt"])


def test_link_is_never_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, replace, seen = folder / "last.ckpt", os.replace, []

    def noted(source: Path, target: Path) -> None:
        seen.append(last.resolve().name)
        replace(source, target)
        seen.append(last.resolve().name)

    monkeypatch.setattr(os, "replace", noted)
    link(last, folder / "round-1.ckpt")
    assert seen == ["epoch=1-step=20.ckpt", "round-1.ckpt"]
    assert last.is_symlink()
    assert not os.path.isabs(os.readlink(last))  # a run's folder may be moved


def test_file_system_without_links_gets_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    link(folder / "last.ckpt", folder / "round-1.ckpt")
    assert not (folder / "last.ckpt").is_symlink()
    assert read(folder / "last.ckpt")["global_step"] == 9


def test_link_that_cannot_be_made_is_told_in_words(folder: Path) -> None:
    with pytest.raises(UnsavedError, match=r"cannot make .*last\.ckpt a link to .*gone\.ckpt: No such file"):
        link(folder / "last.ckpt", folder / "gone.ckpt")
    assert loaded(folder / "last.ckpt", "x").state["global_step"] == 20


def test_what_a_run_goes_on_with_does_not_depend_on_the_file(folder: Path) -> None:
    """Its bytes change under the feet of who only looks at the file, and not of a run."""
    path = folder / "round-1.ckpt"
    owned, viewed = CheckpointFiles().load_checkpoint(path), read(path)
    with path.open("r+b") as file:
        file.seek(-12, os.SEEK_END)
        file.write(torch.zeros(3).numpy().tobytes())
    assert owned["state_dict"]["policy.weight"].tolist() == [9.0, 9.0, 9.0]
    assert viewed["state_dict"]["policy.weight"].tolist() == [0.0, 0.0, 0.0]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path

import torch

from alignkit.checkpoints import link, loaded, tidy, write

folder, random_moment = Path(sys.argv[1]), random.Random(0)
weight = torch.zeros(2_000_000)


def save(step, told):
    # as a run does: the new one, then the link, then the one before the previous goes
    os.write(told, f"begins {step}\\n".encode())
    write(folder / f"step={step}.ckpt", {"global_step": step, "weight": weight.fill_(step)})
    link(folder / "last.ckpt", folder / f"step={step}.ckpt")
    (folder / f"step={step - 2}.ckpt").unlink(missing_ok=True)
    os.write(told, f"ended {step}\\n".encode())


sink = os.open(os.devnull, os.O_WRONLY)
for step in (1, 2):
    began = time.monotonic()
    save(step, sink)
    takes = time.monotonic() - began
for moment in range(10):
    hears, told = os.pipe()
    child = os.fork()
    if not child:
        while True:
            step += 1
            save(step, told)
    os.close(told)
    heard = os.read(hears, 9)
    time.sleep(random_moment.uniform(0, 3 * takes))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(hears, 1000):
        heard += more
    lines = heard.decode().splitlines()
    begun = max([int(line.split()[1]) for line in lines if line.startswith("begins")])
    ended = max([int(line.split()[1]) for line in lines if line.startswith("ended")], default=begun - 1)
    path, state = loaded(folder / "last.ckpt", "--ckpt_path")
    assert ended <= state["global_step"] <= begun, (ended, state["global_step"], begun)
    assert state["weight"].eq(state["global_step"]).all()
    tidy(folder)
    assert not list(folder.glob("*.partial"))
    print(ended, state["global_step"], begun)
    step = state["global_step"]
"""


def test_killed_at_any_moment_of_a_save_it_has_the_newest_or_the_previous(tmp_path: Path) -> None:
    """Ten times SIGKILL at a random moment of saving 8 MB again and again; never was a fallback needed."""
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
