"""Writes the generated part of the training text: simple conversations, stories and days.

Usage: python recipe/generate.py DESTINATION [SEED]

Everything comes from templates, word lists and exchanges written for this model, so that what it
learns is regular enough for ten million parameters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import chat_en
import chat_ja
from knowledge import ENGLISH, JAPANESE
from stories import story
from words import COLD_PLANS, HOT_PLANS, RAINY_PLANS, SUNNY_AFTER, SUNNY_PLANS

CONVERSATIONS, STORIES, DAYS, KNOWLEDGE_REPEATS = 60_000, 7_000, 6_000, 60
Turn = tuple[str, str]


def messages(turns: list[Turn]) -> dict:
    found = []
    for question, answer in turns:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": found}


def conversation(rng: Random) -> dict:
    """One to five turns in one language, perhaps with a greeting before and thanks after."""
    language = chat_ja if rng.random() < 0.5 else chat_en
    turns: list[Turn] = []
    if rng.random() < 0.25:
        turns.append(language.greeting(rng))
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        turns += rng.choice(language.TOPICS)(rng)
    if rng.random() < 0.15:
        turns.append(language.farewell(rng))
    return messages(turns)


def knowledge(rng: Random) -> dict:
    questions, answer = rng.choice(ENGLISH if rng.random() < 0.5 else JAPANESE)
    question = rng.choice(questions)
    if rng.random() < 0.3:
        question = question.rstrip("?.。")
    return messages([(question, answer)])


def day(rng: Random) -> str:
    """A few sentences about one day, as a diary would have them."""
    kinds: list[tuple[list[str], list[str]]] = [
        (["今日は天気が良いので、", "今日は天気がいいので、", "今日は晴れているので、", "いい天気だったので、"], SUNNY_PLANS),
        (["今日は雨が降っているので、", "今日は雨なので、", "雨が降っていたので、"], RAINY_PLANS),
        (["今日は寒いので、", "とても寒かったので、"], COLD_PLANS),
        (["今日は暑いので、", "とても暑かったので、"], HOT_PLANS),
    ]
    begins, plans = kinds[rng.choice([0, 0, 0, 1, 2, 3])]
    text = rng.choice(begins) + rng.choice(plans)
    if plans is SUNNY_PLANS:
        text += "".join(rng.sample(SUNNY_AFTER, rng.randint(1, 3)))
    return text


def told(rng: Random) -> str:
    return story(rng, japanese=rng.random() < 0.5)


def write(path: Path, records: list[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def main(destination: Path, seed: int) -> None:
    rng = Random(seed)
    destination.mkdir(parents=True, exist_ok=True)

    def many(make: Callable[[Random], dict], count: int) -> list[dict]:
        return [make(rng) for _ in range(count)]

    write(destination / "generated-chat.jsonl", many(conversation, CONVERSATIONS))
    known = len(ENGLISH) + len(JAPANESE)
    write(destination / "knowledge.jsonl", many(knowledge, KNOWLEDGE_REPEATS * known))
    write(destination / "generated-stories.jsonl", many(lambda r: {"text": told(r)}, STORIES))
    write(destination / "days-ja.jsonl", many(lambda r: {"text": day(r)}, DAYS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
