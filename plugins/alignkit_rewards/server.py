"""A reward behind HTTP, as ``protocol.py`` says. Reads JSON and pictures, never objects of Python."""

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from alignkit import Reward
from alignkit.evaluation.judging import judged
from alignkit_rewards import protocol

# seconds without a byte, after which a connection is closed
SILENCE = 60


class Limits(NamedTuple):
    """What one request may ask for.

    Args:
        max_bytes: its length.
        max_pixels: of its pictures together.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 32 * 2**20


class RewardServer(ThreadingHTTPServer):
    """Scores what is posted to it, one request at a time.

    Args:
        reward: who scores.
        address: host and port; port 0 takes a free one.
        limits: of a request.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True
    # what is taken by another program is refused
    allow_reuse_port = False

    def __init__(self, reward: Reward, address: tuple[str, int], limits: Limits | None = None) -> None:
        super().__init__(address, _Handler)
        self.reward, self.limits = reward, limits or Limits()
        self.described = {"reward": type(reward).__name__, "provenance": reward.provenance()}
        self._one = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    def scores(self, body: bytes) -> list[float]:
        """Scores of what was posted.

        Raises:
            ValueError: it is no request, or too large.
            RuntimeError: the reward does not say a number of every picture.
        """
        image_NCHW, prompts = protocol.pictures(body, self.limits.max_pixels)
        try:
            with self._one:
                found: list[float] = judged(self.reward, image_NCHW, prompts).tolist()
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        return found


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = SILENCE
    protocol_version = "HTTP/1.1"
    server_version = "alignkit"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(HTTPStatus.OK, self.server.described)

    def do_POST(self) -> None:
        length, most = self.headers.get("Content-Length", ""), self.server.limits.max_bytes
        # a page in a browser can post other types anywhere without asking
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be application/json")
        elif not length.isascii() or not length.isdigit():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request must say its Content-Length")
        elif int(length[:20]) > most:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {length[:20]} bytes, more than {most}; send fewer pictures at once",
            )
        else:
            self._score(self.rfile.read(int(length)))

    def _score(self, body: bytes) -> None:
        try:
            found = self.server.scores(body)
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # whatever a reward raises: the server goes on
            self.log_error("%s: %s", type(error).__name__, error)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._answer(HTTPStatus.OK, {"scores": found})

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # its body may not have been read
        self._answer(status, {"error": reason})

    def _answer(self, status: HTTPStatus, said: dict[str, Any]) -> None:
        body = json.dumps(said, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing of what went well."""
