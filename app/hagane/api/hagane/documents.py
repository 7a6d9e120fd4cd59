"""POST /v1/documents/text: the text of a PDF, for the chat page to send with a message."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from hagane.api.access import guarded_router
from hagane.api.limits import Account
from hagane.api.serving import get_serving, meter
from hagane.system.errors import InvalidRequestError

router = guarded_router()


@router.post("/v1/documents/text")
async def document_text(request: Request, _: Annotated[Account, Depends(meter)]) -> dict[str, Any]:
    """The text of the PDF that the body is; nothing of it is kept.

    Raises InvalidRequestError, or QueueFullError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/pdf":
        raise InvalidRequestError(
            f"Send a PDF with Content-Type application/pdf, not {kind[:80]!r}.",
            code="invalid_content_type",
        )
    found = await get_serving(request).pdfs.read(await request.body())
    return {"object": "document.text", "text": found.text, "pages": found.pages, "of": found.of}
