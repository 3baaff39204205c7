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

}  // namespace tightpass
