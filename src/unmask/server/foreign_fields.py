"""Fields of other servers' APIs that have no effect here, and the values that cannot change an answer.

The fields of OpenAI, vLLM, SGLang, TGI, llama.cpp, Ollama, OpenRouter, Mistral and Mercury. A hint to the
host (`prompt_cache_key`) is accepted at any value of its type; any other field at the values with which
it does nothing, such as null, its default, and those that belong to a sibling that is off. Any other value
would have to change the answer, and is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from unmask.server.errors import ApiError

Fields = Mapping[str, JsonValue]
MAX_HINT_CHARS = 1024
MAX_HINT_ITEMS = 64
PLAIN_TEXT = re.compile(r"[A-Za-z_]{1,24}")
"""A text that an error may repeat: a name such as `required`, but no key and no part of a prompt."""


@dataclass(frozen=True, slots=True)
class Harmless:
    """Values of a field that cannot change an answer; null is always one.

    `values`: single values. `kinds`: JSON types of which any value is harmless, by their words; texts and
    collections up to a size. `holds`: a further condition, of the value and the whole body, in the words
    `condition`.
    """

    values: tuple[JsonValue, ...] = ()
    kinds: tuple[str, ...] = ()
    holds: Callable[[JsonValue, Fields], bool] | None = None
    condition: str = ""

    def admits(self, value: JsonValue, body: Fields) -> bool:
        """Return True for a value that cannot change the answer to a body."""
        if value is None or any(is_equal(value, other) for other in self.values):
            return True
        if kind_of(value) in self.kinds and size_of(value) <= MAX_SIZES.get(kind_of(value), 1):
            return True
        return self.holds is not None and self.holds(value, body)

    def words(self) -> str:
        """Return the allowed values in words, null left out unless it is alone."""
        values = [json.dumps(value) for value in self.values]
        kinds = [KIND_WORDS[kind] for kind in self.kinds]
        return " or ".join([*values, *kinds, *filter(None, [self.condition])]) or "null"


KIND_WORDS = {
    "text": f"a text of at most {MAX_HINT_CHARS} characters",
    "flag": "true or false",
    "number": "a number",
    "list": f"a list of at most {MAX_HINT_ITEMS} items",
    "object": f"an object of at most {MAX_HINT_ITEMS} keys",
}
MAX_SIZES = {"text": MAX_HINT_CHARS, "list": MAX_HINT_ITEMS, "object": MAX_HINT_ITEMS}


def kind_of(value: JsonValue) -> str:
    """Return the JSON type of a value, as in `KIND_WORDS`."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) else "null" if value is None else "object"


def size_of(value: JsonValue) -> int:
    """Return the number of characters, items or keys; 1 for other values."""
    return len(value) if isinstance(value, (str, list, dict)) else 1


def is_equal(value: JsonValue, other: JsonValue) -> bool:
    """Return True for equal values; unlike in Python, true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def only(*values: JsonValue) -> Harmless:
    """Return the rule of a field of which only these values change nothing."""
    return Harmless(values)


def any_(*kinds: str) -> Harmless:
    """Return the rule of a hint: any value of these JSON types."""
    return Harmless(kinds=kinds)


def each(rule: Harmless, names: str) -> dict[str, Harmless]:
    """Return one rule for several fields."""
    return dict.fromkeys(names.split(), rule)


def is_number_of_choices(value: JsonValue, body: Fields) -> bool:
    """Return True for as many candidates as choices, of which all are returned."""
    return kind_of(value) == "number" and value == (body.get("n") or 1)


def is_without_end(value: JsonValue, body: Fields) -> bool:
    """Return True for a minimum length of an answer that no end token ends."""
    return kind_of(value) == "number" and body.get("ignore_eos") is True


def has_no_weight(value: JsonValue, body: Fields) -> bool:
    """Return True for biases that are all 0."""
    if isinstance(value, dict):
        return all(is_equal(item, 0) for item in value.values())
    return False


def is_without_logprobs(value: JsonValue, body: Fields) -> bool:
    """Return True for a number that describes log-probabilities, of which none are returned."""
    return kind_of(value) == "number" and body.get("return_logprob") in (None, False)


def is_without_stops(value: JsonValue, body: Fields) -> bool:
    """Return True for a flag about the strings that end a text, of which there are none."""
    return isinstance(value, bool) and not (body.get("stop") or body.get("stop_token_ids"))


def has_no_effort(value: JsonValue, body: Fields) -> bool:
    """Return True for options of a reasoning that is off: what is shown of it does not matter."""
    return isinstance(value, dict) and all(
        item is None
        or (key == "effort" and item == "none")
        or (key == "enabled" and item is False)
        or (key == "max_tokens" and is_equal(item, 0))
        or (key == "exclude" and isinstance(item, bool))
        for key, item in value.items()
    )


def is_greedy(value: JsonValue, body: Fields) -> bool:
    """Return True for `do_sample` as the temperature has it, which is 0 by default."""
    temperature = body.get("temperature") or 0
    return isinstance(value, bool) and value == (temperature != 0)


NO_LOGPROBS = "any number without return_logprob"
FOREIGN_FIELDS: Mapping[str, Harmless] = {
    **each(
        any_("text"),
        """prompt_cache_key prompt_cache_retention safety_identifier service_tier cache_salt extra_key
        request_id rid session_id user_id chat_id conversation_id message_id parent_message_id trace_id
        reasoning_format guided_decoding_backend whitespace_pattern
        guided_whitespace_pattern""",
    ),
    **each(any_("object"), "metadata provider usage extra_headers trace_headers"),
    **each(
        any_("flag"),
        """store parallel_tool_calls separate_reasoning stream_reasoning include_reasoning cache_prompt
        spaces_between_special_tokens return_text_in_logprobs parse_tool_calls penalize_nl log_metrics
        no_logs realtime""",
    ),
    **each(
        any_("number"),
        """priority id_slot slot_id repeat_last_n mirostat_tau mirostat_eta dry_base dry_allowed_length
        dry_penalty_last_n xtc_threshold dynatemp_exponent""",
    ),
    **each(any_("text", "number"), "keep_alive"),
    **each(any_("list"), "dry_sequence_breakers"),
    **each(
        only(0),
        """frequency_penalty presence_penalty mirostat no_repeat_ngram_size top_a epsilon_cutoff eta_cutoff
        smoothing_factor penalty_alpha dry_multiplier xtc_probability dynatemp_range n_keep n_probs n_indent
        min_keep t_max_predict_ms""",
    ),
    **each(
        only(1),
        """repetition_penalty repeat_penalty encoder_repetition_penalty length_penalty typical_p typ_p tfs
        tfs_z num_beams num_return_sequences stream_interval""",
    ),
    **each(
        only(False),
        """use_beam_search early_stopping echo continue_final_message background
        return_tokens_as_token_ids return_token_ids return_prompt_token_ids return_tokens return_progress
        return_logprob return_hidden_states return_routed_experts return_cached_tokens_details no_stop_trim
        watermark details decoder_input_details timings_per_token post_sampling_probs safe_prompt
        thinking_forced_open enable_thinking think reasoning_split""",
    ),
    **each(only(True), "skip_special_tokens detokenize add_generation_prompt"),
    **each(
        only([]),
        """tools functions bad_words stop_regex documents data_sources image_data audio_data
        video_data images logits_processors token_ids_logprob transforms models plugins lora samplers
        response_fields context_management tool_ids files filter_ids include""",
    ),
    **each(
        only({}),
        """mm_processor_kwargs chat_template_kwargs extra_body options
        custom_params""",
    ),
    **each(
        only(),
        """prompt prompt_embeds messages suffix conversation moderation audio prediction web_search_options
        chat_template allowed_token_ids prompt_logprobs
        structural_tag guideline tool_prompt
        thinking_budget thinking_token_budget reasoning_summary repetition_detection random_seed prompt_mode
        lora_path session_params custom_logit_processor input_embeds kv_transfer_params bootstrap_host
        bootstrap_port bootstrap_room data_parallel_rank""",
    ),
    **each(only(""), "grammar format"),
    **each(only("none", "auto", {"type": "none"}, {"type": "auto"}), "tool_choice function_call"),
    **each(
        Harmless((0,), holds=is_without_end, condition="any number with ignore_eos"),
        "min_tokens min_new_tokens",
    ),
    "truncate_prompt_tokens": only(-1),
    "top_n_sigma": only(0, -1),
    "logprob_start_len": Harmless((-1,), holds=is_without_logprobs, condition=NO_LOGPROBS),
    "top_logprobs_num": Harmless((0,), holds=is_without_logprobs, condition=NO_LOGPROBS),
    "include_stop_str_in_output": Harmless(
        (False,), holds=is_without_stops, condition="true without stop and stop_token_ids"
    ),
    "truncation": only("disabled"),
    "modalities": only(["text"]),
    "verbosity": only("medium"),
    "reasoning_effort": only("none"),
    "reasoning": Harmless(({}, {"effort": "none"}), holds=has_no_effort),
    "thinking": only(False, {"type": "disabled"}),
    "best_of": Harmless((1,), holds=is_number_of_choices, condition="the value of n"),
    "logit_bias": Harmless(({}, []), holds=has_no_weight, condition="biases of 0"),
    "do_sample": Harmless(holds=is_greedy, condition="what the temperature says"),
}
"""The rule of each field, in all routes that decode."""


def check_foreign(key: str, value: JsonValue, rule: Harmless, body: Fields) -> None:
    """Raise ApiError (400) for a value that would have to change the answer, or that is no hint."""
    if rule.admits(value, body):
        return
    is_hint = rule.kinds and not rule.values
    verb = "is not allowed" if is_hint else "is not supported here"
    raise ApiError(
        400,
        f"{key}={shown(value)} {verb}; allowed is {rule.words()}, or leave it out",
        param=key,
        code="invalid_value" if is_hint else "unsupported_parameter",
    )


def shown(value: JsonValue) -> str:
    """Return a value for an error: numbers and names as they are, the size alone of anything else."""
    kind, size = kind_of(value), size_of(value)
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "(a number of many digits)"
    if kind in ("flag", "null", "number") or PLAIN_TEXT.fullmatch(str(value)):
        return json.dumps(value)
    unit = {"text": "character", "list": "item", "object": "key"}[kind]
    return f"({'an' if kind == 'object' else 'a'} {kind} of {size} {unit}{'s' * (size != 1)})"
