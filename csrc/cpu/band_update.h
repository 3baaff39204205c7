// The products of the band reduction: with the reflectors of a panel, of its rest and of the probes. Included by band.cpp alone.
#pragma once
#include "band_work.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

// V (m, b) once more in groups of kTall columns, for products VᵀC.
template <class T>
void pack(Work<T>& work, const T* V, Index ld, Index m) {
#pragma omp parallel for schedule(static) num_threads(work.threads) if (m * work.b >= kWorthThreads)
  for (Index g = 0; g < work.b; g += kTall)
    for (Index i = 0; i < m; ++i)
      for (Index r = 0; r < kTall; ++r) work.packed[g * m + i * kTall + r] = g + r < work.b ? V[i * ld + g + r] : T(0);
}

// `columns` columns of VᵀC from the packed V, into strips of b rows.
template <class T>
void inner_products(const Work<T>& work, Index m, const T* C, Index c_row, Index columns, T* buffer, T* out) {
  constexpr Index S = kStrip<T>;
  const Index b = work.b, strips = (columns + S - 1) / S;
  for (Index i = 0; i < strips * b * S; ++i) out[i] = 0;
  for (Index k = 0; k < m; k += kDeep<T>) {
    const Index depth = least(kDeep<T>, m - k);
    for (Index i = 0; i < depth; ++i)
      for (Index s = 0; s < strips; ++s) {
        T* const to = buffer + (s * kDeep<T> + i) * S;
        const T* const from = C + (k + i) * c_row + s * S;
        const Index count = least(S, columns - s * S);
        if (count == S) {
          for (int v = 0; v < 3; ++v) store(to + v * kLanes<T>, load(from + v * kLanes<T>));
        } else {
          for (Index c = 0; c < S; ++c) to[c] = c < count ? from[c] : T(0);
        }
      }
    for (Index g = 0; g < b; g += kTall)
      for (Index s = 0; s < strips; ++s) {
        Vector<T> acc[kTall][3] = {};
        tile(acc, depth, work.packed + g * m + k * kTall, 1, kTall, buffer + s * kDeep<T> * S, S);
        for (Index r = 0; r < least(kTall, b - g); ++r)
          for (int v = 0; v < 3; ++v) {
            T* const place = out + (s * b + g + r) * S + v * kLanes<T>;
            store(place, load(place) + acc[r][v]);
          }
      }
  }
}

// T and Tᵀ of I − V·T·Vᵀ = H_1 ··· H_b from VᵀV and tau (LAPACK's larft); the packed V must be there.
template <class T>
void triangular_factor(Work<T>& work, const T* V, Index ld, Index m) {
  const Index b = work.b;
  constexpr Index S = kStrip<T>;
  T* const buffer = work.each;
  T* const out = buffer + kDeep<T> * Work<T>::wide(b);
  inner_products(work, m, V, ld, b, buffer, out);
  for (Index i = 0; i < b; ++i)
    for (Index j = 0; j < b; ++j) work.gram[i * b + j] = out[((j / S) * b + i) * S + j % S];
  for (Index j = 0; j < b; ++j) {
    T* const row = work.turned + j * b;
    for (Index c = 0; c < b; ++c) row[c] = 0;
    for (Index i = 0; i < j; ++i) {
      const T factor = -work.tau[j] * work.gram[i * b + j];
      const T* const other = work.turned + i * b;
      for (Index c = 0; c <= i; ++c) row[c] += factor * other[c];
    }
    row[j] = work.tau[j];
  }
  for (Index i = 0; i < b; ++i)
    for (Index j = 0; j < b; ++j) work.upright[i * b + j] = work.turned[j * b + i];
}

// X = Tᵀ·VᵀC of all columns of C (m, n), into the upper rows of strips.
template <class T>
void left_factor(const Work<T>& work, Index m, Index n, const T* C, Index c_row, T* strips) {
  constexpr Index S = kStrip<T>;
  const Index b = work.b;
  const Index share = round_up((n + 2 * work.threads - 1) / (2 * work.threads), S), width = least(kChunk<T>, share);
  const Index chunks = (n + width - 1) / width;
#pragma omp parallel for schedule(dynamic) num_threads(work.threads) if (m * n >= kWorthThreads)
  for (Index chunk = 0; chunk < chunks; ++chunk) {
    T* const buffer = work.each + this_thread() * Work<T>::each_size(b);
    T* const G = buffer + kDeep<T> * Work<T>::wide(b);
    const Index at = chunk * width, columns = least(width, n - at);
    inner_products(work, m, C + at, c_row, columns, buffer, G);
    for (Index s = 0; s * S < columns; ++s)
      narrow_columns<false, 3>(b, b, work.turned, b, 1, G + s * b * S, S, strips + (at / S + s) * 2 * b * S, S);
  }
}

// C (m, n) −= a (m, depth)·strips, rows `depth` of each strip.
template <class T>
void subtract(const Work<T>& work, Index m, Index n, Index depth, const T* a, Index a_row, const T* strips, T* C,
              Index c_row) {
  constexpr Index S = kStrip<T>, wide = 16 * S;
  const Index chunks = (n + wide - 1) / wide, tall = m > 2048 ? 1024 : 256, stacks = (m + tall - 1) / tall;
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(work.threads) if (m * n >= kWorthThreads)
  for (Index chunk = 0; chunk < chunks; ++chunk)
    for (Index stack = 0; stack < stacks; ++stack) {
      const Index right = least(n, (chunk + 1) * wide), bottom = least(m, (stack + 1) * tall);
      for (Index i = stack * tall; i < bottom; i += kTall) {
        const Index rows = least(kTall, bottom - i);
        for (Index j = chunk * wide; j < right; j += S) {
          const T* const strip = strips + j / S * 2 * work.b * S;
          Vector<T> acc[kTall][3] = {};
          if (rows == kTall) {
            tile(acc, depth, a + i * a_row, a_row, 1, strip, S);
          } else {
            for (Index r = 0; r < rows; ++r) {
              Vector<T> line[1][3] = {};
              tile(line, depth, a + (i + r) * a_row, a_row, 1, strip, S);
              for (int v = 0; v < 3; ++v) acc[r][v] = line[0][v];
            }
          }
          const Index count = least(S, n - j);
          for (Index r = 0; r < rows; ++r) {
            T* const to = C + (i + r) * c_row + j;
            if (count == S) {
              for (int v = 0; v < 3; ++v) store(to + v * kLanes<T>, load(to + v * kLanes<T>) - acc[r][v]);
            } else {
              T values[S];
              for (int v = 0; v < 3; ++v) store(values + v * kLanes<T>, acc[r][v]);
              for (Index c = 0; c < count; ++c) to[c] -= values[c];
            }
          }
        }
      }
    }
}

// The block reflector's transpose on probes (m, few): they are columns like any other.
template <class T>
void reflect(const Work<T>& work, const T* V, Index ld, Index m, const View<T, 2>& probes, Index offset) {
  T* const at = probes.data + offset * probes.stride[0];
  left_factor(work, m, probes.shape[1], at, probes.stride[0], work.spare);
  subtract(work, m, probes.shape[1], work.b, V, ld, work.spare, at, probes.stride[0]);
}

// Y = (C·W − V·(X·W))·S into the right half of P, whose left half is V.
template <class T>
void right_factor(Work<T>& work, Index m, Index n, const T* C, Index c_row, T* P) {
  constexpr Index S = kStrip<T>;
  const Index b = work.b;
#pragma omp parallel num_threads(work.threads) if (m * n >= kWorthThreads)
  {
    const Index part = round_up((b + work.threads - 1) / work.threads, 8);
#pragma omp for schedule(static)
    for (Index low = 0; low < b; low += part) {
      const Index rows = least(part, b - low);
      for (Index i = low * b; i < (low + rows) * b; ++i) work.inner[i] = 0;
      for (Index j = 0; j < n; j += S)
        narrow<true>(rows, b, least(S, n - j), work.strips + (j / S * 2 * b + low) * S, S, 1, work.W + j * b, b,
                     work.inner + low * b, b);
    }
    T* const H = work.each + this_thread() * Work<T>::each_size(b);  // (kRows, b)
#pragma omp for schedule(dynamic)
    for (Index i = 0; i < m; i += kRows) {
      const Index rows = least(kRows, m - i);
      for (Index e = 0; e < rows * b; ++e) H[e] = 0;
      for (Index k = 0; k < n; k += kLong<T>)
        narrow<true>(rows, b, least(kLong<T>, n - k), C + i * c_row + k, c_row, 1, work.W + k * b, b, H, b);
      T* const Y = P + i * 2 * b + b;
      narrow<false>(rows, b, b, P + i * 2 * b, 2 * b, 1, work.inner, b, Y, 2 * b);
      for (Index r = 0; r < rows; ++r)
        for (Index j = 0; j < b; ++j) H[r * b + j] -= Y[r * 2 * b + j];
      narrow<false>(rows, b, b, H, b, 1, work.upright, b, Y, 2 * b);
    }
  }
}

// Wᵀ into the lower rows of the strips.
template <class T>
void turn(Work<T>& work, Index n) {
  constexpr Index S = kStrip<T>;
  const Index b = work.b, end = round_up(n, S);
#pragma omp parallel for schedule(static) num_threads(work.threads) if (n * b >= kWorthThreads)
  for (Index j = 0; j < end; ++j) {
    T* const strip = work.strips + (j / S * 2 * b + b) * S + j % S;
    for (Index i = 0; i < b; ++i) strip[i * S] = j < n ? work.W[j * b + i] : T(0);
  }
}

}  // namespace
}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
