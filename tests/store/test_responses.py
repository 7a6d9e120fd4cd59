"""What the bound of stored responses and conversations counts, and whose items are found."""

from __future__ import annotations

import json

import pytest
from hagane.store.responses import Retention, StoredConversation, StoredItem
from hagane.store.store import Store
from hagane.system.errors import NotFoundError

METADATA = {f"name{number}": "x" * 500 for number in range(16)}


def conversation(number: int, owner: str = "ours") -> StoredConversation:
    return StoredConversation(f"conv_{number}", owner, number, METADATA)


def test_conversations_without_items_are_bounded_too(address):
    store = Store.open(address, Retention(most_bytes=20 * len(json.dumps(METADATA))))
    for number in range(60):
        store.responses.create_conversation(conversation(number), ())
    kept = 0
    for number in range(60):
        try:
            store.responses.conversation(f"conv_{number}", "ours")
            kept += 1
        except NotFoundError:
            assert not kept, "the oldest go first"
    assert 10 <= kept <= 21
    store.close()


def test_items_of_conversations_can_be_referred_to_by_their_owner(address):
    store = Store.open(address, Retention(seconds=60))
    store.responses.create_conversation(conversation(1), [StoredItem("msg_1", "{}")])
    assert store.responses.item("msg_1", "ours") == "{}"
    with pytest.raises(NotFoundError, match="msg_1"):
        store.responses.item("msg_1", "theirs")
    store.close()


def test_items_of_what_has_expired_are_gone(address):
    store = Store.open(address, Retention(seconds=-1))
    store.responses.create_conversation(conversation(1), [StoredItem("msg_1", "{}")])
    with pytest.raises(NotFoundError, match="msg_1"):
        store.responses.item("msg_1", "ours")
    store.close()
