// The CUDA kernels against those of the processor: odd sizes, padded and packed memory, buffers of exactly the size that is
// needed. One source for both: on the emulated device (shim/, emulator.cpp) and, compiled by nvcc, on a real one.
//
//   cuda_test [0|1|2: how much] [parts: a r b e] [first seed] [seeds]
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../error.h"
#include "../../ops.h"
#ifdef TIGHTPASS_EMULATED
#include "emulator.h"
#endif

using namespace tightpass;

namespace {

std::mt19937 generator;
long comparisons = 0, failures = 0;

void expect(bool good, const std::string& what) {
  ++comparisons;
  if (good) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

void ask(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::printf("FAILED: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

Index any(Index below) { return Index(generator() % unsigned(below)); }

template <class T>
using Numbers = std::vector<T>;

template <class T>
Numbers<T> normal(Index n) {
  std::normal_distribution<double> gaussian;
  Numbers<T> out(std::size_t(std::max<Index>(n, 1)));
  for (T& value : out) value = T(gaussian(generator));
  return out;
}

// Numbers of exactly their size on the device, so that what is read or written beyond them is seen.
template <class T>
class Buffer {
 public:
  explicit Buffer(const Numbers<T>& host) : count_(host.size()) {
    ask(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(T)));
    ask(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }
  Numbers<T> host() const {
    Numbers<T> out(count_);
    ask(cudaDeviceSynchronize());
    ask(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

template <class T, int rank>
View<T, rank> dense(T* data, const Index (&shape)[rank]) {
  View<T, rank> out{data, {}, {}};
  Index stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    out.shape[axis] = shape[axis];
    out.stride[axis] = stride;
    stride *= shape[axis];
  }
  return out;
}

// Numbers in both places, and a view of either.
template <class T>
struct Both {
  Numbers<T> host;
  Buffer<T> device;
  explicit Both(Numbers<T> numbers) : host(std::move(numbers)), device(host) {}
  template <int rank>
  View<const T, rank> view(bool on_device, const Index (&shape)[rank]) const {
    return dense<const T, rank>(on_device ? device.data() : host.data(), shape);
  }
};

template <class T>
void expect_same(const Numbers<T>& first, const Numbers<T>& second, double scale, const std::string& what) {
  double worst = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const double error = std::abs(double(first[i]) - double(second[i]));
    if (!(error <= worst)) worst = error;
  }
  const double allowed = scale * double(std::numeric_limits<T>::epsilon());
  expect(worst <= allowed, what + ": differs by " + std::to_string(worst) + ", allowed " + std::to_string(allowed));
}

// ---- attention

struct AttentionShape {
  Index rows, tokens, heads, d_out, d_in;
};

template <class T>
void test_attention(const AttentionShape& n, bool norm, bool packed) {
  const Index rows = n.rows, tokens = n.tokens, H = n.heads, d_out = n.d_out, d_in = n.d_in;
  const Both<T> a(normal<T>(rows * H * tokens)), vo(normal<T>(d_out * H * tokens)), vt(normal<T>(d_out * H * rows)),
      rest(normal<T>(d_out * H * rows)), p(normal<T>(H * d_out * d_in)), k(normal<T>(rows * H * d_in)),
      q(normal<T>(rows * d_out * d_in)), px(normal<T>(d_out * H * tokens)), kx(normal<T>(rows * H * tokens)),
      qx(normal<T>(rows * d_out)), x(normal<T>(tokens * d_in)), r(normal<T>(tokens));
  Numbers<Index> columns(rows), diagonal(rows), start(rows);
  Index total = 0;
  for (Index t = 0; t < rows; ++t) {
    columns[t] = any(tokens + 1);
    diagonal[t] = any(tokens + 1);
    start[t] = (packed ? total : t * tokens) * d_out * d_in;
    total += columns[t];
  }
  const Both<Index> c(columns), g(diagonal), s(start);
  Numbers<T> expected = normal<T>((packed ? total : rows * tokens) * d_out * d_in);
  const Buffer<T> out(expected);
  const auto op = [&](bool at, T* to) {
    AttentionBlocks<T> made{};
    made.a = a.view(at, {rows, H, tokens});
    made.vo = vo.view(at, {d_out, H, tokens});
    made.vt = vt.view(at, {d_out, H, rows});
    made.rest = rest.view(at, {d_out, H, rows});
    made.p = p.view(at, {H, d_out, d_in});
    made.k = k.view(at, {rows, H, d_in});
    made.q = q.view(at, {rows, d_out, d_in});
    if (norm) {
      made.px = px.view(at, {d_out, H, tokens});
      made.kx = kx.view(at, {rows, H, tokens});
      made.qx = qx.view(at, {rows, d_out});
      made.x = x.view(at, {tokens, d_in});
      made.r = r.view(at, {tokens});
    }
    made.columns = c.view(at, {rows});
    made.diagonal = g.view(at, {rows});
    made.start = s.view(at, {rows});
    made.out = to;
    made.block_stride = d_out * d_in;
    made.row_stride = d_in;
    return made;
  };
  cpu::run(op(false, expected.data()), 1);
  cuda::run(op(true, out.data()), nullptr);
  expect_same(expected, out.host(), 300.0 * double(H * d_in), "attention_blocks");
}

// ---- rows

template <class T>
void test_rows(Index units, Index d, Index n, bool norm, bool slope) {
  const Index stride = d + 2;
  const Both<T> weight(normal<T>(units * d)), slopes(normal<T>(n)), x(normal<T>(3 * d)), r(normal<T>(3));
  Numbers<Index> chosen(std::max<Index>(n, 1)), tokens(std::max<Index>(n, 1));
  for (Index i = 0; i < n; ++i) {
    chosen[i] = any(units);
    tokens[i] = any(3);
  }
  const Both<Index> index(chosen), token(tokens);
  Numbers<T> expected(std::size_t(std::max<Index>((n - 1) * stride + d, 1)), T(7));
  const Buffer<T> out(expected);
  const auto op = [&](bool at, T* to) {
    GatherRows<T> made{};
    made.weight = weight.view(at, {units, d});
    made.index = index.view(at, {n});
    if (slope) made.slope = slopes.view(at, {n});
    if (norm) {
      made.token = token.view(at, {n});
      made.x = x.view(at, {3, d});
      made.r = r.view(at, {3});
    }
    made.out = {to, {n, d}, {stride, 1}};
    return made;
  };
  cpu::run(op(false, expected.data()), 1);
  cuda::run(op(true, out.data()), nullptr);
  expect_same(expected, out.host(), 300.0 * double(d), "gather_rows");
}

// ---- bulges, and the values of what they leave

enum Kind { kGaussian, kZerosAndOnes, kIdentity, kGraded, kKinds };

template <class T>
T drawn(Kind kind, Index i, Index j) {
  std::normal_distribution<double> gaussian;
  switch (kind) {
    case kZerosAndOnes: return T((i + j) % 3 == 0);
    case kIdentity: return T(i == j);
    case kGraded: return T(gaussian(generator) * std::pow(2.0, double(any(40)) - 39));
    default: return T(gaussian(generator));
  }
}

struct Reduced {
  Numbers<double> d, e;
};

template <class T>
Reduced diagonals(const Numbers<T>& band, Index n, Index b) {
  Reduced out{Numbers<double>(n), Numbers<double>(std::max<Index>(n - 1, 1))};
  for (Index i = 0; i < n; ++i) {
    out.d[i] = double(band[i * 3 * b + b]);
    if (i + 1 < n) out.e[i] = double(band[i * 3 * b + b + 1]);
  }
  return out;
}

// By the processor; the device's are held against them.
Numbers<double> values_of(const Reduced& B, Kind kind) {
  const Index n = Index(B.d.size());
  const Both<double> d(B.d), e(B.e);
  const auto bisected = [&](bool at, double* to) {
    return Bisection{d.view(at, {n}), e.view(at, {n - 1}), 0, 1e-17, dense<double, 1>(to, {n})};
  };
  Numbers<double> values(n);
  const Buffer<double> found(values);
  cpu::run(bisected(false, values.data()), 1);
  cuda::run(bisected(true, found.data()), nullptr);
  expect_same(values, found.host(), 16 * std::sqrt(double(n)) * (values[0] + 1e-300), "bisection");
  const Numbers<double> sorted = found.host();
  expect(std::is_sorted(sorted.rbegin(), sorted.rend()), "bisection: not sorted");

  Numbers<double> beside(2 * n + 1);
  for (Index i = 0; i < 2 * n; ++i) beside[i] = values[i / 2] * (1 + (i % 2 ? 1e-6 : -1e-6));
  beside[2 * n] = 0;
  const Both<double> taus(beside);
  const auto counted = [&](bool at, Index* to) {
    return SturmCounts{d.view(at, {n}), e.view(at, {n - 1}), taus.view(at, {2 * n + 1}),
                       dense<Index, 1>(to, {2 * n + 1})};
  };
  Numbers<Index> counts(2 * n + 1);
  const Buffer<Index> counts_there(counts);
  cpu::run(counted(false, counts.data()), 1);
  cuda::run(counted(true, counts_there.data()), nullptr);
  if (kind == kGaussian) expect(counts == counts_there.host(), "sturm_counts");  // others have values in one place
  return values;
}

double energy(const Numbers<double>& numbers) {
  double sum = 0;
  for (double value : numbers) sum += value * value;
  return sum;
}

template <class T>
Numbers<double> wide(const Numbers<T>& numbers) {
  return Numbers<double>(numbers.begin(), numbers.end());
}

template <class T>
void test_bulges(Index n, Index b, Index probes, Kind kind) {
  const Index rows = n + 2 * b;
  Numbers<T> band(rows * 3 * b), left(std::max<Index>(rows * probes, 1)), right(left);
  for (Index i = 0; i < n; ++i) {
    for (Index j = i; j <= std::min(i + b, n - 1); ++j) band[i * 3 * b + b + j - i] = drawn<T>(kind, i, j);
    for (Index p = 0; p < probes; ++p) {
      left[i * probes + p] = drawn<T>(kGaussian, 0, 0);
      right[i * probes + p] = drawn<T>(kGaussian, 0, 0);
    }
  }
  const Buffer<T> band_there(band), left_there(left), right_there(right);
  const auto op = [&](T* at, T* l, T* r) {
    return BulgeChase<T>{dense<T, 2>(at, {rows, 3 * b}), dense<T, 2>(l, {rows, probes}), dense<T, 2>(r, {rows, probes}),
                         n, b};
  };
  cpu::run(op(band.data(), left.data(), right.data()), 1);
  cuda::run(op(band_there.data(), left_there.data(), right_there.data()), nullptr);

  const Numbers<T> found = band_there.host();
  const Numbers<double> expected = values_of(diagonals(band, n, b), kind),
                        values = values_of(diagonals(found, n, b), kind);
  const std::string what = "bulge_chase n = " + std::to_string(n) + " b = " + std::to_string(b);
  expect_same(Numbers<T>(expected.begin(), expected.end()), Numbers<T>(values.begin(), values.end()),
              16 * std::sqrt(double(n)) * (expected[0] + 1e-30), what);
  bool clean = true;
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < 3 * b; ++c) clean = clean && (c == b || c == b + 1 || found[i * 3 * b + c] == T(0));
  expect(clean, what + ": something is left beside the two diagonals");
  for (const auto& [before, after] :
       {std::pair{wide(left), wide(left_there.host())}, std::pair{wide(right), wide(right_there.host())}})
    expect(std::abs(energy(before) - energy(after)) <= 1e-4 * (energy(before) + 1e-30), what + ": a probe's length");
}

// ---- errors of the runtime

#ifdef TIGHTPASS_EMULATED
std::string said_by(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
#endif

// A scratch that there is no memory for, or a device that is not there, is an error of that call alone.
void test_errors() {
#ifdef TIGHTPASS_EMULATED
  const Both<double> d(normal<double>(5)), e(normal<double>(4));
  const Buffer<double> out(Numbers<double>(5));
  const Bisection op{d.view(true, {5}), e.view(true, {4}), 0, 1e-15, dense<double, 1>(out.data(), {5})};
  const auto run = [&] { cuda::run(op, nullptr); };
  emulated::failing_allocations = 1;
  const std::string full = said_by(run);
  expect(full.find("no memory") != std::string::npos, "a failed allocation: " + full);
  expect(said_by(run).empty(), "the call after a failed allocation");
  const std::string absent = said_by([&] {
    const cuda::OnDevice nowhere(7);
    run();
  });
  expect(absent.find("not to be had") != std::string::npos, "a device that is not there: " + absent);
  expect(said_by(run).empty() && emulated::launched_on == 0, "the call after that");
  expect(said_by([&] {
           const cuda::OnDevice other(1);
           run();
         }).empty() &&
             emulated::launched_on == 1,
         "the device of the operands");
  expect(said_by(run).empty() && emulated::launched_on == 0, "the device of before");
#endif
}

// ---- all

constexpr AttentionShape kAttentions[] = {{2, 9, 3, 2, 131}, {1, 1, 1, 1, 1},    {5, 5, 3, 3, 21},
                                          {3, 17, 2, 7, 53}, {8, 8, 1, 9, 48},   {3, 3, 13, 5, 31},
                                          {2, 9, 4, 3, 129}, {1, 34, 2, 2, 300}, {9, 1, 25, 2, 5}};
constexpr Index kRows[][3] = {{3, 131, 4}, {1, 1, 1},   {50, 21, 37}, {4, 8, 0},
                              {3, 128, 4}, {2, 300, 2}, {2, 31, 3},   {11, 97, 5}};

template <class T>
void test_all(int level, const std::string& parts) {
  const auto has = [&](char part) { return parts.find(part) != std::string::npos; };
  const int few = 1 + 4 * level;
  if (has('a'))
    for (int i = 0; i < std::min(few, int(std::size(kAttentions))); ++i)
      for (bool norm : {true, false})
        for (bool packed : {true, false})
          if (level > 0 || packed) test_attention<T>(kAttentions[i], norm, packed);
  if (has('r'))
    for (int i = 0; i < std::min(few, int(std::size(kRows))); ++i)
      for (bool norm : {true, false})
        for (bool slope : {true, false}) test_rows<T>(kRows[i][0], kRows[i][1], kRows[i][2], norm, slope);
  if (!has('b')) return;
  test_bulges<T>(20, 16, 3, kGaussian);
  if (level == 0) return;
  for (Index n : {1, 2, 3, 15, 16, 17, 18, 33}) test_bulges<T>(n, 16, any(7), Kind(any(kKinds)));
  test_bulges<T>(40, 32, 4, kGaussian);
  test_bulges<T>(35, 48, 6, kGraded);
  test_bulges<T>(9, 128, 1, kZerosAndOnes);
  if (level == 1) return;
  for (Index n : {31, 34, 50, 65, 97, 130})
    for (Index b : {16, 32, 112, 128}) test_bulges<T>(n, b, any(7), Kind(any(kKinds)));
}

}  // namespace

int main(int argc, char** argv) {
  const int level = argc > 1 ? std::atoi(argv[1]) : 1;
  const std::string parts = argc > 2 ? argv[2] : "arbe";
  const unsigned first = argc > 3 ? unsigned(std::atoi(argv[3])) : 1,
                 seeds = argc > 4 ? unsigned(std::atoi(argv[4])) : 1;
  for (unsigned seed = first; seed < first + seeds; ++seed) {
    generator.seed(seed);
#ifdef TIGHTPASS_EMULATED
    emulated::seed = seed;
    emulated::processors = 1 + int(seed % 3);
    emulated::workers = level == 0 ? 8 : 2 + int(seed % 3);
#endif
    test_all<float>(level, parts);
    if (level > 0) test_all<double>(level, parts);
    if (parts.find('e') != std::string::npos) test_errors();
  }
#ifdef TIGHTPASS_EMULATED
  failures += emulated::failures;
#endif
  std::printf("%ld comparisons, %ld failed\n", comparisons, failures);
  return failures != 0;
}
