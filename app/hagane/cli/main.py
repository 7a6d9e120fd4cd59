"""The `hagane` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from hagane import __version__
from hagane.system.errors import HaganeError
from hagane.system.logging import configure_logging, configure_tracing
from hagane.system.settings import Settings, refuse_unknown_variables

_FORMATS = {
    "int8": "8 bits, one scale per channel",
    "int4": "4 bits, one scale per group",
    "fp8": "8-bit floats (e4m3), one scale per channel: for recent GPUs",
}
_WEIGHTS = ("none", *_FORMATS)


def serve(arguments: list[str]) -> int:
    """Serve a model over HTTP behind the OpenAI API."""
    refuse_unknown_variables()
    settings = Settings(_cli_parse_args=arguments, _cli_prog_name="hagane serve")
    configure_logging(settings.log_level, settings.log_format)
    configure_tracing()
    from hagane.pool.launch import launch

    # Before the imports that follow: the engine's own take as long.
    launched = launch()
    from hagane.server.app import create_app
    from hagane.server.run import DrainingServer

    def shut_down() -> None:
        server.should_exit = True

    app = create_app(settings, shut_down, launched)
    server = DrainingServer(app, settings)
    server.run()
    failure = app.state.serving.client.failure
    if failure is not None:
        raise HaganeError(failure.message)
    return 0


def chat(arguments: list[str]) -> int:
    """Chat in the terminal with a running server."""
    from hagane.cli.chat import ChatClient, run

    parser = argparse.ArgumentParser("hagane chat", description=chat.__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address")
    parser.add_argument("--model", help="model id; default: the server's first")
    parser.add_argument("--api-key", default="", help="a key of the server, if it asks for one")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    options = parser.parse_args(arguments)
    run(
        ChatClient(options.url, options.api_key, options.model, options.system),
        options.temperature,
    )
    return 0


def quantize(arguments: list[str]) -> int:
    """Write a quantized copy of a model directory."""
    from hagane.models.config import Quantization
    from hagane.text.hub import resolve_model
    from hagane.weights.quantize import quantize_directory

    parser = argparse.ArgumentParser("hagane quantize", description=quantize.__doc__)
    parser.add_argument("source", help="model directory, store name or hub id")
    parser.add_argument("destination", type=Path, help="new directory to write")
    kind = parser.add_mutually_exclusive_group(required=True)
    for name, help_text in _FORMATS.items():
        kind.add_argument(
            f"--{name}", action="store_const", const=name, dest="format", help=help_text
        )
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), default=64)
    options = parser.parse_args(arguments)
    report = quantize_directory(
        resolve_model(options.source),
        options.destination,
        Quantization(options.format, options.group_size),
    )
    print(
        f"{options.destination}: {report.parameters / 1e6:.1f} M parameters, "
        f"{report.bits_per_weight:.2f} bits each, {report.weight_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.2f} s"
    )
    return 0


def pretrain(arguments: list[str]) -> int:
    """Train a small model from a TOML file; goes on where an interrupted run stopped."""
    from hagane.training.pretrain.config import PretrainConfig
    from hagane.training.pretrain.loop import pretrain as run
    from hagane.training.report.terminal import Terminal

    parser = argparse.ArgumentParser("hagane pretrain", description=pretrain.__doc__)
    parser.add_argument("config", type=Path, help="TOML file of the run")
    config = PretrainConfig.load(parser.parse_args(arguments).config)
    with Terminal() as terminal:
        result = run(config, terminal)
    held_out = ", ".join(f"{name} {bits:.3f}" for name, bits in result.bits_per_byte.items())
    print(f"{config.output}: bits per byte of held-out text: {held_out}")
    return 0


def finetune(arguments: list[str]) -> int:
    """Train an adapter for a model from a file of examples; goes on where it was interrupted."""
    from hagane.text.hub import resolve_model
    from hagane.training.finetune.loop import finetune as run
    from hagane.training.finetune.spec import FineTuneSpec
    from hagane.training.report.console import Console

    parser = _finetune_parser()
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    file = given.pop("file")
    output = given.pop("output", Path(f"{file.stem}-adapter"))
    given["model"] = resolve_model(given["model"])
    if "validation_file" in given:
        given["validation_file"] = given["validation_file"].resolve()
    spec = FineTuneSpec(training_file=file.resolve(), **given)
    output.mkdir(parents=True, exist_ok=True)
    with Console(output) as console:
        result = run(spec, output, console)
    print(
        f"{result.directory}: validation loss {result.valid_loss:.4f}, "
        f"the base's {result.base_valid_loss:.4f}"
    )
    return 0


def _finetune_parser() -> argparse.ArgumentParser:
    """Options are named as FineTuneSpec's fields; what is not given keeps the field's default."""
    parser = argparse.ArgumentParser("hagane finetune", description=finetune.__doc__)
    parser.add_argument("file", type=Path, help="JSON Lines: messages, prompt/completion or text")
    parser.add_argument("--model", required=True, help="model directory, store name or hub id")
    parser.add_argument("--output", type=Path, help="the run's directory; default: FILE's name")
    parser.add_argument("--validation-file", type=Path, help="default: a twentieth of FILE")
    parser.add_argument("--method", choices=("supervised", "dpo"))
    parser.add_argument("--n-epochs", type=int)
    parser.add_argument("--batch-size", type=int, help="examples a step")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--beta", type=float, help="of dpo")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--sequence-length", type=int, help="longer examples are cut")
    parser.add_argument("--full", action="store_true", default=None, help="train every weight")
    parser.add_argument("--quantize", choices=_WEIGHTS, help="the frozen base")
    parser.add_argument("--checkpoint-every", type=int, help="steps")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int)
    return parser


def merge(arguments: list[str]) -> int:
    """Write a model and an adapter as one Hugging Face directory."""
    from hagane.lora.merge import merge_directory
    from hagane.text.hub import resolve_model

    parser = argparse.ArgumentParser("hagane merge", description=merge.__doc__)
    parser.add_argument("base", help="model directory, store name or hub id")
    parser.add_argument("adapter", type=Path, help="PEFT directory")
    parser.add_argument("destination", type=Path, help="new directory to write")
    options = parser.parse_args(arguments)
    base = resolve_model(options.base)
    count = merge_directory(base, options.adapter, options.destination)
    print(f"{options.destination}: {count} matrices changed")
    return 0


def bench(arguments: list[str]) -> int:
    """Measure how fast a model runs on this machine."""
    import asyncio
    import json

    from hagane.cli.bench import Plan, measure
    from hagane.models.config import ModelConfig
    from hagane.server.app import engine_config
    from hagane.text.hub import resolve_model

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(","))

    parser = argparse.ArgumentParser("hagane bench", description=bench.__doc__)
    parser.add_argument("model", help="model directory, store name or hub id")
    parser.add_argument("--quantize", choices=_WEIGHTS, default="none")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--streams", type=numbers, default=Plan.streams, help="such as 1,4,16")
    parser.add_argument("--prompts", type=numbers, default=Plan.prompts, help="lengths to prefill")
    parser.add_argument("--new-tokens", type=int, default=Plan.new_tokens)
    parser.add_argument("--rounds", type=int, default=Plan.rounds, help="figures are medians")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    configure_logging("warning", "auto")
    directory = resolve_model(options.model)
    config = ModelConfig.load(directory)
    plan = Plan(options.streams, options.prompts, Plan.context, options.new_tokens, options.rounds)
    settings = Settings(
        _cli_parse_args=False,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        threads=options.threads,
        context_length=min(
            config.max_position_embeddings,
            max(*plan.prompts, plan.context) + plan.new_tokens + 1,
        ),
    )
    result = asyncio.run(measure(engine_config(settings, str(directory)), config.vocab_size, plan))
    if options.json:
        print(json.dumps(result.as_json()))
        return 0
    print(
        f"ready after {result.ready_seconds:.2f} s, peak memory {result.peak_memory / 1e6:.0f} MB"
    )
    for length, rate in result.prefill.items():
        hit = 1000 * result.prefix_hit[length]
        print(f"prefill of {length} tokens: {rate:.0f} tokens/s; {hit:.0f} ms on a prefix hit")
    for streams, rate in result.decode.items():
        print(f"decode, {streams} streams: {rate:.1f} tokens/s")
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure how well a model predicts text and answers multiple-choice questions."""
    import asyncio
    import json
    from dataclasses import asdict

    from hagane.evaluation.run import Evaluation, run
    from hagane.server.app import engine_config
    from hagane.text.hub import resolve_model

    parser = argparse.ArgumentParser("hagane eval", description=evaluate.__doc__)
    parser.add_argument("model", help="model directory, store name or hub id")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="text or JSON Lines files")
    parser.add_argument("--questions", type=Path, nargs="+", default=[], help="JSON Lines files")
    parser.add_argument("--limit", type=int, help="documents or questions of a file at most")
    parser.add_argument("--quantize", choices=_WEIGHTS, default="none")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if not options.text and not options.questions:
        parser.error("give a file with --text or --questions")
    configure_logging("warning", "auto")
    directory = resolve_model(options.model)
    settings = Settings(
        _cli_parse_args=False,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        threads=options.threads,
    )
    plan = Evaluation(tuple(options.text), tuple(options.questions), options.limit)
    results = asyncio.run(run(engine_config(settings, str(directory)), plan))
    if options.json:
        print(json.dumps({str(path): asdict(result) for path, result in results.items()}))
        return 0
    for path, result in results.items():
        print(f"{path}: {result}")
    return 0


def doctor(arguments: list[str]) -> int:
    """Say what is found here, what a server would use, and what is missing."""
    import json

    from hagane.cli.doctor import as_json, as_text, examine, failed

    parser = argparse.ArgumentParser(
        "hagane doctor",
        description=f"{doctor.__doc__} Takes every setting of `hagane serve` too.",
        epilog="The exit status is 1 when something keeps the server from running.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options, rest = parser.parse_known_args(arguments)
    refuse_unknown_variables()
    configure_logging("error", "auto")
    findings = examine(Settings(_cli_parse_args=rest, _cli_prog_name="hagane doctor"))
    print(json.dumps(as_json(findings)) if options.json else as_text(findings))
    return 1 if failed(findings) else 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "serve": serve,
    "chat": chat,
    "quantize": quantize,
    "pretrain": pretrain,
    "finetune": finetune,
    "merge": merge,
    "eval": evaluate,
    "bench": bench,
    "doctor": doctor,
}


def main() -> None:
    """Run a command; what the user can mend is one line on standard error and status 2."""
    listing = "\n".join(f"  {name:10} {command.__doc__}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "hagane",
        description=f"One server for a language model's whole life.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hagane {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see `hagane COMMAND --help`")
    options = parser.parse_args()
    try:
        sys.exit(COMMANDS[options.command](options.arguments))
    except HaganeError as error:
        print(f"hagane: {error}", file=sys.stderr)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        print(f"hagane: setting {name}: {first['msg']}, got {first['input']!r}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
