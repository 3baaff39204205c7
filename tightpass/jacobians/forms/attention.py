"""Softmax attention's Jacobian in closed form, from pieces that are made once.

With a^h_ts the softmax weights, o_t = Σ_s a_ts v_s per head and c the scale of the scores,

    J_ts = [ Σ_h a^h_ts·P_h + Σ_h a^h_ts·Wo_h(v^h_s − o^h_t) ⊗ c·q^h_t·Wk_h + δ_ts·Q_t ]·dN_s
    P_h = Wo_h·Wv_h,   Q_t = Σ_h Σ_u a^h_tu·Wo_h(v^h_u − o^h_t) ⊗ c·k^h_u·Wq_h

Weights are folded with the norm (`norm.py`). Keys and values shared by several query heads are repeated, so
every array here has one entry for each query head. With rotary positions, or norms of queries and keys, q and k are what comes
out of them, and Wk in block (t, s) becomes R_s·N_s·Wk, Wq in Q_t becomes R_t·N_t·Wq (`turning.py`). With capped scores
c·tanh(z/c) each score's derivative is multiplied by 1 − tanh². Sinks take part in the softmax alone: rows of a sum to less than 1.

Where a softmax row saturates, v_s − o_t is a small difference of large vectors, times a large q·Wk. With u the token of the
largest weight and ã the weights without it, o_t − v_u = ã·V − (Σã)·v_u is small and right to all digits, and
v_s − o_t = (v_s − v_u) − (o_t − v_u); in products scores' derivatives are likewise taken relative to that of u.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch

from tightpass.jacobians.forms.attention_cost import cost, in_mixes, sum_of_grams
from tightpass.jacobians.forms.base import PANEL_ELEMENTS, Cost, Piece, room
from tightpass.jacobians.forms.heads import PLAIN, Heads, Scores, softmax_beside
from tightpass.jacobians.forms.norm import NormAt
from tightpass.jacobians.forms.products import through
from tightpass.kernels.attention import attention_blocks
from tightpass.structure import BlockLowerTriangular, Dense, Panel

SCORE_BYTES = 4 * 2**20
"""Tokens × tokens × columns intermediates of a product: kept this small, they stay in the cache."""
AT_ONCE = 2**16
"""Entries of each P_h that are weighed at once: all at once, products of seven rows and more take a third longer (`benchmarks/pages.py`)."""
FORMED_UP_TO = 2**35
"""Multiply-adds, one for each head and entry, of rows of blocks that are formed only for ‖J‖_F²: half a minute, about."""


class ClosedAttention(Piece):
    """The Jacobian of Σ_h Wo_h·softmax(scale·q_h k_hᵀ) v_h, and the identity where `residual`."""

    def __init__(
        self,
        heads: Heads,
        norm: NormAt | None,
        causal: bool,
        residual: bool = False,
        given: Scores = PLAIN,
    ) -> None:
        self.heads, self.norm, self.causal, self.residual = heads, norm, causal, residual
        self.count, self.tokens, self.d_head = heads.q.shape
        self.tokens_in = self.tokens_out = self.tokens
        self.heads_apart = self.count
        self.structure = BlockLowerTriangular() if causal else Dense()
        self.d_out, self.d_in = heads.Wo.shape[0], heads.Wq.shape[-1]
        scores = heads.scale * heads.q @ heads.k.mT
        self.bend: torch.Tensor | None = None  # (H, T, T): derivative of the capped scores
        if given.cap is not None:
            z = scores / given.cap
            self.bend = 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z)  # 1 − tanh², to all digits
            scores = given.cap * z.tanh()
        if given.mask is not None:
            scores = scores + given.mask
        if causal:
            future = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        self.a, sunk = softmax_beside(scores, given.sinks)  # (H, T, T)
        self.sinks = given.sinks is not None
        self.top = self.a.argmax(-1)  # (H, T): the token u of each row's largest weight
        others = self.a.scatter(-1, self.top[..., None], 0.0)
        self.v_top = self._at_top(heads.v)  # (H, T, d_head) v_u
        self.rest = others @ heads.v - (others.sum(-1, keepdim=True) + sunk) * self.v_top  # o_t − v_u
        self.o = self.v_top + self.rest

    @property
    def by_pair(self) -> bool:
        """Whether the keys' map hangs on both tokens of a block."""
        return self.heads.turn_q is not None or self.heads.turn_k is not None or self.bend is not None

    @property
    def width(self) -> int:
        """Elements of the widest intermediate of a product, per token and column."""
        return max(self.count * self.d_head, self.d_in, self.d_out)

    @property
    def cost(self) -> Cost:
        return cost(self.tokens, self.d_out, self.count, self.d_head, self.causal)

    def _at_top(self, by_token: torch.Tensor) -> torch.Tensor:
        """(H, T, e): of each output token t, the row of its own u."""
        return by_token.gather(1, self.top[..., None].expand(-1, -1, by_token.shape[-1]))

    # ---- pieces, made once

    @cached_property
    def _P(self) -> torch.Tensor:
        """(H, d_out, d_in) Wo_h·Wv_h."""
        out = room((self.count, self.d_out, self.d_in), self.heads.Wo)
        return torch.matmul(self.heads.Wo.transpose(0, 1), self.heads.Wv, out=out)

    def _through_output(self, at: torch.Tensor) -> torch.Tensor:
        """Wo_h on (H, n, d_head): (d_out, H, n)."""
        return (self.heads.Wo.transpose(0, 1) @ at.mT).transpose(0, 1).contiguous()

    @cached_property
    def _VO(self) -> torch.Tensor:
        """(d_out, H, T) Wo_h·v_s."""
        return self._through_output(self.heads.v)

    @cached_property
    def _VT(self) -> torch.Tensor:
        """(d_out, H, T) Wo_h·v_u, the very numbers of `_VO`: v_u − v_u is zero."""
        return self._VO.gather(2, self.top[None].expand(self.d_out, -1, -1))

    @cached_property
    def _OR(self) -> torch.Tensor:
        """(d_out, H, T) Wo_h·(o_t − v_u)."""
        return self._through_output(self.rest)

    def _centred_values(self, t: int, n: int) -> torch.Tensor:
        """(d_out, H, n) Wo_h·(v_s − o_t) of the first n tokens s."""
        return (self._VO[:, :, :n] - self._VT[:, :, t : t + 1]) - self._OR[:, :, t : t + 1]

    @cached_property
    def _xhat_heads(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Wq·x̂, Wk·x̂, Wv·x̂, each (H, T, d_head)."""
        assert self.norm is not None
        x = self.norm.xhat.T
        return (self.heads.Wq @ x).mT, (self.heads.Wk @ x).mT, (self.heads.Wv @ x).mT

    @cached_property
    def _PX(self) -> torch.Tensor:
        """(d_out, H, T) P_h·x̂_s."""
        return self._through_output(self._xhat_heads[2])

    @cached_property
    def _KQ(self) -> torch.Tensor:
        """(H, T, d_in) scale·k_u·Wq_h."""
        return self.heads.scale * self.heads.k @ self.heads.Wq

    def _columns(self, t: int) -> int:
        """How many input tokens output token t depends on."""
        return t + 1 if self.causal else self.tokens

    # ---- blocks

    def write(self, rows: range, out: torch.Tensor, first: list[int] | None = None) -> torch.Tensor:
        """Blocks (t, s) of output tokens `rows` into `out`; returns it.

        out     (len(rows), T, d_out, d_in), for instance a view of the dense J, of which blocks that are zero
                by causality are not touched; or packed (blocks, d_out, d_in) with first[i] the index of (rows[i], 0)

        The query's own term is formed in the diagonal blocks of `out`, where the kernel reads it.
        """
        if self.by_pair:
            self._write_by_pairs(rows, out, first)
        else:
            self._write(rows, out, first)
        if self.residual:
            for i, t in enumerate(rows):
                (out[i, t] if first is None else out[first[i] + t]).diagonal().add_(1)
        return out

    def row(self, t: int, left: torch.Tensor | None = None) -> torch.Tensor:
        out = room((self._columns(t), self.d_out if left is None else len(left), self.d_in), self.heads.Wo)
        form = self if left is None else self._behind(left)
        form.write(range(t, t + 1), out, [0])
        if left is not None and self.residual:
            out[t] += left
        return out

    def _behind(self, left: torch.Tensor) -> ClosedAttention:
        """left·J, without the residual: its blocks cost a mix of heads each, as those of J, and no product with `left`."""
        form = copy.copy(self)
        Wo = (left @ self.heads.Wo.flatten(1)).unflatten(1, self.heads.Wo.shape[1:])
        form.heads, form.d_out, form.residual = replace(self.heads, Wo=Wo), len(left), False
        for made_of_output in ("_P", "_VO", "_VT", "_OR", "_PX", "_output_columns"):
            vars(form).pop(made_of_output, None)
        return form

    def panels(self, rows: range) -> Iterator[Panel]:
        for some, first in self.groups(rows):
            places = [(t, s) for t in some for s in range(self._columns(t))]
            blocks = self.write(some, room((len(places), self.d_out, self.d_in), self.heads.Wo), first)
            yield Panel(tuple(t for t, _ in places), tuple(s for _, s in places), blocks)

    def groups(self, rows: range) -> Iterator[tuple[range, list[int]]]:
        """As many output tokens at once as fill a panel, or as have no more blocks than the last of all, or than P, which is read
        for each panel; and where in a panel each one's blocks begin."""
        start, most = rows.start, max(self.tokens, self.count, PANEL_ELEMENTS // (self.d_out * self.d_in))
        while start < rows.stop:
            stop, first, count = start, [], 0
            while stop < rows.stop and count + self._columns(stop) <= most:
                first.append(count)
                count += self._columns(stop)
                stop += 1
            yield range(start, stop), first
            start = stop

    def write_dense(self, J: torch.Tensor) -> None:
        self.write(range(self.tokens), J.permute(0, 2, 1, 3))

    def _write(self, rows: range, out: torch.Tensor, first: list[int] | None) -> None:
        which = slice(rows.start, rows.stop)
        columns = [self._columns(t) for t in rows]
        places = [out[i, t] if first is None else out[first[i] + t] for i, t in enumerate(rows)]
        K = (self.heads.scale * self.heads.q[:, which] @ self.heads.Wk).transpose(0, 1)
        QX = None if self.norm is None else out.new_empty(len(rows), self.d_out)
        for i, t in enumerate(rows):
            self._query_term(t, places[i], None if QX is None else QX[i])
        norm = None
        if self.norm is not None:
            KX = (self.heads.scale * self.heads.q[:, which] @ self._xhat_heads[1].mT).transpose(0, 1)
            norm = (self._PX, KX, QX, self.norm.xhat, self.norm.r)
        attention_blocks(
            a=self.a[:, which].transpose(0, 1),
            vo=self._VO,
            vt=self._VT[:, :, which],
            rest=self._OR[:, :, which],
            p=self._P,
            k=K,
            q=_stacked(places),
            out=out,
            columns=columns,
            diagonal=list(rows),
            first=first,
            norm=norm,
        )

    def _write_by_pairs(self, rows: range, out: torch.Tensor, first: list[int] | None) -> None:
        counts = [self._columns(t) for t in rows]
        if (
            first is not None
            and out.is_contiguous()
            and first == [first[0] + n for n in accumulate(counts, initial=0)][:-1]
        ):
            self._write_rows(rows, out[first[0] : first[-1] + counts[-1]])
            return
        for i, (t, n) in enumerate(zip(rows, counts, strict=True)):
            place = out[i, :n] if first is None else out[first[i] : first[i] + n]
            place.copy_(self._write_rows(range(t, t + 1), room(place.shape, out)))

    def _write_rows(self, rows: range, blocks: torch.Tensor) -> torch.Tensor:
        """The blocks (n, d_out, d_in) of some output tokens, in products: of all their weights with P, which is large, and of the
        updates of each token's heads with c·q_t·R_s·N_s·Wk, which hang on both tokens."""
        weights = [self.a[:, t, : self._columns(t)].T for t in rows]
        if self.norm is not None:
            weights = [self.norm.r[: len(at), None] * at for at in weights]
        parts = (at.split(AT_ONCE, 1) for at in (self._P.flatten(1), blocks.view(len(blocks), -1)))
        for P, out in zip(*parts, strict=True):
            torch.mm(torch.cat(weights), P, out=out)
        for t, row in zip(rows, blocks.split([len(at) for at in weights]), strict=True):
            self._add_updates(t, row)
        return blocks

    def _add_updates(self, t: int, blocks: torch.Tensor) -> None:
        """What the weights of output token t move, onto its blocks (n, d_out, d_in), which have what they carry; through the norm
        a block is r_s·(w − (w·x̂_s) ⊗ x̂_s / d)."""
        n = len(blocks)
        left, right = self._query_factors(t)
        updates = (self.a[:, t, :n] * self._centred_values(t, n)).permute(2, 0, 1)  # (n, d_out, H)
        keys = self._through_key(t, slice(n)).transpose(0, 1)  # (n, H, d_in)
        if self.norm is not None:
            xhat, r = self.norm.xhat[:n], self.norm.r[:n]
            share = torch.einsum("hn,ohn->no", self.a[:, t, :n], self._PX[:, :, :n])
            share += (updates @ (keys @ xhat[..., None]))[..., 0]
            share[t] += left @ (right @ xhat[t])
            updates = r[:, None, None] * torch.cat([updates, -share[..., None] / self.d_in], -1)
            keys = torch.cat([keys, xhat[:, None]], 1)
            left = r[t] * left
        blocks.baddbmm_(updates, keys)
        blocks[t].addmm_(left, right)

    def _through_key(self, t: int, tokens: slice) -> torch.Tensor:
        """(H, n, d_in) scale·q_t·R_s·N_s·Wk_h of some input tokens s, times the bend of their scores."""
        at, turn = self.heads.scale * self.heads.q[:, t, None], self.heads.turn_k
        if self.bend is not None:
            at = at * self.bend[:, t, tokens, None]
        if turn is None:
            return at @ self.heads.Wk
        return turn.rows(at.expand(-1, len(range(self.tokens)[tokens]), -1), tokens, self.heads.Wk)

    def _query_term(self, t: int, out: torch.Tensor, through: torch.Tensor | None) -> None:
        """Q_t (d_out, d_in) into `out`, and Q_t·x̂_t into `through`."""
        left, right = self._query_factors(t)
        torch.mm(left, right, out=out)
        if through is not None:
            assert self.norm is not None
            torch.mv(left, right @ self.norm.xhat[t], out=through)

    def _query_factors(self, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two factors of Q_t, (d_out, ·) and (·, d_in): by tokens while they are fewer than d_head, else by d_head × d_head
        matrices a head."""
        n, H = self._columns(t), self.count
        if n < self.d_head:
            left = self.a[:, t, :n] * self._centred_values(t, n)  # (d_out, H, n)
            keys = self._relative(self._keys_through_query(t, n), t)
            return left.reshape(self.d_out, H * n), keys.reshape(H * n, self.d_in)
        left = (self.heads.Wo.transpose(0, 1) @ self._mixing(t)).transpose(0, 1).reshape(self.d_out, -1)
        Wq, turn = self.heads.Wq, self.heads.turn_q
        return left, (Wq if turn is None else turn.turn(Wq.mT, t).mT).reshape(-1, self.d_in)

    def _keys_through_query(self, t: int, n: int) -> torch.Tensor:
        """(H, n, d_in) scale·k_u·R_t·N_t·Wq_h of the first n tokens u, times the bend of their scores."""
        if not self.by_pair:
            return self._KQ[:, :n]
        at, turn = self.heads.scale * self._bent_keys(t, n), self.heads.turn_q
        return at @ self.heads.Wq if turn is None else turn.rows(at, t, self.heads.Wq)

    def _bent_keys(self, t: int, n: int) -> torch.Tensor:
        """(H, n, d_head) keys of the first n tokens, times the bend of their scores."""
        keys = self.heads.k[:, :n]
        return keys if self.bend is None else keys * self.bend[:, t, :n, None]

    def _relative(self, at: torch.Tensor, t: int) -> torch.Tensor:
        """(H, n, e) less that of row t's own u: Σ_s a_s (v_s − o_t) is zero, where nothing sinks."""
        if self.sinks:
            return at
        return at - at.gather(1, self.top[:, t, None, None].expand(-1, -1, at.shape[-1]))

    def _mixing(self, t: int) -> torch.Tensor:
        """(H, d_head, d_head) scale·Σ_u a_tu (v_u − o_t) k_uᵀ."""
        n = self._columns(t)
        centred = (self.heads.v[:, :n] - self.v_top[:, t : t + 1]) - self.rest[:, t : t + 1]
        keys = self._relative(self._bent_keys(t, n), t)
        return self.heads.scale * (self.a[:, t, :n, None] * centred).mT @ keys

    @cached_property
    def _mixings(self) -> torch.Tensor:
        """(H, T, d_head, d_head)."""
        out = self.a.new_empty(self.count, self.tokens, self.d_head, self.d_head)
        for t in range(self.tokens):  # a list of them, put together, would be there twice
            out[:, t] = self._mixing(t)
        return out

    # ---- products: activations are (T, k, heads·d_head), so that all columns share each product with weights; between
    # tokens each head is by itself, (heads, T, k, d_head)

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """J on (k, T, d_in) tangents -> (k, T, d_out)."""
        at = tangents if self.norm is None else self.norm.push(tangents)
        projected = through(at.transpose(0, 1), self._projections)  # (T, k, 3·H·d_head)
        dq, dk, dv = projected.split(self.count * self.d_head, dim=-1)
        if self.heads.turn_q is not None:
            dq = self._over_heads(dq, self.heads.turn_q.turn)
        if self.heads.turn_k is not None:
            dk = self._over_heads(dk, self.heads.turn_k.turn)
        dq, dk, dv = self._by_head(dq), self._by_head(dk), self._by_head(dv)
        mixed = self._by_head(projected.new_empty(*projected.shape[:2], self.count * self.d_head))
        for heads, columns in self._parts(len(tangents)):
            here = (heads, slice(None), columns)
            # Σ_s a_ts (v_s − o_t)·scale·(k_s·dq_t): one small matrix a token
            mixed[here] = dq[here] @ self._mixings[heads, : dq.shape[1]].mT
            self._add_over_tokens(heads, dk[here], dv[here], mixed[here])
        out = through(mixed.permute(1, 2, 0, 3).flatten(-2), self._output_columns)
        return (out.transpose(0, 1) + tangents) if self.residual else out.transpose(0, 1)

    def _by_head(self, at: torch.Tensor) -> torch.Tensor:
        """(T, k, H·d_head) seen as (H, T, k, d_head)."""
        heads: torch.Tensor = at.unflatten(-1, (self.count, self.d_head)).permute(2, 0, 1, 3)
        return heads

    @cached_property
    def _projections(self) -> torch.Tensor:
        """Wqᵀ, Wkᵀ and Wvᵀ beside each other, (d_in, 3·H·d_head)."""
        columns: torch.Tensor = self._projection_rows.T.contiguous()
        return columns

    @cached_property
    def _projection_rows(self) -> torch.Tensor:
        """Wq, Wk and Wv below each other, (3·H·d_head, d_in)."""
        return torch.cat([W.reshape(-1, W.shape[-1]) for W in (self.heads.Wq, self.heads.Wk, self.heads.Wv)])

    @cached_property
    def _output_columns(self) -> torch.Tensor:
        """Woᵀ (H·d_head, d_out)."""
        return self.heads.Wo.reshape(self.d_out, -1).T.contiguous()

    def _over_heads(self, d: torch.Tensor, turn: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
        """What turns by token, on (T, k, H·d_head)."""
        by_head = d.unflatten(-1, (self.count, self.d_head)).movedim(0, -2)  # (k, H, T, d_head)
        return turn(by_head, slice(len(d))).movedim(-2, 0).flatten(-2).contiguous()

    def _parts(self, columns: int) -> list[tuple[slice, slice]]:
        """Groups of heads, or of columns of one head, whose scores are of a size that stays in the cache."""
        rows = max(r.stop - r.start for r in self._row_parts(self.tokens))
        fit = max(1, SCORE_BYTES // (self.tokens * rows * self.a.element_size()))
        heads, width = (max(1, fit // columns), columns) if fit >= columns else (1, fit)
        return [
            (slice(h, min(h + heads, self.count)), slice(c, min(c + width, columns)))
            for h in range(0, self.count, heads)
            for c in range(0, columns, width)
        ]

    def _row_parts(self, tokens: int) -> list[slice]:
        """Groups of the first output tokens: causal rows need fewer input tokens at the start."""
        parts = max(1, tokens // 32) if self.causal else 1
        edges = [round(i * tokens / parts) for i in range(parts + 1)]
        return [slice(lo, hi) for lo, hi in pairwise(edges)]

    def _add_over_tokens(self, heads: slice, dk: torch.Tensor, dv: torch.Tensor, out: torch.Tensor) -> None:
        """out_t += Σ_s a_ts·[(v_s − o_t)·scale·(q_t·dk_s) + dv_s], all (heads, T, k, d_head)."""
        a, v, columns = self.a[heads], self.heads.v[heads], dk.shape[2]
        for rows in self._row_parts(dk.shape[1]):
            n, count = self._columns(rows.stop - 1), rows.stop - rows.start
            q = self.heads.scale * self.heads.q[heads, rows]
            weights = (dk[:, :n].flatten(1, 2) @ q.mT).unflatten(1, (n, columns))
            if self.bend is not None:
                weights *= self.bend[heads, rows, :n].mT[:, :, None]
            if not self.sinks:
                top = self.top[heads, rows][:, None, None].expand(-1, -1, columns, -1)
                weights -= weights.gather(1, top)
            weights *= a[:, rows, :n].mT[:, :, None]
            pulled = (weights.flatten(2).mT @ v[:, :n]).unflatten(1, (columns, count))
            pulled -= weights.sum(1)[..., None] * self.o[heads, None, rows]
            out[:, rows] += pulled.transpose(1, 2)
            out[:, rows] += (a[:, rows, :n] @ dv[:, :n].flatten(2)).unflatten(2, (columns, -1))

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Jᵀ on (k, T, d_out) cotangents -> (k, T, d_in)."""
        g = through(cotangents.transpose(0, 1), self.heads.Wo.reshape(self.d_out, -1))  # (T, k, H·d_head)
        projected = g.new_zeros(*g.shape[:2], 3 * g.shape[2])
        dq, dk, dv = (self._by_head(part) for part in projected.split(g.shape[2], dim=-1))
        by_head = self._by_head(g)
        for heads, columns in self._parts(len(cotangents)):
            here = (heads, slice(None), columns)
            dq[here] = by_head[here] @ self._mixings[heads, : dq.shape[1]]
            self._add_back_over_tokens(heads, by_head[here], dk[here], dv[here])
        turns = (self.heads.turn_q, self.heads.turn_k)
        for turn, part in zip(turns, projected.split(g.shape[2], dim=-1), strict=False):
            if turn is not None:
                part.copy_(self._over_heads(part, turn.back))
        at = through(projected, self._projection_rows).transpose(0, 1)
        out = at if self.norm is None else self.norm.push(at)
        return out.add_(cotangents) if self.residual else out

    def _add_back_over_tokens(self, heads: slice, g: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> None:
        """The transpose of `_add_over_tokens`: cotangents of keys and values, all (heads, T, k, d_head)."""
        a, v, columns = self.a[heads], self.heads.v[heads], g.shape[2]
        for rows in self._row_parts(g.shape[1]):
            n, count = self._columns(rows.stop - 1), rows.stop - rows.start
            at = g[:, rows]
            weights = (at.flatten(1, 2) @ v[:, :n].mT).unflatten(1, (count, columns))
            top = self.top[heads, rows][:, :, None, None].expand(-1, -1, columns, -1)
            weights -= weights.gather(3, top)
            weights -= (at * self.rest[heads, rows, None]).sum(-1, keepdim=True)
            weights *= a[:, rows, None, :n]
            if self.bend is not None:
                weights *= self.bend[heads, rows, None, :n]
            q = self.heads.scale * self.heads.q[heads, rows]
            dk[:, :n] += (weights.flatten(2).mT @ q).unflatten(1, (columns, n)).transpose(1, 2)
            dv[:, :n] += (a[:, rows, :n].mT @ at.flatten(2)).unflatten(2, (columns, -1))

    # ---- norm

    @property
    def energy_is_known(self) -> bool:
        """Whether ‖J‖_F² can be had in little time: not where too many blocks would have to be formed."""
        entries = self.structure.count(self.tokens, self.tokens) * self.d_out * self.d_in
        return not (self.by_pair or self.sinks) or self.count * entries <= FORMED_UP_TO

    def energy(self) -> float | None:
        """‖J‖_F² without J."""
        return float(self._energies[0].sum()) if self.energy_is_known else None

    def energy_reach(self) -> float:
        """What ‖J‖_F² is made of before anything cancels: its rounding is relative to this."""
        return float(self._energies[1].sum()) if self.energy_is_known else 0.0

    def block_energies(self) -> torch.Tensor | None:
        """‖J_ts‖_F² of all blocks, (T, T) float64: off the diagonal from traces of d_head × d_head products; the T diagonal
        blocks are formed. Where the keys' map hangs on both tokens, a row of blocks at a time is formed instead.
        """
        return self._energies[0] if self.energy_is_known else None

    def paths(self) -> Iterator[ClosedAttention]:
        """J without the identity is the sum of these: through the values, at weights that are held, and through the weights.
        One after the other: each has products of weights of its own."""
        yield self._with(replace(self.heads, scale=0.0, turn_q=None, turn_k=None), None)
        yield self._with(replace(self.heads, Wv=torch.zeros_like(self.heads.Wv)), self.bend)

    def _with(self, heads: Heads, bend: torch.Tensor | None) -> ClosedAttention:
        """The same weights of the softmax, and other maps; without the identity."""
        form = copy.copy(self)
        for name in [name for name in vars(form) if isinstance(getattr(type(form), name, None), cached_property)]:
            del vars(form)[name]
        form.heads, form.bend, form.residual = heads, bend, False
        return form

    @cached_property
    def _energies(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`block_energies`, and their terms' sizes."""
        if self.by_pair or self.sinks:
            formed = torch.stack([self._row_energies(t) for t in range(self.tokens)])
            return formed, formed
        W = self.heads.double()
        Wo = W.Wo.transpose(0, 1)  # (H, d_out, d_head)
        P = self._P if self._P.dtype == torch.float64 else Wo @ W.Wv
        pieces = _Energies(
            P=P,
            PP=sum_of_grams(P.flatten(1)),
            K=W.scale * W.q @ W.Wk,
            values=(Wo @ W.v.mT).transpose(0, 1),
            rest=(Wo @ self.rest.double().mT).transpose(0, 1),
        )
        e, terms = torch.zeros(2, self.tokens, self.tokens, dtype=torch.float64, device=self.a.device)
        for t in range(self.tokens):
            n = self._columns(t)
            e[t, :n], terms[t, :n] = self._energies_of_row(pieces, t, n)
        if self.norm is not None:
            e, terms = e * self.norm.r.double().square(), terms * self.norm.r.double().square()
        own = [float(self.diagonal_block(t).double().square().sum()) for t in range(self.tokens)]
        return e.diagonal_scatter(torch.tensor(own, dtype=e.dtype, device=e.device)).clamp_min(0), terms

    def _energies_of_row(self, pieces: _Energies, t: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """‖w_ts‖_F² of the first n blocks of row t, without the query's term, before the norm's scale: (n,); and with all
        terms taken as positive."""
        a, K = self.a[:, t, :n].double(), pieces.K[:, t]  # (H, n), (H, d_in)
        top = pieces.values.gather(2, self.top[None, :, t, None].expand(self.d_out, -1, 1))
        Y = a * ((pieces.values[:, :, :n] - top) - pieces.rest[:, :, t : t + 1])  # (d_out, H, n)
        PK = torch.einsum("hoi,gi->hgo", pieces.P, K)
        e = torch.einsum("hs,gs,hg->s", a, a, pieces.PP)
        e += 2 * torch.einsum("hs,hgs->s", a, torch.einsum("hgo,ogs->hgs", PK, Y))
        YK = torch.einsum("ohs,hg->ogs", Y, K @ K.T)
        e += (YK * Y).sum((0, 1))
        terms = (a.T @ pieces.P.norm(dim=(1, 2)) + Y.norm(dim=0).T @ K.norm(dim=1)).square()  # of all heads
        if self.norm is None:
            return e, terms
        x = self.norm.xhat[:n].double()
        direct = [
            torch.einsum("hs,hoi,si->os", a[:, part], pieces.P, x[part]) for part in in_mixes(n, pieces.P[0].numel())
        ]
        z = torch.cat(direct, 1) + torch.einsum("ohs,hs->os", Y, K @ x.T)
        # z is at most √d·(the above), and shrink at most 2/d
        return e - self.norm.squared_shrink().double()[:n] * z.square().sum(0), 3 * terms

    def _row_energies(self, t: int) -> torch.Tensor:
        row = room((self._columns(t), self.d_out, self.d_in), self.a)
        out = torch.zeros(self.tokens, dtype=torch.float64, device=row.device)
        out[: len(row)] = self.write(range(t, t + 1), row, [0]).double().square().sum((1, 2))
        return out

    def diagonal_block(self, t: int) -> torch.Tensor:
        """Block (t, t) alone, (d_out, d_in)."""
        w = torch.einsum("h,hij->ij", self.a[:, t, t], self._P)
        update = self.a[:, t, t] * self._centred_values(t, t + 1)[:, :, t]
        w += update @ self._through_key(t, slice(t, t + 1))[:, 0]
        query = torch.empty_like(w)
        self._query_term(t, query, None)
        w += query
        if self.norm is not None:
            x = self.norm.xhat[t]
            w = self.norm.r[t] * (w - (w @ x)[:, None] * x / self.d_in)
        if self.residual:
            w.diagonal().add_(1)
        return w


@dataclass(frozen=True)
class _Energies:
    """In float64: P (H, d_out, d_in), PP_hg = ⟨P_h, P_g⟩, K (H, T, d_in) scale·q_t·Wk_h, Wo_h·v_s and Wo_h·(o_t − v_u), both
    (d_out, H, T)."""

    P: torch.Tensor
    PP: torch.Tensor
    K: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor


def _stacked(places: list[torch.Tensor]) -> torch.Tensor:
    """Equal-strided matrices as one (n, rows, columns) array, copied only if they are not evenly spaced."""
    first = places[0]
    if len(places) == 1:
        return first[None]
    steps = {(b.data_ptr() - a.data_ptr()) // first.element_size() for a, b in pairwise(places)}
    if len(steps) == 1 and first.untyped_storage().data_ptr() == places[-1].untyped_storage().data_ptr():
        step = steps.pop()
        return first.as_strided((len(places), *first.shape), (step, *first.stride()))
    return torch.stack(places)
