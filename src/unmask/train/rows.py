"""Rows as token ids: which tokens a row consists of, and which of them are trained.

An answer ends as in the model's chat template; without one, a prompt and its response are plain text, and
the end-of-text token ends the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.data.fields import PROMPTS, RESPONSES
from unmask.data.records import DataRow, shown
from unmask.engine.prompts import PromptEncoder
from unmask.engine.templates import check_messages
from unmask.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unmask.models.spec import ModelSpec

PROMPT = "prompt"
"""The form of a row with a prompt alone, for training by rewards."""
FORMS = ("input_ids", "messages", "prompt_response", "text")


@dataclass(frozen=True)
class TokenRow:
    """A row as token ids, and flags of those that are trained.

    `is_text`: a document, trained whole. `untrained_turns`: number of the assistant's turns that the chat
    template shows differently as history, which are not trained.
    """

    form: str
    ids: list[int]
    loss: list[bool]
    is_text: bool = False
    untrained_turns: int = 0


class RowEncoder:
    """Encoder of rows for a model and its tokenizer. `form`: the rows' form, "auto" to find it.

    Without `needs_answer` a pair may lack its response, and a conversation its last turn: such a row is
    its prompt, whose place of the answer is the end-of-text token alone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        spec: ModelSpec,
        form: str = "auto",
        *,
        needs_answer: bool = True,
    ) -> None:
        self.tokenizer, self.spec, self.form = tokenizer, spec, form
        self.needs_answer = needs_answer
        # Thousands of rows: in this process, which the user can stop, not in the workers of a server.
        self.prompts = PromptEncoder(tokenizer, spec, "init", is_own=True)
        if tokenizer is not None and len(tokenizer) > spec.vocab_size:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens, the model only {spec.vocab_size} rows; use "
                f"the tokenizer of the model"
            )
        if tokenizer is not None and self.prompts.chat.template() is not None:
            problem = self.prompts.chat.problem()
            if problem is not None:
                raise ConfigError(f"{problem}; correct the model's chat template")

    def encode(self, row: DataRow) -> TokenRow:
        """Return a row's tokens. Raises ConfigError with file, line, field and what is allowed."""
        form = self.form if self.form != "auto" else form_of(row, needs_answer=self.needs_answer)
        try:
            if form == "input_ids":
                example = self._token_ids(row)
            elif form == "messages":
                example = self._conversation(row, _messages(row))
            elif form == "prompt_response":
                example = self._pair(row)
            else:
                example = self._text(row)
        except PromptError as error:
            raise row.error(f": {error}") from None
        if self.spec.mask_id in example.ids:
            raise row.error(f": {form} holds the mask token ({self.spec.mask_id}); remove it")
        return example

    def _text(self, row: DataRow) -> TokenRow:
        ids = [*self._encode(row.text("text"), special=True), self.spec.eos_id]
        if len(ids) > 1 and ids[-2] == self.spec.eos_id:
            ids.pop()  # the tokenizer ends texts itself
        return TokenRow("text", ids, [True] * len(ids), is_text=True)

    def _pair(self, row: DataRow) -> TokenRow:
        prompt = row.text(*PROMPTS)
        is_prompt = not (self.needs_answer or row.has(*RESPONSES))
        response = "" if is_prompt else row.text(*RESPONSES)
        if row.has("input") and (more := row.text("input", may_be_empty=True)).strip():
            prompt = f"{prompt}\n\n{more}"
        messages: list[dict[str, object]] = [{"role": "user", "content": prompt}]
        if not is_prompt:
            messages.append({"role": "assistant", "content": response})
        if row.has("system"):
            messages.insert(0, {"role": "system", "content": row.text("system")})
        if self.prompts.chat.template() is not None:
            example = self._conversation(row, messages)
            form = PROMPT if is_prompt else "prompt_response"
            return TokenRow(form, example.ids, example.loss)
        if row.has("system"):
            raise row.error(": system has no place, as the model has no chat template; remove it")
        head = self._encode(prompt, special=True)
        if is_prompt:
            return self._prompt(head)
        tail = [*self._encode(response), self.spec.eos_id]
        return TokenRow("prompt_response", head + tail, [False] * len(head) + [True] * len(tail))

    def _conversation(self, row: DataRow, messages: Sequence[dict[str, object]]) -> TokenRow:
        """Encode a conversation; the assistant's turns are trained, with the token that ends each."""
        self._need_tokenizer()
        chat = self.prompts.chat
        if chat.template() is None:
            raise row.error(
                ": messages need a chat template, and the model has none; give prompt and response"
            )
        if messages and messages[-1]["role"] != "assistant" and not self.needs_answer:
            return self._prompt(self._encode(chat.render(messages, add_generation_prompt=True)))
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise row.error(": messages has no turn of the assistant; add one or remove the row")
        whole = chat.render(messages[: turns[-1] + 1])
        if len(whole) == 0:
            raise row.error(": the chat template makes nothing of these messages")
        cuts, untrained = [0], 0
        for at in turns:
            begin = chat.render(messages[:at], add_generation_prompt=True) if at else ""
            end = chat.render(messages[: at + 1], add_generation_prompt=False)
            if not (whole.startswith(begin) and whole.startswith(end)) or len(end) <= len(begin):
                untrained += 1
                continue
            if len(begin) < cuts[-1]:
                untrained += 1
                continue
            cuts += [len(begin), len(end)]
        if len(cuts) == 1:
            raise row.error(
                ": the chat template shows no answer as the model would write it; correct the template"
            )
        ids: list[int] = []
        loss: list[bool] = []
        for number, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
            part = self._encode(whole[start:stop])
            ids += part
            loss += [number % 2 == 1] * len(part)
        return TokenRow("messages", ids, loss, untrained_turns=untrained)

    def _prompt(self, ids: list[int]) -> TokenRow:
        """Return the row of a prompt without an answer."""
        return TokenRow(PROMPT, [*ids, self.spec.eos_id], [False] * len(ids) + [True])

    def _token_ids(self, row: DataRow) -> TokenRow:
        ids = _numbers(row, "input_ids", self.spec.vocab_size - 1)
        if not row.has("loss_mask"):
            return TokenRow("input_ids", ids, [True] * len(ids), is_text=True)
        flags = _numbers(row, "loss_mask", 1)
        if len(flags) != len(ids):
            raise row.error(
                f": loss_mask has {len(flags)} numbers, input_ids {len(ids)}; give one for each"
            )
        if not any(flags):
            raise row.error(": loss_mask is 0 everywhere, nothing is trained; remove the row")
        return TokenRow("input_ids", ids, [bool(flag) for flag in flags])

    def _encode(self, text: str, *, special: bool = False) -> list[int]:
        self._need_tokenizer()
        return self.prompts.encode(text, special=special)

    def _need_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise ConfigError("the model has no tokenizer; give rows of input_ids")


def form_of(row: DataRow, *, needs_answer: bool = True) -> str:
    """Return a row's form by its fields. Raises ConfigError for a row of none."""
    if row.has("input_ids"):
        return "input_ids"
    if row.has("messages"):
        return "messages"
    if row.has(*PROMPTS) or row.has(*RESPONSES):
        row.field(*PROMPTS)  # raises where the other half is missing
        if needs_answer:
            row.field(*RESPONSES)
        return "prompt_response"
    if row.has("text"):
        return "text"
    there = ", ".join(repr(str(name)[:40]) for name in list(row.values)[:8]) or "nothing"
    raise row.error(
        f" has {there}, but no form of row that is known: text; prompt and response (or instruction and "
        f"output, question and answer); messages; input_ids; rename the fields"
    )


def _messages(row: DataRow) -> list[dict[str, object]]:
    _, value = row.field("messages")
    try:
        checked = check_messages(value)
    except PromptError as error:
        raise row.error(f": messages: {error}") from None
    for number, message in enumerate(checked):
        content = message["content"]
        assert isinstance(content, list), "check_messages returns lists of texts"
        if any("\ud800" <= character <= "\udfff" for character in "".join(content)):
            raise row.error(f": messages[{number}] has half a character (a lone surrogate)")
        has_call = bool(message.get("tool_calls"))
        if message["role"] == "assistant" and not has_call and not "".join(content).strip():
            raise row.error(f": messages[{number}]: the assistant's turn is empty; complete it")
    assert isinstance(value, list), "checked"
    return [dict(message) for message in value]


def _numbers(row: DataRow, name: str, most: int) -> list[int]:
    """Return a field that is a list of whole numbers from 0 to `most`."""
    _, value = row.field(name)
    if not isinstance(value, list) or not value:
        raise row.error(f": {name}={shown(value)} must be a list of whole numbers")
    for at, item in enumerate(value):
        is_flag = most == 1 and isinstance(item, bool)
        if not is_flag and (isinstance(item, bool) or not isinstance(item, int)):
            raise row.error(f": {name}[{at}]={shown(item)} must be a whole number")
        if not 0 <= item <= most:
            raise row.error(f": {name}[{at}]={item} must be between 0 and {most}")
    return [int(item) for item in value]
