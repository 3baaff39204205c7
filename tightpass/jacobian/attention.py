"""Softmax attention's Jacobian in closed form, from pieces that are made once.

With a^h_ts the softmax weights, o_t = Σ_s a_ts v_s per head and c the scale of the scores,

    J_ts = [ Σ_h a^h_ts·P_h + Σ_h a^h_ts·Wo_h(v^h_s − o^h_t) ⊗ c·q^h_t·Wk_h + δ_ts·Q_t ]·dN_s
    P_h = Wo_h·Wv_h,   Q_t = Σ_h Σ_u a^h_tu·Wo_h(v^h_u − o^h_t) ⊗ c·k^h_u·Wq_h

Weights are folded with the norm (`norm.py`). Keys and values shared by several query heads are repeated, so
every array here has one entry for each query head. With rotary positions q and k are the rotated ones, and Wk in
block (t, s) becomes R_s·Wk, Wq in Q_t becomes R_t·Wq.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import torch

from tightpass.jacobian.norm import NormAt, sum_of
from tightpass.jacobian.rotation import Rotation
from tightpass.kernels import ops

SCORE_BYTES = 4 * 2**20
"""Tokens × tokens × columns intermediates of a product: kept this small, they stay in the cache."""


@dataclass(frozen=True)
class Heads:
    """Projections of H heads, Wq, Wk, Wv (H, d_head, d) folded with the norm, Wo (d_out, H, d_head);
    q, k, v (H, T, d_head) at x, biases and rotation included; `scale` multiplies the scores."""

    Wq: torch.Tensor
    Wk: torch.Tensor
    Wv: torch.Tensor
    Wo: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    rotation: Rotation | None = None

    def double(self) -> Heads:
        """The same in float64."""
        arrays = {f.name: getattr(self, f.name).double() for f in fields(self) if f.name not in ("scale", "rotation")}
        return Heads(**arrays, scale=self.scale, rotation=self.rotation)


class ClosedAttention:
    """The Jacobian of Σ_h Wo_h·softmax(scale·q_h k_hᵀ) v_h, and the identity where `residual`."""

    def __init__(self, heads: Heads, norm: NormAt | None, causal: bool, residual: bool = False) -> None:
        self.heads, self.norm, self.causal, self.residual = heads, norm, causal, residual
        self.count, self.tokens, self.d_head = heads.q.shape
        self.d_out, self.d_in = heads.Wo.shape[0], heads.Wq.shape[-1]
        scores = heads.scale * heads.q @ heads.k.mT
        if causal:
            future = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        self.a = scores.softmax(-1)  # (H, T, T)
        self.o = self.a @ heads.v  # (H, T, d_head)

    @property
    def width(self) -> int:
        """Elements of the widest intermediate of a product, per token and column."""
        return max(self.count * self.d_head, self.d_in, self.d_out)

    # ---- pieces, made once

    @cached_property
    def _P(self) -> torch.Tensor:
        """(H, d_out, d_in) Wo_h·Wv_h."""
        return self.heads.Wo.transpose(0, 1) @ self.heads.Wv

    def _through_output(self, at: torch.Tensor) -> torch.Tensor:
        """Wo_h on (H, n, d_head): (d_out, H, n)."""
        return (self.heads.Wo.transpose(0, 1) @ at.mT).transpose(0, 1).contiguous()

    @cached_property
    def _VO(self) -> torch.Tensor:
        """(d_out, H, T) Wo_h·v_s."""
        return self._through_output(self.heads.v)

    @cached_property
    def _OO(self) -> torch.Tensor:
        """(d_out, H, T) Wo_h·o_t."""
        return self._through_output(self.o)

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
        if self.heads.rotation is not None:
            self._write_rotated(rows, out, first)
        else:
            self._write(rows, out, first)
        if self.residual:
            for i, t in enumerate(rows):
                (out[i, t] if first is None else out[first[i] + t]).diagonal().add_(1)
        return out

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
        ops.attention_blocks(
            a=self.a[:, which].transpose(0, 1),
            vo=self._VO,
            oo=self._OO[:, :, which],
            p=self._P,
            k=K,
            q=_stacked(places),
            out=out,
            columns=columns,
            diagonal=list(rows),
            first=first,
            norm=norm,
        )

    def _write_rotated(self, rows: range, out: torch.Tensor, first: list[int] | None) -> None:
        """One input token s after the other, since scale·q_t·R_s·Wk depends on both tokens."""
        rotation = self.heads.rotation
        assert rotation is not None
        Q = out.new_empty(len(rows), self.d_out, self.d_in)
        QX = None if self.norm is None else out.new_empty(len(rows), self.d_out)
        for i, t in enumerate(rows):
            self._query_term(t, Q[i], None if QX is None else QX[i])
        for s in range(self._columns(rows.stop - 1)):
            skipped = max(0, s - rows.start) if self.causal else 0
            which, here = slice(rows.start + skipped, rows.stop), slice(s, s + 1)
            K = (
                (self.heads.scale * rotation.back(self.heads.q[:, which], s) @ self.heads.Wk)
                .transpose(0, 1)
                .contiguous()
            )
            norm = None
            if self.norm is not None and QX is not None:
                xhat = self.norm.xhat
                norm = (self._PX[:, :, here], (K @ xhat[s])[..., None], QX[skipped:], xhat[here], self.norm.r[here])
            ops.attention_blocks(
                a=self.a[:, which, here].transpose(0, 1),
                vo=self._VO[:, :, here],
                oo=self._OO[:, :, which],
                p=self._P,
                k=K,
                q=Q[skipped:],
                out=out[skipped:, here] if first is None else out,
                columns=[1] * len(K),
                diagonal=[0 if t == s else 1 for t in rows[skipped:]],
                first=None if first is None else [at + s for at in first[skipped:]],
                norm=norm,
            )

    def _query_term(self, t: int, out: torch.Tensor, through: torch.Tensor | None) -> None:
        """Q_t (d_out, d_in) into `out`, and Q_t·x̂_t into `through`: by tokens while they are fewer than
        d_head, else by d_head × d_head matrices a head."""
        n, H = self._columns(t), self.count
        if n < self.d_head:
            left = self.a[:, t, :n] * (self._VO[:, :, :n] - self._OO[:, :, t : t + 1])  # (d_out, H, n)
            left, right = left.reshape(self.d_out, H * n), self._keys_through_query(t, n).reshape(H * n, self.d_in)
        else:
            left = (self.heads.Wo.transpose(0, 1) @ self._mixing(t)).transpose(0, 1).reshape(self.d_out, -1)
            Wq, rotation = self.heads.Wq, self.heads.rotation
            right = (Wq if rotation is None else rotation.turn(Wq.mT, t).mT).reshape(-1, self.d_in)
        torch.mm(left, right, out=out)
        if through is not None:
            assert self.norm is not None
            torch.mv(left, right @ self.norm.xhat[t], out=through)

    def _keys_through_query(self, t: int, n: int) -> torch.Tensor:
        """(H, n, d_in) scale·k_u·R_t·Wq_h of the first n tokens u."""
        if self.heads.rotation is None:
            return self._KQ[:, :n]
        return self.heads.scale * self.heads.rotation.back(self.heads.k[:, :n], t) @ self.heads.Wq

    def _mixing(self, t: int) -> torch.Tensor:
        """(H, d_head, d_head) scale·Σ_u a_tu (v_u − o_t) k_uᵀ."""
        n = self._columns(t)
        centred = self.heads.v[:, :n] - self.o[:, t : t + 1]
        return self.heads.scale * (self.a[:, t, :n, None] * centred).mT @ self.heads.k[:, :n]

    @cached_property
    def _mixings(self) -> torch.Tensor:
        """(H, T, d_head, d_head)."""
        return torch.stack([self._mixing(t) for t in range(self.tokens)], 1)

    # ---- products: everything that depends on columns is (T, k, heads·d_head), so that all columns share each GEMM

    def push(self, tangents: torch.Tensor) -> torch.Tensor:
        """J on (k, T, d_in) tangents -> (k, T, d_out). Fastest where tangents.transpose(0, 1) is contiguous."""
        at = tangents if self.norm is None else self.norm.push(tangents)
        dq, dk, dv = (self._project(at, W) for W in (self.heads.Wq, self.heads.Wk, self.heads.Wv))
        if self.heads.rotation is not None:
            dq, dk = self._over_heads(dq, self.heads.rotation.turn), self._over_heads(dk, self.heads.rotation.turn)
        mixed = torch.empty_like(dq)
        for h in range(self.count):
            here = slice(h * self.d_head, (h + 1) * self.d_head)
            # Σ_s a_ts (v_s − o_t)·scale·(k_s·dq_t): one small matrix a token
            mixed[:, :, here] = dq[:, :, here] @ self._mixings[h].mT
            values = dv[:, :, here].contiguous()
            for part in self._column_parts(values.shape[1]):
                self._add_over_tokens(h, dk[:, part, here], values[:, part], mixed[:, part, here])
        out = mixed @ self.heads.Wo.reshape(self.d_out, -1).T
        return (out.transpose(0, 1) + tangents) if self.residual else out.transpose(0, 1)

    def _project(self, at: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        """W (H, d_head, d) on (k, T, d): (T, k, H·d_head)."""
        return at.transpose(0, 1) @ W.reshape(-1, W.shape[-1]).T

    def _over_heads(self, d: torch.Tensor, turn: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
        """A rotation by token on (T, k, H·d_head)."""
        by_head = d.unflatten(-1, (self.count, self.d_head)).movedim(0, -2)  # (k, H, T, d_head)
        return turn(by_head, slice(None)).movedim(-2, 0).flatten(-2).contiguous()

    def _column_parts(self, columns: int) -> list[slice]:
        rows = max(r.stop - r.start for r in self._row_parts())
        step = max(1, SCORE_BYTES // (self.tokens * rows * self.a.element_size()))
        return [slice(i, min(i + step, columns)) for i in range(0, columns, step)]

    def _row_parts(self) -> list[slice]:
        """Groups of output tokens: causal rows need fewer input tokens at the start."""
        parts = max(1, self.tokens // 32) if self.causal else 1
        edges = [round(i * self.tokens / parts) for i in range(parts + 1)]
        return [slice(lo, hi) for lo, hi in pairwise(edges)]

    def _add_over_tokens(self, h: int, dk: torch.Tensor, dv: torch.Tensor, out: torch.Tensor) -> None:
        """out_t += Σ_s a_ts·[(v_s − o_t)·scale·(q_t·dk_s) + dv_s], all (T, k, d_head)."""
        a, v, columns = self.a[h], self.heads.v[h], dk.shape[1]
        for rows in self._row_parts():
            n, count = self._columns(rows.stop - 1), rows.stop - rows.start
            q = self.heads.scale * self.heads.q[h, rows]
            weights = (dk[:n].flatten(0, 1) @ q.T).view(n, columns, count).mul_(a[rows, :n].T[:, None])
            pulled = (weights.view(n, -1).T @ v[:n]).view(columns, count, -1)
            pulled -= weights.sum(0)[..., None] * self.o[h, rows]
            out[rows] += pulled.transpose(0, 1)
            out[rows] += (a[rows, :n] @ dv[:n].flatten(1)).view(count, columns, -1)

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Jᵀ on (k, T, d_out) cotangents -> (k, T, d_in). Fastest where cotangents.transpose(0, 1) is contiguous."""
        g = cotangents.transpose(0, 1) @ self.heads.Wo.reshape(self.d_out, -1)  # (T, k, H·d_head)
        dq, dk, dv = torch.empty_like(g), torch.zeros_like(g), torch.zeros_like(g)
        for h in range(self.count):
            here = slice(h * self.d_head, (h + 1) * self.d_head)
            dq[:, :, here] = g[:, :, here] @ self._mixings[h]
            mine = g[:, :, here].contiguous()
            for part in self._column_parts(mine.shape[1]):
                self._add_back_over_tokens(h, mine[:, part], dk[:, part, here], dv[:, part, here])
        if self.heads.rotation is not None:
            dq, dk = self._over_heads(dq, self.heads.rotation.back), self._over_heads(dk, self.heads.rotation.back)
        at = sum_of(
            d @ W.reshape(-1, W.shape[-1]) for d, W in ((dq, self.heads.Wq), (dk, self.heads.Wk), (dv, self.heads.Wv))
        ).transpose(0, 1)
        out = at if self.norm is None else self.norm.push(at)
        return out + cotangents if self.residual else out

    def _add_back_over_tokens(self, h: int, g: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> None:
        """The transpose of `_add_over_tokens`: cotangents of keys and values, all (T, k, d_head)."""
        a, v, columns = self.a[h], self.heads.v[h], g.shape[1]
        for rows in self._row_parts():
            n, count = self._columns(rows.stop - 1), rows.stop - rows.start
            at = g[rows]
            weights = (at.flatten(0, 1) @ v[:n].T).view(count, columns, n)
            weights -= (at * self.o[h, rows, None]).sum(-1, keepdim=True)
            weights *= a[rows, None, :n]
            q = self.heads.scale * self.heads.q[h, rows]
            dk[:n] += (weights.view(count, -1).T @ q).view(columns, n, -1).transpose(0, 1)
            dv[:n] += (a[rows, :n].T @ at.flatten(1)).view(n, columns, -1)

    # ---- norm

    def energy(self) -> float:
        """‖J‖_F² without J: off the diagonal from traces of d_head × d_head products; the T diagonal blocks formed.

        The sums run in float64. With rotary positions a row of blocks at a time is formed instead.
        """
        if self.heads.rotation is not None:
            return sum(self._row_energy(t) for t in range(self.tokens))
        W = self.heads.double()
        a, o = self.a.double(), self.o.double()
        Wo = W.Wo.transpose(0, 1)  # (H, d_out, d_head)
        gram = torch.einsum("hoi,goj->hgij", Wo, Wo)  # Wo_hᵀ Wo_g
        PP = torch.einsum("hgij,hid,gjd->hg", gram, W.Wv, W.Wv)
        K = W.scale * W.q @ W.Wk  # (H, T, d_in)
        KK = torch.einsum("htd,gtd->hgt", K, K)
        VK = torch.einsum("hid,gtd->hgti", W.Wv, K)  # Wv_h K_t^g
        e = torch.einsum("hts,gts,hg->ts", a, a, PP)
        for h in range(self.count):
            for g in range(self.count):
                pair = a[h] * a[g]
                y = torch.einsum("ij,ti->tj", gram[h, g], VK[h, g])  # Wo_gᵀ Wo_h Wv_h K_t^g
                e += 2 * pair * (y @ W.v[g].T - (y * o[g]).sum(-1, keepdim=True))
                e += pair * KK[h, g][:, None] * _centred_products(W.v[h], W.v[g], o[h], o[g], gram[h, g])
        if self.norm is not None:
            e = e - self.norm.squared_shrink().double() * self._through_xhat(W, a, o, K).square().sum(0)
            e = e * self.norm.r.double().square()
        off = torch.ones_like(e).fill_diagonal_(0)
        if self.causal:
            off = off.tril(-1)
        return float((e * off).sum()) + self._diagonal_energy()

    def _row_energy(self, t: int) -> float:
        row = self.a.new_empty(self._columns(t), self.d_out, self.d_in)
        return float(self.write(range(t, t + 1), row, [0]).double().square().sum())

    def _through_xhat(self, W: Heads, a: torch.Tensor, o: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
        """(d_out, T, T): the row of block (t, s) times x̂_s, before the norm."""
        assert self.norm is not None
        x = self.norm.xhat.double()
        Wo = W.Wo.transpose(0, 1)
        out = torch.zeros(self.d_out, self.tokens, self.tokens, dtype=torch.float64, device=x.device)
        for h in range(self.count):
            VO, OO, PX = Wo[h] @ W.v[h].T, Wo[h] @ o[h].T, Wo[h] @ (W.Wv[h] @ x.T)
            out += a[h] * (PX[:, None, :] + (VO[:, None, :] - OO[:, :, None]) * (K[h] @ x.T))
        return out

    def _diagonal_energy(self) -> float:
        """Σ_t ‖J_tt‖_F², of blocks that are formed one at a time."""
        return sum(float(self.diagonal_block(t).double().square().sum()) for t in range(self.tokens))

    def diagonal_block(self, t: int) -> torch.Tensor:
        """Block (t, t) alone, (d_out, d_in)."""
        w = torch.einsum("h,hij->ij", self.a[:, t, t], self._P)
        update = self.a[:, t, t] * (self._VO[:, :, t] - self._OO[:, :, t])
        w += update @ (self.heads.scale * self.heads.q[:, t, None] @ self.heads.Wk)[:, 0]
        query = torch.empty_like(w)
        self._query_term(t, query, None)
        w += query
        if self.norm is not None:
            x = self.norm.xhat[t]
            w = self.norm.r[t] * (w - (w @ x)[:, None] * x / self.d_in)
        if self.residual:
            w.diagonal().add_(1)
        return w


def _centred_products(
    v: torch.Tensor, w: torch.Tensor, o: torch.Tensor, u: torch.Tensor, G: torch.Tensor
) -> torch.Tensor:
    """(v_s − o_t)ᵀ G (w_s − u_t) for all t, s: (T, T)."""
    vG, oG = v @ G, o @ G
    return (vG * w).sum(-1) - u @ vG.T - oG @ w.T + (oG * u).sum(-1)[:, None]


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
