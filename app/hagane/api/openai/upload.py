"""multipart/form-data with one file, written to disk as it arrives."""

from __future__ import annotations

import asyncio
import codecs
import re
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from hagane.api.owners import FileAllowance, require_purpose
from hagane.store.files import Files, StoredFile, Upload
from hagane.system.errors import InvalidRequestError, TooLargeError

# Written at a time: few hand-overs to the writing thread, little memory for each upload.
_PIECE_BYTES = 256 << 10
_MOST_FIELD_BYTES = 1024
# Of a body, what may surround the file: boundaries, headers, the purpose.
_MOST_FRAME_BYTES = 64 << 10
# OpenAI's bounds, seconds.
_LEAST_KEPT, _MOST_KEPT = 3600, 2_592_000
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("purpose", _ANCHOR, _SECONDS)
_PURPOSES = ("fine-tune", "batch", "evals")
_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
# The form in OpenAPI's words: FastAPI would read it into memory, so it does not know of it.
FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": list(_PURPOSES)},
                    _ANCHOR: {"type": "string", "enum": ["created_at"]},
                    _SECONDS: {"type": "integer", "minimum": _LEAST_KEPT, "maximum": _MOST_KEPT},
                },
                "additionalProperties": False,
            }
        }
    },
}


async def receive(
    request: Request, files: Files, room: FileAllowance, limit: int, owner: str
) -> StoredFile:
    """Store the part `file` of the request's body under the purpose that the part `purpose` names.

    Raises InvalidRequestError for a body that is no such form or a file that is no text,
    TooLargeError as soon as the file exceeds `limit` bytes or what is left to `owner`, and
    PermissionDeniedError for a purpose that is not for it.
    """
    length = request.headers.get("content-length")
    declared = None if length is None else int(length)
    if declared is not None and declared > limit + _MOST_FRAME_BYTES:
        raise _too_large(limit)
    async with room.reserved(owner, declared, limit) as most:
        return await _receive(request, files, most, owner)


async def _receive(request: Request, files: Files, limit: int, owner: str) -> StoredFile:
    form = _Form(owner)
    parser = _parser(request, form)
    with files.upload() as upload:
        text = _TextWriter(upload, limit)
        async for chunk in request.stream():
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise InvalidRequestError(f"The form data is malformed: {error}.") from None
            if len(form.content) >= _PIECE_BYTES:
                await asyncio.to_thread(text.write, form.take())
        await asyncio.to_thread(text.finish, form.take())
        if not form.complete:
            raise InvalidRequestError("The form data ends too early; send it again.")
        purpose, filename = form.checked()
        kept = form.kept_seconds()
        if not upload.size:
            raise _unusable("is empty; send JSON Lines")
        return await asyncio.to_thread(upload.finish, filename, purpose, owner, kept)


def _parser(request: Request, form: _Form) -> MultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequestError(
            "Send the file as multipart/form-data with the parts 'file' and 'purpose'."
        )
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_field,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_finished,
                "on_part_data": form.data,
                "on_end": form.end,
            },
        )
    except FormParserError as error:
        raise InvalidRequestError(f"The form data is malformed: {error}.") from None


@dataclass
class _Form:
    """The parser's results: small fields whole, the file's content until it is taken."""

    owner: str
    fields: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)
    complete: bool = False
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _target: bytearray | None = None
    _field: str = ""

    def begin(self) -> None:
        self._headers = {}

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file":
            if self.filename is not None:
                raise InvalidRequestError("Send one 'file' at a time.", param="file")
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace") or "file"
            self._target = self.content
            # Where it comes first, as it does from most clients, a file is refused unread.
            if self.fields.get("purpose"):
                self._require_purpose()
        elif name in _FIELDS:
            self._field = name
            self._target = self.fields.setdefault(name, bytearray())
        else:
            raise InvalidRequestError(
                f"The form field '{name}' is not supported by this server; leave it out.",
                param=name or None,
                code="unsupported_parameter",
            )

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._target is None:
            return
        self._target += data[start:end]
        if self._target is not self.content and len(self._target) > _MOST_FIELD_BYTES:
            raise InvalidRequestError(
                f"The form field '{self._field}' is too long.", param=self._field
            )

    def end(self) -> None:
        self.complete = True

    def take(self) -> bytes:
        """The file's content since the last call."""
        taken = bytes(self.content)
        self.content.clear()
        return taken

    def checked(self) -> tuple[str, str]:
        """Purpose and file name. Raises InvalidRequestError for what is missing or unknown."""
        purpose = self.fields.get("purpose", bytearray()).decode("utf-8", "replace")
        for name, given in (("file", self.filename), ("purpose", purpose)):
            if not given:
                raise InvalidRequestError(
                    f"Missing required parameter: '{name}'.",
                    param=name,
                    code="missing_required_parameter",
                )
        self._require_purpose()
        return purpose, self.filename or ""

    def kept_seconds(self) -> int | None:
        """For how long `expires_after` says to keep the file. Raises InvalidRequestError."""
        anchor, seconds = (self.fields.get(name) for name in (_ANCHOR, _SECONDS))
        if anchor is None and seconds is None:
            return None
        if bytes(anchor or b"") != b"created_at":
            raise InvalidRequestError(f"'{_ANCHOR}' must be 'created_at'.", param=_ANCHOR)
        text = (seconds or b"").decode("ascii", "replace")
        if not re.fullmatch("[0-9]{1,9}", text) or not _LEAST_KEPT <= int(text) <= _MOST_KEPT:
            raise InvalidRequestError(
                f"'{_SECONDS}' must be a whole number from {_LEAST_KEPT} to {_MOST_KEPT}.",
                param=_SECONDS,
            )
        return int(text)

    def _require_purpose(self) -> None:
        purpose = self.fields["purpose"].decode("utf-8", "replace")
        if purpose not in _PURPOSES:
            raise InvalidRequestError(
                f"Invalid value for 'purpose': '{purpose}'; this server takes "
                f"{', '.join(map(repr, _PURPOSES))}.",
                param="purpose",
            )
        require_purpose(self.owner, purpose)


class _TextWriter:
    """Writes to an upload what is UTF-8 text and fits. Used in one thread at a time."""

    def __init__(self, upload: Upload, limit: int) -> None:
        self._upload = upload
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def write(self, data: bytes, final: bool = False) -> None:
        """Raises InvalidRequestError or TooLargeError; nothing of `data` is written then."""
        if self._upload.size + len(data) > self._limit:
            raise _too_large(self._limit)
        if not self._upload.size and data[:2] in _MARKS:
            raise _unusable(f"is {_MARKS[data[:2]]}; save it as UTF-8")
        if (zero := data.find(0)) >= 0:
            raise _unusable(
                f"is binary or UTF-16: byte {self._upload.size + zero} is zero; send UTF-8 text"
            )
        try:
            self._decoder.decode(data, final)
        except UnicodeDecodeError:
            raise _unusable(
                f"is not UTF-8 text, somewhere after byte {max(self._upload.size - 3, 0)}"
            ) from None
        self._upload.write(data)

    def finish(self, data: bytes) -> None:
        """Write the last piece."""
        self.write(data, final=True)


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"The file is larger than {limit} bytes (max_file_bytes).",
        param="file",
        code="file_too_large",
    )


def _unusable(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"The file {reason}.", param="file", code="invalid_file")
