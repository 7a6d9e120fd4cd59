"""A batch has every token of its chunks in the right place, and the rows that are asked for."""

from __future__ import annotations

import random

import torch
from hagane.engine.sampling.sampler import TokensInFlight
from hagane.engine.schedule.plan import Chunk
from hagane.engine.schedule.sequence import Sequence
from hagane.engine.step.batch import build_batch
from hagane.pool.messages import AdapterRef, GenerateRequest, GrammarRef, SamplingParams

BLOCK = 4
CPU = torch.device("cpu")


def sequence(name: str, length: int, blocks: list[int], **changes) -> Sequence:
    scored = changes.pop("scored", None)
    request = GenerateRequest(
        request_id=name,
        prompt=tuple(range(100, 100 + length)),
        sampling=SamplingParams(max_tokens=9, prompt_logprobs=scored),
        **changes,
    )
    made = Sequence.of(request, 0, 0.0)
    made.blocks = blocks
    return made


def test_tokens_lie_where_the_block_tables_say():
    rng = random.Random(0)
    for _ in range(50):
        free = rng.sample(range(60), 60)
        chunks = []
        for i in range(rng.randint(1, 6)):
            length = rng.randint(1, 30)
            one = sequence(str(i), length, [free.pop() for _ in range(-(-length // BLOCK))])
            start = rng.randrange(length)
            chunks.append(Chunk(one, start, rng.choice([1, rng.randint(1, length - start)])))
        chunks.sort(key=lambda chunk: chunk.length > 1)
        inputs = build_batch(chunks, BLOCK, {}).to(CPU)
        layout = inputs.layout
        assert layout.decodes == sum(chunk.length == 1 for chunk in chunks)
        row = 0
        for i, chunk in enumerate(chunks):
            assert layout.starts[i] == layout.query_starts[i] == row
            assert layout.lengths[i] == layout.context_lengths[i] == chunk.start + chunk.length
            for p in range(chunk.start, chunk.start + chunk.length):
                assert inputs.token_ids[row] == 100 + p
                assert inputs.positions[row] == p
                block = chunk.sequence.blocks[p // BLOCK]
                assert layout.block_tables[i, p // BLOCK] == block
                assert layout.slots[row] == block * BLOCK + p % BLOCK
                row += 1
        assert layout.starts[-1] == row == len(inputs.token_ids)


def test_logits_are_those_of_samplers_and_of_scored_prompts():
    one, whole, part = (sequence(n, 6, [i]) for i, n in enumerate("abc"))
    forked = sequence("d", 6, [3, 4], n=3, scored=0)
    decode = Chunk(one, 3, 1, (one,))
    batch = build_batch([decode, Chunk(whole, 0, 3, (whole,)), Chunk(part, 0, 2)], BLOCK, {})
    assert (batch.logit_rows, batch.prompts, batch.sampled) == ([0, 3], [], None)
    siblings = (forked, forked.sibling(1), forked.sibling(2))
    chunk = Chunk(forked, 2, 4, siblings)
    batch = build_batch([decode, Chunk(part, 0, 2), chunk], BLOCK, {})
    assert batch.logit_rows == [0, 3, 4, 5, 6]
    assert batch.prompts == [(chunk, 1)]
    assert batch.sampled == [0, 4, 4, 4]
    assert build_batch([Chunk(part, 0, 2)], BLOCK, {}).sampled is None


def test_adapters_are_known_by_row_and_by_slot():
    adapters = [AdapterRef(n, n, n) for n in "xy"]
    owners = [adapters[1], None, adapters[0], adapters[1]]
    made = [sequence(str(i), 3, [i], adapter=owner) for i, owner in enumerate(owners)]
    chunks = [Chunk(s, 0, 1 + (i > 1)) for i, s in enumerate(made)]
    rows = build_batch(chunks, BLOCK, {"x": 5, "y": 2}).to(CPU).adapters
    assert rows is not None
    assert rows.slots.tolist() == [2, -1, 5, 5, 2, 2]
    assert {slot: found.tolist() for slot, found in rows.groups} == {2: [0, 4, 5], 5: [2, 3]}
    assert build_batch(chunks[1:2], BLOCK, {}).to(CPU).adapters is None


def test_tokens_in_flight_are_put_in_place():
    made = [sequence(str(i), 3, [i]) for i in range(3)]
    for one in made[::2]:
        one.in_flight = 1
    before = TokensInFlight(
        made[::-1], torch.tensor([7, 8, 9]), torch.ones(3, dtype=torch.bool), ()
    )
    chunks = [Chunk(one, one.length - 1, 1, (one,)) for one in made]
    inputs = build_batch(chunks, BLOCK, {}, before).to(CPU)
    assert inputs.token_ids.tolist() == [9, 102, 7]
    assert inputs.positions.tolist() == [3, 2, 3]


def test_forced_tokens_join_a_step_of_decoding_if_all_of_it_fits():
    plain = sequence("a", 5, [0, 1])
    forced = sequence("b", 2, [2, 3], grammar=GrammarRef("d", "t"))
    forced.tokens += [7, 8, 9]
    chunks = [Chunk(plain, 4, 1, (plain,)), Chunk(forced, 2, 3, (forced,))]
    together, apart = (build_batch(chunks, BLOCK, {}, None, most) for most in (4, 3))
    assert together.token_ids == apart.token_ids == [104, 7, 8, 9]
    assert together.logit_rows == apart.logit_rows == [0, 3]
    assert (together.starts, together.lengths) == ([0, 1, 2, 3, 4], [5, 3, 4, 5])
    assert (apart.starts, apart.lengths) == ([0, 1, 4], [5, 5])
    assert (together.decodes, apart.decodes) == (4, 1)
    assert together.tables == [[0, 1], [2, 3], [2, 3], [2, 3]]
    with_prefill = build_batch([*chunks, Chunk(sequence("c", 4, [4]), 0, 4)], BLOCK, {}, None, 99)
    assert with_prefill.decodes == 1
