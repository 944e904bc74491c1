"""A reward behind HTTP: the same scores, and every way in which it can go wrong."""

import base64
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from alignkit import Reward
from alignkit.catalog import discover
from alignkit.mistakes import UsageError
from alignkit_emoji.reward import EmojiFidelity
from alignkit_rewards import protocol, remote
from alignkit_rewards.command import main, parser, server
from alignkit_rewards.pick_score import PickScore
from alignkit_rewards.remote import RemoteReward
from alignkit_rewards.server import Limits, RewardServer
from tests.plugins.rewards.models import tiny_clip

PROMPTS = ["a red apple", "plum", 'a "quoted" pear, \u00fcber', "a red apple", "fig"]


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """A server that answers while the block lasts."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def images(count: int = 5, side: int = 40) -> Tensor:
    """Of 8 bits, as pictures of files are."""
    byte_NCHW = torch.randint(
        0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return byte_NCHW.float() / 255


class Brightness(Reward):
    """Mean of all pixels of a picture, or what a test puts here."""

    differentiable = True

    def __init__(self, answer: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.answer = answer or (lambda image_NCHW: image_NCHW.mean((1, 2, 3)))

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.answer(image_NCHW)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(RewardServer(Brightness(), ("127.0.0.1", 0), Limits(2**20, 5000))) as found:
        yield found


def test_scores_are_those_of_the_reward_itself(tmp_path: Path) -> None:
    """Bit for bit, in the same batches, of a network: PNG keeps 8 bits, and JSON a float32."""
    folder = str(tiny_clip(tmp_path))
    local, image_NCHW = PickScore(folder, processor=folder), images()
    with running(RewardServer(local, ("127.0.0.1", 0))) as url:
        score_N = RemoteReward(url, batch_size=2)(image_NCHW, PROMPTS)
    parts = [local(image_NCHW[place : place + 2], PROMPTS[place : place + 2]) for place in (0, 2, 4)]
    assert score_N.dtype == torch.float32
    assert torch.equal(score_N, torch.cat(parts))
    assert not score_N.requires_grad


def test_other_pictures_are_rounded_to_8_bits_first(url: str) -> None:
    """To the nearest of 255 steps, as files are; what is out of range is cut off."""
    image_NCHW = torch.tensor([0.1, 0.4999, 1.2, -0.3])[:, None, None, None].expand(4, 3, 8, 8)
    expected_N = torch.tensor([26, 127, 255, 0]) / 255
    assert torch.equal(RemoteReward(url)(image_NCHW, PROMPTS[:4]), expected_N)


def test_the_record_says_what_runs_there(url: str) -> None:
    told = RemoteReward(url).provenance()
    assert told["class"] == "alignkit_rewards.remote.RemoteReward"
    assert told["url"] == url
    assert told["remote reward"] == "Brightness"
    assert told["remote class"].endswith("Brightness")


def test_a_server_that_knows_nothing_of_itself_is_recorded_as_such() -> None:
    """The same every time, so that its scores are found again."""
    with answering((405, b"request 1"), (404, b"request 2")) as (url, _):
        told = [RemoteReward(url).origins() for _ in range(2)]
    assert told == [{"url": url, "remote reward": "not told"}] * 2


def post(
    url: str, body: bytes, kind: str = "application/json", length: str | None = None
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    headers = {"Content-Type": kind, "Content-Length": str(len(body)) if length is None else length}
    try:
        connection.putrequest("POST", "/")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def encoded(picture: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def asked(codes: list[Any], prompts: list[Any]) -> bytes:
    return json.dumps({"images": codes, "prompts": prompts}).encode()


RED = Image.new("RGB", (10, 10), "red")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x80\x04\x95", "the request is no JSON"),
        (b"[" * 100_000, "the request is no JSON"),
        (b"[]", 'the request must be {"images"'),
        (asked([], []), 'the request must be {"images"'),
        (asked([encoded(RED)], []), 'the request must be {"images"'),
        (asked([encoded(RED)], [3]), 'the request must be {"images"'),
        (asked(["not base64!"], [""]), "images must be in base64"),
        (asked([base64.b64encode(b"cos\nsystem\n(S'id'\ntR.").decode()], [""]), "image 0"),
        (asked([encoded(Image.new("RGB", (100, 51)))], [""]), "100 x 51 pixels, more than"),
        (
            asked([encoded(Image.new("RGB", (50, 51)))] * 2, ["", ""]),
            "have 5100 pixels together, more",
        ),
        (asked([encoded(RED), encoded(Image.new("RGB", (9, 10)))], ["", ""]), "must be of one size"),
    ],
)
def test_what_is_no_request_is_refused(url: str, body: bytes, message: str) -> None:
    status, said = post(url, body)
    assert status == 400
    assert message in said["error"]
    assert post(url, asked([encoded(RED)], [""]))[0] == 200, "the server goes on"


def test_requests_are_measured_before_they_are_read(url: str) -> None:
    """A gigabyte that is announced is refused at once, and so is one of no length."""
    status, said = post(url, b"", length=str(2**30))
    assert (status, said["error"][:30]) == (413, "the request has 1073741824 byt")
    for length in ("", "-1", "ten", "1_0"):
        assert post(url, b"", length=length)[0] == 411
    assert post(url, b"{}", kind="text/plain")[0] == 415


def test_pictures_of_other_formats_are_read_as_those_of_data_are(url: str) -> None:
    """Grey ones get three channels."""
    status, said = post(url, asked([encoded(Image.new("L", (10, 10), 51))], [""]))
    assert (status, said) == (200, {"scores": [pytest.approx(0.2)]})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda image_NCHW: image_NCHW.mean((1, 2, 3)) * torch.nan,
            r"RuntimeError: Brightness: must give a finite number for every image, got \[nan",
        ),
        (
            lambda image_NCHW: image_NCHW.mean()[None],
            r"RuntimeError: Brightness: must .* in a shape of \[1\]",
        ),
        (lambda image_NCHW: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_reward_that_fails_is_told_and_the_server_goes_on(
    answer: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(RewardServer(Brightness(answer), ("127.0.0.1", 0))) as url:
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"^RemoteReward: {url} answered 500 .*: {message}"):
                RemoteReward(url)(images(2), PROMPTS[:2])


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers, one after the other and then the last; and what it was asked."""
    asked_for: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers[min(len(asked_for), len(answers) - 1)]
            asked_for.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status in (301, 302, 307):
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *given: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, asked_for


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"<html>"), "must answer in JSON, got '<html>'"),
        ((200, b"[1, 2]"), "must answer an object of JSON, got '[1, 2]'"),
        ((200, b'{"score": 1}'), 'must answer {"scores": [numbers]}, got \'{"score": 1}\''),
        ((200, b'{"scores": [1, "2"]}'), 'must answer {"scores": [numbers]}'),
        ((200, b'{"scores": [1, true]}'), 'must answer {"scores": [numbers]}'),
        ((200, b'{"scores": [1]}'), "must answer a score for each of 2 images, got 1"),
        ((200, b'{"scores": [1, NaN]}'), "must answer finite scores, got nan"),
        ((200, b'{"scores": [1e999, 1]}'), "must answer finite scores, got inf"),
        ((404, b"nothing here"), "answered 404 Not Found: 'nothing here'"),
        ((400, b'{"error": "too many"}'), "answered 400 Bad Request: too many"),
        ((307, b""), "answered 307 Temporary Redirect: ''"),
        ((302, b""), "answered 302 Found: ''"),
    ],
)
def test_answers_that_are_none_are_told(answer: tuple[int, bytes], message: str) -> None:
    """At once: asking again would not help. Nobody is sent elsewhere."""
    with answering(answer) as (url, asked_for):
        with pytest.raises(ValueError, match=rf"^RemoteReward: {url} {re.escape(message)}"):
            RemoteReward(url, retries=3)(images(2), PROMPTS[:2])
        assert asked_for == ["/"] or asked_for == [""]


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one second, two, four."""
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    with answering((503, b""), (429, b""), (502, b""), (200, b'{"scores": [1.5, -2]}')) as (url, asked_for):
        assert RemoteReward(url, retries=3)(images(2), PROMPTS[:2]).tolist() == [1.5, -2]
    assert (waited, len(asked_for)) == ([1, 2, 4], 4)
    with (
        answering((503, b'{"error": "loading"}')) as (url, asked_for),
        pytest.raises(
            ValueError, match=rf"{url} answered 503 .*: loading \(asked 2 times, 5 s each\)\nStart its"
        ),
    ):
        RemoteReward(url, timeout=5, retries=1)(images(2), PROMPTS[:2])
    assert len(asked_for) == 2


def test_where_nobody_listens_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            ValueError,
            match=rf"^RemoteReward: {url} gives no answer: .*refused \(asked 3 .*\nStart its server",
        ):
            RemoteReward(url, retries=2)(images(1), PROMPTS[:1])


def test_a_server_that_says_nothing_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ValueError, match=rf"^RemoteReward: {url} gives no answer: .*timed out"):
            RemoteReward(url, timeout=0.2, retries=0)(images(1), PROMPTS[:1])
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"url": "file:///etc/passwd"},
            "url must begin with http:// or https:// and name a host and no user, got 'f",
        ),
        ({"url": "localhost:8000"}, "url must begin with http"),
        ({"url": "http://"}, "url must begin with http"),
        ({"url": "http://host:port"}, "url must begin with http"),
        ({"url": "http://me:secret@host"}, "url must begin with http"),
        ({"timeout": 0.0}, "timeout must be positive, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^RemoteReward: {re.escape(message)}"):
        RemoteReward(**{"url": "http://localhost", **settings})


def test_no_score_of_no_pictures(url: str) -> None:
    assert RemoteReward(url)(images(0), []).shape == (0,)


def test_a_request_is_what_the_protocol_says() -> None:
    said = json.loads(protocol.request(images(2), PROMPTS[:2]))
    assert set(said) == {"images", "prompts"}
    assert base64.b64decode(said["images"][0]).startswith(b"\x89PNG")
    image_NCHW, prompts = protocol.pictures(protocol.request(images(2), PROMPTS[:2]), 2**20)
    assert torch.equal(image_NCHW, images(2))
    assert prompts == PROMPTS[:2]


def test_the_command_serves_an_installed_reward() -> None:
    with server(
        discover(), parser().parse_args(["EmojiFidelity", "--port", "0", "--device", "cpu"])
    ) as serving:
        assert serving.server_address[0] == "127.0.0.1"
        assert isinstance(serving.reward, EmojiFidelity)
        assert not any(parameter.requires_grad for parameter in serving.reward.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["EmojiFidelity", "--port", "99999"],
            "cannot listen at 127.0.0.1:99999: .*; give another --host or --port",
        ),
        (["EmojiFidelity", "--max-bytes", "0"], "--max-bytes must be at least 1, got 0"),
        (["{name: RemoteReward, url: nowhere}"], "RemoteReward: url must begin with http"),
        ([], "NAME"),
    ],
)
def test_mistakes_of_the_command_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main(discover(), arguments)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UsageError, match=rf"^cannot listen at 127.0.0.1:{port}: .*in use"):
            main(discover(), ["EmojiFidelity", "--port", port])


@pytest.mark.slow
def test_alignkit_serve_reward_answers_another_process() -> None:
    """The whole command, stopped as a user stops it."""
    command = [sys.executable, "-m", "alignkit.cli", "serve-reward", "EmojiFidelity", "--port", "0"]
    with subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            match = re.match(r"EmojiFidelity answers at (http://127\.0\.0\.1:\d+); Ctrl-C ends it", said)
            assert match, said
            image_NCHW, local = images(4, side=32), EmojiFidelity()
            with torch.no_grad():
                assert torch.equal(
                    RemoteReward(match[1])(image_NCHW, PROMPTS[:4]), local(image_NCHW, PROMPTS[:4])
                )
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
