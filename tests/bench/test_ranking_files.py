"""What `bench.ranking` makes of files that are not those of bench/data: a right figure, or one sentence and exit code 2."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.evaluation import judgments, votes
from bench.evaluation.tables import BadTable
from bench.ranking import main

VOTES = "question,category,options,answer,x,y\n" + "".join(f"{n},law,4,A,A,{'AB'[n % 2]}\n" for n in range(12))
JUDGED = "judge,first,second,question,verdict\n" + "".join(
    f"{judge},{a},{b},{n},{1 if a < b else -1}\n" for n in range(4) for judge in ("r", "s") for a in "pq" for b in "pq" if a != b
)
PEOPLE = "first,second,question,verdict\n" + "".join(f"p,q,{n},1\n" for n in range(4))


def ran(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def written(folder: Path, name: str, text: str | bytes) -> Path:
    """`text` gzipped, bytes as they are."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else gzip.compress(text.encode()))
    return folder / name


def judged(folder: Path, cast: str | bytes, said: str | bytes, *more: str) -> Result:
    files = written(folder, "cast.csv.gz", cast), written(folder, "said.csv.gz", said)
    return ran("judgments", "--judgments", files[0], "--humans", files[1], "--seeds", "1", *more)


def sentence(ended: Result) -> str:
    assert (ended.exit_code, isinstance(ended.exception, SystemExit)) == (2, True), ended.exception
    return ended.output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (b"", "is empty"),
        (VOTES.splitlines()[0], "has no rows below its columns"),
        (VOTES.replace("question", "id"), "has no column 'question'; it needs question, answer and has id, category"),
        (VOTES.replace("x,y", "x,x"), "has two columns 'x'"),
        (VOTES.replace("3,law,4,A,", "3,law,4,,"), "line 5 of f has no right letter"),
        (VOTES.replace("3,law,", "3,law,law,"), "line 5 of f has 7 cells where 6 are named"),
        ("question,answer\n1,A\n", "has no column of a model's letters"),
        ("question,answer,x\n1,A,\n", "f has no letter of x"),
        (gzip.compress(VOTES.encode(), mtime=0)[:40], "is not whole"),
        (b"\x1f\x8b\x08" + bytes(40), "is not whole"),
        (b"question,answer,x\n1,A,\xe9\n", "is not UTF-8 text"),
        (f"question,answer,x\n1,A,{'B' * 200_000}\n", "line 2 of f is not CSV: field larger"),
    ],
)
def test_votes_that_no_figure_can_come_from_are_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in sentence(ran("votes", "--file", written(tmp_path, "f", text), "--models", "x", "--gold", "0"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--models", "x,z"), "f has no answers of 'z'; it has those of x, y"),
        (("--models", "x, y ,x"), "--models names 'x' twice"),
        (("--models", "x", "--swarm", "S1"), "give one of them"),
        ((), "Name a swarm of these by --models"),
        (("--models", "x", "--gold", "0,12"), "12 gold questions of 12 leave nothing to test"),
        (("--models", "x", "--gold", "-1"), "leave nothing to test"),
    ],
)
def test_a_swarm_or_gold_that_the_file_has_not_is_wrong_usage(tmp_path: Path, more: Sequence[str], said: str) -> None:
    assert said in sentence(ran("votes", "--file", written(tmp_path, "f", VOTES), *more))


@pytest.mark.parametrize(
    "text",
    [
        VOTES.encode(),
        b"\xef\xbb\xbf" + VOTES.encode(),
        VOTES.replace("\n", "\r\n"),
        "".join(f"{y},{answer},{x},{n}\n" for n, _, _, answer, x, y in (row.split(",") for row in VOTES.splitlines())),
    ],
    ids=["plain", "byte order mark", "other line ends", "other columns"],
)
def test_one_table_in_any_dress_gives_the_same_votes(tmp_path: Path, text: str | bytes) -> None:
    plain, dressed = votes.read(written(tmp_path, "f", VOTES)), votes.read(written(tmp_path, "g", text))
    assert (sorted(dressed.models), dressed.questions(["x", "y"])) == (["x", "y"], plain.questions(["x", "y"]))


def test_who_answers_nothing_is_wrong_and_changes_no_vote(tmp_path: Path) -> None:
    silent = VOTES.replace("answer,x,y", "answer,x,y,silent").replace("A\n", "A,\n").replace("B\n", "B,\n")
    ended = ran(
        "votes", "--file", written(tmp_path, "f", silent), "--models", "x,silent", "--gold", "4,11", "--seeds", "2", "--json"
    )
    rows: list[dict[str, Any]] = json.loads(ended.output)["rows"]
    assert [(row["majority"], row["best_single"], row["chosen"]) for row in rows] == [(100, 100, 100)] * 2
    nobody = ran(
        "votes", "--file", written(tmp_path, "f", VOTES.replace(",A,A,", ",A,,")), "--models", "x,y", "--gold", "0", "--json"
    )
    assert json.loads(nobody.output)["rows"][0]["best_single"] == 50


@pytest.mark.parametrize(
    ("cast", "said", "sentenced"),
    [
        ("", PEOPLE, "cast.csv.gz is empty"),
        (JUDGED, PEOPLE.replace("first", "one", 1), "said.csv.gz has no column 'first'"),
        (
            JUDGED.replace("r,p,q,0,1", "r,p,q,0,A"),
            PEOPLE,
            "line 2 of cast.csv.gz has the verdict 'A', which is none of 1, 0 and -1",
        ),
        (JUDGED.replace("r,p,q,0,1", "r,p,p,0,1"), PEOPLE, "line 2 of cast.csv.gz compares the answer of 'p' with itself"),
        (JUDGED, PEOPLE.replace(",1\n", ",0\n"), "on no question of cast.csv.gz do people prefer a judged answer"),
        (JUDGED, PEOPLE.replace("p,q,", "p,q,other"), "on no question of cast.csv.gz do people prefer a judged answer"),
        (JUDGED + "".join(f"r,p{n},q,0,1\n" for n in range(60)), PEOPLE, "62 authors or judges where a round has 50 members"),
    ],
)
def test_judgements_that_no_figure_can_come_from_are_named(tmp_path: Path, cast: str, said: str, sentenced: str) -> None:
    assert sentenced in sentence(judged(tmp_path, cast, said, "--gold", "0"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--gold", "0,4"), "there are 4 questions: 4 gold ones leave none to test"),
        (("--gold", "0", "--collude", "0,3"), "there are 2 judges: 3 of them cannot collude"),
    ],
)
def test_more_gold_or_colluders_than_there_are_is_wrong_usage(tmp_path: Path, more: Sequence[str], said: str) -> None:
    assert said in sentence(judged(tmp_path, JUDGED, PEOPLE, *more))


def test_judges_that_wrote_nothing_collude_and_authors_are_pushed(tmp_path: Path) -> None:
    """Of the four names two judge and two are judged: two colluders are all judges, and win with every question."""
    ended = judged(tmp_path, JUDGED, PEOPLE, "--gold", "0", "--collude", "0,2", "--json")
    honest, colluding = json.loads(ended.output)["rows"]
    assert (honest["agreement"], honest["top"], colluding["target_wins"]) == (100, 100, 100)


def test_questions_that_people_say_nothing_of_are_left_out(tmp_path: Path) -> None:
    said = PEOPLE.replace("p,q,0,1", "p,q,0,0").replace("p,q,1,1", "p,stranger,1,1") + "p,q,7,1\n"
    cast = JUDGED.replace("r,p,q,2,1", "r,p,q,2,").replace("s,p,q,3,1", "s,p,q,3,1.0")
    given = judgments.read_set(written(tmp_path, "cast", cast), written(tmp_path, "said", said))
    assert (sorted(given.ballots), sorted(given.people), given.names) == (["2", "3"], ["2", "3"], ("p", "q", "r", "s"))
    assert [len(given.ballots["2"][judge]) for judge in given.judges] == [1, 2]


def test_pairs_need_every_verdict(tmp_path: Path) -> None:
    files = written(tmp_path, "cast", JUDGED.replace("r,p,q,0,1\n", "")), written(tmp_path, "said", PEOPLE)
    ended = ran("pairs", "--judgments", files[0], "--humans", files[1])
    assert "question 0: r has no verdict on p before q" in sentence(ended)
    with pytest.raises(BadTable):
        judgments.read_set(files[1], files[0])
