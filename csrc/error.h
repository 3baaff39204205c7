// One error type, and one check for everything that is asked of the CUDA runtime.
#pragma once
#include <stdexcept>
#include <string>

namespace tightpass {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#ifdef __CUDACC__
inline void check_launch(const char* operation) {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) throw Error(std::string(operation) + ": " + cudaGetErrorString(status));
}
#endif

}  // namespace tightpass
