"""What a sequence keeps on the device between its forwards: distributions, and candidates for the LM head.

Letters: n rows of one sequence, N rows of a part, D width, V vocabulary, U candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Ints
from unmask.models._transformer import Transformer
from unmask.sampling import Vocabulary


@dataclass
class Memory:
    """One sequence's; `uids` say which slots `distributions_nV` belongs to, in order.

    `missed`: the largest bound on what the last pruned head could miss, on the host.
    """

    uids: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    distributions_nV: Tensor | None = None
    candidates: Candidates | None = None
    missed: float = 0.0
    next_uids: list[Ints] = field(default_factory=list)
    next_distributions: list[Tensor] = field(default_factory=list)

    def turn_over(self) -> None:
        """What was collected in this forward becomes what was known before the next."""
        self.uids = np.concatenate(self.next_uids)
        self.distributions_nV = torch.cat(self.next_distributions)

    def before(self, uids: Ints, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The distributions of these slots in the forward before, and which slots had one."""
        order = np.argsort(self.uids, kind="stable")
        known = np.isin(uids, self.uids)
        found = torch.zeros(len(uids), vocab_size, device=device)
        if known.any():
            assert self.distributions_nV is not None, "remembered slots have distributions"
            at = order[np.searchsorted(self.uids, uids[known], sorter=order)]
            found[torch.from_numpy(known).to(device)] = self.distributions_nV[
                torch.from_numpy(at).to(device)
            ]
        return found, torch.from_numpy(known).to(device)


@dataclass(frozen=True)
class Candidates:
    """The tokens that a block's first forward left in play, and what bounds the others.

    At a slot whose state moved by `d` since then, no other token's logit exceeds its `ceiling` (the
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
        """The union of the `keep` likeliest tokens at every slot, and the end tokens."""
        top = logits_nV.topk(min(keep, logits_nV.shape[-1]), dim=-1)
        ends = [id_ for id_ in (vocabulary.eos_id, vocabulary.turn_end_id) if id_ is not None]
        found = torch.cat((top.indices.flatten(), top.indices.new_tensor(ends)))
        ids: Tensor = torch.unique(found)  # type: ignore[no-untyped-call]
        return cls(
            window_end,
            ids,
            vocabulary.part(ids),
            uids,
            states_nD.float(),
            top.values[:, -1].float(),
        )

    def missed(
        self, logits_NU: Tensor, states_ND: Tensor, uids: Ints, model: Transformer
    ) -> Tensor:
        """`(N,)` upper bounds on the probability that the left-out tokens share; 1 where unknown."""
        position = {int(uid): i for i, uid in enumerate(self.uids)}
        at = [position.get(int(uid), -1) for uid in uids]
        known = torch.tensor([i >= 0 for i in at], device=logits_NU.device)
        index = torch.tensor([max(i, 0) for i in at], device=logits_NU.device)
        moved = (states_ND.float() - self.states_nD[index]).norm(dim=-1)
        longest = model.head_weight.float().norm(dim=-1).amax()
        left_out = max(model.spec.vocab_size - len(self.ids_U), 0)
        if left_out == 0:
            return torch.zeros(len(uids), device=logits_NU.device)
        most = self.ceilings_n[index] + moved * longest + float(np.log(left_out))
        bound = torch.sigmoid(most - logits_NU.float().logsumexp(dim=-1))
        return torch.where(known, bound, torch.ones_like(bound))
