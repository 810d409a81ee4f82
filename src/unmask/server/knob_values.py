"""Knobs as clients may send them: JSON values of bounded size, texts that are names and nothing else.

The library reads a knob's text as YAML, for the command line's sake. What a client sends must not get
there unless it is as harmless as a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unmask.knobs import read_value
from unmask.server.errors import ApiError
from unmask.server.openai import Arguments

NAME = re.compile(r"[\w .,:()=\[\]/+-]*")
LONG_NUMBER = re.compile(r"\d{19}")
MAX_BRACKETS = 8
ARGUMENTS = TypeAdapter[Any](Arguments)


def check_method_text(param: str, text: str) -> None:
    """Raise ApiError for a decoder or cache that is not of the form `name(key=value, ...)`."""
    brackets = text.count("(") + text.count("[")
    if NAME.fullmatch(text) and not LONG_NUMBER.search(text) and brackets <= MAX_BRACKETS:
        return
    raise ApiError(
        400,
        f"{param}={text!r} is not of the form name or name(key=value, ...)",
        param=param,
        code="invalid_value",
    )


def check_knobs(values: Mapping[str, Any]) -> None:
    """Raise ApiError for a value that is not JSON's true, number, text or flat list of them.

    A number in quotes is refused: it is no text.
    """
    try:
        ARGUMENTS.validate_python(dict(values), strict=True)
    except ValidationError as error:
        where = str(error.errors()[0]["loc"][0])
        raise ApiError(
            400,
            f"{where}: a knob is true or false, a number, a name, or a list of them",
            param=where,
            code="invalid_value",
        ) from None
    for key, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_method_text(key, text)
                if text and not isinstance(read_value(text), str):
                    raise ApiError(
                        400,
                        f"{key}={text!r} must be {text} without quotes",
                        param=key,
                        code="invalid_value",
                    )
