"""The lm-eval model `unmask`: lm-eval's three kinds of requests, answered by the engine.

Importing this module registers the model. `python -m unmask.evals run --model unmask ...` is lm-eval's own
command line after that import; plain `lm-eval run` imports it through any of this package's task files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from unmask.errors import ConfigError, LengthError, PromptError
from unmask.evals.generation import AnswerTimer, EvalAnswer, Question, check_fit, decode_all
from unmask.evals.likelihoods import Pair, score_all
from unmask.evals.settings import EvalSettings, method_settings
from unmask.models import with_revision

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

LM_EVAL_DEVICE = "cuda:0"
LOGGER = logging.getLogger(__name__)
AnswerQuestions = Callable[[Sequence[Question]], Mapping[str, EvalAnswer]]
AnswerPairs = Callable[[Sequence[Pair]], Mapping[str, EvalAnswer]]


@register_model("unmask")
class UnmaskLM(LM):  # type: ignore[misc]
    """A model of ours for lm-eval.

    `--model_args pretrained=demo,decoder=threshold,cache=dual,gen_length=256,threshold=0.9`: `pretrained`
    is a bundled name, folder or hub id, of which a `revision` may be given; next come the settings of
    `EvalSettings` for decoding; every other name is a knob of the decoder, a sampling parameter, or
    `cache.NAME`. `check_greedy` costs one forward
    per token of every likelihood and sets the second value of its answer, which is False otherwise.

    Raises ConfigError and ModelError.
    """

    def __init__(
        self,
        pretrained: str = "demo",
        revision: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        check_greedy: bool = True,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        from unmask.engine.llm import LLM

        if max_batch_size is not None:
            raise ConfigError(f"max_batch_size={max_batch_size} has no effect; use batch_size")
        options = method_settings(
            with_revision(pretrained, revision), batch_size, _available(device), settings
        )
        llm = LLM(options.model, dtype=options.dtype, device=options.device)
        self._set_up(llm, options, check_greedy)

    def _set_up(self, llm: LLM, settings: EvalSettings, check_greedy: bool) -> None:
        super().__init__()
        self.llm, self.settings, self.check_greedy = llm, settings, check_greedy
        self.first_doc = 0
        self.is_chat = False
        self.answer_questions: AnswerQuestions = self._decode
        self.answer_pairs: AnswerPairs = self._score

    @classmethod
    def of(
        cls,
        llm: LLM,
        settings: EvalSettings,
        answer_questions: AnswerQuestions | None = None,
        answer_pairs: AnswerPairs | None = None,
    ) -> UnmaskLM:
        """Wrap a loaded model; the functions, where not None, replace decoding and scoring."""
        model = cls.__new__(cls)
        model._set_up(llm, settings, check_greedy=False)
        model.first_doc = settings.offset
        model.answer_questions = answer_questions or model.answer_questions
        model.answer_pairs = answer_pairs or model.answer_pairs
        return model

    def _decode(self, questions: Sequence[Question]) -> Mapping[str, EvalAnswer]:
        return self._by_key(decode_all(self.llm, questions, self.settings, AnswerTimer()))

    def _score(self, pairs: Sequence[Pair]) -> Mapping[str, EvalAnswer]:
        watch = AnswerTimer()
        return self._by_key(score_all(self.llm, pairs, self.settings, watch, self.check_greedy))

    def _by_key(self, answers: Iterable[EvalAnswer]) -> Mapping[str, EvalAnswer]:
        by_key = {answer.key: answer for answer in answers}
        note = check_fit(by_key.values(), self.llm.spec.max_length)
        if note is not None:
            LOGGER.warning(note)
        return by_key

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text of each answer before its first stop, "" for a prompt that does not fit.

        Repeats of a request are further samples: the seed of number i is the model's seed + i.
        """
        questions = _numbered(map(self._question, requests))
        answers = self.answer_questions(questions)
        return [answers[question.key].text for question in questions]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation in nats, and whether it is the greedy answer.

        Minus infinity for a pair that does not fit the context.
        """
        pairs = [self._pair(request, *self._split(*request.args)) for request in requests]
        answers = self.answer_pairs(pairs)
        return [_result(answers[pair.key]) for pair in pairs]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each text in nats, summed over disjoint context windows."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        listed: list[list[Pair]] = []
        for request in requests:
            ids = self.llm.prompts.encode(request.args[0], special=False)
            windows = get_rolling_token_windows(
                ids, self._prefix()[0], self.llm.spec.max_length - 1, context_len=1
            )
            pairs = []
            for number, window in enumerate(map(make_disjoint_window, windows)):
                pair = self._pair(request, *(tuple(part) for part in window))
                pairs.append(replace(pair, part=number, key=f"{pair.key}-{number}"))
            listed.append(pairs)
        answers = self.answer_pairs([pair for pairs in listed for pair in pairs])
        return [sum(_result(answers[pair.key])[0] for pair in pairs) for pairs in listed]

    def _question(self, request: Instance) -> Question:
        context, options = request.args
        _check_options(options)
        until = options.get("until") or []
        stops = (until,) if isinstance(until, str) else tuple(until)
        ids = self._encode(context)
        length = self.settings.gen_length or options.get("max_gen_toks") or 256
        return Question(
            doc=self.first_doc + (request.doc_id or 0),
            part=request.idx,
            key=self._key(request, ids, stops, length),
            prompt_ids=tuple(ids),
            gen_length=length,
            stops=stops,
        )

    def _pair(self, request: Instance, before: tuple[int, ...], after: tuple[int, ...]) -> Pair:
        return Pair(
            doc=self.first_doc + (request.doc_id or 0),
            part=request.idx,
            key=self._key(request, before, after),
            prompt_ids=before,
            answer_ids=after,
        )

    def _key(self, request: Instance, *parts: object) -> str:
        """Return a hash of all that the answer depends on: settings, document, and `parts`."""
        doc = self.first_doc + (request.doc_id or 0)
        content = [self.settings.fingerprint(), doc, request.idx, *parts]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def _encode(self, context: str) -> list[int]:
        if self.is_chat:  # the template wrote the special tokens
            return self.llm.prompts.encode(context, special=False)
        try:
            return self.llm.prompt_ids(context, raw=True)
        except LengthError:  # a document is counted as too long, not refused
            return self.llm.prompts.encode(context, special=True)

    def _split(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokenize both texts as one; spaces between them belong to the continuation."""
        bare = context.rstrip()
        continuation, context = context[len(bare) :] + continuation, bare
        if not context:
            return self._prefix(), tuple(self.llm.prompts.encode(continuation, special=False))
        before, both = self._encode(context), self._encode(context + continuation)
        return tuple(before), tuple(both[len(before) :])

    def _prefix(self) -> tuple[int, ...]:
        """Return the token before a text without a context: begin of text, else end of text."""
        begin = getattr(self.llm.tokenizer, "bos_token_id", None)
        return (self.llm.spec.eos_id if begin is None else begin,)

    @property
    def tokenizer_name(self) -> str:
        """Name of the model, by which lm-eval distinguishes templates."""
        return self.llm.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the text of the template. Raises PromptError when there is none."""
        if chat_template is False:
            return ""
        template = self.llm.prompts.chat.template()
        if template is None:
            raise PromptError(f"model {self.llm.name!r} has no chat template; leave it out")
        return template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Format a conversation; without a generation prompt its last turn is continued."""
        self.is_chat = True
        return self.llm.prompts.chat.render(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )


def _available(device: str | None) -> str | None:
    """Return the device, or None for cuda:0, the default of lm-eval's command line, without CUDA."""
    import torch

    if device == LM_EVAL_DEVICE and not torch.cuda.is_available():
        return None
    return device


def _check_options(options: Mapping[str, object]) -> None:
    """Raise ConfigError for generation options of lm-eval that have no effect here."""
    for name, value in options.items():
        if name not in ("until", "max_gen_toks", "do_sample", "temperature") or (
            name in ("do_sample", "temperature") and value
        ):
            raise ConfigError(
                f"generation option {name}={value!r} is not taken from tasks or --gen_kwargs; give "
                f"knobs such as temperature in --model_args"
            )


def _numbered(questions: Iterable[Question]) -> list[Question]:
    """Count the repeats of equal questions, and make their keys different."""
    seen: Counter[str] = Counter()
    numbered = []
    for question in questions:
        number = seen[question.key]
        seen[question.key] += 1
        key = f"{question.key}-{number}" if number else question.key
        numbered.append(replace(question, repeat=number, key=key))
    return numbered


def _result(answer: EvalAnswer) -> tuple[float, bool]:
    if answer.is_too_long:
        return -math.inf, False
    assert answer.log_prob is not None, "an answer by likelihood"
    return answer.log_prob, bool(answer.is_greedy)
