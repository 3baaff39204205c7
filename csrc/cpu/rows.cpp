// Gathered rows of weights through a norm. Bound by memory: every row is read once from memory, kept in the
// first-level cache, and written once.
#include "isa.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

// Σ a_j·b_j, in several partial sums that the compiler keeps in one vector.
template <class T>
T dot(const T* a, const T* b, Index n) {
  constexpr int lanes = kLanes<T>;
  Vector<T> sums[2] = {};
  Index j = 0;
  for (; j + 2 * lanes <= n; j += 2 * lanes) {
    sums[0] += load(a + j) * load(b + j);
    sums[1] += load(a + j + lanes) * load(b + j + lanes);
  }
  const Vector<T> both = sums[0] + sums[1];
  T sum = 0;
  for (int i = 0; i < lanes; ++i) sum += both[i];
  for (; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

template <class T>
void through_norm_row(T* row, const T* x, T r, Index d) {
  const T share = dot(row, x, d) / T(d);
  for (Index j = 0; j < d; ++j) row[j] = through_norm(row[j], share, x[j], r);
}

}  // namespace

template <class T>
void gather_rows(const GatherRows<T>& op, int threads) {
  const Index n = op.out.shape[0], d = op.out.shape[1];
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (Index i = 0; i < n; ++i) {
    const T* const from = &op.weight(op.index(i), 0);
    T* const to = &op.out(i, 0);
    const T slope = op.slope ? op.slope(i) : T(1);
    for (Index j = 0; j < d; ++j) to[j] = slope * from[j];
    if (op.x) through_norm_row(to, &op.x(op.token(i), 0), op.r(op.token(i)), d);
  }
}

template void gather_rows(const GatherRows<float>&, int);
template void gather_rows(const GatherRows<double>&, int);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
