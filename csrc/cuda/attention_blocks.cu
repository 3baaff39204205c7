// Attention blocks: a thread block writes one output row o of kTile blocks (t, s), its threads side by
// side along the columns, so that every store is a full line. The 2·H weights of each block s lie in
// shared memory, where all threads read the same word at once.
//
// Traffic: every entry is written once; p is read once for each (t, tile of s) and k once for each
// (o, tile of s), both from the second-level cache where H·d² elements fit it.
#include "launch.h"

namespace tightpass::cuda {
namespace {

constexpr int kTile = 8;  // blocks s in registers at a time

template <class T>
__global__ void __launch_bounds__(kThreads) attention_blocks_kernel(const AttentionBlocks<T> op, Index first_row) {
  extern __shared__ unsigned char memory[];
  T* const left = reinterpret_cast<T*>(memory);  // (2H, kTile): a, then u
  T* const share = left + 2 * op.heads() * kTile;
  const Index o = blockIdx.x, s0 = Index(blockIdx.y) * kTile, t = first_row + blockIdx.z;
  const Index H = op.heads(), d = op.d_in(), count = op.columns(t);
  if (s0 >= count) return;

  for (Index n = threadIdx.x; n < H * kTile; n += kThreads) {
    const Index h = n / kTile, s = s0 + n % kTile;
    const T a = s < count ? op.a(t, h, s) : T(0);
    left[n] = a;
    left[H * kTile + n] = s < count ? update_weight(a, op.vo(o, h, s), op.vt(o, h, t), op.rest(o, h, t)) : T(0);
  }
  __syncthreads();
  if (op.x && threadIdx.x < kTile && s0 + threadIdx.x < count) {
    const Index i = threadIdx.x, s = s0 + i;
    T sum = s == op.diagonal(t) ? op.qx(t, o) : T(0);
    for (Index h = 0; h < H; ++h)
      sum += left[h * kTile + i] * op.px(o, h, s) + left[(H + h) * kTile + i] * op.kx(t, h, s);
    share[i] = sum / T(d);
  }
  __syncthreads();

  for (Index j = threadIdx.x; j < d; j += kThreads) {
    T sum[kTile] = {};
    for (Index h = 0; h < H; ++h) {
      const T p = op.p(h, o, j), k = op.k(t, h, j);
#pragma unroll
      for (int i = 0; i < kTile; ++i) sum[i] += left[h * kTile + i] * p + left[(H + h) * kTile + i] * k;
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const Index s = s0 + i;
      if (s >= count) break;
      T w = sum[i];
      if (s == op.diagonal(t)) w += op.q(t, o, j);
      op.block_row(t, s, o)[j] = op.x ? through_norm(w, share[i], op.x(s, j), op.r(s)) : w;
    }
  }
}

}  // namespace

template <class T>
void run(const AttentionBlocks<T>& op, Stream stream) {
  if (op.rows() == 0 || op.tokens() == 0 || op.d_out() == 0) return;
  const std::size_t shared = std::size_t(2 * op.heads() * kTile + kTile) * sizeof(T);
  if (shared > 48 * 1024)
    throw Error("attention_blocks: " + std::to_string(op.heads()) + " heads do not fit the shared memory of a GPU");
  const Index tiles = (op.tokens() + kTile - 1) / kTile;
  if (tiles > kGridMax || op.d_out() > 2147483647)
    throw Error("attention_blocks: too many tokens or output features for one launch");
  for (Index first = 0; first < op.rows(); first += kGridMax) {
    const Index rows = op.rows() - first < kGridMax ? op.rows() - first : kGridMax;
    const dim3 grid{unsigned(op.d_out()), unsigned(tiles), unsigned(rows)};
    attention_blocks_kernel<T><<<grid, kThreads, shared, stream_of(stream)>>>(op, first);
    check_launch("attention_blocks");
  }
}

template void run(const AttentionBlocks<float>&, Stream);
template void run(const AttentionBlocks<double>&, Stream);

}  // namespace tightpass::cuda
