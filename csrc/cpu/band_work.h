// What the parts of the band reduction share: the sizes of its pieces, and its scratch memory. Included by band.cpp alone.
#pragma once
#include "team.h"
#include "tile.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

template <class T> constexpr Index kChunk = 8 * kStrip<T>;          // columns that are packed at once
template <class T> constexpr Index kDeep = 512 / Index(sizeof(T));  // rows of one packed chunk
template <class T> constexpr Index kLong = 512 / Index(sizeof(T));  // columns of C in one partial sum of C·W
constexpr Index kRows = 96;                                         // rows of C·W kept in the cache meanwhile
constexpr Index kWorthThreads = 1 << 16;  // entries; below, one thread is faster than waking others

static_assert(kMostProbes <= kStrip<double>, "probes fit one strip");

template <class T>
struct Work {
  Index m, n, b;
  int threads;
  T* P;        // (m, 2b) V beside Y
  T* W;        // (n, b)
  T* strips;   // (strips, 2b, kStrip) X above Wᵀ
  T* spare;    // (1, 2b, kStrip) the same for probes
  T* packed;   // (b / kTall, m, kTall) V once more
  T* turned;   // (b, b) Tᵀ
  T* upright;  // (b, b) T, or S
  T* gram;     // (b, b)
  T* inner;    // (b, b) X·W
  T* tau;      // (b)
  T* partial;  // (threads, 2, b) sums of the panel's factorisation
  T* each;     // (threads, kDeep·wide + b·wide)

  // Columns that a thread has room for: kChunk of C, or those of the panel itself.
  static Index wide(Index b) { return b > kChunk<T> ? round_up(b, kStrip<T>) : kChunk<T>; }
  static Index each_size(Index b) { return (kDeep<T> + b) * wide(b); }
  static Index strip_count(Index n) { return (n + kStrip<T> - 1) / kStrip<T>; }
  static Index tall(Index b) { return round_up(b, kTall); }
  static Index size(Index m, Index n, Index b, Index threads) {
    return 2 * m * b + n * b + (strip_count(n) + 1) * 2 * b * kStrip<T> + m * tall(b) + 4 * b * b + b +
           threads * 2 * b + threads * each_size(b);
  }
  Work(const BandReduction<T>& op, T* at, int threads)
      : m(op.a.shape[0]), n(op.a.shape[1]), b(op.width), threads(threads) {
    auto take = [&](Index count) {
      T* const here = at;
      at += count;
      return here;
    };
    P = take(2 * m * b);
    W = take(n * b);
    strips = take(strip_count(n) * 2 * b * kStrip<T>);
    spare = take(2 * b * kStrip<T>);
    packed = take(m * tall(b));
    turned = take(b * b);
    upright = take(b * b);
    gram = take(b * b);
    inner = take(b * b);
    tau = take(b);
    partial = take(threads * 2 * b);
    each = take(threads * each_size(b));
  }
};

}  // namespace
}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
