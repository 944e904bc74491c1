"""Who is named when a process is silent, gone, stalled or raised; over real sockets, in threads."""

import queue
import socket
import time
from collections.abc import Callable, Iterator
from unittest.mock import Mock

import pytest

from alignkit.watch import Watch
from alignkit.watch.callback import _is_of_a_lost_connection
from alignkit.watch.ending import ended
from alignkit.watch.hub import Hub
from alignkit.watch.line import Line, Peer, Verdict
from alignkit.watch.progress import Progress, State
from alignkit.watch.spoke import Spoke

PEERS = [Peer(rank, "here", 100 + rank) for rank in range(3)]
Verdicts = queue.SimpleQueue[Verdict]


class Job:
    """The first process's part, and the other ends of its connections."""

    def __init__(self, silent_after: float = 60.0, stalled_after: float = 60.0) -> None:
        pairs = [socket.socketpair() for _ in PEERS[1:]]
        self.others = {rank: Line(pair[1]) for rank, pair in enumerate(pairs, 1)}
        self.verdicts: Verdicts = queue.SimpleQueue()
        self.progress = Progress()
        self.hub = Hub(
            {rank: Line(pair[0]) for rank, pair in enumerate(pairs, 1)},
            PEERS,
            self.progress,
            silent_after=silent_after,
            stalled_after=stalled_after,
            judged=self.verdicts.put,
        )
        self.hub.start()

    def spoke(self, rank: int, silent_after: float = 60.0) -> tuple[Spoke, Verdicts]:
        verdicts: Verdicts = queue.SimpleQueue()
        spoke = Spoke(self.others[rank], PEERS[0], Progress(), silent_after=silent_after, judged=verdicts.put)
        spoke.start()
        return spoke, verdicts


@pytest.fixture
def job() -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(**options: float) -> Job:
        jobs.append(Job(**options))
        return jobs[-1]

    yield make
    for made in jobs:
        made.hub.leave()
        for line in (*made.others.values(), *(heard.line for heard in made.hub._heard.values())):
            line.close()


def test_a_process_that_says_nothing_is_named(job: Callable[..., Job]) -> None:
    made = job(silent_after=1.5)
    made.spoke(1)
    verdict = made.verdicts.get(timeout=8)
    assert verdict.rank == 2
    assert verdict.silent
    assert verdict.text.startswith("rank 2 (here, pid 102) has given no sign of life for ")


def test_a_broken_connection_is_explained_by_the_exit_code_that_comes_later(job: Callable[..., Job]) -> None:
    made = job()
    made.others[2].close()
    time.sleep(0.7)
    made.hub.ended(2, -9)
    assert made.verdicts.get(timeout=5) == Verdict(2, "rank 2 (here, pid 102) was killed by SIGKILL")


def test_a_broken_connection_without_an_exit_code_is_enough(job: Callable[..., Job]) -> None:
    made = job()
    made.others[1].close()
    assert made.verdicts.get(timeout=8).text == "rank 1 (here, pid 101) is gone: it was killed, or crashed"


def test_what_a_process_raised_reaches_all(job: Callable[..., Job]) -> None:
    made = job()
    first, heard_1 = made.spoke(1)
    _, heard_2 = made.spoke(2)
    raised = Verdict(1, "rank 1 raised", raised=True)
    first.tell(raised)
    assert [told.get(timeout=5) for told in (made.verdicts, heard_1, heard_2)] == [raised] * 3


def test_one_that_raised_counts_more_than_its_exit_code(job: Callable[..., Job]) -> None:
    made = job()
    made.others[1].send(verdict=Verdict(1, "rank 1 raised", raised=True))
    made.hub.ended(1, 2)
    assert made.verdicts.get(timeout=5).raised


def test_the_first_process_that_is_gone_is_noticed_at_once(job: Callable[..., Job]) -> None:
    made = job()
    _, heard = made.spoke(2)
    made.hub._heard[2].line.connection.shutdown(socket.SHUT_RDWR)
    assert heard.get(timeout=3) == Verdict(0, "rank 0 (here, pid 100) is gone: it was killed, or crashed")


def test_the_first_process_that_is_frozen_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    heard: Verdicts = queue.SimpleQueue()
    with ours, theirs:
        Spoke(Line(ours), PEERS[0], Progress(), silent_after=1.5, judged=heard.put).start()
        verdict = heard.get(timeout=8)
    assert verdict.silent
    assert verdict.text.startswith("rank 0 (here, pid 100) has given no sign of life for 2 s")


@pytest.mark.parametrize("leaving", [0, 1])
def test_those_who_leave_are_not_missed(job: Callable[..., Job], leaving: int) -> None:
    made = job()
    first, heard_1 = made.spoke(1)
    second, heard_2 = made.spoke(2)
    if leaving:
        first.leave()
        first.join(3)
        made.others[1].close()
        made.hub.ended(1, 0)
        time.sleep(2.6)  # longer than a broken connection may stay unexplained
        assert made.hub.is_alive()
        assert second.is_alive()
    else:
        made.hub.leave()
        first.join(3)
        second.join(3)
        assert not any(thread.is_alive() for thread in (first, second, made.hub))
    assert made.verdicts.empty()
    assert heard_1.empty()
    assert heard_2.empty()


IDLE, BUSY = 30.0, 0.0
AHEAD = State(5, "in batch 3", IDLE)


@pytest.mark.parametrize(
    ("states", "rank", "named"),
    [
        ([AHEAD, State(4, "in batch 2", IDLE), AHEAD], 1, [1]),
        # one that others wait for, and that computes
        (
            [State(5, "in batch 3", IDLE), State(4, "in batch 2", BUSY), State(5, "in batch 3", IDLE)],
            None,
            [],
        ),
        # as far as each other: not those that wait
        ([State(4, "", IDLE, True), State(4, "", IDLE, True), State(4, "", IDLE, False)], 2, [2]),
        ([State(4, "", IDLE, True), State(4, "", IDLE, True), State(4, "", IDLE, True)], 0, [0, 1, 2]),
        ([State(4, "", BUSY), State(4, "", IDLE), State(4, "", IDLE)], None, []),
    ],
)
def test_who_is_farthest_behind_and_does_nothing_is_named(
    states: list[State], rank: int | None, named: list[int]
) -> None:
    pair = socket.socketpair()
    lines = {number: Line(end) for number, end in enumerate(pair, 1)}
    hub = Hub(lines, PEERS, Progress(), silent_after=60, stalled_after=10, judged=Mock())
    hub._state = states[0]
    for number in lines:
        hub._heard[number].state = states[number]
    verdict = hub._stalled()
    assert (verdict and verdict.rank) == rank
    if verdict:
        assert [peer.rank for peer in PEERS if str(peer) in verdict.text] == named
        assert ("while the others wait for it" in verdict.text) == (len(named) < 3)
    for line in lines.values():
        line.close()


def test_progress_is_a_mark_or_work() -> None:
    progress = Progress()
    time.sleep(0.3)
    assert progress.look().idle == pytest.approx(0.3, abs=0.2)
    progress.mark("in batch 1")
    time.sleep(0.1)
    assert progress.look() == State(1, "in batch 1", 0.0, False)
    time.sleep(0.1)
    assert progress.look().idle > 0
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert progress.look().idle == 0


def test_a_computer_that_slept_did_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, now = Progress(), time.monotonic()
    monkeypatch.setattr(
        "alignkit.watch.progress.time", Mock(monotonic=lambda: now + 3600, process_time=time.process_time)
    )
    assert progress.look().idle == 2


def test_exit_codes_in_words() -> None:
    assert ended(7) == "ended with exit code 7"
    assert ended(-9) == "was killed by SIGKILL"
    assert ended(-120) == "was killed by signal 120"


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError("the reward server hung up"), False),
        (ValueError("gloo is no objective"), False),
    ],
)
def test_what_follows_from_another_process_is_known(exception: BaseException, expected: bool) -> None:
    assert _is_of_a_lost_connection(exception) == expected


@pytest.mark.parametrize("setting", ["silent_after", "stalled_after"])
def test_limits_that_end_healthy_runs_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"Watch: {setting} must be at least 3 seconds, got 2"):
        Watch(**{setting: 2.0})
