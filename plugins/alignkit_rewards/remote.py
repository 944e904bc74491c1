"""Rewards that run in another process, or on another machine. Suffixes: N images; C H W."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from alignkit import Reward
from alignkit_rewards import protocol

# a server that is busy, or is being started, may answer a moment later
AGAIN = (429, 502, 503, 504)
MAX_ANSWER = 2**24


class RemoteReward(Reward):
    """What a server says, over HTTP: for a reward whose packages cannot be installed beside these.

    ``alignkit serve-reward`` is such a server, and ``protocol.py`` says what any other must answer. Pictures
    are sent as PNG, rounded to 8 bits, so no gradient comes back. Nothing but numbers is read of an answer.

    Args:
        url: of the server, http or https.
        timeout: seconds that one request may take.
        retries: how often a request is repeated that found no server, or a busy one; a second later, then
            twice as long each time.
        batch_size: pictures in one request.
    """

    differentiable = False

    def __init__(self, url: str, timeout: float = 120.0, retries: int = 3, batch_size: int = 16) -> None:
        super().__init__()
        if not _is_address(url):
            raise ValueError(
                "RemoteReward: url must begin with http:// or https:// and name a host and no user, got "
                f"{url!r}"
            )
        if not timeout > 0:
            raise ValueError(f"RemoteReward: timeout must be positive, got {timeout}")
        if retries < 0:
            raise ValueError(f"RemoteReward: retries must be at least 0, got {retries}")
        if batch_size < 1:
            raise ValueError(f"RemoteReward: batch_size must be at least 1, got {batch_size}")
        self.url, self.timeout, self.retries, self.batch_size = url, timeout, retries, batch_size

    def origins(self) -> Mapping[str, str]:
        try:
            said = protocol.parsed(self._ask(None), self._owner)
        except ValueError:  # other servers may know nothing of themselves, and say so otherwise each time
            return {"url": self.url, "remote reward": "not told"}
        provenance = said.get("provenance")
        told = provenance if isinstance(provenance, dict) else {}
        remote = {f"remote {name}": str(value) for name, value in told.items()}
        return {"url": self.url, "remote reward": str(said.get("reward")), **remote}

    @torch.no_grad()
    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        found: list[float] = []
        for first in range(0, len(image_NCHW), self.batch_size):
            part_NCHW = image_NCHW[first : first + self.batch_size]
            body = protocol.request(part_NCHW, prompts[first : first + self.batch_size])
            found += protocol.scores(self._ask(body), len(part_NCHW), self._owner)
        return torch.tensor(found, dtype=torch.float32, device=image_NCHW.device)

    @property
    def _owner(self) -> str:
        return f"RemoteReward: {self.url}"

    def _ask(self, body: bytes | None) -> bytes:
        """Posts a body, or gets what the server says of itself.

        Raises:
            ValueError: no answer, or a refusal.
        """
        headers = {"Content-Type": "application/json"} if body is not None else {}
        request = urllib.request.Request(self.url, data=body, headers=headers)
        opener = urllib.request.build_opener(_NoRedirects)
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            try:
                with opener.open(request, timeout=self.timeout) as answer:
                    said: bytes = answer.read(MAX_ANSWER + 1)
            except urllib.error.HTTPError as error:
                reason = f"answered {error.code} {error.reason}: {_told(error)}"
                if error.code not in AGAIN:
                    raise ValueError(f"{self._owner} {reason}") from error
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = f"gives no answer: {getattr(error, 'reason', error) or type(error).__name__}"
            else:
                if len(said) > MAX_ANSWER:
                    raise ValueError(
                        f"{self._owner} answers more than {MAX_ANSWER} bytes; it is no reward's server"
                    )
                return said
        raise ValueError(
            f"{self._owner} {reason} (asked {self.retries + 1} times, {self.timeout:g} s each)\n"
            "Start its server, such as `alignkit serve-reward NAME`, or give another url, timeout or retries"
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Pictures go where they were sent and nowhere else; the status becomes the error."""

    def redirect_request(self, *given: Any) -> None:
        return None


def _is_address(url: str) -> bool:
    """Whether a server can be asked there. A user's name and password would end in records."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and not parts.username
            and parts.port != 0
        )
    except ValueError:
        return False


def _told(error: urllib.error.HTTPError) -> str:
    """What a refusal says."""
    try:
        with error:
            body = error.read(MAX_ANSWER)
    except (OSError, http.client.HTTPException):
        return "nothing"
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    return (
        str(said["error"])[:400] if isinstance(said, dict) and "error" in said else protocol.shortened(body)
    )
