"""Cross-encoders against transformers, through a real server process."""

from __future__ import annotations

import json
import math

import httpx
import pytest
import tokenizers
import torch
from transformers import AutoModelForSequenceClassification

from tests.support.encoder import encoder
from tests.support.server import start_server, stop_server

QUERY = "what is a cat"
DOCUMENTS = ["a dog.", "a cat is a small animal. " * 3, "x", "once upon a time"]


def logits(directory, pairs, *, most=None) -> list[float]:
    """Those of transformers, for each pair alone."""
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    if most is not None:
        backend.enable_truncation(most, strategy="longest_first")
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    found = []
    for pair in pairs:
        encoded = backend.encode(*pair)
        inputs = {"input_ids": torch.tensor([encoded.ids])}
        if model.config.model_type == "bert":
            inputs["token_type_ids"] = torch.tensor([encoded.type_ids])
            assert 1 in encoded.type_ids
        with torch.no_grad():
            found.append(model(**inputs).logits.item())
    return found


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.fixture(scope="module", params=[("bert", sigmoid, 258), ("roberta", float, 256)])
def crossed(request, tmp_path_factory):
    """A server of a cross-encoder, its directory, what it makes of logits, its longest pair."""
    kind, scale, longest = request.param
    directory = encoder(tmp_path_factory.mktemp("m") / "crossed", f"crossed {kind}")
    if scale is float:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
        path.write_text(json.dumps(config))
    server = start_server(directory, directory.parent / "log")
    try:
        server.wait_ready()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client, directory, scale, longest
    finally:
        stop_server(server)


def test_documents_are_ranked_by_their_scores(crossed):
    client, directory, scale, _ = crossed
    expected = [scale(x) for x in logits(directory, [(QUERY, text) for text in DOCUMENTS])]
    assert max(expected) - min(expected) > 0.01
    body = {"model": "crossed", "query": QUERY, "documents": DOCUMENTS}
    answer = client.post("/v1/rerank", json=body).json()
    found = {each["index"]: each["relevance_score"] for each in answer["results"]}
    assert [found[n] for n in range(4)] == pytest.approx(expected, abs=1e-4)
    assert list(found) == sorted(range(4), key=lambda n: -expected[n])
    alone = client.post("/v1/rerank", json=body | {"documents": DOCUMENTS[1:2]}).json()
    assert alone["results"][0]["relevance_score"] == pytest.approx(found[1], abs=1e-5)


def test_pairs_are_scored_in_the_order_of_their_texts(crossed):
    client, directory, scale, _ = crossed
    pairs = [("a", "b c"), ("b c", "a"), (DOCUMENTS[1], QUERY)]
    body = {"model": "crossed", "text_1": [a for a, _ in pairs], "text_2": [b for _, b in pairs]}
    data = client.post("/v1/score", json=body).json()["data"]
    expected = [scale(x) for x in logits(directory, pairs)]
    assert [each["score"] for each in data] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("first", "second"), [("a ", "b c " * 300), ("a b " * 90, "c " * 301)])
def test_pairs_that_are_too_long_are_refused_or_cut_as_the_library_does(crossed, first, second):
    client, directory, scale, longest = crossed
    body = {"model": "crossed", "text_1": first, "text_2": second}
    refused = client.post("/v1/score", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    for asked, length in ((-1, longest), (41, 41)):
        cut = client.post("/v1/score", json=body | {"truncate_prompt_tokens": asked}).json()
        assert cut["usage"]["prompt_tokens"] == length
        expected = scale(logits(directory, [(first, second)], most=length)[0])
        assert cut["data"][0]["score"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/embeddings", {"input": "a"}), ("/v1/completions", {"prompt": "a"})],
)
def test_it_does_nothing_else(crossed, path, fields):
    client, *_ = crossed
    answer = client.post(path, json={"model": "crossed", **fields})
    assert answer.status_code == 400
    assert "/v1/rerank" in answer.json()["error"]["message"]
