"""A teacher's distributions, from an engine, and a run that learns from them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hagane.system.errors import TrainingError
from hagane.training.finetune.examples import load
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.finetune.teacher import taught

from tests.support.adapted import adapted_pair


def test_targets_are_the_likeliest_tokens_and_asked_for_once(tiny_model_dir, tmp_path):
    file = tmp_path / "train.jsonl"
    records = [{"prompt": f"What colour, {i}?", "completion": "The sky is blue."} for i in range(4)]
    file.write_text("\n".join(map(json.dumps, records)))
    _, theirs = adapted_pair(tiny_model_dir, tmp_path)
    teacher = tmp_path / "merged"
    spec = FineTuneSpec(model=tiny_model_dir, training_file=file, teacher=teacher, threads=1,
                        teacher_tokens=4)  # fmt: skip
    data = load(spec)
    found = taught(spec, teacher, data, tmp_path / "state")
    assert [example.digest for example in found.training] == [e.digest for e in data.training]
    for example in (*found.training, *found.validation):
        (one,), (soft,) = example.sequences, example.soft
        with torch.no_grad():
            logits = theirs(input_ids=torch.from_numpy(one.tokens).long()[None]).logits[0]
        scores = logits[np.flatnonzero(one.loss_mask) - 1].log_softmax(-1)
        top = scores.topk(4)
        assert soft.ids.tolist() == top.indices.tolist()
        torch.testing.assert_close(
            torch.from_numpy(soft.shares), top.values.softmax(-1), atol=1e-4, rtol=1e-3
        )
    # Without its weights the teacher could not be asked again.
    for weights in teacher.glob("*.safetensors"):
        weights.unlink()
    again = taught(spec, teacher, data, tmp_path / "state")
    assert np.array_equal(again.training[0].soft[0].ids, found.training[0].soft[0].ids)


def test_another_vocabulary_is_refused(tiny_model_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    stored = json.loads((other / "tokenizer.json").read_text())
    stored["model"]["merges"] = stored["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(stored))
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"a cat {i}"}) for i in range(4)))
    spec = FineTuneSpec(model=tiny_model_dir, training_file=file, teacher=other)
    with pytest.raises(TrainingError, match="another vocabulary"):
        taught(spec, other, load(spec), tmp_path / "state")
