"""Ownership of the pages of a pool, and the lookup of cached pages by their prefix.

A page is in exactly one state: free, in use (by one owner or more), or cached (without an owner, but with
content that can be looked up by a key). When no free page is left, the least recently used cached page is
evicted. Page 0 is none of the pool's: padding is written there, and nothing reads it.

Source: paged attention, arXiv:2309.06180. The key is a hash chain over full pages, so it identifies the
page's tokens and all tokens before them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from heapq import heapify, heappop, heappush

from unmask.canvas import Ints


def page_key(previous: bytes, tokens: Ints) -> bytes:
    """Return the key of a page of `tokens` that follows the page with key `previous`."""
    return blake2b(previous + tokens.astype("<i8").tobytes(), digest_size=16).digest()


def owner_key(root: bytes, owner: str) -> bytes:
    """Return the key before the first page of the rows of one owner."""
    return blake2b(root, digest_size=16, key=blake2b(owner.encode()).digest()).digest()


class PagePool:
    """The states and owners of the pages 1 to `total`. Without `prefixes`, no page is cached."""

    def __init__(self, total: int, *, prefixes: bool = True) -> None:
        self.total, self.prefixes = total, prefixes
        self.num_evicted = 0
        self._free = list(range(1, total + 1))
        heapify(self._free)
        self._num_owners: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Number of pages that can be allocated: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Number of cached pages."""
        return len(self._cached)

    def allocate(self) -> int:
        """Return a page with one owner: the lowest free one, else an evicted one."""
        assert self.num_available, "no page is available"
        if self._free:
            page = heappop(self._free)
        else:
            page, _ = self._cached.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
            self.num_evicted += 1
        self._num_owners[page] = 1
        return page

    def share(self, key: bytes) -> int | None:
        """Add an owner to the page with a key and return it; None if there is none."""
        page = self._page_of.get(key)
        if page is not None:
            self._cached.pop(page, None)
            self._num_owners[page] = self._num_owners.get(page, 0) + 1
        return page

    def release(self, pages: Iterable[int]) -> None:
        """Remove one owner from each page; without an owner a page is cached if it has a key, else free."""
        for page in pages:
            self._num_owners[page] -= 1
            if self._num_owners[page]:
                continue
            del self._num_owners[page]
            if page in self._key_of:
                self._cached[page] = None
            else:
                heappush(self._free, page)

    def publish(self, page: int, key: bytes) -> None:
        """Make a page with final content available by its key, unless another page has that key."""
        assert page in self._num_owners, "a published page has an owner"
        if self.prefixes and key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def is_writable(self, page: int) -> bool:
        """Return whether a page has a single owner and no key, so that its owner may write to it."""
        return page not in self._key_of and self._num_owners[page] == 1

    def clear_cached(self) -> None:
        """Free all cached pages."""
        while self._cached:
            page, _ = self._cached.popitem()
            del self._page_of[self._key_of.pop(page)]
            heappush(self._free, page)
