"""YAML from files and words that somebody else wrote, bounded before it is built."""

from __future__ import annotations

import yaml

MAX_CHARACTERS = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50
SHORT = 100  # characters: too few to reach a limit


class YamlLimitError(yaml.YAMLError):
    """YAML that is too long, too deep, or that grows too much by its aliases."""


def parse_yaml(text: str, kind: type[yaml.SafeLoader] = yaml.SafeLoader) -> object:
    """Parse YAML of the safe types, and of the tags that `kind` adds to them. Raises yaml.YAMLError.

    Text of more than 1 Mi characters, nesting beyond 50 levels, and values of more than 100,000 nodes,
    where an alias counts as all that it stands for, are refused before a value exists.
    """
    try:
        is_small = len(text) <= SHORT and "&" not in text and kind is yaml.SafeLoader
        return yaml.safe_load(text) if is_small else _parse(text, kind)
    except (
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # such as a date that does not exist
        raise yaml.YAMLError(f"{error}"[:300]) from None


def _parse(text: str, kind: type[yaml.SafeLoader]) -> object:
    if len(text) > MAX_CHARACTERS:
        raise YamlLimitError(f"{len(text)} characters; at most {MAX_CHARACTERS} are read")
    _check_depth(text)
    node = yaml.compose(text, Loader=kind)
    if node is None:
        return None
    if _size(node, {}, set()) > MAX_NODES:
        raise YamlLimitError(
            f"more than {MAX_NODES} values, its aliases counted; write less, or without aliases"
        )
    loader = kind("")
    try:
        value: object = loader.construct_document(node)
    finally:
        loader.dispose()
    return value


def _check_depth(text: str) -> None:
    """Raise YamlLimitError for nesting that recursive code could not take."""
    depth = 0
    opening = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, opening):
            depth += 1
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1
        if depth > MAX_DEPTH:
            raise YamlLimitError(f"nested more than {MAX_DEPTH} deep")


def _size(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Return the number of nodes with aliases expanded. Raises YamlLimitError for a node inside itself."""
    key = id(node)
    if key in known:
        return known[key]
    if key in open_nodes:
        raise YamlLimitError("an alias inside the value that it stands for")
    open_nodes.add(key)
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_size(item, known, open_nodes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_size(part, known, open_nodes) for pair in node.value for part in pair)
    open_nodes.discard(key)
    known[key] = size
    return size
