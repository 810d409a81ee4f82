"""Films of decodes, their pictures, and `unmask replay`."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import unmask
from unmask.canvas import Edit, new_canvas
from unmask.cli.main import main
from unmask.engine.token_text import TokenTexts
from unmask.errors import ConfigError
from unmask.pictures.cells import about
from unmask.pictures.film import film_of
from unmask.pictures.layout import layout_of
from unmask.pictures.page import data_of, html_of
from unmask.pictures.svg import svg_of
from unmask.view.replay import plain_frames, play

MASK, EOS = 99, 90
WORDS = {1: "Q", 2: " cat", 3: " sat", 4: "\n", 5: "</script><b>", EOS: "<eos>"}
SPLIT = {10: b"\xc3", 11: b"\xa9"}


class FakeTokenizer:
    all_special_ids = (EOS,)

    def decode(self, ids):
        return b"".join(SPLIT.get(i) or WORDS[i].encode() for i in ids).decode("utf-8", "replace")


def ints(*values: int):
    return np.array(values, dtype=np.int64)


def commit(positions, tokens, confidence, **more) -> Edit:
    return Edit(ints(*positions), ints(*tokens), np.array(confidence, dtype=np.float64), **more)


def filmed(*edits: Edit, size: int = 4, **options):
    canvas = new_canvas([1] + [0] * size, [False] + [True] * size, 1, MASK)
    pairs = [(edit, size) for edit in edits]
    texts = TokenTexts(FakeTokenizer())
    return film_of(canvas, pairs, texts, frozenset({EOS}), **options)


def kinds(frame) -> list[str]:
    return [cell.kind for cell in frame.cells]


def test_a_frame_tells_what_is_open_new_and_old():
    film = filmed(commit([2], [3], [0.2]), commit([1, 3], [2, 4], [0.9, 0.5]))
    assert [kinds(frame) for frame in film.frames] == [
        ["open"] * 4,
        ["open", "new", "open", "open"],
        ["new", "old", "new", "open"],
    ]
    assert film.prompt == "Q"
    assert repr(film) == "Film('', 3 frames)"
    assert film.status(film.frames[1]) == "forward 1 of 2 · 1 of 4 positions"
    assert about(film.frames[2].cells[1], 1) == "position 1: ' sat', forward 1, probability 0.20"


def test_a_token_that_was_taken_back_or_replaced_is_remembered():
    film = filmed(
        commit([1, 2], [2, 3], [0.4, 0.8]),
        Edit(remask=ints(1), replace=ints(2), replace_tokens=ints(4)),
        commit([1], [3], [0.9]),
    )
    assert kinds(film.frames[2])[:2] == ["again", "new"]
    last = film.frames[3].cells[0]
    assert about(last, 0) == (
        "position 0: ' sat', forward 3, probability 0.90 (before: ' cat', forward 1, probability 0.40)"
    )
    assert film.frames[3].cells[1].earlier[0].text == " sat"


def test_inserted_and_deleted_positions_keep_their_identity_and_place():
    film = filmed(commit([1], [2], [1.0]), Edit(insert=((2, 2),)), Edit(delete=ints(2)), size=2)
    counts = [len(frame.cells) for frame in film.frames]
    assert counts == [2, 2, 4, 3]
    places = layout_of(film, 20).places
    uids = [cell.uid for cell in film.frames[2].cells]
    assert [places[uid].column for uid in uids] == sorted(places[uid].column for uid in uids)
    assert places[uids[0]].width == len(" cat")


def test_what_is_left_open_behind_the_end_is_an_end_in_the_last_frame_only():
    film = filmed(commit([1, 2], [2, EOS], [1.0, 1.0]))
    assert [cell.is_end for cell in film.frames[-1].cells] == [False, True, True, True]
    unfinished = filmed(commit([1], [2], [1.0]))
    assert kinds(unfinished.frames[-1]) == ["new", "open", "open", "open"]


def test_an_open_position_has_the_room_of_its_token_and_lines_do_not_overlap():
    edits = [commit([i], [2], [1.0]) for i in range(1, 13)]
    places = layout_of(filmed(*edits, size=12), 20).places
    assert {place.line for place in places.values()} == {0, 1, 2}
    spans = sorted((p.line, p.column, p.column + p.width) for p in places.values())
    for (line, _, end), (next_line, start, _) in zip(spans, spans[1:], strict=False):
        assert next_line > line or start >= end
    assert max(end for _, _, end in spans) <= 20


@pytest.mark.parametrize("columns", [19, 401])
def test_a_width_out_of_range_is_refused(columns):
    with pytest.raises(ConfigError, match="between 20 and 400"):
        layout_of(filmed(), columns)


def test_the_svg_is_xml_with_the_last_frame_visible_and_no_markup_of_the_model():
    film = filmed(commit([1], [5], [0.5]), commit([2], [4], [0.5]), size=2, title="a & <b>")
    root = ElementTree.fromstring(svg_of(film))
    space = "{http://www.w3.org/2000/svg}"
    texts = ["".join(item.itertext()) for item in root.iter(f"{space}text")]
    assert any("</script><b>" in text for text in texts)
    assert not list(root.iter(f"{space}script"))
    hidden = {item for group in root.iter(f"{space}g") if group.get("visibility") for item in group}
    seen = ["".join(i.itertext()) for i in root.iter(f"{space}text") if i not in hidden]
    assert any("forward 2 of 2" in text for text in seen)
    assert not any("forward 1 of 2" in text for text in seen)


def test_the_times_of_the_svg_lie_in_its_duration():
    root = ElementTree.fromstring(svg_of(filmed(*[commit([i], [2], [1.0]) for i in (1, 2, 3, 4)])))
    moves = list(root.iter("{http://www.w3.org/2000/svg}animate"))
    assert moves
    for move in moves:
        times = [float(time) for time in move.get("keyTimes").split(";")]
        assert times == sorted(times)
        assert times[0] == 0
        assert times[-1] < 1
        assert len(move.get("values").split(";")) == len(times)


def test_the_page_holds_the_film_and_cannot_be_left_by_a_text():
    film = filmed(commit([1], [5], [0.5]))
    page = html_of(film)
    assert page.count("</script>") == 1
    data = page[page.index("const film = ") + len("const film = ") : page.index(";\nconst at")]
    assert json.loads(data) == json.loads(json.dumps(data_of(film)))
    assert "http://" not in page
    assert "https://" not in page
    assert film._repr_html_().startswith("<iframe srcdoc=")


def test_the_gif_has_a_picture_per_frame_and_holds_the_last(tmp_path):
    image = pytest.importorskip("PIL.Image")
    film = filmed(commit([1], [2], [0.1]), commit([2], [3], [0.9]), title="t")
    path = film.save(tmp_path / "a.gif", fps=10, hold_s=1.0, columns=30)
    with image.open(path) as picture:
        assert picture.n_frames == 3
        durations, pixels = [], []
        for number in range(3):
            picture.seek(number)
            durations.append(picture.info["duration"])
            pixels.append(picture.convert("RGB").tobytes())
    assert durations == [100, 100, 1100]
    assert len(set(pixels)) == 3


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("a.png", {}, "must end in .gif or .svg or .html"),
        ("absent/a.gif", {}, "there is no folder"),
        ("a.gif", {"fps": 0}, "above 0 and at most 50"),
        ("a.gif", {"hold_s": -1}, "between 0 and 60"),
        ("a.svg", {"font": "x.ttf"}, "no effect on .svg"),
        ("a.gif", {"font": "x.ttf"}, "no readable TrueType"),
    ],
)
def test_a_picture_that_cannot_be_made_is_refused(name, options, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        filmed(commit([1], [2], [1.0])).save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_an_output_without_a_trace_says_how_to_get_one(tiny):
    (out,) = tiny("llada").generate([[3, 4]], gen_length=4)
    with pytest.raises(ConfigError, match="return_trace=True"):
        out.film()
    assert "tokens" in out._repr_html_()
    assert repr(out).startswith("Output(")
    assert len(repr(out)) < 200


@pytest.mark.parametrize("decoder", ["vanilla", "wino", "daedal", "block_diffusion", "ar"])
def test_the_last_frame_is_the_canvas_of_the_output(decoder, tiny):
    knobs = {"block_length": 4} if decoder in ("vanilla", "block_diffusion") else {}
    length = {} if decoder == "daedal" else {"gen_length": 12}
    (out,) = tiny("llada").generate([[3, 4]], decoder, return_trace=True, **length, **knobs)
    film = out.film()
    assert film.num_forwards == out.num_forwards
    answer = [str(id_) for id_ in out.token_ids]
    assert [cell.text for cell in film.frames[-1].cells][: len(answer)] == answer
    assert "hsl(" in out._repr_html_()


def test_a_plot_has_a_bar_per_forward(tiny):
    pytest.importorskip("matplotlib")
    (out,) = tiny("llada").generate([[3, 4]], gen_length=6, steps=3, return_trace=True)
    above, below = out.plot().axes[:2]
    assert [bar.get_height() for bar in above.patches] == [2, 2, 2]
    assert len(below.collections[0].get_offsets()) == 6


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace file of a decode with the bundled model."""
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    words = ["generate", "Sudoku\n0200\n4302\n3401\n0004", "-d", "threshold", "--gen-length", "32"]
    assert main([*words, "--trace", str(path)]) == 0
    return path


def test_a_trace_file_replays_as_the_output_does(trace):
    (out,) = unmask.LLM("demo").generate(
        "Sudoku\n0200\n4302\n3401\n0004", "threshold", gen_length=32, return_trace=True
    )
    film, expected = unmask.read_film(trace), out.film()
    assert film.frames == expected.frames
    assert film.prompt == expected.prompt == "Sudoku\n0200\n4302\n3401\n0004"


def test_a_trace_of_a_growing_canvas_replays(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    words = ["Sudoku\n0200\n4302\n3401\n0004", "-d", "block_diffusion", "block_length=8"]
    assert main(["generate", *words, "--gen-length", "24", "--trace", str(path)]) == 0
    text = capsys.readouterr().out.strip()
    film = unmask.read_film(path)
    assert len(film.frames[0].cells) == 8
    assert "".join(c.text for c in film.frames[-1].cells if not c.is_end).strip() == text


def test_a_character_of_several_tokens_is_replayed(tmp_path):
    from unmask.engine.outputs import Commit, Step
    from unmask.view.trace import Header, TraceWriter

    class Bytes(TokenTexts):
        def data(self, id_):
            return SPLIT.get(id_) or self.text(id_).encode()

    header = Header("m", "d", "none", {}, 0, [1], 2, MASK, [1, MASK, MASK], [1, 2])
    path = tmp_path / "t.jsonl"
    with TraceWriter(path, header, Bytes(FakeTokenizer())) as writer:
        writer.begin(new_canvas([1, 0, 0], [False, True, True], 1, MASK))
        writer.step(0, Step((Commit(1, 10, 0.5), Commit(2, 11, 0.5))))
    assert [cell.text for cell in unmask.read_film(path).frames[1].cells] == ["é", ""]


def test_replay_prints_every_frame_where_there_is_no_terminal(trace, capsys):
    assert main(["replay", str(trace)]) == 0
    shown = capsys.readouterr().out
    film = unmask.read_film(trace)
    assert shown.count("forward ") == len(film.frames)
    assert "1243\n4312\n3421\n2134" in shown


def test_replay_draws_in_a_terminal_and_leaves_the_last_frame(trace):
    film, file = unmask.read_film(trace), io.StringIO()
    play(film, Console(file=file, force_terminal=True, width=60, height=20), fps=50)
    drawn = file.getvalue()
    assert "forward 0 of" in drawn
    assert drawn.rstrip().endswith("∎×13\x1b[0m") or "∎×" in drawn[-40:]
    assert len(list(plain_frames(film))) == len(film.frames)


def test_replay_writes_all_pictures(trace, tmp_path, capsys):
    pytest.importorskip("PIL")
    names = ["a.gif", "a.svg", "a.html", "b.png"]
    flags = ["--gif", "--svg", "--html", "--plot"]
    words = [
        w for pair in zip(flags, (str(tmp_path / n) for n in names), strict=True) for w in pair
    ]
    assert main(["replay", str(trace), *words, "--columns", "40", "--fps", "8"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("bytes") == 4


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--gif", "a.svg"], "must end in .gif"),
        (["--columns", "40"], "--columns is the width"),
        (["--html", "a.html", "--fps", "3"], "--fps has no effect"),
        (["--font", "a.ttf", "--svg", "a.svg"], "--font is the font of --gif"),
        (["--fps", "0"], "above 0"),
        (["--fps", "3"], "without a terminal"),
    ],
)
def test_replay_refuses_options_without_effect(
    words, problem, trace, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert main(["replay", str(trace), *words]) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_edits_that_do_not_fit_the_canvas_are_refused(trace, tmp_path):
    lines = trace.read_text("utf-8").splitlines()
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([*lines[:2], *lines[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="do not fit the canvas"):
        unmask.read_film(path)


def test_the_picture_of_the_readme_is_small_and_shows_every_forward():
    gif = Path(__file__).parents[1] / "docs" / "assets" / "decode.gif"
    if not gif.exists():
        pytest.skip("the source distribution has no docs")
    image = pytest.importorskip("PIL.Image")
    assert gif.stat().st_size < 500_000
    with image.open(gif) as picture:
        assert picture.n_frames == 21, "run: python scripts/readme_gif.py"
