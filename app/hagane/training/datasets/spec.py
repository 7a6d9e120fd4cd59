"""The specification of a data set: which answers, how they are cleaned, how they are split."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hagane.data.personal import Kind, Treatment

Names = Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=64)]
Moment = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]


class DatasetSpec(BaseModel):
    """A declarative filter over stored answers and the feedback on them.

    `answers` are the reasons to take one: its correction, more likes than dislikes (`thumbs`, or a
    `score` of `min_score` at least), or that nobody has judged it. DPO takes preferred pairs and
    corrections, KTO the disliked as well, each with its label. Characters are those of the answer.
    Of `validation`, conversations are held out as a whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["supervised", "dpo", "kto"] = "supervised"
    models: Names | None = None
    aliases: Names | None = None
    arms: list[Literal["target", "candidate"]] | None = None
    metadata: dict[str, str] = Field({}, max_length=16)
    tags: Names | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    answers: list[Literal["corrected", "liked", "unjudged"]] = Field(
        ["corrected", "liked"], min_length=1
    )
    min_score: Share = 0.5
    finish_reasons: list[str] = Field(["stop", "tool_calls"], min_length=1, max_length=8)
    min_characters: int = Field(1, ge=1, strict=True)
    max_characters: int = Field(100_000, ge=1, strict=True)
    max_prompt_characters: int = Field(1_000_000, ge=1, strict=True)
    duplicates: Literal["keep", "exact", "near"] = "near"
    similarity: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] = 0.85
    personal_data: dict[Kind, Treatment] = Field({})
    validation: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False, strict=True)] = 0.1
    max_records: int = Field(100_000, ge=1, le=1_000_000, strict=True)

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        if self.method == "kto" and "unjudged" in self.answers:
            raise ValueError("answers has 'unjudged', which has no label for kto: leave it out")
        return self

    def treatment(self, kind: Kind) -> Treatment:
        """The treatment of personal data of a kind: masked unless the spec chooses otherwise."""
        return self.personal_data.get(kind, "mask")
