"""Writes the generated part of the training text: conversations, stories, days, exchanges.

Usage: python recipe/generate.py DESTINATION [--seed N]

Everything comes from templates, word lists and exchanges written for this model, so that what it
learns is regular enough for ten million parameters. Files: generated-chat.jsonl,
generated-text.jsonl, exchanges.jsonl, and heldout-chat.jsonl and heldout-text.jsonl, which come
from another random stream and share no record with the others.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from exchanges import exchange_records
from grammar import DATA, Scene, Turn, exchange, paragraph, read_lists, read_plots, read_scripts
from sums import order_turn, sum_turn
from tasks import continuing, naming, rewriting, translation

CONVERSATIONS, TEXTS, HELD_OUT = 60_000, 25_000, 300
STORY_SHARE = 0.35
# Stories in conversations that are short, and those that are asked about afterwards.
SHORT, RECALLED = 0.7, 0.25
LANGUAGES = ("en", "ja")
# A greeting is short and often the same; more copies than this would teach nothing new.
COPIES = 6
GREETINGS = read_lists(DATA / "greetings.toml")
QUESTIONS = read_lists(DATA / "questions.toml")
TALKS = {language: read_scripts(DATA / f"talk-{language}.txt") for language in LANGUAGES}
DAYS = {language: read_plots(DATA / f"days-{language}.txt") for language in LANGUAGES}
TALES = {language: read_plots(DATA / f"tales-{language}.txt") for language in LANGUAGES}
STORIES = {language: read_plots(DATA / f"stories-{language}.txt") for language in LANGUAGES}
Record = dict[str, object]


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
    messages = [{"role": "user", "content": asked} for asked, _ in turns]
    answers = [{"role": "assistant", "content": answer} for _, answer in turns]
    both = [message for pair in zip(messages, answers, strict=True) for message in pair]
    if rng.random() < 0.05:
        both.insert(0, {"role": "system", "content": rng.choice(GREETINGS[language]["systems"])})
    return {"messages": both}


def text(rng: Random, language: str) -> Record:
    """A story, or a paragraph about a day, whose first five plots, the weather, come twice."""
    scene = Scene(rng, language)
    if rng.random() < STORY_SHARE:
        return {"text": story(scene)}
    days = DAYS[language]
    return {"text": paragraph(scene, rng.choice(days + days[:5]))}


def stream(make: Callable[[Random, str], Record], seed: str) -> Iterator[str]:
    """Records in both languages in turn, as lines of JSON, for ever."""
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
    """Training records and, out of another stream, held-out records that are none of them."""
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
    write_both(arguments.destination, "text", text, TEXTS, arguments.seed)
    write(arguments.destination / "exchanges.jsonl", exchange_records(arguments.seed))


if __name__ == "__main__":
    main()
