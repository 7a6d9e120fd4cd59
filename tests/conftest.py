"""A real tiny model and a real server process, shared by the tests of a session."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

if not torch.cuda.is_available():
    # Triton decides when it is imported, as transformers does: its kernels run on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"

# Some hundred processes start: none but the first compiles the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import postgres as postgresql
from tests.support import s3 as object_store
from tests.support.postgres import Postgres
from tests.support.server import ADMIN_KEY, CHAT_KEY, OTHER_KEY, Server, start_server, stop_server

if "TRITON_INTERPRET" in os.environ and importlib.util.find_spec("triton"):
    from tests.support.interpreter import prepare_language_once, round_as_devices_do

    prepare_language_once()
    round_as_devices_do()

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = ["Once upon a time there was a small cat.", "今日は天気が良いので、散歩に行きました。"]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in Hugging Face layout with a byte-level BPE and a chat template."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
        eos_token_id=2,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, of which each test takes a schema by `url()`."""
    if (reason := postgresql.missing()) is not None:
        pytest.skip(reason)
    running = Postgres.create()
    yield running
    running.remove()


@pytest.fixture(scope="session")
def s3() -> Iterator[object_store.S3]:
    """A server of the S3 protocol, of which each test takes a bucket."""
    if (reason := object_store.missing()) is not None:
        pytest.skip(reason)
    with object_store.running() as running:
        yield running


@pytest.fixture(scope="session")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that need no settings of their own."""
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--max-sequences", "16", "--kv-cache-memory", "8MiB")
    running = start_server(tiny_model_dir, log, *flags)
    running.wait_ready()
    yield running
    stop_server(running)


@pytest.fixture(scope="session")
def admin_server(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that takes files and jobs."""
    folder = tmp_path_factory.mktemp("admin")
    running = start_server(
        tiny_model_dir, folder / "log", "--data-dir", str(folder / "data"),
        "--max-file-bytes", "3MB", "--max-body-bytes", "1MB",
        "--key-file-bytes", "4MB", "--key-batches", "3",
        HAGANE_ADMIN_KEY=ADMIN_KEY, HAGANE_API_KEYS=f"{CHAT_KEY},{OTHER_KEY}",
    )  # fmt: skip
    running.wait_ready()
    yield running
    stop_server(running)


@pytest.fixture(scope="session")
def admin(admin_server: Server) -> Iterator[openai.OpenAI]:
    """The stock client with the admin key."""
    url = f"{admin_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key=ADMIN_KEY, max_retries=0) as client:
        yield client
