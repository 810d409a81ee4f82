"""The sampler's state of a sequence between forwards: distributions, and candidates for the LM head.

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
from unmask.sampling.transfer import upload, upload_index

CONTROLLER = Controller()


@dataclass
class SamplerState:
    """The state of one sequence; `distributions_nV` belong to the positions with identities `uids`.

    `missed` is the largest bound on the probability outside the last pruned vocabulary. `history` and
    `committed` are the last mean confidences and token ids, for vocabulary=adaptive.
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
        """Return the size of the vocabulary of the next forward (CadLLM, Eq. 4)."""
        total = max(1, int((~canvas.fixed).sum()))
        progress = (total - canvas.num_open) / total
        return CONTROLLER.vocabulary(self.history, self.committed, progress)

    def record(self, confidence: Floats, tokens: Ints) -> None:
        """Record a forward's confidence at its open positions and the ids of the committed tokens."""
        if len(confidence):
            self.history = [*self.history, float(confidence.mean())][-5:]
        self.committed = [*self.committed, *tokens.tolist()][-RING:]

    def end_forward(self) -> None:
        """Make the distributions collected in this forward the previous ones of the next."""
        self.uids = np.concatenate(self.next_uids)
        self.distributions_nV = torch.cat(self.next_distributions)
        self.next_uids, self.next_distributions = [], []

    def previous(self, uids: Ints, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the previous distributions `(n, V)` of these positions, and bool `(n,)`: there is one."""
        order = np.argsort(self.uids, kind="stable")
        known = np.isin(uids, self.uids)
        distributions = torch.zeros(len(uids), vocab_size, device=device)
        if known.any():
            assert self.distributions_nV is not None, "stored positions have distributions"
            at = order[np.searchsorted(self.uids, uids[known], sorter=order)]
            rows = upload(np.flatnonzero(known), device)
            distributions[rows] = self.distributions_nV[upload(at, device)]
        return distributions, upload(known, device)


@dataclass(frozen=True)
class Candidates:
    """The candidate tokens of a block, from its first forward, and bounds on the logits of all others.

    At a position whose state has moved by a distance d since then, the logit of any other token exceeds the
    position's ceiling (its smallest candidate logit) by at most d times the norm of the longest row of the
    LM head (Cauchy-Schwarz).
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
        """Return the union of the `keep` likeliest proposable tokens at every position.

        It includes end tokens, and tokens that are never proposed, as these lower the confidence.
        """
        allowed = logits_nV.index_fill(1, vocabulary.forbidden, -torch.inf)
        top = allowed.topk(min(keep, logits_nV.shape[-1] - len(vocabulary.forbidden)), dim=-1)
        always = torch.cat((vocabulary.forbidden, top.indices.new_tensor(vocabulary.end_ids)))
        ids: Tensor = torch.unique(torch.cat((top.indices.flatten(), always)))
        return cls(
            window_end,
            ids,
            vocabulary.subset(ids),
            uids,
            states_nD.float(),
            top.values[:, -1].float(),
        )

    def merge(self, more: Candidates, vocabulary: Vocabulary) -> Candidates:
        """Return the candidates of two parts of a block."""
        ids: Tensor = torch.unique(torch.cat((self.ids_U, more.ids_U)))
        return Candidates(
            self.window_end,
            ids,
            vocabulary.subset(ids),
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
        """Return upper bounds `(N,)` on the total probability of all other tokens; 1 where unknown."""
        position = {int(uid): i for i, uid in enumerate(self.uids)}
        at = [position.get(int(uid), -1) for uid in uids]
        known = upload(np.array([i >= 0 for i in at], dtype=np.bool_), logits_NU.device)
        index = upload_index([max(i, 0) for i in at], logits_NU.device)
        moved = (states_ND.float() - self.states_nD[index]).norm(dim=-1)
        num_others = vocab_size - len(self.ids_U)
        if num_others == 0:
            return torch.zeros(len(uids), device=logits_NU.device)
        most = self.ceilings_n[index] + moved * longest_row + float(np.log(num_others))
        bound = torch.sigmoid(most - logits_NU.float().logsumexp(dim=-1))
        return torch.where(known, bound, torch.ones_like(bound))
