"""Finds personal data in texts by rules: what looks like an address, a number, an account.

Rules find forms, not meanings: names and stories pass. Numbers of cards and accounts differ from
others by their check digits (ISO/IEC 7812, ISO 13616).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Literal

Kind = Literal["email", "phone", "card", "iban", "ip_address"]
Treatment = Literal["mask", "drop", "keep"]


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "")
    moved = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _is_phone(text: str) -> bool:
    digits = sum(c.isdigit() for c in text)
    # Years, prices and versions have fewer digits, or neither a plus nor separators.
    return 9 <= digits <= 15 and (text[0] in "+(0" or len(re.split(r"[ .-]", text)) > 2)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _always(_: str) -> bool:
    return True


_IBAN = r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"
# In this order: what one rule has masked no later one sees.
_RULES: Mapping[Kind, tuple[re.Pattern[str], Callable[[str], bool]]] = MappingProxyType(
    {
        "email": (
            re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", re.ASCII),
            _always,
        ),
        "iban": (
            re.compile(_IBAN, re.ASCII),
            _is_iban,
        ),
        "ip_address": (re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])", re.ASCII), _is_ip),
        "card": (re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)", re.ASCII), _is_card),
        "phone": (
            re.compile(r"(?<![\w+])[+(]?\d(?:[ .()-]{0,2}\d){8,14}(?!\w)", re.ASCII),
            _is_phone,
        ),
    }
)


def find_personal(text: str) -> Counter[Kind]:
    """How often each kind occurs in `text`."""
    return _walk(text)[1]


def mask_personal(text: str, kinds: frozenset[Kind]) -> tuple[str, Counter[Kind]]:
    """`text` with [EMAIL] and the like in place of what is of `kinds`, and how much that was."""
    return _walk(text, kinds)


def _walk(text: str, kinds: frozenset[Kind] = frozenset(_RULES)) -> tuple[str, Counter[Kind]]:
    found: Counter[Kind] = Counter()
    for kind, (pattern, checks) in _RULES.items():
        if kind not in kinds:
            continue

        def replace(
            match: re.Match[str], kind: Kind = kind, checks: Callable[[str], bool] = checks
        ) -> str:
            if not checks(match[0]):
                return match[0]
            found[kind] += 1
            return f"[{kind.upper()}]"

        text = pattern.sub(replace, text)
    return text, found
