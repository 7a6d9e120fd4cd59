"""`PrefixPolicy` behind Ray Serve's interface for request routers.

An edge asks for a replica with a `Placing` and sends the request there by itself, so that the load
of a replica is what the edge has in flight there, not what Serve knows of. It reserves no slot, so
that Serve takes what `choose_replicas` gives first: such requests do not wait in the queue that
`FIFOMixin` hands replicas out in, where one could get what was chosen for another. Serve's own
calls do, to which any replica will do. Serve's default hands out by an id that all calls of one
HTTP request have in common, of which all but one would then wait for ever.

Serve copies the classes of this module: nobody else's instances are theirs.
"""

from __future__ import annotations

import random

import msgspec
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from hagane.cluster.routing import Placing, PrefixPolicy
from hagane.cluster.version import ModelVersion, fitting


class PrefixRouter(FIFOMixin, RequestRouter):
    """Routes by the keyword argument `placing`; calls without one go to any replica."""

    def initialize_state(self, routing: str = "prefix") -> None:
        """`routing` is `prefix` or `random`."""
        self._random = routing == "random"
        self._policy = PrefixPolicy()
        self._versions: dict[str, ModelVersion] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One replica a rank, the best first."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        placing = pending_request and pending_request.kwargs.get("placing")
        if not isinstance(placing, Placing):
            return [random.sample(candidate_replicas, len(candidate_replicas))]
        if by_name.keys() != self._versions.keys():
            self._versions = {
                name: msgspec.convert(replica.replica_metadata["model"], ModelVersion)
                for name, replica in by_name.items()
            }
        placing.fitting = fitting(placing.model, self._versions)
        usable = placing.fitting or list(by_name)
        names = self._rank(placing, [name for name in usable if name not in placing.shut] or usable)
        return [[by_name[name]] for name in names]

    def _rank(self, placing: Placing, names: list[str]) -> list[str]:
        if self._random:
            return random.sample(names, len(names))
        ranked = self._policy.rank(placing.hint, {n: placing.loads.get(n, 0) for n in names})
        self._policy.note(placing.hint, ranked[0])
        return list(ranked)
