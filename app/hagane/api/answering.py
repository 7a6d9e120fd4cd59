"""From a conversation, in any dialect, to a generation that is ready for the engine."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from hagane.api.generation import Generation, prepare_generation
from hagane.api.limits import Account
from hagane.api.serving import ResolvedModel, Serving
from hagane.generation.answer_form import shape_answer
from hagane.generation.conversation import Conversation
from hagane.generation.grammars import Grammar
from hagane.generation.request import Parameters
from hagane.generation.tools import NO_TOOLS, Tools
from hagane.system.errors import ContextLengthError, InvalidRequestError
from hagane.text.chat_template import ChatTemplate


def prepare_answer(
    serving: Serving,
    account: Account,
    resolved: ResolvedModel,
    conversation: Conversation,
    parameters: Parameters,
    *,
    tools: Tools = NO_TOOLS,
    grammar: Grammar | None = None,
    param: str = "messages",
    truncate: bool = False,
    reasoning_budget: int | None = None,
) -> Generation:
    """Render, tokenize and shape the answer to `conversation`; takes time with its length.

    `param` is the dialect's field that holds the conversation. With `truncate`, the oldest turns of
    a conversation that is too long are left out; reasoning ends after `reasoning_budget` tokens.
    Raises ContextLengthError and InvalidRequestError naming the field.
    """
    fit = _fit if truncate else _tokenize
    text, prompt, room = fit(resolved, conversation, parameters.max_tokens, param)
    source = require_template(resolved, param).source
    tokenizer = resolved.text.tokenizer
    answer = shape_answer(
        source, text, tokenizer, tools, grammar, reasoning_budget, serving.settings.tool_format
    )
    return prepare_generation(
        serving,
        account,
        resolved,
        prompt,
        parameters,
        max_tokens=room,
        answer=answer,
        most_calls=None if tools.parallel else 1,
    )


def render_chat(
    resolved: ResolvedModel, conversation: Conversation, param: str = "messages"
) -> str:
    """The conversation as text, by the model's own template; it takes time.

    Raises ContextLengthError for one that cannot fit, InvalidRequestError where the template
    refuses it or shows no tools.
    """
    template = require_template(resolved, param)
    if conversation.tools and "tools" not in template.source:
        raise InvalidRequestError(
            f"The chat template of '{resolved.text.id}' shows the model no tools; leave 'tools' "
            "out, or use a model that was trained with them.",
            param="tools",
        )
    resolved.require_size(conversation.size, len(conversation.turns), param)
    turns = [turn.as_template_input() for turn in conversation.turns]
    text = template.render(turns, **conversation.template_variables())
    if not conversation.continue_final:
        return text
    beginning = conversation.turns[-1].text.rstrip()
    place = text.rfind(beginning)
    if place < 0:
        raise InvalidRequestError(
            "The chat template does not show the last message as it is, so that it cannot be "
            "continued.",
            param=param,
        )
    return text[: place + len(beginning)]


def tokenize_chat(
    resolved: ResolvedModel, conversation: Conversation, param: str = "messages"
) -> list[int]:
    """The token ids of the prompt that a conversation makes. Raises as `render_chat` does."""
    text = render_chat(resolved, conversation, param)
    return resolved.encode(text, param, wanted=None, add_special_tokens=False)


def require_template(resolved: ResolvedModel, param: str = "messages") -> ChatTemplate:
    """The model's chat template. Raises InvalidRequestError for a model without one."""
    if resolved.text.template is None:
        text = resolved.text
        raise InvalidRequestError(
            f"The model '{text.id}' makes no text; use "
            f"{'/v1/rerank or /v1/score' if text.scores else '/v1/embeddings'}."
            if text.encodes
            else f"The model '{text.id}' has no chat template; use /v1/completions.",
            param="model" if text.encodes else param,
        )
    return resolved.text.template


def effort_variables(effort: str | None) -> dict[str, Any]:
    """The template variables for a reasoning effort; "none" switches thinking off."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


def new_call_id() -> str:
    """An id for a call of the answer."""
    # The templates of Mistral's models refuse any other length, and all but letters and digits.
    return uuid.uuid4().hex[:9]


def _tokenize(
    resolved: ResolvedModel, conversation: Conversation, wanted: int | None, param: str
) -> tuple[str, list[int], int]:
    """(text, its token ids, room for new tokens)."""
    text = render_chat(resolved, conversation, param)
    prompt = resolved.encode(text, param, wanted=wanted, add_special_tokens=False)
    return text, prompt, resolved.find_room(prompt, wanted, param)


def _fit(
    resolved: ResolvedModel, conversation: Conversation, wanted: int | None, param: str
) -> tuple[str, list[int], int]:
    """As `_tokenize`, without as many of the oldest turns as it takes; the last one always stays.

    Raises ContextLengthError where that is not enough.
    """
    try:
        return _tokenize(resolved, conversation, wanted, param)
    except ContextLengthError:
        most = sum(turn.role != "system" for turn in conversation.turns) - 1
        if most < 1:
            raise
    best = _tokenize(resolved, without_oldest(conversation, most), wanted, param)
    fewest, most = 1, most - 1
    while fewest <= most:
        dropped = (fewest + most) // 2
        try:
            best = _tokenize(resolved, without_oldest(conversation, dropped), wanted, param)
            most = dropped - 1
        except ContextLengthError:
            fewest = dropped + 1
    return best


def without_oldest(conversation: Conversation, count: int) -> Conversation:
    """The conversation without its `count` oldest turns that are not the system's.

    Results of calls that are left out go, too: templates refuse them.
    """
    kept = []
    for turn in conversation.turns:
        if turn.role == "system":
            kept.append(turn)
        elif count > 0:
            count -= 1
        else:
            kept.append(turn)
    first = next((i for i, turn in enumerate(kept) if turn.role not in ("system", "tool")), None)
    if first is not None:
        kept = [turn for i, turn in enumerate(kept) if turn.role == "system" or i >= first]
    return replace(conversation, turns=tuple(kept))
