"""Decoding methods: one paper, one file; the file's name is the decoder's name.

Import the pieces of a method from here (`Blockwise`, `Scoring`, `knob`, ...). To add one, write the file
and define `DECODER` in it: docs/how-to/add-a-decoder.md.
"""

from __future__ import annotations

from unmask.decoders.base.blockwise import Block, Blockwise, Scheduled
from unmask.decoders.base.protocol import AnyDecoder, Decoder, Wrapper
from unmask.decoders.base.scoring import Scores, Scoring
from unmask.decoders.base.whole_blocks import WholeBlocks
from unmask.decoders.registry import (
    decoder_class,
    describe,
    finds_length,
    knob_names,
    make_decoder,
    names,
)
from unmask.knobs import knob

__all__ = [
    "AnyDecoder",
    "Block",
    "Blockwise",
    "Decoder",
    "Scheduled",
    "Scores",
    "Scoring",
    "WholeBlocks",
    "Wrapper",
    "decoder_class",
    "describe",
    "finds_length",
    "knob",
    "knob_names",
    "make_decoder",
    "names",
]
