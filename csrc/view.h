// Non-owning strided arrays: a pointer, extents and strides in elements, all 64-bit.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define TIGHTPASS_BOTH __host__ __device__ __forceinline__
#else
#define TIGHTPASS_BOTH inline
#endif

namespace tightpass {

using Index = std::int64_t;

template <class T, int rank>
struct View {
  T* data;  // null: absent, where an operation says that it may be
  Index shape[rank];
  Index stride[rank];

  TIGHTPASS_BOTH explicit operator bool() const { return data != nullptr; }
  TIGHTPASS_BOTH T& operator()(Index i) const {
    static_assert(rank == 1, "one index for a vector");
    return data[i * stride[0]];
  }
  TIGHTPASS_BOTH T& operator()(Index i, Index j) const {
    static_assert(rank == 2, "two indices for a matrix");
    return data[i * stride[0] + j * stride[1]];
  }
  TIGHTPASS_BOTH T& operator()(Index i, Index j, Index k) const {
    static_assert(rank == 3, "three indices for an array of matrices");
    return data[i * stride[0] + j * stride[1] + k * stride[2]];
  }
};

}  // namespace tightpass
