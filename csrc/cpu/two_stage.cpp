// Dense -> bidiagonal in one call: survey, band, bulges. Compiled once: what needs vectors is called.
#include <cmath>
#include <memory>
#include <vector>

#include "../ops.h"

namespace tightpass::cpu {
namespace {

constexpr double kSafe = 0x1p20;  // entries up to this size, and down to its inverse, are used as they are

template <class T>
void scale_rows(View<T, 2> a, T factor) {
  for (Index i = 0; i < a.shape[0]; ++i)
    for (Index j = 0; j < a.shape[1]; ++j) a(i, j) *= factor;
}

template <class T>
View<T, 2> matrix(T* data, Index rows, Index columns, Index row) {
  return {data, {rows, columns}, {row, 1}};
}

// Of what the probes became: ‖B·right − left‖_F, and the norms before and after.
template <class T>
void compare(const TwoStage<T>& op, const View<T, 2>& left, const View<T, 2>& right, ReductionCheck& check) {
  const Index n = op.d.shape[0];
  double misfit = 0, right_norm = 0, left_norm = 0;
  for (Index i = 0; i < left.shape[0]; ++i)
    for (Index p = 0; p < kProbes; ++p) {
      const double at = left(i, p);
      double image = 0;
      if (i < n) {
        image = op.d(i) * double(right(i, p)) + (i + 1 < n ? op.e(i) * double(right(i + 1, p)) : 0.0);
        right_norm += double(right(i, p)) * double(right(i, p));
      }
      misfit += (image - at) * (image - at);
      left_norm += at * at;
    }
  check.misfit = std::sqrt(misfit);
  check.right_after = std::sqrt(right_norm);
  check.left_after = std::sqrt(left_norm);
}

double norm(const double sum) { return std::sqrt(sum); }

}  // namespace

template <class T>
void run(const TwoStage<T>& op, int threads) {
  const Index m = op.a.shape[0], n = op.a.shape[1], b = op.width, rows = n + 2 * b;
  ReductionCheck& check = *op.check;
  std::vector<double> energy(static_cast<std::size_t>(m));
  std::vector<T> left_room(static_cast<std::size_t>((m > rows ? m : rows) * kProbes)), right_room(static_cast<std::size_t>(rows * kProbes));
  const View<T, 2> left = matrix(left_room.data(), m > rows ? m : rows, kProbes, kProbes);
  const View<T, 2> right = matrix(right_room.data(), rows, kProbes, kProbes);
  std::unique_ptr<T[]> copy;  // not cleared: it is written whole
  // rows at a multiple of a page's quarter would share their places in the cache
  const Index row = op.in_place ? op.a.stride[0] : n + (n * Index(sizeof(T)) % 1024 == 0 ? 16 : 0);
  if (!op.in_place) copy.reset(new T[static_cast<std::size_t>(m * row)]);
  T* const data = op.in_place ? op.a.data : copy.get();
  const View<const T, 2> given{op.a.data, {m, n}, {op.a.stride[0], op.a.stride[1]}};
  survey(given, op.probes, copy.get(), row, left, &check.largest, energy.data(), threads);
  check.scale = 1;
  const View<T, 2> a = matrix(data, m, n, row);
  if (std::isinf(check.largest) || std::isnan(energy[0])) {
    check.largest = INFINITY;  // not finite: the caller says so
    return;
  }
  if (check.largest > kSafe || (check.largest < 1 / kSafe && check.largest > 0)) {
    check.scale = std::exp2(std::floor(std::log2(check.largest)));
    const double half = std::exp2(-std::floor(std::log2(check.largest) / 2));  // the inverse itself may overflow
    scale_rows(a, T(half));
    scale_rows(a, T(1 / (check.scale * half)));
    double ignored;
    survey<T>({data, {m, n}, {row, 1}}, op.probes, nullptr, 0, left, &ignored, energy.data(), threads);
  }
  check.energy = energy[0];
  double before = 0;
  for (Index j = 0; j < n; ++j)
    for (Index p = 0; p < kProbes; ++p) {
      right(j, p) = op.probes(p, j);
      before += double(right(j, p)) * double(right(j, p));
    }
  check.right_before = norm(before);
  before = 0;
  for (Index i = 0; i < m; ++i)
    for (Index p = 0; p < kProbes; ++p) before += double(left(i, p)) * double(left(i, p));
  check.left_before = norm(before);
  std::vector<T> band_room(static_cast<std::size_t>(rows * 3 * b));
  const View<T, 2> band = matrix(band_room.data(), rows, 3 * b, 3 * b);
  run(BandReduction<T>{a, band, left, right, b}, threads);
  run(BulgeChase<T>{band, left, right, n, b}, threads);
  for (Index i = 0; i < n; ++i) {
    op.d(i) = double(band(i, b));
    if (i + 1 < n) op.e(i) = double(band(i, b + 1));
  }
  compare(op, left, right, check);
}

template void run(const TwoStage<float>&, int);
template void run(const TwoStage<double>&, int);

}  // namespace tightpass::cpu
