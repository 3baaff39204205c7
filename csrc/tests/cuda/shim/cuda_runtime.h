// A CUDA device on the processor, for tests: what the kernels use of the runtime and of the language.
//
// Blocks are threads of the system. The threads of a block are fibers that take turns in random order, and are switched at
// barriers, warp operations and waits. Sources go through translate.py first, since <<<..>>> is no C++.
#pragma once
#include <cmath>
#include <cstddef>
#include <functional>

#define __CUDACC__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
using cudaStream_t = struct EmulatedStream*;

cudaError_t cudaMalloc(void** data, std::size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocAsync(void** data, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace emulated {

dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();
void* dynamic_shared();
void barrier(const char* file, int line);
void warp_barrier(unsigned mask, const char* file, int line);
void exchange(unsigned mask, void* value, std::size_t bytes, int from, const char* file, int line);
void fence();
void wait_a_little();
void launch(dim3 grid, dim3 block, std::size_t shared, const std::function<void()>& body, const char* name);
int load_flag(const int* at);
void store_flag(int* at, int value);

struct Launch {
  const char* name;
  dim3 grid, block;
  std::size_t shared;
  Launch(const char* name_, dim3 grid_, dim3 block_, std::size_t shared_ = 0, cudaStream_t = nullptr)
      : name(name_), grid(grid_), block(block_), shared(shared_) {}
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), Arguments&&... arguments) const {
    launch(grid, block, shared, [&] { kernel(arguments...); }, name);
  }
};

// *static_cast<volatile int*>(p): relaxed, so that only fences order what lies around it.
struct Flag {
  int* at;
  explicit Flag(int* p) : at(p) {}
  operator int() const { return load_flag(at); }
  void operator=(int value) const { store_flag(at, value); }
};

inline int lane() {
  const dim3 at = thread_index(), size = block_size();
  return int((at.x + size.x * (at.y + size.y * at.z)) % 32);
}

template <class T>
T shuffled(unsigned mask, T value, int from, const char* file, int line) {
  exchange(mask, &value, sizeof(T), from, file, line);
  return value;
}

}  // namespace emulated

#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index())
#define blockDim (::emulated::block_size())
#define gridDim (::emulated::grid_size())
#define __syncthreads() ::emulated::barrier(__FILE__, __LINE__)
#define __syncwarp() ::emulated::warp_barrier(0xffffffffu, __FILE__, __LINE__)
#define __threadfence() ::emulated::fence()
#define __nanosleep(t) ::emulated::wait_a_little()
#define __shfl_xor_sync(mask, value, step) \
  ::emulated::shuffled(mask, value, ::emulated::lane() ^ (step), __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, step)                                                                       \
  ::emulated::shuffled(mask, value,                                                                               \
                       ::emulated::lane() + int(step) < 32 ? ::emulated::lane() + int(step) : ::emulated::lane(), \
                       __FILE__, __LINE__)

inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }

using std::fabs;
using std::fmax;
