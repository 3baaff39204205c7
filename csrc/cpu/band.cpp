// Dense -> upper band by blocked QR and LQ. Each step reads the trailing matrix C three times and writes it once: VᵀC, C·W,
// and one update of rank 2b for the reflectors of both sides, I − V·T·Vᵀ of the columns and I − W·S·Wᵀ of the rows:
//   X = TᵀVᵀC,  W from the updated rows,  Y = (C·W − V·(X·W))·S,  C −= [V, Y]·[X; Wᵀ]
#include "band_panel.h"
#include "band_update.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

// Columns [k, k + b) of the rows from k on, by QR; zeros where the matrix ends.
template <class T, class Triangle>
void left_panel(Work<T>& work, const BandReduction<T>& op, Index k, Triangle R) {
  const Index b = work.b, m = work.m - k, width = least(b, work.n - k);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < b; ++j) work.P[i * 2 * b + j] = j < width ? op.a(k + i, k + j) : T(0);
  panel_qr(work, work.P, 2 * b, m, R);
  pack(work, work.P, 2 * b, m);
  triangular_factor(work, work.P, 2 * b, m);
  reflect(work, work.P, 2 * b, m, op.left, k);
}

// A = Q·R of a matrix of many rows: R in its place, zeros below; the left probes are turned with it.
template <class T>
void to_triangle(Work<T>& work, const BandReduction<T>& op) {
  const Index n = work.n, b = work.b, row = op.a.stride[0];
  for (Index k = 0; k < n; k += b) {
    const Index right = n - k - b;
    left_panel(work, op, k, [&](Index i, Index j, T value) {
      if (k + j < n) op.a(k + i, k + j) = value;
    });
    for (Index i = 0; i < least(b, n - k); ++i)
      for (Index j = 0; j < i; ++j) op.a(k + i, k + j) = 0;
    for (Index i = k + b; i < n; ++i)
      for (Index j = 0; j < least(b, n - k); ++j) op.a(i, k + j) = 0;
    if (right <= 0) break;
    T* const C = op.a.data + k * row + k + b;
    left_factor(work, work.m - k, right, C, row, work.strips);
    subtract(work, work.m - k, right, b, work.P, 2 * b, work.strips, C, row);
  }
}

// A panel of columns and the panel of rows beside it go into the band; their reflectors are applied to the rest.
template <class T>
void step(Work<T>& work, const BandReduction<T>& op, Index k) {
  const Index n = work.n, b = work.b, row = op.a.stride[0], m = work.m - k, right = n - k - b;
  left_panel(work, op, k, [&](Index i, Index j, T value) {
    if (k + j < n) op.entry(k + i, k + j) = value;
  });
  if (right <= 0) return;
  T* const top = op.a.data + k * row + k + b;
  left_factor(work, m, right, top, row, work.strips);
  subtract(work, b, right, b, work.P, 2 * b, work.strips, top, row);
#pragma omp parallel for schedule(static) num_threads(work.threads) if (right * b >= kWorthThreads)
  for (Index j = 0; j < right; ++j)
    for (Index i = 0; i < b; ++i) work.W[j * b + i] = top[i * row + j];
  panel_qr(work, work.W, b, right, [&](Index i, Index j, T value) { op.entry(k + j, k + b + i) = value; });
  pack(work, work.W, b, right);
  triangular_factor(work, work.W, b, right);
  reflect(work, work.W, b, right, op.right, k + b);
  T* const C = top + b * row;
  right_factor(work, m - b, right, C, row, work.P + 2 * b * b);
  turn(work, right);
  subtract(work, m - b, right, 2 * b, work.P + 2 * b * b, 2 * b, work.strips, C, row);
}

}  // namespace

template <class T>
Index band_scratch(const BandReduction<T>& op, int threads) {
  return Work<T>::size(op.a.shape[0], op.a.shape[1], op.width, threads);
}

template <class T>
void band_reduction(const BandReduction<T>& op, T* scratch, int threads) {
  Work<T> work(op, scratch, threads);
  if (3 * work.m > 5 * work.n) {
    to_triangle(work, op);
    work.m = work.n;
  }
  for (Index k = 0; k < work.n; k += work.b) step(work, op, k);
}

template Index band_scratch(const BandReduction<float>&, int);
template Index band_scratch(const BandReduction<double>&, int);
template void band_reduction(const BandReduction<float>&, float*, int);
template void band_reduction(const BandReduction<double>&, double*, int);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
