// Rows of weights, gathered or all, through a norm: one thread block a row, two passes over it.
#include "launch.h"

namespace tightpass::cuda {
namespace {

constexpr Index kRowsMax = 2147483647;  // of a grid's first axis

template <class T>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const GatherRows<T> op) {
  __shared__ T partial[kThreads / 32];
  const Index i = blockIdx.x, d = op.out.shape[1];
  const T* const from = &op.weight(op.index(i), 0);
  T* const to = &op.out(i, 0);
  const T slope = op.slope ? op.slope(i) : T(1);
  if (!op.x) {
    for (Index j = threadIdx.x; j < d; j += kThreads) to[j] = slope * from[j];
    return;
  }
  const T* const x = &op.x(op.token(i), 0);
  const T r = op.r(op.token(i));
  T inner = 0;
  for (Index j = threadIdx.x; j < d; j += kThreads) inner += slope * from[j] * x[j];
  const T share = block_sum(inner, partial) / T(d);
  for (Index j = threadIdx.x; j < d; j += kThreads) to[j] = through_norm(slope * from[j], share, x[j], r);
}

template <class T>
__global__ void __launch_bounds__(kThreads) norm_right_kernel(const NormRight<T> op) {
  __shared__ T partial[kThreads / 32];
  const Index i = blockIdx.x, d = op.m.shape[1];
  const T* const from = &op.m(i, 0);
  T* const to = &op.out(i, 0);
  T total = 0;
  for (Index j = threadIdx.x; j < d; j += kThreads) total += op.gamma ? from[j] * op.gamma.data[j] : from[j];
  const T mean = op.centred ? block_sum(total, partial) / T(d) : T(0);
  T inner = 0;
  for (Index j = threadIdx.x; j < d; j += kThreads) {
    const T w = (op.gamma ? from[j] * op.gamma.data[j] : from[j]) - mean;
    inner += w * op.x.data[j];
    to[j] = w;  // each thread reads back only what it wrote, so `out` may be `m`
  }
  const T share = block_sum(inner, partial) / T(d);
  for (Index j = threadIdx.x; j < d; j += kThreads) to[j] = through_norm(to[j], share, op.x.data[j], op.r);
}

}  // namespace

template <class T>
void run(const GatherRows<T>& op, Stream stream) {
  const Index n = op.out.shape[0];
  if (n == 0) return;
  if (n > kRowsMax) throw Error("gather_rows: too many rows for one launch");
  gather_rows_kernel<T><<<unsigned(n), kThreads, 0, stream_of(stream)>>>(op);
  check_launch("gather_rows");
}

template <class T>
void run(const NormRight<T>& op, Stream stream) {
  const Index n = op.m.shape[0];
  if (n == 0) return;
  if (n > kRowsMax) throw Error("norm_right: too many rows for one launch");
  norm_right_kernel<T><<<unsigned(n), kThreads, 0, stream_of(stream)>>>(op);
  check_launch("norm_right");
}

template void run(const GatherRows<float>&, Stream);
template void run(const GatherRows<double>&, Stream);
template void run(const NormRight<float>&, Stream);
template void run(const NormRight<double>&, Stream);

bool built() { return true; }

}  // namespace tightpass::cuda
