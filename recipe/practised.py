"""Measure a running server's accuracy on held-out questions of the drills.

Usage: python recipe/practised.py http://127.0.0.1:8000/v1 runs/corpus/heldout-drills.jsonl [MODEL]

Every question is asked alone, at temperature 0. An answer counts when it is the expected one; a
story counts when it has the name that was asked for.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

from openai import OpenAI

KINDS = {
    "names said again": r"^(Repeat|Say|Can you say)\b|と言って",
    "capitals": r"capital|首都",
    "sums": r"\d",
    "names in stories": r"(?:named|called) (\w+)|(\w+)という",
}


def kind_of(question: str) -> str | None:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, question)), None)


def right(kind: str, question: str, expected: str, answer: str) -> bool:
    if kind != "names in stories":
        return answer.strip() == expected
    found = re.search(KINDS[kind], question)
    name = next(group for group in found.groups() if group) if found else ""
    return name in answer


def main(url: str, drills: Path, model: str) -> None:
    client = OpenAI(base_url=url, api_key="unused")
    asked: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for line in drills.read_text(encoding="utf-8").splitlines():
        said = [message["content"] for message in json.loads(line)["messages"]]
        for question, expected in zip(said[::2], said[1::2], strict=True):
            if (kind := kind_of(question)) is None:
                continue
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0
            )
            asked[kind] += 1
            correct[kind] += right(
                kind, question, expected, answer.choices[0].message.content or ""
            )
    for kind, count in asked.most_common():
        print(f"{kind}: {correct[kind]} of {count} right ({correct[kind] / count:.0%})")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "hagane-mini")
