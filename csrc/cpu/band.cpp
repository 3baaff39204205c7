// Dense -> upper band by blocked QR and LQ. Each step reads the trailing matrix three times and writes it once:
// VᵀC, CW, and one update of rank 2b, since both reflectors are merged (methods §2):
//   X = TᵀVᵀC,  W from the updated rows,  Y = (C·W − V·(X·W))·S,  C −= [V, Y]·[X; Wᵀ]
#ifdef _OPENMP
#include <omp.h>
#endif

#include "tile.h"

namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA) {
namespace {

#ifdef _OPENMP
int this_thread() { return omp_get_thread_num(); }
int team_size() { return omp_get_num_threads(); }
#else
int this_thread() { return 0; }
int team_size() { return 1; }
#endif

template <class T> constexpr Index kChunk = 8 * kStrip<T>;            // columns that are packed at once
template <class T> constexpr Index kDeep = 512 / Index(sizeof(T));    // rows of one packed chunk
template <class T> constexpr Index kLong = 512 / Index(sizeof(T));    // columns of C in one partial sum of C·W
constexpr Index kRows = 96;                                           // rows of C·W kept in the cache meanwhile
constexpr Index kWorthThreads = 1 << 16;  // entries; below, one thread is faster than waking others

template <class T>
struct Work {
  Index m, n, b;
  int threads;
  T* P;       // (m, 2b) V beside Y
  T* W;       // (n, b)
  T* strips;  // (strips, 2b, kStrip) X above Wᵀ
  T* spare;   // (1, 2b, kStrip) the same for probes
  T* packed;  // (b / kTall, m, kTall) V once more
  T* turned;  // (b, b) Tᵀ
  T* upright; // (b, b) T, or S
  T* gram;    // (b, b)
  T* inner;   // (b, b) X·W
  T* tau;     // (b)
  T* partial; // (threads, 2, b) sums of the panel's factorisation
  T* each;    // (threads, kDeep·kChunk + b·kChunk)

  static Index each_size(Index b) { return (kDeep<T> + b) * kChunk<T>; }
  static Index strip_count(Index n) { return (n + kStrip<T> - 1) / kStrip<T>; }
  static Index tall(Index b) { return round_up(b, kTall); }
  static Index size(Index m, Index n, Index b, Index threads) {
    return 2 * m * b + n * b + (strip_count(n) + 1) * 2 * b * kStrip<T> + m * tall(b) + 4 * b * b + b + threads * 2 * b +
           threads * each_size(b);
  }
  Work(const BandReduction<T>& op, T* at, int threads) : m(op.a.shape[0]), n(op.a.shape[1]), b(op.width), threads(threads) {
    auto take = [&](Index count) { T* const here = at; at += count; return here; };
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

// Rows [from, to) of one column step: applies the reflector before (its column `before`, weights w, zero up to that
// column) to the vectors from `first` on, and sums x_i·row_i, x being column `column`.
template <int vectors, class T>
void panel_rows(T* panel, Index ld, Index from, Index to, Index before, T inverse, const T* w, Index column, Index first,
                T* sums) {
  constexpr int lanes = kLanes<T>;
  constexpr Index kTogether = 64;  // rows in one partial sum, so that long columns do not lose digits
  Vector<T> weights[vectors];
  for (int v = 0; v < vectors; ++v) weights[v] = load(w + first + v * lanes);
  const T own = w[column];
  for (Index start = from; start < to; start += kTogether) {
    Vector<T> acc[2][vectors] = {};
    const Index stop = least(start + kTogether, to);
    auto one = [&](Index i, Vector<T>(&into)[vectors]) {
      T* const row = panel + i * ld;
      const T factor = row[before] * inverse;
      const T x = row[column] - factor * own;
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const Vector<T> updated = load(row + first + v * lanes) - factor * weights[v];
        store(row + first + v * lanes, updated);
        into[v] += x * updated;
      }
    };
    Index i = start;
    for (; i + 2 <= stop; i += 2) {
      one(i, acc[0]);
      one(i + 1, acc[1]);
    }
    if (i < stop) one(i, acc[0]);
    for (int v = 0; v < vectors; ++v) {
      T* const place = sums + first + v * lanes;
      store(place, load(place) + (acc[0][v] + acc[1][v]));
    }
  }
}

template <class T>
void panel_rows_any(T* panel, Index ld, Index b, Index from, Index to, Index before, T inverse, const T* w, Index column,
                    T* sums) {
  const Index first = column / kLanes<T> * kLanes<T>;
  switch ((b - first) / kLanes<T>) {
    case 1: return panel_rows<1>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 2: return panel_rows<2>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 3: return panel_rows<3>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 4: return panel_rows<4>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 5: return panel_rows<5>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 6: return panel_rows<6>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 7: return panel_rows<7>(panel, ld, from, to, before, inverse, w, column, first, sums);
    case 8: return panel_rows<8>(panel, ld, from, to, before, inverse, w, column, first, sums);
    default: break;
  }
  for (Index i = from; i < to; ++i) {  // many narrow vectors: an old processor
    T* const row = panel + i * ld;
    const T factor = row[before] * inverse;
    for (Index j = column; j < b; ++j) row[j] -= factor * w[j];
    const T x = row[column];
    for (Index j = column; j < b; ++j) sums[j] += x * row[j];
  }
}

// QR of a panel (m, b) in place: V below the diagonal; R and tau apart. Householder, one pass over the panel for
// each column: while one reflector is applied, the products that the next one needs are summed.
// `R` is called as R(i, j, value) for the entries of the triangle.
template <class T, class Triangle>
void panel_qr(Work<T>& work, T* panel, Index ld, Index m, Triangle R) {
  const Index b = work.b, count = least(b, m);
  T w[kWidest] = {}, inverses[kWidest] = {};
  auto columns = [&](int thread, int team) {
    const Index per = round_up((m + team - 1) / team, 16), low = thread * per, high = least(low + per, m);
    for (Index j = 0; j < count; ++j) {
      T* const sums = work.partial + (2 * thread + (j & 1)) * b;
      for (Index c = 0; c < b; ++c) sums[c] = 0;
      const Index from = low > j + 1 ? low : j + 1;  // the diagonal's own row is thread 0's
      const Index before = j > 0 ? j - 1 : 0;        // for the first column its weights are zero
      if (from < high) panel_rows_any(panel, ld, b, from, high, before, inverses[before], w, j, sums);
      if (team > 1) {
#pragma omp barrier
      }
      if (thread == 0) {
        T* const row = panel + j * ld;
        const T factor = row[before] * inverses[before];
        for (Index c = j; c < b; ++c) row[c] -= factor * w[c];
        for (int t = 1; t < team; ++t)
          for (Index c = j; c < b; ++c) sums[c] += work.partial[(2 * t + (j & 1)) * b + c];
        const Reflector<T> h = reflector(row[j], sums[j]);
        work.tau[j] = h.tau;
        inverses[j] = h.inverse;
        row[j] = h.beta;
        w[j] = 0;
        for (Index c = j + 1; c < b; ++c) {
          w[c] = h.tau * (row[c] + sums[c] * h.inverse);
          row[c] -= w[c];
        }
      }
      if (team > 1) {
#pragma omp barrier
      }
    }
    for (Index i = low; i < high; ++i)
      for (Index j = 0; j < least(i, b); ++j) panel[i * ld + j] *= inverses[j];
  };
  if (m * b < kWorthThreads || work.threads == 1) {
    columns(0, 1);
  } else {
#pragma omp parallel num_threads(work.threads)
    columns(this_thread(), team_size());
  }
  for (Index j = count; j < b; ++j) work.tau[j] = 0;
  for (Index i = 0; i < count; ++i)
    for (Index j = i; j < b; ++j) {
      R(i, j, panel[i * ld + j]);
      panel[i * ld + j] = i == j && work.tau[j] != 0 ? T(1) : T(0);
    }
}

// V (m, b) once more in groups of kTall columns, for products VᵀC.
template <class T>
void pack(Work<T>& work, const T* V, Index ld, Index m) {
#pragma omp parallel for schedule(static) num_threads(work.threads) if (m * work.b >= kWorthThreads)
  for (Index g = 0; g < work.b; g += kTall)
    for (Index i = 0; i < m; ++i)
      for (Index r = 0; r < kTall; ++r)
        work.packed[g * m + i * kTall + r] = g + r < work.b ? V[i * ld + g + r] : T(0);
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
  T* const out = buffer + kDeep<T> * kChunk<T>;
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
    T* const G = buffer + kDeep<T> * kChunk<T>;
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

// Columns [k, k + b) of the rows from k on, by QR; zeros where the matrix ends.
template <class T, class Triangle>
void left_panel(Work<T>& work, const BandReduction<T>& op, Index k, Triangle R) {
  const Index b = work.b, m = work.m - k, width = least(b, work.n - k);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < b; ++j) work.P[i * 2 * b + j] = j < width ? op.a(k + i, k + j) : T(0);
  panel_qr(work, work.P, 2 * b, m, R);
  pack(work, work.P, 2 * b, m);
  triangular_factor(work, work.P, 2 * b, m);
  reflect(work, work.P, 2 * b, m, op.left, k);
}

}  // namespace

template <class T>
Index band_scratch(const BandReduction<T>& op, int threads) {
  return Work<T>::size(op.a.shape[0], op.a.shape[1], op.width, threads);
}

template <class T>
void band_reduction(const BandReduction<T>& op, T* scratch, int threads) {
  Work<T> work(op, scratch, threads);
  const Index n = work.n, b = work.b, row = op.a.stride[0];
  T* const A = op.a.data;
  if (3 * work.m > 5 * n) {  // many rows: QR first, then the triangle alone
    for (Index k = 0; k < n; k += b) {
      const Index right = n - k - b;
      left_panel(work, op, k, [&](Index i, Index j, T value) {
        if (k + j < n) op.a(k + i, k + j) = value;
      });
      for (Index i = 0; i < least(b, n - k); ++i)
        for (Index j = 0; j < i; ++j) op.a(k + i, k + j) = 0;
      for (Index i = k + b; i < n; ++i)
        for (Index j = 0; j < least(b, n - k); ++j) op.a(i, k + j) = 0;
      if (right <= 0) break;
      T* const C = A + k * row + k + b;
      left_factor(work, work.m - k, right, C, row, work.strips);
      subtract(work, work.m - k, right, b, work.P, 2 * b, work.strips, C, row);
    }
    work.m = n;
  }
  for (Index k = 0; k < n; k += b) {
    const Index m = work.m - k, right = n - k - b;
    left_panel(work, op, k, [&](Index i, Index j, T value) {
      if (k + j < n) op.entry(k + i, k + j) = value;
    });
    if (right <= 0) break;
    T* const top = A + k * row + k + b;
    left_factor(work, m, right, top, row, work.strips);
    subtract(work, b, right, b, work.P, 2 * b, work.strips, top, row);
#pragma omp parallel for schedule(static) num_threads(work.threads) if (right * b >= kWorthThreads)
    for (Index j = 0; j < right; ++j)
      for (Index i = 0; i < b; ++i) work.W[j * b + i] = top[i * row + j];
    panel_qr(work, work.W, b, right, [&](Index i, Index j, T value) { op.entry(k + j, k + b + i) = value; });
    pack(work, work.W, b, right);
    triangular_factor(work, work.W, b, right);
    reflect(work, work.W, b, right, op.right, k + b);
    T* const C = top + b * row;
    right_factor(work, m - b, right, C, row, work.P + 2 * b * b);
    turn(work, right);
    subtract(work, m - b, right, 2 * b, work.P + 2 * b * b, 2 * b, work.strips, C, row);
  }
}

template Index band_scratch(const BandReduction<float>&, int);
template Index band_scratch(const BandReduction<double>&, int);
template void band_reduction(const BandReduction<float>&, float*, int);
template void band_reduction(const BandReduction<double>&, double*, int);

}  // namespace tightpass::TIGHTPASS_NAMESPACE(TIGHTPASS_ISA)
