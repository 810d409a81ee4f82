"""`POST /v1/picture`: the playground's decode as an animated SVG or GIF, bounded in work.

The page sends a film as it would put it into a player (`unmask.pictures.page.FilmData`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field, JsonValue

from unmask.errors import ConfigError, DependencyError
from unmask.pictures.gif import gif_of
from unmask.pictures.page import film_of_data
from unmask.pictures.svg import svg_of
from unmask.server.base_models import StrictModel
from unmask.server.errors import ApiError, library_error
from unmask.server.request_parsing import parse_body, read_json

if TYPE_CHECKING:
    from unmask.server.service import Service

MAX_PIXELS = 120_000_000
"""Largest number of pixels of all pictures of a GIF, which take a few seconds."""
MEDIA_TYPES = {"svg": "image/svg+xml", "gif": "image/gif"}


class PictureRequest(StrictModel):
    """`POST /v1/picture`."""

    format: Literal["svg", "gif"]
    columns: Annotated[int, Field(ge=20, le=200)] = 80
    fps: Annotated[float, Field(gt=0, le=50)] = 4.0
    film: dict[str, JsonValue]


def add_picture_route(app: FastAPI, service: Service) -> None:
    """Add the route, which is the page's own and not in the OpenAPI document."""

    @app.post("/v1/picture", include_in_schema=False)
    async def picture(request: Request) -> Response:
        raw = await read_json(request, service.settings.limits)
        body, _ = parse_body(PictureRequest, raw, takes_knobs=False)
        call = partial(picture_of, body)
        data = await service.planning.run(call, service.timeout_s(None), time.monotonic())
        return Response(data, media_type=MEDIA_TYPES[body.format])


def picture_of(body: PictureRequest) -> bytes:
    """Return the file. Raises ApiError: 400 for a film that is none or too large, 501 without Pillow."""
    frame_s = 1 / body.fps
    try:
        film = film_of_data(body.film)
        if body.format == "gif":
            return gif_of(film, columns=body.columns, frame_s=frame_s, max_total=MAX_PIXELS)
        return svg_of(film, columns=body.columns, frame_s=frame_s).encode("utf-8", "replace")
    except ConfigError as error:
        raise library_error(error, "film") from None
    except DependencyError as error:
        raise ApiError(501, str(error), param="format") from None
