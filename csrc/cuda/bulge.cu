// Bulge chasing: one thread block a sweep, as many in flight as the device holds. Blocks take sweeps in order,
// so the sweep that a block waits for is done or running, and nothing can wait for ever.
#include "launch.h"

namespace tightpass::cuda {
namespace {

constexpr int kChasers = 256;  // threads of a block
constexpr int kWarps = kChasers / 32;
constexpr int kDone = 1 << 30;

template <class T>
struct Shared {
  T v[kWidest], x[kWidest], w[2 * kWidest];
  T tau, sums[kWarps];
};

template <class T>
__device__ T warp_sum(T value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The reflector that clears `row` (b) beyond its first entry, into shared memory; by the first warp.
template <class T>
__device__ void clear_row(T* row, Index b, Shared<T>& shared) {
  if (threadIdx.x < 32) {
    T rest = 0;
    for (Index j = threadIdx.x; j < b; j += 32) rest += j > 0 ? row[j] * row[j] : T(0);
    const Reflector<T> h = reflector(row[0], warp_sum(rest));
    __syncwarp();  // row[0] has been read by all
    for (Index j = threadIdx.x; j < b; j += 32) {
      shared.v[j] = j > 0 ? row[j] * h.inverse : T(1);
      row[j] = j > 0 ? T(0) : h.beta;
    }
    if (threadIdx.x == 0) shared.tau = h.tau;
  }
  __syncthreads();
}

// One reflector on a segment of the probes: a warp a probe.
template <class T>
__device__ void reflect_probes(const View<T, 2>& probes, Index from, Index b, const T* v, T tau) {
  for (Index p = threadIdx.x / 32; p < probes.shape[1]; p += kWarps) {
    T product = 0;
    for (Index j = threadIdx.x % 32; j < b; j += 32) product += v[j] * probes(from + j, p);
    product = tau * warp_sum(product);
    for (Index j = threadIdx.x % 32; j < b; j += 32) probes(from + j, p) -= product * v[j];
  }
}

// Task k of sweep i, as in cpu/bulge.cpp.
template <class T>
__device__ void task(const BulgeChase<T>& op, Index i, Index k, Shared<T>& shared) {
  const Index b = op.width, c = i + 1 + k * b, step = op.step();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (k == 0) clear_row(op.at(i, i + 1), b, shared);
  if (shared.tau != T(0)) {
    const Index above = k == 0 ? 0 : b - 1;
    T* const first = op.at(c - above, c);
    for (Index r = warp; r < above + b; r += kWarps) {
      T* const row = first + r * step;
      T product = 0;
      for (Index j = lane; j < b; j += 32) product += row[j] * shared.v[j];
      product = shared.tau * warp_sum(product);
      for (Index j = lane; j < b; j += 32) row[j] -= product * shared.v[j];
    }
    reflect_probes(op.right, c, b, shared.v, shared.tau);
  }
  __syncthreads();
  T* const first = op.at(c, c);
  for (Index r = threadIdx.x; r < b; r += kChasers) shared.x[r] = first[r * step];
  __syncthreads();
  for (Index j = threadIdx.x; j < 2 * b; j += kChasers) {
    T sum = 0;
    for (Index r = 1; r < b; ++r) sum += shared.x[r] * first[r * step + j];
    shared.w[j] = sum;
  }
  __syncthreads();
  const Reflector<T> h = reflector(shared.x[0], shared.w[0]);
  __syncthreads();  // before x becomes v
  if (h.tau != T(0)) {
    for (Index r = threadIdx.x; r < b; r += kChasers) shared.x[r] = r > 0 ? shared.x[r] * h.inverse : T(1);
    __syncthreads();
    for (Index j = threadIdx.x; j < 2 * b; j += kChasers) {
      const T w = h.tau * (first[j] + shared.w[j] * h.inverse);
      for (Index r = 0; r < b; ++r) first[r * step + j] -= shared.x[r] * w;
    }
    reflect_probes(op.left, c, b, shared.x, h.tau);
  }
  __syncthreads();
  for (Index r = threadIdx.x; r < b; r += kChasers) first[r * step] = r > 0 ? T(0) : h.beta;
  __syncthreads();
  clear_row(op.at(c, c + b), b, shared);
}

template <class T>
__global__ void __launch_bounds__(kChasers) bulge_kernel(const BulgeChase<T> op, int* progress, int* next) {
  __shared__ Shared<T> shared;
  __shared__ int taken;
  const Index sweeps = op.n - 1;
  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0) taken = atomicAdd(next, 1);
    __syncthreads();
    const Index i = taken;
    if (i >= sweeps) return;
    const Index tasks = (op.n - 1 - i + op.width - 1) / op.width;
    for (Index k = 0; k < tasks; ++k) {
      if (i > 0 && threadIdx.x == 0) {
        while (*static_cast<volatile int*>(progress + i - 1) < k + 2) __nanosleep(40);
        __threadfence();  // what the other block wrote before is read after
      }
      __syncthreads();
      task(op, i, k, shared);
      __syncthreads();
      if (threadIdx.x == 0) {
        __threadfence();  // after the barrier, so that it speaks for what all threads wrote
        *static_cast<volatile int*>(progress + i) = k + 1 < tasks ? int(k + 1) : kDone;
      }
    }
  }
}

}  // namespace

template <class T>
void run(const BulgeChase<T>& op, Stream stream) {
  if (op.n < 2) return;
  if (op.n >= kDone) throw Error("bulge_chase: too many rows for one launch");
  const cudaStream_t queue = stream_of(stream);
  const std::size_t bytes = sizeof(int) * (std::size_t(op.n) + 1);
  const Scratch scratch(bytes, queue);
  require(cudaMemsetAsync(scratch.as<int>(), 0, bytes, queue), "bulge_chase: cannot clear scratch");
  int device = 0, processors = 0;
  require(cudaGetDevice(&device), "bulge_chase: no GPU is current");
  require(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "bulge_chase: the GPU does not say how many processors it has");
  bulge_kernel<T><<<unsigned(4 * processors), kChasers, 0, queue>>>(op, scratch.as<int>() + 1, scratch.as<int>());
  check_launch("bulge_chase");
}

template void run(const BulgeChase<float>&, Stream);
template void run(const BulgeChase<double>&, Stream);

}  // namespace tightpass::cuda
