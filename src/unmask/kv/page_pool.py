"""Who owns which page of a pool, and which pages hold a prefix that another request can use.

A page is in exactly one state: free, held (by one table or more), or kept (held by nobody, but its content
is known by a key). Kept pages are given away when no free one is left, the least recently used first.

Source: paged attention, arXiv:2309.06180; the key is a hash chain over full pages, so it stands for all
that came before too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from heapq import heapify, heappop, heappush

from unmask.canvas import Ints


def chain(before: bytes, tokens: Ints) -> bytes:
    """The key of a page of `tokens` that follows what `before` stands for."""
    return blake2b(before + tokens.astype("<i8").tobytes(), digest_size=16).digest()


class PagePool:
    """The books of `total` pages. `prefixes`: whether content is remembered by key."""

    def __init__(self, total: int, *, prefixes: bool = True) -> None:
        self.total, self.prefixes = total, prefixes
        self.num_evicted = 0
        self._free = list(range(total))
        heapify(self._free)
        self._owners: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Pages that nobody holds and whose content is known."""
        return len(self._kept)

    def take(self) -> int:
        """A page for one owner; the lowest free one."""
        assert self.num_available, "a page was taken that is not there"
        if self._free:
            page = heappop(self._free)
        else:
            page, _ = self._kept.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
            self.num_evicted += 1
        self._owners[page] = 1
        return page

    def hold(self, key: bytes) -> int | None:
        """The page of a key, with one more owner; None if there is none."""
        page = self._page_of.get(key)
        if page is not None:
            self._kept.pop(page, None)
            self._owners[page] = self._owners.get(page, 0) + 1
        return page

    def drop(self, pages: Iterable[int]) -> None:
        """Give pages back, one owner each."""
        for page in pages:
            self._owners[page] -= 1
            if self._owners[page]:
                continue
            del self._owners[page]
            if page in self._key_of:
                self._kept[page] = None
            else:
                heappush(self._free, page)

    def publish(self, page: int, key: bytes) -> None:
        """Let others find a held page, whose content is final, unless they find another already."""
        assert page in self._owners, "a page was published that nobody holds"
        if self.prefixes and key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def is_private(self, page: int) -> bool:
        """Whether its only owner may write to it."""
        return page not in self._key_of and self._owners[page] == 1

    def forget(self) -> None:
        """Free what is kept."""
        while self._kept:
            page, _ = self._kept.popitem()
            del self._page_of[self._key_of.pop(page)]
            heappush(self._free, page)
