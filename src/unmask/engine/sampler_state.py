"""What a sequence keeps on the device between its forwards: distributions, and candidates for the LM head.

Letters: n rows of one sequence, N rows of a part, D width, V vocabulary, U candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Canvas, Floats, Ints
from unmask.decoders.base.cadllm_controller import RING, Controller
from unmask.sampling.sampler import Vocabulary

CONTROLLER = Controller()


@dataclass
class SamplerState:
    """One sequence's; `uids` say which positions `distributions_nV` belongs to, in order.

    `missed`: the largest bound on what the last pruned head could miss, on the host. `history` and
    `committed`: mean confidences and last ids, for vocabulary=adaptive.
    """

    uids: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    distributions_nV: Tensor | None = None
    candidates: Candidates | None = None
    missed: float = 0.0
    history: list[float] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    next_uids: list[Ints] = field(default_factory=list)
    next_distributions: list[Tensor] = field(default_factory=list)

    def adaptive_size(self, canvas: Canvas) -> int:
        """How many tokens count next (CadLLM, Eq. 4)."""
        total = max(1, int((~canvas.fixed).sum()))
        progress = (total - canvas.num_open) / total
        return CONTROLLER.vocabulary(self.history, self.committed, progress)

    def watch(self, confidence: Floats, tokens: Ints) -> None:
        """Remember how sure a forward was of its open positions and what was committed."""
        if len(confidence):
            self.history = [*self.history, float(confidence.mean())][-5:]
        self.committed = [*self.committed, *tokens.tolist()][-RING:]

    def turn_over(self) -> None:
        """What was collected in this forward becomes what was known before the next."""
        self.uids = np.concatenate(self.next_uids)
        self.distributions_nV = torch.cat(self.next_distributions)
        self.next_uids, self.next_distributions = [], []

    def before(self, uids: Ints, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The distributions of these positions in the forward before, and which positions had one."""
        order = np.argsort(self.uids, kind="stable")
        known = np.isin(uids, self.uids)
        found = torch.zeros(len(uids), vocab_size, device=device)
        if known.any():
            assert self.distributions_nV is not None, "remembered positions have distributions"
            at = order[np.searchsorted(self.uids, uids[known], sorter=order)]
            rows = torch.from_numpy(np.flatnonzero(known)).to(device)
            found[rows] = self.distributions_nV[torch.from_numpy(at).to(device)]
        return found, torch.from_numpy(known).to(device)


@dataclass(frozen=True)
class Candidates:
    """The tokens that a block's first forward left in play, and what bounds the others.

    At a position whose state moved by `d` since then, no other token's logit exceeds its `ceiling` (the
    smallest logit kept there) by more than `d` times the longest row of the LM head (Cauchy-Schwarz).
    """

    window_end: int
    ids_U: Tensor
    vocabulary: Vocabulary
    uids: Ints
    states_nD: Tensor
    ceilings_n: Tensor

    @classmethod
    def choose(
        cls,
        window_end: int,
        logits_nV: Tensor,
        states_nD: Tensor,
        uids: Ints,
        keep: int,
        vocabulary: Vocabulary,
    ) -> Candidates:
        """The union of the `keep` likeliest proposable tokens at every position.

        End tokens stay in it, and tokens that are never proposed too: they cost confidence.
        """
        allowed = logits_nV.index_fill(1, vocabulary.forbidden, -torch.inf)
        top = allowed.topk(min(keep, logits_nV.shape[-1] - len(vocabulary.forbidden)), dim=-1)
        ends = [id_ for id_ in (vocabulary.eos_id, vocabulary.turn_end_id) if id_ is not None]
        always = torch.cat((vocabulary.forbidden, top.indices.new_tensor(ends)))
        found = torch.cat((top.indices.flatten(), always))
        ids: Tensor = torch.unique(found)
        return cls(
            window_end,
            ids,
            vocabulary.part(ids),
            uids,
            states_nD.float(),
            top.values[:, -1].float(),
        )

    def joined(self, more: Candidates, vocabulary: Vocabulary) -> Candidates:
        """The candidates of two parts of a block."""
        both = torch.cat((self.ids_U, more.ids_U))
        ids: Tensor = torch.unique(both)
        return Candidates(
            self.window_end,
            ids,
            vocabulary.part(ids),
            np.concatenate((self.uids, more.uids)),
            torch.cat((self.states_nD, more.states_nD)),
            torch.cat((self.ceilings_n, more.ceilings_n)),
        )

    def missed(
        self,
        logits_NU: Tensor,
        states_ND: Tensor,
        uids: Ints,
        longest_row: Tensor,
        vocab_size: int,
    ) -> Tensor:
        """`(N,)` upper bounds on the probability that the left-out tokens share; 1 where unknown."""
        position = {int(uid): i for i, uid in enumerate(self.uids)}
        at = [position.get(int(uid), -1) for uid in uids]
        known = torch.tensor([i >= 0 for i in at], device=logits_NU.device)
        index = torch.tensor([max(i, 0) for i in at], device=logits_NU.device)
        moved = (states_ND.float() - self.states_nD[index]).norm(dim=-1)
        left_out = vocab_size - len(self.ids_U)
        if left_out == 0:
            return torch.zeros(len(uids), device=logits_NU.device)
        most = self.ceilings_n[index] + moved * longest_row + float(np.log(left_out))
        bound = torch.sigmoid(most - logits_NU.float().logsumexp(dim=-1))
        return torch.where(known, bound, torch.ones_like(bound))
