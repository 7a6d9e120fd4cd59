"""A discrete-event model of a cluster: N replicas, the product's own router, and a trace.

    python benchmarks/simulate.py TRACE [--replicas 1,10,100] [--rate 0.2] [--routing prefix,random]
    python benchmarks/simulate.py documents      (the workload of benchmarks/cluster.py routing)

TRACE is a file of Azure's LLM inference traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) or
of Mooncake's (JSON lines: timestamp in ms, input_length, output_length, hash_ids of 512 tokens
each). Arrivals are sped up so that each replica gets RATE requests a second; where a trace is too
short for the replicas, it is repeated for other tenants, who share no prefix.

A replica computes one step after the other, as Hagane's engine does. A step costs STEP ms, ROW ms
for each sequence that generates, and its prompt tokens at PREFILL tokens a second; prompts are
computed in the order of arrival, BUDGET tokens a step, while others generate. Its KV cache holds
KV tokens: those of running requests, and what is left of earlier ones, the least recently used
goes first, and of one prompt the end. A request needs PATH ms more until its first token, for all
that lies between client and engine. The router knows its own requests alone, as each edge does;
routing itself takes no time here, and is timed apart. Replicas never fail.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import random
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path

from cluster import ANSWER_TOKENS, DOCUMENT_TOKENS, questions
from hagane.cluster.routing import PrefixPolicy, RoutingHint

# Of Mooncake's trace, and of the documents of `benchmarks/cluster.py`.
TRACE_BLOCK, DOCUMENT_BLOCK = 512, 32
# Requests of one replica that a figure rests on; those of the beginning, with empty caches, go.
REQUESTS_PER_REPLICA, WARM_UP = 120, 0.25
MOST_REQUESTS = 60_000


@dataclass(frozen=True)
class Machine:
    """What one replica does: milliseconds, tokens a second, tokens, also those of a block."""

    step: float
    row: float
    prefill: float
    budget: int
    kv: int
    sequences: int
    block: int


@dataclass(eq=False)
class Request:
    """One request. `blocks` name its prompt's beginning, in blocks of the machine's size."""

    arrival: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()
    left_to_read: int = 0
    left_to_write: int = 0
    hit: int = 0
    first: float = 0.0
    last: float = 0.0


@dataclass(eq=False)
class Replica:
    """A replica: `clock` is the end of what it has computed."""

    machine: Machine
    clock: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    reading: deque[Request] = field(default_factory=deque)
    writing: list[Request] = field(default_factory=list)
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)
    used: int = 0

    def admit(self) -> None:
        """Begin what has room, in the order of arrival."""
        while self.waiting and len(self.reading) + len(self.writing) < self.machine.sequences:
            request = self.waiting[0]
            if self.used and self.used + request.prompt + request.output > self.machine.kv:
                return
            self.waiting.popleft()
            self.used += request.prompt + request.output
            known = 0
            for block in request.blocks:
                if block not in self.cached:
                    break
                known += 1
            # The last token is always computed.
            request.hit = min(known * self.machine.block, request.prompt - 1)
            request.left_to_read = request.prompt - request.hit
            request.left_to_write = request.output
            self.reading.append(request)
            self._keep(request.blocks[:known])

    def _keep(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self.cached[block] = None
            self.cached.move_to_end(block)
        room = max(0, self.machine.kv - self.used) // self.machine.block
        # Blocks of running requests are counted in `used`, and stay.
        kept = room + sum(len(r.blocks) for r in (*self.reading, *self.writing))
        while len(self.cached) > kept:
            self.cached.popitem(last=False)

    def advance(self, until: float) -> list[Request]:
        """Compute whole steps up to `until` or to the next end of a request; returns those."""
        self.admit()
        if not (self.reading or self.writing):
            self.clock = max(self.clock, until)
            return []
        machine, rows = self.machine, len(self.writing)
        per_step = machine.step + rows * machine.row
        if self.reading:
            request = self.reading[0]
            chunk = min(machine.budget, request.left_to_read)
            duration = (per_step + chunk / machine.prefill * 1000) / 1000
            steps = max(1, request.left_to_read // machine.budget)
            steps = self._bounded(steps, duration, until)
            self.clock += steps * duration
            request.left_to_read -= steps * chunk
            if request.left_to_read <= 0:
                self._read(self.reading.popleft())
        else:
            duration = per_step / 1000
            steps = self._bounded(self.writing[0].left_to_write, duration, until)
            self.clock += steps * duration
        return self._written(steps, rows)

    def _bounded(self, steps: int, duration: float, until: float) -> int:
        """So many steps at most, up to the first end of a sequence or the first after `until`."""
        for request in self.writing:
            steps = min(steps, request.left_to_write)
        return max(1, min(steps, int((until - self.clock) / duration) + 1))

    def _read(self, request: Request) -> None:
        request.first = self.clock
        request.left_to_write -= 1
        self.writing.append(request)
        self._keep(request.blocks)

    def _written(self, steps: int, rows: int) -> list[Request]:
        for request in self.writing[:rows]:
            request.left_to_write -= steps
        done = [request for request in self.writing if request.left_to_write <= 0]
        if done:
            self.writing = [request for request in self.writing if request.left_to_write > 0]
            for request in done:
                request.last = self.clock
                self.used -= request.prompt + request.output
        return done


def simulate(
    arrivals: Iterator[Request],
    machine: Machine,
    replicas: int,
    routing: str,
    clients: int,
    path: float,
) -> tuple[list[Request], float]:
    """All requests when they are done, and the mean microseconds of a routing decision.

    With `clients` each of them sends its next request when the last is done; arrivals are theirs
    then. A request is at its replica `path` seconds later.
    """
    names = [f"r{number}" for number in range(replicas)]
    nodes = dict(zip(names, (Replica(machine) for _ in names), strict=True))
    loads = dict.fromkeys(names, 0)
    policy, done, spent, decisions = PrefixPolicy(), [], 0.0, 0
    order = count()
    # (moment, tie, replica or None for an arrival, request)
    events: list[tuple[float, int, str | None, Request | None]] = []
    busy: set[str] = set()

    def arrive(moment: float) -> None:
        if (request := next(arrivals, None)) is not None:
            request.arrival = moment if clients else request.arrival
            heapq.heappush(events, (request.arrival + path, next(order), None, request))

    for _ in range(clients or 1):
        arrive(0.0)
    while events:
        now, _, name, request = heapq.heappop(events)
        if name is None and request is not None:
            began = time.perf_counter()
            hint = RoutingHint(request.blocks)
            if routing == "random":
                name = random.choice(names)
            else:
                name = policy.rank(hint, loads)[0]
                policy.note(hint, name)
            spent, decisions = spent + time.perf_counter() - began, decisions + 1
            loads[name] += 1
            nodes[name].waiting.append(request)
            if not clients:
                arrive(now)
            if name in busy:
                continue
            nodes[name].clock = max(nodes[name].clock, now)
            busy.add(name)
        assert name is not None
        # Steps that an arrival would interrupt are cut at the next event of any kind.
        until = events[0][0] if events else float("inf")
        for ended in nodes[name].advance(min(until, now + 1.0)):
            loads[name] -= 1
            done.append(ended)
            if clients:
                arrive(ended.last)
        node = nodes[name]
        if node.waiting or node.reading or node.writing:
            heapq.heappush(events, (node.clock, next(order), name, None))
        else:
            busy.discard(name)
    return done, spent / max(1, decisions) * 1e6


def read_trace(path: Path) -> list[Request]:
    """The requests of a trace, in the order of arrival, seconds from the first."""
    requests = []
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                moment = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                requests.append(Request(moment, max(1, prompt), max(1, output)))
    else:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            blocks = tuple(row["hash_ids"])
            prompt, output = max(1, row["input_length"]), max(1, row["output_length"])
            whole = blocks[: prompt // TRACE_BLOCK]
            requests.append(Request(row["timestamp"] / 1000, prompt, output, whole))
    requests.sort(key=lambda request: request.arrival)
    start = requests[0].arrival
    for request in requests:
        request.arrival -= start
    return requests


def replayed(trace: Sequence[Request], rate: float, wanted: int, most: int) -> Iterator[Request]:
    """`wanted` requests at `rate` a second: of as many tenants at a time as that takes.

    Requests longer than `most` tokens are left out: no replica could hold them.
    """
    fitting = [r for r in trace if r.prompt + r.output <= most]
    tenants = max(1, -(-wanted // len(fitting)))
    offset = 1 + max((block for r in fitting for block in r.blocks), default=0)
    own_rate = len(fitting) / max(fitting[-1].arrival, 1e-9)
    speed = rate / (own_rate * tenants)
    merged = sorted(
        (r.arrival / speed, tenant, index)
        for tenant in range(tenants)
        for index, r in enumerate(fitting)
    )
    for moment, tenant, index in merged[:wanted]:
        r = fitting[index]
        blocks = tuple(block + tenant * offset for block in r.blocks)
        yield Request(moment, r.prompt, r.output, blocks)


def documents() -> list[Request]:
    """The questions about documents of `benchmarks/cluster.py routing`."""
    blocks = DOCUMENT_TOKENS // DOCUMENT_BLOCK
    return [
        # The question's own block comes back in no other request.
        Request(0.0, len(prompt), ANSWER_TOKENS,
                (*range(blocks * document, blocks * (document + 1)), -number))
        for number, (document, prompt) in enumerate(questions(), 1)
    ]  # fmt: skip


def report(done: list[Request], slo_first: float, slo_token: float) -> str:
    """One row: hit rate, first token, time per token, the share within both bounds."""
    done.sort(key=lambda request: request.arrival)
    late = done[int(len(done) * WARM_UP) :]
    first = [r.first - r.arrival for r in late]
    gaps = [(r.last - r.first) / max(1, r.output - 1) for r in late]
    hit = sum(r.hit for r in late) / sum(r.prompt for r in late)
    good = sum(f <= slo_first and g <= slo_token for f, g in zip(first, gaps, strict=True))
    cuts = statistics.quantiles(first, n=20)
    tokens = statistics.median(gaps) * 1000
    return (
        f"{hit:.0%} | {cuts[9] * 1000:.0f} | {cuts[18] * 1000:.0f} | {tokens:.0f} | "
        f"{good / len(late):.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trace", help="a file, or 'documents'")
    parser.add_argument("--replicas", default="1,10,100")
    parser.add_argument("--routing", default="prefix,random")
    parser.add_argument("--rate", type=float, default=0.2, help="requests a second and replica")
    parser.add_argument("--step", type=float, default=18.1, help="ms")
    parser.add_argument("--row", type=float, default=1.06, help="ms")
    parser.add_argument("--prefill", type=float, default=748.0, help="tokens a second")
    parser.add_argument("--budget", type=int, default=256, help="prompt tokens of a step")
    parser.add_argument("--kv", type=int, default=65_536, help="tokens")
    parser.add_argument("--path", type=float, default=0.0, help="ms")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--slo-first", type=float, default=5.0, help="seconds to the first token")
    parser.add_argument("--slo-token", type=float, default=0.1, help="seconds a token after it")
    parser.add_argument("--clients", type=int, default=4, help="of 'documents'")
    options = parser.parse_args()
    closed = options.trace == "documents"
    machine = Machine(options.step, options.row, options.prefill, options.budget, options.kv,
                      options.sequences, DOCUMENT_BLOCK if closed else TRACE_BLOCK)  # fmt: skip
    trace = [] if closed else read_trace(Path(options.trace))
    print("| replicas | routing | from the cache | first token, ms: median | 95th | ms a token "
          "| within the bounds | routing, us |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for replicas in map(int, options.replicas.split(",")):
        wanted = min(replicas * REQUESTS_PER_REPLICA, MOST_REQUESTS)
        for routing in options.routing.split(","):
            random.seed(0)
            arrivals = (
                iter(documents())
                if closed
                else replayed(trace, options.rate * replicas, wanted, options.kv)
            )
            done, spent = simulate(
                arrivals, machine, replicas, routing,
                options.clients if closed else 0, options.path / 1000,
            )  # fmt: skip
            figures = report(done, options.slo_first, options.slo_token)
            print(f"| {replicas} | {routing} | {figures} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
