"""Print unedited first answers of a running server as Markdown, and count loops.

Usage: python recipe/sample.py http://127.0.0.1:8000/v1 [MODEL]
"""

from __future__ import annotations

import re
import sys

from openai import OpenAI

QUESTIONS = [
    "Hello!", "Who are you?", "I like strawberries.", "I am tired today.",
    "Tell me a story about a little cat named Mimi.", "What is the capital of France?",
    "What is 7 plus 5?", "What is a large language model?", "What is quantization?",
    "How do I start the server?", "こんにちは。", "あなたは誰ですか。", "今日は天気がいいですね。",
    "サッカーが好きです。", "ももという犬のお話をしてください。", "日本の首都はどこですか。",
    "3足す4はいくつですか。", "言語モデルとは何ですか。", "Transformerとは何ですか。", "ありがとう。",
]  # fmt: skip
BEGINNING = "今日は天気が良いので、"
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def loops(text: str) -> bool:
    """Whether a piece of ten characters or more repeats three times in a row."""
    return re.search(r"(.{10,}?)\1\1", text, re.DOTALL) is not None


def main(url: str, model: str) -> None:
    client = OpenAI(base_url=url, api_key="unused")

    def ask(question: str, seed: int) -> tuple[str, str]:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], seed=seed, max_tokens=256
        )
        choice = answer.choices[0]
        return choice.message.content or "", choice.finish_reason

    for question in QUESTIONS:
        print(f"> {question}\n>\n> {ask(question, 1)[0].strip()}\n")
    text = client.completions.create(model=model, prompt=BEGINNING, max_tokens=40, seed=1)
    print(f"> {BEGINNING}**{text.choices[0].text.strip()}**\n")

    asked = [(question, seed) for seed in range(2, 7) for question in QUESTIONS]
    answers = [(question, *ask(question, seed)) for question, seed in asked]
    looping = sum(loops(text) for _, text, _ in answers)
    ended = sum(reason == "stop" for *_, reason in answers)
    kept = sum(bool(JAPANESE.search(q)) == bool(JAPANESE.search(a)) for q, a, _ in answers)
    print(
        f"Of {len(answers)} sampled answers {looping} loop, {ended} end by themselves within 256 "
        f"tokens, and {kept} are in the language of the question."
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "hagane-mini")
