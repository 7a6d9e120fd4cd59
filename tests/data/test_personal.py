"""Rules for personal data, on what they shall find and on what only looks like it."""

from __future__ import annotations

import time

import pytest
from hagane.data.personal import find_personal, mask_personal

ALL = frozenset({"email", "phone", "card", "iban", "ip_address"})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ann.lee+x@mail.example.org!", "Write to [EMAIL]!"),
        ("連絡先はtaro@example.jpです", "連絡先は[EMAIL]です"),
        ("Call +49 170 1234567 now", "Call [PHONE] now"),
        ("(030) 1234-5678 is mine", "[PHONE] is mine"),
        ("電話は090-1234-5678。", "電話は[PHONE]。"),
        ("card 4111 1111 1111 1111, please", "card [CARD], please"),
        ("DE89 3704 0044 0532 0130 00 is the account", "[IBAN] is the account"),
        ("host 192.168.0.1 is down", "host [IP_ADDRESS] is down"),
    ],
)
def test_what_is_found(text, masked):
    assert mask_personal(text, ALL)[0] == masked
    assert find_personal(text)


@pytest.mark.parametrize(
    "text",
    [
        "In 1984 it cost 1234567 yen.",
        "Version 1.2.3.456 of 2026-11-27",
        "4111 1111 1111 1112 has a wrong check digit",
        "DE89 3704 0044 0532 0130 01 is no account",
        "@ home, a@b, 10 + 20 = 30",
        "",
    ],
)
def test_what_is_left_alone(text):
    assert mask_personal(text, ALL - {"phone"})[0] == text


def test_kinds_that_are_not_masked_stay():
    text = "a@example.org, 192.168.0.1"
    masked, found = mask_personal(text, frozenset({"email"}))
    assert masked == "[EMAIL], 192.168.0.1"
    assert found == {"email": 1}


@pytest.mark.parametrize("text", ["1" * 200_000, "a." * 100_000, "+1 " * 70_000, "AB12 " * 40_000])
def test_hostile_texts_take_linear_time(text):
    started = time.process_time()
    mask_personal(text, ALL)
    assert time.process_time() - started < 2
