// Which GPU is current. This library has a runtime of its own, which does not hear what others set in theirs.
#include "launch.h"

namespace tightpass::cuda {

OnDevice::OnDevice(int device) {
  require(cudaGetDevice(&before_), "no GPU is current");
  require(cudaSetDevice(device), "the GPU of the operands is not to be had");
}

OnDevice::~OnDevice() { cudaSetDevice(before_); }

bool built() { return true; }

}  // namespace tightpass::cuda
