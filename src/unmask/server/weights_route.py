"""`POST /update_weights`: new weights of the same shape from a folder, for reinforcement learning.

The folder is read and checked while the server goes on; then running requests end with the old weights, and
waiting ones begin with the new. A request that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from unmask.engine.origin import with_weights
from unmask.engine.threads import call_in_thread
from unmask.errors import UnmaskError
from unmask.server.base_models import StrictModel
from unmask.server.errors import ApiError, library_error
from unmask.server.generation import submit_error
from unmask.server.openapi import Api
from unmask.server.reply_models import Count, ReplyModel, ReplyResponse
from unmask.server.request_parsing import parse_body, read_json

if TYPE_CHECKING:
    from unmask.server.service import Service


class UpdateWeightsRequest(StrictModel):
    """`POST /update_weights`."""

    path: str = Field(
        min_length=1,
        max_length=4096,
        description="checkpoint folder in the folder of --weights-folder, or its path below it",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="seconds for running requests to end, else nothing is changed; default and maximum: "
        "the server's",
    )


class UpdateWeightsReply(ReplyModel):
    """The reply of `POST /update_weights`.

    `weights_version`: number of updates since the start, this one included. `waited_s`: seconds for which
    running requests were waited for, `read_s`: for reading the folder.
    """

    path: str
    weights_version: Count
    read_s: float
    waited_s: float


def add_weights_route(app: Api, service: Service) -> None:
    """Add the route, which is refused unless the server has a key and a folder of weights."""
    updating = asyncio.Lock()

    async def update(request: Request) -> Response:
        raw = await read_json(request, service.settings.limits)
        body, _ = parse_body(UpdateWeightsRequest, raw, takes_knobs=False)
        folder = allowed_folder(service, body.path)
        timeout_s = service.timeout_s(body.timeout_s)
        if updating.locked():
            raise ApiError(
                429,
                "another update is in progress; try again",
                code="update_in_progress",
                retry_after_s=1.0,
            )
        async with updating:
            reply = await call_in_thread(exchange, service, folder, timeout_s)
        return ReplyResponse(reply)

    app.add_decoding_route(
        "/update_weights",
        update,
        summary="Load new weights of the same shape from a folder (`serve --weights-folder`).",
        body=UpdateWeightsRequest,
        reply=UpdateWeightsReply,
    )


def allowed_folder(service: Service, path: str) -> Path:
    """Return the folder of a request. Raises ApiError (403, 404) for any other than a permitted one."""
    root = service.settings.weights_folder
    if root is None or service.settings.access.key_digest is None:
        raise ApiError(
            403,
            "this server takes no weights; start it with --weights-folder DIR and an API key",
            code="updates_disabled",
        )
    root = root.expanduser().resolve()
    try:
        folder = (root / path).resolve()
        is_there = folder.is_relative_to(root) and folder.is_dir()
    except (OSError, ValueError, RuntimeError):
        is_there = False
    if not is_there:
        raise ApiError(
            404,
            f"path={path[:200]!r} is no folder in {str(root)!r}; write the checkpoint there",
            param="path",
            code="folder_not_found",
        )
    return folder


def exchange(service: Service, folder: Path, timeout_s: float) -> UpdateWeightsReply:
    """Read the weights, and exchange them between requests. Raises ApiError."""
    began = time.monotonic()
    try:
        weights = service.llm.read_weights(folder)
    except UnmaskError as error:
        raise library_error(error, "path") from None

    def use() -> None:
        service.llm.use_weights(weights)
        models = service.origins.models
        models.append(with_weights(models[-1], weights.digest))

    read = time.monotonic()
    try:
        waited_s = service.engine.change(use, timeout_s)
    except UnmaskError as error:
        raise submit_error(error, service.engine) from None
    return UpdateWeightsReply(
        path=str(folder),
        weights_version=service.engine.num_changes,
        read_s=round(read - began, 3),
        waited_s=round(waited_s, 3),
    )
