// The contract: every operation once, for the namespaces cpu and cuda, in float and double.
//
// Arguments have been checked by the caller (tightpass/kernels/): shapes agree, the last axis of every
// array of rows is contiguous, nothing overlaps but what is said here. CUDA kernels are queued
// on `stream`, and are not waited for.
#pragma once
#include "view.h"

namespace tightpass {

// Blocks (t, s) of softmax attention's Jacobian for some output tokens t, right-multiplied by the norm before it where there
// is one. Each is a mix over heads of fixed products Wo_h·Wv_h, an update of rank `heads`, since the weights depend on
// query and keys, and on the diagonal the query's own term:
//   w   = Σ_h a[t,h,s]·p[h,o,:] + Σ_h u_h·k[t,h,:] + δ_ts·q[t,o,:],  u_h = a[t,h,s]·(vo[o,h,s] − vt[o,h,t] − rest[o,h,t])
//   out = r_s·(w − (w·x̂_s)·x̂_s / d)
// Row t has columns[t] blocks, s = 0 .. columns[t] − 1; the block (t, s) starts at
// out[start[t] + s·block_stride], its rows lie row_stride apart. Nothing else is touched.
template <class T>
struct AttentionBlocks {
  View<const T, 3> a;     // (rows, heads, tokens) softmax weights
  View<const T, 3> vo;    // (d_out, heads, tokens) Wo_h v_s
  View<const T, 3> vt;    // (d_out, heads, rows) Wo_h v_u, u the token of the row's largest weight
  View<const T, 3> rest;  // (d_out, heads, rows) Wo_h (o_t − v_u)
  View<const T, 3> p;     // (heads, d_out, d_in) Wo_h Wv_h, last axis contiguous
  View<const T, 3> k;     // (rows, heads, d_in) scale·q_t Wk_h, last axis contiguous
  View<const T, 3> q;     // (rows, d_out, d_in) query's own term, last axis contiguous; may be the diagonal of out
  View<const T, 3> px;    // (d_out, heads, tokens) p[h,o,:]·x̂_s; with the next three absent without a norm
  View<const T, 3> kx;    // (rows, heads, tokens) k[t,h,:]·x̂_s
  View<const T, 2> qx;    // (rows, d_out) q[t,o,:]·x̂_t
  View<const T, 2> x;     // (tokens, d_in) x̂, contiguous rows
  View<const T, 1> r;     // (tokens)
  View<const Index, 1> columns;   // (rows)
  View<const Index, 1> diagonal;  // (rows) the s that q belongs to; tokens() for none
  View<const Index, 1> start;     // (rows)
  T* out;
  Index block_stride, row_stride;

  TIGHTPASS_BOTH Index rows() const { return a.shape[0]; }
  TIGHTPASS_BOTH Index heads() const { return a.shape[1]; }
  TIGHTPASS_BOTH Index tokens() const { return a.shape[2]; }
  TIGHTPASS_BOTH Index d_out() const { return p.shape[1]; }
  TIGHTPASS_BOTH Index d_in() const { return p.shape[2]; }
  TIGHTPASS_BOTH T* block_row(Index t, Index s, Index o) const {
    return out + start(t) + s * block_stride + o * row_stride;
  }
};

// Rows of a weight matrix, gathered, scaled, and right-multiplied by the norm of their token:
//   w = slope[i]·weight[index[i],:],  out[i,:] = r_t·(w − (w·x̂_t)·x̂_t / d),  t = token[i]
template <class T>
struct GatherRows {
  View<const T, 2> weight;     // (units, d), contiguous rows
  View<const Index, 1> index;  // (n)
  View<const T, 1> slope;      // (n), absent: ones
  View<const Index, 1> token;  // (n), absent with x
  View<const T, 2> x;          // (tokens, d) x̂, contiguous rows; absent: no norm
  View<const T, 1> r;          // (tokens), absent with x
  View<T, 2> out;              // (n, d), contiguous rows
};

// out = a·x for few columns: memory's speed.
template <class T>
struct Product {
  View<const T, 2> a;  // (m, n), contiguous rows
  View<const T, 2> x;  // (n, width), contiguous rows, width a multiple of 16
  View<T, 2> out;      // (m, width), contiguous rows
};

// out = aᵀ·y likewise.
template <class T>
struct AdjointProduct {
  View<const T, 2> a;  // (m, n), contiguous rows
  View<const T, 2> y;  // (m, width), contiguous rows, width a multiple of 16
  View<T, 2> out;      // (n, width), contiguous rows
};

// (high + low)[rows[b]] += blocks[b]·v[columns[b]] for all b, in twice double's precision; the adjoint:
// (high + low)[columns[b]] += blocks[b]ᵀ·v[rows[b]].
struct BlockProduct {
  View<const double, 3> blocks;  // (count, m, n), contiguous rows
  View<const Index, 1> rows;     // (count)
  View<const Index, 1> columns;  // (count)
  View<const double, 2> v;       // contiguous rows
  View<double, 2> high, low;     // contiguous rows
  bool adjoint;
};

// Python's plain versions of the operations have the constants below and those of formulas.h too; a test compares them with
// what the extension exports.
constexpr Index kNarrowest = 16, kWidest = 128;  // widths of a band are multiples of the one, up to the other
constexpr Index kMostProbes = 6;                 // columns that a reduction turns beside its matrix
constexpr Index kProbes = 4;                     // of which two stages in one call have as many
constexpr double kSafe = 0x1p20;  // entries up to this size, and down to its inverse, are reduced as they are
// Brackets of values are bisected down to the larger of eps·kAbsolute·(max |d| + max |e|) and eps·kRelative·σ; counts have
// to confirm a value within eps·(σ + kSlack·σ₁).
constexpr double kAbsolute = 0.0625, kRelative = 0.125, kSlack = 0.125;

// Orthogonal Q₁, P₁ with Q₁ᵀ·A·P₁ upper banded, for A (m, n) with m ≥ n. A is destroyed. The band is added
// up in `band`, zero before; the probes become Q₁ᵀ·left and P₁ᵀ·right.
template <class T>
struct BandReduction {
  View<T, 2> a;      // (m, n), contiguous rows
  View<T, 2> band;   // (at least n, 3·width), contiguous: entry (i, j) at column width + j − i
  View<T, 2> left;   // (at least m, probes), contiguous rows, at most kMostProbes
  View<T, 2> right;  // (at least n, probes), contiguous rows
  Index width;       // a multiple of kNarrowest, at most kWidest

  TIGHTPASS_BOTH T& entry(Index i, Index j) const { return band(i, width + j - i); }
};

// Orthogonal Q₂, P₂ with Q₂ᵀ·B·P₂ upper bidiagonal, by bulge chasing; B as BandReduction leaves it, with rows
// of zeros up to n + 2·width. Diagonal and superdiagonal stay in the band; probes as above, zeros up to as many rows.
template <class T>
struct BulgeChase {
  View<T, 2> band;   // (n + 2·width, 3·width)
  View<T, 2> left;   // (n + 2·width, probes)
  View<T, 2> right;  // (n + 2·width, probes)
  Index n, width;

  // The band is an ordinary matrix whose rows lie 3·width − 1 apart.
  TIGHTPASS_BOTH Index step() const { return 3 * width - 1; }
  TIGHTPASS_BOTH T* at(Index i, Index j) const { return band.data + i * step() + width + j; }
};

// The same in one stage, on one thread, for a matrix in the cache: Qᵀ·A·P = bidiagonal for the first m rows and n columns
// of `a`. Columns beyond n are turned by Qᵀ with the others, rows beyond m by P: probes.
template <class T>
struct DirectReduction {
  View<T, 2> a;       // (≥ m, ≥ n), rows a multiple of 64 bytes long, zeros where nothing is
  Index m, n;         // m ≥ n
  View<double, 1> d;  // (n)
  View<double, 1> e;  // (n − 1)
};

// What a reduction to bidiagonal form says of itself: all of the matrix divided by `scale`. Frobenius norms.
struct ReductionCheck {
  double largest;  // entry of A, before scaling; infinite where one is not finite, and then nothing else holds
  double scale;    // a power of two
  double energy;   // ‖A‖_F²
  double misfit;   // ‖B·PᵀZ − Qᵀ·AZ‖
  double right_before, right_after;  // ‖Z‖, ‖PᵀZ‖
  double left_before, left_after;    // ‖AZ‖, ‖QᵀAZ‖
  Index misplaced;                   // values that Sturm counts on their two sides do not put in their place
};

// All singular values of A (m, n), m ≥ n, divided by the check's scale and rounded to its precision: to bidiagonal form,
// with probes Z of the caller's, in one stage or in two; then bisection, and counts on both sides of each value.
template <class T>
struct TwoStage {
  View<T, 2> a;             // (m, n); contiguous rows where in_place
  View<const T, 2> probes;  // (kProbes, n) Zᵀ, contiguous rows
  View<double, 1> d;        // (n)
  View<double, 1> e;        // (n − 1)
  View<T, 1> values;        // (n), descending
  ReductionCheck* check;
  Index width;
  bool in_place;
};

// Singular values of an upper bidiagonal matrix by bisection, descending; each bracketed to
// max(absolute, relative·σ) by Sturm counts (`SturmCounts`). Where zero is still inside, the answer is 0.
struct Bisection {
  View<const double, 1> d;  // (n), n ≥ 1
  View<const double, 1> e;  // (n − 1)
  double absolute, relative;
  View<double, 1> values;  // (n)
};

// #{σ < τ} of an upper bidiagonal matrix for each τ ≥ 0 (none at 0): the negative pivots of BᵀB − τ²I by the differential
// stationary qd transformation (Fernando 1998).
struct SturmCounts {
  View<const double, 1> d;  // (n), n ≥ 1
  View<const double, 1> e;  // (n − 1)
  View<const double, 1> taus;
  View<Index, 1> counts;
};

namespace cpu {
const char* instruction_set();  // the one that these calls run with: "avx512", "avx2" or "baseline"
template <class T> void run(const AttentionBlocks<T>&, int threads);
template <class T> void run(const GatherRows<T>&, int threads);
template <class T> void run(const BandReduction<T>&, int threads);
template <class T> void run(const Product<T>&, int threads);
template <class T> void run(const AdjointProduct<T>&, int threads);
template <class T> void run(const DirectReduction<T>&, int threads);
template <class T> void run(const TwoStage<T>&, int threads);
// Copies a (m, n) where `copy` is given, and measures it: `out` (m, kProbes) = a·probesᵀ, its largest entry, and in
// energy[0] its squared norm; `energy` has m places.
template <class T>
void survey(const View<const T, 2>& a, const View<const T, 2>& probes, T* copy, Index copy_row, const View<T, 2>& out,
            double* largest, double* energy, int threads);
template <class T> void run(const BulgeChase<T>&, int threads);
void run(const BlockProduct&, int threads);
void run(const Bisection&, int threads);
void run(const SturmCounts&, int threads);
}  // namespace cpu

namespace cuda {
bool built();
using Stream = void*;  // a cudaStream_t
// Makes a GPU the current one of this thread while it lives: that of the operands, for every call below.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};
template <class T> void run(const AttentionBlocks<T>&, Stream);
template <class T> void run(const GatherRows<T>&, Stream);
template <class T> void run(const BulgeChase<T>&, Stream);
void run(const Bisection&, Stream);
void run(const SturmCounts&, Stream);
}  // namespace cuda

}  // namespace tightpass
