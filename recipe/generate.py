"""Generate the synthetic part of the training text: conversations, stories, days, exchanges.

Usage: python recipe/generate.py DESTINATION [--seed N]

Everything comes from templates, word lists and exchanges written for this model, so that what it
learns is regular enough for ten million parameters. Files: generated-chat.jsonl,
generated-drills.jsonl, generated-text.jsonl, exchanges.jsonl, and heldout-chat.jsonl,
heldout-drills.jsonl and heldout-text.jsonl, which come from another random stream and share no
record with the others.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from exchanges import exchange_records
from grammar import DATA, Scene, Turn, exchange, paragraph, read_lists, read_plots, read_scripts
from sums import order_turn, sum_turn
from tasks import continuing, naming, repeating, rewriting, translation

CONVERSATIONS, DRILLS, TEXTS, HELD_OUT = 60_000, 20_000, 25_000, 300
STORY_SHARE = 0.35
# Short stories in conversations, and stories that questions follow.
SHORT, RECALLED = 0.7, 0.25
LANGUAGES = ("en", "ja")
# Greetings are short and repetitive; more copies teach nothing new.
COPIES = 6
GREETINGS = read_lists(DATA / "greetings.toml")
QUESTIONS = read_lists(DATA / "questions.toml")
TALKS = {language: read_scripts(DATA / f"talk-{language}.txt") for language in LANGUAGES}
DAYS = {language: read_plots(DATA / f"days-{language}.txt") for language in LANGUAGES}
TALES = {language: read_plots(DATA / f"tales-{language}.txt") for language in LANGUAGES}
STORIES = {language: read_plots(DATA / f"stories-{language}.txt") for language in LANGUAGES}
Record = dict[str, Any]


def talk(rng: Random, language: str) -> list[Turn]:
    """A script's first one to three steps."""
    weights, scripts = zip(*TALKS[language], strict=True)
    script = rng.choices(scripts, weights)[0]
    scene = Scene(rng, language)
    turns = []
    for step in script[: rng.choice([1, 2, 2, 3, 3])]:
        question, answer = rng.choice(step)
        turns.append((scene.fill(question), scene.fill(answer)))
    return turns


def listed(section: str) -> Callable[[Random, str], list[Turn]]:
    def make(rng: Random, language: str) -> list[Turn]:
        return [exchange(Scene(rng, language), rng.choice(QUESTIONS[language][section]))]

    return make


def story(scene: Scene) -> str:
    return paragraph(scene, scene.rng.choice(STORIES[scene.language]))


def tale(rng: Random, language: str) -> list[Turn]:
    """A request for a story, and a story with the hero and the name that it asks for."""
    scene = Scene(rng, language)
    asked = scene.fill(rng.choice(QUESTIONS[language]["stories"]))
    short = rng.random() < SHORT
    turns = [(asked, paragraph(scene, rng.choice(TALES[language])) if short else story(scene))]
    if rng.random() < RECALLED:
        turns.append(exchange(scene, rng.choice(QUESTIONS[language]["recall"])))
    return turns


def numbers(rng: Random, language: str) -> list[Turn]:
    return [sum_turn(rng, language) if rng.random() < 0.7 else order_turn(rng, language)]


TOPICS: list[tuple[int, Callable[[Random, str], list[Turn]]]] = [
    (26, talk), (18, listed("facts")), (8, listed("capitals")), (16, numbers), (20, tale),
    (3, listed("unknown")), (4, translation), (4, naming), (6, continuing), (4, rewriting),
]  # fmt: skip


PRACTISED: list[tuple[int, Callable[[Random, str], list[Turn]]]] = [
    (10, lambda rng, language: [sum_turn(rng, language)]), (2, tale), (3, listed("capitals")),
    (3, repeating),
]  # fmt: skip


def drill(rng: Random, language: str) -> Record:
    """Turn after turn of one thing that takes practice: sums, names to copy, capitals."""
    weights, topics = zip(*PRACTISED, strict=True)
    topic = rng.choices(topics, weights)[0]
    return dialogue(turn for _ in range(rng.choice([2, 3, 4, 5])) for turn in topic(rng, language))


def dialogue(turns: Iterable[Turn]) -> Record:
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": role, "content": said}
            for turn in turns
            for role, said in zip(roles, turn, strict=True)
        ]
    }


def conversation(rng: Random, language: str) -> Record:
    """One to five turns in one language, perhaps with a greeting before and thanks after."""
    weights, topics = zip(*TOPICS, strict=True)
    turns: list[Turn] = []
    if rng.random() < 0.2:
        turns.append(exchange(Scene(rng, language), rng.choice(GREETINGS[language]["greetings"])))
    for topic in rng.choices(topics, weights, k=rng.choice([1, 1, 1, 2])):
        turns += topic(rng, language)
    if rng.random() < 0.15:
        turns.append(exchange(Scene(rng, language), rng.choice(GREETINGS[language]["farewells"])))
    record = dialogue(turns)
    if rng.random() < 0.05:
        system = {"role": "system", "content": rng.choice(GREETINGS[language]["systems"])}
        record["messages"].insert(0, system)
    return record


def text(rng: Random, language: str) -> Record:
    """A story, or a paragraph about a day, whose first five plots, the weather, come twice."""
    scene = Scene(rng, language)
    if rng.random() < STORY_SHARE:
        return {"text": story(scene)}
    days = DAYS[language]
    return {"text": paragraph(scene, rng.choice(days + days[:5]))}


def stream(make: Callable[[Random, str], Record], seed: str) -> Iterator[str]:
    """Generate records in both languages alternately, as lines of JSON, without end."""
    rng = Random(seed)
    while True:
        for language in LANGUAGES:
            yield json.dumps(make(rng, language), ensure_ascii=False)


def write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines)} records, {path.stat().st_size / 1e6:.1f} MB")


def write_both(
    destination: Path, kind: str, make: Callable[[Random, str], Record], count: int, seed: int
) -> None:
    """Training records, and held-out records from another stream without duplicates."""
    seen: Counter[str] = Counter()
    lines = []
    for line in stream(make, f"{kind} {seed}"):
        seen[line] += 1
        if seen[line] <= COPIES:
            lines.append(line)
        if len(lines) == count:
            break
    write(destination / f"generated-{kind}.jsonl", lines)
    unseen = (line for line in stream(make, f"held-out {kind} {seed}") if line not in seen)
    write(destination / f"heldout-{kind}.jsonl", list(islice(unseen, HELD_OUT)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.destination.mkdir(parents=True, exist_ok=True)
    write_both(arguments.destination, "chat", conversation, CONVERSATIONS, arguments.seed)
    write_both(arguments.destination, "drills", drill, DRILLS, arguments.seed)
    write_both(arguments.destination, "text", text, TEXTS, arguments.seed)
    write(arguments.destination / "exchanges.jsonl", exchange_records(arguments.seed))


if __name__ == "__main__":
    main()
