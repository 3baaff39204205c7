// QR of a panel, the part of the band reduction that is not products. Included by band.cpp alone.
#pragma once
#include "band_work.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

// Rows [from, to) of one column step: applies the reflector before (its column `before`, weights w, zero up to that
// column) to the vectors from `first` on, and sums x_i·row_i, x being column `column`.
template <int vectors, class T>
void panel_rows(T* panel, Index ld, Index from, Index to, Index before, T inverse, const T* w, Index column,
                Index first, T* sums) {
  constexpr int lanes = kLanes<T>;
  constexpr Index kTogether = 64;  // rows in one partial sum, so that long columns do not lose digits
  Vector<T> weights[vectors];
  for (int v = 0; v < vectors; ++v) weights[v] = load(w + first + v * lanes);
  const T own = w[column];
  for (Index start = from; start < to; start += kTogether) {
    Vector<T> acc[2][vectors] = {};
    const Index stop = least(start + kTogether, to);
    auto one = [&](Index i, Vector<T>(&into)[vectors]) {
      T* const row = panel + i * ld;
      const T factor = row[before] * inverse;
      const T x = row[column] - factor * own;
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const Vector<T> updated = load(row + first + v * lanes) - factor * weights[v];
        store(row + first + v * lanes, updated);
        into[v] += x * updated;
      }
    };
    Index i = start;
    for (; i + 2 <= stop; i += 2) {
      one(i, acc[0]);
      one(i + 1, acc[1]);
    }
    if (i < stop) one(i, acc[0]);
    for (int v = 0; v < vectors; ++v) {
      T* const place = sums + first + v * lanes;
      store(place, load(place) + (acc[0][v] + acc[1][v]));
    }
  }
}

template <class T>
void panel_rows_any(T* panel, Index ld, Index b, Index from, Index to, Index before, T inverse, const T* w,
                    Index column, T* sums) {
  const Index first = column / kLanes<T> * kLanes<T>;
  switch ((b - first) / kLanes<T>) {
    case 1: return panel_rows<1>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 2: return panel_rows<2>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 3: return panel_rows<3>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 4: return panel_rows<4>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 5: return panel_rows<5>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 6: return panel_rows<6>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 7: return panel_rows<7>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 8: return panel_rows<8>(panel, ld, from, to, before, inverse, w, column, first, sums);
    default: break;
  }
  for (Index i = from; i < to; ++i) {  // many narrow vectors: an old processor
    T* const row = panel + i * ld;
    const T factor = row[before] * inverse;
    for (Index j = column; j < b; ++j) row[j] -= factor * w[j];
    const T x = row[column];
    for (Index j = column; j < b; ++j) sums[j] += x * row[j];
  }
}

// QR of a panel (m, b) in place: V below the diagonal; R and tau apart. Householder, one pass over the panel for
// each column: while one reflector is applied, the products that the next one needs are summed.
// `R` is called as R(i, j, value) for the entries of the triangle.
template <class T, class Triangle>
void panel_qr(Work<T>& work, T* panel, Index ld, Index m, Triangle R) {
  const Index b = work.b, count = least(b, m);
  T w[kWidest] = {}, inverses[kWidest] = {};
  auto columns = [&](int thread, int team) {
    const Index per = round_up((m + team - 1) / team, 16), low = thread * per, high = least(low + per, m);
    for (Index j = 0; j < count; ++j) {
      T* const sums = work.partial + (2 * thread + (j & 1)) * b;
      for (Index c = 0; c < b; ++c) sums[c] = 0;
      const Index from = low > j + 1 ? low : j + 1;  // the diagonal's own row is thread 0's
      const Index before = j > 0 ? j - 1 : 0;        // for the first column its weights are zero
      if (from < high) panel_rows_any(panel, ld, b, from, high, before, inverses[before], w, j, sums);
      if (team > 1) {
#pragma omp barrier
      }
      if (thread == 0) {
        T* const row = panel + j * ld;
        const T factor = row[before] * inverses[before];
        for (Index c = j; c < b; ++c) row[c] -= factor * w[c];
        for (int t = 1; t < team; ++t)
          for (Index c = j; c < b; ++c) sums[c] += work.partial[(2 * t + (j & 1)) * b + c];
        const Reflector<T> h = reflector(row[j], sums[j]);
        work.tau[j] = h.tau;
        inverses[j] = h.inverse;
        row[j] = h.beta;
        w[j] = 0;
        for (Index c = j + 1; c < b; ++c) {
          w[c] = h.tau * (row[c] + sums[c] * h.inverse);
          row[c] -= w[c];
        }
      }
      if (team > 1) {
#pragma omp barrier
      }
    }
    for (Index i = low; i < high; ++i)
      for (Index j = 0; j < least(i, b); ++j) panel[i * ld + j] *= inverses[j];
  };
  if (m * b < kWorthThreads || work.threads == 1) {
    columns(0, 1);
  } else {
#pragma omp parallel num_threads(work.threads)
    columns(this_thread(), team_size());
  }
  for (Index j = count; j < b; ++j) work.tau[j] = 0;
  for (Index i = 0; i < count; ++i)
    for (Index j = i; j < b; ++j) {
      R(i, j, panel[i * ld + j]);
      panel[i * ld + j] = i == j && work.tau[j] != 0 ? T(1) : T(0);
    }
}

}  // namespace
}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
