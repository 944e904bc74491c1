"""Fuzzes readers of foreign files, one after the other, with atheris.

    python -m tests.fuzz.run --seconds 60
    python -m tests.fuzz.run --seconds 600 --only picture

Inputs that reach new code are kept in ``build/fuzz``, where the next run goes on. An input that breaks
a promise is written there, too: put it into ``tests/fuzz/corpus/READER/``, where every test run reads it, and
mend the reader.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

OUT = Path("build", "fuzz")
CORPUS = Path(__file__).parent / "corpus"
# seconds that an input may take, ten times what it takes where atheris does not watch; and MiB of
# the process, of which torch takes 400
SLOW, MEMORY = 20, 1400


def main() -> int:
    """Runs readers in processes of their own; says how many broke."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="of each reader")
    parser.add_argument("--only", help="one reader; all without it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.only, options.seconds)
    # not above: the child imports it where atheris instruments it
    from tests.fuzz.readers import READERS

    broken = [name for name in READERS if options.only in (None, name) and not held(name, options.seconds)]
    if broken:
        print(f"broken: {', '.join(broken)}; see {OUT}", file=sys.stderr)
    return len(broken)


def held(name: str, seconds: int) -> bool:
    """Fuzzes a reader; says how it went and whether its promise holds."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.run", "--child", "--only", name, "--seconds", str(seconds)]
    log = folder / "log.txt"
    with tempfile.TemporaryDirectory() as home, log.open("wb") as output:
        # parquet files are converted there
        environment = {**os.environ, "HF_DATASETS_CACHE": home, "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False)
    lines = log.read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.startswith(("#", "Done"))), "no input was run")
    print(f"{name:16} {'holds' if not ended.returncode else 'BREAKS'}  {last}", flush=True)
    return not ended.returncode


def fuzz(name: str, seconds: int) -> None:
    """Fuzzes in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["alignkit", "json", "tarfile", "csv"]):
        from tests.fuzz.readers import READERS, check
    from tests.fuzz.seeds import seeds

    reader, folder = READERS[name], OUT / name
    kept = folder / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    for place, data in enumerate(seeds(name)):
        (kept / f"seed-{place}").write_bytes(data)
    for path in sorted((CORPUS / name).glob("*")):
        (kept / path.name).write_bytes(path.read_bytes())
    warnings.simplefilter("ignore")

    def one(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as home:
            check(reader, data, Path(home))

    def other(data: bytes, most: int, seed: int) -> bytes:
        draw = Random(seed)
        if reader.mutate is None or draw.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        changed = reader.mutate(data, draw)
        return changed if len(changed) <= most else bytes(atheris.Mutate(data, most))

    limits = {
        "max_total_time": seconds,
        "max_len": reader.max_length,
        "timeout": SLOW,
        "rss_limit_mb": MEMORY,
        "artifact_prefix": f"{folder}/",
        "print_final_stats": 1,
    }
    given = [f"-{option}={value}" for option, value in limits.items()]
    atheris.Setup(["fuzz", *given, str(kept)], one, custom_mutator=other)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
