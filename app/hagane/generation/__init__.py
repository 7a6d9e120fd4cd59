"""From a conversation to events of text, and nothing about HTTP or tensors.

conversation, parameters -> request -> engine -> tokens -> text -> parsers -> events
"""
