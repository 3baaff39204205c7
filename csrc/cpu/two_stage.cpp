// Dense -> all singular values in one call: survey, reduction, bisection, counts. Compiled once: what needs vectors
// is called.
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../ops.h"

namespace tightpass::cpu {
namespace {

constexpr Index kInCache = 800 << 10;  // bytes of a matrix that one stage reduces faster than two
constexpr Index kTallest = 768;        // rows: its sums run over all of them
template <class T> constexpr Index kLine = 64 / Index(sizeof(T));

template <class T>
View<T, 2> matrix(T* data, Index rows, Index columns, Index row) {
  return {data, {rows, columns}, {row, 1}};
}

// A matrix (m, n) that may be destroyed and its probes, AZ and Z; where they lie differs between one stage and two.
template <class T>
struct Place {
  std::unique_ptr<T[]> own;
  std::vector<T> probes;
  View<T, 2> a, left, right;
  T* copy;  // what the matrix is to be copied to; none: it is destroyed where it lies
};

// For one stage: the probes are further columns and rows of the matrix.
template <class T>
Index direct_row(Index n) {
  return (n + kLine<T> - 1) / kLine<T> * kLine<T> + kLine<T>;
}
template <class T>
Place<T> place_direct(Index m, Index n) {
  const Index row = direct_row<T>(n);
  Place<T> place;
  place.own.reset(new T[std::size_t((m + kProbes) * row)]());
  T* const data = place.own.get();
  place.a = matrix(data, m, n, row);
  place.left = matrix(data + (row - kLine<T>), m, kProbes, row);
  place.right = {data + m * row, {n, kProbes}, {1, row}};
  place.copy = data;
  return place;
}

// For two stages: probes with the rows of zeros that bulges run into.
template <class T>
Place<T> place_apart(const TwoStage<T>& op) {
  const Index m = op.a.shape[0], n = op.a.shape[1], rows = n + 2 * op.width, longest = m > rows ? m : rows;
  // rows at a multiple of a page's quarter would share their places in the cache
  const Index row = op.in_place ? op.a.stride[0] : n + (n * Index(sizeof(T)) % 1024 == 0 ? 16 : 0);
  Place<T> place;
  place.probes.resize(std::size_t((longest + rows) * kProbes));
  place.left = matrix(place.probes.data(), longest, kProbes, kProbes);
  place.right = matrix(place.probes.data() + longest * kProbes, rows, kProbes, kProbes);
  if (!op.in_place) place.own.reset(new T[std::size_t(m * row)]);  // not cleared: it is written whole
  place.copy = place.own.get();
  place.a = matrix(op.in_place ? op.a.data : place.copy, m, n, row);
  return place;
}

// Divides A by a power of two where squares of its entries might leave the range. AZ and the energy are of what is left.
template <class T>
void scale(const TwoStage<T>& op, const Place<T>& place, double* energy, int threads) {
  ReductionCheck& check = *op.check;
  const Index m = place.a.shape[0], n = place.a.shape[1];
  check.scale = 1;
  if (!(check.largest > kSafe || (check.largest < 1 / kSafe && check.largest > 0))) return;
  const double exponent = std::floor(std::log2(check.largest)), half = std::floor(exponent / 2);
  check.scale = std::exp2(exponent);
  const T first = T(std::exp2(-half)), second = T(std::exp2(half - exponent));  // the inverse itself may overflow
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) place.a(i, j) = place.a(i, j) * first * second;
  double ignored;
  survey<T>({place.a.data, {m, n}, {place.a.stride[0], 1}}, op.probes, nullptr, 0, place.left, &ignored, energy,
            threads);
}

template <class T>
double norm(const View<T, 2>& probes, Index rows) {
  double sum = 0;
  for (Index i = 0; i < rows; ++i)
    for (Index p = 0; p < kProbes; ++p) sum += double(probes(i, p)) * double(probes(i, p));
  return std::sqrt(sum);
}

// ‖B·PᵀZ − QᵀAZ‖_F
template <class T>
double misfit(const TwoStage<T>& op, const View<T, 2>& left, const View<T, 2>& right) {
  const Index n = op.d.shape[0];
  double sum = 0;
  for (Index i = 0; i < left.shape[0]; ++i)
    for (Index p = 0; p < kProbes; ++p) {
      double image = i < n ? op.d(i) * double(right(i, p)) : 0.0;
      if (i + 1 < n) image += op.e(i) * double(right(i + 1, p));
      const double off = image - double(left(i, p));
      sum += off * off;
    }
  return std::sqrt(sum);
}

template <class T>
void reduce(const TwoStage<T>& op, const Place<T>& place, int threads) {
  const Index n = op.a.shape[1], b = op.width, rows = n + 2 * b;
  std::vector<T> room(std::size_t(rows * 3 * b));
  const View<T, 2> band = matrix(room.data(), rows, 3 * b, 3 * b);
  run(BandReduction<T>{place.a, band, place.left, place.right, b}, threads);
  run(BulgeChase<T>{band, place.left, place.right, n, b}, threads);
  for (Index i = 0; i < n; ++i) {
    op.d(i) = double(band(i, b));
    if (i + 1 < n) op.e(i) = double(band(i, b + 1));
  }
}

// Values of the bidiagonal matrix, rounded, and how many of them counts on both sides of them do not confirm.
template <class T>
Index values(const TwoStage<T>& op, int threads) {
  const double eps = double(std::numeric_limits<T>::epsilon());
  const Index n = op.d.shape[0];
  std::vector<double> room(std::size_t(2 * n));
  std::vector<Index> below(std::size_t(2 * n));
  const View<const double, 1> d{op.d.data, {n}, {op.d.stride[0]}}, e{op.e.data, {n - 1}, {op.e.stride[0]}};
  double diagonal = 0, beside = 0;
  for (Index i = 0; i < n; ++i) {
    diagonal = std::fmax(diagonal, std::fabs(d(i)));
    if (i + 1 < n) beside = std::fmax(beside, std::fabs(e(i)));
  }
  if (diagonal + beside == 0) {
    for (Index i = 0; i < n; ++i) op.values(i) = 0;
    return 0;
  }
  run(Bisection{d, e, eps * kAbsolute * (diagonal + beside), eps * kRelative, {room.data(), {n}, {1}}}, threads);
  for (Index i = 0; i < n; ++i) op.values(i) = T(room[std::size_t(i)]);
  double* const taus = room.data() + n;
  for (Index i = 0; i < n; ++i) {
    const double sigma = double(op.values(i)), slack = eps * (sigma + kSlack * double(op.values(0)));
    taus[i] = std::fmax(sigma - slack, 0);
    room[std::size_t(i)] = sigma + slack;  // the values have been copied
  }
  run(SturmCounts{d, e, {room.data(), {2 * n}, {1}}, {below.data(), {2 * n}, {1}}}, threads);
  Index misplaced = 0;
  for (Index i = 0; i < n; ++i) {
    const Index place = n - 1 - i;  // how many values are smaller
    misplaced += below[std::size_t(n + i)] > place || below[std::size_t(i)] <= place;
  }
  return misplaced;
}

}  // namespace

template <class T>
void run(const TwoStage<T>& op, int threads) {
  const Index m = op.a.shape[0], n = op.a.shape[1];
  ReductionCheck& check = *op.check;
  const bool direct = m <= kTallest && (m + kProbes) * direct_row<T>(n) * Index(sizeof(T)) <= kInCache;
  if (direct) threads = 1;  // done before another one is awake
  const Place<T> place = direct ? place_direct<T>(m, n) : place_apart(op);
  std::vector<double> energy(static_cast<std::size_t>(m));
  survey<T>({op.a.data, {m, n}, {op.a.stride[0], op.a.stride[1]}}, op.probes, place.copy, place.a.stride[0], place.left,
            &check.largest, energy.data(), threads);
  if (std::isinf(check.largest) || std::isnan(energy[0])) {
    check.largest = INFINITY;  // not finite: the caller says so
    return;
  }
  scale(op, place, energy.data(), threads);
  check.energy = energy[0];
  for (Index j = 0; j < n; ++j)
    for (Index p = 0; p < kProbes; ++p) place.right(j, p) = op.probes(p, j);
  check.right_before = norm(place.right, n);
  check.left_before = norm(place.left, m);
  if (direct)
    run(DirectReduction<T>{matrix(place.a.data, m + kProbes, place.a.stride[0], place.a.stride[0]), m, n, op.d, op.e},
        threads);
  else reduce(op, place, threads);
  check.misfit = misfit(op, place.left, place.right);
  check.right_after = norm(place.right, n);
  check.left_after = norm(place.left, place.left.shape[0]);
  check.misplaced = values(op, threads);
}

template void run(const TwoStage<float>&, int);
template void run(const TwoStage<double>&, int);

}  // namespace tightpass::cpu
