"""From a dialect's parameters to a running generation. Shared by the routes that generate."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from hagane.api.limits import Account
from hagane.api.metrics import Metrics
from hagane.api.serving import ResolvedModel, Serving, TextModel
from hagane.api.timeline import Timeline
from hagane.generation import stream
from hagane.generation.answer_form import AnswerForm
from hagane.generation.events import Update
from hagane.generation.grammars import Grammar
from hagane.generation.request import Parameters, sampling_params
from hagane.generation.stop import StopStrings
from hagane.generation.stream import Decoding, no_parsers
from hagane.generation.usage import Usage
from hagane.lora.config import adapter_digest
from hagane.pool.messages import AdapterRef, GenerateRequest, GrammarRef, TokenDelta
from hagane.store.catalogue import ModelRef
from hagane.system.errors import InvalidRequestError
from hagane.system.logging import request_id
from hagane.system.settings import Settings
from hagane.text.embedding_style import Pooling

PLAIN = AnswerForm(no_parsers, None)


@dataclass(frozen=True)
class Generation:
    """One prompt that is ready for the engine."""

    resolved: ResolvedModel
    request: GenerateRequest
    decoding: Decoding
    usage: Usage = field(default_factory=Usage)

    def updates(self, serving: Serving, account: Account) -> AsyncGenerator[Update, None]:
        """Run it. Closing the generator cancels the request."""
        observers = (
            self.usage,
            Timeline(serving.metrics, self.usage),
            _Charge(account, serving.metrics, self.request.adapter),
        )
        ref = self.resolved.ref
        updates = stream.generate(serving.engine(ref), self.request, self.decoding, observers)
        if ref.alias is None:
            return updates
        return serving.canaries.watch(ref, self.usage, updates)


def prepare_generation(
    serving: Serving,
    account: Account,
    resolved: ResolvedModel,
    prompt: Sequence[int],
    parameters: Parameters,
    *,
    max_tokens: int,
    answer: AnswerForm = PLAIN,
    most_calls: int | None = None,
    pooling: Pooling | None = None,
) -> Generation:
    """`max_tokens` is the room that was found. Takes time with the length of what was sent.

    Raises InvalidRequestError for parameters that do not fit this model or server.
    """
    account.check_priority(parameters.priority)
    settings, model = serving.settings, resolved.text
    _check(settings, model, parameters, pooling)
    timeout = parameters.timeout or settings.request_timeout
    request = GenerateRequest(
        # Logs of the engine name the HTTP request; the rest distinguishes its prompts.
        request_id=f"{request_id.get()}/{uuid.uuid4().hex[:12]}",
        prompt=tuple(prompt),
        sampling=sampling_params(
            parameters, model.defaults, vocab_size=model.config.vocab_size, max_tokens=max_tokens
        ),
        n=parameters.n,
        priority=parameters.priority,
        deadline=None if timeout is None else time.monotonic() + timeout,
        cache_salt=parameters.cache_salt,
        speculation=parameters.speculation,
        adapter=_adapter(resolved.ref),
        grammar=_grammar(model, answer.grammar),
        pooling=pooling,
    )
    decoding = Decoding(
        model.tokenizer,
        StopStrings.prepare(parameters.stop),
        parameters.skip_special_tokens,
        answer.make_chain,
        most_calls,
    )
    return Generation(resolved, request, decoding)


def _check(
    settings: Settings, model: TextModel, parameters: Parameters, pooling: Pooling | None
) -> None:
    """Raises InvalidRequestError for more answers at a time, or another kind, than there can be."""
    if parameters.n > settings.max_sequences:
        raise InvalidRequestError(
            f"'n' is {parameters.n}; this server generates at most {settings.max_sequences} at a "
            "time.",
            param="n",
        )
    if parameters.speculation == "draft" and not settings.drafts:
        raise InvalidRequestError(
            "'speculation' is draft, but this server has no draft_model, or has speculation off.",
            param="speculation",
        )
    if model.encodes and pooling is None:
        use = "scores pairs of texts; use /v1/rerank or /v1/score"
        if not model.scores:
            use = "makes embeddings and no text; use /v1/embeddings"
        raise InvalidRequestError(f"The model '{model.id}' {use}.", param="model")


class _Charge:
    """Observes what a generation costs its key."""

    def __init__(self, account: Account, metrics: Metrics, adapter: AdapterRef | None) -> None:
        self._account = account
        self._metrics = metrics
        self._adapter = adapter

    def started(self, prompt_tokens: int) -> None:
        self._metrics.prompt_tokens.inc(prompt_tokens)
        if self._adapter is not None:
            self._metrics.adapter_requests.labels(self._adapter.name).inc()
        self._account.charge("prompt", prompt_tokens)

    def tokens(self, delta: TokenDelta, update: Update) -> None:
        self._metrics.generated_tokens.inc(len(delta.tokens))
        self._account.charge("generated", len(delta.tokens))

    def finished(self) -> None: ...

    def closed(self) -> None: ...


def _grammar(model: TextModel, grammar: Grammar | None) -> GrammarRef | None:
    """Compiled once here, so that the engine gets none that it would refuse."""
    if grammar is None:
        return None
    try:
        model.grammars.check(grammar)
    except InvalidRequestError:
        if grammar.optional:
            return None
        raise
    return GrammarRef(grammar.digest, grammar.text, grammar.param)


def _adapter(model: ModelRef) -> AdapterRef | None:
    if model.adapter_directory is None:
        assert model.digest is None, f"the adapter {model.id} was not fetched"  # noqa: S101
        return None
    digest = model.digest or adapter_digest(model.adapter_directory)
    return AdapterRef(model.id, str(model.adapter_directory), digest)
