"""OpenAI's graders, as bodies of requests describe them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hagane.graders.arithmetic import check_formula

Text = Annotated[str, Field(max_length=100_000)]
Label = Annotated[str, Field(min_length=1, max_length=256)]
Share = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class _Grader(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Label


class StringCheck(_Grader):
    """1 where the input is, or contains, the reference; the `i` forms ignore case."""

    type: Literal["string_check"]
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(_Grader):
    """How alike input and reference are; passed from `pass_threshold` on."""

    type: Literal["text_similarity"]
    input: Text
    reference: Text
    evaluation_metric: Literal[
        "fuzzy_match", "bleu", "gleu",
        "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
    ]  # fmt: skip
    pass_threshold: Share | None = None


class GraderMessage(BaseModel):
    """A message of a template."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    type: Literal["message"] = "message"


class ScoreModel(_Grader):
    """A model's opinion as a number within `range`; the model is any that is served here."""

    type: Literal["score_model"]
    model: Label
    input: list[GraderMessage] = Field(min_length=1, max_length=64)
    range: tuple[Share, Share] = (0.0, 1.0)
    pass_threshold: Share | None = None
    sampling_params: dict[str, Any] = Field({}, max_length=8)

    @model_validator(mode="after")
    def rise(self) -> ScoreModel:
        if not self.range[0] < self.range[1]:
            raise ValueError("range must go from a smaller number to a larger one")
        return self


class Python(_Grader):
    """A program with a function grade(sample, item) that returns a number, run in a sandbox."""

    type: Literal["python"]
    source: Annotated[str, Field(min_length=1, max_length=256 << 10)]
    pass_threshold: Share | None = None
    image_tag: str | None = None


class Multi(BaseModel):
    """A formula over the scores of other graders, such as `0.5 * exact + 0.5 * close`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["multi"]
    name: Label
    graders: dict[str, Single] = Field(min_length=1, max_length=16)
    calculate_output: Annotated[str, Field(min_length=1, max_length=1024)]
    pass_threshold: Share | None = None

    @model_validator(mode="after")
    def name_known_graders(self) -> Multi:
        check_formula(self.calculate_output, frozenset(self.graders))
        return self


Single = Annotated[StringCheck | TextSimilarity | ScoreModel | Python, Field(discriminator="type")]
Grader = Annotated[
    StringCheck | TextSimilarity | ScoreModel | Python | Multi, Field(discriminator="type")
]
Multi.model_rebuild()
