"""Decoding methods, one file per paper; a decoder has the name of its file.

A method imports its building blocks from here (`Blockwise`, `Scoring`, `knob`, ...). To add one, write a
file that defines `DECODER`: docs/how-to/add-a-decoder.md.
"""

from __future__ import annotations

from unmask.decoders.base.blockwise import Block, Blockwise, Scheduled
from unmask.decoders.base.protocol import AnyDecoder, Decoder, Wrapper
from unmask.decoders.base.scoring import Scores, Scoring
from unmask.decoders.base.whole_blocks import WholeBlocks
from unmask.decoders.registry import (
    WORKSHOP,
    broken,
    decoder_class,
    describe,
    finds_length,
    knob_names,
    make_decoder,
    names,
    served_names,
)
from unmask.knobs import knob

__all__ = [
    "WORKSHOP",
    "AnyDecoder",
    "Block",
    "Blockwise",
    "Decoder",
    "Scheduled",
    "Scores",
    "Scoring",
    "WholeBlocks",
    "Wrapper",
    "broken",
    "decoder_class",
    "describe",
    "finds_length",
    "knob",
    "knob_names",
    "make_decoder",
    "names",
    "served_names",
]
