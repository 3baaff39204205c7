// Gathered rows of weights through a norm: one thread block a row, two passes over it.
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

}  // namespace

template <class T>
void run(const GatherRows<T>& op, Stream stream) {
  const Index n = op.out.shape[0];
  if (n == 0) return;
  if (n > kRowsMax) throw Error("gather_rows: too many rows for one launch");
  gather_rows_kernel<T><<<unsigned(n), kThreads, 0, stream_of(stream)>>>(op);
  check_launch("gather_rows");
}

template void run(const GatherRows<float>&, Stream);
template void run(const GatherRows<double>&, Stream);

}  // namespace tightpass::cuda
