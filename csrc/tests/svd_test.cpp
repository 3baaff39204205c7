// The kernels of the singular value decomposition against Jacobi's method in long double, on odd shapes, widths and
// numbers of threads, under the address and undefined-behaviour sanitizers.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../ops.h"

using namespace tightpass;

namespace {

std::mt19937 generator(11);
int failures = 0;

void expect(bool good, const char* what, Index m, Index n, double got) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s of (%ld, %ld): %g\n", what, long(m), long(n), got);
}

// Singular values of a (m, n), m ≥ n, descending, by one-sided rotations (Hestenes 1958).
std::vector<long double> jacobi(std::vector<long double> a, Index m, Index n) {
  auto at = [&](Index i, Index j) -> long double& { return a[std::size_t(i * n + j)]; };
  for (int sweep = 0; sweep < 30; ++sweep) {
    bool turned = false;
    for (Index p = 0; p < n; ++p)
      for (Index q = p + 1; q < n; ++q) {
        long double pp = 0, qq = 0, pq = 0;
        for (Index i = 0; i < m; ++i) {
          pp += at(i, p) * at(i, p);
          qq += at(i, q) * at(i, q);
          pq += at(i, p) * at(i, q);
        }
        if (std::abs(pq) <= 1e-18L * std::sqrt(pp * qq)) continue;
        turned = true;
        const long double zeta = (qq - pp) / (2 * pq);
        const long double t = (zeta < 0 ? -1 : 1) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
        const long double c = 1 / std::sqrt(1 + t * t), s = c * t;
        for (Index i = 0; i < m; ++i) {
          const long double x = at(i, p), y = at(i, q);
          at(i, p) = c * x - s * y;
          at(i, q) = s * x + c * y;
        }
      }
    if (!turned) break;
  }
  std::vector<long double> values;
  for (Index j = 0; j < n; ++j) {
    long double sum = 0;
    for (Index i = 0; i < m; ++i) sum += at(i, j) * at(i, j);
    values.push_back(std::sqrt(sum));
  }
  std::sort(values.rbegin(), values.rend());
  return values;
}

template <class T>
struct Case {
  Index m, n;
  std::vector<T> a, probes;  // rows are padded by 3
  std::vector<long double> expected;

  Case(Index m, Index n) : m(m), n(n), a(std::size_t(m * (n + 3)), T(-12345)), probes(std::size_t(kProbes * n)) {
    std::normal_distribution<double> normal;
    std::vector<long double> wide;
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) wide.push_back(a[std::size_t(i * (n + 3) + j)] = T(normal(generator)));
    for (T& value : probes) value = T(normal(generator));
    expected = jacobi(wide, m, n);
  }
  double allowed() const {
    return 8 * double(std::numeric_limits<T>::epsilon()) * std::sqrt(double(m)) * double(expected[0]);
  }
  void compare(const char* what, const T* values, Index count) const {
    for (Index i = 0; i < count; ++i) {
      const double off = std::abs(double(values[i] - expected[std::size_t(i)]));
      expect(off <= allowed(), what, m, n, off);
    }
  }
};

template <class T>
void test_two_stage(Index m, Index n, Index width, int threads, bool in_place) {
  Case<T> it(m, n);
  std::vector<double> d(static_cast<std::size_t>(n)), e(static_cast<std::size_t>(n));
  std::vector<T> values(static_cast<std::size_t>(n));
  ReductionCheck check{};
  const std::vector<T> before = it.a;
  TwoStage<T> op{{it.a.data(), {m, n}, {n + 3, 1}},
                 {it.probes.data(), {kProbes, n}, {n, 1}},
                 {d.data(), {n}, {1}},
                 {e.data(), {n - 1}, {1}},
                 {values.data(), {n}, {1}},
                 &check,
                 width,
                 in_place};
  cpu::run(op, threads);
  it.compare("two_stage", values.data(), n);
  expect(check.misplaced == 0, "counts", m, n, double(check.misplaced));
  expect(check.misfit <= 4 * double(std::numeric_limits<T>::epsilon()) * std::sqrt(double(m)) * check.left_before,
         "probes", m, n, check.misfit);
  expect(in_place || it.a == before, "a copy was asked for", m, n, 0);
  for (Index i = 0; i < m; ++i)
    for (Index j = n; j < n + 3; ++j)
      expect(it.a[std::size_t(i * (n + 3) + j)] == T(-12345), "two_stage wrote beside the matrix", m, n, double(i));
}

// Both stages by themselves, where the whole would take the one-stage way.
template <class T>
void test_stages(Index m, Index n, Index width, int threads) {
  Case<T> it(m, n);
  const Index rows = n + 2 * width, probes = 3, longest = std::max(m, rows);
  std::vector<T> band(std::size_t(rows * 3 * width)), left(std::size_t(longest * probes)),
      right(std::size_t(rows * probes));
  const View<T, 2> B{band.data(), {rows, 3 * width}, {3 * width, 1}};
  const View<T, 2> L{left.data(), {longest, probes}, {probes, 1}}, R{right.data(), {rows, probes}, {probes, 1}};
  cpu::run(BandReduction<T>{{it.a.data(), {m, n}, {n + 3, 1}}, B, L, R, width}, threads);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < 3 * width; ++c)
      expect((c >= width && c <= 2 * width) || band[std::size_t(i * 3 * width + c)] == 0, "outside of the band", m, n,
             double(c));
  cpu::run(BulgeChase<T>{B, L, R, n, width}, threads);
  std::vector<double> d(static_cast<std::size_t>(n)), e(static_cast<std::size_t>(n)),
      found(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) {
    d[std::size_t(i)] = double(B(i, width));
    if (i + 1 < n) e[std::size_t(i)] = double(B(i, width + 1));
  }
  cpu::run(Bisection{{d.data(), {n}, {1}}, {e.data(), {n - 1}, {1}}, 0, 1e-16, {found.data(), {n}, {1}}}, threads);
  const std::vector<T> values(found.begin(), found.end());
  it.compare("stages", values.data(), n);
}

// Products with few columns, of strided rows, beside memory that must stay as it is.
template <class T>
void test_products(Index m, Index n, Index width, int threads) {
  std::normal_distribution<double> normal;
  auto filled = [&](Index count) {
    std::vector<T> made(static_cast<std::size_t>(count));
    for (T& value : made) value = T(normal(generator));
    return made;
  };
  const auto a = filled(m * (n + 3)), x = filled(n * width), y = filled(m * width);
  std::vector<T> ax(std::size_t(m * (width + 1)), T(-12345)), ay(std::size_t(n * (width + 1)), T(-12345));
  const View<const T, 2> A{a.data(), {m, n}, {n + 3, 1}};
  cpu::run(Product<T>{A, {x.data(), {n, width}, {width, 1}}, {ax.data(), {m, width}, {width + 1, 1}}}, threads);
  cpu::run(AdjointProduct<T>{A, {y.data(), {m, width}, {width, 1}}, {ay.data(), {n, width}, {width + 1, 1}}}, threads);
  const double eps = double(std::numeric_limits<T>::epsilon());
  auto check = [&](const std::vector<T>& found, Index rows, Index depth, auto left, auto right, const char* what) {
    for (Index i = 0; i < rows; ++i) {
      for (Index c = 0; c < width; ++c) {
        long double sum = 0, size = 0;
        for (Index k = 0; k < depth; ++k) {
          sum += (long double)left(i, k) * right(k, c);
          size += std::abs((long double)left(i, k) * right(k, c));
        }
        const double off = std::abs(double(found[std::size_t(i * (width + 1) + c)] - sum));
        expect(off <= 16 * eps * double(size), what, m, n, off);
      }
      expect(found[std::size_t(i * (width + 1) + width)] == T(-12345), "product wrote beside its rows", m, n,
             double(i));
    }
  };
  check(
      ax, m, n, [&](Index i, Index k) { return A(i, k); },
      [&](Index k, Index c) { return x[std::size_t(k * width + c)]; }, "product");
  check(
      ay, n, m, [&](Index j, Index k) { return A(k, j); },
      [&](Index k, Index c) { return y[std::size_t(k * width + c)]; }, "adjoint_product");
}

// Shifts on the values of a diagonal matrix, where pivots are zero: what is strictly below.
void test_counts(double scale) {
  const double d[] = {786432 * scale, 600000 * scale, 3 * scale, 2 * scale, scale}, e[4] = {};
  const double taus[] = {600000 * scale, 600001 * scale, 3 * scale, scale, 0};
  const Index expected[] = {3, 4, 2, 0, 0};
  Index counts[5] = {};
  cpu::run(SturmCounts{{d, {5}, {1}}, {e, {4}, {1}}, {taus, {5}, {1}}, {counts, {5}, {1}}}, 1);
  for (Index i = 0; i < 5; ++i) expect(counts[i] == expected[i], "sturm_counts", 5, i, double(counts[i]));
}

template <class T>
void test_all() {
  for (const auto& [m, n] : {std::pair<Index, Index>{1, 1}, {3, 70}, {70, 3}, {131, 40}, {40, 131}, {1500, 600}})
    for (const Index width : {16, 32, 48, 64})
      for (const int threads : {1, 3}) test_products<T>(m, n, width, threads);
  for (const auto& [m, n] : {std::pair<Index, Index>{1, 1}, {2, 1}, {3, 3}, {17, 16}, {64, 64}, {97, 41}, {90, 89}})
    for (const bool in_place : {false, true}) test_two_stage<T>(m, n, 16, 2, in_place);
  test_two_stage<T>(6000, 33, 16, 2, true);  // more than the cache holds: two stages, QR first
  for (const auto& [m, n] : {std::pair<Index, Index>{1, 1}, {2, 2}, {16, 15}, {17, 17}, {33, 31}, {70, 70}, {119, 83}})
    for (const Index width : {16, 32, 48})
      for (const int threads : {1, 2, 5}) test_stages<T>(m, n, width, threads);
  for (const Index width : {64, 80, 128}) test_stages<T>(150, 140, width, 2);  // wider than what is packed at once
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  for (const double scale : {1.0, 1e-144, 1e144}) test_counts(scale);
  std::printf("%s: %d failures\n", cpu::instruction_set(), failures);
  return failures != 0;
}
