// What every launcher needs: the grid's limits, and blocks of threads that add up.
#pragma once
#include <cuda_runtime.h>

#include "../error.h"
#include "../formulas.h"
#include "../ops.h"

namespace tightpass::cuda {

constexpr int kThreads = 128;
constexpr Index kGridMax = 65535;  // of a grid's second and third axis

inline cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

// Throws for a failed request, and takes the runtime's memory of it away: the next call's check would take it for its own.
inline void require(cudaError_t status, const char* otherwise) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(std::string(otherwise) + ": " + cudaGetErrorString(status));
}

// Scratch memory that lives on a stream: it is returned there once what was queued before is done.
class Scratch {
 public:
  Scratch(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
    require(cudaMallocAsync(&data_, bytes, stream), "no memory for a kernel's scratch on the GPU");
  }
  ~Scratch() { cudaFreeAsync(data_, stream_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T> T* as() const { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
  cudaStream_t stream_;
};

// Sum over all threads of a block; every thread gets it. `shared` has one place per warp.
template <class T>
__device__ T block_sum(T value, T* shared) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += shared[warp];
  return sum;
}

}  // namespace tightpass::cuda
