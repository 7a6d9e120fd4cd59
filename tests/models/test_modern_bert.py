"""ModernBERT against transformers."""

from __future__ import annotations

import json

import pytest
import torch
from hagane.models.encoder_config import EncoderConfig
from hagane.system.errors import ModelError
from hagane.weights.load_encoder import load_encoder
from transformers import AutoModel

from tests.support.encoder import encoder


@torch.no_grad()
def test_texts_of_a_batch_have_the_states_of_each_alone_in_transformers(tmp_path):
    directory = encoder(tmp_path, "modern bert")
    config = EncoderConfig.find(directory)
    assert config is not None and config.turned is not None and config.turned.reach == 4
    model = load_encoder(directory, config, dtype=torch.float32, device=torch.device("cpu"))
    theirs = AutoModel.from_pretrained(directory, attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    # Shorter and longer than the window.
    texts = [torch.randint(5, 50, (n,), generator=generator) for n in (3, 40, 1, 12)]
    states = model(torch.cat(texts), [len(text) for text in texts])
    for text, got in zip(texts, states.split([len(text) for text in texts]), strict=True):
        expected = theirs(text[None]).last_hidden_state[0]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "swish"}, "hidden_activation 'swish' is not supported"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types other than one of 3"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"num_attention_heads": 5}, "heads of an even size"),
    ],
)
def test_what_it_does_not_compute_is_refused(tmp_path, changes, message):
    path = encoder(tmp_path, "modern bert") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        EncoderConfig.find(tmp_path)
