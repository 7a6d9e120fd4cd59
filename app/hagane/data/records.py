"""One line of a training file: what it may say, checked. Needs no torch.

| kind | keys |
|---|---|
| conversation | `messages` (OpenAI's, an assistant's with `weight` 0 or 1), `tools` |
| completion | `prompt`, `completion`: two texts, or two lists of messages |
| text | `text` |
| preference | `input.messages`, `preferred_output`, `non_preferred_output` (OpenAI's) |
| preference | `prompt`, `chosen`, `rejected`: texts, or lists of messages |
| task | `messages` or `prompt` without an answer, and what a grader needs |
| judged | a conversation or completion, with `label`: true for one to imitate, false to avoid |

Other keys are the file's own notes and are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from hagane.system import strict_json

Method = Literal["supervised", "dpo", "orpo", "kto", "reinforcement"]
# Methods that compare two answers to the same prompt.
PAIRED: tuple[Method, ...] = ("dpo", "orpo")
Message = dict[str, Any]
_ROLES = ("system", "developer", "user", "assistant", "tool")


class RecordError(ValueError):
    """A line that cannot be used; the message names the key and the reason."""


@dataclass(frozen=True)
class RecordedConversation:
    """Messages in the form that templates take; `weights` is true for those to train on.

    `desirable` is false for answers that a model shall learn to avoid.
    """

    messages: tuple[Message, ...]
    weights: tuple[bool, ...]
    tools: tuple[Any, ...] | None = None
    desirable: bool = True


@dataclass(frozen=True)
class Completion:
    """A prompt and its completion. With an empty prompt all of the text is trained on."""

    prompt: str
    completion: str
    desirable: bool = True


Answer = RecordedConversation | Completion
Record = tuple[Answer] | tuple[Answer, Answer]


def parse(line: str, method: Method) -> Record:
    """Parse one answer to train on, or for `dpo` and `orpo` the preferred and the rejected one.

    Raises RecordError.
    """
    record = _json(line, "")
    if not isinstance(record, dict):
        raise RecordError(f"is {_kind(record)}; a line must be a JSON object")
    if method == "supervised":
        return (_supervised(record),)
    if method == "kto":
        return (replace(_supervised(record), desirable=_label(record)),)
    preferred, other = _preference(record)
    if preferred == other:
        raise RecordError("prefers an answer to itself: its two answers are the same")
    return preferred, other


@dataclass(frozen=True)
class RecordedTask:
    """A prompt to answer, and the whole line, which graders read as `item`.

    `prompt` is a text to continue, or messages the last of which is not the assistant's.
    """

    prompt: str | tuple[Message, ...]
    item: dict[str, Any]
    tools: tuple[Any, ...] | None = None


def parse_task(line: str) -> RecordedTask:
    """Parse a line with `messages` or `prompt`, and anything else. Raises RecordError."""
    record = _json(line, "")
    if not isinstance(record, dict):
        raise RecordError(f"is {_kind(record)}; a line must be a JSON object")
    if isinstance(prompt := record.get("prompt"), str):
        return RecordedTask(_text(prompt, "prompt"), record)
    messages = _list(record, "messages")
    if not messages:
        raise RecordError("messages is empty")
    checked = tuple(_message(m, f"messages[{i}]") for i, m in enumerate(messages))
    if checked[-1]["role"] == "assistant":
        raise RecordError("messages ends with the assistant's; the answer is what the model finds")
    return RecordedTask(checked, record, _tools(record, "tools"))


def _supervised(record: dict[str, Any]) -> Answer:
    if "messages" in record:
        messages = _list(record, "messages")
        return _conversation(messages, "messages", _tools(record, "tools"))
    if "prompt" in record and "completion" in record:
        return _continued(record["prompt"], "prompt", record["completion"], "completion")
    if "text" in record:
        return Completion("", _text(record["text"], "text"))
    keys = ", ".join(sorted(record)) or "none"
    raise RecordError(f"needs messages, prompt and completion, or text; its keys are: {keys}")


def _label(record: dict[str, Any]) -> bool:
    label = record.get("label")
    if not isinstance(label, bool):
        raise RecordError(f"label is {_kind(label)}; it must be true or false")
    return label


def _preference(record: dict[str, Any]) -> tuple[Answer, Answer]:
    if "preferred_output" in record:
        return _openai_preference(record)
    if "chosen" not in record or "rejected" not in record:
        keys = ", ".join(sorted(record)) or "none"
        raise RecordError(
            "needs input, preferred_output and non_preferred_output, or prompt, chosen and "
            f"rejected; its keys are: {keys}"
        )
    prompt, chosen, rejected = record.get("prompt"), record["chosen"], record["rejected"]
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _shared(chosen, rejected)
    if prompt is None:
        raise RecordError("needs a prompt, or chosen and rejected as lists of messages")
    tools = _tools(record, "tools")
    return (
        _continued(prompt, "prompt", chosen, "chosen", tools),
        _continued(prompt, "prompt", rejected, "rejected", tools),
    )


def _openai_preference(record: dict[str, Any]) -> tuple[Answer, Answer]:
    given = record.get("input")
    if not isinstance(given, dict):
        raise RecordError("input must be an object with messages")
    prompt, tools = _list(given, "messages", "input."), _tools(given, "input.tools")
    preferred, other = (
        _answer(prompt, _list(record, key), key, tools)
        for key in ("preferred_output", "non_preferred_output")
    )
    return preferred, other


def _shared(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Split two conversations into their common beginning and their different ends."""
    length = 0
    while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
        length += 1
    return chosen[:length], chosen[length:], rejected[length:]


def _continued(
    prompt: Any, prompt_key: str, answer: Any, key: str, tools: tuple[Any, ...] | None = None
) -> Answer:
    if isinstance(prompt, str):
        return Completion(_text(prompt, prompt_key, empty=True), _text(answer, key))
    if not isinstance(prompt, list) or not isinstance(answer, list):
        raise RecordError(f"{prompt_key} and {key} must both be texts or both lists of messages")
    return _answer(prompt, answer, key, tools)


def _answer(
    prompt: list[Any], answer: list[Any], key: str, tools: tuple[Any, ...] | None
) -> RecordedConversation:
    """A conversation in which only the answer is trained on."""
    before = _conversation(prompt, "prompt", tools, trained=False) if prompt else None
    answered = _conversation(answer, key, tools)
    messages = before.messages if before else ()
    return RecordedConversation(
        messages + answered.messages,
        (False,) * len(messages) + answered.weights,
        answered.tools,
    )


def _conversation(
    messages: list[Any], path: str, tools: tuple[Any, ...] | None, *, trained: bool = True
) -> RecordedConversation:
    if not messages:
        raise RecordError(f"{path} is empty")
    checked = tuple(_message(m, f"{path}[{i}]") for i, m in enumerate(messages))
    weights = tuple(_weight(raw, f"{path}[{i}]") for i, raw in enumerate(messages))
    if not trained:
        return RecordedConversation(checked, weights, tools)
    if not any(weights):
        raise RecordError(f"{path} has no assistant message to learn from")
    for i, (message, weight) in enumerate(zip(checked, weights, strict=True)):
        if weight and not message["content"].strip() and not message.get("tool_calls"):
            raise RecordError(
                f"{path}[{i}].content is empty: a model trained on it would answer nothing; remove "
                "the message, or give it weight 0"
            )
    return RecordedConversation(checked, weights, tools)


def _weight(message: dict[str, Any], path: str) -> bool:
    weight, assistant = message.get("weight"), message["role"] == "assistant"
    if weight is not None and not assistant:
        raise RecordError(
            f"{path}.weight is {weight!r}, but only assistant messages are trained on: remove it"
        )
    if weight not in (None, 0, 1) or isinstance(weight, bool):
        raise RecordError(f"{path}.weight is {weight!r}; it must be 0 or 1")
    return assistant and weight != 0


def _message(message: Any, path: str) -> Message:
    """Convert a message to the form in which the chat routes pass it to the template."""
    if not isinstance(message, dict):
        raise RecordError(f"{path} is {_kind(message)}; it must be an object")
    role = message.get("role")
    if role not in _ROLES:
        raise RecordError(f"{path}.role is {role!r}; it must be one of {', '.join(_ROLES)}")
    calls = message.get("tool_calls")
    if calls is not None and (role != "assistant" or not isinstance(calls, list)):
        raise RecordError(f"{path}.tool_calls must be a list in an assistant message")
    content = _content(message.get("content"), path, optional=bool(calls))
    out = {k: v for k, v in message.items() if k not in ("weight", "tool_calls") and v is not None}
    out |= {"role": "system" if role == "developer" else role, "content": content}
    if calls:
        out["tool_calls"] = [_call(c, f"{path}.tool_calls[{i}]") for i, c in enumerate(calls)]
    return out


def _content(content: Any, path: str, *, optional: bool) -> str:
    if content is None and optional:
        return ""
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else None for p in content]
        if any(not isinstance(part, str) for part in parts):
            raise RecordError(f"{path}.content has a part that is no text")
        content = "".join(map(str, parts))
    if not isinstance(content, str):
        raise RecordError(f"{path}.content is {_kind(content)}; it must be a text")
    return content


def _call(call: Any, path: str) -> Any:
    """Arguments as an object: templates render them as JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(f"{path}.function must be an object with a name and arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f"{path}.function.arguments ")
    if not isinstance(arguments, dict):
        raise RecordError(f"{path}.function.arguments must be a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


def _json(text: str, subject: str) -> Any:
    try:
        return strict_json.loads(text)
    except ValueError as error:
        raise RecordError(f"{subject}is not JSON: {error}") from None


def _tools(record: dict[str, Any], path: str) -> tuple[Any, ...] | None:
    tools = record.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise RecordError(f"{path} is {_kind(tools)}; it must be a list")
    return tuple(tools) if tools else None


def _list(record: dict[str, Any], key: str, prefix: str = "") -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise RecordError(f"{prefix}{key} is {_kind(value)}; it must be a list of messages")
    return value


def _text(value: Any, key: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{key} is {_kind(value)}; it must be a text")
    if not value.strip() and not empty:
        raise RecordError(f"{key} is empty")
    return value


def _kind(value: Any) -> str:
    names = {type(None): "missing", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), repr(value))
