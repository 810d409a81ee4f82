"""`LLM`: prompts in, outputs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from typing_extensions import Unpack

from unmask.canvas import Bools, Canvas, Floats
from unmask.decisions.answers import Decisions
from unmask.decisions.asking import DecisionRequests
from unmask.decisions.calibration import CalibrationLike, calibration_for
from unmask.decisions.canvases import DecisionOptions
from unmask.decisions.questions import DecisionQuestion
from unmask.distributed import tensor_parallel
from unmask.engine.call_options import ConversationOptions, RequestOptions
from unmask.engine.config import MAX_LORA_RANK, MAX_LORAS
from unmask.engine.drafter import draft_by
from unmask.engine.drafts import DraftLike, Pins, read_draft
from unmask.engine.knob_types import Knobs
from unmask.engine.likelihood import Likelihood, loglikelihood
from unmask.engine.loading import facts_of, merge_lora, refuse_options
from unmask.engine.model_runner import ModelRunner
from unmask.engine.origin import FolderWeights, LoadedParts, ModelOrigin, read_ahead
from unmask.engine.output_processor import output_of
from unmask.engine.outputs import Output
from unmask.engine.prompts import Prompt, PromptEncoder, prompt_list
from unmask.engine.request import Request
from unmask.engine.request_builder import (
    INFILL_OPTIONS,
    OPTIONS,
    STREAM_OPTIONS,
    CacheLike,
    DecoderLike,
    Drafter,
    RequestBuilder,
    parse_method,
    with_alternatives,
)
from unmask.engine.scheduler import Event, decode
from unmask.engine.sequence import SequenceState
from unmask.engine.static_step import captured
from unmask.engine.templates import FORMAT_OPTIONS, ChatFormat, Messages
from unmask.engine.text_pool import fork_server
from unmask.engine.text_stream import StopCriteria, TextStream
from unmask.engine.threads import run_in_thread
from unmask.engine.token_frequencies import estimate
from unmask.engine.token_text import TokenTexts
from unmask.engine.tokenizer import load_tokenizer
from unmask.engine.vocabulary import vocabulary_of
from unmask.engine.weight_forms import prepare_weights
from unmask.engine.weight_update import Weights, read_weights, use_weights
from unmask.errors import ConfigError
from unmask.grammar.constraint import TextConstraint
from unmask.knobs import check_flags, whole
from unmask.method import DEFAULT_CACHE, DEFAULT_DECODER
from unmask.models import BUNDLED, read_config, resolve_model
from unmask.models.adapters import AdapterBank, adapter_folders
from unmask.models.registry import find_family
from unmask.models.transformer import Transformer
from unmask.models.weights import Progress
from unmask.progress import CallProgress, ProgressLike


class LLM:
    """A loaded model with its tokenizer.

    `model`: a bundled name ("demo"), a checkpoint folder, a hub id, or a `Transformer`. `revision` of a hub
    id: a branch, a tag or a commit; "owner/name@revision" is the same. `dtype`, e.g. "float32" (the CPU's
    default), "bfloat16", or "auto" (the checkpoint's, but float32 for float16 on a CPU); `device`, e.g.
    "cpu" or "cuda". `tokenizer` overrides the folder's. `pack_weights` adds a copy of large weights in the
    layout of the CPU's float32 and bfloat16 kernels, which makes forwards of few positions faster; None:
    if it fits half of the free memory. `progress(done, total)` is called with bytes as the weights are
    read. `quantization` "int8", or "int4" with dtype="bfloat16" on a CPU, stores the blocks' weights in 8
    or 4 bits (extra `quantize`; models without experts; not packed); "int8-dynamic" multiplies in 8 bits on
    a CPU with VNNI (no extra; faster from 7B on; packs the head). `chat_template` is the name of one of the
    tokenizer's templates, a file, or the text of a template; `chat_template_kwargs` are values that it
    reads, such as enable_thinking. `lora` is the folder of an adapter of PEFT, merged into the weights.
    `adapters` are folders of up to `max_loras` more by name, of ranks up to `max_lora_rank`, which stay
    beside the weights: `generate(adapter=NAME)` chooses one.

    With `tensor_parallel_size` > 1, so many processes, started by torchrun, have a part of the model each;
    the call returns on rank 0 only, and the other processes end with it. Raises ModelError and ConfigError
    like `load_model`, and DependencyError.
    """

    def __init__(  # noqa: PLR0913 - the options of loading are the interface
        self,
        model: str | Path | Transformer = "demo",
        *,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        tokenizer: Any | None = None,
        pack_weights: bool | None = None,
        progress: Progress | None = None,
        quantization: str | None = None,
        tensor_parallel_size: int = 1,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        lora: str | Path | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        max_loras: int = MAX_LORAS,
        max_lora_rank: int = MAX_LORA_RANK,
    ) -> None:
        folders = adapter_folders(adapters or {}, max_loras)
        if (lora is not None or folders) and tensor_parallel_size != 1:
            raise ConfigError(
                "lora and adapters are not for tensor_parallel_size > 1; merge one into a checkpoint"
            )
        parts = LoadedParts(has_other_tokenizer=tokenizer is not None, quantization=quantization)
        if isinstance(model, Transformer):
            refuse_options(revision, dtype, device, lora, adapters, tensor_parallel_size)
            self.name, self.model, self.tokenizer = "model", model, tokenizer
            is_own = False
        else:
            folder = resolve_model(model, revision)
            self.name, self.folder, self.weights_folder = str(model), folder, folder
            adapter = None if lora is None else Path(lora).expanduser()
            parts = replace(parts, folder=folder, lora=adapter)
            is_own = tokenizer is None and folder in BUNDLED.values()
            if not is_own:
                fork_server().start()  # imports transformers while the weights are read
            if tokenizer is None and (chat_template or chat_template_kwargs):
                tokenizer = load_tokenizer(folder)
                # Refuses an unknown template before the weights are read.
                ChatFormat(tokenizer, chat_template, chat_template_kwargs)
            self.model = tensor_parallel.load(folder, dtype, device, progress, tensor_parallel_size)
            self.tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
            if lora is not None:
                merge_lora(self.model, folder, Path(lora).expanduser())
                self.weights_folder = None
        prepare_weights(self.model, quantization, pack_weights, is_loaded=self.folder is not None)
        if folders and self.folder is not None:
            names = find_family(read_config(self.folder), self.folder).names
            self.adapters = AdapterBank(self.model, names, folders, max_lora_rank)
        tensor_parallel.start_workers(self.model)
        self._prepare_requests(chat_template, chat_template_kwargs, is_own, parts)

    folder: Path | None = None
    """Folder of the checkpoint; None for a network from Python."""
    weights_folder: Path | None = None
    """The folder while its weights are the model's: without an adapter, and before `use_weights`."""
    make_runner: Callable[..., ModelRunner] = ModelRunner
    """The class that runs the forwards; measurements replace it."""
    cuda_graphs: bool = True
    """Whether steps of fixed shapes are captured as CUDA graphs; nothing elsewhere. May be set any time."""
    adapters: AdapterBank | None = None
    """The adapters that requests may choose."""

    def _prepare_requests(
        self,
        chat_template: str | Path | None,
        chat_template_kwargs: Mapping[str, object] | None,
        is_own: bool,
        parts: LoadedParts,
    ) -> None:
        """Find the vocabulary, and build the parts that turn prompts into requests. Raises ModelError."""
        self.spec = self.model.spec
        self.vocabulary = vocabulary_of(self.spec, self.tokenizer, self.model.device)
        self.stop_ids = frozenset(self.vocabulary.end_ids)
        self._background: dict[str | None, Floats] = {}
        self.facts = facts_of(self.spec, self.vocabulary, self.background)
        self._token_texts = lru_cache(None)(lambda: TokenTexts(self.tokenizer))
        self._has_text = lru_cache(None)(lambda id_: bool(self.decode([id_])))
        self.prompts = PromptEncoder(
            self.tokenizer,
            self.spec,
            self.name,
            chat_template,
            chat_template_kwargs,
            is_own=is_own,
        )
        if chat_template is not None or chat_template_kwargs:
            text = None if chat_template is None else self.prompts.chat.template()
            parts = replace(parts, template=(text, chat_template_kwargs or {}))
        self._parts = parts
        names = () if self.adapters is None else self.adapters.names
        self.requests = RequestBuilder(
            self.prompts,
            self.facts,
            self.stop_ids,
            self._drafter,
            {name: partial(self.background, name) for name in names},
        )

    def generate(  # noqa: PLR0913 - the call's options are the interface
        self,
        prompts: Prompt | Sequence[Prompt],
        decoder: DecoderLike = DEFAULT_DECODER,
        cache: CacheLike = DEFAULT_CACHE,
        *,
        cache_args: Mapping[str, object] | None = None,
        gen_length: int | None = None,
        n: int = 1,
        seed: int = 0,
        stop_at_eos: bool = True,
        stop_token_ids: Iterable[int] = (),
        return_trace: bool = False,
        trace_alternatives: int = 0,
        raw: bool = False,
        max_batch_size: int = 32,
        constraint: TextConstraint | None = None,
        draft: DraftLike = None,
        pinned: Pins | None = None,
        max_edits: int | None = None,
        adapter: str | None = None,
        progress: ProgressLike = None,
        **knobs: Unpack[Knobs],
    ) -> list[Output]:
        """Decode `n` answers to every prompt, in order: those to the first prompt come first.

        `prompts`: a string, a list of strings, or lists of token ids. A string is one user turn in the
        model's chat template if it has one; with `raw=True` it is plain text. `gen_length` positions are
        generated (default 128; decoder daedal chooses the number itself); with `stop_at_eos`, decoding ends
        early when all positions before an end token are decided; `stop_token_ids` are further end tokens,
        or the only ones without `stop_at_eos`. Output i has the seed `seed` + i, which fixes its randomness
        in any batch: it alone is the call with its prompt and `seed` + i. Up to `max_batch_size` rows share
        a forward. `knobs` are those of `SamplingParams` (`temperature`...) and the decoder's own (`steps`,
        `threshold`...); `decoder` may include some: "prophet(inner=cadllm)". Knobs of the cache are in
        `cache_args`, called `cache.NAME`, or part of its name: "dllm(kp=50, kr=7)". Both may be your own:
        an object (`Threshold(threshold=0.8)`), a class, a file ("./mine.py"), "module:Class", or the entry
        point of an installed package. A `MethodSpec` as `decoder` has all of these. `constraint`, made by
        `unmask.regex`, `choice`, `json_schema` or `json_object`, holds for every answer; it excludes
        vocabulary=frequency and union. A trace has the `trace_alternatives` (at most 20) likeliest tokens
        of each commit. `draft`, a text or ids (or a list, one for each prompt), is what the answer begins
        as, and sets the default length; a decoder that revises changes it, at most `max_edits` tokens and
        nothing `pinned`: texts, or ranges [start, end) of characters (ids: positions). `adapter`: one by
        name. `progress`: True, False, or a function of decided and all positions; None: a bar where seen.
        Raises PromptError (empty, too long, unknown ids) and ConfigError (anything that is not allowed).
        """
        max_batch_size, n = whole("max_batch_size", max_batch_size, 1), whole("n", n, 1)
        check_flags(stop_at_eos=stop_at_eos, return_trace=return_trace, raw=raw)
        method = parse_method(decoder, cache, cache_args, knobs, gen_length=gen_length)
        template = self.requests.template(
            method,
            seed=seed,
            stop_at_eos=stop_at_eos,
            stop_token_ids=stop_token_ids,
            constraint=constraint,
            draft=read_draft(draft, pinned, max_edits),
            adapter=adapter,
        )
        rows = self.requests.rows(template, prompt_list(prompts), gen_length, n, raw=raw)
        rows = with_alternatives(rows, trace_alternatives, has_trace=return_trace)
        return [self.output(one, return_trace) for one in self.run(rows, max_batch_size, progress)]

    @overload
    def chat(
        self,
        messages: Messages,
        decoder: DecoderLike = ...,
        *,
        n: None = None,
        **options: Unpack[ConversationOptions],
    ) -> Output: ...

    @overload
    def chat(
        self,
        messages: Messages,
        decoder: DecoderLike = ...,
        *,
        n: int,
        **options: Unpack[ConversationOptions],
    ) -> list[Output]: ...

    def chat(
        self,
        messages: Messages,
        decoder: DecoderLike = DEFAULT_DECODER,
        *,
        n: int | None = None,
        **options: Unpack[ConversationOptions],
    ) -> Output | list[Output]:
        """Decode the assistant's next turn; `messages` are dicts with "role" and "content".

        Returns one output, or with `n` a list of so many, sampled as in `generate`. Options and errors as
        those of `generate` and of `chat_ids`.
        """
        values = cast(dict[str, Any], options)
        own = {key: values.pop(key) for key in FORMAT_OPTIONS if key in values}
        ids = self.chat_ids(messages, **own)
        if n is None:
            return self.generate([ids], decoder, **values)[0]
        return self.generate([ids], decoder, n=n, **values)

    def infill(  # noqa: PLR0913 - the call's options are the interface
        self,
        parts: Sequence[str | int],
        decoder: DecoderLike = DEFAULT_DECODER,
        cache: CacheLike = DEFAULT_CACHE,
        *,
        cache_args: Mapping[str, object] | None = None,
        seed: int = 0,
        return_trace: bool = False,
        trace_alternatives: int = 0,
        constraint: TextConstraint | None = None,
        draft: DraftLike = None,
        pinned: Pins | None = None,
        max_edits: int | None = None,
        adapter: str | None = None,
        progress: ProgressLike = None,
        **knobs: Unpack[Knobs],
    ) -> Output:
        """Fill the blanks of a text: `parts` are strings and numbers of blank tokens.

        Example: `infill(["The ", 3, " sat on the mat."])`. The whole text is one block without
        `block_length`. The output's `text` is the whole text, its `blanks` are the filled texts, each of
        which meets `constraint` on its own; of several blanks, `draft` has one text (or None) for each, and
        a `pinned` part ends a blank like given text. Other options as in `generate`.
        """
        method = parse_method(decoder, cache, cache_args, knobs, options=INFILL_OPTIONS)
        request = self.requests.request(
            self.infill_canvas(parts),
            method,
            seed=seed,
            constraint=constraint,
            draft=read_draft(draft, pinned, max_edits),
            adapter=adapter,
        )
        rows = with_alternatives([request], trace_alternatives, has_trace=return_trace)
        return self.output(self.run(rows, 1, progress)[0], return_trace)

    @overload
    def stream(
        self,
        content: Canvas,
        decoder: DecoderLike = ...,
        cache: CacheLike = ...,
        **options: Unpack[RequestOptions],
    ) -> Iterator[Event]: ...

    @overload
    def stream(
        self,
        content: Prompt,
        decoder: DecoderLike = ...,
        cache: CacheLike = ...,
        *,
        mode: Literal["text"] = "text",
        **options: Unpack[RequestOptions],
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self,
        content: Prompt,
        decoder: DecoderLike = ...,
        cache: CacheLike = ...,
        *,
        mode: Literal["canvas"],
        **options: Unpack[RequestOptions],
    ) -> Iterator[Canvas]: ...

    def stream(
        self,
        content: Prompt | Canvas,
        decoder: DecoderLike = DEFAULT_DECODER,
        cache: CacheLike = DEFAULT_CACHE,
        *,
        mode: Literal["text", "canvas"] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Iterator[str] | Iterator[Canvas] | Iterator[Event]:
        """Decode one prompt and yield its progress; `options` are those of `request`.

        `mode` "text" (the default) yields pieces of text as soon as they can no longer change: joined they
        are the text of `generate`. "canvas" yields the canvas before the first forward and after each one.
        For a `Canvas` (of `prompt_canvas` or `infill_canvas`) it yields an event per forward, without mode.
        All options are checked at the call. Raises PromptError and ConfigError.
        """
        is_canvas = isinstance(content, Canvas)
        modes = (None,) if is_canvas else (None, "text", "canvas")
        if mode not in modes:
            allowed = "left out for a canvas" if is_canvas else "'text' or 'canvas'"
            raise ConfigError(f"mode={mode!r} must be {allowed}")
        request = self.request(content, decoder, cache, **options)
        if is_canvas:
            return self.events([request], 1)
        return self._canvases(request) if mode == "canvas" else self._deltas(request)

    def _canvases(self, request: Request) -> Iterator[Canvas]:
        for number, event in enumerate(self.events([request], 1)):
            if number == 0:
                yield event.before
            yield event.sequence.canvas

    def _deltas(self, request: Request) -> Iterator[str]:
        text = TextStream(self.decode, StopCriteria(request.stop_ids), request.canvas.prompt_length)
        for event in self.events([request], 1):
            sequence = event.sequence
            is_last = sequence.finish_reason is not None
            if delta := text.feed(sequence.canvas, sequence.num_settled, is_last=is_last):
                yield delta

    def request(  # noqa: PLR0913 - the call's options are the interface
        self,
        content: Prompt | Canvas,
        decoder: DecoderLike = DEFAULT_DECODER,
        cache: CacheLike = DEFAULT_CACHE,
        *,
        cache_args: Mapping[str, object] | None = None,
        gen_length: int | None = None,
        seed: int = 0,
        stop_at_eos: bool = True,
        stop_token_ids: Iterable[int] = (),
        raw: bool = False,
        constraint: TextConstraint | None = None,
        draft: DraftLike = None,
        pinned: Pins | None = None,
        max_edits: int | None = None,
        trace_alternatives: int = 0,
        adapter: str | None = None,
        **knobs: Unpack[Knobs],
    ) -> Request:
        """Return one request for an engine to decode; options as those of `generate`.

        `content` is a prompt, or a canvas (of `prompt_canvas` or `infill_canvas`), which has its positions
        already. All checks are done here, in the caller's thread. Raises PromptError and ConfigError.
        """
        options = STREAM_OPTIONS if isinstance(content, Canvas) else OPTIONS
        method = parse_method(
            decoder, cache, cache_args, knobs, gen_length=gen_length, options=options
        )
        request = self.requests.request(
            content,
            method,
            gen_length=gen_length,
            seed=seed,
            stop_at_eos=stop_at_eos,
            stop_token_ids=stop_token_ids,
            raw=raw,
            constraint=constraint,
            draft=read_draft(draft, pinned, max_edits),
            adapter=adapter,
        )
        return with_alternatives([request], trace_alternatives)[0]

    def prompt_canvas(
        self, prompt: Prompt, gen_length: int, *, raw: bool = False, option: str = "gen_length"
    ) -> Canvas:
        """See `PromptEncoder.prompt_canvas`."""
        return self.prompts.prompt_canvas(prompt, gen_length, raw=raw, option=option)

    def prompt_ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """See `PromptEncoder.prompt_ids`."""
        return self.prompts.prompt_ids(prompt, raw=raw)

    def chat_ids(self, messages: Messages, **options: Any) -> list[int]:
        """See `PromptEncoder.chat_ids`; options: those of `ChatFormat.render`."""
        return self.prompts.chat_ids(messages, **options)

    def infill_canvas(self, parts: Sequence[str | int]) -> Canvas:
        """See `PromptEncoder.infill_canvas`."""
        return self.prompts.infill_canvas(parts)

    def middle_canvas(
        self, prefix: Prompt, num_blanks: int, suffix: str, *, special: bool = True
    ) -> Canvas:
        """See `PromptEncoder.middle_canvas`."""
        return self.prompts.middle_canvas(prefix, num_blanks, suffix, special=special)

    def _drafter(self, name: str) -> Drafter:
        """Return the drafter of a smaller model, loaded by name; see `draft_by`."""
        small = LLM(name, dtype=self.model.dtype, device=self.model.device)
        if small.spec.vocab_size != self.spec.vocab_size:
            raise ConfigError(
                f"drafter={name!r} has {small.spec.vocab_size} rows of vocabulary, the model "
                f"{self.spec.vocab_size}; use a drafter with the same tokenizer"
            )
        return draft_by(small)

    def background(self, adapter: str | None = None) -> Floats:
        """Return each token's frequency in the model's output on empty canvases, `(V,)`; measured once.

        With an `adapter`, in its output.
        """
        if adapter not in self._background:
            length = min(64, self.spec.max_length - 1)

            def measure() -> Floats:
                with nullcontext() if self.adapters is None else self.adapters.only(adapter):
                    return estimate(self.model, self.tokenizer, length=length)

            self._background[adapter] = run_in_thread(measure)
        return self._background[adapter]

    def loglikelihood(
        self, prompt: Prompt | Sequence[Prompt], answer: Prompt | Sequence[Prompt], **options: Any
    ) -> Likelihood | list[Likelihood]:
        """Return ln p(answer | prompt) in nats; options and errors: `engine.likelihood.loglikelihood`."""
        return loglikelihood(self.model, self.prompts, prompt, answer, **options)

    def decide(
        self,
        content: str,
        questions: Sequence[DecisionQuestion],
        *,
        calibration: CalibrationLike = None,
        max_batch_size: int = 32,
        **options: Any,
    ) -> Decisions:
        """Return the answers to questions about a text; options are those of `DecisionOptions`."""
        own = calibration_for(calibration, self.weights_folder, self.name)
        asked = DecisionRequests.about(
            self.requests, content, questions, DecisionOptions.of(options)
        )
        events = self.events(list(asked.requests), whole("max_batch_size", max_batch_size, 1))
        found = {event.sequence.index: event.reading for event in events if event.reading}
        return asked.decisions([found[row] for row in range(len(asked.rows))], own)

    def read_weights(self, folder: str | Path) -> FolderWeights:
        """Return the weights of a checkpoint of the same shape, for `use_weights`.

        Raises ModelError for another shape, ConfigError for a quantized or sharded model, and for one with
        adapters.
        """
        path = resolve_model(folder)
        with read_ahead(path) as digests:
            weights = FolderWeights(read_weights(self.model, path))
            weights.digest = digests.result()["weights"]
        return weights

    def use_weights(self, weights: Weights) -> None:
        """Exchange the weights, not the tokenizer; not while it decodes: see `Engine.change`."""
        use_weights(self.model, weights)
        digest = weights.digest if isinstance(weights, FolderWeights) else None
        self._parts = replace(self._parts, exchanged=(digest,))
        self._background.clear()
        self.weights_folder = None

    def origin(self) -> ModelOrigin:
        """Return digests of the model's files as they are now, and its dtype. Raises ModelError."""
        return self._parts.origin(self.model)

    def output(self, sequence: SequenceState, return_trace: bool) -> Output:
        """Return the output of a finished sequence."""
        name = sequence.request.adapter or self.name
        return output_of(sequence, self.decode, return_trace, self._token_texts, name)

    def decode(self, ids: list[int], fixed: Bools | None = None) -> str:
        """Return the text of token ids without special tokens; empty without a tokenizer.

        For an infilled text, `ids` starts at its first position and `fixed` is True for the tokens of the
        prompt. Special tokens among these are included, except for those that the tokenizer prepended.
        """
        if self.tokenizer is None:
            return ""
        if fixed is None:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))
        begin = self.prompts.begin
        first = len(begin) if ids[: len(begin)] == begin else 0
        pairs = list(zip(ids, fixed[: len(ids)].tolist(), strict=True))[first:]
        visible = [id_ for id_, is_fixed in pairs if is_fixed or self._has_text(id_)]
        return str(self.tokenizer.decode(visible, skip_special_tokens=False))

    def events(self, requests: list[Request], max_batch_size: int) -> Iterator[Event]:
        """Decode requests, up to `max_batch_size` in a forward; yield an event per forward and sequence."""
        sequences = [SequenceState.begin(item, i) for i, item in enumerate(requests)]
        if not sequences:
            return
        rows = max(sequence.num_rows for sequence in sequences)
        runner = self.make_runner(
            self.model,
            self.vocabulary,
            max_rows=rows * min(max_batch_size, len(sequences)),
            max_positions=max(request.max_positions for request in requests),
            store=any(sequence.request.cache.stores for sequence in sequences),
            features=any(s.request.cache.layered for s in sequences),
            adapters=self.adapters,
            capture=captured if self.cuda_graphs else None,
        )
        yield from decode(sequences, runner)

    def run(
        self, requests: list[Request], max_batch_size: int, progress: ProgressLike = False
    ) -> list[SequenceState]:
        """Decode requests and return their finished sequences in order; `progress` as in `generate`."""
        finished: dict[int, SequenceState] = {}
        sizes = [int((~request.canvas.fixed).sum()) for request in requests]
        done = dict.fromkeys(range(len(requests)), 0)
        with CallProgress(progress, "decoding", "positions") as report:
            for event in self.events(requests, max_batch_size):
                sequence = event.sequence
                if sequence.finish_reason is not None:
                    finished[sequence.index] = sequence
                if progress is not False:
                    is_done = sequence.index in finished
                    size, canvas = sizes[sequence.index], sequence.canvas
                    num_decided = int((~canvas.open & ~canvas.fixed).sum())
                    done[sequence.index] = size if is_done else min(size, num_decided)
                    report(sum(done.values()), sum(sizes))
        return [finished[i] for i in range(len(requests))]
