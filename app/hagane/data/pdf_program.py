"""The program that reads PDFs of strangers, in the sandbox: the library and what it opens later are
imported here, since a confined process opens no file any more."""

from __future__ import annotations

import base64
import codecs
import contextlib
import importlib
import io
import pkgutil
from typing import Any

import pypdf

# What the library would import when it meets something.
for _module in pkgutil.walk_packages(pypdf.__path__, "pypdf."):
    with contextlib.suppress(ImportError):
        importlib.import_module(_module.name)
# Encodings of texts in PDFs, those of Japanese, Chinese and Korean among them.
for _name in (
    "ascii", "latin-1", "cp1252", "mac_roman", "utf-8", "utf-16", "utf-16-be", "utf-16-le",
    "shift_jis", "cp932", "euc_jp", "iso2022_jp", "gbk", "gb18030", "big5", "euc_kr", "cp949",
    "charmap", "unicode_escape", "symbol", "zapfdingbats",
):  # fmt: skip
    with contextlib.suppress(LookupError):
        codecs.lookup(_name)


def text_of(encoded: str, most_pages: int, most_characters: int) -> dict[str, Any]:
    """The text of a PDF given in Base64, by page, until either bound is reached.

    Raises ValueError for one that needs a password; whatever the library raises for others.
    """
    reader = pypdf.PdfReader(io.BytesIO(base64.b64decode(encoded)))
    if reader.is_encrypted and not reader.decrypt(""):
        raise ValueError("it is protected by a password")
    pages, length = [], 0
    for page in reader.pages[:most_pages]:
        text = page.extract_text().strip()
        pages.append(text[: most_characters - length])
        length += len(pages[-1])
        if length >= most_characters:
            break
    # Half of a pair is no text that can be sent on.
    joined = "\n\n".join(filter(None, pages)).encode("utf-8", "replace").decode()
    return {"text": joined, "pages": len(pages), "of": len(reader.pages)}
