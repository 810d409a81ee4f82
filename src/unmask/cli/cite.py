"""`unmask cite`: citations in BibTeX."""

from __future__ import annotations

from typing import Annotated

from unmask.options import option


def cite(
    *,
    decoder: Annotated[str | None, option("-d", metavar="D")] = None,
    cache: Annotated[str | None, option("-c", metavar="C")] = None,
) -> None:
    """Print BibTeX of unmask, and of the papers behind a decoder and a cache.

    Args:
        decoder: Decoder whose papers are cited, also a file of your own that names them.
        cache: Cache whose papers are cited.
    """
    from unmask import caches, decoders
    from unmask.docgen.citations import papers_of, software
    from unmask.knobs import split_call

    entries = [software()]
    if decoder is not None:
        decoders.WORKSHOP.admit(decoder)
        name = split_call(decoder)[0]
        entries.append(papers_of("decoder", name, decoders.decoder_class(name)))
    if cache is not None:
        caches.WORKSHOP.admit(cache)
        name = split_call(cache)[0]
        entries.append(papers_of("cache", name, type(caches.make_cache(name))))
    print("\n".join(entries), end="")
