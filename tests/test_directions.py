"""Every knob does at each documented end of its range what its help says.

The checks are in `directions/`, found by the name of decoder, cache or sampling parameter: a knob, or an
end in a help text, without one fails here.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from directions import caches as cache_checks  # noqa: F401
from directions import cadllm, methods, sampling, shared  # noqa: F401 - they register their checks
from directions.registry import CHECKS, documented_ends, is_number

from unmask import caches, decoders
from unmask.sampling.params import SamplingParams

OWNERS = {
    **{name: decoders.decoder_class(name) for name in decoders.names()},
    **{name: caches.cache_class(name) for name in caches.names()},
    "sampling": SamplingParams,
}
KNOBS = [(owner, field.name) for owner, cls in OWNERS.items() for field in dataclasses.fields(cls)]


def field_of(owner, knob):
    return next(field for field in dataclasses.fields(OWNERS[owner]) if field.name == knob)


def test_no_decoder_shares_its_name_with_a_cache():
    assert len(OWNERS) == len(decoders.names()) + len(caches.names()) + 1


def declaring(owner, knob):
    """The class whose body declares a knob that `owner` has."""
    return next(cls for cls in OWNERS[owner].__mro__ if knob in inspect.get_annotations(cls))


def check_of(owner, knob):
    """The check of a knob; of one that is inherited as it is, that of any class which inherits it, too."""
    own = CHECKS.get((owner, knob))
    if own is not None or declaring(owner, knob) is OWNERS[owner]:
        return own
    inherited = (
        check
        for (other, name), check in CHECKS.items()
        if name == knob and declaring(other, name) is declaring(owner, knob)
    )
    return next(inherited, None)


@pytest.mark.parametrize(("owner", "knob"), KNOBS, ids="-".join)
def test_every_documented_end_of_every_knob_has_a_check(owner, knob):
    check = check_of(owner, knob)
    assert check is not None, f"add a check of {owner}.{knob} to tests/directions"
    ends = documented_ends(OWNERS[owner], field_of(owner, knob))
    assert ends <= check.ends, f"the help of {owner}.{knob} names ends that no check tries"
    if is_number(OWNERS[owner], field_of(owner, knob)):
        assert ends, f"the help of {owner}.{knob} does not say what its ends do"


def test_no_check_is_of_a_knob_that_is_gone():
    assert set(CHECKS) <= set(KNOBS)


@pytest.mark.parametrize(
    ("owner", "run"),
    sorted(
        {(owner, check.run) for (owner, _), check in CHECKS.items()},
        key=lambda c: (c[0], c[1].__name__),
    ),
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_knob_does_what_its_help_says_at_the_ends(owner, run):
    run(owner)
