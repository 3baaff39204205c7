// Chooses, once, the widest instruction set that was built and that this processor has.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define TIGHTPASS_ISA baseline
#include "kernels.h"
#undef TIGHTPASS_ISA
#ifdef TIGHTPASS_X86
#define TIGHTPASS_ISA avx2
#include "kernels.h"
#undef TIGHTPASS_ISA
#define TIGHTPASS_ISA avx512
#include "kernels.h"
#undef TIGHTPASS_ISA
#endif

namespace tightpass::cpu {
namespace {

enum class Isa { baseline, avx2, avx512 };

bool allowed(const char* name) {  // TIGHTPASS_ISA limits the choice, so that tests reach every build
  static const char* const order[] = {"baseline", "avx2", "avx512"};
  const char* const limit = std::getenv("TIGHTPASS_ISA");
  if (limit == nullptr) return true;
  for (const char* known : order) {
    if (std::strcmp(known, name) == 0) return true;
    if (std::strcmp(known, limit) == 0) return false;
  }
  return true;
}

Isa choose() {
#ifdef TIGHTPASS_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      allowed("avx512"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && allowed("avx2")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa chosen() {
  static const Isa isa = choose();
  return isa;
}

#ifdef TIGHTPASS_X86
#define TIGHTPASS_CALL(FUNCTION, ...)                           \
  switch (chosen()) {                                           \
    case Isa::avx512: return isa_avx512::FUNCTION(__VA_ARGS__); \
    case Isa::avx2: return isa_avx2::FUNCTION(__VA_ARGS__);     \
    default: return isa_baseline::FUNCTION(__VA_ARGS__);        \
  }
#else
#define TIGHTPASS_CALL(FUNCTION, ...) return isa_baseline::FUNCTION(__VA_ARGS__);
#endif

template <class T>
Index scratch_each(const AttentionBlocks<T>& op) {
  TIGHTPASS_CALL(attention_scratch, op)
}

template <class T>
Index scratch_of(const BandReduction<T>& op, int threads) {
  TIGHTPASS_CALL(band_scratch, op, threads)
}

template <class T>
Index scratch_of(const Product<T>& op) {
  TIGHTPASS_CALL(product_scratch, op)
}

template <class T>
Index scratch_of(const AdjointProduct<T>& op, int threads) {
  TIGHTPASS_CALL(adjoint_scratch, op, threads)
}

}  // namespace

const char* instruction_set() {
  static const char* const names[] = {"baseline", "avx2", "avx512"};
  return names[int(chosen())];
}

template <class T>
void run(const AttentionBlocks<T>& op, int threads) {
  // Allocated here, where running out of memory can still be thrown: no exception leaves a parallel region.
  std::vector<T> scratch(std::size_t(scratch_each(op)) * std::size_t(threads));
  TIGHTPASS_CALL(attention_blocks, op, scratch.data(), threads)
}

template <class T>
void run(const GatherRows<T>& op, int threads) {
  TIGHTPASS_CALL(gather_rows, op, threads)
}

template <class T>
void run(const Product<T>& op, int threads) {
  const std::unique_ptr<T[]> scratch(new T[std::size_t(scratch_of(op))]);
  TIGHTPASS_CALL(product, op, scratch.get(), threads)
}

template <class T>
void run(const AdjointProduct<T>& op, int threads) {
  const std::unique_ptr<T[]> scratch(new T[std::size_t(scratch_of(op, threads))]);
  TIGHTPASS_CALL(adjoint_product, op, scratch.get(), threads)
}

template <class T>
void survey(const View<const T, 2>& a, const View<const T, 2>& probes, T* copy, Index copy_row, const View<T, 2>& out,
            double* largest, double* energy, int threads) {
  TIGHTPASS_CALL(survey, a, probes, copy, copy_row, out, largest, energy, threads)
}

template <class T>
void run(const BandReduction<T>& op, int threads) {
  const std::unique_ptr<T[]> scratch(new T[std::size_t(scratch_of(op, threads))]);  // written before it is read
  TIGHTPASS_CALL(band_reduction, op, scratch.get(), threads)
}

template <class T>
void run(const BulgeChase<T>& op, int threads) {
  std::vector<Index> progress(std::size_t(op.band.shape[0]));
  TIGHTPASS_CALL(bulge_chase, op, progress.data(), threads)
}

template <class T>
void run(const DirectReduction<T>& op, int) {
  const std::unique_ptr<T[]> scratch(new T[std::size_t(3 * op.a.shape[1] + op.a.shape[0])]);
  TIGHTPASS_CALL(bidiagonalize, op, scratch.get())
}

void run(const BlockProduct& op, int threads) {
  if (op.adjoint) {
    TIGHTPASS_CALL(adjoint_block_product, op, threads)
  } else {
    TIGHTPASS_CALL(block_product, op, threads)
  }
}

void run(const Bisection& op, int threads) {
  std::vector<double> squares(2 * std::size_t(op.d.shape[0]));
  TIGHTPASS_CALL(bisection, op, squares.data(), threads)
}

void run(const SturmCounts& op, int threads) {
  std::vector<double> squares(2 * std::size_t(op.d.shape[0]));
  TIGHTPASS_CALL(sturm_counts, op, squares.data(), threads)
}

template void run(const AttentionBlocks<float>&, int);
template void run(const AttentionBlocks<double>&, int);
template void run(const GatherRows<float>&, int);
template void run(const GatherRows<double>&, int);
template void run(const Product<float>&, int);
template void run(const Product<double>&, int);
template void run(const AdjointProduct<float>&, int);
template void run(const AdjointProduct<double>&, int);
template void survey(const View<const float, 2>&, const View<const float, 2>&, float*, Index, const View<float, 2>&,
                     double*, double*, int);
template void survey(const View<const double, 2>&, const View<const double, 2>&, double*, Index, const View<double, 2>&,
                     double*, double*, int);
template void run(const BandReduction<float>&, int);
template void run(const BandReduction<double>&, int);
template void run(const DirectReduction<float>&, int);
template void run(const DirectReduction<double>&, int);
template void run(const BulgeChase<float>&, int);
template void run(const BulgeChase<double>&, int);

}  // namespace tightpass::cpu
