"""Every reader sees one line."""

from __future__ import annotations

import json

from hagane.system.json_lines import encode_line


def test_no_character_breaks_the_line():
    text = "".join(map(chr, range(0x2100)))
    line = encode_line({"text": text}).decode()
    assert line.splitlines() == [line]
    assert json.loads(line) == {"text": text}
