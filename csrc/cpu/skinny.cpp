// Products of a large matrix with few columns, bound by how fast its rows come from memory, and of few rows with a
// large one: libraries' own products are tuned for square ones (`benchmarks/svd.py`, "products").
#include "tile.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

constexpr Index kDepth = 256;             // terms of one partial sum, so that long rows do not lose digits
constexpr Index kBlock = 96;              // rows of a that many columns go past
constexpr Index kWorthThreads = 1 << 24;  // multiplications; below, one thread is done before another is awake
constexpr Index kWorthCopy = 256;         // rows of a that a copy of x is worth
constexpr Index kStack = 16;              // rows that share one visit to a part of the answer of aᵀ·y

// Few rows at once: those of a large matrix often lie a multiple of 4096 bytes apart, in the same places of the cache.
template <int vectors> constexpr int kRowsOf = kAccumulators / vectors < 8 ? kAccumulators / vectors : 8;
template <int vectors> constexpr int kColumnsOf = vectors == 1 ? 8 : kAccumulators / vectors / 4 * 4 < 4 ? 2 : 4;

template <int vectors, int rows, class T>
void some_rows(const View<const T, 2>& a, const T* x, Index x_row, T* out, Index out_row, Index i) {
  const Index n = a.shape[1], step = a.stride[0];
  Vector<T> total[rows][vectors] = {};
  for (Index j = 0; j < n; j += kDepth) {
    Vector<T> acc[rows][vectors] = {};
    tile(acc, least(kDepth, n - j), a.data + i * step + j, step, 1, x + j * x_row, x_row);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) total[r][v] += acc[r][v];
  }
  put<false>(out + i * out_row, out_row, total);
}

// A number of vectors that the compiler knows.
template <int count>
struct Vectors {
  static constexpr int value = count;
};

// Columns of x as wide as a tile
template <class T>
struct Strip {
  const T* data;
  Index row;
};

// x, its strips one after the other where there is a copy: their rows, often a multiple of 4096 bytes apart, would share the
// same places of the cache.
template <class T>
class Strips {
 public:
  Strips(const Product<T>& op, T* scratch, int threads) : x_(op.x) {
    if (copy_size(op) == 0) return;
    copy_ = scratch;
    const Index n = x_.shape[0], width = x_.shape[1];
    const Index count = (width + kStripColumns - 1) / kStripColumns;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index s = 0; s < count; ++s)
      for_strips(least(width, (s + 1) * kStripColumns), s * kStripColumns, [&](auto vectors, Index c) {
        constexpr int columns = decltype(vectors)::value * kLanes<T>;
        T* to = copy_ + c * n;
        for (Index j = 0; j < n; ++j, to += columns)
          for (int v = 0; v < columns; v += kLanes<T>) store(to + v, load(x_.data + j * x_.stride[0] + c + v));
      });
  }

  static Index copy_size(const Product<T>& op) {
    const bool worth = op.a.shape[0] >= kWorthCopy && op.x.shape[1] > kStripColumns;
    return worth ? op.x.shape[0] * op.x.shape[1] : 0;
  }

  template <int vectors>
  Strip<T> at(Index column) const {
    if (copy_ == nullptr) return {x_.data + column, x_.stride[0]};
    return {copy_ + column * x_.shape[0], vectors * kLanes<T>};
  }

  // f(vectors, column) for every strip of columns [from, width)
  template <class F>
  static void for_strips(Index width, Index from, F f) {
    constexpr int lanes = kLanes<T>;
    Index c = from;
    for (; c + 4 * lanes <= width; c += 4 * lanes) f(Vectors<4>(), c);
    for (; c + 2 * lanes <= width; c += 2 * lanes) f(Vectors<2>(), c);
    for (; c < width; c += lanes) f(Vectors<1>(), c);
  }

 private:
  static constexpr Index kStripColumns = 4 * kLanes<T>;
  View<const T, 2> x_;
  T* copy_ = nullptr;
};

template <int vectors, class T>
void product_part(const Product<T>& op, Strip<T> x, Index column, Index from, Index to) {
  constexpr int rows = kRowsOf<vectors>;
  T* const out = op.out.data + column;
  Index i = from;
  for (; i + rows <= to; i += rows) some_rows<vectors, rows>(op.a, x.data, x.row, out, op.out.stride[0], i);
  for (; i < to; ++i) some_rows<vectors, 1>(op.a, x.data, x.row, out, op.out.stride[0], i);
}

// out[j .. j + columns) (+)= Σ_i a[i, j ..]·y[i] over some rows
template <int vectors, int columns, class T>
void some_columns(const T* a, Index step, Index depth, const T* y, Index y_row, T* out, Index out_row, bool first) {
  Vector<T> acc[columns][vectors] = {};
  tile(acc, depth, a, 1, step, y, y_row);
  if (first) put<false>(out, out_row, acc);
  else put<true>(out, out_row, acc);
}

// Rows [top, bottom) and columns [left, right) of a
template <int vectors, class T>
void adjoint_part(const View<const T, 2>& a, const T* y, Index y_row, T* out, Index out_row, Index top, Index bottom,
                  Index left, Index right) {
  constexpr int columns = kColumnsOf<vectors>;
  constexpr Index kLine = 64 / Index(sizeof(T));
  const Index step = a.stride[0];
  for (Index i = top; i < bottom; i += kStack) {
    const Index depth = least(kStack, bottom - i);
    const T* const rows = a.data + i * step;
    const T* const weights = y + i * y_row;
    for (Index line = left; line < right; line += kLine) {
      for (Index k = 0; k < depth; ++k) __builtin_prefetch(rows + k * step + line + 8 * kLine, 0, 2);
      const Index end = least(right, line + kLine);
      Index j = line;
      for (; j + columns <= end; j += columns)
        some_columns<vectors, columns>(rows + j, step, depth, weights, y_row, out + j * out_row, out_row, i == top);
      for (; j < end; ++j)
        some_columns<vectors, 1>(rows + j, step, depth, weights, y_row, out + j * out_row, out_row, i == top);
    }
  }
}

template <class T>
void adjoint_any(const AdjointProduct<T>& op, T* out, Index out_row, Index top, Index bottom, Index left, Index right) {
  constexpr int lanes = kLanes<T>;
  const Index width = op.y.shape[1], y_row = op.y.stride[0];
  const T* const y = op.y.data;
  Index c = 0;
  for (; c + 4 * lanes <= width; c += 4 * lanes)
    adjoint_part<4>(op.a, y + c, y_row, out + c, out_row, top, bottom, left, right);
  for (; c + 2 * lanes <= width; c += 2 * lanes)
    adjoint_part<2>(op.a, y + c, y_row, out + c, out_row, top, bottom, left, right);
  for (; c < width; c += lanes) adjoint_part<1>(op.a, y + c, y_row, out + c, out_row, top, bottom, left, right);
}

}  // namespace

template <class T>
Index product_scratch(const Product<T>& op) {
  return Strips<T>::copy_size(op);
}

template <class T>
void product(const Product<T>& op, T* scratch, int threads) {
  const Index m = op.a.shape[0], width = op.x.shape[1];
  // some rows stay in the cache while all columns go past; as many parts for each thread
  if (m * op.a.shape[1] * width < kWorthThreads) threads = 1;
  const Index rounds = (m + kBlock * threads - 1) / (kBlock * threads);
  const Index part = round_up((m + rounds * threads - 1) / (rounds * threads), 24), parts = (m + part - 1) / part;
  const Strips<T> strips(op, scratch, threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (Index p = 0; p < parts; ++p) {
    const Index from = p * part, to = least(m, from + part);
    Strips<T>::for_strips(width, 0, [&](auto vectors, Index c) {
      constexpr int wide = decltype(vectors)::value;
      product_part<wide>(op, strips.template at<wide>(c), c, from, to);
    });
  }
}

// Threads share the columns of a wide matrix, each with its part of the answer; of a tall one the rows, each with an
// answer of its own.
template <class T>
Index adjoint_scratch(const AdjointProduct<T>& op, int threads) {
  const Index m = op.a.shape[0], n = op.a.shape[1];
  return threads > 1 && m > 2 * n && n <= 1024 ? (threads - 1) * n * op.y.shape[1] : 0;
}

template <class T>
void adjoint_product(const AdjointProduct<T>& op, T* scratch, int threads) {
  const Index m = op.a.shape[0], n = op.a.shape[1], width = op.y.shape[1];
  if (m * n * width < kWorthThreads) threads = 1;
  if (adjoint_scratch(op, threads) == 0) {
    const Index part = round_up((n + threads - 1) / threads, 64 / Index(sizeof(T))), parts = (n + part - 1) / part;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index p = 0; p < parts; ++p)
      adjoint_any(op, op.out.data, op.out.stride[0], 0, m, p * part, least(n, (p + 1) * part));
    return;
  }
  const Index part = (m + threads - 1) / threads, parts = (m + part - 1) / part;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index p = 0; p < parts; ++p) {
    T* const out = p == 0 ? op.out.data : scratch + (p - 1) * n * width;
    adjoint_any(op, out, p == 0 ? op.out.stride[0] : width, p * part, least(m, (p + 1) * part), 0, n);
  }
  for (Index p = 1; p < parts; ++p)
    for (Index j = 0; j < n; ++j)
      for (Index c = 0; c < width; ++c) op.out(j, c) += scratch[((p - 1) * n + j) * width + c];
}

template Index product_scratch(const Product<float>&);
template Index product_scratch(const Product<double>&);
template void product(const Product<float>&, float*, int);
template void product(const Product<double>&, double*, int);
template void adjoint_product(const AdjointProduct<float>&, float*, int);
template void adjoint_product(const AdjointProduct<double>&, double*, int);
template Index adjoint_scratch(const AdjointProduct<float>&, int);
template Index adjoint_scratch(const AdjointProduct<double>&, int);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
