// Singular values of a bidiagonal matrix by bisection. All in double: squares of what float32 holds fit.
// Several chains of vectors run side by side, since each step of a count waits for a division.
#include "isa.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

constexpr int kWide = kLanes<double>;
constexpr int kChains = 8;
constexpr int kTogether = kWide * kChains;  // shifts that are counted at once
using Doubles = Vector<double>;
typedef long long Counts __attribute__((vector_size(kVectorBytes)));

// d² and e², and a bound on ‖B‖
struct Squares {
  const double* d2;
  const double* e2;  // the last is 0
  Index n;
  double bound;
};

Squares squares_of(const View<const double, 1>& d, const View<const double, 1>& e, double* room) {
  const Index n = d.shape[0];
  double before = 0, bound = 0;
  for (Index i = 0; i < n; ++i) {
    const double off = i + 1 < n ? e(i) : 0.0, mine = d(i) < 0 ? -d(i) : d(i), beside = off < 0 ? -off : off;
    room[i] = d(i) * d(i);
    room[n + i] = off * off;
    const double reach = mine + (beside > before ? beside : before);  // ‖B‖ ≤ max of row and column sums
    if (reach > bound) bound = reach;
    before = beside;
  }
  return {room, room + n, n, bound * kAbove};
}

// #{σ < tau} for kTogether shifts
void count(const Squares& squares, const double* taus, Counts* counts) {
  Doubles tau2[kChains], s[kChains];
  Counts below[kChains] = {};
  for (int c = 0; c < kChains; ++c) {
    for (int lane = 0; lane < kWide; ++lane) tau2[c][lane] = sturm_shift(taus[c * kWide + lane]);
    s[c] = -tau2[c];
  }
  for (Index i = 0; i < squares.n; ++i) {
    const Doubles d2 = squares.d2[i] - Doubles{}, e2 = squares.e2[i] - Doubles{};
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const Doubles pivot = s[c] + d2;
      below[c] -= pivot < 0;
      s[c] = sturm_next(s[c], pivot, e2, tau2[c]);
    }
  }
  for (int c = 0; c < kChains; ++c) counts[c] = below[c];
}

void count_all(const Squares& squares, const double* taus, Index how_many, Index* counts) {
  double shifts[kTogether];
  Counts found[kChains];
  for (int i = 0; i < kTogether; ++i) shifts[i] = taus[i < how_many ? i : how_many - 1];
  count(squares, shifts, found);
  for (Index i = 0; i < how_many; ++i) counts[i] = found[i / kWide][i % kWide];
}

}  // namespace

void bisection(const Bisection& op, double* room, int threads) {
  const Squares squares = squares_of(op.d, op.e, room);
  const Index n = squares.n;
  if (squares.bound == 0) {
    for (Index i = 0; i < n; ++i) op.values(i) = 0;
    return;
  }
  // Counts at evenly spaced points first: they bracket all values at the price of a few bisections.
  constexpr Index kGrid = 4096;
  double grid[kGrid];
  Index counts[kGrid + 1];
  const Index points = n / 2 < kTogether ? kTogether : (n / 2 < kGrid ? n / 2 / kTogether * kTogether : kGrid);
  for (Index i = 0; i < points; ++i) grid[i] = squares.bound * double(i + 1) / double(points);
  grid[points - 1] = squares.bound;
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (n > 256)
  for (Index i = 0; i < points; i += kTogether) count_all(squares, grid + i, kTogether, counts + i);
  counts[points - 1] = n;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (n > 256)
  for (Index start = 0; start < n; start += kTogether) {  // in ascending order
    const Index size = n - start < kTogether ? n - start : kTogether;
    double low[kTogether], high[kTogether], middle[kTogether];
    Index found[kTogether];
    for (Index i = 0; i < size; ++i) {
      Index first = 0, last = points - 1;  // the first point with more than start + i values below it
      while (first < last) {
        const Index half = (first + last) / 2;
        if (counts[half] > start + i) last = half;
        else first = half + 1;
      }
      low[i] = first > 0 ? grid[first - 1] : 0;
      high[i] = grid[first];
    }
    for (int step = 0; step < 2000; ++step) {
      Index open = 0;
      for (Index i = 0; i < size; ++i) {
        middle[i] = bisection_cut(low[i], high[i], op.absolute);
        open += bisection_open(low[i], high[i], middle[i], op.absolute, op.relative);
      }
      if (open == 0) break;
      count_all(squares, middle, size, found);
      for (Index i = 0; i < size; ++i) {
        if (found[i] > start + i) high[i] = middle[i];
        else low[i] = middle[i];
      }
    }
    for (Index i = 0; i < size; ++i) op.values(n - 1 - start - i) = low[i] > 0 ? low[i] + (high[i] - low[i]) / 2 : 0.0;
  }
  for (Index i = n - 1; i > 0; --i)  // brackets of equal values may end a rounding apart
    if (op.values(i - 1) < op.values(i)) op.values(i - 1) = op.values(i);
}

void sturm_counts(const SturmCounts& op, double* room, int threads) {
  const Squares squares = squares_of(op.d, op.e, room);
  const Index how_many = op.taus.shape[0];
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (how_many * squares.n > 65536)
  for (Index start = 0; start < how_many; start += kTogether) {
    const Index size = how_many - start < kTogether ? how_many - start : kTogether;
    double taus[kTogether];
    Index counts[kTogether];
    for (Index i = 0; i < size; ++i) taus[i] = op.taus(start + i);
    count_all(squares, taus, size, counts);
    for (Index i = 0; i < size; ++i) op.counts(start + i) = taus[i] > 0 ? counts[i] : 0;
  }
}

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
