"""What the options of `alignkit generate` say of people."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from alignkit.mistakes import shown
from alignkit_ppd.encoder import LikedPair


def shares_of(texts: Sequence[str]) -> dict[str, float]:
    """Reads ``u1=0.7 u2=0.3``.

    Raises:
        ValueError: a share is none, or they do not sum to 1.
    """
    shares: dict[str, float] = {}
    for text in texts:
        user, _, share = text.rpartition("=")
        try:
            shares[user] = float(share)
        except ValueError:
            raise ValueError(f"--mix takes USER=SHARE, such as u1=0.7, got {text!r}") from None
        if not user or not shares[user] >= 0:
            raise ValueError(f"--mix takes USER=SHARE with a share of at least 0, got {text!r}")
    if len(shares) < len(texts):
        raise ValueError(f"--mix names a user twice: {' '.join(texts)}")
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ValueError(f"--mix: shares must sum to 1, got {sum(shares.values()):g}")
    return shares


def read_pairs(path: Path, count: int) -> list[LikedPair]:
    """Reads a person's pairs; pictures are given relative to the file.

    Raises:
        ValueError: the file, a line or a picture cannot be read, or there are more or fewer pairs.
    """
    if not path.is_file():
        raise ValueError(f"--pairs: there is no file {str(path)!r}")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            chosen, rejected = (path.parent / said[name] for name in ("chosen", "rejected"))
            pairs.append(LikedPair(str(said["prompt"]), chosen.read_bytes(), rejected.read_bytes()))
        except (json.JSONDecodeError, TypeError, LookupError, RecursionError) as error:
            raise ValueError(
                f'--pairs: line {number} of {path} must be {{"prompt": ..., "chosen": PICTURE, '
                f'"rejected": PICTURE}}, got {shown(line)}'
            ) from error
        except OSError as error:
            raise ValueError(f"--pairs: line {number} of {path}: {error}") from error
    if len(pairs) != count:
        raise ValueError(f"--pairs: a person is known by {count} pairs here, got {len(pairs)} in {path}")
    return pairs
