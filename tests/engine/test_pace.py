"""When the streams of an engine are read, on a virtual clock, with real sockets for their ends."""

import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from itertools import pairwise

import h11
import pytest
import trio
from trio.testing import MockClock

from daemon.engine.completions import _events
from daemon.engine.dialect import CompletionEvent
from daemon.engine.http_exchange import Reply
from daemon.engine.pace import CALM_READS_PER_SECOND, CALM_STREAMS, LONGEST_SECONDS, READS_PER_SECOND, Pace, PacedStream

Pair = tuple[socket.socket, socket.socket]
Batches = AsyncGenerator[list[CompletionEvent], None]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [socket.socketpair() for _ in range(64)]
    yield made
    for ours, theirs in made:
        ours.close()
        theirs.close()


@pytest.fixture
async def pace(nursery: trio.Nursery) -> Pace:
    """One that beats."""
    pace = Pace()
    nursery.start_soon(pace.run)
    await trio.testing.wait_all_tasks_blocked()
    return pace


WORD = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'


async def answering(pair: Pair, sent: bytes) -> Reply:
    """The reply that has begun at the first of `pair`, of whose events `sent` has come."""
    ours, theirs = pair
    ours.setblocking(False)
    reply = Reply(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), lambda: h11.Connection(h11.CLIENT), trio.CancelScope())
    theirs.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sent)
    await reply.read_head()
    return reply


def begin(stack: ExitStack, pace: Pace, pairs: list[Pair], count: int) -> list[PacedStream]:
    return [stack.enter_context(pace.stream(ours.fileno())) for ours, _ in pairs[:count]]


@pytest.mark.parametrize("count", [1, 2, 3, 16, 64])
async def test_all_streams_are_read_in_one_beat(autojump_clock: MockClock, pace: Pace, pairs: list[Pair], count: int) -> None:
    reads: list[float] = []

    async def read(stream: PacedStream) -> None:
        for _ in range(5):
            await stream.wait()
            reads.append(trio.current_time())

    with ExitStack() as stack:
        streams = begin(stack, pace, pairs, count)
        beat = pace.interval
        assert beat == min(LONGEST_SECONDS, count / (CALM_READS_PER_SECOND if count <= CALM_STREAMS else READS_PER_SECOND))
        async with trio.open_nursery() as readers:
            for stream in streams:
                readers.start_soon(read, stream)
    beats = sorted(set(reads))
    assert len(reads) == 5 * count
    assert len(beats) <= 6  # the first may read one beat before the rest
    assert [later - earlier for earlier, later in pairwise(beats)] == pytest.approx([beat] * (len(beats) - 1))


async def test_a_stream_slower_than_the_beats_never_waits(autojump_clock: MockClock, pace: Pace, pairs: list[Pair]) -> None:
    with ExitStack() as stack:
        (stream,) = begin(stack, pace, pairs, 1)
        await stream.wait()
        for _ in range(10):
            await trio.sleep(2 * LONGEST_SECONDS)
            before = trio.current_time()
            await stream.wait()
            assert trio.current_time() == before


async def test_the_end_of_an_answer_is_heard_at_once(mock_clock: MockClock, pace: Pace, pairs: list[Pair]) -> None:
    with ExitStack() as stack:
        first, second = begin(stack, pace, pairs, 2)
        await first.wait()
        with trio.testing.assert_checkpoints():
            async with trio.open_nursery() as waiting:
                waiting.start_soon(first.wait)
                await trio.testing.wait_all_tasks_blocked()
                pairs[0][1].close()  # the clock stands still: nothing but the end wakes it
        await first.wait()
        with trio.move_on_after(1) as patience:  # the other one goes on waiting for its beat
            await mock_jump(mock_clock, second)
        assert not patience.cancelled_caught


async def test_an_answer_that_was_read_to_its_end_waits_for_no_beat(
    autojump_clock: MockClock, pace: Pace, pairs: list[Pair]
) -> None:
    coming = iter((WORD, b"data: [DONE]\n\n"))  # its connection stays open, as that of few streams does
    words = 0
    async with aclosing(_events(await answering(pairs[0], WORD), pace)) as events:
        async for batch in events:
            words += len(batch)
            pairs[0][1].send(next(coming))
            if words == 2:
                said = trio.current_time()
    assert words == 2
    assert trio.current_time() == said


@asynccontextmanager
async def read_beside_another(pace: Pace, pairs: list[Pair], sent: bytes) -> AsyncGenerator[Batches, None]:
    """The events of an answer of which `sent` has come, just after a beat of the one other stream."""
    reply = await answering(pairs[0], sent)
    with ExitStack() as stack:
        (other,) = begin(stack, pace, pairs[1:], 1)
        await other.wait()
        async with aclosing(_events(reply, pace)) as events:
            yield events


async def test_an_answer_that_comes_word_by_word_waits_for_its_beat(
    autojump_clock: MockClock, pace: Pace, pairs: list[Pair]
) -> None:
    async with read_beside_another(pace, pairs, WORD) as events:
        begun = trio.current_time()
        await anext(events)
        pairs[0][1].send(WORD)
        await anext(events)  # begins to be paced behind the first word, and is read once more before it waits
        pairs[0][1].send(WORD)
        await anext(events)
        assert trio.current_time() == pytest.approx(begun + pace.interval)


async def test_who_has_more_to_read_than_one_read_takes_waits_for_no_beat_and_lets_others_go_on(
    nursery: trio.Nursery, autojump_clock: MockClock, pace: Pace, pairs: list[Pair]
) -> None:
    many = 3 * (64 << 10) // len(WORD)
    turns = words = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with read_beside_another(pace, pairs, WORD * many) as events:
        said = trio.current_time()
        nursery.start_soon(count_turns)
        async for batch in events:
            words += len(batch)
            if words == many:
                break
        nursery.cancel_scope.cancel()
    assert words == many
    assert turns, "all was read in one turn of the loop"
    assert trio.current_time() == said


async def mock_jump(clock: MockClock, stream: PacedStream) -> None:
    async with trio.open_nursery() as waiting:
        waiting.start_soon(stream.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert len(waiting.child_tasks) == 1
        clock.jump(LONGEST_SECONDS)


async def test_nothing_waits_before_and_after_the_pace_runs(autojump_clock: MockClock, pairs: list[Pair]) -> None:
    pace = Pace()
    with ExitStack() as stack:
        (stream,) = begin(stack, pace, pairs, 1)
        for _ in range(3):
            await stream.wait()
        async with trio.open_nursery() as running:
            running.start_soon(pace.run)
            await trio.testing.wait_all_tasks_blocked()
            await stream.wait()
            async with trio.open_nursery() as waiting:
                waiting.start_soon(stream.wait)
                await trio.testing.wait_all_tasks_blocked()
                running.cancel_scope.cancel()
        await stream.wait()


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(autojump_clock: MockClock, pace: Pace, pairs: list[Pair]) -> None:
    with ExitStack() as stack:
        (stream,) = begin(stack, pace, pairs, 1)
        await stream.wait()
        with trio.move_on_after(pace.interval / 2) as scope:
            await stream.wait()
        assert scope.cancelled_caught
        await trio.sleep(1)
        await stream.wait()
    assert pace.interval == 0


def test_answers_asked_for_together_count_before_their_first_tokens() -> None:
    """Only the first few of a burst may keep their connections: the end of the others is heard by theirs being closed."""
    pace = Pace()
    with ExitStack() as stack:
        assert [stack.enter_context(pace.asked()) for _ in range(16)] == [True] * CALM_STREAMS + [False] * (16 - CALM_STREAMS)
    with pace.asked() as is_calm:
        assert is_calm
