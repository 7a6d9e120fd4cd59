"""`PrefixPolicy` behind Ray Serve's interface for request routers."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from hagane.cluster.routing import PrefixPolicy, RoutingHint


class PrefixRouter(FIFOMixin, RequestRouter):
    """Routes by the keyword argument `hint` of a request; those without one go where there is
    least to do."""

    def initialize_state(self, routing: str = "prefix") -> None:
        """`routing` is `prefix` or `random`."""
        self._random = routing == "random"
        self._policy = PrefixPolicy()
        self._loads: dict[str, int] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One replica a rank, the best first."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if self._random:
            names = list(by_name)
            random.shuffle(names)
        else:
            loads = {name: self._loads.get(name, 0) for name in by_name}
            names = list(self._policy.rank(_hint(pending_request), loads))
        return [[by_name[name]] for name in names]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: Any, result: Any
    ) -> None:
        """Count the request, and remember what the replica has in its cache now."""
        name = replica_id.unique_id
        self._loads[name] = self._loads.get(name, 0) + 1
        if not self._random:
            self._policy.note(_hint(pending_request), name)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """Count it no longer."""
        name = replica_id.unique_id
        self._loads[name] = max(0, self._loads.get(name, 0) - 1)

    def on_replica_actor_died(self, replica_id: Any) -> None:
        """Forget what a replica that is gone had to do."""
        super().on_replica_actor_died(replica_id)
        self._loads.pop(replica_id.unique_id, None)


def _hint(pending: PendingRequest | None) -> RoutingHint:
    hint = None if pending is None else pending.kwargs.get("hint")
    return hint if isinstance(hint, RoutingHint) else RoutingHint()
