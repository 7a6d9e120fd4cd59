"""A directory made from a GGUF file has the file's tokenizer, template and defaults."""

from __future__ import annotations

from hagane.cli.main import dispatch
from hagane.text.chat_template import ChatTemplate
from hagane.text.generation_defaults import GenerationDefaults
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import load_config

from tests.support.gguf import write_gguf


def test_a_quantized_copy_of_a_file_can_be_served(tiny_model_dir, tmp_path):
    path = write_gguf(tiny_model_dir, tmp_path / "x.gguf", general__sampling__temp=0.5)
    assert dispatch(["quantize", str(path), str(tmp_path / "q"), "--int8"]) == 0
    tokenizers = [Tokenizer.load(source) for source in (path, tmp_path / "q")]
    text = "Once upon a time<|im_end|>"
    first, second = (tokenizer.encode(text) for tokenizer in tokenizers)
    assert first == second
    defaults = [
        GenerationDefaults.load(source, tokenizer, load_config(source))
        for source, tokenizer in zip((path, tmp_path / "q"), tokenizers, strict=True)
    ]
    assert defaults[0] == defaults[1]
    assert defaults[1].temperature == 0.5
    messages = [{"role": "user", "content": "hi"}]
    rendered = [
        ChatTemplate.load(source, tokenizer).render(messages)
        for source, tokenizer in zip((path, tmp_path / "q"), tokenizers, strict=True)
    ]
    assert rendered[0] == rendered[1]
