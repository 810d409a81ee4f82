"""The tokenizer of a folder read by the `tokenizers` library alone, without the import of transformers.

`read_fast` takes a folder only if its files say all that transformers' fast tokenizer would make of them:
every added and special token is in `tokenizer.json`, and no key of `tokenizer_config.json` changes what it
does. transformers' `PreTrainedTokenizerFast` of such a folder is `tokenizer.json` and names of special
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from unmask.models.folder_files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Roles of special tokens, in the order in which transformers lists them."""
LISTS = ("extra_special_tokens", "additional_special_tokens")
"""Keys with further special tokens; the second is the older name of the first."""
WITHOUT_EFFECT = frozenset(
    (
        "add_bos_token",  # the post-processor of tokenizer.json decides
        "add_eos_token",
        "add_prefix_space",
        "auto_map",
        "errors",
        "fast_tokenizer",
        "legacy",
        "merges_file",
        "model_input_names",
        "model_max_length",
        "padding_side",
        "sp_model_kwargs",
        "spaces_between_special_tokens",
        "special_tokens_map_file",
        "tokenizer_class",
        "trust_remote_code",
        "truncation_side",
        "use_default_system_prompt",
    )
)
"""Keys of `tokenizer_config.json` that change no text and no id once there is a `tokenizer.json`."""
OWN_KEYS = frozenset(
    (
        *NAMED,
        *LISTS,
        "added_tokens_decoder",
        "chat_template",
        "clean_up_tokenization_spaces",
        "split_special_tokens",
    )
)
OTHER_OPTIONS = frozenset(
    (
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    )
)
"""Options of transformers' `apply_chat_template` that only transformers has."""
LEGACY_FILES = ("added_tokens.json", "special_tokens_map.json")
"""Files that transformers reads too if `tokenizer_config.json` has no `added_tokens_decoder`."""


class FastTokenizer:
    """A tokenizer with the calls of transformers' `PreTrainedTokenizerFast` that decoding needs.

    Any other call or attribute turns the object into a tokenizer of transformers, read from the same files:
    that costs its import, once. `chat_template` is the folder's, None without one.
    """

    chat_template: str | dict[str, str] | None

    def __init__(
        self,
        folder: Path,
        backend: Tokenizer,
        named: Mapping[str, str],
        extra: Sequence[str],
        chat_template: str | None,
    ) -> None:
        self.fast_folder, self.fast_backend = folder, backend
        self.fast_named, self.fast_extra = dict(named), tuple(extra)
        self.chat_template = chat_template

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of the `tokenizers` library."""
        return self.fast_backend

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The texts of special tokens by role."""
        return dict(self.fast_named)

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of special tokens with a role, and of further ones, each once."""
        texts = dict.fromkeys((*self.fast_named.values(), *self.fast_extra))
        ids = (self.fast_backend.token_to_id(text) for text in texts)
        return [id_ for id_ in ids if id_ is not None]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        return self.fast_backend.get_added_tokens_decoder()

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones."""
        return self.fast_backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.fast_backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens by text."""
        return self.fast_backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True, **options: Any) -> list[int]:
        """Return the ids of a text, with the special tokens of the post-processor around it by default."""
        if options or not isinstance(text, str):
            full = self.become_full()
            ids: list[int] = full.encode(text, add_special_tokens=add_special_tokens, **options)
            return ids
        # A batch of one, as transformers asks: its errors have other texts than those of `encode`.
        return self.fast_backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(
        self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **options: Any
    ) -> str:
        """Return the text of ids."""
        ids = [token_ids] if type(token_ids) is int else token_ids
        is_flat = isinstance(ids, list) and not any(isinstance(each, Sequence) for each in ids[:1])
        if options or not is_flat:
            full: Any = self.become_full()
            text: str = full.decode(token_ids, skip_special_tokens=skip_special_tokens, **options)
            return text
        assert isinstance(ids, list), "a flat list"
        return self.fast_backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | None | list[str | None]:
        """Return the name of a token, or of each: None for an id without one."""
        if isinstance(ids, int):
            return self.fast_backend.id_to_token(ids)
        left_out = set(self.all_special_ids) if skip_special_tokens else set[int]()
        whole = map(int, ids)
        return [self.fast_backend.id_to_token(id_) for id_ in whole if id_ not in left_out]

    def apply_chat_template(
        self,
        conversation: object,
        tools: object = None,
        documents: object = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **options: Any,
    ) -> Any:
        """Return the text of a conversation in a template (default: the only one), without `tokenize`."""
        from unmask.engine.chat_rendering import is_plain, render_chat

        template = self.chat_template if chat_template is None else chat_template
        is_simple = not tokenize and isinstance(continue_final_message, bool)
        is_simple &= documents is None and not OTHER_OPTIONS & options.keys()
        is_simple &= isinstance(template, str) and not isinstance(self.chat_template, dict)
        if is_simple and isinstance(conversation, list) and conversation:
            has_messages = all(isinstance(each, dict) for each in conversation)
            has_tools = tools is None or all(isinstance(each, dict) for each in _listed(tools))
            if has_messages and has_tools and is_plain([conversation, tools, options]):
                variables = {**self.fast_named, **options, "tools": tools, "documents": None}
                variables["add_generation_prompt"] = add_generation_prompt
                is_continued = continue_final_message
                return render_chat(str(template), conversation, variables, is_continued)
        return self.become_full().apply_chat_template(
            conversation,  # type: ignore[arg-type]
            tools=tools,  # type: ignore[arg-type]
            documents=documents,  # type: ignore[arg-type]
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=tokenize,
            **options,
        )

    def become_full(self) -> PreTrainedTokenizerFast:
        """Turn this object into transformers' tokenizer of the same files, and return it."""
        from transformers import PreTrainedTokenizerFast

        full = PreTrainedTokenizerFast.from_pretrained(str(self.fast_folder))
        template = self.chat_template
        # The attributes of both are there before the class changes: another thread's call ends well.
        self.__dict__.update(full.__dict__)
        self.__dict__["chat_template"] = template
        object.__setattr__(self, "__class__", type(full))
        found: Any = self
        same: PreTrainedTokenizerFast = found
        return same

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return what transformers' tokenizer returns."""
        return self.become_full()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        """Return the text or id of a role (None without it), or an attribute of transformers' tokenizer."""
        if name.startswith(
            ("_", "fast_")
        ):  # asked for by copy and pickle, before there is a folder
            raise AttributeError(name)
        role = name.removesuffix("_id")
        if role in NAMED or role in self.fast_named:
            text = self.fast_named.get(role)
            return text if name == role or text is None else self.fast_backend.token_to_id(text)
        return getattr(self.become_full(), name)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "chat_template" or name.startswith("fast_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.become_full(), name, value)


def _listed(value: object) -> list[object]:
    """Return a list as it is, and anything else as a list that is no list of mappings."""
    return value if isinstance(value, list) else [None]


def read_fast(folder: Path) -> FastTokenizer | None:
    """Return the tokenizer of a folder; None if transformers must read it.

    Raises ModelError for a damaged configuration, and whatever `tokenizers` raises for `tokenizer.json`.
    """
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    if not all(each.is_file() for each in files) or (folder / "additional_chat_templates").exists():
        return None
    config = read_object(files[1])
    has_legacy = any((folder / name).exists() for name in LEGACY_FILES)
    if (has_legacy and "added_tokens_decoder" not in config) or not _is_plain_config(config):
        return None
    template = config.get("chat_template")
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        template = own_file.read_text(encoding="utf-8")
    named, extra = _named_tokens(config), _extra_tokens(config)
    if named is None or extra is None or not isinstance(template, (str, type(None))):
        return None
    backend = Tokenizer.from_file(str(files[0]))
    if backend.truncation is not None or backend.padding is not None:
        return None  # transformers makes defaults of them
    if config.get("clean_up_tokenization_spaces") and type(backend.model).__name__ != "BPE":
        return None  # of BPE, transformers changes no text either
    added = backend.get_added_tokens_decoder().values()
    texts = {token.content for token in added}
    if not texts.issuperset((*named.values(), *extra)):
        return None  # transformers adds those that are missing
    if not _are_known(config.get("added_tokens_decoder"), {repr(token) for token in added}):
        return None
    return FastTokenizer(folder, backend, named, extra, template)


def _is_plain_config(config: Mapping[str, object]) -> bool:
    """Return True if no key of a configuration is unknown, or sets something that changes texts."""
    unknown = config.keys() - WITHOUT_EFFECT - OWN_KEYS
    if not all(key.endswith("_token") and isinstance(config[key], str) for key in unknown):
        return False
    return config.get("split_special_tokens") in (None, False)


def _named_tokens(config: Mapping[str, object]) -> dict[str, str] | None:
    """Return the texts of special tokens by role, a model's own roles last; None for another form."""
    own = [key for key in config if key.endswith("_token") and key not in NAMED]
    named: dict[str, str] = {}
    for key in (*NAMED, *own):
        value = config.get(key)
        if isinstance(value, dict) and value.get("__type") == "AddedToken" and key in NAMED:
            value = value.get("content")
        if isinstance(value, str):
            named[key] = value
        elif value is not None and not (key in own and key in WITHOUT_EFFECT):
            return None
    return named


def _extra_tokens(config: Mapping[str, object]) -> list[str] | None:
    """Return the texts of special tokens without a role; None for another form than one list of texts."""
    found = [config[key] for key in LISTS if config.get(key) is not None]
    if len(found) > 1:
        return None
    extra = found[0] if found else []
    if not isinstance(extra, list):
        return None
    texts = [each for each in extra if isinstance(each, str)]
    return texts if len(texts) == len(extra) else None


def _are_known(tokens: object, known: set[str]) -> bool:
    """Return True if all added tokens of a configuration are those of `tokenizer.json`, flags included."""
    if tokens is None:
        return True
    if not isinstance(tokens, dict):
        return False
    try:
        return all(repr(AddedToken(**each)) in known for each in tokens.values())
    except TypeError:  # no mapping, or one with other fields
        return False
