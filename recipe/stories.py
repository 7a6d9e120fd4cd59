"""Short stories with one plot in two languages: somebody wants something, fails, is helped."""

from __future__ import annotations

from random import Random

from words import ANIMALS, FOODS, NAMES, PLACES, THINGS

ADJECTIVES = [
    ("little", "小さな"),
    ("kind", "やさしい"),
    ("brave", "勇敢な"),
    ("shy", "はずかしがりやの"),
    ("cheerful", "元気な"),
    ("curious", "知りたがりの"),
    ("young", "若い"),
    ("gentle", "おとなしい"),
]
# (what happens, how it is mended): {t} is the thing, {h} the helper, {n} the hero.
ENGLISH_TROUBLES = [
    (
        "But one day {n} lost {t}. {n} looked everywhere and could not find it.",
        '{h} looked under a big tree and found it. "Here it is!" said {h}.',
    ),
    (
        "But {t} fell into the water. {n} could not swim and began to cry.",
        '{h} jumped into the water and brought it back. "Do not cry," said {h}.',
    ),
    (
        "But a strong wind took {t} away, high up into a tree.",
        '{h} climbed up the tree and threw it down. "Catch it!" said {h}.',
    ),
    (
        "But {t} was broken, and {n} was very sad.",
        '{h} had some glue and mended it. "Now it is as good as new," said {h}.',
    ),
    (
        "But on the way home it grew dark, and {n} could not find the way.",
        '{h} came with a lamp and showed the way. "Follow me," said {h}.',
    ),
    (
        "But it began to rain, and {n} got wet and cold.",
        '{h} came with a big umbrella. "Come under here with me," said {h}.',
    ),
]
JAPANESE_TROUBLES = [
    (
        "でもある日、{n}は{t}をなくしてしまいました。あちこち探しましたが、見つかりません。",
        "{h}が大きな木の下を探すと、ありました。「ほら、ここにあるよ。」と{h}は言いました。",
    ),
    (
        "でも、{t}が水の中に落ちてしまいました。{n}は泳げないので、泣き出しました。",
        "{h}は水に飛び込んで、取ってきてくれました。「泣かないで。」と{h}は言いました。",
    ),
    (
        "でも、強い風が{t}を高い木の上まで運んでしまいました。",
        "{h}は木に登って、下に落としてくれました。「ちゃんと取ってね。」と{h}は言いました。",
    ),
    (
        "でも、{t}がこわれてしまい、{n}はとても悲しくなりました。",
        "{h}がていねいに直してくれました。「これで元どおりだよ。」と{h}は言いました。",
    ),
    (
        "でも、帰り道で暗くなり、{n}は道がわからなくなりました。",
        "{h}が明かりを持って来て、道を教えてくれました。「ついておいで。」と{h}は言いました。",
    ),
    (
        "でも、雨が降り出して、{n}はぬれて寒くなりました。",
        "{h}が大きな傘を持って来ました。「一緒に入ろう。」と{h}は言いました。",
    ),
]
ENGLISH_ENDS = [
    "{n} was very happy and thanked {h}. From that day on they were best friends.",
    '"Thank you!" said {n}. They went home together and ate {f}.',
    "{n} learned that it is good to have friends. They played together until evening.",
    "{n} smiled again. That night {n} slept well and dreamed of {p}.",
    '"You are so kind," said {n}. The next day {n} brought {h} some {f}.',
]
JAPANESE_ENDS = [
    "{n}はとても喜んで、{h}にお礼を言いました。その日から、二人は一番の友達になりました。",
    "「ありがとう。」と{n}は言いました。二人は一緒に家に帰って、{f}を食べました。",
    "{n}は、友達がいるのはいいことだと思いました。二人は夕方まで一緒に遊びました。",
    "{n}はまた笑顔になりました。その夜、{n}はぐっすり眠って、{p}の夢を見ました。",
    "「君はとてもやさしいね。」と{n}は言いました。次の日、{n}は{h}に{f}を持って行きました。",
]
ENGLISH_MORNINGS = [
    "One morning {n} went to {p} with {t}.",
    "Every day {n} liked to play in {p}. One day {n} took {t} along.",
    "One sunny day {n} found {t} in {p}.",
    "On {n}'s birthday, Mother gave {n} {t}. {n} took it to {p} at once.",
]
JAPANESE_MORNINGS = [
    "ある朝、{n}は{t}を持って{p}へ行きました。",
    "{n}は毎日{p}で遊ぶのが好きでした。ある日、{t}も持って行きました。",
    "ある晴れた日、{n}は{p}で{t}を見つけました。",
    "誕生日に、お母さんが{n}に{t}をくれました。{n}はさっそく{p}へ持って行きました。",
]
ENGLISH_CALLS = [
    'Then a {a} named {h} came by. "What is wrong?" asked {h}.',
    'Just then {n}\'s friend {h}, a {a}, heard it and came. "Let me help you," said {h}.',
    'A {a} called {h} saw {n}. "Can I help?" asked {h}.',
]
JAPANESE_CALLS = [
    "そこへ、{h}という{a}が通りかかりました。「どうしたの？」と{h}は聞きました。",
    "その時、友達の{a}の{h}が聞きつけて来ました。「手伝ってあげる。」と{h}は言いました。",
    "{h}という名前の{a}が{n}を見つけました。「何か困っているの？」と{h}は聞きました。",
]


def story(rng: Random, japanese: bool, hero: str | None = None, name: str | None = None) -> str:
    """A story of six to ten sentences; `hero` and `name` in the story's language."""
    side = int(japanese)
    hero = hero or rng.choice(ANIMALS)[side]
    helper_name = rng.choice([n[side] for n in NAMES if n[side] != name])
    name = name or rng.choice([n[side] for n in NAMES if n[side] != helper_name])
    helper = rng.choice([a[side] for a in ANIMALS if a[side] != hero])
    trouble, help_ = rng.choice(JAPANESE_TROUBLES if japanese else ENGLISH_TROUBLES)
    slots = {
        "n": name,
        "h": helper_name,
        "a": helper,
        "t": rng.choice(THINGS)[side],
        "p": rng.choice(PLACES)[side],
        "f": rng.choice(FOODS)[side],
    }
    adjective = rng.choice(ADJECTIVES)[side]
    article = "an" if adjective[0] in "aeiou" else "a"
    if japanese:
        first = rng.choice(
            [
                "昔々、{n}という{d}{x}がいました。",
                "あるところに、{n}という名前の{d}{x}がいました。",
                "{p}の近くに、{n}という{d}{x}が住んでいました。",
            ]
        )
    else:
        first = rng.choice(
            [
                "Once upon a time there was {i} {d} {x} named {n}.",
                "Once there was {i} {d} {x} called {n}.",
                "Near {p} there lived {i} {d} {x} named {n}.",
            ]
        )
    parts = [first.format(d=adjective, x=hero, i=article, **slots)]
    parts += [
        rng.choice(JAPANESE_MORNINGS if japanese else ENGLISH_MORNINGS),
        trouble,
        rng.choice(JAPANESE_CALLS if japanese else ENGLISH_CALLS),
        help_,
        rng.choice(JAPANESE_ENDS if japanese else ENGLISH_ENDS),
    ]
    text = ("" if japanese else " ").join([parts[0], *(part.format(**slots) for part in parts[1:])])
    for word in (" a elephant", " a owl"):
        text = text.replace(word, word.replace(" a ", " an "))
    # "lost a red ball" -> "lost the red ball": it is known by now.
    first_use = text.find(slots["t"])
    if not japanese and first_use >= 0:
        kept = first_use + len(slots["t"])
        known = "the " + slots["t"].split(" ", 1)[1]
        text = text[:kept] + text[kept:].replace(slots["t"], known)
    return text.replace(". the ", ". The ")
