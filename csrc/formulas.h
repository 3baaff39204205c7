// The scalar formulas that the CPU and the CUDA kernels share.
#pragma once
#include "view.h"

namespace tightpass {

// Weight of the rank-one update of one head: a·(Wo_h v_s − Wo_h o_t) in one output feature.
template <class T>
TIGHTPASS_BOTH T update_weight(T a, T value, T mean) {
  return a * (value - mean);
}

// An entry of a row w, right-multiplied by a norm's Jacobian whose γ and centring are in w already:
// r·(w − (w·x̂)·x̂ / d), with `share` = (w·x̂) / d.
template <class T>
TIGHTPASS_BOTH T through_norm(T w, T share, T x, T r) {
  return r * (w - share * x);
}

TIGHTPASS_BOTH float square_root(float x) {
#ifdef __CUDA_ARCH__
  return sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}
TIGHTPASS_BOTH double square_root(double x) {
#ifdef __CUDA_ARCH__
  return sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

// Fernando's Sturm count for σ < τ, on numbers or on vectors of them: the pivot of a row from s and d², and the next
// row's s. A pivot of almost nothing is replaced before its sign is counted.
template <class V>
TIGHTPASS_BOTH V sturm_pivot(V s, V d2, V least) {
  const V pivot = s + d2;
  return (pivot < least) & (pivot > -least) ? -least : pivot;
}
template <class V>
TIGHTPASS_BOTH V sturm_next(V s, V pivot, V e2, V tau2) {
  return s / pivot * e2 - tau2;
}
constexpr double kLeastPivot = 0x1p-990;  // times the largest e²: no quotient of what follows leaves the range

// Where a bracket of singular values is cut: in the middle, or in that of the logarithms where it spans decades.
TIGHTPASS_BOTH double bisection_cut(double low, double high, double absolute) {
  if (low > 0) return high > 8 * low ? square_root(low) * square_root(high) : low + (high - low) / 2;
  const double next = high * 0x1p-10;
  return next > absolute / 2 ? next : high / 2;
}

// Whether a bracket that is to be cut at `middle` is still too wide.
TIGHTPASS_BOTH bool bisection_open(double low, double high, double middle, double absolute, double relative) {
  return high - low > absolute && high - low > relative * high && middle > low && middle < high;
}

// Householder's H = I − tau·v·vᵀ with H·x = beta·e₁, v = (1, x₂·inverse, x₃·inverse, ..), from α = x₁ and
// rest = x₂² + x₃² + ..; where there is next to no rest, H = I and the rest is to be dropped.
template <class T>
struct Reflector {
  T beta, tau, inverse;
};

// Squares below this have lost digits to underflow: a reflector made of them would not be orthogonal, and it acts on
// columns of any size. Entries are at most 2^20, and the largest at least 2^-20, so what is dropped is below rounding.
template <class T> constexpr T kLeastRest = sizeof(T) == 4 ? T(0x1p-110) : T(0x1p-960);

template <class T>
TIGHTPASS_BOTH Reflector<T> reflector(T alpha, T rest) {
  if (!(rest > kLeastRest<T>)) return {alpha, T(0), T(0)};
  const T norm = square_root(alpha * alpha + rest), beta = alpha > 0 ? -norm : norm;
  return {beta, (beta - alpha) / beta, T(1) / (alpha - beta)};
}

}  // namespace tightpass
