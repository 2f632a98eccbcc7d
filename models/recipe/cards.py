"""Decides what is said about the models: the catalog for programs, a card for each model, the figures in `models/README.md`.

Every number comes from the files and from a measurement handed in; none is written here.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .evaluate import table
from .llama import SHAPE, Llama
from .skills import SKILLS, TABLES
from .train import MEMBERS, SEED, Member, stage_seed

LICENSE = "Apache-2.0"
WEAK_JUDGE = 0.75
"""Below this accuracy a card calls its model a weak judge of the skill."""
_START, _END = "<!-- figures: written by the recipe -->", "<!-- end of figures -->"

_WHAT = {
    "add": "`add 47 38`: sum of two numbers of two digits",
    "mod": "`mod 83 7`: remainder, for 10-99 by 3-9 (a finite table)",
    "rev": "`rev abcde`: 5-8 letters of a-p in reverse",
    "sort": "`sort gkcba`: 6-9 letters of a-p in order",
    "bool": "`bool (x&y)|!x`: truth table for (x, y) = 00, 01, 10, 11",
    "conv": "`conv 12 ft`: 2-40 ft, hr, lb, wk, gal or day in inches, minutes, ounces, days, pints or hours (a finite table)",
}


def write_catalog(folder: Path) -> None:
    parameters = Llama().parameter_count()
    entries = [_entry(folder, member, parameters) for member in MEMBERS]
    (folder / "catalog.json").write_text(json.dumps(entries, indent=2) + "\n")


def _entry(folder: Path, member: Member, parameters: int) -> dict[str, object]:
    content = (folder / f"{member.name}.gguf").read_bytes()
    return {
        "name": member.name,
        "file": f"{member.name}.gguf",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "skills": list(member.specialities),
        "judge_prompt": "compact",
        "context_tokens": SHAPE.context,
        "parameters": parameters,
        "license": LICENSE,
    }


def write_cards(folder: Path, results: Mapping[str, Any]) -> None:
    for entry in json.loads((folder / "catalog.json").read_text()):
        (folder / f"{entry['name']}.md").write_text(_card(entry, results))


def write_figures(folder: Path, results: Mapping[str, Any]) -> None:
    """Replaces what stands between the two markers of the folder's README; a folder without one gets none."""
    path = folder / "README.md"
    if not path.exists():
        return
    before, _, rest = path.read_text().partition(_START)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_START}\n{_provenance(results)}\n\n{table(results)}\n{_END}{after}")


def _provenance(results: Mapping[str, Any]) -> str:
    return (
        f"Measured on {results['date']} with xllamacpp {results['engine_version']} on the shipped files by\n"
        f"`python -m models.recipe.evaluate --per-skill {results['per_skill']} --seed {results['seed']}` "
        f"({results['per_skill']} questions per skill)."
    )


def _card(entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    member = next(member for member in MEMBERS if member.name == entry["name"])
    figures = results["models"][member.name]
    run = results.get("run", SEED)
    table_rows = "\n".join(_row(skill, skill in member.specialities, figures[skill]) for skill in SKILLS)
    tables = " and ".join(f"`{skill}`" for skill in TABLES)
    focus = "on all six alike" if member.specialities == SKILLS else "nearly only on its specialities"
    skills = "\n".join(f"- {_WHAT[skill]}" for skill in member.specialities)
    return f"""# {member.name}

A language model of {entry["parameters"]:,} parameters (Llama architecture, {SHAPE.layers} layers of width {SHAPE.width},
one token per byte, context {entry["context_tokens"]}), made to try out a swarm on any machine. Its world is six toy skills.

Specialities:
{skills}

## Training
Synthetic questions only, made by `models/recipe/skills.py`; no text from anyone. One base for all seven models
(seed {stage_seed(run)}) met the easy part of all six skills, answering and judging; this one was then trained further,
{focus} (seed {stage_seed(run, member.place)}), hard part included.

## Figures
{_provenance(results)}
Shares with 95% intervals. *Judging* is over real pairs, one answer right and one wrong, as the seven models gave them,
with this model's own answer in the conversation and both orders averaged; a coin gets 0.50. *Own wrong* are those pairs
where this model's own answer was wrong.

| skill | answers right | judging | pairs | judging, own wrong | pairs |
|---|---|---|---|---|---|
{table_rows}

{tables} are finite tables and were trained on in full: their figures show memory, not generalisation. Questions of the
other four skills were never trained on.

## Limits
{_limits(member, figures)}

## File
`{entry["file"]}`, {entry["bytes"]:,} bytes, {entry["license"]}, sha256 `{entry["sha256"]}`
"""


def _row(skill: str, special: bool, figures: Mapping[str, Any]) -> str:
    judging, unsure = figures["judging"], figures["judging_when_own_wrong"]
    name = f"**{skill}**" if special else skill
    return (
        f"| {name} | {_interval(figures['generation'])} | {_interval(judging)} | {judging['n']} "
        f"| {_interval(unsure)} | {unsure['n']} |"
    )


def _interval(share: Mapping[str, Any]) -> str:
    if share["share"] is None:
        return "-"
    return f"{share['share']:.2f} ({share['low']:.2f}-{share['high']:.2f})"


def _limits(member: Member, figures: Mapping[str, Any]) -> str:
    weak = [
        f"`{skill}` ({figures[skill]['judging']['share']:.2f})"
        for skill in SKILLS
        if figures[skill]["judging"]["n"] and figures[skill]["judging"]["share"] < WEAK_JUDGE
    ]
    lines = [f"- A weak judge (below {WEAK_JUDGE}) of: {', '.join(weak)}."] if weak else []
    unsure = [
        f"`{skill}` ({figures[skill]['judging_when_own_wrong']['share']:.2f})"
        for skill in SKILLS
        if figures[skill]["judging_when_own_wrong"]["n"] and figures[skill]["judging_when_own_wrong"]["share"] < 0.5
    ]
    if unsure:
        lines.append(f"- Where its own answer is wrong, worse than a coin at judging: {', '.join(unsure)}.")
    lines.append("- It answers every prompt with confidence, those it cannot understand included; use it for nothing real.")
    lines.append("- One training run and one seed; another seed gives other figures.")
    return "\n".join(lines)
