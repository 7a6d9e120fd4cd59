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

from tests.support.engine import RunningEngine, config

BASE = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 2.5, 4.0, 9.0],
    "original_max_position_embeddings": 256,
}
DEEPSEEK = {
    "num_key_value_heads": 6,
    "head_dim": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
FAMILIES = {
    "llama2": ("llama", {"num_key_value_heads": 6}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "smollm": ("llama", {"tie_word_embeddings": True, "num_attention_heads": 9, "hidden_size": 72,
                         "num_key_value_heads": 3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-sliding": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 7,
                                "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": YARN}),
    "ministral": ("ministral", {"sliding_window": 9}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 9, "query_pre_attn_scalar": 30,
                          "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 9, "query_pre_attn_scalar": 30,
                               "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}),
    "gemma3-linear": ("gemma3_text", {"sliding_window": 9, "final_logit_softcapping": 2.0,
                                      "sliding_window_pattern": 2,
                                      "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "phi3": ("phi3", {"sliding_window": None, "head_dim": None}),
    "phi4": ("phi3", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True,
                      "head_dim": None, "sliding_window": 20}),
    "phi3-longrope": ("phi3", {"head_dim": None, "rope_parameters": LONGROPE}),
    "olmo2": ("olmo2", {"hidden_size": 96, "tie_word_embeddings": True}),
    "olmo3": ("olmo3", {"hidden_size": 96, "sliding_window": 9, "num_hidden_layers": 4}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.4,
                            "residual_multiplier": 0.3, "logits_scaling": 2.5, "hidden_size": 96,
                            "attention_bias": True, "tie_word_embeddings": True}),
    "granite4": ("granitemoehybrid", {
        "num_local_experts": 0, "shared_intermediate_size": 80, "residual_multiplier": 0.3,
        "hidden_size": 96, "layer_types": ["full_attention"] * 3, "mamba_n_heads": 6,
        "position_embedding_type": "rope"}),
    "granite4-nope": ("granitemoehybrid", {
        "num_local_experts": 0, "shared_intermediate_size": 80, "attention_multiplier": 0.4,
        "hidden_size": 96, "layer_types": ["full_attention"] * 3, "mamba_n_heads": 6}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "hidden_size": 96}),
    "glm": ("glm", {"partial_rotary_factor": 0.5}),
    "glm4": ("glm4", {"partial_rotary_factor": 0.5, "attention_bias": False}),
    "starcoder2": ("starcoder2", {"sliding_window": 9}),
    "stablelm": ("stablelm", {"hidden_size": 96, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"hidden_size": 96, "use_parallel_residual": True}),
    "exaone4": ("exaone4", {"sliding_window": 9, "num_hidden_layers": 4}),
    "exaone4-full": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "seed": ("seed_oss", {"attention_out_bias": True}),
    "ernie": ("ernie4_5", {"use_bias": True}),
    "helium": ("helium", {"hidden_size": 96}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen2-moe": ("qwen2_moe", {"hidden_size": 96, "num_experts": 6, "num_experts_per_tok": 3,
                                "moe_intermediate_size": 32, "decoder_sparse_step": 2,
                                "shared_expert_intermediate_size": 64}),
    "qwen3-moe": ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
                                "moe_intermediate_size": 32, "mlp_only_layers": [1]}),
    "olmoe": ("olmoe", {"hidden_size": 96, "num_experts": 6, "num_experts_per_tok": 2,
                        "intermediate_size": 32}),
    "granite-moe": ("granitemoe", {"hidden_size": 96, "num_local_experts": 4,
                                   "embedding_multiplier": 3.0, "residual_multiplier": 0.3}),
    "granite-moe-shared": ("granitemoeshared", {"hidden_size": 96, "num_local_experts": 4,
                                                "shared_intermediate_size": 48,
                                                "intermediate_size": 32}),
    "glm4-moe": ("glm4_moe", {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
                              "topk_group": 2, "moe_intermediate_size": 32, "use_qk_norm": True,
                              "routed_scaling_factor": 1.5}),
    "ernie-moe": ("ernie4_5_moe", {"moe_num_experts": 6, "moe_k": 2, "hidden_size": 96,
                                   "moe_intermediate_size": 32, "moe_num_shared_experts": 2}),
    "deepseek-v2": ("deepseek_v2", DEEPSEEK | {
        "q_lora_rank": None, "first_k_dense_replace": 3}),
    "deepseek-v2-groups": ("deepseek_v2", DEEPSEEK | {
        "q_lora_rank": 32, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}}),
    "deepseek-v3": ("deepseek_v3", DEEPSEEK | {
        "q_lora_rank": 32, "n_group": 4, "topk_group": 2, "rope_parameters": YARN | {
            "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9,
                            "hidden_size": 96, "rope_parameters": YARN | {"truncate": False}}),
    "phimoe": ("phimoe", {"num_local_experts": 4, "head_dim": None, "attention_bias": True,
                          "lm_head_bias": True, "router_jitter_noise": 0.2,
                          "rope_parameters": LONGROPE | {"short_mscale": 1.2,
                                                         "long_mscale": 1.3}}),
    "llama4": ("llama4_text", {"num_hidden_layers": 4, "num_local_experts": 4, "floor_scale": 16,
                               "intermediate_size_mlp": 80, "intermediate_size": 32,
                               "interleave_moe_layer_step": 2,
                               "rope_parameters": LLAMA3}),
    "hunyuan": ("hunyuan_v1_dense", {"attention_bias": True, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}}),
    "internlm3": ("internlm3", {"attention_bias": True, "mlp_bias": True}),
    "gpt2": ("gpt2", {"hidden_size": 96, "num_key_value_heads": None, "head_dim": None}),
    "gpt-neox": ("gpt_neox", {"hidden_size": 96, "num_key_value_heads": None}),
    "gpt-neox-serial": ("gpt_neox", {"hidden_size": 96, "use_parallel_residual": False,
                                     "num_key_value_heads": None,
                                     "rope_parameters": {"rope_type": "default",
                                                         "rope_theta": 5000.0,
                                                         "partial_rotary_factor": 0.5}}),
    "olmo": ("olmo", {"hidden_size": 96, "clip_qkv": 0.3}),
}  # fmt: skip
# One for each operation that backends have by themselves.
BY_REFERENCE = ("llama", "mistral", "qwen3", "gemma2", "olmo2", "glm4", "starcoder2",
                "qwen2_moe", "glm4_moe", "deepseek_v3", "gpt_oss", "phimoe")  # fmt: skip
# Those of which torch computes something between kernels, and one with an embedding of positions.
COMPUTED = ("llama4_text", "hunyuan_v1_dense", "olmo", "gpt2")
# Alike others.
SLOW = ("gpt-neox-serial", "internlm3")
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
        config = model.config
        shape = (blocks, BLOCK, config.kv_heads, config.head_dim)
        self.model = model
        self.caches = [
            model.operations.allocate_cache(*shape, dtype, torch.device("cpu"))
            for _ in range(config.layers)
        ]
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
