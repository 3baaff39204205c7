// The CPU kernels against the formulas of ops.h written out in long double, on odd sizes, unaligned and
// strided outputs, under the address and undefined-behaviour sanitizers. Memory around every output
// is watched: nothing but the blocks may change.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../error.h"
#include "../ops.h"

using namespace tightpass;

namespace {

std::mt19937 generator(7);
int failures = 0;

template <class T>
std::vector<T> random_array(Index n) {
  std::normal_distribution<double> normal;
  std::vector<T> out(static_cast<std::size_t>(n));
  for (T& value : out) value = T(normal(generator));
  return out;
}

template <class T, int rank>
View<const T, rank> dense(const std::vector<T>& data, const Index (&shape)[rank], Index offset = 0) {
  View<const T, rank> view{data.data() + offset, {}, {}};
  Index stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    view.shape[axis] = shape[axis];
    view.stride[axis] = stride;
    stride *= shape[axis];
  }
  return view;
}

void expect(bool good, const char* what, double got, double allowed) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %g, allowed %g\n", what, got, allowed);
}

template <class T>
void expect_close(long double got, long double expected, long double scale, const char* what) {
  const double error = double(std::abs(got - expected) / scale);
  expect(error <= 16 * double(std::numeric_limits<T>::epsilon()), what, error,
         16 * double(std::numeric_limits<T>::epsilon()));
}

constexpr double kUntouched = -12345;

// Rows t of a causal or full attention, written as dense (T, d, T, d) memory that starts `offset` in.
template <class T>
void test_attention(Index tokens, Index heads, Index d_out, Index d_in, bool causal, bool norm, Index offset) {
  const Index H = heads;
  auto a = random_array<T>(tokens * H * tokens), vo = random_array<T>(d_out * H * tokens);
  auto vt = random_array<T>(d_out * H * tokens), rest = random_array<T>(d_out * H * tokens);
  auto p = random_array<T>(H * d_out * d_in);
  auto k = random_array<T>(tokens * H * d_in), q = random_array<T>(tokens * d_out * d_in);
  auto px = random_array<T>(d_out * H * tokens), kx = random_array<T>(tokens * H * tokens);
  auto qx = random_array<T>(tokens * d_out), x = random_array<T>(tokens * d_in), r = random_array<T>(tokens);
  const Index row_stride = tokens * d_in + 3, block_stride = d_in;  // a dense J with padded rows
  std::vector<T> out(static_cast<std::size_t>(offset + tokens * d_out * row_stride), T(kUntouched));
  std::vector<Index> columns, diagonal, start;
  for (Index t = 0; t < tokens; ++t) {
    columns.push_back(causal ? t + 1 : tokens);
    diagonal.push_back(t);
    start.push_back(t * d_out * row_stride);
  }
  AttentionBlocks<T> op{};
  op.a = dense(a, {tokens, H, tokens});
  op.vo = dense(vo, {d_out, H, tokens});
  op.vt = dense(vt, {d_out, H, tokens});
  op.rest = dense(rest, {d_out, H, tokens});
  op.p = dense(p, {H, d_out, d_in});
  op.k = dense(k, {tokens, H, d_in});
  op.q = dense(q, {tokens, d_out, d_in});
  if (norm) {
    op.px = dense(px, {d_out, H, tokens});
    op.kx = dense(kx, {tokens, H, tokens});
    op.qx = dense(qx, {tokens, d_out});
    op.x = dense(x, {tokens, d_in});
    op.r = dense(r, {tokens});
  }
  op.columns = dense(columns, {tokens});
  op.diagonal = dense(diagonal, {tokens});
  op.start = dense(start, {tokens});
  op.out = out.data() + offset;
  op.block_stride = block_stride;
  op.row_stride = row_stride;
  cpu::run(op, 2);

  std::vector<bool> written(out.size(), false);
  for (Index t = 0; t < tokens; ++t)
    for (Index s = 0; s < columns[t]; ++s)
      for (Index o = 0; o < d_out; ++o) {
        long double share = 0;
        if (norm) {
          for (Index h = 0; h < H; ++h)
            share +=
                (long double)op.a(t, h, s) *
                (op.px(o, h, s) + ((long double)op.vo(o, h, s) - op.vt(o, h, t) - op.rest(o, h, t)) * op.kx(t, h, s));
          if (s == t) share += op.qx(t, o);
          share /= d_in;
        }
        for (Index j = 0; j < d_in; ++j) {
          long double w = s == t ? op.q(t, o, j) : T(0), scale = std::abs(w);
          for (Index h = 0; h < H; ++h) {
            const long double update =
                op.a(t, h, s) * ((long double)op.vo(o, h, s) - op.vt(o, h, t) - op.rest(o, h, t));
            w += op.a(t, h, s) * (long double)op.p(h, o, j) + update * op.k(t, h, j);
            scale += std::abs(op.a(t, h, s) * op.p(h, o, j)) + std::abs(update * op.k(t, h, j)) +
                     std::abs(op.a(t, h, s)) *
                         (std::abs(op.vo(o, h, s)) + std::abs(op.vt(o, h, t)) + std::abs(op.rest(o, h, t)));
          }
          long double expected = w;
          if (norm) {
            expected = op.r(s) * (w - share * op.x(s, j));
            scale = std::abs(op.r(s)) * (scale + H * 40 * std::abs(op.x(s, j)));
          }
          const std::size_t at = std::size_t(offset + start[t] + s * block_stride + o * row_stride + j);
          written[at] = true;
          expect_close<T>(out[at], expected, scale * H, "attention_blocks");
        }
      }
  for (std::size_t i = 0; i < out.size(); ++i)
    if (!written[i]) expect(out[i] == T(kUntouched), "attention_blocks wrote outside of its blocks", double(i), 0);
}

template <class T>
void test_rows(Index units, Index d, Index n, bool norm, Index offset) {
  auto weight = random_array<T>(units * d), slope = random_array<T>(n), x = random_array<T>(3 * d),
       r = random_array<T>(3);
  std::vector<Index> index, token;
  for (Index i = 0; i < n; ++i) {
    index.push_back((i * 7) % units);
    token.push_back(i % 3);
  }
  const Index stride = d + 1;
  std::vector<T> out(static_cast<std::size_t>(offset + n * stride), T(kUntouched));
  GatherRows<T> op{};
  op.weight = dense(weight, {units, d});
  op.index = dense(index, {n});
  op.slope = dense(slope, {n});
  if (norm) {
    op.token = dense(token, {n});
    op.x = dense(x, {3, d});
    op.r = dense(r, {3});
  }
  op.out = {out.data() + offset, {n, d}, {stride, 1}};
  cpu::run(op, 2);
  for (Index i = 0; i < n; ++i) {
    long double inner = 0, size = 0;
    for (Index j = 0; j < d; ++j) {
      inner += (long double)slope[i] * op.weight(index[i], j) * x[token[i] * d + j];
      size += std::abs(slope[i] * op.weight(index[i], j) * x[token[i] * d + j]);
    }
    for (Index j = 0; j < d; ++j) {
      const long double w = (long double)slope[i] * op.weight(index[i], j);
      const long double expected = norm ? r[token[i]] * (w - inner / d * x[token[i] * d + j]) : w;
      const long double scale =
          norm ? std::abs(r[token[i]]) * (std::abs(w) + size * std::abs(x[token[i] * d + j])) : std::abs(w);
      expect_close<T>(op.out(i, j), expected, scale + 1e-30L, "gather_rows");
    }
    expect(out[std::size_t(offset + i * stride + d)] == T(kUntouched), "gather_rows wrote outside of its rows", i, 0);
  }
}

// Whole numbers, whose sums of products need more bits than a double has, and come out to the last one.
void test_block_product(Index count, Index m, Index n, bool adjoint) {
  std::uniform_int_distribution<Index> whole(-(Index(1) << 40), Index(1) << 40), token(0, 2);
  std::vector<double> blocks, v;
  std::vector<Index> rows, columns;
  for (Index i = 0; i < count * m * n; ++i) blocks.push_back(double(whole(generator)));
  for (Index b = 0; b < count; ++b) rows.push_back(token(generator)), columns.push_back(token(generator));
  const Index from = adjoint ? m : n, to = adjoint ? n : m;
  for (Index i = 0; i < 3 * from; ++i) v.push_back(double(whole(generator)));
  std::vector<double> high(std::size_t(3 * to)), low(std::size_t(3 * to));
  std::vector<__int128> exact(std::size_t(3 * to));
  const BlockProduct op{dense<double, 3>(blocks, {count, m, n}),
                        dense<Index, 1>(rows, {count}),
                        dense<Index, 1>(columns, {count}),
                        dense<double, 2>(v, {3, from}),
                        {high.data(), {3, to}, {to, 1}},
                        {low.data(), {3, to}, {to, 1}},
                        adjoint};
  cpu::run(op, 2);
  for (Index b = 0; b < count; ++b)
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) {
        const __int128 a = __int128(blocks[std::size_t((b * m + i) * n + j)]);
        if (adjoint) exact[std::size_t(columns[b] * n + j)] += a * __int128(v[std::size_t(rows[b] * m + i)]);
        else exact[std::size_t(rows[b] * m + i)] += a * __int128(v[std::size_t(columns[b] * n + j)]);
      }
  for (std::size_t i = 0; i < exact.size(); ++i)
    expect(__int128(high[i]) + __int128(low[i]) == exact[i], "block_product", high[i], double(exact[i]));
}

template <class T>
void test_all() {
  for (Index offset : {0, 1, 5})
    for (bool norm : {false, true}) {
      for (bool causal : {false, true}) {
        test_attention<T>(1, 1, 1, 1, causal, norm, offset);
        test_attention<T>(5, 3, 21, 21, causal, norm, offset);
        test_attention<T>(17, 2, 7, 53, causal, norm, offset);
        test_attention<T>(8, 1, 9, 48, causal, norm, offset);
        test_attention<T>(3, 13, 5, 31, causal, norm, offset);
      }
      test_rows<T>(1, 1, 1, norm, offset);
      test_rows<T>(50, 21, 37, norm, offset);
      test_rows<T>(11, 97, 5, norm, offset);
    }
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  for (bool adjoint : {false, true}) {
    test_block_product(1, 1, 1, adjoint);
    test_block_product(3, 5, 17, adjoint);
    test_block_product(4, 37, 130, adjoint);
  }
  bool thrown = false;
  try {
    cuda::run(GatherRows<float>{}, nullptr);
  } catch (const Error& error) {
    thrown = std::string(error.what()) == "built without CUDA";
  }
  expect(thrown, "the stub throws", 0, 0);
  std::printf("%s: %d failures\n", cpu::instruction_set(), failures);
  return failures != 0;
}
