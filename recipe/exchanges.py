"""Hand-written exchanges about language models, Hagane and the assistant, with light variation."""

from __future__ import annotations

import json
from random import Random

from grammar import DATA

REPEATS = 10
# Other ways to ask "What is X?" and "Xとは何ですか。".
DEFINITIONS = {
    "What is {0}?": ["What's {0}?", "Tell me about {0}.", "Explain {0}.", "Do you know what {0} is?",
                     "Can you explain {0}?", "Tell me what {0} is.", "{0}?"],
    "{0}とは何ですか。": ["{0}とは何？", "{0}とは何でしょうか。", "{0}とは何ですか？", "{0}って何？",
                    "{0}とは？", "{0}について教えてください。", "{0}を説明してください。"],
}  # fmt: skip


def varied(rng: Random, question: str) -> str:
    """Vary `question` as a hurried or a polite user would type it."""
    for form, others in DEFINITIONS.items():
        before, after = form.split("{0}")
        if question.startswith(before) and question.endswith(after) and rng.random() < 0.5:
            topic = question.removeprefix(before).removesuffix(after)
            if not topic.endswith((" of", " good for", " in sampling")):
                return rng.choice(others).replace("{0}", topic)
    choice = rng.random()
    if choice < 0.3:
        return question.rstrip("?.。")
    if choice < 0.4 and question.isascii():
        return question.lower()
    if choice < 0.5 and question.isascii():
        return rng.choice(["Please tell me: ", "Hi! ", "I have a question. "]) + question
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
