// What one instruction set's build of the CPU kernels is made of.
//
// The kernels are compiled once per instruction set, each in a namespace of its own. They include no
// standard header with inline functions: the linker keeps one copy of such a function, and
// it could be one that an older processor cannot run.
#pragma once
#include "../formulas.h"
#include "../ops.h"

#define TIGHTPASS_CONCAT(a, b) a##b
#define TIGHTPASS_NAMESPACE(name) TIGHTPASS_CONCAT(isa_, name)

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

// Elements of scratch memory that `attention_blocks` needs for each thread.
template <class T> Index attention_scratch(const AttentionBlocks<T>&);
template <class T> void attention_blocks(const AttentionBlocks<T>&, T* scratch, int threads);
template <class T> void gather_rows(const GatherRows<T>&, int threads);
template <class T> void norm_right(const NormRight<T>&, int threads);
template <class T> void product(const Product<T>&, int threads);
// Elements of scratch memory that `adjoint_product` needs.
template <class T> Index adjoint_scratch(const AdjointProduct<T>&, int threads);
template <class T> void adjoint_product(const AdjointProduct<T>&, T* scratch, int threads);
template <class T>
void survey(const View<const T, 2>& a, const View<const T, 2>& probes, T* copy, Index copy_row, const View<T, 2>& out,
            double* largest, double* energy, int threads);
void block_product(const BlockProduct&, int threads);
void adjoint_block_product(const BlockProduct&, int threads);
// Elements of scratch memory that `band_reduction` needs.
template <class T> Index band_scratch(const BandReduction<T>&, int threads);
template <class T> void band_reduction(const BandReduction<T>&, T* scratch, int threads);
// `scratch` has room for three rows and one column.
template <class T> void bidiagonalize(const DirectReduction<T>&, T* scratch);
// `progress` has one zero for each row of the band.
template <class T> void bulge_chase(const BulgeChase<T>&, Index* progress, int threads);
// `squares` has room for 2·n values.
void bisection(const Bisection&, double* squares, int threads);
void sturm_counts(const SturmCounts&, double* squares, int threads);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
