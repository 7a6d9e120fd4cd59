"""Hand-written exchanges about language models, Hagane and the assistant, with light variation."""

from __future__ import annotations

import json
from random import Random

from grammar import DATA

REPEATS = 8


def varied(rng: Random, question: str) -> str:
    """`question` as somebody in a hurry, or somebody polite, may type it."""
    choice = rng.random()
    if choice < 0.3:
        return question.rstrip("?.。")
    if choice < 0.4 and question.isascii():
        return question.lower()
    if choice < 0.5 and question.isascii() and question.endswith("."):
        return f"Please {question[0].lower()}{question[1:]}"
    if choice < 0.5 and question.endswith("何ですか。"):
        return question.removesuffix("何ですか。") + rng.choice(
            ["何？", "何でしょうか。", "何ですか？"]
        )
    return question


def exchange_records(seed: int) -> list[str]:
    """Every exchange with each of its phrasings and `REPEATS` variations, as lines of JSON."""
    rng = Random(f"exchanges {seed}")
    lines = []
    for language in ("en", "ja"):
        for line in (DATA / f"exchanges-{language}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            asked = [q for q in record["questions"] for _ in range(REPEATS)]
            questions = record["questions"] + [varied(rng, question) for question in asked]
            for question in questions:
                messages = [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": record["answer"]},
                ]
                lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    rng.shuffle(lines)
    return lines
