// One pass over a matrix before it is reduced: its copy, its products with the probes, its largest entry and
// its energy.
#include "tile.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

constexpr Index kTogether = 1024;  // columns in one partial sum

// Sums over some columns of one row, in vectors.
template <bool copying, class T>
void pass(const T* from, T* to, const View<const T, 2>& probes, Index start, Index count, double* sums, T& largest,
          double& energy) {
  constexpr int lanes = kLanes<T>;
  Vector<T> acc[kProbes] = {}, squares = {}, most = {};
  Index j = 0;
  for (; j + lanes <= count; j += lanes) {
    const Vector<T> value = load(from + j), size = value < 0 ? -value : value;
    if (copying) store(to + j, value);
    for (int p = 0; p < kProbes; ++p) acc[p] += value * load(&probes(p, start + j));
    squares += value * value;
    most = size > most ? size : most;
  }
  double square = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    square += double(squares[lane]);
    if (most[lane] > largest) largest = most[lane];
    for (int p = 0; p < kProbes; ++p) sums[p] += double(acc[p][lane]);
  }
  for (; j < count; ++j) {
    if (copying) to[j] = from[j];
    for (int p = 0; p < kProbes; ++p) sums[p] += double(from[j] * probes(p, start + j));
    square += double(from[j] * from[j]);
    const T size = from[j] < 0 ? -from[j] : from[j];
    if (size > largest) largest = size;
  }
  energy += square;
}

template <class T>
void transpose(const View<const T, 2>& a, T* to, Index to_row, int threads) {
  constexpr Index kBlock = 32;
  const Index m = a.shape[0], n = a.shape[1];
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (m * n > 1 << 18)
  for (Index i = 0; i < m; i += kBlock)
    for (Index j = 0; j < n; j += kBlock)
      for (Index r = i; r < least(i + kBlock, m); ++r)
        for (Index c = j; c < least(j + kBlock, n); ++c) to[r * to_row + c] = a(r, c);
}

}  // namespace

template <class T>
void survey(const View<const T, 2>& a, const View<const T, 2>& probes, T* copy, Index copy_row, const View<T, 2>& out,
            double* largest, double* energy, int threads) {
  const Index m = a.shape[0], n = a.shape[1];
  const T* source = a.data;
  Index source_row = a.stride[0];
  if (a.stride[1] != 1 && n > 1) {
    transpose(a, copy, copy_row, threads);
    source = copy;
    source_row = copy_row;
  }
  T most = 0;
  double total = 0;
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : most) if (m * n > 1 << 18)
  for (Index i = 0; i < m; ++i) {
    double sums[kProbes] = {}, square = 0;
    for (Index j = 0; j < n; j += kTogether) {
      const T* const from = source + i * source_row + j;
      const Index count = least(kTogether, n - j);
      if (copy != nullptr && source != copy)
        pass<true>(from, copy + i * copy_row + j, probes, j, count, sums, most, square);
      else pass<false>(from, static_cast<T*>(nullptr), probes, j, count, sums, most, square);
    }
    for (int p = 0; p < kProbes; ++p) out(i, p) = T(sums[p]);
    energy[i] = square;
  }
  for (Index i = 0; i < m; ++i) total += energy[i];  // in the order of the rows, whatever the number of threads
  *largest = double(most);
  energy[0] = total;
}

template void survey(const View<const float, 2>&, const View<const float, 2>&, float*, Index, const View<float, 2>&,
                     double*, double*, int);
template void survey(const View<const double, 2>&, const View<const double, 2>&, double*, Index, const View<double, 2>&,
                     double*, double*, int);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
