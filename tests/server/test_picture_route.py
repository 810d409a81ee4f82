"""The route that makes the playground's pictures: what it makes, and what it refuses."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from unmask.errors import ConfigError
from unmask.pictures.page import MAX_FRAMES, data_of, film_of_data
from unmask.server.errors import ApiError
from unmask.server.picture_route import PictureRequest, picture_of

OPEN = [0, "", 0, 0, 0, None, [], []]
NEW = [0, " cat", 2, 0, 1, 0.5, [], [["cat", 0.5]]]
FILM = {"title": "t", "prompt": "p", "kinds": []}
FILM |= {"cells": [OPEN, NEW], "frames": [[0, 0, [0]], [1, 0, [1]]]}


def test_a_film_comes_back_as_it_was_sent():
    film = film_of_data(FILM)
    again = data_of(film)
    assert again["frames"] == [(0, 0, [0]), (1, 0, [1])]
    assert [list(cell[:6]) for cell in again["cells"]] == [OPEN[:6], NEW[:6]]
    assert (again["title"], again["prompt"]) == ("t", "p")


@pytest.mark.parametrize("format", ["svg", "gif"])
def test_the_route_answers_with_a_picture(client, format):
    if format == "gif":
        pytest.importorskip("PIL")
    reply = client.post("/v1/picture", json={"format": format, "film": FILM})
    assert reply.status_code == 200, reply.text
    if format == "gif":
        assert reply.content.startswith(b"GIF89a")
        assert reply.headers["content-type"] == "image/gif"
    else:
        assert "cat" in "".join(ElementTree.fromstring(reply.content).itertext())
        assert reply.headers["content-type"].startswith("image/svg+xml")
    assert "/v1/picture" not in client.get("/openapi.json").json()["paths"]


def film(**changes):
    return {**FILM, **changes}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "cannot be read"),
        (film(frames=[]), "no frames"),
        (film(frames=[[0, 0, [2]]]), "cannot be read"),
        (film(frames=[[0, 0, [-1]]]), "cannot be read"),
        (film(frames=[[0, 0, [True]]]), "cannot be read"),
        (film(frames=[[0, 0]]), "cannot be read"),
        (film(frames=5), "cannot be read"),
        (film(cells=[[0, 5, 0, 0, 0, None, []]]), "cannot be read"),
        (film(cells=[[0, "a", 9, 0, 0, None, []]]), "cannot be read"),
        (film(cells=[[0, "a", 2, 0, 1, 7, []]]), "cannot be read"),
        (film(cells=[[0, "a", 2, 0, 1, float("nan"), []]]), "cannot be read"),
        (film(title=None), "cannot be read"),
        (film(frames=[[0, 0, [0]]] * (MAX_FRAMES + 1)), "the most is 2000"),
        (film(frames=[[0, 0, [0] * 5000]] * 100), "positions in all frames"),
        (
            film(cells=[[i, "", 0, 0, 0, None, []] for i in range(5000)])
            | {"frames": [[0, 0, list(range(5000))]]},
            "distinct positions",
        ),
        (
            film(cells=[[0, "x" * 50_000, 4, 0, 0, None, []]], frames=[[0, 0, [0]]] * 100),
            "characters in all frames",
        ),
    ],
)
def test_a_film_that_is_none_or_too_large_is_refused(data, problem):
    with pytest.raises(ConfigError, match=problem):
        film_of_data(data)


def test_a_gif_of_too_many_pixels_is_refused_and_its_svg_is_not():
    pytest.importorskip("PIL")
    long = film(frames=[[i, 0, [i % 2]] for i in range(MAX_FRAMES)])
    with pytest.raises(ApiError, match="pixels") as caught:
        picture_of(PictureRequest(format="gif", film=long, columns=200))
    assert (caught.value.status, caught.value.param) == (400, "film")
    assert picture_of(PictureRequest(format="svg", film=long)).startswith(b"<svg")


@pytest.mark.parametrize(
    "change",
    [{"format": "png"}, {"columns": 5}, {"columns": 1000}, {"fps": 0}, {"film": []}, {"x": 1}],
)
def test_a_wrong_field_is_refused(client, change):
    reply = client.post("/v1/picture", json={"format": "svg", "film": FILM, **change})
    assert reply.status_code == 400
