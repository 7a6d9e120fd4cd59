"""Small tasks: translating, changing a sentence, naming things, going on with a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from grammar import DATA, Scene, Turn, exchange, invented_name, read_lists

COUNTS = {2: ("two", "二つ"), 3: ("three", "三つ"), 4: ("four", "四つ"), 5: ("five", "五つ")}
CONTINUED = read_lists(DATA / "continued.toml")
TRANSLATE = {
    "en": [
        "[Translate into Japanese:|Please translate into Japanese:|Translate this into Japanese:] {0}",
        "Translate into Japanese: {0}",
        'How do you say "{0}" in Japanese?',
    ],
    "ja": [
        "[英語に訳してください。|次の文を英語に訳してください。|英語にしてください。]{0}",
        "英語に訳してください。{0}",
        "「{0}」を英語に訳してください。",
    ],
}


@dataclass(frozen=True)
class Sentence:
    """What somebody does, in one tense, in both languages."""

    en: str
    ja: str


def sentences(rng: Random) -> dict[str, Sentence]:
    """One deed of one person as present, past, negative, wish and future sentences."""
    english, japanese = Scene(rng, "en"), Scene(rng, "ja")
    japanese.rows = english.rows
    agent, deed = english.row("agent"), english.row("deed")
    what, mono = english.fill(deed["object_en"]), japanese.fill(deed["object_ja"])
    who = agent["en"][0].upper() + agent["en"][1:]
    third = agent["does"] == "does"
    base, stem, dare = deed["base"], deed["stem"], f"{agent['ja']}は"
    found = {
        "present": Sentence(f"{who} {deed['does'] if third else base} {what}.", f"{dare}{mono}{stem}ます。"),
        "past": Sentence(f"{who} {deed['did']} {what}.", f"{dare}{mono}{stem}ました。"),
        "negative": Sentence(f"{who} {agent['does']} not {base} {what}.", f"{dare}{mono}{stem}ません。"),
        "past negative": Sentence(f"{who} did not {base} {what}.", f"{dare}{mono}{stem}ませんでした。"),
        "every day": Sentence(f"{who} {deed['does'] if third else base} {what} every day.", f"{dare}毎日{mono}{stem}ます。"),
        "yesterday": Sentence(f"{who} {deed['did']} {what} yesterday.", f"{dare}昨日{mono}{stem}ました。"),
        "tomorrow": Sentence(f"{who} will {base} {what} tomorrow.", f"{dare}明日{mono}{stem}ます。"),
        "question": Sentence(f"{agent['does'].capitalize()} {agent['en']} {base} {what}?", f"{dare}{mono}{stem}ますか。"),
    }  # fmt: skip
    if agent["en"] == "I":
        found["wish"] = Sentence(f"I want to {base} {what}.", f"私は{mono}{stem}たいです。")
    return found


def saying(rng: Random) -> Sentence:
    english, japanese = Scene(rng, "en"), Scene(rng, "ja")
    japanese.rows = english.rows
    row = english.row("saying")
    return Sentence(english.fill(row["en"]), japanese.fill(row["ja"]))


def translation(rng: Random, language: str) -> list[Turn]:
    sentence = saying(rng) if rng.random() < 0.4 else rng.choice(list(sentences(rng).values()))
    said, other = (sentence.en, sentence.ja) if language == "en" else (sentence.ja, sentence.en)
    frame = Scene(rng, language).fill(rng.choice(TRANSLATE[language]))
    return [(frame.replace("{0}", said), other)]


def naming(rng: Random, language: str) -> list[Turn]:
    """Two to five things of a kind."""
    scene = Scene(rng, language)
    kind = scene.row("kind")
    count = rng.choice([2, 3, 3, 3, 4, 5])
    if language == "en":
        items = rng.sample(kind["items_en"].split(", "), count)
        asked = scene.fill(
            "[Name|Tell me|Can you name|Please name|List] " + f"{COUNTS[count][0]} {{kind}}."
        )
        asked = asked.replace(".", "?") if asked.startswith("Can") else asked
        text = ", ".join(items[:-1]) + " and " + items[-1]
        return [(asked, text[0].upper() + text[1:] + ".")]
    items = rng.sample(kind["items_ja"].split("、"), count)
    asked = scene.fill(
        f"{{kind}}を{COUNTS[count][1]}[教えてください。|言ってください。|挙げてください。|教えて。]"
    )
    return [(asked, "、".join(items[:-1]) + f"、{items[-1]}です。")]


def continuing(rng: Random, language: str) -> list[Turn]:
    """A sentence that the user begins."""
    begun, rest = exchange(Scene(rng, language), rng.choice(CONTINUED[language]["sentences"]))
    frame = rng.choice(CONTINUED[language]["frames"])
    joint = " " if language == "en" else ""
    return [(frame.replace("{0}", begun), begun + joint + rest)]


def rewriting(rng: Random, language: str) -> list[Turn]:
    """A sentence in another tense, as a question, or simply repeated."""
    found = sentences(rng)
    wish = rng.choice(["past", "negative", "question", "repeat"])
    side = 0 if language == "en" else 1
    asked = {
        "past": ("Put this into the past: {0}", "過去の文にしてください。{0}"),
        "negative": ("Make this sentence negative: {0}", "否定の文にしてください。{0}"),
        "question": ("Make a question of this: {0}", "質問の文にしてください。{0}"),
        "repeat": ("Repeat after me: {0}", "私の後に続けて言ってください。{0}"),
    }[wish][side]
    source = found["present"]
    result = found.get(wish, source)
    if language == "en":
        return [(asked.replace("{0}", source.en), result.en)]
    return [(asked.replace("{0}", source.ja), result.ja)]


def repeating(rng: Random, language: str) -> list[Turn]:
    """Names that were never seen before, to be said again."""
    names = [invented_name(rng, language) for _ in range(rng.choice([1, 2, 3]))]
    if language == "en":
        said = " and ".join(names)
        return [
            (rng.choice([f"Repeat: {said}", f"Say {said}.", f"Can you say {said}?"]), f"{said}.")
        ]
    said = "、".join(names)
    return [(rng.choice([f"{said}と言ってください。", f"「{said}」と言って。"]), f"{said}。")]
