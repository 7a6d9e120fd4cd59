"""Grammars of gpt-oss' answers: messages with channels, of which one calls a function.

https://github.com/openai/harmony
"""

from __future__ import annotations

import json
from collections.abc import Callable

from hagane.generation.grammars import JSON_OPTIONS, Grammar, Marker, compose, schema_text
from hagane.generation.tools import Tools

_MARKERS = {
    "start": "<|start|>",
    "end": "<|end|>",
    "message": "<|message|>",
    "channel": "<|channel|>",
    "constrain": "<|constrain|>",
}


def harmony_grammar(
    tools: Tools,
    answer: Grammar | None,
    marker: Callable[[str], Marker],
    budget: int | None,
) -> Grammar | None:
    """Reasoning, and then a call of one of `tools` or a final message that follows `answer`.

    Where tools are required it is a call. Reasoning has at most `budget` tokens. None where the
    markers are no tokens of the model. Raises InvalidRequestError for invalid schemas.
    """
    found = {name: marker(text) for name, text in _MARKERS.items()}
    if any(each.token is None for each in found.values()):
        return None
    start, end, message, channel, constrain = (found[name].as_lark() for name in _MARKERS)
    as_json = f'(" "? {constrain} "json" | " json")? {message}'
    following = f'{end} {start} "assistant"'
    bound = "" if budget is None else f"[max_tokens={budget}]"
    before = "((thought | note) {0})*" if budget is None else "(thought {0})? (note {0})*"
    ends = [f"call{i}" for i in range(len(tools.functions))]
    final = f"{as_json} @answer" if answer is not None else f"{message} TEXT? | note"
    rules = [
        f'thought: {channel} "analysis" {message} thinking',
        f"thinking{bound}: /(.|\\n)*/",
        f'note: {channel} "commentary" {message} TEXT?',
        "TEXT: /(.|\\n)+/",
    ]
    if not tools.required:
        ends.append("final")
        rules.append(f'final: {channel} "final" {final}')
    for i, (name, schema) in enumerate(tools.functions.items()):
        to = json.dumps(f" to=functions.{name}")
        text = schema_text(schema, "tools", **{"x-guidance": JSON_OPTIONS})
        rules += [
            f'call{i}: ({channel} "commentary" {to} | {to} {channel} "commentary") {as_json} of{i}',
            f"of{i}: %json {text}",
        ]
    whole = "\n".join([f"start: {before.format(following)} ({' | '.join(ends)})", *rules])
    if tools.required or answer is None:
        return Grammar(whole, "tools", optional=not (tools.required or tools.strict))
    return compose(whole, {"answer": answer}, answer.param)
