// Attention blocks: for one output row (t, o), the rows of all blocks (t, s) are one product
// [a | u] (s × 2H) times [p_o ; k_t] (2H × d), with the norm's correction applied to the accumulators
// before they are written, once.
//
// Traffic: p (H·d² elements) is read once for each tile of tokens, k once for each tile of
// output features; both tiles fit the second-level cache. Each block is written once.
#include "isa.h"
#include "team.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

constexpr int kTileRows = 8;     // blocks s in registers at a time
constexpr int kTileVectors = 3;  // vectors of columns in registers at a time
constexpr Index kTokenTile = 4, kFeatureTile = 8;

template <class T>
constexpr Index kTileColumns = Index(kTileVectors) * kLanes<T>;

// What one thread keeps between the steps of one output row.
template <class T>
struct Scratch {
  T* left;   // (2H, padded tokens): a, then u
  T* share;  // (padded tokens): (w·x̂_s) / d
  T* right;  // (2H, kTileColumns): a piece of p_o, then of k_t
  Index padded;
};

template <class T>
Scratch<T> scratch_of(const AttentionBlocks<T>& op, T* memory) {
  const Index padded = round_up(op.tokens(), kTileRows);
  T* const share = memory + 2 * op.heads() * padded;
  return {memory, share, share + padded, padded};
}

template <class T>
void fill_left(const AttentionBlocks<T>& op, Index t, Index o, const Scratch<T>& s) {
  const Index H = op.heads(), count = op.columns(t);
  if (op.x)
    for (Index i = 0; i < count; ++i) s.share[i] = 0;
  for (Index h = 0; h < H; ++h) {
    T* const weight = s.left + h * s.padded;
    T* const update = s.left + (H + h) * s.padded;
    const T top = op.vt(o, h, t), rest = op.rest(o, h, t);
    for (Index i = 0; i < count; ++i) {
      weight[i] = op.a(t, h, i);
      update[i] = update_weight(weight[i], op.vo(o, h, i), top, rest);
    }
    if (op.x)
      for (Index i = 0; i < count; ++i) s.share[i] += weight[i] * op.px(o, h, i) + update[i] * op.kx(t, h, i);
  }
  if (!op.x) return;
  if (op.diagonal(t) < count) s.share[op.diagonal(t)] += op.qx(t, o);
  for (Index i = 0; i < count; ++i) s.share[i] /= T(op.d_in());
}

// A (rows × vectors) tile of blocks s .. s + rows − 1 at columns j ...
template <class T, int rows, int vectors>
inline void tile(const AttentionBlocks<T>& op, const Scratch<T>& scratch, Index t, Index o, Index s, Index j) {
  constexpr int lanes = kLanes<T>;
  Vector<T> sum[rows][vectors] = {};
  const T* left = scratch.left + s;
  const T* right = scratch.right;
  for (Index k = 0; k < 2 * op.heads(); ++k, left += scratch.padded, right += kTileColumns<T>) {
    Vector<T> b[vectors];
    for (int c = 0; c < vectors; ++c) b[c] = load(right + c * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vector<T> weight = left[i] - Vector<T>{};
#pragma GCC unroll 3
      for (int c = 0; c < vectors; ++c) sum[i][c] += weight * b[c];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    T* const to = op.block_row(t, s + i, o) + j;
    if (s + i == op.diagonal(t)) {
      const T* const q = &op.q(t, o, 0) + j;
      for (int c = 0; c < vectors; ++c) sum[i][c] += load(q + c * lanes);
    }
    if (op.x) {
      const T* const x = &op.x(s + i, 0) + j;
      const T r = op.r(s + i), share = scratch.share[s + i];
      for (int c = 0; c < vectors; ++c) sum[i][c] = r * (sum[i][c] - share * load(x + c * lanes));
    }
    for (int c = 0; c < vectors; ++c) store(to + c * lanes, sum[i][c]);
  }
}

template <class T, int vectors>
void all_blocks(const AttentionBlocks<T>& op, const Scratch<T>& scratch, Index t, Index o, Index j) {
  const Index count = op.columns(t);
  Index s = 0;
  for (; s + 8 <= count; s += 8) tile<T, 8, vectors>(op, scratch, t, o, s, j);
  if (s + 4 <= count) tile<T, 4, vectors>(op, scratch, t, o, s, j), s += 4;
  if (s + 2 <= count) tile<T, 2, vectors>(op, scratch, t, o, s, j), s += 2;
  if (s < count) tile<T, 1, vectors>(op, scratch, t, o, s, j);
}

template <class T>
void fill_right(const AttentionBlocks<T>& op, const Scratch<T>& s, Index t, Index o, Index j, Index width) {
  T* to = s.right;
  for (Index h = 0; h < op.heads(); ++h, to += kTileColumns<T>)
    __builtin_memcpy(to, &op.p(h, o, 0) + j, width * sizeof(T));
  for (Index h = 0; h < op.heads(); ++h, to += kTileColumns<T>)
    __builtin_memcpy(to, &op.k(t, h, 0) + j, width * sizeof(T));
}

// Columns j .. j + width − 1, fewer than a vector, one at a time.
template <class T>
void last_columns(const AttentionBlocks<T>& op, const Scratch<T>& scratch, Index t, Index o, Index j, Index width) {
  for (Index s = 0; s < op.columns(t); ++s) {
    T* const to = op.block_row(t, s, o) + j;
    for (Index c = 0; c < width; ++c) {
      T sum = 0;
      for (Index k = 0; k < 2 * op.heads(); ++k)
        sum += scratch.left[k * scratch.padded + s] * scratch.right[k * kTileColumns<T> + c];
      if (s == op.diagonal(t)) sum += op.q(t, o, j + c);
      to[c] = op.x ? through_norm(sum, scratch.share[s], op.x(s, j + c), op.r(s)) : sum;
    }
  }
}

template <class T>
void output_row(const AttentionBlocks<T>& op, const Scratch<T>& scratch, Index t, Index o) {
  fill_left(op, t, o, scratch);
  const Index d = op.d_in();
  Index j = 0;
  for (; j + kTileColumns<T> <= d; j += kTileColumns<T>) {
    fill_right(op, scratch, t, o, j, kTileColumns<T>);
    all_blocks<T, kTileVectors>(op, scratch, t, o, j);
  }
  for (; j + kLanes<T> <= d; j += kLanes<T>) {
    fill_right(op, scratch, t, o, j, kLanes<T>);
    all_blocks<T, 1>(op, scratch, t, o, j);
  }
  if (j < d) {
    fill_right(op, scratch, t, o, j, d - j);
    last_columns(op, scratch, t, o, j, d - j);
  }
}

}  // namespace

template <class T>
Index attention_scratch(const AttentionBlocks<T>& op) {
  const Index padded = round_up(op.tokens(), kTileRows);
  return round_up((2 * op.heads() + 1) * padded + 2 * op.heads() * kTileColumns<T>, 64);  // threads share no cache line
}

template <class T>
void attention_blocks(const AttentionBlocks<T>& op, T* scratch, int threads) {
  const Index row_tiles = (op.rows() + kTokenTile - 1) / kTokenTile;
  const Index feature_tiles = (op.d_out() + kFeatureTile - 1) / kFeatureTile;
  const Index each = attention_scratch(op);
  (void)threads;
#pragma omp parallel num_threads(threads)
  {
    const Scratch<T> mine = scratch_of(op, scratch + each * this_thread());
#pragma omp for schedule(dynamic)
    for (Index n = row_tiles * feature_tiles - 1; n >= 0; --n) {  // long rows first
      const Index t0 = n / feature_tiles * kTokenTile, o0 = n % feature_tiles * kFeatureTile;
      for (Index o = o0; o < o0 + kFeatureTile && o < op.d_out(); ++o)
        for (Index t = t0; t < t0 + kTokenTile && t < op.rows(); ++t) output_row(op, mine, t, o);
    }
  }
}

template Index attention_scratch(const AttentionBlocks<float>&);
template Index attention_scratch(const AttentionBlocks<double>&);
template void attention_blocks(const AttentionBlocks<float>&, float*, int);
template void attention_blocks(const AttentionBlocks<double>&, double*, int);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
