"""Embeddings of decoders and encoders against transformers, through a real server process."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import openai
import pytest
import tokenizers
import torch
from transformers import AutoModel

from tests.support.encoder import encoder
from tests.support.server import start_server, stop_server

TEXTS = ["Once upon a time", "A small cat.", "Once upon a time there was a small cat. " * 4]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def vectors(client, texts=TEXTS, **fields) -> np.ndarray:
    answer = client.embeddings.create(model="tiny", input=texts, **fields)
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data])


def reference(directory, texts, pooling, *, normalize=True) -> np.ndarray:
    """The embeddings of transformers, of each text alone."""
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.no_truncation()
    model = AutoModel.from_pretrained(directory, torch_dtype=torch.float32).eval()
    found = []
    for text in texts:
        ids = torch.tensor([backend.encode(text).ids])
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        pooled = {"last": states[-1], "first": states[0], "mean": states.mean(0)}[pooling]
        found.append((pooled / pooled.norm() if normalize else pooled).numpy())
    return np.array(found)


def test_a_decoders_last_token(client, tiny_model_dir):
    expected = reference(tiny_model_dir, TEXTS, "last")
    found = vectors(client)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Again, now that prompts are in the cache; and each alone.
    np.testing.assert_array_equal(vectors(client), found)
    np.testing.assert_array_equal(vectors(client, TEXTS[1]), found[1:2])


def test_formats_dimensions_and_token_ids(client, server):
    whole = vectors(client)
    cut = vectors(client, dimensions=8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-5)
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": TEXTS[0]}).json()["tokens"]
    np.testing.assert_array_equal(vectors(client, ids), whole[:1])
    np.testing.assert_array_equal(vectors(client, [ids, ids]), whole[[0, 0]])
    # The client asks for base64 by itself where it is left to.
    body = {"model": "tiny", "input": TEXTS[0], "encoding_format": "base64"}
    raw = httpx.post(f"{server.url}/v1/embeddings", json=body).json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, whole[0], atol=1e-7)
    assert raw["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    many = [f"{number} {TEXTS[0]}" for number in range(300)]
    np.testing.assert_array_equal(vectors(client, many)[7:8], vectors(client, many[7]))


def pooled_model(source, directory, mode: str, *, normalize=False):
    """The model in `source` with sentence-transformers' files next to it."""
    directory.mkdir()
    for file in source.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "",
         "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]  # fmt: skip
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    return directory


def embed_once(model, log, texts, path="/v1/embeddings", *flags, **fields) -> httpx.Response:
    server = start_server(model, log, *flags)
    try:
        server.wait_ready()
        body = {"model": model.name, "input": texts, **fields}
        return httpx.post(server.url + path, json=body)
    finally:
        stop_server(server)


def test_a_decoders_mean_in_chunks(tiny_model_dir, tmp_path):
    model = pooled_model(tiny_model_dir, tmp_path / "mean", "pooling_mode_mean_tokens")
    expected = reference(tiny_model_dir, TEXTS, "mean", normalize=False)
    flags = ("--max-batch-tokens", "16", "--max-sequences", "4")
    answer = embed_once(model, tmp_path / "log", [*TEXTS, *TEXTS], "/v1/embeddings", *flags)
    found = np.array([each["embedding"] for each in answer.json()["data"]])
    np.testing.assert_allclose(found[:3], expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(found[:3], found[3:])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Encoders without pooling, and the server that has them with it: one as base, one beside."""
    folder = tmp_path_factory.mktemp("encoders")
    plain = {kind: encoder(folder / f"plain {kind}", kind) for kind in ("bert", "roberta")}
    pooled = {
        kind: pooled_model(plain[kind], folder / kind, name, normalize=True)
        for kind, name in (
            ("bert", "pooling_mode_mean_tokens"), ("roberta", "pooling_mode_cls_token"),
        )
    }  # fmt: skip
    (pooled["bert"] / "sentence_bert_config.json").write_text('{"max_seq_length": 200}')
    server = start_server(
        pooled["bert"], folder / "log", "--models", f"roberta={pooled['roberta']}"
    )
    server.wait_ready()
    yield server, plain
    stop_server(server)


@pytest.mark.parametrize(("kind", "mode"), [("bert", "mean"), ("roberta", "first")])
def test_an_encoder(encoders, kind, mode):
    server, plain = encoders[0], encoders[1][kind]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        answer = client.embeddings.create(model=kind, input=TEXTS)
        found = np.array([each.embedding for each in answer.data])
        np.testing.assert_allclose(found, reference(plain, TEXTS, mode), atol=1e-4)
        with pytest.raises(openai.BadRequestError) as text:
            client.completions.create(model=kind, prompt="a")
        assert "/v1/embeddings" in str(text.value)
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings") as chat:
            client.chat.completions.create(model=kind, messages=[{"role": "user", "content": "a"}])
        assert chat.value.param == "model"
        with pytest.raises(openai.BadRequestError) as long:
            client.embeddings.create(model=kind, input="a " * 300)
        assert long.value.code == "context_length_exceeded"
        cut = {"truncate_prompt_tokens": -1}
        whole = client.embeddings.create(model=kind, input="a " * 300, extra_body=cut)
        assert whole.usage.prompt_tokens == {"bert": 200, "roberta": 256}[kind]
    body = {"model": kind, "query": "cat", "documents": ["dog", "cat"], "top_n": 1}
    ranked = httpx.post(f"{server.url}/v1/rerank", json=body).json()["results"]
    assert [each["index"] for each in ranked] == [1]
    assert ranked[0]["relevance_score"] == pytest.approx(1)
    body = {"model": kind, "text_1": "cat", "text_2": ["cat", "dog"]}
    scores = [e["score"] for e in httpx.post(f"{server.url}/v1/score", json=body).json()["data"]]
    expected = reference(plain, ["cat", "dog"], mode)
    assert scores == pytest.approx([1, float(expected[0] @ expected[1])], abs=1e-4)


REFUSED = [
    ({"input": []}, "input", "0 texts"),
    ({"input": ""}, "input", "empty"),
    ({"input": "a", "dimensions": 100}, "dimensions", "64"),
    ({"input": [99999]}, "input", "99999"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
    ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
    ({"input": "once " * 600}, "input", "maximum context length"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_embedded_is_refused_by_name(server, fields, param, words):
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
