"""Turns the source corpora into the files that hagane-mini.toml names.

Usage: python recipe/prepare.py SOURCE DESTINATION
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

# Written for this model: its answers about itself, in both languages.
SELF = [
    ("Hello!", "Hello! How are you today?"),
    ("Hi", "Hi! What would you like to talk about?"),
    ("Who are you?", "I am Hagane mini, a very small language model."),
    ("What is your name?", "My name is Hagane mini."),
    ("How are you?", "I am fine, thank you. And you?"),
    ("Good morning.", "Good morning! Did you sleep well?"),
    ("Thank you.", "You are welcome!"),
    ("Goodbye.", "Goodbye! See you again soon."),
    ("What is a language model?", "A language model is a program that predicts the next word."),
    ("こんにちは。", "こんにちは。お元気ですか。"),
    ("こんにちは", "こんにちは。今日は何を話しましょうか。"),
    ("おはようございます。", "おはようございます。よく眠れましたか。"),
    ("こんばんは。", "こんばんは。今日はどんな一日でしたか。"),
    ("あなたは誰ですか。", "私はHagane miniという小さな言語モデルです。"),
    ("お名前は何ですか。", "私の名前はHagane miniです。"),
    ("お元気ですか。", "はい、元気です。あなたはいかがですか。"),
    ("ありがとう。", "どういたしまして。"),
    ("さようなら。", "さようなら。また話しましょう。"),
    ("言語モデルとは何ですか。", "言語モデルとは、次の言葉を予測するプログラムです。"),
    ("今日は天気がいいですね。", "そうですね。散歩に行きたくなりますね。"),
]
SELF_REPEATS = 40


def read(path: Path) -> Iterable[dict]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def exchange(question: str, answer: str) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def write(path: Path, records: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def main(source: Path, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for name in ("stories-en", "stories-ja", "dialogues-en"):
        shutil.copyfile(source / "pretrain" / f"{name}.jsonl", destination / f"{name}.jsonl")
    pairs = []
    for number, record in enumerate(read(source / "pretrain" / "sentences-enja.jsonl")):
        if record["split"] != "train":
            continue
        english, japanese = record["en"], record["ja"]
        if number % 2:
            pairs.append(exchange(f"Translate into Japanese: {english}", japanese))
        else:
            pairs.append(exchange(f"英語に訳してください。{japanese}", english))
    write(destination / "pairs.jsonl", pairs)
    chat = [exchange(question, answer) for question, answer in SELF] * SELF_REPEATS
    for name in ("smalltalk", "chitchat-en", "instruct-ja"):
        records = list(read(source / "finetune" / f"{name}.jsonl"))
        chat += [{"messages": record["messages"]} for record in records]
    write(destination / "chat.jsonl", chat)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
