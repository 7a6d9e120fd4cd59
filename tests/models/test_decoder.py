"""The Transformer against Hugging Face transformers, family by family."""

from __future__ import annotations

import copy
import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu.recording import Workspace
from hagane.kernels.layout import PagedLayout
from hagane.kernels.low_rank import AdapterRows
from hagane.lora.banks import AdapterBanks
from hagane.lora.config import AdapterConfig
from hagane.lora.files import load_adapter, save_adapter
from hagane.models.attention import PackedCausal, Paged
from hagane.models.config import Quantization
from hagane.models.decoder import Transformer
from hagane.models.families import read_config, read_config_file
from hagane.models.spec import linear_shapes
from hagane.weights.load import load_model, save_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.decoder_families import BASE, BY_REFERENCE, COMPUTED, FAMILIES, SLOW
from tests.support.engine import RunningEngine, config

BLOCK = 16
BACKENDS = [
    reference,
    pytest.param(
        cpu,
        marks=pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    ),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """torch's threads wait for each other longer than they compute with tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FAMILIES],
)
def checkpoint(request, tmp_path_factory):
    """transformers' model, and the directory of its random weights."""
    directory = tmp_path_factory.mktemp(request.param)
    return random_model(request.param, directory), directory


def random_model(family: str, directory: Path):
    """transformers' model with random weights, saved."""
    kind, changes = FAMILIES[family]
    torch.manual_seed(0)
    # None drops what `BASE` has.
    shape = {k: v for k, v in (BASE | changes).items() if v is not None or k not in BASE}
    config = AutoConfig.for_model(kind, **({"sliding_window": None} | shape))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Norm scales of one and zero biases would hide mistakes.
            scale = 0.2 if parameter.ndim == 1 else 0.08
            parameter.add_(torch.randn_like(parameter) * scale)
            assert name
        for name, buffer in theirs.named_buffers():
            if name.endswith("correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.2)
    theirs.save_pretrained(directory)
    return theirs


def load(directory: Path, operations, quantization=None, dtype=torch.float32) -> Transformer:
    model, _ = load_model(
        directory, device="cpu", dtype=dtype, quantization=quantization, operations=operations
    )
    return model.eval()


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda module: module.__name__)
def pair(request, checkpoint):
    """(transformers' model, ours) with the same random weights."""
    theirs, directory = checkpoint
    if request.param is reference and theirs.config.model_type not in BY_REFERENCE:
        pytest.skip("training contexts try the reference on this family")
    return theirs, load(directory, request.param)


def expected_logits(theirs, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return theirs(torch.tensor([tokens])).logits[0].float()


class PagedRun:
    """Runs sequences through scattered cache blocks, in whatever chunks a test chooses."""

    def __init__(
        self,
        model: Transformer,
        blocks: int = 128,
        dtype: torch.dtype = torch.float32,
        adapter: int | None = None,
    ) -> None:
        self.adapter, self.run = adapter, lambda step: step()
        self.model = model
        self.caches = [
            model.operations.allocate_cache(
                blocks, BLOCK, spec.kv_heads, spec.head_dim, dtype, torch.device("cpu"),
                shared=spec.shared,
            )
            for spec in model.caches
        ]  # fmt: skip
        self.free = list(range(blocks))
        random.Random(1).shuffle(self.free)
        self.tables: dict[int, list[int]] = {}

    @torch.no_grad()
    def step(self, chunks: list[tuple[int, list[int], int, int]]) -> list[torch.Tensor]:
        """Chunks are (sequence id, its tokens, start, end); logits of each chunk's rows."""
        order = sorted(range(len(chunks)), key=lambda i: chunks[i][3] - chunks[i][2] > 1)
        chunks = [chunks[i] for i in order]
        ids, positions, slots, starts = [], [], [], [0]
        for key, tokens, start, end in chunks:
            table = self.tables.setdefault(key, [])
            while len(table) * BLOCK < end:
                table.append(self.free.pop())
            ids += tokens[start:end]
            positions += range(start, end)
            slots += [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(start, end)]
            starts.append(len(ids))
        contexts = tuple(end for *_, end in chunks)
        longest = max(len(self.tables[key]) for key, *_ in chunks)
        tables = [self.tables[k] + [0] * (longest - len(self.tables[k])) for k, *_ in chunks]
        layout = PagedLayout(
            slots=torch.tensor(slots),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            starts=torch.tensor(starts, dtype=torch.int32),
            lengths=torch.tensor(contexts, dtype=torch.int32),
            query_starts=tuple(starts),
            context_lengths=contexts,
            decodes=sum(end - start == 1 for _, _, start, end in chunks),
            block_size=BLOCK,
        )
        rows = None
        if self.adapter is not None:
            rows = AdapterRows(torch.full((len(ids),), self.adapter, dtype=torch.int32))
        context = Paged(torch.tensor(positions), layout, self.caches, self.model.operations, rows)
        token_ids = torch.tensor(ids)
        logits = self.run(lambda: self.model.logits(self.model(token_ids, context)))
        parts = [logits[a:b] for a, b in itertools.pairwise(starts)]
        return [parts[order.index(i)] for i in range(len(order))]


def random_tokens(seed: int, length: int) -> list[int]:
    return torch.randint(
        0, BASE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


def test_prefill_matches_transformers(pair):
    theirs, ours = pair
    tokens = random_tokens(1, 41)
    (logits,) = PagedRun(ours).step([(0, tokens, 0, 41)])
    torch.testing.assert_close(logits, expected_logits(theirs, tokens), atol=1e-4, rtol=0)


def test_token_by_token_decode_matches_transformers(pair):
    theirs, ours = pair
    tokens = random_tokens(2, 18)
    run = PagedRun(ours)
    logits = torch.cat([run.step([(0, tokens, i, i + 1)])[0] for i in range(18)])
    torch.testing.assert_close(logits, expected_logits(theirs, tokens), atol=1e-4, rtol=0)


def run_in_random_chunks(
    run: PagedRun, sequences: dict[int, list[int]], rng: random.Random
) -> dict[int, torch.Tensor]:
    """Logits of all tokens of every sequence, computed in batches of random composition."""
    done = dict.fromkeys(sequences, 0)
    seen: dict[int, list[torch.Tensor]] = {key: [] for key in sequences}
    while any(done[k] < len(t) for k, t in sequences.items()):
        active = [k for k, t in sequences.items() if done[k] < len(t) and rng.random() < 0.7]
        chunks = []
        for key in active:
            end = min(len(sequences[key]), done[key] + rng.choice([1, 1, 1, 5, 17, 40]))
            chunks.append((key, sequences[key], done[key], end))
            done[key] = end
        if chunks:
            for (key, *_), logits in zip(chunks, run.step(chunks), strict=True):
                seen[key].append(logits)
    return {key: torch.cat(parts) for key, parts in seen.items()}


def test_mixed_batches_of_chunks_and_decodes_match_transformers(pair):
    theirs, ours = pair
    rng = random.Random(3)
    sequences = {key: random_tokens(10 + key, rng.randint(5, 60)) for key in range(4)}
    for key, logits in run_in_random_chunks(PagedRun(ours), sequences, rng).items():
        torch.testing.assert_close(
            logits, expected_logits(theirs, sequences[key]), atol=1e-4, rtol=0
        )


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        (None, torch.float32),
        (Quantization("int8"), torch.bfloat16),
        (Quantization("int4", 32), torch.bfloat16),
    ],
)
def test_native_results_do_not_depend_on_the_batch(checkpoint, quantization, dtype):
    _, directory = checkpoint
    model = load(directory, cpu, quantization, dtype)
    rng = random.Random(5)
    sequences = {key: random_tokens(40 + key, rng.randint(5, 100)) for key in range(4)}
    alone = {
        key: PagedRun(model, dtype=dtype).step([(key, tokens, 0, len(tokens))])[0]
        for key, tokens in sequences.items()
    }
    mixed = run_in_random_chunks(PagedRun(model, dtype=dtype), sequences, rng)
    for key, logits in alone.items():
        assert torch.equal(mixed[key], logits)


@torch.no_grad()
@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_recorded_steps_have_the_bits_of_those_that_run(checkpoint):
    """What torch computed by itself would be that of no step."""
    theirs, directory = checkpoint
    if theirs.config.model_type not in COMPUTED:
        pytest.skip("kernels alone compute it")
    model = load(directory, cpu)
    tokens, workspace = random_tokens(9, 24), Workspace()
    plain, recorded = PagedRun(model), PagedRun(model)
    recorded.run = lambda step: cpu.record(step, workspace)().clone()
    for start, end in ((0, 20), (20, 21), (21, 24)):
        (expected,), (got,) = (run.step([(0, tokens, start, end)]) for run in (plain, recorded))
        assert torch.equal(got, expected)


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_an_engine_writes_the_greedy_text_of_transformers(checkpoint):
    theirs, directory = checkpoint
    if theirs.config.model_type not in COMPUTED:
        pytest.skip("the engine's own tests try others")
    prompts = {"one": random_tokens(1, 20), "two": random_tokens(2, 33)}
    with RunningEngine(config(directory, dtype="float32")) as running:
        for name, prompt in prompts.items():
            running.ask(name, tuple(prompt), tokens=8)
        answers = dict(zip(prompts, running.wait(*prompts), strict=True))
    for name, prompt in prompts.items():
        tokens = list(prompt)
        for _ in answers[name].tokens:
            tokens.append(int(expected_logits(theirs, tokens)[-1].argmax()))
        assert answers[name].tokens == tokens[len(prompt) :] and len(answers[name].tokens) == 8


def test_training_context_matches_transformers(checkpoint):
    theirs, directory = checkpoint
    ours = load(directory, None)
    rows = [random_tokens(20 + row, 24) for row in range(2)]
    flat = torch.tensor(rows).flatten()
    with torch.no_grad():
        logits = ours.logits(ours(flat, PackedCausal(rows=2, length=24))).view(2, 24, -1)
    for row, tokens in enumerate(rows):
        torch.testing.assert_close(logits[row], expected_logits(theirs, tokens), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights_are_computed_with(checkpoint, kind):
    """Compared to the same weights dequantized: codes of inputs are all that differs."""
    _, directory = checkpoint
    quantization = Quantization(kind, 32, rotated=True)
    tokens = random_tokens(6, 40)
    (logits,) = PagedRun(load(directory, cpu, quantization)).step([(0, tokens, 0, 40)])
    stored = load(directory, None, quantization)
    expected = stored.logits(stored(torch.tensor(tokens), PackedCausal(rows=1, length=40)))
    close = torch.nn.functional.cosine_similarity(logits, expected)
    assert close.mean() > 0.98


def test_transformers_reads_what_is_saved(checkpoint, tmp_path):
    theirs, directory = checkpoint
    save_model(load(directory, None), tmp_path / "saved", dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    tokens = random_tokens(7, 20)
    torch.testing.assert_close(
        expected_logits(again, tokens), expected_logits(theirs, tokens), atol=1e-5, rtol=0
    )


def stored_matrix(config, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The matrix that Llama would call `name`, as a view of what transformers has."""
    if config.layout is None:
        return state[name].data
    place = config.layout.place(name)
    matrix = state[place.name].data
    matrix = matrix.t() if place.transposed else matrix
    if place.part is None:
        return matrix
    if config.layout.groups == "all":
        return matrix.chunk(3)[place.part]
    # Of each head its query, key and value: rows are spread, and put in place by the caller's add_.
    heads = matrix.view(config.heads, 3, config.head_dim, -1)[:, place.part]
    return SpreadRows(heads)


class SpreadRows:
    """Rows [heads, head_dim, columns] of a larger matrix, to which a matrix is added."""

    def __init__(self, heads: torch.Tensor) -> None:
        self.heads = heads

    def add_(self, change: torch.Tensor) -> None:
        self.heads.add_(change.view(self.heads.shape))


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_an_adapter_of_every_matrix_changes_what_merging_it_does(checkpoint, tmp_path):
    theirs, directory = checkpoint
    ours = load(directory, cpu)
    shapes = linear_shapes(ours.config)
    factors = {
        path: (torch.randn(2, columns) * 0.1, torch.randn(rows, 2) * 0.1)
        for path, (rows, columns) in shapes.items()
    }
    names = tuple(dict.fromkeys(path.rpartition(".")[2] for path in shapes))
    save_adapter(tmp_path, AdapterConfig(rank=2, alpha=4.0, target_modules=names), factors)
    banks = AdapterBanks(ours, torch.float32, torch.device("cpu"))
    banks.place(0, banks.pack(load_adapter(tmp_path, ours.config)))
    tokens = random_tokens(8, 30)
    merged = copy.deepcopy(theirs)
    state = dict(merged.named_parameters())
    for path, (a, b) in factors.items():
        stored_matrix(ours.config, state, f"model.{path}.weight").add_(2.0 * b @ a)
    run = PagedRun(ours, adapter=0)
    (logits,) = run.step([(0, tokens, 0, 30)])
    torch.testing.assert_close(logits, expected_logits(merged, tokens), atol=3e-4, rtol=0)


def test_config_survives_a_round_trip(checkpoint):
    theirs, directory = checkpoint
    stored = read_config_file(directory)
    raw = json.loads(json.dumps(theirs.config.to_dict())) | {"architectures": [stored.architecture]}
    config = read_config(raw)
    assert read_config(config.to_dict()) == config == stored


def test_initialisation_is_reproducible(tmp_path: Path):
    config = read_config(
        {**BASE, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    )
    first, second = Transformer(config), Transformer(config)
    for model in (first, second):
        model.init_weights(torch.Generator().manual_seed(7))
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)
    assert first.model.layers[0].self_attn.qkv_proj.weight.std().item() == pytest.approx(
        0.02, rel=0.1
    )
