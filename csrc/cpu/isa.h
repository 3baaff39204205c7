// What one instruction set's build of the CPU kernels is made of.
//
// The kernels are compiled once per instruction set, each in a namespace of its own. They include no
// standard header with inline functions: the linker keeps one copy of such a function, and
// it could be one that an older processor cannot run.
#pragma once
#include "../formulas.h"
#include "kernels.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T> struct VectorOf;
template <> struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <> struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class T> using Vector = typename VectorOf<T>::type;
template <class T> constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
inline void store(T* to, Vector<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

inline Index least(Index a, Index b) { return a < b ? a : b; }
inline Index round_up(Index n, Index unit) { return (n + unit - 1) / unit * unit; }

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
