"""Templates and tokenizers that mean harm: each ends within its limits, and what runs beside it goes on."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from copy import copy
from functools import partial
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from unmask.engine import templates, text_pool
from unmask.engine.templates import ChatFormat
from unmask.engine.text_frames import MAX_FRAME, FrameError, packed, unpacked
from unmask.engine.text_pool import TextLimits, TextPool, WorkerConnection, time_limit
from unmask.engine.tokenizer import load_tokenizer
from unmask.errors import ModelError, PromptError, TextLimitError
from unmask.models import BUNDLED

ASK = [{"role": "user", "content": "How many?"}]
LOOPS = {
    "two ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "while by a macro": "{% macro f(n) %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}{% endmacro %}{{ f(1) }}",
    "a power in C": "{{ (9 ** (9 ** 9)) % 7 }}",
    "a sort in C": "{% set x = range(99999)|list %}{% for i in range(99999) %}"
    "{% set y = x|sort(reverse=true) %}{% endfor %}",
    "only for users": "{% for m in messages %}{% if m.role == 'user' %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}",
}
BOMBS = {
    "a text": "{{ 'x' * 10**10 }}",
    "a list": "{{ ([1] * 10**9)|length }}",
    "a format": "{{ '%5000000000d' % 1 }}",
    "a filter": "{{ 'x'|center(5000000000) }}",
    "a doubling": "{% set ns = namespace(s='a' * 2**20) %}{% for i in range(30) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
}
FAILURES = {
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a huge range": ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    "an exception": ("{{ raise_exception('x' * 10**6) }}", "refuses these messages"),
    "a long text": ("{{ 'x' * (2**24 + 1) }}", "at most 16777216 are allowed"),
    "nesting": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "chat template"),
}


@pytest.fixture(scope="module")
def original():
    return load_tokenizer(BUNDLED["demo"])


@pytest.fixture
def tokenizer(original):
    return copy(original)


@pytest.fixture(scope="module")
def pool(original):
    """Workers with a copy of the tokenizer: it is not treated as the package's own."""
    pool = TextPool(copy(original))
    pool.encode("ready", special=False)
    yield pool
    pool.stop()


@pytest.fixture
def short(monkeypatch):
    limits = TextLimits(processor_s=0.3, time_s=20.0)
    monkeypatch.setattr(text_pool.WorkerConnection.call, "__defaults__", (limits, None))


@pytest.fixture
def patient(monkeypatch):
    """Much time: only the limit of memory can end a call, on a busy machine too."""
    limits = TextLimits(processor_s=120.0, time_s=240.0)
    monkeypatch.setattr(text_pool.WorkerConnection.call, "__defaults__", (limits, None))


def test_workers_give_what_the_tokenizer_gives(pool, original):
    for text in ("How many?", "", " a  b\n", "é文🙂", "<|eot_id|>x"):
        for special in (False, True):
            expected = original(text, add_special_tokens=special)["input_ids"]
            assert pool.encode(text, special=special) == expected
    turns = [{"role": "system", "content": "Be brief."}, *ASK]
    expected = original.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert pool.render(original.chat_template, turns, {}) == expected


@pytest.mark.parametrize("name", LOOPS)
def test_a_template_that_loops_is_stopped(pool, short, name):
    began = time.monotonic()
    with pytest.raises(
        TextLimitError, match=r"chat template takes more than 0\.3 s and was stopped"
    ):
        pool.render(LOOPS[name], ASK, {})
    assert time.monotonic() - began < 20
    assert pool.encode("How", special=False), "another worker takes its place"


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_allocates_is_stopped(pool, patient, name):
    with pytest.raises(TextLimitError, match="needs more than 2048 MiB of memory and was stopped"):
        pool.render(BOMBS[name], ASK, {})
    assert pool.encode("How", special=False)


@pytest.mark.parametrize("name", FAILURES)
def test_a_template_that_fails_is_told_in_one_short_error(pool, name):
    template, reason = FAILURES[name]
    with pytest.raises(PromptError, match=reason) as caught:
        pool.render(template, ASK, {})
    assert len(str(caught.value)) < 600


def test_a_template_that_loops_is_found_once_and_then_refused_at_once(tokenizer, short):
    chat = ChatFormat(tokenizer, LOOPS["two ranges"])
    assert "was stopped" in (chat.problem() or "")
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(TextLimitError, match="not tried again"):
            chat.render(ASK)
    assert time.monotonic() - began < 0.3, "no process was asked"


@pytest.mark.parametrize(("num_slow", "is_refused"), [(1, False), (20, True)])
def test_a_template_that_is_slow_each_time_is_tried_twice(
    tokenizer, monkeypatch, num_slow, is_refused
):
    monkeypatch.setattr(templates, "SLOW_S", 0.05)
    taken = []

    class Slow:
        def render(self, template, messages, variables):
            taken.append(0.1 if len(taken) < num_slow else 0.0)
            time.sleep(taken[-1])
            return "".join(str(message["content"]) for message in messages)

    problem = ChatFormat(tokenizer, "{{ messages }}", pool=Slow()).problem()
    assert (len(taken) == 2) == is_refused
    if is_refused:
        assert problem.startswith(
            "the model's chat template takes 0.1 s for 4 words; at most 0.05 s"
        )
    else:
        assert problem is None


def test_a_call_ends_with_the_time_limit_around_it(pool):
    began = time.monotonic()
    with (
        time_limit(60.0),
        time_limit(0.2),
        pytest.raises(TextLimitError, match=r"more than 0\.\d+ s"),
    ):
        pool.render(LOOPS["two ranges"], ASK, {})
    assert time.monotonic() - began < 4
    with time_limit(0.0), pytest.raises(TextLimitError, match="busy|no time left"):
        pool.render("x", ASK, {})


def test_one_that_loops_does_not_stop_the_others(pool, short):
    errors: list[str] = []

    def loop() -> None:
        try:
            with time_limit(5.0):
                pool.render(LOOPS["two ranges"], ASK, {})
        except TextLimitError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=loop) for _ in range(text_pool.MAX_WORKERS - 1)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert pool.encode("How many?", special=False)
    for thread in threads:
        thread.join(30)
    assert len(errors) == len(threads)


def test_stopping_ends_the_calls_in_progress(original):
    pool, errors = TextPool(copy(original)), list[str]()
    pool.encode("ready", special=False)

    def loop() -> None:
        with pytest.raises(TextLimitError) as caught:
            pool.render(LOOPS["two ranges"], ASK, {})
        errors.append(str(caught.value))

    thread = threading.Thread(target=loop)
    thread.start()
    until = time.monotonic() + 10
    while not pool._busy and time.monotonic() < until:
        time.sleep(0.01)
    pool.stop()
    thread.join(3)
    assert errors
    assert pool.encode("x", special=False), "later calls start others"


class OwnTokenizer:
    """The caller's own code, which runs in the caller's process."""

    chat_template = "x"

    def __init__(self) -> None:
        self.pids: list[int] = []

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        self.pids.append(os.getpid())
        return {"input_ids": [len(text)]}


def test_a_tokenizer_of_the_callers_is_called_directly():
    own = OwnTokenizer()
    assert TextPool(own).encode("abc", special=False) == [3]
    assert own.pids == [os.getpid()]


def test_only_the_templates_of_an_own_tokenizer_are_rendered_directly(original, monkeypatch):
    pool = TextPool(original, is_own=True)
    monkeypatch.setattr(TextPool, "_call", lambda self, call, *rest: "by a worker")
    assert "How many?" in pool.render(original.chat_template, ASK, {})
    assert pool.render(original.chat_template + " ", ASK, {}) == "by a worker"


def hostile(folder: Path, change) -> Path:
    """A copy of the demo's folder whose `tokenizer.json` is changed."""
    shutil.copytree(BUNDLED["demo"], folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")
    return folder


def splits(pattern, parts):
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    parts["pre_tokenizer"] = json.loads(own.to_str())["pre_tokenizer"]


def grows(parts):
    own = Tokenizer(models.BPE())
    own.normalizer = normalizers.Sequence([normalizers.Replace(Regex("."), "x" * 1000)] * 5)
    parts["normalizer"] = json.loads(own.to_str())["normalizer"]


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        ("(?:a|aa)+$", "a" * 64 + "!", "fails on a text of 65 characters: PanicException"),
        (r"a+\d", "a" * 300_000, r"for a text of 300000 characters, takes more than 0\.3 s"),
        (r"(?:a+)+\d", "a" * 300_000, "text of 300000 characters"),
    ],
)
def test_a_regular_expression_that_backtracks_ends(tmp_path, short, pattern, text, message):
    folder = hostile(tmp_path / "model", partial(splits, pattern))
    pool = TextPool(load_tokenizer(folder))
    with pytest.raises(PromptError, match=message):
        pool.encode(text, special=False)
    assert pool.encode("How", special=False)


def test_a_normalizer_that_grows_without_end_is_refused_as_it_is_loaded(tmp_path):
    folder = hostile(tmp_path / "model", grows)
    with pytest.raises(ModelError, match="tokenizer") as caught:
        load_tokenizer(folder)
    assert len(str(caught.value)) < 1500


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BAD_DECODERS = {
    "grows in stages": {"type": "Sequence", "decoders": [REPLACE] * 40},
    "grows at once": REPLACE | {"content": "a" * 1000},
    "grows from nothing": REPLACE | {"pattern": {"String": ""}},
    "backtracks": REPLACE | {"pattern": {"Regex": "(a|a)*b"}},
    "backtracks in a sequence": {
        "type": "Sequence",
        "decoders": [{"type": "Fuse"}, REPLACE | {"pattern": {"Regex": "(?:a+)+$"}}],
    },
}


@pytest.mark.parametrize("name", BAD_DECODERS)
def test_a_decoder_that_may_run_without_end_is_refused(tmp_path, name):
    """Texts are decoded in the server's own process, so that its decoder must be harmless."""
    folder = hostile(tmp_path / "model", lambda parts: parts.update(decoder=BAD_DECODERS[name]))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "decoder",
    [
        REPLACE | {"pattern": {"String": "\u2581"}, "content": " "},
        REPLACE | {"pattern": {"Regex": " +"}, "content": " "},
        {"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        None,
    ],
)
def test_decoders_that_cannot_grow_much_are_allowed(tmp_path, decoder):
    folder = hostile(tmp_path / "model", lambda parts: parts.update(decoder=decoder))
    assert load_tokenizer(folder) is not None


@pytest.mark.parametrize("size", [0, 1, 100, 50_000])
def test_a_tokenizer_that_is_cut_off_is_refused(tmp_path, size):
    folder = hostile(tmp_path / "model", lambda parts: None)
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match="cannot be read|not valid JSON"):
        load_tokenizer(folder)


def test_nesting_that_crashes_a_parser_is_refused(tmp_path):
    folder = hostile(tmp_path / "model", lambda parts: None)
    deep = '{"normalizer":' + '{"type":"Sequence","normalizers":[' * 100_000
    (folder / "tokenizer.json").write_text(deep, encoding="utf-8")
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(folder)


def test_messages_may_hold_what_json_does_not(pool):
    odd = [{"role": "user", "content": "a", "when": object(), "pair": (1, 2), "none": None}]
    assert pool.render("{{ messages[0].when }}{{ messages[0].pair }}", odd, {}) == "<object>[1, 2]"
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(PromptError, match="cannot be written as JSON"):
        pool.render("x", [{"role": "user", "content": endless}], {})


def test_frames_are_bounded():
    assert unpacked(packed({"a": [1, "\ud800"]})) == {"a": [1, "\ud800"]}
    for data in (b"", b"{", b"[" * 10**6):
        with pytest.raises(FrameError):
            unpacked(data)
    assert MAX_FRAME >= 6 * (1 << 24)


SCRIPT = """
import sys, time
from unmask.engine.text_pool import TextPool, fork_server
from unmask.engine.tokenizer import load_tokenizer
from unmask.models import BUNDLED
import copy, threading
pool = TextPool(copy.copy(load_tokenizer(BUNDLED["demo"])))
pool.encode("ready", special=False)
print(fork_server()._process.pid, flush=True)
threading.Thread(target=pool.render, args=(sys.argv[1], [], {}), daemon=True).start()
time.sleep(float(sys.argv[2]))
"""


def children_of(group: int) -> list[int]:
    """Return the processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="ascii", errors="replace")
            except OSError:
                continue
            state, _, its_group = fields.rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("is_killed", [False, True])
def test_all_processes_end_with_the_one_that_started_them(is_killed):
    seconds = "60" if is_killed else "0.5"
    command = [sys.executable, "-c", SCRIPT, LOOPS["two ranges"], seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        group = int(process.stdout.readline())
        assert len(children_of(group)) >= 2, "the fork server and a worker"
        if is_killed:
            process.kill()
        process.wait(30)
    until = time.monotonic() + 10
    while children_of(group) and time.monotonic() < until:
        time.sleep(0.05)
    assert not children_of(group)


def test_secrets_of_the_environment_are_not_in_a_worker(monkeypatch, tokenizer):
    worker = WorkerConnection()
    worker.call({"call": "take"}, text_pool.LOAD_LIMITS, pickle.dumps(Spy()))
    assert worker.call({"call": "encode", "text": "UNMASK_API_KEY", "special": False}) == [0]
    worker.close()


class Spy:
    """Unpickled in a worker, it becomes a function that looks up a variable of the environment."""

    def __reduce__(self):
        program = "lambda text, add_special_tokens: {'input_ids': [int(text in __import__('os').environ)]}"
        return eval, (program,)
