// The CPU kernels of the instruction set that TIGHTPASS_ISA names, in the namespace of its build. No include guard:
// dispatch.cpp includes this once for every instruction set.
#include "../ops.h"

#ifndef TIGHTPASS_NAMESPACE
#define TIGHTPASS_CONCAT(a, b) a##b
#define TIGHTPASS_NAMESPACE(name) TIGHTPASS_CONCAT(isa_, name)
#endif

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {

// Elements of scratch memory that `attention_blocks` needs for each thread.
template <class T> Index attention_scratch(const AttentionBlocks<T>&);
template <class T> void attention_blocks(const AttentionBlocks<T>&, T* scratch, int threads);
template <class T> void gather_rows(const GatherRows<T>&, int threads);
// Elements of scratch memory that `product` needs.
template <class T> Index product_scratch(const Product<T>&);
template <class T> void product(const Product<T>&, T* scratch, int threads);
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
