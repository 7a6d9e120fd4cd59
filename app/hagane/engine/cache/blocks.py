"""The paged KV cache's book-keeping: which block holds what, and who uses it.

Memory is cut into blocks of `block_size` token slots; a sequence's block table maps position `p`
to slot `p % block_size` of block `blocks[p // block_size]` (PagedAttention, Kwon et al. 2023,
arXiv:2309.06180). A block is always in exactly one of three states:

    used    referenced by one block table or more
    cached  referenced by none, but full and findable by its content until the space is needed
    empty   referenced by none, content worthless

Only numbers live here; the tensors are the runner's.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain

from hagane.engine.schedule.sequence import Sequence
from hagane.system.errors import ConfigurationError

BlockCopy = tuple[int, int]
"""(source block, destination block)."""
Content = tuple[int, bytes]
"""(block, digest of what it holds or is to hold)."""


@dataclass(slots=True)
class Moves:
    """What the tiers below have to do with blocks before the next step writes to any.

    `evicted` blocks are given away and still hold what their digests say, `filled` ones became
    full, `restored` ones are to be filled with what their digests name.
    """

    evicted: list[Content] = field(default_factory=list)
    filled: list[Content] = field(default_factory=list)
    restored: list[Content] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.evicted or self.filled or self.restored)


class KVCache:
    """Blocks counted by reference, shared by content, evicted least recently used first.

    A full block is known by a chain of hashes: blake2b over its parent's digest and its own token
    ids, the salt and the adapter's content at the root. 256 bits, so equal digests mean equal
    salts, adapters and prefixes.

    Args:
        blocks: how many blocks there are.
        block_size: tokens per block.
        prefix_caching: whether blocks are shared by content at all.
        below: digests of the blocks that can be brought back at once from another memory; the
            moves that follow are left to `take_moves`. None: there is no other memory.

    Raises:
        ConfigurationError: a size below 1.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        prefix_caching: bool = True,
        below: Container[bytes] | None = None,
    ) -> None:
        for name, value in (("blocks", blocks), ("block_size", block_size)):
            if value < 1:
                raise ConfigurationError(
                    f"KV cache: {name} is {value}, must be at least 1; "
                    "give the cache more memory or choose a smaller block_size"
                )
        self.total = blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._below = below
        self.prefix_tokens_queried = 0
        self.prefix_tokens_hit = 0
        self.reset()

    def reset(self) -> None:
        """Forget all contents and holders: every block is empty again."""
        self._references = [0] * self.total
        self._digests: list[bytes | None] = [None] * self.total
        self._by_digest: dict[bytes, int] = {}
        self._empty = list(range(self.total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._moves = Moves()

    @property
    def free(self) -> int:
        """Blocks that can be handed out now: the empty and the cached ones."""
        return len(self._empty) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks referenced by a block table."""
        return self.total - self.free

    @property
    def cached(self) -> int:
        """Blocks referenced by none whose content can still be found."""
        return len(self._cached)

    def __contains__(self, digest: object) -> bool:
        return digest in self._by_digest

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def references(self, block: int) -> int:
        """How many block tables `block` is in."""
        return self._references[block]

    def admit(self, sequence: Sequence, spare: int = 0) -> bool:
        """Give a waiting sequence its cached prefix, and blocks for all its other tokens.

        Returns False, and changes nothing, unless `spare` blocks stay free after that. Sets
        `blocks` and `computed`; at least one token is always left to compute.
        """
        prefix = self._lookup(sequence)
        restored = self._lookup_below(sequence, len(prefix))
        missing = self.blocks_for(sequence.length) - len(prefix)
        revived = sum(self._references[block] == 0 for block in prefix)
        if missing + revived + spare > self.free:
            return False
        for block in prefix:
            self._share(block)
        sequence.blocks = prefix + [self._allocate() for _ in range(missing)]
        self._moves.restored += zip(sequence.blocks[len(prefix) :], restored, strict=False)
        sequence.computed = (len(prefix) + len(restored)) * self.block_size
        # The restored ones are findable once the step that brings them back is done.
        sequence.registered = len(prefix)
        self._count(sequence)
        return True

    def extend(self, sequence: Sequence, ahead: int = 0) -> tuple[BlockCopy, ...] | None:
        """Make room for all tokens of a running sequence, in blocks it alone writes to.

        `ahead` more tokens than there are have room, too.

        If its next token falls into a block it shares, it gets a block of its own instead
        (copy-on-write), and the copy to do before anything is written is returned. Returns None,
        and changes nothing, if there are not enough free blocks.
        """
        missing = max(self.blocks_for(sequence.length + ahead) - len(sequence.blocks), 0)
        tail, filled = divmod(sequence.computed, self.block_size)
        shared = filled > 0 and self._references[sequence.blocks[tail]] > 1
        # Most often the last block has room.
        if not missing and not shared:
            return ()
        if missing + shared > self.free:
            return None
        sequence.blocks += [self._allocate() for _ in range(missing)]
        if not shared:
            return ()
        source, destination = sequence.blocks[tail], self._allocate()
        sequence.blocks[tail] = destination
        self._references[source] -= 1
        return ((source, destination),)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, which has no blocks, share all that `parent` has computed."""
        child.blocks = parent.blocks[: self.blocks_for(parent.computed)]
        child.computed = parent.computed
        child.registered = parent.registered
        for block in child.blocks:
            self._share(block)

    def register(self, sequence: Sequence) -> None:
        """Make the blocks that became full of computed and known tokens findable by their content.

        Where another block of equal content is findable already, that one stays the known one.
        """
        if not self.prefix_caching:
            return
        known = min(sequence.computed, len(sequence.tokens))
        for position in range(sequence.registered, known // self.block_size):
            digest, block = self._digest(sequence, position), sequence.blocks[position]
            if digest not in self._by_digest:
                self._by_digest[digest] = block
                self._digests[block] = digest
                if self._below is not None:
                    self._moves.filled.append((block, digest))
            sequence.registered = position + 1

    def release(self, sequence: Sequence) -> None:
        """Take all blocks from a sequence; those nobody else uses become cached or empty.

        The tail goes first, so that it is evicted before the head it cannot be found without.
        """
        for block in reversed(sequence.blocks):
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._digests[block] is None:
                self._empty.append(block)
            else:
                self._cached[block] = None
        sequence.blocks = []
        sequence.computed = 0
        sequence.registered = 0

    def cached_tokens(self, sequence: Sequence) -> int:
        """The leading tokens of a waiting sequence that are in the pool."""
        return len(self._lookup(sequence)) * self.block_size

    def digests(self, sequence: Sequence) -> list[bytes]:
        """Of all full blocks of a sequence that leave a token to compute."""
        count = (sequence.length - 1) // self.block_size
        extend_digests(sequence, count, self.block_size)
        return sequence.digests[:count]

    def take_moves(self) -> Moves:
        """The moves since the last call, to be done before a step writes to blocks."""
        taken, self._moves = self._moves, Moves()
        return taken

    def check(self, sequences: Iterable[Sequence] = ()) -> None:
        """Verify that every block is where it should be, `sequences` being all that hold any.

        Raises:
            RuntimeError: the book-keeping is wrong; the message names the block.
        """
        holders = list(sequences)
        counts = Counter(block for sequence in holders for block in sequence.blocks)
        places = Counter(chain(self._empty, self._cached))
        for block, references in enumerate(self._references):
            digest = self._digests[block]
            faults = {
                "reference count differs from the block tables": references != counts[block],
                "neither used nor free, or both": places[block] != (references == 0),
                "cached without content": block in self._cached and digest is None,
                "empty with content": digest is not None
                and not (references or block in self._cached),
                "content leads elsewhere": digest is not None
                and self._by_digest.get(digest) != block,
            }
            _raise_first(f"block {block}", faults)
        known = sum(digest is not None for digest in self._digests)
        _raise_first("content index", {"entries without block": known != len(self._by_digest)})
        for sequence in holders:
            writable = sequence.blocks[sequence.computed // self.block_size :]
            findable = any(self._digests[block] is not None for block in writable)
            _raise_first(f"request {sequence.request_id}", {"may write a cached block": findable})

    def _lookup(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest cached prefix that leaves a token to compute."""
        if not self._searches(sequence):
            return []
        prefix: list[int] = []
        for position in range((sequence.length - 1) // self.block_size):
            block = self._by_digest.get(self._digest(sequence, position))
            if block is None:
                break
            prefix.append(block)
        return prefix

    def _lookup_below(self, sequence: Sequence, found: int) -> list[bytes]:
        """Digests of the blocks that follow on the first `found` and can be brought back."""
        if self._below is None or not self._searches(sequence):
            return []
        digests: list[bytes] = []
        for position in range(found, (sequence.length - 1) // self.block_size):
            digest = self._digest(sequence, position)
            if digest not in self._below:
                break
            digests.append(digest)
        return digests

    def _searches(self, sequence: Sequence) -> bool:
        return self.prefix_caching and not sequence.needs_whole_prompt

    def _count(self, sequence: Sequence) -> None:
        # A sequence that comes back from preemption finds its own blocks: no hit to boast of.
        if sequence.first_scheduled is None and self._searches(sequence):
            self.prefix_tokens_queried += sequence.length
            self.prefix_tokens_hit += sequence.computed

    def _digest(self, sequence: Sequence, position: int) -> bytes:
        """The content hash of the sequence's full block at `position` of its table."""
        extend_digests(sequence, position + 1, self.block_size)
        return sequence.digests[position]

    def _allocate(self) -> int:
        """An unused block, its content forgotten: an empty one, else the oldest cached one."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            digest = self._digests[block]
            if digest is not None:
                del self._by_digest[digest]
                if self._below is not None:
                    self._moves.evicted.append((block, digest))
            self._digests[block] = None
        self._references[block] = 1
        return block

    def _share(self, block: int) -> None:
        if self._references[block] == 0:
            del self._cached[block]
        self._references[block] += 1


def extend_digests(sequence: Sequence, count: int, block_size: int) -> None:
    """Have the content hashes of at least the first `count` full blocks in `sequence.digests`."""
    digests = sequence.digests
    while len(digests) < count:
        start = len(digests) * block_size
        tokens = array("q", sequence.tokens[start : start + block_size])
        parent = digests[-1] if digests else _root(sequence)
        digests.append(_hash(b"block", parent + tokens.tobytes()))


def _root(sequence: Sequence) -> bytes:
    """The start of a chain: the salt, and what keys and values depend on besides the tokens."""
    salt = _hash(b"salt", sequence.cache_salt.encode())
    return _hash(b"adapter", salt + sequence.adapter.encode())


def _hash(kind: bytes, content: bytes) -> bytes:
    # Kinds keep a salt that looks like a block's bytes from having that block's digest.
    return blake2b(content, digest_size=32, person=kind).digest()


def _raise_first(subject: str, faults: dict[str, bool]) -> None:
    for fault, present in faults.items():
        if present:
            raise RuntimeError(f"KV cache corrupt: {subject}: {fault}")
