"""Real models' judgements of each other's prose, folded by the project's `rank` arm, against people's; also with colluders."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as Set_
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from random import Random
from statistics import mean

from bench.evaluation import tables
from protocol.round.ballots import favourites, preferences
from protocol.round.blocks import RIGHT, SILENT, Errors, blocks
from protocol.round.calibration import Trial, confidence_milli, gain_milli
from protocol.round.classes import classes_of
from protocol.round.conduct import self_preference
from protocol.round.fold import Contributions, Result, Voice, fold, leads_milli
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, FoldParameters, Judgement
from protocol.round.weights import Known, Trials, weigh
from protocol.wire.ids import sha256
from protocol.wire.limits import MAX_COMMITTEE

Ballots = Mapping[int, tuple[Judgement, ...]]

PARAMETERS = FoldParameters(arm="rank", evidence="log_odds", position_bias=True)
"""These verdicts are words without probabilities: one, nothing, or the other."""


@dataclass(frozen=True, slots=True)
class Set:
    """Authors, then judges that are none, by name; their ballots by question; people's net verdict on each pair a < b; and each
    question's authors. Only questions on which people prefer an answer are here, and of people's verdicts those on answers that
    a judge saw too."""

    names: tuple[str, ...]
    ballots: Mapping[str, Ballots]
    people: Mapping[str, Mapping[tuple[int, int], Sequence[int]]]
    authors: Mapping[str, tuple[int, ...]]

    @property
    def judges(self) -> list[int]:
        """Whoever cast a ballot."""
        return sorted({judge for cast in self.ballots.values() for judge in cast})


@dataclass(frozen=True, slots=True)
class Figures:
    """`agreement` with the majority of people over pairs on which they have one; `votes`: with each person's vote that is no tie;
    `top`: how often the winner is one that people put first. 0 to 1; an equal score counts half."""

    agreement: float
    votes: float
    top: float


MODELS_COLUMNS = ("judge", "first", "second", "question", "verdict")
PEOPLES_COLUMNS = MODELS_COLUMNS[1:]


def read_set(judgments: Path, humans: Path) -> Set:
    """Both files; raises BadTable where no figure can come from them. A row without a verdict says nothing."""
    _, cast = tables.read(judgments, MODELS_COLUMNS)
    _, said = tables.read(humans, PEOPLES_COLUMNS)
    authors, judges = ({row[field] for _, row in cast for field in fields} for fields in (("first", "second"), ("judge",)))
    if (most := max(len(authors), len(judges))) > MAX_COMMITTEE:
        raise tables.BadTable(f"{judgments.name} has {most} authors or judges where a round has {MAX_COMMITTEE} members at most")
    names = (*sorted(authors), *sorted(judges - authors))
    place = {name: index for index, name in enumerate(names)}
    ballots: dict[str, dict[int, tuple[Judgement, ...]]] = {}
    for line, row in cast:
        if (verdict := _verdict(judgments, line, row)) is not None:
            judgement = Judgement(place[row["first"]], place[row["second"]], verdict * LOG_ODDS_CLAMP_MILLI)
            mine = ballots.setdefault(row["question"], {})
            mine[place[row["judge"]]] = (*mine.get(place[row["judge"]], ()), judgement)
    shown = {question: _authors(by_judge) for question, by_judge in ballots.items()}
    people: dict[str, dict[tuple[int, int], list[int]]] = {}
    for line, row in said:
        a, b, verdict = place.get(row["first"]), place.get(row["second"]), _verdict(humans, line, row)
        if a in shown.get(row["question"], ()) and b in shown[row["question"]] and verdict is not None:
            pair, sign = ((a, b), 1) if a < b else ((b, a), -1)
            people.setdefault(row["question"], {}).setdefault(pair, []).append(sign * verdict)
    told = [question for question in ballots if any(sum(votes) for votes in people.get(question, {}).values())]
    if not told:
        raise tables.BadTable(f"on no question of {judgments.name} do people prefer a judged answer in {humans.name}")
    return Set(names, *({question: part[question] for question in told} for part in (ballots, people, shown)))


def _verdict(file: Path, line: int, row: tables.Row) -> int | None:
    if row["first"] == row["second"]:
        raise tables.BadTable(f"line {line} of {file.name} compares the answer of {row['first'][:40]!r} with itself")
    try:
        found = float(row["verdict"] or "nan")
    except ValueError:
        found = inf
    if isnan(found):
        return None
    if found not in (-1, 0, 1):
        raise tables.BadTable(f"line {line} of {file.name} has the verdict {row['verdict'][:40]!r}, which is none of 1, 0 and -1")
    return int(found)


def _authors(ballots: Ballots) -> tuple[int, ...]:
    return tuple(sorted({seat for cast in ballots.values() for one in cast for seat in (one.first, one.second)}))


@dataclass(frozen=True, slots=True)
class Split:
    """The questions of one seed that are not gold: our fold, uniform Bradley-Terry, and the authors' order on gold without any
    judge. `pushed` is how often the colluders' target wins ours; `found` and `wronged` are the shares of colluders and of all
    others that gold shows as part of a block."""

    ours: Figures
    uniform: Figures
    authors: Figures
    pushed: float
    found: float
    wronged: float
    confidences: tuple[tuple[int, bool], ...]


def split(given: Set, gold: int, colluders: int, seed: int) -> Split:
    """Draw gold questions and colluders by `seed`, weigh all members by gold, and fold the others."""
    chance = Random(1000 * colluders + seed)
    order = chance.sample(sorted(given.ballots), len(given.ballots))
    liars = chance.sample(given.judges, colluders)
    targets = {question: chance.choice(given.authors[question]) for question in order}
    ballots = {question: collude(given.ballots[question], liars, targets[question]) for question in order}
    weighed = voices_of(given, ballots, order[:gold])
    alike = {seat: Voice(1000, 1000, _own(seat)) for seat in range(len(given.names))}
    hidden = order[gold:]
    ours = {question: rank(question, given, ballots[question], weighed) for question in hidden}
    uniform = {question: rank(question, given, ballots[question], alike) for question in hidden}
    trials = [_left_out(given, ballots, order[:gold], place) for place in range(gold)]
    gain = gain_milli(trials, "rank")
    sure = tuple((confidence_milli(leads_milli(ours[q]), gain), _is_top(given, q, ours[q].winner_seat)) for q in hidden)
    pushed = mean(ours[question].winner_seat == targets[question] for question in hidden) if colluders else 0.0
    blocked = frozenset[int]().union(*blocks_of(given, ballots, order[:gold]))
    strengths = {seat: voice.strength_milli for seat, voice in weighed.items()}
    return Split(
        figures(given, {question: scores(result) for question, result in ours.items()}),
        figures(given, {question: scores(result) for question, result in uniform.items()}),
        figures(given, {question: {seat: strengths[seat] for seat in given.authors[question]} for question in hidden}),
        pushed,
        _share(liars, blocked),
        _share([seat for seat in given.judges if seat not in liars], blocked),
        sure,
    )


def _own(voice: int) -> bytes:
    return voice.to_bytes(4, "big")


def _share(seats: Sequence[int], blocked: Set_[int]) -> float:
    return sum(seat in blocked for seat in seats) / max(1, len(seats))


def blocks_of(given: Set, ballots: Mapping[str, Ballots], gold: Sequence[str]) -> list[frozenset[int]]:
    """Judges that err together on gold: on pairs that hold what they put first, where people have a majority."""
    seats = tuple(range(len(given.names)))
    found = []
    for question in gold:
        told = {judge: preferences(cast) for judge, cast in ballots[question].items()}
        first = {judge: favourites(odds) for judge, odds in told.items()}
        pairs = []
        for (a, b), said_by_people in sorted(given.people.get(question, {}).items()):
            people = _sign(sum(said_by_people))
            telling = {judge for judge in told if people and (a in first[judge]) != (b in first[judge])}
            pairs.append(
                "".join(
                    SILENT if judge not in telling else RIGHT if _sign(told[judge].get((a, b), 0)) == people else "x"
                    for judge in seats
                )
            )
        found.append(Errors(tuple(map(str, seats)), SILENT * len(seats), tuple(pairs)))
    return [frozenset(map(int, block)) for block in blocks(found)]


def _left_out(given: Set, ballots: Mapping[str, Ballots], gold: Sequence[str], place: int) -> Trial:
    """How the fold does on one gold question with weights from all the others."""
    question = gold[place]
    result = rank(question, given, ballots[question], voices_of(given, ballots, [*gold[:place], *gold[place + 1 :]]))
    return leads_milli(result), _is_top(given, question, result.winner_seat)


def collude(ballots: Ballots, liars: Sequence[int], target: int) -> Ballots:
    """Liars put `target` before every other answer, with all certainty, and are honest on all other pairs."""

    def bent(judgement: Judgement) -> Judgement:
        if target not in (judgement.first, judgement.second):
            return judgement
        sign = 1 if judgement.first == target else -1
        return Judgement(judgement.first, judgement.second, sign * LOG_ODDS_CLAMP_MILLI)

    return {judge: tuple(map(bent, cast)) if judge in liars else cast for judge, cast in ballots.items()}


def voices_of(given: Set, ballots: Mapping[str, Ballots], gold: Sequence[str]) -> dict[int, Voice]:
    """What gold questions say of each: as a judge, where pairs that hold its favourite are told apart from the others, and as an
    author, how often people prefer its answers to others'."""
    count = len(given.names)
    records = [[[0, 0] for _ in range(count)] for _ in range(3)]
    for question in gold:
        for (a, b), said_by_people in given.people.get(question, {}).items():
            people = _sign(sum(said_by_people))
            for author, won in ((a, people > 0), (b, people < 0)):
                records[2][author][0] += 1000 * (people != 0 and won)
                records[2][author][1] += 1000 * (people != 0 and not won)
        for judge, cast in ballots[question].items():
            first = favourites(preferences(cast))
            for judgement in cast:
                pair = (min(judgement.first, judgement.second), max(judgement.first, judgement.second))
                people = _sign(sum(given.people.get(question, {}).get(pair, ())))
                if not people:
                    continue
                said = _sign(judgement.log_odds_milli) * (1 if judgement.first < judgement.second else -1)
                held = records[(pair[0] in first) != (pair[1] in first)][judge]
                held[0] += 500 * (1 + said * people)
                held[1] += 500 * (1 - said * people)
    others, first, authors = ([Trials(*held) for held in part] for part in records)
    weighed = weigh([Known(author, plain, own) for author, plain, own in zip(authors, others, first, strict=True)])
    shared = {seat: min(block) for block in blocks_of(given, ballots, gold) for seat in block}
    return {
        seat: Voice(1000, one.judge_milli, _own(shared.get(seat, seat)), one.favourite_milli, one.strength_milli)
        for seat, one in enumerate(weighed)
    }


def rank(question: str, given: Set, ballots: Ballots, weighed: Mapping[int, Voice]) -> Result:
    """The project's fold of one question's ballots."""
    round_id = sha256(b"bench/ranking", question.encode())
    seats = given.authors[question]
    classes = classes_of(round_id, {seat: given.names[seat] for seat in seats}, dict.fromkeys(seats, 1_000_000))
    number = {found.seats[0]: index for index, found in enumerate(classes)}
    cast = {
        judge: tuple(Judgement(number[j.first], number[j.second], j.log_odds_milli) for j in said)
        for judge, said in ballots.items()
    }
    return fold(Contributions(round_id, "rank", PARAMETERS, weighed, classes, cast))


def scores(result: Result) -> dict[int, int]:
    """By author; a tie is broken as the round breaks it, so only the winner can be first."""
    return {row.seats[0]: row.score_micro + (index == result.winner) for index, row in enumerate(result.classes)}


def figures(given: Set, ranked: Mapping[str, Mapping[int, int]]) -> Figures:
    """How well scores by author match people's verdicts, by question; of several winners the first in order."""
    pairs: list[float] = []
    votes: list[float] = []
    tops: list[bool] = []
    for question, score in ranked.items():
        for (a, b), said in given.people.get(question, {}).items():
            ours = 0.5 + 0.5 * _sign(score[a] - score[b])
            if sum(said):
                pairs.append(ours if sum(said) > 0 else 1 - ours)
            votes += [ours if vote > 0 else 1 - ours for vote in said if vote]
        tops.append(_is_top(given, question, max(score, key=lambda seat: score[seat])))
    return Figures(mean(pairs), mean(votes), mean(tops))


def _is_top(given: Set, question: str, seat: int) -> bool:
    """Whether people put this author's answer first, be it among others."""
    net = dict.fromkeys(given.authors[question], 0.0)
    for (a, b), said in given.people.get(question, {}).items():
        net[a] += mean(said)
        net[b] -= mean(said)
    return net[seat] >= max(net.values()) - 1e-9


def preferences_of_self(given: Set) -> list[dict[str, str | int]]:
    """By judge that judged its own answers beside others: the chance in thousandths that it gives them, and that others do."""
    rows: list[dict[str, str | int]] = []
    for seat, name in enumerate(given.names):
        class_of = {each: each for each in range(len(given.names))}
        found = [one for ballots in given.ballots.values() if (one := self_preference(seat, ballots, class_of)) is not None]
        if not found:
            continue
        pairs = sum(one.pairs for one in found)
        own = sum(one.own_milli * one.pairs for one in found) // pairs
        rows.append({"judge": name, "own_milli": own, "others_milli": sum(o.others_milli * o.pairs for o in found) // pairs})
    return rows


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
