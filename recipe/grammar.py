"""Templates with choices and slots: the small grammar of the generated training text.

A template is text in which `[a|b|c]` stands for one of its parts (choices nest) and `{food}` for a
word of the table `food` in the scene's language. `{food.be}` is another column of the same row,
`{food2}` a row other than `{food}`'s, `{^food}` the word with a capital first letter. A slot keeps
its row for the whole scene, so that an answer can speak of what the question named.

A script file holds conversations: `== WEIGHT` begins one, `--` begins its next step, and a step is
one or more alternatives, each a line `U template` with the line `A template` that answers it.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

DATA = Path(__file__).parent / "data"
Row = dict[str, str]
Turn = tuple[str, str]
Script = list[list[Turn]]
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\^?)([a-z_]+)(\d?)(?:\.([a-z_]+))?\}")
# Invented names that say one syllable twice, such as Momo.
DOUBLED = 0.15
# Names that are invented, not out of the list.
INVENTED = 0.4
SYLLABLES = {
    "en": "ba be bi bo ka ki ko la li lo lu ma mi mo na ni no pa pi po ra ri ro sa ta ti to za zi",
    "ja": "カ キ ク コ サ タ チ ナ ニ ノ パ ピ ポ マ ミ ム モ ラ リ ル ロ ト ア ユ メ ネ ソ ベ",
    "ひらがな": "か き く こ さ た ち な に の ぽ ま み む も ら り る ろ と あ ゆ め ね そ は す ふ",
}


def read_tables(path: Path) -> dict[str, list[Row]]:
    """Tables of words: column names separated by `|`, rows by line ends or `;`."""
    tables = {}
    for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
        columns = table["columns"].split("|")
        rows = [row.strip() for row in re.split(r"[;\n]", table["rows"]) if row.strip()]
        tables[name] = [dict(zip(columns, row.split("|"), strict=True)) for row in rows]
    return tables


TABLES = {
    name: table
    for file in ("words", "facts", "tasks")
    for name, table in read_tables(DATA / f"{file}.toml").items()
}


def read_scripts(path: Path) -> list[tuple[int, Script]]:
    """The conversations of a script file with their weights."""
    scripts: list[tuple[int, Script]] = []
    asked = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "==":
            scripts.append((int(rest or 1), [[]]))
        elif kind == "--":
            scripts[-1][1].append([])
        elif kind == "U":
            asked = rest
        elif kind == "A":
            scripts[-1][1][-1].append((asked, rest))
        elif line.strip() and kind != "#":
            raise ValueError(f"{path.name}: {line!r} starts with none of ==, --, U, A, #")
    return scripts


def invented_name(rng: Random, language: str) -> str:
    """A name out of syllables, so that a model learns to copy a name that it never saw."""
    script = rng.choice(["ja", "ひらがな"]) if language == "ja" else language
    syllables = SYLLABLES[script].split()
    if rng.random() < DOUBLED:
        return (rng.choice(syllables) * 2).capitalize()
    return "".join(rng.choice(syllables) for _ in range(rng.choice([2, 2, 3]))).capitalize()


@dataclass
class Scene:
    """One conversation or text: its language ("en" or "ja") and the rows chosen so far."""

    rng: Random
    language: str
    rows: dict[str, Row] = field(default_factory=dict)

    def fill(self, template: str) -> str:
        """`template` with every choice made and every slot filled."""
        while "[" in template:
            template = CHOICE.sub(lambda m: self.rng.choice(m[1].split("|")), template)
        return SLOT.sub(self._word, template)

    def row(self, name: str, number: str = "") -> Row:
        """The row of a slot: chosen at its first use, unlike its table's other chosen rows."""
        key = name + number
        if key not in self.rows:
            self.rows[key] = self._choose(name)
        return self.rows[key]

    def _choose(self, name: str) -> Row:
        table = TABLES.get(f"{name}_{self.language}") or TABLES[name]
        taken = [row for key, row in self.rows.items() if key.rstrip("123456789") == name]
        hero = self.rows.get("hero") if name != "hero" else None
        while (row := self.rng.choice(table)) in taken or not self._agrees(name, row, hero):
            pass
        if name == "name" and self.rng.random() < INVENTED:
            return row | {self.language: invented_name(self.rng, self.language)}
        return row

    def _agrees(self, name: str, row: Row, hero: Row | None) -> bool:
        """Whether a hero, its name and its adjective fit: no girl named Tom, no little little cat."""
        if name == "hero":
            named, described = self.rows.get("name", {}), self.rows.get("adjective", {})
            return self._same_sex(row, named) and self._unlike(described, row)
        if hero is None:
            return True
        if name == "adjective":
            return self._unlike(row, hero)
        first_name = name == "name" and "name" not in self.rows
        return not first_name or self._same_sex(hero, row)

    @staticmethod
    def _same_sex(hero: Row, named: Row) -> bool:
        return not hero["he"] or not named.get("he") or hero["he"] == named["he"]

    @staticmethod
    def _unlike(adjective: Row, hero: Row) -> bool:
        return not adjective or adjective["en"] not in hero["en"].split()

    def _word(self, match: re.Match[str]) -> str:
        capital, name, number, column = match.groups()
        word = self.row(name, number)[column or self.language]
        return word[0].upper() + word[1:] if capital else word


def read_plots(path: Path) -> list[list[str]]:
    """Stories or paragraphs as lists of templates: `== TITLE` begins one, each line is a part."""
    plots: list[list[str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("=="):
            plots.append([])
        elif line.strip() and not line.startswith("#"):
            plots[-1].append(line)
    return plots


def read_lists(path: Path) -> dict[str, dict[str, list[str]]]:
    """Per language, named lists of templates: a string holds one template a line."""
    return {
        language: {
            name: value.strip().splitlines() if isinstance(value, str) else value
            for name, value in lists.items()
        }
        for language, lists in tomllib.loads(path.read_text(encoding="utf-8")).items()
    }


def exchange(scene: Scene, line: str) -> Turn:
    """One turn out of a line "question => answer"."""
    question, answer = line.split(" => ")
    return scene.fill(question), scene.fill(answer)


def paragraph(scene: Scene, plot: list[str]) -> str:
    """The parts of `plot` in order, filled and joined as the scene's language joins sentences."""
    text = (" " if scene.language == "en" else "").join(scene.fill(part) for part in plot)
    return " ".join(text.split())
