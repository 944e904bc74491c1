"""`alignkit serve-reward`: scores pictures that other programs send."""

import argparse
from collections.abc import Sequence

import torch

from alignkit.catalog import Catalog
from alignkit.commandline import Parser, refusals
from alignkit.devices import device
from alignkit.evaluation.scorers import built_judge, named_settings
from alignkit.training import quiet_libraries
from alignkit_rewards.server import Limits, RewardServer

PORT = 8765


def main(catalog: Catalog, arguments: Sequence[str]) -> int:
    """Runs the command until it is stopped; returns the exit code.

    Raises:
        UsageError: a user's mistake.
    """
    options = parser().parse_args(arguments)
    quiet_libraries()
    with refusals(), server(catalog, options) as serving:
        print(f"{type(serving.reward).__name__} answers at {serving.url}; Ctrl-C ends it", flush=True)
        serving.serve_forever()
    return 0


def parser() -> Parser:
    """The options of the command."""
    limits = Limits()
    options = Parser(
        prog="alignkit serve-reward",
        description="Scores pictures that other programs send over HTTP, such as RemoteReward of an "
        "environment where this reward's packages cannot be installed. It has no password: whoever reaches "
        "the port may ask.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument(
        "reward", metavar="NAME", help="an installed reward, or '{name: NAME, argument: value}'"
    )
    options.add_argument(
        "--host", default="127.0.0.1", help="where it listens; 0.0.0.0 is all of this machine's"
    )
    options.add_argument("--port", type=int, default=PORT, help="0 takes a free one")
    options.add_argument(
        "--device",
        type=device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the reward runs",
    )
    options.add_argument("--max-bytes", type=int, default=limits.max_bytes, help="of one request")
    options.add_argument(
        "--max-pixels", type=int, default=limits.max_pixels, help="of the pictures of one request together"
    )
    return options


def server(catalog: Catalog, options: argparse.Namespace) -> RewardServer:
    """A server that listens but does not answer yet.

    Raises:
        ValueError: there is no such reward, it refuses its settings, or the port cannot be had.
    """
    for name in ("max_bytes", "max_pixels"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    settings = named_settings(catalog, "reward", options.reward, ())
    reward = built_judge("reward", settings, torch.device(options.device))
    try:
        return RewardServer(
            reward, (options.host, options.port), Limits(options.max_bytes, options.max_pixels)
        )
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen at {options.host}:{options.port}: {error}; give another --host or --port"
        ) from error
