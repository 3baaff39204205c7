// Products of blocks with a vector whose sums lose nothing to rounding until the end: every product and every sum with
// its error, which is added up beside it (Ogita, Rump & Oishi 2005). Bound by memory: each entry is read once.
#include "isa.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

constexpr int kTogether = 16;       // sums that run side by side
constexpr Index kColumnTile = 128;  // columns of one task: both of their sums stay in the first-level cache

// (high, low) += a·b
inline void accumulate(double a, double b, double& high, double& low) {
  const double product = a * b, error = __builtin_fma(a, b, -product);
  const double total = high + product, seen = total - high;
  low += ((high - (total - seen)) + (product - seen)) + error;
  high = total;
}

inline void add(double value, double& high, double& low) {
  const double total = high + value, seen = total - high;
  low += (high - (total - seen)) + (value - seen);
  high = total;
}

}  // namespace

void block_product(const BlockProduct& op, int threads) {
  const Index count = op.blocks.shape[0], m = op.blocks.shape[1], n = op.blocks.shape[2];
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (count * m * n > 65536)
  for (Index i = 0; i < m; ++i)
    for (Index b = 0; b < count; ++b) {
      const double* const a = &op.blocks(b, i, 0);
      const double* const v = &op.v(op.columns(b), 0);
      double high[kTogether] = {}, low[kTogether] = {};
      Index j = 0;
      for (; j + kTogether <= n; j += kTogether)
        for (int lane = 0; lane < kTogether; ++lane) accumulate(a[j + lane], v[j + lane], high[lane], low[lane]);
      for (; j < n; ++j) accumulate(a[j], v[j], high[0], low[0]);
      double& total = op.high(op.rows(b), i);
      double& rest = op.low(op.rows(b), i);
      for (int lane = 0; lane < kTogether; ++lane) {
        add(high[lane], total, rest);
        rest += low[lane];
      }
    }
}

void adjoint_block_product(const BlockProduct& op, int threads) {
  const Index count = op.blocks.shape[0], m = op.blocks.shape[1], n = op.blocks.shape[2];
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (count * m * n > 65536)
  for (Index start = 0; start < n; start += kColumnTile) {
    const Index end = start + kColumnTile < n ? start + kColumnTile : n;
    for (Index b = 0; b < count; ++b) {
      double* const high = &op.high(op.columns(b), 0);
      double* const low = &op.low(op.columns(b), 0);
      for (Index i = 0; i < m; ++i) {
        const double* const a = &op.blocks(b, i, 0);
        const double u = op.v(op.rows(b), i);
        for (Index j = start; j < end; ++j) accumulate(a[j], u, high[j], low[j]);
      }
    }
  }
}

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
