// Singular values of a bidiagonal matrix, one thread each: all threads of a block read the same squares, so that they
// come from the cache.
#include "launch.h"

namespace tightpass::cuda {
namespace {

// d², e² (the last 0), then a bound on ‖B‖; one block
__global__ void __launch_bounds__(kThreads)
    squares_kernel(View<const double, 1> d, View<const double, 1> e, double* room) {
  __shared__ double reach[kThreads];
  const Index n = d.shape[0];
  double bound = 0;
  for (Index i = threadIdx.x; i < n; i += kThreads) {
    const double off = i + 1 < n ? e(i) : 0.0, before = i > 0 ? fabs(e(i - 1)) : 0.0;
    room[i] = d(i) * d(i);
    room[n + i] = off * off;
    bound = fmax(bound, fabs(d(i)) + fmax(fabs(off), before));  // ‖B‖ ≤ max of row and column sums
  }
  reach[threadIdx.x] = bound;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int t = 1; t < kThreads; ++t) bound = fmax(bound, reach[t]);
  room[2 * n] = bound * kAbove;
}

__device__ Index count_below(const double* room, Index n, double tau) {
  const double tau2 = sturm_shift(tau);
  double s = -tau2;
  Index below = 0;
  for (Index i = 0; i < n; ++i) {
    const double pivot = s + room[i];
    below += pivot < 0;
    s = sturm_next(s, pivot, room[n + i], tau2);
  }
  return below;
}

__global__ void __launch_bounds__(kThreads) bisection_kernel(const Bisection op, const double* room) {
  const Index n = op.d.shape[0], index = Index(blockIdx.x) * kThreads + threadIdx.x;  // ascending
  if (index >= n) return;
  double low = 0, high = room[2 * n];
  for (;;) {
    const double middle = bisection_cut(low, high, op.absolute);
    if (!bisection_open(low, high, middle, op.absolute, op.relative)) break;
    if (count_below(room, n, middle) > index) high = middle;
    else low = middle;
  }
  op.values(n - 1 - index) = low > 0 ? low + (high - low) / 2 : 0.0;
}

__global__ void __launch_bounds__(kThreads) counts_kernel(const SturmCounts op, const double* room) {
  const Index index = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (index < op.taus.shape[0])
    op.counts(index) = op.taus(index) > 0 ? count_below(room, op.d.shape[0], op.taus(index)) : 0;
}

unsigned blocks_for(Index count) { return unsigned((count + kThreads - 1) / kThreads); }

}  // namespace

void run(const Bisection& op, Stream stream) {
  const cudaStream_t queue = stream_of(stream);
  const Scratch room(sizeof(double) * (2 * std::size_t(op.d.shape[0]) + 1), queue);
  squares_kernel<<<1, kThreads, 0, queue>>>(op.d, op.e, room.as<double>());
  bisection_kernel<<<blocks_for(op.d.shape[0]), kThreads, 0, queue>>>(op, room.as<double>());
  check_launch("bisection");
}

void run(const SturmCounts& op, Stream stream) {
  if (op.taus.shape[0] == 0) return;
  const cudaStream_t queue = stream_of(stream);
  const Scratch room(sizeof(double) * (2 * std::size_t(op.d.shape[0]) + 1), queue);
  squares_kernel<<<1, kThreads, 0, queue>>>(op.d, op.e, room.as<double>());
  counts_kernel<<<blocks_for(op.taus.shape[0]), kThreads, 0, queue>>>(op, room.as<double>());
  check_launch("sturm_counts");
}

}  // namespace tightpass::cuda
