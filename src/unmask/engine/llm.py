"""`LLM`: prompts in, outputs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from unmask.canvas import Bools, Canvas, Floats, ModelFacts
from unmask.distributed import tensor_parallel
from unmask.engine.likelihood import Likelihood, loglikelihood
from unmask.engine.model_runner import ModelRunner
from unmask.engine.output_processor import output_of
from unmask.engine.outputs import Output
from unmask.engine.prompts import Messages, Prompt, prompt_list
from unmask.engine.request import Request
from unmask.engine.request_builder import INFILL_OPTIONS, STREAM_OPTIONS, Requests, flags
from unmask.engine.scheduler import Event, decode
from unmask.engine.sequence import SequenceState
from unmask.engine.threads import run_in_thread
from unmask.engine.token_frequencies import estimate
from unmask.engine.tokenizer import load_tokenizer, token_id
from unmask.errors import ConfigError, ModelError
from unmask.knobs import whole
from unmask.models import resolve_model
from unmask.models.packed_weights import can_pack
from unmask.models.packed_weights import pack_weights as pack
from unmask.models.quantize import quantize_weights
from unmask.models.transformer import Transformer
from unmask.models.weights import Progress
from unmask.sampling.sampler import Vocabulary

GEN_LENGTH = 128


class LLM(Requests):
    """A loaded model with its tokenizer.

    `model`: a bundled name ("demo"), a checkpoint folder, a hub id, or a `Transformer`. `dtype`, e.g.
    "float32" (the CPU's default) or "bfloat16"; `device`, e.g. "cpu" or "cuda". `tokenizer` overrides
    the folder's. `pack_weights` keeps the large weights a second time in the layout of the CPU's float32
    kernels, which makes forwards of few positions 2 to 4 times as fast; None: where half of the free memory
    holds them. `progress` is told the bytes of the weights that were read and those there are.
    `quantization="int8"`, or "int4" with dtype="bfloat16" on a CPU, keeps the blocks' weights in so many
    bits (extra `quantize`; dense models; not packed).
    `tensor_parallel_size` processes, started by torchrun, hold a part each; the call returns on rank 0, and
    ends the other processes when rank 0 is done. Raises ModelError and ConfigError like `load_model`, and
    DependencyError.
    """

    def __init__(
        self,
        model: str | Path | Transformer = "demo",
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        tokenizer: Any | None = None,
        pack_weights: bool | None = None,
        progress: Progress | None = None,
        quantization: str | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        if isinstance(model, Transformer):
            if dtype is not None or device is not None or tensor_parallel_size != 1:
                raise ConfigError(
                    "dtype, device and tensor_parallel_size belong to loading; this model is loaded"
                )
            self.name, self.model, self.tokenizer = "model", model, tokenizer
        else:
            folder = resolve_model(model)
            self.name = str(model)
            self.model = tensor_parallel.load(folder, dtype, device, progress, tensor_parallel_size)
            self.tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
        if quantization is not None:
            if pack_weights:
                raise ConfigError(
                    f"pack_weights=True has no kernels for quantization={quantization!r}"
                )
            quantize_weights(self.model, quantization)
        elif pack_weights is None or pack_weights:
            packable = can_pack(self.model)
            if pack_weights and not packable:
                raise ConfigError(
                    "pack_weights=True needs large float32 weights on the CPU, PyTorch's oneDNN "
                    "kernels, and free memory of twice their size; leave it out"
                )
            if packable:
                pack(self.model)
        tensor_parallel.start_workers(self.model)
        self.spec = self.model.spec
        self.vocabulary = self._vocabulary()
        self._background: Floats | None = None
        self._drafters: dict[str, LLM] = {}
        self.facts = ModelFacts(
            vocab_size=self.spec.vocab_size,
            eos_id=self.vocabulary.eos_id,
            turn_end_id=self.vocabulary.turn_end_id,
            block_size=self.spec.block_size,
            max_length=self.spec.max_length,
            background=self.background,
        )
        self._has_text = lru_cache(None)(lambda id_: bool(self.decode([id_])))
        ends = (self.vocabulary.eos_id, self.vocabulary.turn_end_id)
        self.stop_ids = frozenset(id_ for id_ in ends if id_ is not None)

    make_runner: Callable[..., ModelRunner] = ModelRunner
    """What runs the forwards; a measurement puts its own in its place."""

    def _vocabulary(self) -> Vocabulary:
        rows = self.spec.vocab_size
        known = rows if self.tokenizer is None else len(self.tokenizer)
        if known > rows:
            raise ModelError(f"the tokenizer has {known} tokens, the model only {rows} rows")
        if not 0 <= self.spec.mask_id < rows:
            raise ModelError(f"mask_token_id={self.spec.mask_id} is outside the {rows} rows")
        forbidden = sorted({self.spec.mask_id, *range(known, rows)})
        return Vocabulary(
            token_ids=torch.arange(rows, device=self.model.device),
            forbidden=torch.tensor(forbidden, device=self.model.device),
            eos_id=self.spec.eos_id if self.spec.eos_id < rows else None,
            turn_end_id=token_id(self.tokenizer, self.spec.turn_end),
        )

    def generate(  # noqa: PLR0913 - the call's options are the interface
        self,
        prompts: Prompt | Sequence[Prompt],
        decoder: str = "vanilla",
        cache: str = "none",
        *,
        cache_args: Mapping[str, Any] | None = None,
        gen_length: int | None = None,
        seed: int = 0,
        stop_at_eos: bool = True,
        return_trace: bool = False,
        raw: bool = False,
        max_batch_size: int = 32,
        **knobs: Any,
    ) -> list[Output]:
        """Decode an answer to every prompt, in order.

        `prompts`: a string, strings, or lists of token ids (used as given). A string is one user turn in
        the model's chat template when it has one; `raw=True` takes it as plain text. `gen_length`
        positions are generated (128 by default; decoder daedal finds its own); `stop_at_eos` ends early
        when an end token has everything before it. `seed` fixes all randomness of a request, whatever the
        batch. `max_batch_size` rows share a forward. `knobs`: those of `SamplingParams` (`temperature`,
        `cfg_scale`, `vocabulary`...) and the decoder's own (`steps`, `block_length`, `threshold`...).
        `decoder` may carry some: "prophet(inner=cadllm)". `cache` takes its own in `cache_args`, as
        knobs called `cache.NAME`, or in its name: "dllm(kp=50, kr=7)".

        Raises PromptError (empty, too long, ids outside the vocabulary) and ConfigError (anything that
        is not allowed, with the nearest name).
        """
        max_batch_size = whole("max_batch_size", max_batch_size, 1)
        flags(stop_at_eos=stop_at_eos, return_trace=return_trace, raw=raw)
        listed = prompt_list(prompts)
        make = self._maker(decoder, (cache, cache_args), seed, stop_at_eos, knobs)
        decoder_ = make.method.decoder
        length = self.first_length(decoder_, gen_length)
        option = decoder_.length_knob
        canvases = [self.prompt_canvas(prompt, length, raw=raw, option=option) for prompt in listed]
        finished = self._run([make(canvas) for canvas in canvases], max_batch_size)
        return [self.output(sequence, return_trace) for sequence in finished]

    def chat(self, messages: Messages, decoder: str = "vanilla", **options: Any) -> Output:
        """The assistant's next turn. `messages`: dicts with "role" and "content"; options as `generate`."""
        return self.generate([self.chat_ids(messages)], decoder, **options)[0]

    def infill(
        self,
        parts: Sequence[str | int],
        decoder: str = "vanilla",
        cache: str = "none",
        *,
        cache_args: Mapping[str, Any] | None = None,
        seed: int = 0,
        return_trace: bool = False,
        **knobs: Any,
    ) -> Output:
        """Fill the blanks of a text: `parts` are strings and numbers of blank tokens.

        `infill(["The ", 3, " sat on the mat."])`. The whole text is one block unless `block_length`
        says otherwise. `out.text` is the whole text, `out.blanks` the fillings.
        """
        make = self._maker(decoder, (cache, cache_args), seed, False, knobs, INFILL_OPTIONS)
        canvas = self.infill_canvas(parts)
        return self.output(self._run([make(canvas)], 1)[0], return_trace)

    def stream(
        self,
        canvas: Canvas,
        decoder: str = "vanilla",
        cache: str = "none",
        *,
        cache_args: Mapping[str, Any] | None = None,
        seed: int = 0,
        stop_at_eos: bool = True,
        **knobs: Any,
    ) -> Iterator[Event]:
        """Decode one canvas (`prompt_canvas`, `infill_canvas`), an event a forward."""
        make = self._maker(decoder, (cache, cache_args), seed, stop_at_eos, knobs, STREAM_OPTIONS)
        request = make(canvas)
        yield from self._events([request], 1)

    def background(self) -> Floats:
        """How frequent each token is in what the model says of empty canvases, `(V,)`; measured once."""
        if self._background is None:
            room = self.spec.max_length - 1
            self._background = run_in_thread(lambda: estimate(self, length=min(64, room)))
        return self._background

    def loglikelihood(
        self, prompt: Any, answer: Any, **options: Any
    ) -> Likelihood | list[Likelihood]:
        """ln p(answer | prompt) in nats: see `engine.likelihood.loglikelihood` for options and errors."""
        return loglikelihood(self, prompt, answer, **options)

    def output(self, sequence: SequenceState, return_trace: bool) -> Output:
        """The result of a finished sequence."""
        return output_of(sequence, self.decode, return_trace)

    def decode(self, ids: list[int], given: Bools | None = None) -> str:
        """Text of token ids, special tokens left out; empty without a tokenizer.

        `given`: which of them, from the first position of a text with blanks on, somebody wrote. What is
        special among those is text, but for what the tokenizer itself put in front.
        """
        if self.tokenizer is None:
            return ""
        if given is None:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))
        begin = self._encode("", special=True)
        first = len(begin) if ids[: len(begin)] == begin else 0
        pairs = list(zip(ids, given[: len(ids)].tolist(), strict=True))[first:]
        kept = [id_ for id_, is_given in pairs if is_given or self._has_text(id_)]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def _events(self, requests: list[Request], max_batch_size: int) -> Iterator[Event]:
        sequences = [SequenceState.begin(item, i) for i, item in enumerate(requests)]
        if not sequences:
            return
        rows = max(ModelRunner.rows_of(sequence) for sequence in sequences)
        runner = self.make_runner(
            self.model,
            self.vocabulary,
            max_rows=rows * min(max_batch_size, len(sequences)),
            max_positions=max(request.max_positions for request in requests),
            store=any(sequence.request.cache.stores for sequence in sequences),
            features=any(s.request.cache.layered for s in sequences),
        )
        yield from decode(sequences, runner)

    def _run(self, requests: list[Request], max_batch_size: int) -> list[SequenceState]:
        finished: dict[int, SequenceState] = {}
        for event in self._events(requests, max_batch_size):
            if event.sequence.finish_reason is not None:
                finished[event.sequence.index] = event.sequence
        return [finished[i] for i in range(len(requests))]
