"""The lm-eval model `unmask`: lm-eval's three kinds of requests, answered by the engine.

Importing this module registers the name. `python -m unmask.evals run --model unmask ...` is lm-eval's own
command line with the name known; plain `lm-eval run` knows it once a task file of ours is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from unmask.errors import ConfigError, PromptError
from unmask.evals.generation import Answer, AnswerTimer, Question, decode_all
from unmask.evals.likelihoods import Pair, score_all
from unmask.evals.settings import EvalSettings, method_settings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

LM_EVAL_DEVICE = "cuda:0"
Ask = Callable[[Sequence[Question]], Mapping[str, Answer]]
AskPairs = Callable[[Sequence[Pair]], Mapping[str, Answer]]


@register_model("unmask")
class UnmaskLM(LM):  # type: ignore[misc]
    """A model of ours for lm-eval.

    `--model_args pretrained=demo,decoder=threshold,cache=dual,gen_length=256,threshold=0.9`: `pretrained`
    is a bundled name, folder or hub id; then the settings of `EvalSettings` that say how to decode; every
    other name is a knob of the decoder, of the proposal, or `cache.NAME`. `check_greedy` costs one
    forward a token of every likelihood and fills the answer's second number; without it that is False.

    Raises ConfigError and ModelError.
    """

    def __init__(
        self,
        pretrained: str = "demo",
        batch_size: int | str = 1,
        device: str | None = None,
        check_greedy: bool = True,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        from unmask.engine.llm import LLM

        if max_batch_size is not None:
            raise ConfigError(f"max_batch_size={max_batch_size} has no effect; use batch_size")
        made = method_settings(pretrained, batch_size, _present(device), settings)
        self._set_up(LLM(made.model, dtype=made.dtype, device=made.device), made, check_greedy)

    def _set_up(self, llm: LLM, settings: EvalSettings, check_greedy: bool) -> None:
        super().__init__()
        self.llm, self.settings, self.check_greedy = llm, settings, check_greedy
        self.first_doc = 0
        self.is_chat = False
        self.ask: Ask = self._decode
        self.ask_pairs: AskPairs = self._score

    @classmethod
    def of(
        cls,
        llm: LLM,
        settings: EvalSettings,
        ask: Ask | None = None,
        ask_pairs: AskPairs | None = None,
    ) -> UnmaskLM:
        """Around a loaded model; `ask` and `ask_pairs` answer instead of the plain loops."""
        made = cls.__new__(cls)
        made._set_up(llm, settings, check_greedy=False)
        made.first_doc = settings.offset
        made.ask = ask or made.ask
        made.ask_pairs = ask_pairs or made.ask_pairs
        return made

    def _decode(self, questions: Sequence[Question]) -> Mapping[str, Answer]:
        answers = decode_all(self.llm, questions, self.settings, AnswerTimer())
        return {answer.key: answer for answer in answers}

    def _score(self, pairs: Sequence[Pair]) -> Mapping[str, Answer]:
        answers = score_all(self.llm, pairs, self.settings, AnswerTimer(), self.check_greedy)
        return {answer.key: answer for answer in answers}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text of each answer, before its first stop."""
        questions = [self._question(request) for request in requests]
        answers = self.ask(questions)
        return [answers[question.key].text for question in questions]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """ln p of each continuation, and whether a token a forward would write it."""
        pairs = [self._pair(request, *self._split(*request.args)) for request in requests]
        answers = self.ask_pairs(pairs)
        return [_result(answers[pair.key]) for pair in pairs]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """ln p of each text, in windows of the model's context that share nothing."""
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
        answers = self.ask_pairs([pair for pairs in listed for pair in pairs])
        return [sum(_result(answers[pair.key])[0] for pair in pairs) for pairs in listed]

    def _question(self, request: Instance) -> Question:
        context, options = request.args
        _refuse(options)
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

    def _key(self, request: Instance, *parts: Any) -> str:
        """What the answer depends on: the settings, the document's place, and what is asked."""
        doc = self.first_doc + (request.doc_id or 0)
        told = [self.settings.fingerprint(), doc, request.idx, *parts]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()

    def _encode(self, context: str) -> list[int]:
        if self.is_chat:  # the template wrote the special tokens
            return self.llm.prompts.encode(context, special=False)
        return self.llm.prompt_ids(context, raw=True)

    def _split(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Both as ids, as the tokenizer writes them together; spaces at the seam are the second's."""
        bare = context.rstrip()
        continuation, context = context[len(bare) :] + continuation, bare
        if not context:
            return self._prefix(), tuple(self.llm.prompts.encode(continuation, special=False))
        before, both = self._encode(context), self._encode(context + continuation)
        return tuple(before), tuple(both[len(before) :])

    def _prefix(self) -> tuple[int, ...]:
        """What stands before a text without a context: the begin token, or the end token."""
        begin = getattr(self.llm.tokenizer, "bos_token_id", None)
        return (self.llm.spec.eos_id if begin is None else begin,)

    @property
    def tokenizer_name(self) -> str:
        """The model's name, by which lm-eval tells templates apart."""
        return self.llm.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text. Raises PromptError when there is none."""
        if chat_template is False:
            return ""
        template = getattr(self.llm.tokenizer, "chat_template", None)
        if not isinstance(template, str):
            raise PromptError(f"model {self.llm.name!r} has no chat template; leave it out")
        return template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the model's template; an assistant's turn at the end may go on."""
        self.is_chat = True
        tokenizer: Any = self.llm.tokenizer
        text = tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)


def _present(device: str | None) -> str | None:
    """lm-eval's command line says cuda:0 when nothing was asked for; without CUDA, what there is."""
    import torch

    if device == LM_EVAL_DEVICE and not torch.cuda.is_available():
        return None
    return device


def _refuse(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for what lm-eval asks of a generation and we would not do."""
    for name, value in options.items():
        if name not in ("until", "max_gen_toks", "do_sample", "temperature") or (
            name in ("do_sample", "temperature") and value
        ):
            raise ConfigError(
                f"generation option {name}={value!r} is not taken from tasks or --gen_kwargs; give "
                f"knobs such as temperature in --model_args"
            )


def _result(answer: Answer) -> tuple[float, bool]:
    assert answer.log_prob is not None, "an answer by likelihood"
    return answer.log_prob, bool(answer.is_greedy)
