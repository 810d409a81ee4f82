"""`unmask generate --prompts IN -o OUT`: a file of prompts, decoded in batches and resumed after a stop."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from unmask.errors import ConfigError, PromptError, cut_text
from unmask.options import option
from unmask.plain_text import one_line

if TYPE_CHECKING:
    from unmask.cli.options import DecodeOptions
    from unmask.engine.llm import LLM
    from unmask.method import MethodSpec

Row = dict[str, object]
RESULTS = ("text", "finish_reason", "num_tokens", "num_forwards", "error", "method", "seed")
"""Fields that a row of the output has in addition to those of its prompt."""
OPENAI_FIELDS = {"custom_id", "method", "url", "body"}
URLS = ("/v1/chat/completions", "/v1/completions")
CHUNK = 8
"""Batches that are decoded together before their rows are written."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Prompts from a file."""

    prompts: Annotated[Path | None, option(metavar="FILE")] = None
    """Decode the prompts of a JSON Lines file (prompt or messages), or of a batch file of OpenAI's."""

    output: Annotated[Path | None, option("-o", metavar="FILE")] = None
    """Rows of --prompts with their answers; the same command resumes an interrupted file."""

    batch_size: Annotated[int | None, option(least=1, metavar="N")] = None
    """Rows of --prompts in a forward pass. Default: 16."""


class _Decode(Protocol):
    def __call__(self, rows: Sequence[Row], first: int) -> list[Row]:
        """Return the output rows of input rows, the first of which has this index in the file."""


def run(batch: BatchOptions, options: DecodeOptions) -> int:
    """Decode the prompts that the output does not have yet; return 1 if a row has an error, else 0."""
    from unmask.cli.decode import load
    from unmask.durable import check_writable
    from unmask.view.progress import EvaluationView

    if batch.prompts is None or batch.output is None:
        raise ConfigError("--prompts FILE and --output FILE go together; give both or neither")
    check_writable(batch.output, "output")
    rows = read_rows(batch.prompts)
    is_openai = rows[0].keys() >= OPENAI_FIELDS
    for number, row in enumerate(rows, start=1):
        _check_row(row, f"{batch.prompts}, line {number}", is_openai=is_openai, raw=options.raw)
    done = finished_rows(batch.output)
    _check_same(batch.output, rows, done)
    llm, method = load(options)
    size = 16 if batch.batch_size is None else batch.batch_size
    decode = (
        _openai(llm, method, options, size) if is_openai else _plain(llm, method, options, size)
    )
    if not is_openai and done and done[0].get("method") != _method_text(method):
        raise ConfigError(
            f"{batch.output} has answers of {done[0].get('method')!r}, not {_method_text(method)!r}; "
            f"write to another file, or use the same method"
        )
    with batch.output.open("a", encoding="utf-8") as file, EvaluationView("prompts") as view:
        view(len(done), len(rows))
        for first in range(len(done), len(rows), size * CHUNK):
            chunk = rows[first : first + size * CHUNK]
            for row in decode(chunk, first):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                done.append(row)
            file.flush()
            view(len(done), len(rows))
    failed = [number for number, row in enumerate(done, start=1) if row.get("error")]
    print(f"{batch.output}: {len(done)} rows, {len(failed)} with an error", file=sys.stderr)
    return 1 if failed else 0


def read_rows(path: Path) -> list[Row]:
    """Return the objects of a JSON Lines file. Raises ConfigError with the line of the first mistake."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a JSON Lines file") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number}: no JSON ({error}); write one object a line"
            ) from None
        if not isinstance(value, dict):
            raise ConfigError(
                f"{path}, line {number}: {cut_text(line)} is no object; write e.g. "
                '{"prompt": "Hello"}'
            )
        rows.append(value)
    if not rows:
        raise ConfigError(f"{path} has no rows; write one JSON object a line")
    return rows


def _check_row(row: Row, place: str, *, is_openai: bool, raw: bool) -> None:
    """Raise ConfigError for a row that cannot be a prompt."""
    if is_openai:
        if row.keys() != OPENAI_FIELDS or row["method"] != "POST" or row["url"] not in URLS:
            raise ConfigError(
                f"{place}: a batch line has exactly custom_id, body, method POST, and url "
                f"{' or '.join(URLS)}"
            )
        body = row["body"]
        if not isinstance(body, dict) or body.get("stream"):
            raise ConfigError(f"{place}: body must be an object without stream")
        return
    given = [name for name in ("prompt", "messages") if name in row]
    if len(given) != 1:
        raise ConfigError(
            f"{place}: give prompt (a text) or messages (a conversation), one of them"
        )
    kind = str if given[0] == "prompt" else list
    if not isinstance(row[given[0]], kind):
        raise ConfigError(f"{place}: {given[0]} must be a {'text' if kind is str else 'list'}")
    if raw and given[0] == "messages":
        raise ConfigError(f"{place}: --raw has no effect on messages; leave it out")
    taken = sorted(row.keys() & set(RESULTS))
    if taken:
        raise ConfigError(f"{place}: the field {taken[0]!r} is one of the output; rename it")


def finished_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier run; a last line without its end is cut off. Raises ConfigError."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return read_rows(path) if whole.strip() else []


def _check_same(path: Path, rows: Sequence[Row], done: Sequence[Row]) -> None:
    """Raise ConfigError unless the output's rows are the first ones of the input."""
    for number, (row, old) in enumerate(zip(rows, done, strict=False), start=1):
        names = ("custom_id",) if "custom_id" in row else tuple(row)
        if any(row[name] != old.get(name) for name in names):
            raise ConfigError(
                f"{path}, line {number}: not the answer to line {number} of the prompts; write to "
                f"another file"
            )
    if len(done) > len(rows):
        raise ConfigError(f"{path} has {len(done)} rows, the prompts only {len(rows)}")


def _method_text(method: MethodSpec) -> str:
    return f"{method.describe()}, cache {method.describe_cache()}"


def _plain(llm: LLM, method: MethodSpec, options: DecodeOptions, size: int) -> _Decode:
    """Return the decoding of rows with `prompt` or `messages`; row i has the seed `seed` + i."""
    from unmask.cli.decode import read_constraint
    from unmask.engine.drafts import read_draft

    told = _method_text(method)
    draft = read_draft(options.draft, options.pinned, options.max_edits)
    one = None if draft is None else draft.per_prompt(1)[0]
    template = llm.requests.template(
        method,
        seed=options.seed,
        stop_at_eos=options.stop_at_eos,
        constraint=read_constraint(options),
        draft=draft,
    )

    def request(row: Row, index: int) -> Any:
        content: Any = row.get("prompt")
        if content is None:
            content = llm.chat_ids(row["messages"])  # type: ignore[arg-type]
        canvas = llm.requests.canvas(
            content, method, options.gen_length, raw=options.raw, draft=one
        )
        return template(canvas, index)

    def decode(rows: Sequence[Row], first: int) -> list[Row]:
        requests, errors = {}, {}
        for index, row in enumerate(rows, start=first):
            try:
                requests[index] = request(row, index)
            except (PromptError, ConfigError) as error:
                errors[index] = str(error)
        finished = llm.run(list(requests.values()), size)
        outputs = dict(zip(requests, (llm.output(each, False) for each in finished), strict=True))
        results = []
        for index, row in enumerate(rows, start=first):
            about: Row = {"method": told, "seed": options.seed + index}
            if index in errors:
                results.append({**row, "text": None, "error": errors[index], **about})
                continue
            out = outputs[index]
            answer: Row = {
                "text": out.text,
                "finish_reason": out.finish_reason,
                "num_tokens": len(out.token_ids),
                "num_forwards": out.num_forwards,
            }
            results.append({**row, **answer, **about})
        return results

    return decode


def _openai(llm: LLM, method: MethodSpec, options: DecodeOptions, size: int) -> _Decode:
    """Return the decoding of batch lines, by the routes of the server in this process."""
    from unmask.cli.decode import read_constraint
    from unmask.cli.serve import need_extra

    need_extra()
    if options.gen_length is not None or options.seed or options.raw or not options.stop_at_eos:
        raise ConfigError(
            "--gen-length, --seed, --raw and --no-stop-at-eos have no effect on a batch file of OpenAI's: "
            "its bodies have max_tokens and seed; leave them out"
        )
    if read_constraint(options) is not None or options.draft is not None:
        raise ConfigError(
            "--json-schema, --regex, --choice and --draft have no effect on a batch file of OpenAI's: its "
            "bodies have response_format and draft; leave them out"
        )
    from unmask.engine.config import EngineConfig
    from unmask.engine.engine import Engine
    from unmask.server.app import create_app
    from unmask.server.settings import ServerSettings

    def decode(rows: Sequence[Row], first: int) -> list[Row]:
        config = EngineConfig(max_num_seqs=size, max_queue=max(size, len(rows)))
        app = create_app(
            llm, Engine(llm, config), ServerSettings((options.model,), defaults=method)
        )

        async def ask_all() -> list[Row]:
            async with app.router.lifespan_context(app):
                calls: Iterator[Awaitable[tuple[int, object]]] = (
                    post(app, str(row["url"]), row["body"]) for row in rows
                )
                replies = await asyncio.gather(*calls)
            return [
                _batch_reply(row, first + number, *reply)
                for number, (row, reply) in enumerate(zip(rows, replies, strict=True))
            ]

        return asyncio.run(ask_all())

    return decode


def _batch_reply(row: Row, index: int, status: int, body: object) -> Row:
    reply = {"status_code": status, "request_id": f"batch-{index}", "body": body}
    error = None
    if status != 200:
        found = body.get("error") if isinstance(body, dict) else None
        message = found.get("message") if isinstance(found, dict) else str(body)
        error = {"code": str(status), "message": one_line(str(message))}
    return {
        "id": f"batch_req_{index}",
        "custom_id": row["custom_id"],
        "response": reply,
        "error": error,
    }


async def post(app: Any, path: str, body: object) -> tuple[int, object]:
    """Return status and JSON of a POST to an ASGI app in this process."""
    data = json.dumps(body).encode()
    inbox: list[dict[str, object]] = [{"type": "http.request", "body": data, "more_body": False}]
    status, parts = 500, list[bytes]()

    async def receive() -> dict[str, object]:
        if inbox:
            return inbox.pop()
        await asyncio.Event().wait()  # the client stays until it has its reply
        raise AssertionError("nothing sets this event")

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    headers = [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
    ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return status, json.loads(b"".join(parts))
