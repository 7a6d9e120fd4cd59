"""Numbers at their extremes in every numeric field: refused by name or answered, never a 500."""

from __future__ import annotations

import httpx
import pytest

NUMBERS = (
    "2147483648", "9007199254740992", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "1e308", "1e999", "-1e308", "-0.0", "5e-324", "NaN", "Infinity",
    "-9223372036854775809", "1" + "0" * 400,
)  # fmt: skip
FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "n", "seed", "max_tokens", "min_tokens", "logprobs",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "priority", "timeout", "best_of",
)  # fmt: skip
LISTS = ('"logit_bias": {"7": %s}', '"logit_bias": {"%s": 1}', '"stop_token_ids": [%s]')


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_extreme_numbers_end_nothing(server, temperature):
    templates = [*(f'"{field}": %s' for field in FIELDS), *LISTS]
    answered = 0
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        for template in templates:
            for number in NUMBERS:
                field = template % number
                body = '"model": "tiny", "prompt": "a"'
                for name, value in (("max_tokens", "2"), ("temperature", temperature)):
                    body += "" if f'"{name}"' in field else f', "{name}": {value}'
                content = f"{{{body}, {field}}}"
                response = client.post("/v1/completions", content=content)
                answered += response.status_code == 200
                late = response.status_code == 504 and field.startswith('"timeout"')
                assert late or response.status_code in (200, 400), (field, response.text)
                if response.status_code == 400:
                    assert response.json()["error"]["type"] == "invalid_request_error"
    assert answered > 10, "extremes within bounds are answered"
    assert server.metric("hagane_engine_restarts_total") == 0
