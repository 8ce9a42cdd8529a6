"""Prefix cache of one replica: blocks of prompts, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks that a replica holds, found again by the prompts that begin with them.

    As in vLLM, a prompt finds the leading blocks that are there, up to the first that is not.
    """

    __slots__ = ("_held", "block_tokens")

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._held: OrderedDict[int, None] = OrderedDict()

    def find(self, blocks: Sequence[int], prompt_tokens: int) -> int:
        """Tokens of a prompt that are found; the last one is computed always.

        The blocks found are the most recently used from now on.
        """
        found = 0
        for block in blocks:
            if block not in self._held:
                break
            self._held.move_to_end(block)
            found += 1
        return min(found * self.block_tokens, prompt_tokens - 1)

    def store(self, blocks: Sequence[int], capacity_tokens: float) -> None:
        """Keep the blocks of a prompt, then drop the oldest beyond `capacity_tokens`."""
        held = self._held
        for block in blocks:
            held[block] = None
            held.move_to_end(block)
        most = max(int(capacity_tokens // self.block_tokens), 0)
        while len(held) > most:
            held.popitem(last=False)

    def __len__(self) -> int:
        return len(self._held)
