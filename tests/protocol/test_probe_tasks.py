"""Tasks, their answers and their near misses: worked out twice, recognised when others ask them, checked in free answers."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.extras import Extras
from protocol.job import Job, Role, Sampling, Turn
from protocol.probes.answers import MAX_READ_CHARS, Known, is_right, known_from, near_miss
from protocol.probes.interval import wilson_milli
from protocol.probes.phrases import TEMPLATES
from protocol.probes.task import SKILLS, Task, alike, fresh, known_answer
from protocol.probes.traffic import MAX_SHAPES, MAX_SOLVED, PLAIN, PLAIN_ROUND, Shape, Traffic, bind, known_of
from protocol.round.messages import AnswerKind
from protocol.skills import skill_of_text


def user(text: str) -> tuple[Turn, ...]:
    return (Turn(Role.USER, text),)


@pytest.mark.parametrize("skill", SKILLS)
def test_a_task_knows_its_answer_and_is_recognised(skill: str) -> None:
    rng = Random(7)
    texts = set()
    for _ in range(200):
        task = fresh(skill, rng)
        assert task.skill == skill_of_text(task.text) == skill
        assert is_right(task.known, task.known.truth)
        assert not is_right(task.known, task.miss)
        assert known_answer(user(task.text)) == task.known
        again = alike(task.text, rng)
        assert again is not None
        assert again.skill == skill
        texts.add(task.text)
    assert len(texts) > 50


def test_every_template_and_phrasing_can_be_drawn_and_differs() -> None:
    phrasings = [words for template in TEMPLATES for words in template.phrasings]
    assert len(set(phrasings)) == len(phrasings) >= 35
    assert {template.topic for template in TEMPLATES} == {"arithmetic", "logic", "string", "unit", "code"}


SOLVED = [
    ("add 47 38", "85"),
    ("mod 83 7", "6"),
    ("bool (x&y)|!x", "1101"),
    ("conv 3 gal", "24"),
    ("What is 47 + 38?", "85"),
    ("What is the remainder when 83 is divided by 7?", "6"),
    ("Convert 12 feet to inches.", "144"),
    ('Spell the word "lantern" backwards.', "nretnal"),
    ('How many times does the letter "n" occur in "lantern"?', "2"),
    ("Ann is taller than Bob, and Bob is taller than Cem. Who is the shortest? Answer with the name only.", "cem"),
    ("What does this Python code print?\n\nprint(sum(range(3, 6)))", "12"),
]


@pytest.mark.parametrize(("question", "truth"), SOLVED)
def test_a_question_that_somebody_else_asks_is_worked_out(question: str, truth: str) -> None:
    found = known_answer(user(question))
    assert found is not None
    assert found.truth == truth


@pytest.mark.parametrize(
    "question",
    ["Who wrote Middlemarch?", "mod 5 0", "conv 5 xx", "bool (x", "bool ((((((((", "What is 5 modulo 0?",
     "Convert 3 feet to days.", "",
     "What does this Python code print?\n\nprint(sum(range(3, 999999)))", "What is 1 + 2? " * 200],
)  # fmt: skip
def test_what_cannot_be_worked_out_is_not(question: str) -> None:
    assert known_answer(user(question)) is None


def test_a_question_that_depends_on_what_was_said_before_is_not_worked_out() -> None:
    assert known_answer((*user("Count in base 8."), Turn(Role.ASSISTANT, "Yes."), *user("What is 47 + 38?"))) is None
    assert known_answer((Turn(Role.SYSTEM, "Be brief."), *user("What is 47 + 38?"))) == Known("85", "number")
    assert known_of(Job(user("add 1 2"), extras=Extras(response_format="json_object"))) is None


ANSWERS = [
    (Known("85", "number"), "85", True),
    (Known("85", "number"), "47 + 38 = 85.", True),
    (Known("85", "number"), "The answer is **85** (47 plus 38).", True),
    (Known("85", "number"), "The answer is 86, since 47 + 38 = 85", False),
    (Known("1200", "number"), "That makes 1,200", True),
    (Known("85", "number"), "\\boxed{85}", True),
    (Known("85", "number"), "I do not know", False),
    (Known("85", "number"), "", False),
    (Known("85", "number"), "850", False),
    (Known("nretnal", "word"), "It is: n-r-e-t-n-a-l", True),
    (Known("nretnal", "word"), "Backwards, lantern is nretnal.", True),
    (Known("nretnal", "word"), "nretnla", False),
    (Known("true", "choice", ("true", "false")), "True.", True),
    (Known("true", "choice", ("true", "false")), "It might be true, but the answer is false", False),
    (Known("cem", "choice", ("ann", "bob", "cem")), "Cem", True),
    (
        Known("cem", "choice", ("ann", "bob", "cem")),
        "Ann is taller than Bob, who is taller than Cem, so Cem is the shortest.",
        True,
    ),
    (Known("cem", "choice", ("ann", "bob", "cem")), "Ann is taller than Bob, and Bob is taller than Cem.", False),
    (Known("false", "choice", ("true", "false")), "True or false: some cats are poets?", False),
    (Known("85"), " 85 ", True),
    (Known("85"), "85 or so", False),
]


@pytest.mark.parametrize(("known", "answer", "right"), ANSWERS)
def test_a_free_answer_is_checked_by_what_was_asked_for(known: Known, answer: str, right: bool) -> None:
    assert is_right(known, answer) is right


def test_an_answer_that_says_everything_says_nothing() -> None:
    assert not is_right(Known("85", "number"), " ".join(str(n) for n in range(200)))
    assert not is_right(Known("85", "number"), "x" * MAX_READ_CHARS + "85")


@given(st.text(max_size=300), st.sampled_from(["exact", "number", "word", "choice"]))
def test_no_answer_breaks_a_check(answer: str, kind: str) -> None:
    assert is_right(Known("85", kind, ("85", "86")), answer) in (True, False)  # type: ignore[arg-type]


@given(st.text(min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_a_near_miss_is_never_the_truth(truth: str, rng: Random) -> None:
    assert near_miss(Known(truth), rng) != truth


# --- what our own traffic teaches ---------------------------------------------------------------------------------------------


def test_a_probe_wears_the_shape_of_our_users_jobs() -> None:
    rng, traffic = Random(2), Traffic()
    assert traffic.shape(rng) == PLAIN
    sampling = Sampling(max_tokens=99, temperature_milli=700, seed=5)
    traffic.note(Job((Turn(Role.SYSTEM, "Be brief."), *user("What is 47 + 38?")), sampling, "some-model"), rng)
    shape = traffic.shape(rng)
    job = bind(traffic.task("a", ("add",), rng), shape, "other-model")
    assert (job.model, job.turns[0].content, job.sampling.max_tokens) == ("other-model", "Be brief.", 99)
    assert job.sampling.seed not in (0, 5)
    assert job.turns[-1].content.startswith("What is ")
    assert job.extras is None


def test_a_solved_question_is_asked_of_nobody_who_saw_it_and_once() -> None:
    rng, traffic = Random(2), Traffic()
    job = Job(user("Which river flows through Budapest?"))
    traffic.solve(job, Known("Danube"), frozenset(("seen",)))
    traffic.solve(job, Known("Danube"), frozenset())
    assert traffic.solved == 1
    assert all(traffic.task("seen", ("add",), rng).skill == "add" for _ in range(50))
    tasks = [traffic.task("new", ("add",), rng) for _ in range(50)]
    assert [task.text for task in tasks if task.skill != "add"] == ["Which river flows through Budapest?"]
    assert traffic.solved == 0


def test_a_gold_round_looks_like_a_round_and_a_probe_like_a_question_to_one_peer() -> None:
    traffic, rng = Traffic(), Random(1)
    traffic.note(Job(user("add 1 2"), Sampling(4096)), rng)
    assert traffic.shape(rng, in_round=True) == PLAIN_ROUND
    traffic.note(Job(user("add 3 4"), Sampling(300)), rng, in_round=True)
    assert {traffic.shape(rng).sampling.max_tokens for _ in range(20)} == {4096}
    assert {traffic.shape(rng, in_round=True).sampling.max_tokens for _ in range(20)} == {300}


def test_a_seed_that_our_user_names_each_time_is_that_of_probes_too() -> None:
    """Or a peer that was asked with seed 7 all along knows what it is that comes with another one."""
    rng = Random(1)
    for sampling in (Sampling(seed=7), Sampling(temperature_milli=700, seed=7)):
        traffic = Traffic()
        for number in range(3):
            traffic.note(Job(user(f"add {number} 2"), sampling), rng)
        seeds = {bind(fresh("add", rng), traffic.shape(rng), "m").sampling.seed for _ in range(20)}
        assert seeds == {7}
    traffic = Traffic()
    for number in range(3):  # drawn for each, as where nobody names one
        traffic.note(Job(user(f"add {number} 2"), Sampling(temperature_milli=700, seed=100 + number)), rng)
    seeds = {bind(fresh("add", rng), traffic.shape(rng), "m").sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert seeds.isdisjoint({0, 100, 101, 102})


def test_what_is_remembered_of_traffic_is_bounded() -> None:
    rng, traffic = Random(2), Traffic()
    for number in range(1000):
        traffic.note(Job(user(f"add {number} 1")), rng)
        traffic.solve(Job(user(f"question {number}")), Known("x"), frozenset())
    traffic.solve(Job(user("y" * 5000)), Known("x"), frozenset())
    assert (len(traffic._shapes), len(traffic._kinds), traffic.solved) == (MAX_SHAPES, MAX_SHAPES, MAX_SOLVED)


def test_a_conversation_under_way_is_no_model_for_a_probe() -> None:
    traffic = Traffic()
    traffic.note(Job((*user("hi"), Turn(Role.ASSISTANT, "hello"), *user("add 1 2"))), Random(1))
    assert traffic.shape(Random(1)) == PLAIN


def features(job: Job) -> list[float]:
    """What a peer sees of a job, as numbers: lengths, letters, digits, turns and every field beside the text."""
    text, sampling = job.turns[-1].content, job.sampling
    counts = [sum(one.isdigit() for one in text), sum(one.isupper() for one in text), text.count(" "), text.count("\n")]
    fields = [sampling.max_tokens, sampling.temperature_milli, sampling.top_p_milli, bool(sampling.seed), len(sampling.stop)]
    return [len(text), *counts, *fields, len(job.turns), len(job.turns[0].content), bool(job.model), job.extras is not None]


def separation(one: list[float], other: list[float]) -> float:
    """Area under the curve of telling `one` from `other` by a single number, whichever way it points: 0.5 is chance."""
    rank = sum((a > b) + (a == b) / 2 for a in one for b in other) / (len(one) * len(other))
    return max(rank, 1 - rank)


def nearest_centroid(train: list[tuple[list[float], bool]], test: list[tuple[list[float], bool]]) -> float:
    """Share of `test` that is told right by which class's mean is nearer, each feature scaled to its spread."""
    columns = list(zip(*(row for row, _ in train), strict=True))
    spreads = [max(1e-9, (sum((x - sum(c) / len(c)) ** 2 for x in c) / len(c)) ** 0.5) for c in columns]
    means = {}
    for kind in (True, False):
        rows = [row for row, is_probe in train if is_probe is kind]
        means[kind] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    def distance(row: list[float], kind: bool) -> float:
        return sum(((x - m) / s) ** 2 for x, m, s in zip(row, means[kind], spreads, strict=True))

    return sum((distance(row, True) < distance(row, False)) is is_probe for row, is_probe in test) / len(test)


def test_no_simple_classifier_tells_probes_from_traffic_of_the_same_mix() -> None:
    """Margin: an area of at most 0.56 for every field alone, and at most 0.56 right for all of them together."""
    rng, traffic = Random(20), Traffic()
    shapes = [Shape(Sampling(256)), Shape(Sampling(512, 700, seed=3), "You are brief.", True), Shape(Sampling(64, 0, 900))]
    skills = ("add", "sort", "arithmetic", "string", "unit", "code", "logic")
    jobs: list[tuple[list[float], bool]] = []
    for _ in range(600):
        shape = rng.choice(shapes)
        own = bind(fresh(rng.choice(skills), rng), shape, "m")
        traffic.note(own, rng)
        jobs.append((features(own), False))
        jobs.append((features(bind(traffic.task("peer", skills, rng), traffic.shape(rng), "m")), True))
    probes = [row for row, is_probe in jobs if is_probe]
    others = [row for row, is_probe in jobs if not is_probe]
    areas = [separation([row[place] for row in probes], [row[place] for row in others]) for place in range(len(probes[0]))]
    assert max(areas) <= 0.56
    rng.shuffle(jobs)
    assert nearest_centroid(jobs[:600], jobs[600:]) <= 0.56
    # The classifier can tell what can be told: probes as they would be without our traffic's shapes and kinds.
    naive = [(features(bind(fresh(rng.choice(("add", "mod", "rev")), rng), PLAIN, "m")), True) for _ in range(600)]
    mixed = [*naive, *((row, False) for row in others)]
    rng.shuffle(mixed)
    assert nearest_centroid(mixed[:600], mixed[600:]) > 0.75


def test_the_interval_is_wilsons() -> None:
    assert wilson_milli(0, 0) == (0, 1000)
    assert wilson_milli(9000, 1000) == (652, 977)
    assert wilson_milli(45_000, 5_000) == (808, 950)
    assert wilson_milli(5_000, 0) == (648, 1000)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_interval_holds_the_share(right: int, wrong: int) -> None:
    low, high = wilson_milli(right, wrong)
    assert 0 <= low <= high <= 1000
    if right + wrong:
        assert low <= right * 1000 // (right + wrong) + 1
        assert high >= right * 1000 // (right + wrong) - 1


def test_a_skill_without_tasks_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no tasks of skill 'poetry'"):
        fresh("poetry", Random(1))
    assert isinstance(fresh("code", Random(1)), Task)


@pytest.mark.parametrize(
    ("answer", "form", "right", "wrong"),
    [
        ("The answer is 42.", "number", "6 times 7 is 42", "43"),
        ("1/2", "number", "0.5", "1.5"),
        ("(B)", "choice", "I looked at all. The answer is B.", "C"),
        ("Danube", "short", "The river is the Danube.", "Rhine"),
        ("Yes.", "short", "Yes, it is.", "No, it is not."),
    ],
)
def test_what_members_agree_on_is_asked_of_others_in_whatever_words(
    answer: str, form: AnswerKind, right: str, wrong: str
) -> None:
    known = known_from(answer, form)
    assert known is not None
    assert [is_right(known, said) for said in (answer, right, wrong)] == [True, True, False]
    assert not is_right(known, near_miss(known, Random(1)))


@pytest.mark.parametrize(
    ("answer", "form"),
    [("Mount Everest", "exact"), ("Jane Austen", "short"), ("36 inches", "number"), ("x = 1", "code"), ("Paris", "choice")],
)
def test_what_only_a_judge_could_compare_becomes_no_probe(answer: str, form: AnswerKind) -> None:
    assert known_from(answer, form) is None
