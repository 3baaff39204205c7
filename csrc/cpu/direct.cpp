// Dense -> bidiagonal in one stage, for what fits a core's cache: Golub and Kahan's reflections, one pass over the
// matrix for each column (Howell, Demmel, Fulton, Hammarling & Marmol 2008). While the reflections of one column are
// applied from both sides, the products that the next one needs are summed.
#include "tile.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

constexpr int kTogether = 4;  // rows that share the loads of the reflections

// What is applied to rows: row −= factor·left, then row −= (row·right)·tau·right; from vector `first` on.
template <class T>
struct Reflections {
  const T* left;
  const T* right;
  T tau;
  Index first, end, column;  // the next column to be reduced
};

// Some rows; adds x_i·row_i to sums, x_i being their next column, where they are `counted`.
template <bool counted, int rows, class T>
void reflect_rows(const Reflections<T>& by, T* at, Index row, const T* factor, T* next, T* sums) {
  constexpr int lanes = kLanes<T>;
  Vector<T> dots[rows] = {};
  for (Index c = by.first; c < by.end; c += lanes) {
    const Vector<T> left = load(by.left + c), right = load(by.right + c);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const Vector<T> value = load(at + r * row + c) - factor[r] * left;
      store(at + r * row + c, value);
      dots[r] += value * right;
    }
  }
  T shares[rows];
  for (int r = 0; r < rows; ++r) {
    T dot = 0;
    for (int lane = 0; lane < lanes; ++lane) dot += dots[r][lane];
    shares[r] = by.tau * dot;
    next[r] = at[r * row + by.column] - shares[r] * by.right[by.column];
  }
  for (Index c = by.first; c < by.end; c += lanes) {
    const Vector<T> right = load(by.right + c);
    Vector<T> sum = {};
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const Vector<T> value = load(at + r * row + c) - shares[r] * right;
      store(at + r * row + c, value);
      if (counted) sum += next[r] * value;
    }
    if (counted) store(sums + c, load(sums + c) + sum);
  }
}

template <bool counted, class T>
void reflect_all(const Reflections<T>& by, const View<T, 2>& a, Index from, Index to, T inverse, T* x, T* sums) {
  const Index row = a.stride[0];
  Index i = from;
  for (; i + kTogether <= to; i += kTogether) {
    T factor[kTogether];
    for (int r = 0; r < kTogether; ++r) factor[r] = x[i + r] * inverse;
    reflect_rows<counted, kTogether>(by, a.data + i * row, row, factor, x + i, sums);
  }
  for (; i < to; ++i) {
    const T factor = x[i] * inverse;
    reflect_rows<counted, 1>(by, a.data + i * row, row, &factor, x + i, sums);
  }
}

}  // namespace

template <class T>
void bidiagonalize(const DirectReduction<T>& op, T* scratch) {
  const Index m = op.m, n = op.n, rows = op.a.shape[0], width = op.a.shape[1];
  T* const left = scratch;        // (width)
  T* const right = left + width;  // (width)
  T* const sums = right + width;  // (width)
  T* const x = sums + width;      // (rows): the column that is reduced next; 0 for rows below m
  for (Index c = 0; c < 3 * width + rows; ++c) scratch[c] = 0;
  for (Index i = 0; i < m; ++i) x[i] = op.a(i, 0);
  for (Index i = 1; i < m; ++i)
    for (Index c = 0; c < width; ++c) sums[c] += x[i] * op.a(i, c);
  for (Index j = 0; j < n; ++j) {
    T* const pivot = op.a.data + j * op.a.stride[0];
    const Reflector<T> h = reflector(pivot[j], sums[j]);
    op.d(j) = double(h.beta);
    left[j] = right[j] = 0;
    for (Index c = j + 1; c < width; ++c) {
      left[c] = h.tau * (pivot[c] + sums[c] * h.inverse);
      pivot[c] -= left[c];
      sums[c] = 0;
    }
    Reflections<T> by{left, right, 0, j / kLanes<T> * kLanes<T>, width, j + 1 < n ? j + 1 : j};
    if (j + 1 < n) {
      T rest = 0;
      for (Index c = j + 2; c < n; ++c) rest += pivot[c] * pivot[c];
      const Reflector<T> side = reflector(pivot[j + 1], rest);
      op.e(j) = double(side.beta);
      by.tau = side.tau;
      right[j + 1] = 1;
      for (Index c = j + 2; c < n; ++c) right[c] = pivot[c] * side.inverse;
    }
    if (j + 1 < m) reflect_all<false>(by, op.a, j + 1, j + 2, h.inverse, x, sums);  // the next pivot's row
    reflect_all<true>(by, op.a, j + 2 < m ? j + 2 : m, m, h.inverse, x, sums);
    reflect_all<false>(by, op.a, m, rows, T(0), x, sums);
  }
}

template void bidiagonalize(const DirectReduction<float>&, float*);
template void bidiagonalize(const DirectReduction<double>&, double*);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
