"""Sums with numbers up to twenty, mostly ten, counting and days: every function makes one turn."""

from __future__ import annotations

from random import Random

from grammar import Turn

COUNTED = [("apples", "りんご", "個"), ("oranges", "みかん", "個"), ("books", "本", "冊"), ("pencils", "鉛筆", "本"), ("stamps", "切手", "枚"), ("cookies", "クッキー", "枚"), ("eggs", "卵", "個"), ("cards", "カード", "枚"), ("balls", "ボール", "個"), ("notebooks", "ノート", "冊"), ("marbles", "ビー玉", "個"), ("candies", "あめ", "個")]  # fmt: skip
DAYS_EN = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DAYS_JA = [f"{day}曜日" for day in "月火水木金土日"]
MONTHS_EN = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]  # fmt: skip
MONTHS_JA = [
    f"{month}月"
    for month in ["一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二"]
]
COUNT_EN = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]  # fmt: skip
COUNT_JA = ["一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二"]
SIGNS = {"+": ("plus", "足す"), "-": ("minus", "引く"), "×": ("times", "かける")}


def numbers(rng: Random) -> tuple[int, str, int, int]:
    """Two numbers, the sign between them and the result.

    Few and small: ten million parameters learn them by heart.
    """
    sign = rng.choice("+++--×")
    most = 9 if sign == "×" else rng.choice([10, 10, 10, 10, 20])
    a, b = rng.randint(0, most), rng.randint(0, most)
    if sign == "+":
        return a, sign, b, a + b
    if sign == "-":
        a, b = max(a, b), min(a, b)
        return a, sign, b, a - b
    return a, sign, b, a * b


def sum_turn(rng: Random, language: str) -> Turn:
    """A bare or worded sum, or one about things that are bought and given away."""
    a, sign, b, result = numbers(rng)
    if sign != "×" and rng.random() < 0.25:
        return thing_turn(rng, language, (a, sign, b, result))
    word = SIGNS[sign][language == "ja"]
    if language == "en":
        asked = [f"What is {a} {word} {b}?", f"{a} {sign} {b} = ?", f"What is {a} {sign} {b}?", f"How much is {a} {word} {b}?", f"{a} {word} {b}", f"Calculate {a} {sign} {b}."]  # fmt: skip
        chosen = rng.choice(asked)
        return chosen, f"{a} {word if word in chosen else sign} {b} is {result}."
    asked = [f"{a}{word}{b}はいくつですか。", f"{a}{sign}{b}は？", f"{a}{sign}{b}はいくつですか。", f"{a}{word}{b}は何ですか。", f"{a}{sign}{b}を計算してください。"]  # fmt: skip
    chosen = rng.choice(asked)
    return chosen, f"{a}{word if word in chosen else sign}{b}は{result}です。"


def thing_turn(rng: Random, language: str, numbers: tuple[int, str, int, int]) -> Turn:
    a, sign, b, result = numbers
    a, b, result = (
        (a, b, result) if a > 1 and b > 1 and result > 1 else (9, 4, 13 if sign == "+" else 5)
    )
    things, mono, counter = rng.choice(COUNTED)
    if language == "en":
        story = (
            f"I have {a} {things} and get {b} more."
            if sign == "+"
            else f"I have {a} {things} and give away {b}."
        )
        asked = "How many do I have now?" if sign == "+" else "How many are left?"
        return (
            f"{story} {asked}",
            f"You have {result} {things}{' now' if sign == '+' else ' left'}, because {a} {sign} {b} is {result}.",
        )
    story = (
        f"{mono}が{a}{counter}あります。{b}{counter}もらうと、"
        if sign == "+"
        else f"{mono}が{a}{counter}あります。{b}{counter}あげると、"
    )
    asked = f"全部で何{counter}ですか。" if sign == "+" else f"残りは何{counter}ですか。"
    return (
        story + asked,
        f"{'全部で' if sign == '+' else '残りは'}{result}{counter}です。{a}{sign}{b}は{result}です。",
    )


def order_turn(rng: Random, language: str) -> Turn:
    """What comes next or before: days, months; counting; which number is larger."""
    kind = rng.randrange(4)
    if kind == 0:
        return count_turn(rng, language)
    if kind == 1:
        a, b = rng.sample(range(1, 100), 2)
        if language == "en":
            return rng.choice(
                [f"Which is larger, {a} or {b}?", f"Which number is bigger, {a} or {b}?"]
            ), f"{max(a, b)} is larger than {min(a, b)}."
        return f"{a}と{b}では、どちらが大きいですか。", f"{max(a, b)}のほうが大きいです。"
    names = (DAYS_EN, DAYS_JA, MONTHS_EN, MONTHS_JA)[2 * (kind - 2) + (language == "ja")]
    i = rng.randrange(len(names))
    after, before = names[(i + 1) % len(names)], names[i - 1]
    noun, mono = ("day", "日は何曜日") if kind == 2 else ("month", "月は何月")
    if language == "en":
        return rng.choice(
            [
                (f"What {noun} comes after {names[i]}?", f"{after} comes after {names[i]}."),
                (f"What {noun} comes before {names[i]}?", f"{before} comes before {names[i]}."),
            ]
        )
    return rng.choice(
        [
            (f"{names[i]}の次の{mono}ですか。", f"{names[i]}の次は{after}です。"),
            (f"{names[i]}の前の{mono}ですか。", f"{names[i]}の前は{before}です。"),
        ]
    )


def count_turn(rng: Random, language: str) -> Turn:
    last = rng.randint(3, 12)
    if language == "en":
        shown = rng.choice([str(last), COUNT_EN[last - 1]])
        return rng.choice(
            [f"Count to {shown}.", f"Please count to {shown}.", f"Can you count to {shown}?"]
        ), ", ".join(COUNT_EN[:last]).capitalize() + "."
    return rng.choice(
        [
            f"{last}まで数えてください。",
            f"一から{COUNT_JA[last - 1]}まで数えてください。",
            f"{last}まで数えて。",
        ]
    ), "、".join(COUNT_JA[:last]) + "です。"
