"""Configurations of encoders that are refused."""

from __future__ import annotations

import json

import pytest
from hagane.models.encoder_config import EncoderConfig
from hagane.system.errors import ModelError

from tests.support.encoder import encoder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, "2 labels"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
    ],
)
def test_what_would_score_otherwise_is_refused_by_name(tmp_path, changes, words):
    path = encoder(tmp_path, "crossed bert") / "config.json"
    stored = json.loads(path.read_text())
    assert EncoderConfig.find(tmp_path).scale == "sigmoid"
    path.write_text(json.dumps(stored | changes))
    with pytest.raises(ModelError, match=words):
        EncoderConfig.find(tmp_path)
