// Band -> bidiagonal by bulge chasing (Haidar, Ltaief & Dongarra 2011): sweep i clears row i beyond its
// superdiagonal, and tasks k = 0, 1, .. chase what that fills in down the band. Task k of a sweep needs task k + 1 of the
// sweep before. A thread takes a few neighbouring sweeps together, so that their window stays in its cache; the
// row that a task must clear is written by the task before it. The same bits for any number of threads.
#include <sched.h>

#include "tile.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

constexpr Index kTogether = 4;  // sweeps
constexpr Index kDone = Index(1) << 60;

template <class T>
inline T sum(Vector<T> v) {
  T total[kLanes<T>];
  store(total, v);
#pragma GCC unroll 4
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) total[i] += total[i + half];
  return total[0];
}

// row −= tau·(row·v)·vᵀ for `count` rows that lie `step` apart
template <int vectors, class T>
void reflect_rows(T* first, Index step, Index count, const T* v, T tau) {
  constexpr int lanes = kLanes<T>;
  Vector<T> line[vectors];
  for (int j = 0; j < vectors; ++j) line[j] = load(v + j * lanes);
  for (Index r = 0; r < count; ++r) {
    T* const row = first + r * step;
    Vector<T> values[vectors], acc = {};
    for (int j = 0; j < vectors; ++j) {
      values[j] = load(row + j * lanes);
      acc += values[j] * line[j];
    }
    const T factor = tau * sum<T>(acc);
    for (int j = 0; j < vectors; ++j) store(row + j * lanes, values[j] - factor * line[j]);
  }
}

template <class T>
void reflect_rows_any(T* first, Index step, Index count, const T* v, T tau, Index b) {
  switch (b / kLanes<T>) {
    case 1: return reflect_rows<1>(first, step, count, v, tau);
    case 2: return reflect_rows<2>(first, step, count, v, tau);
    case 3: return reflect_rows<3>(first, step, count, v, tau);
    case 4: return reflect_rows<4>(first, step, count, v, tau);
    case 6: return reflect_rows<6>(first, step, count, v, tau);
    case 8: return reflect_rows<8>(first, step, count, v, tau);
    default: break;
  }
  for (Index r = 0; r < count; ++r) {
    T* const row = first + r * step;
    Vector<T> acc = {};
    for (Index j = 0; j < b; j += kLanes<T>) acc += load(row + j) * load(v + j);
    const T factor = tau * sum<T>(acc);
    for (Index j = 0; j < b; ++j) row[j] -= factor * v[j];
  }
}

// to (b·vectors wide) −= weights ⊗ .. : columns of b rows, `vectors` at a time; sums Σ x_r·row_r over rows 1 .. b − 1
template <int vectors, class T>
void column_sums(const T* first, Index step, Index b, const T* x, T* sums) {
  constexpr int lanes = kLanes<T>;
  Vector<T> acc[vectors] = {};
  for (Index r = 1; r < b; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) acc[j] += x[r] * load(first + r * step + j * lanes);
  for (int j = 0; j < vectors; ++j) store(sums + j * lanes, acc[j]);
}

template <int vectors, class T>
void column_update(T* first, Index step, Index b, const T* u, const T* w) {
  constexpr int lanes = kLanes<T>;
  Vector<T> line[vectors];
  for (int j = 0; j < vectors; ++j) line[j] = load(w + j * lanes);
  for (Index r = 0; r < b; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) {
      T* const place = first + r * step + j * lanes;
      store(place, load(place) - u[r] * line[j]);
    }
}

// One reflector on a segment of the probes.
template <class T>
void reflect_probes(const View<T, 2>& probes, Index from, Index b, const T* v, T tau) {
  for (Index p = 0; p < probes.shape[1]; ++p) {
    T product = 0;
    for (Index j = 0; j < b; ++j) product += v[j] * probes(from + j, p);
    product *= tau;
    for (Index j = 0; j < b; ++j) probes(from + j, p) -= product * v[j];
  }
}

template <class T>
struct Sweep {
  T v[kWidest];  // of the reflector from the right that the next task applies
  T tau;
};

// The reflector that clears `row` (b) beyond its first entry; the row becomes (beta, 0, ..).
template <class T>
void clear_row(T* row, Index b, Sweep<T>& sweep) {
  T rest = 0;
  for (Index j = 1; j < b; ++j) rest += row[j] * row[j];
  const Reflector<T> h = reflector(row[0], rest);
  sweep.tau = h.tau;
  sweep.v[0] = 1;
  row[0] = h.beta;
  for (Index j = 1; j < b; ++j) {
    sweep.v[j] = row[j] * h.inverse;
    row[j] = 0;
  }
}

// Task k of sweep i, which starts at column c = i + 1 + k·b.
template <class T>
void task(const BulgeChase<T>& op, Index i, Index k, Sweep<T>& sweep) {
  const Index b = op.width, c = i + 1 + k * b, step = op.step();
  if (k == 0) clear_row(op.at(i, i + 1), b, sweep);
  if (sweep.tau != 0) {
    const Index above = k == 0 ? 0 : b - 1;
    reflect_rows_any(op.at(c - above, c), step, above + b, sweep.v, sweep.tau, b);
    reflect_probes(op.right, c, b, sweep.v, sweep.tau);
  }
  T* const first = op.at(c, c);
  T x[kWidest], w[2 * kWidest];
  for (Index r = 0; r < b; ++r) x[r] = first[r * step];
  const Index wide = 2 * b;
  Index j = 0;
  for (; j + 8 * kLanes<T> <= wide; j += 8 * kLanes<T>) column_sums<8>(first + j, step, b, x, w + j);
  for (; j < wide; j += kLanes<T>) column_sums<1>(first + j, step, b, x, w + j);
  const Reflector<T> h = reflector(x[0], w[0]);
  if (h.tau != 0) {
    for (j = 0; j < wide; ++j) w[j] = h.tau * (first[j] + w[j] * h.inverse);
    x[0] = 1;
    for (Index r = 1; r < b; ++r) x[r] *= h.inverse;
    j = 0;
    for (; j + 8 * kLanes<T> <= wide; j += 8 * kLanes<T>) column_update<8>(first + j, step, b, x, w + j);
    for (; j < wide; j += kLanes<T>) column_update<1>(first + j, step, b, x, w + j);
    reflect_probes(op.left, c, b, x, h.tau);
  }
  first[0] = h.beta;
  for (Index r = 1; r < b; ++r) first[r * step] = 0;
  clear_row(op.at(c, c + b), b, sweep);
}

void wait_for(const Index* progress, Index wanted) {
  for (int spins = 0; __atomic_load_n(progress, __ATOMIC_ACQUIRE) < wanted; ++spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (spins > 4000) sched_yield();
  }
}

}  // namespace

template <class T>
void bulge_chase(const BulgeChase<T>& op, Index* progress, int threads) {
  const Index n = op.n, b = op.width, sweeps = n - 1, groups = (sweeps + kTogether - 1) / kTogether;
  if (n * b < 8192) threads = 1;
  Index next = 0;
  auto tasks = [&](Index i) { return (n - 1 - i + b - 1) / b; };  // those that start inside of the matrix
#pragma omp parallel num_threads(threads)
  for (;;) {
    const Index g = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);  // in order: what it waits for has been taken
    if (g >= groups) break;
    const Index start = g * kTogether, count = least(kTogether, sweeps - start);
    Sweep<T> sweep[kTogether];
    const Index steps = tasks(start) + 2 * (count - 1);
    for (Index t = 0; t < steps; ++t) {
      if (g > 0) wait_for(progress + g - 1, t + 2);
      for (Index s = 0; s < count; ++s) {
        const Index k = t - 2 * s;
        if (k >= 0 && k < tasks(start + s)) task(op, start + s, k, sweep[s]);
      }
      const Index last = t - 2 * (count - 1);
      if (last >= 0) __atomic_store_n(progress + g, last + 1, __ATOMIC_RELEASE);
    }
    __atomic_store_n(progress + g, kDone, __ATOMIC_RELEASE);
  }
}

template void bulge_chase(const BulgeChase<float>&, Index*, int);
template void bulge_chase(const BulgeChase<double>&, Index*, int);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
