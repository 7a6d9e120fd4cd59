"""The text of PDFs, read in a confined process."""

from __future__ import annotations

import asyncio

import pytest
from hagane.data.pdf import MOST_WAITING, PdfReader, pdf_text
from hagane.system.errors import InvalidRequestError, QueueFullError


def make_pdf(*texts: str) -> bytes:
    """A PDF with a line of text on each page."""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(texts)))
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = ["<< /Type /Catalog /Pages 2 0 R >>",
               f"<< /Type /Pages /Kids [{kids}] /Count {len(texts)} >>", font]  # fmt: skip
    for index, text in enumerate(texts):
        stream = f"BT /F1 24 Tf 72 700 Td ({text}) Tj ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * index} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    made, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    tail = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(made)}\n%%EOF"
    return made + head.encode() + tail.encode()


def test_pages_follow_each_other():
    pytest.importorskip("pypdf")
    found = pdf_text(make_pdf("Hello world", "", "Second page"))
    assert (found.text, found.pages, found.of) == ("Hello world\n\nSecond page", 3, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"no PDF at all", "cannot be read"),
        (make_pdf("a")[:200], "cannot be read"),
        (make_pdf("", ""), "has no text"),
    ],
)
def test_what_cannot_be_read_says_why(content, reason):
    pytest.importorskip("pypdf")
    with pytest.raises(InvalidRequestError, match=reason):
        pdf_text(content)


def test_passwords_are_not_guessed(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter()
    writer.add_blank_page(72, 72)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(InvalidRequestError, match="protected by a password"):
        pdf_text((tmp_path / "locked.pdf").read_bytes())


async def test_a_bounded_number_waits_for_one_that_is_read():
    reader = PdfReader()
    reading = [reader.read(b"no PDF at all") for _ in range(MOST_WAITING + 3)]
    ends = await asyncio.gather(*reading, return_exceptions=True)
    # Read or not, with the library or without it: their turn came.
    assert {type(end) for end in ends[: MOST_WAITING + 1]} == {InvalidRequestError}
    assert {type(end) for end in ends[MOST_WAITING + 1 :]} == {QueueFullError}
    with pytest.raises(InvalidRequestError):
        await reader.read(b"no PDF at all")
