"""Damages small GGUF files and reads them: each is read or refused in one line, in bounded time.

python -m tests.support.gguf_fuzz --mutations 100000
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import signal
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from hagane.system.errors import ModelError
from hagane.text.chat_template import ChatTemplate
from hagane.text.generation_defaults import GenerationDefaults
from hagane.text.tokenizer import Tokenizer
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config

_WIDTH, _INNER, _HEADS = 32, 64, 4
_SECONDS = 5
_MORE_MEMORY = 512 << 20
_LONGEST_MESSAGE = 2000
_KEY = re.compile(rb"(?:llama|qwen.|general|tokenizer)\.[a-z._]+")
_NUMBERS = (0, 1, 2, 7, 8, 9, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_LARGE = (1 << 32, 1 << 48, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 24)


def seeds() -> dict[str, bytes]:
    """A small file of each architecture and kind of tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        return {
            f"{architecture}-{kind}": _write(path, architecture, kind)
            for architecture in ("llama", "qwen2", "qwen3")
            for kind in ("gpt2", "llama", "bert", "t5")
            if architecture == "llama" or kind == "gpt2"
        }


def _write(path: Path, architecture: str, kind: str) -> bytes:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS // 2)
    writer.add_key_length(_WIDTH // _HEADS)
    writer.add_sliding_window(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    writer.add_float32("general.sampling.temp", 0.5)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(4)), "a", "b", "ab", "\u2581"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3, 6, 6, 6, 6, 1, 1, 1, 1])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    for name, shape, stored in _tensors(architecture, len(tokens)):
        values = np.zeros(shape, np.float32)
        kind_of = gguf.GGMLQuantizationType[stored]
        writer.add_tensor(name, gguf.quantize(values, kind_of), raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _tensors(architecture: str, tokens: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield "token_embd.weight", (tokens, _WIDTH), "Q8_0"
    yield "output_norm.weight", (_WIDTH,), "F32"
    norms = ["attn_norm", "ffn_norm"]
    if architecture == "qwen3":
        for name in ("attn_q_norm", "attn_k_norm"):
            yield f"blk.0.{name}.weight", (_WIDTH // _HEADS,), "F32"
    for name in norms:
        yield f"blk.0.{name}.weight", (_WIDTH,), "F32"
    rows = {"attn_q": _WIDTH, "attn_k": _WIDTH // 2, "attn_v": _WIDTH // 2, "attn_output": _WIDTH}
    for name, count in {**rows, "ffn_gate": _INNER, "ffn_up": _INNER}.items():
        yield f"blk.0.{name}.weight", (count, _WIDTH), "Q4_0"
        if architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
            yield f"blk.0.{name}.bias", (count,), "F32"
    yield "blk.0.ffn_down.weight", (_WIDTH, _INNER), "F16"


def _bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] = rng.choice(
            (0, 1, 10, 0x7F, 0x80, 0xFF, rng.randrange(256))
        )


def _number(data: bytearray, rng: random.Random) -> None:
    large = rng.random() < 0.7
    value = rng.choice(_LARGE + _NUMBERS + (len(data), rng.randrange(1 << 12))) if large else 0
    packed = struct.pack("<Q", value) if large else struct.pack("<I", rng.choice(_NUMBERS))
    at = rng.randrange(len(data) - len(packed))
    data[at : at + len(packed)] = packed


def _float(data: bytearray, rng: random.Random) -> None:
    value = rng.choice((float("nan"), float("inf"), -float("inf"), -1.0, 1e38, 1e-45))
    at = rng.randrange(len(data) - 4)
    data[at : at + 4] = struct.pack("<f", value)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 8, 64))))


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 4, 8, 64))]


def _copy(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((4, 8, 32, 128))
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    data[target : target + size] = data[source : source + size]


def _value(data: bytearray, rng: random.Random) -> None:
    """Another number in a metadata value, or at the beginning of a text or an array."""
    keys = list(_KEY.finditer(data))
    if not keys:
        return
    at = rng.choice(keys).end() + 4
    packed = struct.pack(*rng.choice((("<I", rng.choice(_NUMBERS)), ("<Q", rng.choice(_LARGE)))))
    if at + len(packed) <= len(data):
        data[at : at + len(packed)] = packed


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _bytes, _number, _number, _value, _value, _float, _truncate, _insert, _remove, _copy,
)  # fmt: skip


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """`seed` with damage, most of it before the tensors' data."""
    cut = seed.rfind(b"weight") + 64
    head = bytearray(seed[:cut])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if len(head) > 16:
            rng.choice(_MUTATIONS)(head, rng)
    return bytes(head) + (seed[cut:] if rng.random() < 0.95 else b"")


def read(path: Path) -> None:
    """Everything that a server reads of a model before it serves it. Raises ModelError."""
    config = load_config(path)
    tokenizer = Tokenizer.load(path)
    ChatTemplate.load(path, tokenizer)
    GenerationDefaults.load(path, tokenizer, config)
    tokenizer.decode(tokenizer.encode("a ab\n"))
    load_model(path, device="cpu", dtype=torch.float32, quantization=None)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"reading took more than {_SECONDS} s")


def run(mutations: int, seed: int, *, report: Callable[[str], None] = print) -> Counter[str]:
    """Read so many damaged files; returns how many were refused by what.

    Raises whatever a file brings about besides a ModelError of one line, the file kept.
    """
    torch.set_num_threads(1)
    files = list(seeds().values())
    outcomes: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.gguf"
        for data in files:
            path.write_bytes(data)
            read(path)
        peak, slowest = _peak(), 0.0
        for i in range(mutations):
            data = mutated(files[i % len(files)], random.Random(f"{seed}:{i}"))
            path.write_bytes(data)
            started = time.monotonic()
            signal.alarm(_SECONDS)
            try:
                outcomes[_outcome(path)] += 1
            except BaseException as error:
                kept = Path(tempfile.gettempdir()) / f"gguf-fuzz-{seed}-{i}.gguf"
                kept.write_bytes(data)
                error.add_note(f"mutation {i} of seed {seed}, kept as {kept}")
                raise
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.monotonic() - started)
            if (i + 1) % 10_000 == 0:
                report(f"{i + 1} read, slowest {slowest:.2f} s, {_peak() - peak >> 20} MiB more")
        assert _peak() - peak < _MORE_MEMORY, "reading took too much memory"
    return outcomes


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _outcome(path: Path) -> str:
    try:
        read(path)
    except ModelError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) < _LONGEST_MESSAGE, len(message)
        assert str(path) in message, message
        return "refused"
    return "read"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(dict(run(arguments.mutations, arguments.seed)))
