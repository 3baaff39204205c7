// Products of tall or wide matrices with narrow ones, from one register tile. Included by the files that are
// compiled once per instruction set.
#pragma once
#include "isa.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {

#if defined(__AVX512F__)
constexpr int kAccumulators = 24;  // of 32 registers
#else
constexpr int kAccumulators = 12;  // of 16
#endif

template <class T> constexpr int kStrip = 3 * kLanes<T>;  // columns of a strip: a tile is kTall rows of it
constexpr int kTall = kAccumulators / 3;

// acc[r][v] += Σ_k a[r·a_row + k·a_col]·b[k·b_row + v·lanes ..]
template <int rows, int vectors, class T>
inline void tile(Vector<T> (&acc)[rows][vectors], Index depth, const T* a, Index a_row, Index a_col, const T* b,
                 Index b_row) {
  for (Index k = 0; k < depth; ++k) {
    Vector<T> line[vectors];
    for (int v = 0; v < vectors; ++v) line[v] = load(b + k * b_row + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const T factor = a[r * a_row + k * a_col];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) acc[r][v] += factor * line[v];
    }
  }
}

// to += or = tile of rows × (vectors·lanes) entries
template <bool add, int rows, int vectors, class T>
inline void put(T* to, Index to_row, const Vector<T> (&acc)[rows][vectors]) {
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) {
      T* const place = to + r * to_row + v * kLanes<T>;
      store(place, add ? load(place) + acc[r][v] : acc[r][v]);
    }
}

// out (m, 1..4 vectors wide) += or = a (m, depth) · b (depth, ·)
template <bool add, int vectors, class T>
void narrow_columns(Index m, Index depth, const T* a, Index a_row, Index a_col, const T* b, Index b_row, T* out,
                    Index out_row) {
  constexpr int rows = kAccumulators / vectors;
  Index i = 0;
  for (; i + rows <= m; i += rows) {
    Vector<T> acc[rows][vectors] = {};
    tile(acc, depth, a + i * a_row, a_row, a_col, b, b_row);
    put<add>(out + i * out_row, out_row, acc);
  }
  for (; i < m; ++i) {
    Vector<T> acc[1][vectors] = {};
    tile(acc, depth, a + i * a_row, a_row, a_col, b, b_row);
    put<add>(out + i * out_row, out_row, acc);
  }
}

// The same for any width that is a multiple of the vector's.
template <bool add, class T>
void narrow(Index m, Index width, Index depth, const T* a, Index a_row, Index a_col, const T* b, Index b_row, T* out,
            Index out_row) {
  constexpr int lanes = kLanes<T>;
  Index j = 0;
  for (; j + 4 * lanes <= width; j += 4 * lanes)
    narrow_columns<add, 4>(m, depth, a, a_row, a_col, b + j, b_row, out + j, out_row);
  for (; j + 2 * lanes <= width; j += 2 * lanes)
    narrow_columns<add, 2>(m, depth, a, a_row, a_col, b + j, b_row, out + j, out_row);
  for (; j < width; j += lanes) narrow_columns<add, 1>(m, depth, a, a_row, a_col, b + j, b_row, out + j, out_row);
}

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
