"""How `bench.serving` counts, what its `--engine-url` refuses, and that both sides are asked the same. Starts no daemon."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.daemons import Daemon
from bench.one_away import Answer, Engine, Sides, asked_stream, tokens_until
from bench.serving import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine-url", "https://127.0.0.1:9/v1"), "begins with http://"),
        (("--engine-url", "127.0.0.1:9"), "begins with http://"),
        (("--engine-key-file", "key"), "goes with --engine-url"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    """Before any daemon starts."""
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code != 0
    assert said in outcome.output
    assert "Traceback" not in outcome.output


def test_both_sides_are_asked_the_same() -> None:
    """The engine under its own path, name and key; the daemon without the key."""
    engine = Engine(("127.0.0.1", 1), "owner/engine-name", key="secret", prefix="/llm")
    asker = Daemon(1, "", Path("api.sock"))
    sides = Sides(engine, asker, "engine-name", asked_stream("count", 7), {})
    alone, away = (sides.request_of(side) for side in ("engine", "swarmd"))
    assert alone.startswith(b"POST /llm/v1/chat/completions ")
    assert away.startswith(b"POST /v1/chat/completions ")
    assert b"Bearer secret" in alone
    assert b"secret" not in away
    bodies = [sent.partition(b"\r\n\r\n")[2] for sent in (alone, away)]
    assert bodies[0].replace(b"owner/engine-name", b"engine-name") == bodies[1]


@pytest.mark.parametrize("answer_s", [0.45, 0.49, 0.495, 0.5, 0.505, 0.55, 3.0])
def test_a_rate_does_not_depend_on_how_answers_fit_into_the_time(answer_s: float) -> None:
    """Sixteen streams, each asking again until two seconds are over: the rate is that of the streams, whatever they take."""
    wait, tokens = 0.02, 80
    answers = []
    for stream in range(16):
        asked = stream / 1000
        while asked < 2.0:
            answers.append(Answer(wait, asked + wait, asked + answer_s, tokens))
            asked += answer_s
    assert tokens_until(2.0, answers) / 2.0 == pytest.approx(16 * tokens / answer_s, rel=0.03)


def test_an_answer_that_comes_at_once_counts_where_it_comes() -> None:
    """All of it or nothing."""
    assert tokens_until(1.0, [Answer(0.5, 0.5, 0.5, 7), Answer(0.5, 1.5, 1.5, 9)]) == 7
