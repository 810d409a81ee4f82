"""Fields by which clients give a draft of the answer, in our spelling and that of vLLM."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue, model_validator
from pydantic.fields import FieldInfo

from unmask.engine.drafts import DraftRequest, read_draft
from unmask.errors import ConfigError
from unmask.server.base_models import StrictModel
from unmask.server.errors import ApiError, library_error

SEED_CANVAS, PINNED = "diffusion_seed_canvas", "diffusion_pinned"
"""Keys of `vllm_xargs`: token ids of the whole answer, and the positions of it that stay."""


def _some(most: int) -> FieldInfo:
    """Return the limits of a list of 1 to `most` items, whose validation stops at the first fault."""
    field: FieldInfo = Field(min_length=1, max_length=most, fail_fast=True)
    return field


DraftIds = Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], _some(1 << 20)]
DraftText = Annotated[str, Field(min_length=1)]
Range = Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], Field(min_length=2, max_length=2)]


class DraftFields(StrictModel):
    """Fields of a draft, for every route that decodes."""

    draft: (
        DraftText | DraftIds | Annotated[list[DraftText | DraftIds | None], _some(1024)] | None
    ) = Field(
        None,
        description="the answer to begin with, as text or token ids (the mask id: open), for a decoder "
        "that revises, such as joint_threshold or wino; or one (or null) for each prompt or blank; the "
        "default of max_tokens is then its length",
    )
    pinned: Annotated[list[DraftText | Range], Field(max_length=1024, fail_fast=True)] | None = (
        Field(
            None,
            description="parts of the draft that never change: texts of it, and ranges [start, end) of its "
            "characters or, for token ids, of its positions",
        )
    )
    max_edits: Annotated[int, Field(ge=0, le=1 << 20)] | None = Field(
        None, description="maximum number of the draft's tokens that change; default: no limit"
    )
    vllm_xargs: dict[str, JsonValue] | None = Field(
        None,
        description="vLLM's form of a draft: diffusion_seed_canvas (token ids) and diffusion_pinned "
        "(positions of it)",
    )

    @model_validator(mode="after")
    def _check_draft(self) -> DraftFields:
        if self.vllm_xargs and self.draft is not None:
            raise ValueError("draft and vllm_xargs are two drafts; leave one of them out")
        return self

    @property
    def draft_request(self) -> DraftRequest | None:
        """The draft, None without one. Raises ApiError (400)."""
        draft: object = self.draft
        pinned: list[object] = list(self.pinned or [])
        if self.vllm_xargs:
            draft, pinned = _of_vllm(self.vllm_xargs, pinned)
        try:
            return read_draft(draft, pinned, self.max_edits)
        except ConfigError as error:
            raise library_error(error, self.draft_field(error.key or "draft")) from None

    def draft_field(self, key: str) -> str:
        """Return the name of the field in which the client gave an option of the draft."""
        is_ours = key == "max_edits" or (key == "pinned" and PINNED not in (self.vllm_xargs or {}))
        return "vllm_xargs" if self.vllm_xargs and not is_ours else key


def _of_vllm(fields: dict[str, JsonValue], pinned: list[object]) -> tuple[object, list[object]]:
    """Return the draft and the pinned ranges of `vllm_xargs`. Raises ApiError (400)."""
    for key, value in fields.items():
        if key not in (SEED_CANVAS, PINNED):
            raise ApiError(
                400,
                f"vllm_xargs.{key[:100]} is not supported here; use {SEED_CANVAS} and {PINNED}",
                param="vllm_xargs",
                code="unsupported_parameter",
            )
        is_list = isinstance(value, list) and all(type(item) is int for item in value)
        if not is_list and not (key == PINNED and value is None):
            raise ApiError(
                400,
                f"vllm_xargs.{key} must be a list of whole numbers",
                param="vllm_xargs",
                code="invalid_value",
            )
    positions = fields.get(PINNED) or []
    assert isinstance(positions, list), "checked above"
    ranges = [[at, at + 1] for at in positions if isinstance(at, int)]
    return fields.get(SEED_CANVAS), [*pinned, *ranges]
